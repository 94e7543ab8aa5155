"""PyTorch's multilayer perceptron against NumPy's and Keras'."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.mlp.reference import build

    return build()


def numpy_net() -> Any:
    from models.mlp.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.mlp.keras_port import build

    return build()


def inputs(seed: int) -> dict[str, Any]:
    from models.data import digits_batch

    return {"x": digits_batch(seed, 5)[0]}  # (5, 64)


pair = crosscheck.Pair(
    reference=reference,
    candidate={"numpy": numpy_net, "keras": keras_model},
    inputs=inputs,
    name="mlp",
)
