"""Sketches: a recorded run in a few hundred kilobytes, for a repository.

    project   the numbers that stand for an array: norms, a sample, seeded projections
    make      a full trace -> a `Sketch` of a given size
    file      a sketch as a safetensors file, read safely
    align     which of the candidate's values belongs to which sketched one
    judge     how far a value is from a sketched one, against the recorded floor
    compare   a sketch and a run of a candidate -> a report

What a sketch can and cannot see is derived in ``docs/traces.md``.
"""
