"""Several seeds, probe inputs, randomised parameters, and what a check could not have seen.

One random batch hides what another shows. `stage` runs a check again on other inputs (`inputs`)
and merges the reports; `randomise` runs it with other weights; `blind` asks which alterations of
the reference would have gone unseen.
"""
