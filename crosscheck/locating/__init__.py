"""Stage 8, locate: verdicts in execution order -> whom to blame.

`locate` finds the first departures, `severed` what a cut backward pass hides, `surroundings`
what lies around a site, and `zoom` the operation inside a layer.
"""
