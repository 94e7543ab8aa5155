"""PyTorch's graph network against NumPy's, Keras', Flax' and its own ONNX export."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.gcn.reference import build

    return build()


def numpy_net() -> Any:
    from models.gcn.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.gcn.keras_port import build

    return build()


def jax_module() -> Any:
    from models.gcn.jax_port import build

    return build()


def onnx_export() -> Any:
    """Run by ONNX Runtime as exported, with the gradients that PyTorch's formulas give."""
    return crosscheck.adapt(reference(), export="onnx", optimization="none", gradients=True)


def onnx_optimized() -> Any:
    """With every fusion of ONNX Runtime, as it would run in production; forward only."""
    return crosscheck.adapt(reference(), export="onnx", optimization="all")


def inputs(seed: int) -> dict[str, Any]:
    """Digits, (19, 64), and how alike they are: each is joined to the three nearest, (19, 19)."""
    from models.data import digits_batch
    from models.graphs import neighbours, normalised

    pixels = digits_batch(seed, 19)[0]
    return {"x": pixels, "adjacency": normalised(neighbours(pixels, 3))}


def targets(seed: int) -> Any:
    """The digits, (19,)."""
    from models.data import digits_batch

    return digits_batch(seed, 19)[1]


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
    loss="cross_entropy",
    targets=targets,
    name="gcn",
)
