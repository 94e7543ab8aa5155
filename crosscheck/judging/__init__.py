"""Stage 7, judge: differences and the oracle -> noise floor, ratio, verdict.

| module | |
|---|---|
| `evidence` | what judging is given, and what it says of it |
| `noise`, `reductions`, `precision`, `quantised` | the formulas of the floor |
| `judge`, `weights`, `fill` | the values of one item from every run, judged |
| `perturb`, `accumulated`, `ties`, `again`, `settle` | what is asked before a value is blamed |
| `sparing`, `left_out`, `sifting` | the same verdicts with less work |
| `quick`, `streamed` | two free runs alone |
| `parts` | one check in parts, each on a machine of its own |
"""
