"""What the QuantizeLinear and DequantizeLinear nodes of an ONNX graph say: steps, and weights.

A weight is stored as integers and dequantised by a node of its own. It is read back here as what it
stands for, under the name that it had.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from crosscheck.adapters.onnx.structure import Structure
from crosscheck.judging.quantised import Steps
from crosscheck.observers import Key

__all__ = ["dequantised", "steps_of", "without_steps"]

_AS_THEY_RUN = ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul")

_SUFFIXES = ("_quantized", "_DequantizeLinear_Output")


def dequantised(
    graph: onnx.GraphProto, arrays: Mapping[str, np.ndarray]
) -> tuple[onnx.GraphProto, dict[str, float]]:
    """The graph with its quantised weights as the float initializers that they stand for.

    Returns:
        (a copy, or the graph itself where nothing is quantised; weight -> its largest step)
    """
    folded = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in arrays]
    if not folded:
        return graph, {}
    named = {node.output[0]: _plain(node.input[0]) for node in folded}
    steps, made = {}, []
    for node in folded:
        value = _dequantise(node, arrays)
        name = named[node.output[0]]
        made.append(onnx.numpy_helper.from_array(value, name))
        steps[name] = float(np.max(np.abs(arrays[node.input[1]]), initial=0.0))
    plain = onnx.GraphProto()
    plain.CopyFrom(graph)
    gone = {node.output[0] for node in folded}
    kept = [n for n in plain.node if not (n.output and n.output[0] in gone)]
    for node in kept:
        for i, value in enumerate(node.input):
            node.input[i] = named.get(value, value)
    del plain.node[:]
    plain.node.extend(kept)
    plain.initializer.extend(made)
    return plain, steps


def without_steps(graph: onnx.GraphProto) -> list[str]:
    """The types of operators that quantise by steps that no node of the graph holds."""
    types = {n.op_type for n in graph.node}
    return sorted(t for t in types if t in _AS_THEY_RUN or t.startswith(("QLinear", "QGemm")))


def _plain(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _dequantise(node: onnx.NodeProto, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    integers, scale = arrays[node.input[0]], arrays[node.input[1]].astype(np.float32)
    zero = arrays[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(())
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if scale.size > 1:  # one for each channel
        shape = [1] * integers.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), np.broadcast_to(zero, (scale.size,)).reshape(shape)
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    whole = integers.astype(np.int64) - zero.astype(np.int64)
    return np.asarray(whole.astype(np.float32) * scale, np.float32)


def steps_of(
    structure: Structure, arrays: Mapping[str, np.ndarray], parameters: Mapping[str, float]
) -> Steps:
    """The steps of what `structure` shows."""
    before: dict[str, float] = {}
    behind: dict[str, float] = {}
    quantising: dict[str, str] = {}
    for node in structure.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in arrays:
            step = float(np.max(np.abs(arrays[node.input[1]]), initial=0.0))
            before[node.input[0]] = max(step, before.get(node.input[0], 0.0))
            quantising[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in quantising:
            own = float(np.max(np.abs(arrays[node.input[1]]), initial=0.0))
            behind[node.output[0]] = min(own, before[quantising[node.input[0]]])
    keys: dict[Key, str] = {event.key: event.value for event in structure.events}
    keys |= {("activation", f"input:{v.name}"): v.name for v in structure.graph.input}
    return Steps(
        held={key: behind[value] for key, value in keys.items() if value in behind},
        passed={key: before[value] for key, value in keys.items() if value in before},
        parameters=parameters,
    )
