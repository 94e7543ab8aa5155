"""Recorded runs: a trace as a safetensors file, so that the two sides need not run together.

    file      the container: tensors and strings in one file, read lazily, written atomically
    recorded  `RecordedTrace`: a run with what was fed into it, saved and loaded
    feed      the inputs of a run as a file, and their SHA-256
    record    run a model once and keep everything
    judging   the noise floor where there is no oracle to ask
    offline   compare two recorded runs
    closer    align them, and again where the first departure lies

The layout of the file is in ``docs/traces.md``; any program in any language can write one.
"""
