"""Gradients so small that eps outweighs them: a key's bias in an attention has such ones."""

from __future__ import annotations

from typing import Any

import pytest

import crosscheck

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_keras_own_adam_agrees_where_eps_outweighs_the_gradient(size: float) -> None:
    def loss(outputs: Any, targets: Any) -> Any:
        return size * (outputs * targets).sum()

    def keras_loss(outputs: Any, targets: Any) -> Any:
        return size * keras.ops.sum(outputs * targets)

    report = crosscheck.check(
        torch.nn.Linear(6, 4),
        keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)]),
        "float32[5,6]",
        loss=crosscheck.losses.Own(reference=loss, candidate=keras_loss),
        targets="float32[5,4]",
        optimizer="adam(lr=1e-3)",
        steps=2,
    )
    assert report.verdict == "agree", str(report)
