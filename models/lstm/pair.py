"""PyTorch's LSTM classifier against NumPy's, Keras', Flax' and its own ONNX export."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.lstm.reference import build

    return build()


def numpy_net() -> Any:
    from models.lstm.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.lstm.keras_port import build

    return build()


def jax_module() -> Any:
    from models.lstm.jax_port import build

    return build()


def onnx_export() -> Any:
    """Run by ONNX Runtime as exported, with the gradients that PyTorch's formulas give."""
    return crosscheck.adapt(reference(), export="onnx", optimization="none", gradients=True)


def onnx_optimized() -> Any:
    """With every fusion of ONNX Runtime, as it would run in production; forward only."""
    return crosscheck.adapt(reference(), export="onnx", optimization="all")


def inputs(seed: int) -> dict[str, Any]:
    from models.data import text_batch

    return {"tokens": text_batch(seed, 3, 6)[:, :5]}  # (3, 5)


def targets(seed: int) -> Any:
    """What the next character is: a letter, a digit, a blank or another one, (3,)."""
    from models.data import kinds, text_batch

    return kinds(text_batch(seed, 3, 6)[:, 5])


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
    name="lstm",
)
