"""These tests need a CUDA device; without one they are skipped, and say why."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from crosscheck.kernels import on_device
from crosscheck.kernels.on_device import LEAST
from crosscheck.suite.local import SHARED_GPU


def reason() -> str | None:
    """Why nothing here can run, or None."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return "PyTorch sees no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = reason()
    for name, value in SHARED_GPU.items() if why is None else ():
        os.environ.setdefault(name, value)  # several frameworks take turns in one process
    for item in items:
        if why is not None and item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs a CUDA device: {why}"))


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of large values that were copied to the host after they had stayed."""
    shapes: list[tuple[int, ...]] = []
    original = on_device._fetched

    def fetched(tensor: Any) -> Any:
        if tensor.numel() >= LEAST:
            shapes.append(tuple(tensor.shape))
        return original(tensor)

    monkeypatch.setattr(on_device, "_fetched", fetched)
    return shapes


@pytest.fixture
def stays_nowhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, every value goes through the host."""
    return lambda: monkeypatch.setattr(on_device, "LEAST", 1 << 62)
