"""PyTorch's GPT against NumPy's and Keras'."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.gpt.reference import build

    return build()


def numpy_net() -> Any:
    from models.gpt.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.gpt.keras_port import build

    return build()


def inputs(seed: int) -> dict[str, Any]:
    from models.data import text_batch

    return {"tokens": text_batch(seed, 3, 29)}  # (3, 29): shorter than the block size of 32


pair = crosscheck.Pair(
    reference=reference,
    candidate={"numpy": numpy_net, "keras": keras_model},
    inputs=inputs,
    name="gpt",
)
