"""PyTorch's BERT-style encoder against NumPy's, Keras', Flax' and its own ONNX export."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.bert.reference import build

    return build()


def numpy_net() -> Any:
    from models.bert.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.bert.keras_port import build

    return build()


def jax_module() -> Any:
    from models.bert.jax_port import build

    return build()


def onnx_export() -> Any:
    """Run by ONNX Runtime as exported, with the gradients that PyTorch's formulas give."""
    return crosscheck.adapt(reference(), export="onnx", optimization="none", gradients=True)


def onnx_optimized() -> Any:
    """With every fusion of ONNX Runtime, as it would run in production; forward only."""
    return crosscheck.adapt(reference(), export="onnx", optimization="all")


def inputs(seed: int) -> dict[str, Any]:
    """Five pairs of passages of different lengths, (5, 19) each; the last is all padding."""
    from models.data import passage_pairs

    tokens, types, present, _ = passage_pairs(seed, (19, 14, 9, 16, 0), 19)
    return {"tokens": tokens, "types": types, "present": present}


def targets(seed: int) -> Any:
    """Whether the second passage follows the first, (5,); of two empty ones it does not."""
    from models.data import passage_pairs

    return passage_pairs(seed, (19, 14, 9, 16, 0), 19)[3]


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
    name="bert",
)
