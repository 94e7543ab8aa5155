"""The training step: what the optimizers of both sides make of the same parameters and gradients.

`stage` is the step, `stepping` the two optimizers at work, `microbatches` the parts of a batch,
`updates` the judgement, `layout` how values pass between the sides.
"""
