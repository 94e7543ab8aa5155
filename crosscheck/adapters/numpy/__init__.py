"""NumPy nets written by hand; `adapter` is the way in."""
