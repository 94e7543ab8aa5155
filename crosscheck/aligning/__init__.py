"""Stage 5, align: which site of one side is which of the other, and in what layout.

| module | |
|---|---|
| `align` | two traces -> an `alignment` |
| `fingerprints`, `distances` | what values are compared by before they are compared |
| `pairing`, `edges`, `assignment`, `names` | what belongs together, by value, place and name |
| `lookalikes` | a bound of each pair's likeness, so that few are compared |
| `refine`, `stretches` | weaker evidence, only in front of a difference |
| `layout` | the permutation of axes between the sides |
| `coverage` | what was paired and what was not, for the report |
"""
