"""Roles, kinds and axes of JAX parameters, from their names and from what stands beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crosscheck.adapters.base import Parameter

__all__ = ["Slot", "axes_of", "kind_of", "role_of"]

_SPATIAL = {3: ("w",), 4: ("h", "w"), 5: ("d", "h", "w")}
_ROLES = (
    (re.compile(r"(running_|moving_)?mean$"), "mean"),
    (re.compile(r"(running_|moving_)?var(iance)?$"), "variance"),
    (re.compile(r"(b|bias|beta)(_?\w?\d*)$", re.IGNORECASE), "bias"),
    (
        re.compile(r"(w|weights?|kernel|gamma|scale|embeddings?|table)(_?\w?\d*)$", re.IGNORECASE),
        "weight",
    ),
)
# Attention projects onto several axes at once; its kernels look like those of a 1-d convolution.
_PROJECTIONS = frozenset({"query", "key", "value", "out", "q", "k", "v"})


@dataclass(frozen=True)
class Slot:
    """One parameter of a model, without its value; see `crosscheck.adapters.base.Parameter`."""

    name: str
    layer: str
    leaf: str
    kind: str
    axes: tuple[str, ...] | None
    trainable: bool = True
    buffer: bool = False

    def parameter(self, value: np.ndarray) -> Parameter:
        """The description of it while it holds ``value``."""
        return Parameter(
            name=self.name,
            value=value,
            layer=self.layer,
            role=role_of(self.leaf),
            kind=self.kind,
            axes=self.axes,
            trainable=self.trainable,
            buffer=self.buffer,
        )


def role_of(leaf: str) -> str:
    """What a parameter of this name does in its layer."""
    return next((role for pattern, role in _ROLES if pattern.match(leaf)), "other")


def kind_of(layer: str, dimensions: Mapping[str, int]) -> str:
    """Kind of a layer of which only the parameters are known, as Flax names them.

    Args:
        layer: its path.
        dimensions: name of each of its parameters -> number of axes.
    """
    if "kernel" in dimensions:
        projects = layer.rpartition(".")[2] in _PROJECTIONS or dimensions.get("bias", 1) > 1
        if dimensions["kernel"] == 2 or (projects and dimensions["kernel"] == 3):
            return "dense"
        return "other" if projects or dimensions["kernel"] not in _SPATIAL else "conv"
    if "embedding" in dimensions:
        return "embedding"
    return "norm" if {"scale", "mean", "var"} & set(dimensions) else "other"


def axes_of(kind: str, leaf: str, ndim: int, layer: str = "") -> tuple[str, ...] | None:
    """Names of the axes of a Flax parameter, None where they cannot be known.

    Args:
        layer: path of its layer: ``out`` projects several axes onto one, others one onto several.
    """
    if kind == "dense" and leaf == "kernel" and ndim == 3:  # heads and head size on one side
        first = layer.rpartition(".")[2] == "out"
        return ("in/0", "in/1", "out") if first else ("in", "out/0", "out/1")
    if kind == "dense" and leaf == "bias" and ndim == 2:
        return ("out/0", "out/1")
    if ndim == 1:
        return ("out",) if kind in ("dense", "conv") else ("channel",)
    if kind == "dense" and leaf == "kernel" and ndim == 2:
        return ("in", "out")
    if kind == "conv" and leaf == "kernel" and ndim in _SPATIAL:
        return (*_SPATIAL[ndim], "in", "out")
    if kind == "embedding" and leaf == "embedding" and ndim == 2:
        return ("row", "dim")
    return None
