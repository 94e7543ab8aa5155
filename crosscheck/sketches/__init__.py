"""Sketches: a recorded run in a few hundred kilobytes, for a repository.

    project   the numbers that stand for an array: norms, a sample, seeded projections
    make      a full trace -> a `Sketch` of a given size
    file      a sketch as a safetensors file, read safely
    align     which of the candidate's values belongs to which sketched one
    judge     how far a value is from a sketched one, against the recorded floor
    bench     judges what was aligned: values of a run, or the records of a second sketch
    compare   a sketch and a run of a candidate, or its sketch -> a report
    probability, text   what a sketch promises, in numbers and in words

What a sketch can and cannot see is derived in ``docs/traces.md``.
"""
