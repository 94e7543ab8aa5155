"""Triton beside TensorFlow: both bring LLVM, and what is loaded second can end the process.

TensorFlow shows its copy to every library that comes later. Triton's registers its options there
once more, at which LLVM aborts: no exception says so. The other way round both work.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["require_triton", "triton_aborts", "without_triton"]


def triton_aborts() -> bool:
    """Whether this process must not load Triton any more."""
    return "tensorflow" in sys.modules and "triton" not in sys.modules


def require_triton() -> None:
    """Raise `ImportError` where to load Triton would end the process."""
    if triton_aborts():
        raise ImportError("TensorFlow was loaded before it: import triton first, then both work")


@contextmanager
def without_triton() -> Iterator[None]:
    """Where it would abort, nobody finds Triton for this time. PyTorch looks for it when its
    compiler is first loaded, works without, and remembers that it was not there."""
    if not triton_aborts():
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop("triton", None)
