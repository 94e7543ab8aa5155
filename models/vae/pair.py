"""PyTorch's variational autoencoder against NumPy's, Keras', Flax' and its own ONNX export."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.vae.reference import build

    return build()


def numpy_net() -> Any:
    from models.vae.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.vae.keras_port import build

    return build()


def jax_module() -> Any:
    from models.vae.jax_port import build

    return build()


def onnx_export() -> Any:
    """Run by ONNX Runtime as exported, with the gradients that PyTorch's formulas give."""
    return crosscheck.adapt(reference(), export="onnx", optimization="none", gradients=True)


def onnx_optimized() -> Any:
    """With every fusion of ONNX Runtime, as it would run in production; forward only."""
    return crosscheck.adapt(reference(), export="onnx", optimization="all")


def inputs(seed: int) -> dict[str, Any]:
    """Images and the noise, which both sides are given: what they draw themselves would differ."""
    import numpy as np

    noise = np.random.default_rng(seed).normal(size=(7, 5)).astype(np.float32)
    return {"x": targets(seed), "noise": noise}  # (7, 48), (7, 5)


def targets(seed: int) -> Any:
    """The images to reconstruct, (7, 48) in [0, 1]."""
    from models.data import digit_images

    return digit_images(seed, 7)[0].reshape(7, 48)


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
    loss="vae(reconstruction=mse)",
    targets=targets,
    name="vae",
)
