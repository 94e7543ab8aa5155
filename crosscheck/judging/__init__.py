"""Stage 7, judge: differences and the oracle -> noise floor, ratio, verdict.

| module | |
|---|---|
| `noise`, `reductions`, `precision`, `quantised` | the formulas of the floor |
| `judge`, `weights` | the values of one item from every run, judged |
| `perturb`, `accumulated`, `ties`, `settle` | what is asked before anything is said to be wrong |
| `sparing`, `left_out`, `sifting` | the same verdicts with less work |
| `quick`, `streamed` | two free runs alone |
| `parts` | one check in parts, each on a machine of its own |
"""
