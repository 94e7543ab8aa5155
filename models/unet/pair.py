"""PyTorch's U-Net against NumPy's, Keras', Flax' and its own ONNX export."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.unet.reference import build

    return build()


def numpy_net() -> Any:
    from models.unet.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.unet.keras_port import build

    return build()


def jax_module() -> Any:
    from models.unet.jax_port import build

    return build()


def onnx_export() -> Any:
    """Run by ONNX Runtime as exported, with the gradients that PyTorch's formulas give."""
    return crosscheck.adapt(reference(), export="onnx", optimization="none", gradients=True)


def onnx_optimized() -> Any:
    """With every fusion of ONNX Runtime, as it would run in production; forward only."""
    return crosscheck.adapt(reference(), export="onnx", optimization="all")


def inputs(seed: int) -> dict[str, Any]:
    from models.mosaic import digit_mosaics

    return {"x": digit_mosaics(seed, 3)[0]}  # (3, 1, 17, 13)


def targets(seed: int) -> Any:
    """What each pixel shows, paper or the ink of an even or an odd digit: (3, 17, 13)."""
    from models.mosaic import digit_mosaics, ink_classes

    return ink_classes(*digit_mosaics(seed, 3))


def channels_last(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"x": inputs["x"].transpose(0, 2, 3, 1)}  # (3, 17, 13, 1)


pair = crosscheck.Pair(
    reference=reference,
    candidate={
        "numpy": numpy_net,
        "keras": keras_model,
        "jax": jax_module,
        "onnx": onnx_export,
        "onnx-optimized": onnx_optimized,
    },
    inputs=inputs,
    candidate_inputs={"keras": channels_last, "jax": channels_last},
    loss="cross_entropy",
    targets=targets,
    name="unet",
)
