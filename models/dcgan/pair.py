"""PyTorch's DCGAN against NumPy's, Keras', Flax' and its own ONNX export."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.dcgan.reference import build

    return build()


def numpy_net() -> Any:
    from models.dcgan.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.dcgan.keras_port import build

    return build()


def jax_module() -> Any:
    from models.dcgan.jax_port import build

    return build()


def onnx_export() -> Any:
    """Run by ONNX Runtime as exported, with the gradients that PyTorch's formulas give."""
    return crosscheck.adapt(reference(), export="onnx", optimization="none", gradients=True)


def onnx_optimized() -> Any:
    """With every fusion of ONNX Runtime, as it would run in production; forward only."""
    return crosscheck.adapt(reference(), export="onnx", optimization="all")


def inputs(seed: int) -> dict[str, Any]:
    import numpy as np

    from models.data import digit_images

    noise = np.random.default_rng(seed).normal(size=(5, 7)).astype(np.float32)
    return {"z": noise, "real": 2 * digit_images(seed, 7)[0] - 1}  # (5, 7), (7, 1, 8, 6) in [-1, 1]


def targets(seed: int) -> Any:
    """What the discriminator is trained to say: 1 of the real images, 0 of the made ones."""
    import numpy as np

    return {"output": np.ones((7, 1), np.float32), "output:1": np.zeros((5, 1), np.float32)}


def channels_last(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"z": inputs["z"], "real": inputs["real"].transpose(0, 2, 3, 1)}  # (7, 8, 6, 1)


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
    loss={"output": "bce_with_logits", "output:1": "bce_with_logits"},
    targets=targets,
    name="dcgan",
)
