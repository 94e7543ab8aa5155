"""JAX functions, Flax and Equinox modules; `adapter` is the way in."""
