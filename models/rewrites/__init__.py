"""Honest rewrites: the same function computed in another way, which no check may condemn.

Another order of summation, another layout, another BLAS routine, float64 inside, fused or unfused:
what ports differ in when they are right. A rewrite changes every layer of a candidate that it
suits.
"""

from collections.abc import Callable, Iterator

from models.rewrites.base import Rewrite
from models.rewrites.modules import jax_rewrites, keras_rewrites, torch_rewrites
from models.rewrites.scratch_nets import NUMPY

__all__ = ["REWRITES", "Rewrite"]

REWRITES: dict[str, Callable[[], Iterator[Rewrite]]] = {
    "numpy": lambda: iter(NUMPY),
    "torch": torch_rewrites,
    "keras": keras_rewrites,
    "jax": jax_rewrites,
}
