"""A hand-written backward pass against its forward pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from models import scratch

__all__ = ["assert_derivative", "moved", "parameters"]

H = 1e-5


def parameters(layer: scratch.Layer) -> Iterator[tuple[str, scratch.Layer, str]]:
    """(path, layer that holds it, name) of each."""
    for path, child in layer.named_layers():
        for name in child.params:
            yield f"{path}.{name}".lstrip("."), child, name


def moved(layer: scratch.Layer, noise: float, rng: np.random.Generator) -> scratch.Layer:
    """The layer with its parameters away from zeros and ones, in float64."""
    for _, child, name in parameters(layer):
        value = child.params[name]
        child.params[name] = value + noise * rng.normal(size=value.shape)
    return layer


def assert_derivative(
    layer: scratch.Layer,
    *inputs: np.ndarray,
    rng: np.random.Generator,
    rel: float = 1e-6,
    abs: float = 1e-8,
) -> None:
    """(L(x + h v) - L(x - h v)) / 2h against <dL/dx, v>, for each float input and each parameter.

    Args:
        rel, abs: tolerances for the inputs; parameters have 1e-6 and 1e-7.
    """
    dy = rng.normal(size=layer.forward(*inputs).shape)
    layer.zero_grad()
    found = layer.backward(dy)
    found = list(found) if isinstance(found, tuple) else [found]

    def loss(*at: np.ndarray) -> float:
        return float((layer.forward(*at) * dy).sum())

    floats = [k for k, x in enumerate(inputs) if x.dtype.kind == "f"]
    for gradient, k in zip(found, floats, strict=True):
        v = rng.normal(size=inputs[k].shape)
        above, below = (
            loss(*inputs[:k], inputs[k] + step * v, *inputs[k + 1 :]) for step in (H, -H)
        )
        expected = pytest.approx(float((gradient * v).sum()), rel=rel, abs=abs)
        assert (above - below) / (2 * H) == expected, f"input {k}"
    for path, child, name in parameters(layer):
        value, v = child.params[name], rng.normal(size=child.params[name].shape)
        child.params[name] = value + H * v
        above = loss(*inputs)
        child.params[name] = value - H * v
        below = loss(*inputs)
        child.params[name] = value
        expected = pytest.approx(float((child.grads[name] * v).sum()), rel=1e-6, abs=1e-7)
        assert (above - below) / (2 * H) == expected, path
