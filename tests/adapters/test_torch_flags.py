"""PyTorch's precision and determinism switches: exact while a model runs, then as they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from crosscheck.adapters.torch.state import deterministic, exact_arithmetic, flags  # noqa: E402

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn

CHANGES: dict[str, Callable[[], Any]] = {
    "as they are": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(MATMUL, "allow_tf32", True),
    "cudnn off": lambda: setattr(CUDNN, "allow_tf32", False),
    "sums in half precision": lambda: setattr(
        MATMUL, "allow_fp16_reduced_precision_reduction", True
    ),
    "the newer switch": lambda: setattr(MATMUL, "fp32_precision", "tf32"),
    "the newer switch for all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


def read(getter: Callable[[], Any]) -> Any:
    try:
        return getter()
    except RuntimeError:  # PyTorch refuses while old and new switches contradict each other
        return "unreadable"


def switches() -> dict[str, Any]:
    return {
        "matmul": read(torch.get_float32_matmul_precision),
        "allow_tf32": read(lambda: MATMUL.allow_tf32),
        "cudnn": read(lambda: CUDNN.allow_tf32),
        "fp16": MATMUL.allow_fp16_reduced_precision_reduction,
        "bf16": MATMUL.allow_bf16_reduced_precision_reduction,
        **flags(),
    }


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The tests' own changes."""
    above = getattr(torch.backends, "fp32_precision", None)
    reduced = (
        MATMUL.allow_fp16_reduced_precision_reduction,
        MATMUL.allow_bf16_reduced_precision_reduction,
    )
    with exact_arithmetic():  # saves and restores the rest, which its own tests hold it to
        torch.set_float32_matmul_precision("highest")
        yield
        if above is not None:
            torch.backends.fp32_precision = above
    MATMUL.allow_fp16_reduced_precision_reduction = reduced[0]
    MATMUL.allow_bf16_reduced_precision_reduction = reduced[1]


@pytest.mark.parametrize("change", CHANGES)
def test_exact_and_put_back(change: str) -> None:
    if "newer" in change and not hasattr(MATMUL, "fp32_precision"):
        pytest.skip("this PyTorch has no fp32_precision")
    CHANGES[change]()
    before = switches()
    with pytest.raises(KeyError), exact_arithmetic():
        inside = switches()
        raise KeyError  # also when the model raises
    assert switches() == before
    assert inside["matmul"] == "highest"
    assert inside["allow_tf32"] is False and inside["cudnn"] is False
    assert inside["fp16"] is False and inside["bf16"] is False
    assert set(inside["fp32_precision"].values()) <= {"none", "ieee", None}


def test_deterministic_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(CUDNN, "benchmark", True)
    before = switches()
    threads = torch._C._is_multithreading_enabled
    with pytest.raises(KeyError), deterministic():
        inside = switches()
        assert not threads()  # of the backward pass
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert inside["deterministic_algorithms"] and inside["cudnn.deterministic"]
    assert not inside["cudnn.benchmark"]
    assert switches() == before and threads()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
