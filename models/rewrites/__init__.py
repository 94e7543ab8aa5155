"""Honest rewrites: the same function computed in another way, which no check may condemn.

Another order of summation, another layout, another BLAS routine, float64 inside, fused or unfused:
what ports differ in when they are right. A rewrite changes every layer of a candidate that it
suits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from models.rewrites.base import Rewrite

__all__ = ["REWRITES", "Rewrite"]


def _of(module: str) -> Sequence[Rewrite]:
    found: Sequence[Rewrite] = import_module(f"models.rewrites.{module}").REWRITES
    return found


REWRITES: dict[str, Callable[[], Sequence[Rewrite]]] = {
    "numpy": partial(_of, "scratch_nets"),
    "torch": partial(_of, "torch_layers"),
    "keras": partial(_of, "keras_layers"),
    "jax": partial(_of, "jax_layers"),
}
"""Framework -> what gives its rewrites; the framework is imported only then."""
