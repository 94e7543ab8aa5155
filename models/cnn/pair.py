"""PyTorch's residual network against NumPy's and Keras'."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.cnn.reference import build

    return build()


def numpy_net() -> Any:
    from models.cnn.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.cnn.keras_port import build

    return build()


def inputs(seed: int) -> dict[str, Any]:
    from models.data import digit_images

    return {"x": digit_images(seed, 9)[0]}  # (9, 1, 8, 6)


def channels_last(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"x": inputs["x"].transpose(0, 2, 3, 1)}  # (9, 8, 6, 1)


pair = crosscheck.Pair(
    reference=reference,
    candidate={"numpy": numpy_net, "keras": keras_model},
    inputs=inputs,
    candidate_inputs={"keras": channels_last},
    name="cnn",
)
