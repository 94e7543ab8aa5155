"""CuPy nets: NumPy's adapter, with the arrays on the device."""
