"""What holds for every test: JAX compiles a program once for all of them and keeps it for the next
session; Triton comes before TensorFlow, or LLVM aborts where `torch.compile` loads it; no module of
a temporary folder is left behind, so that names are free again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    with suppress(ImportError):
        import triton  # type: ignore[import,unused-ignore]  # noqa: F401
    cache = getattr(config, "cache", None)  # not with -p no:cacheprovider
    if cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture(autouse=True)
def modules_of_temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    known, path = set(sys.modules), list(sys.path)
    yield
    base = str(tmp_path_factory.getbasetemp().parent)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(base):
            del sys.modules[name]
    sys.path[:] = [p for p in sys.path if p in path or not Path(p).is_relative_to(base)]
