"""An ONNX model in float64: the same graph, in which every floating-point type is double.

The nodes stay as they are but for the error function (`crosscheck.adapters.onnx.erf`): this is the
same computation with smaller roundings. ONNX Runtime refuses a graph with an operator that it has
no such kernel for (convolutions; quantised ones, whose grid is part of the function): then there
is no float64.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from crosscheck.adapters.onnx.erf import in_float64
from crosscheck.adapters.onnx.weights import Weights

__all__ = ["as_wide", "wide_type", "widen"]

_DOUBLE = onnx.TensorProto.DOUBLE
_NARROW = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_TYPES = frozenset({"to", "dtype"})
"""Attributes that name the type of a result."""


def wide_type(dtype: np.dtype) -> np.dtype:
    """What takes the place of a type: float64 for floating point, else itself."""
    narrow = dtype.kind == "f" or dtype.name == "bfloat16"
    return np.dtype(np.float64) if narrow else dtype


def as_wide(value: np.ndarray) -> np.ndarray:
    """In float64 what is floating point; the very same array where nothing changes."""
    return value.astype(wide_type(value.dtype), copy=False)


def widen(weights: Weights) -> Weights:
    """The model in float64; ``weights`` is used up."""
    proto = weights.proto
    _graph(proto.graph)
    for function in proto.functions:
        _nodes(function.node)
    names = [tensor.name for tensor in proto.graph.initializer]
    lent = {name: as_wide(weights.lent[name]) for name in names if name in weights.lent}
    return Weights(proto, lent)


def _graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _tensor(tensor)
    for info in (*graph.input, *graph.output, *graph.value_info):
        _type(info.type)
    _nodes(graph.node)
    nodes = [made for node in graph.node for made in in_float64(node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _type(declared: onnx.TypeProto) -> None:
    for kind in ("sequence_type", "optional_type"):
        if declared.HasField(kind):
            _type(getattr(declared, kind).elem_type)
    if declared.HasField("tensor_type") and declared.tensor_type.elem_type in _NARROW:
        declared.tensor_type.elem_type = _DOUBLE


def _nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _attribute(node, attribute)


def _attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    if attribute.name in _TYPES and attribute.i in _NARROW:
        attribute.i = _DOUBLE
    elif attribute.HasField("t"):
        _tensor(attribute.t)
    elif attribute.HasField("g"):
        _graph(attribute.g)
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        scalar = attribute.name == "value_float"
        value = np.array(attribute.f if scalar else attribute.floats, np.float64)
        attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(value)))


def _tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in _NARROW:
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL:  # lent: it holds no values
        tensor.data_type = _DOUBLE
        return
    value = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float64), tensor.name))
