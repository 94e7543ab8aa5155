"""The pairs that `bench_check` measures: a reference, an honest port of it, and their inputs.

The transformers are pre-norm encoders. The port names everything otherwise and computes attention
with PyTorch's fused kernel where the reference spells it out: equal up to rounding, not bit for
bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CASES", "Case", "Sizes", "made"]


@dataclass(frozen=True)
class Sizes:
    """Of a transformer: ``width`` d, ``depth`` blocks, ``words`` in its vocabulary."""

    width: int
    depth: int
    heads: int
    words: int
    batch: int
    length: int


@dataclass(frozen=True)
class Case:
    """One pair.

    Attributes:
        sizes: of the transformer; None for the network of `models.mlp`.
        candidate: ``"torch"``, ``"numpy"``, ``"keras"`` or ``"onnx"``.
        gradients: False where the candidate has no backward pass of its own.
    """

    what: str
    sizes: Sizes | None
    candidate: str = "torch"
    gradients: bool = True


MEDIUM = Sizes(width=384, depth=8, heads=6, words=8192, batch=4, length=128)
LARGE = Sizes(width=768, depth=12, heads=12, words=10000, batch=4, length=128)
CASES = {
    "small": Case("mlp of the zoo, NumPy", None, "numpy"),
    "medium": Case("20 M transformer, torch", MEDIUM),
    "medium-keras": Case("20 M transformer, Keras", MEDIUM, "keras"),
    "medium-onnx": Case("20 M transformer, ONNX, forward", MEDIUM, "onnx", gradients=False),
    "large": Case("100 M transformer, torch", LARGE),
}


def made(case: Case) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Reference, candidate (with other weights) and inputs of a case."""
    if case.sizes is None:
        from models.mlp.pair import pair

        return pair.reference(), pair.candidate["numpy"](), pair.inputs(0)
    s = case.sizes
    inputs = {"ids": np.random.default_rng(0).integers(0, s.words, (s.batch, s.length))}
    return reference(s), _candidate(case, s, inputs), inputs


def _candidate(case: Case, s: Sizes, inputs: dict[str, np.ndarray]) -> Any:
    if case.candidate == "keras":
        return keras_port(s)
    if case.candidate == "onnx":
        from crosscheck.adapters.onnx.export import export

        return export(reference(s), inputs)
    return port(s)


def reference(s: Sizes) -> Any:
    import torch

    from scripts.bench_torch_nets import Encoder

    torch.manual_seed(0)
    return Encoder(s).eval()


def port(s: Sizes) -> Any:
    from scripts.bench_torch_nets import Port

    return Port(s).eval()


def keras_port(s: Sizes) -> Any:
    """On TensorFlow, unless KERAS_BACKEND names another."""
    from scripts.bench_keras_net import Encoder

    model = Encoder(s)
    model(np.zeros((s.batch, s.length), "int64"))  # Keras makes the variables now
    return model
