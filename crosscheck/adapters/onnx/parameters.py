"""Which initializers of an ONNX graph are parameters, and what each of them does.

PyTorch's exporter keeps the names of the state dict and notes which initializers are parameters and
which are buffers. In other files the nodes that use an initializer have to tell.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from crosscheck.adapters.base import Parameter
from crosscheck.adapters.onnx.scopes import is_folded
from crosscheck.adapters.onnx.structure import Structure, subgraphs

__all__ = ["FLOATS", "anonymous", "describe", "merged", "to_array"]

_SPATIAL = {1: ("w",), 2: ("h", "w"), 3: ("d", "h", "w")}
_ROLES = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "variance",
}
FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)
_NAMED_LIKE_ONE = re.compile(r"weight|bias|kernel|gamma|beta|running_|moving_|embed", re.IGNORECASE)
_COMPUTED_FOR_CONV = re.compile(r"onnx::Conv(Transpose)?_\d+$")
_SPEC = "pkg.torch.export.graph_signature.InputSpec.kind"
_SAME_VALUES = frozenset({"Identity", "Cast", "CastLike"})
_OTHER_SHAPE = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Expand"})
_NORMS = {
    "BatchNormalization": ("", "weight", "bias", "mean", "variance"),
    "LayerNormalization": ("", "weight", "bias"),
    "InstanceNormalization": ("", "weight", "bias"),
    "GroupNormalization": ("", "weight", "bias"),
    "RMSNormalization": ("", "weight"),
    "SimplifiedLayerNormalization": ("", "weight"),
}
_CLASS_KINDS = (
    (re.compile(r"Linear$"), "dense"),
    (re.compile(r"^(Lazy)?Conv"), "conv"),
    (re.compile(r"Norm(\dd)?$"), "norm"),
    (re.compile(r"^Embedding$"), "embedding"),
)


@dataclass(frozen=True)
class _Use:
    """What a node does with an initializer. ``layer``: the node that makes up its layer, which for
    a bias that is added behind a product is the product.

    A node is its index in the graph; inside If, Loop and Scan further indices follow: of the body,
    and of the node in it. What happens there belongs to the outermost node, which is the site.
    """

    node: tuple[int, ...]
    layer: tuple[int, ...]
    role: str = "other"
    kind: str = "other"
    axes: tuple[str, ...] | None = None


def to_array(tensor: onnx.TensorProto) -> np.ndarray:
    """The values; bfloat16 through ml_dtypes."""
    return onnx.numpy_helper.to_array(tensor)


def describe(structure: Structure, value_of: Callable[[str], np.ndarray]) -> tuple[Parameter, ...]:
    """The parameters and running statistics, in the order of the layers that use them.

    Args:
        value_of: the array of an initializer, by name.
    """
    graph = structure.graph
    uses = _uses(structure)
    specs = _specs(graph)
    named = _named_layers(uses)
    sites = _sites(structure, uses)
    found = []
    for tensor in graph.initializer:
        if tensor.data_type not in FLOATS or not uses[tensor.name]:
            continue
        if any(is_folded(graph.node[u.node[0]]) for u in uses[tensor.name]):
            continue  # under the old name, perhaps, but no longer that parameter
        use = min(uses[tensor.name], key=lambda u: (u.kind == "other", u.node))
        if not _is_parameter(tensor, use, specs):
            continue
        first = min(u.node for u in uses[tensor.name])
        site = sites[use.layer]
        value = value_of(tensor.name)
        parameter = _parameter(structure, tensor, use, value, site, exported=bool(specs))
        if not specs and not structure.annotated:
            parameter = replace(parameter, named=named.get(use.layer, ""))
        elif not specs and not tensor.name.rpartition(".")[0] and use.layer in named:
            parameter = replace(parameter, layer=named[use.layer])
        found.append((first, parameter))
    return tuple(parameter for _, parameter in sorted(found, key=lambda f: f[0]))


def _named_layers(uses: Mapping[str, Sequence[_Use]]) -> dict[tuple[int, ...], str]:
    """Node that makes up a layer -> the path that the names of its parameters hold, if they hold
    one. An exporter that transposes a weight gives it a name of its own, and leaves the bias the
    old one; a tool that folds a norm into a convolution names one after either."""
    paths: defaultdict[tuple[int, ...], set[str]] = defaultdict(set)
    for name, found in uses.items():
        path = name.rpartition(".")[0]
        for use in found:
            if path:
                paths[use.layer].add(path)
    return {layer: next(iter(known)) for layer, known in paths.items() if len(known) == 1}


def anonymous(structure: Structure) -> list[str]:
    """Weights that the exporter made of parameters (transposed, folded, merged): without a name,
    nobody can tell whose they were."""
    specs, uses = _specs(structure.graph), _uses(structure)
    return [
        tensor.name
        for tensor in structure.graph.initializer
        if specs
        and tensor.data_type in FLOATS
        and (
            (tensor.name not in specs and any(use.role != "other" for use in uses[tensor.name]))
            or any(is_folded(structure.graph.node[use.node[0]]) for use in uses[tensor.name])
        )
    ]


def merged(structure: Structure) -> tuple[str, ...]:
    """Weights that hold a norm as well: by what the exporter notes, or by names. ONNX Runtime gives
    such weights names of its own. PyTorch's TorchScript exporter numbers what it has computed, and
    of a convolution that it leaves alone, the bias keeps its name."""
    uses, nodes = _uses(structure), structure.graph.node

    def tells(name: str) -> bool:
        return any(
            is_folded(nodes[use.node[0]])
            or "BnFusion" in name
            or (use.role == "bias" and _COMPUTED_FOR_CONV.match(name) is not None)
            for use in uses[name]
        )

    return tuple(t.name for t in structure.graph.initializer if tells(t.name))


def _specs(graph: onnx.GraphProto) -> dict[str, str]:
    """What PyTorch's exporter notes of an initializer: ``PARAMETER``, ``BUFFER``, ..."""
    return {
        v.name: entry.value
        for v in graph.value_info
        for entry in v.metadata_props
        if entry.key == _SPEC
    }


def _is_parameter(tensor: onnx.TensorProto, use: _Use, specs: Mapping[str, str]) -> bool:
    if specs:
        leaf = tensor.name.rpartition(".")[2]
        kind = specs.get(tensor.name)
        return kind == "PARAMETER" or (kind == "BUFFER" and leaf in ("running_mean", "running_var"))
    return use.role != "other" or bool(_NAMED_LIKE_ONE.search(tensor.name))


def _parameter(
    structure: Structure,
    tensor: onnx.TensorProto,
    use: _Use,
    value: np.ndarray,
    site: str,
    *,
    exported: bool,
) -> Parameter:
    """``site``: that of its layer, in a file without module paths."""
    layer, _, leaf = tensor.name.rpartition(".")
    call = structure.calls[structure.stacks[use.layer[0]][-1]]
    if exported and not _related(layer, call.path):
        layer = call.path  # shared, and named after another of its layers
    elif not exported and (not layer or not structure.annotated):
        layer = call.path if structure.annotated else site
    role, kind, axes = use.role, use.kind, use.axes
    if leaf in _ROLES:
        role = _ROLES[leaf]
    elif exported:  # what a module calls by another name is no kernel that we know
        role, kind, axes = "other", "other", None
    if exported and call.path == layer:
        kind = next((k for pattern, k in _CLASS_KINDS if pattern.search(call.layer)), kind)
    if axes is None and value.ndim == 1:
        axes = ("out",) if kind in ("dense", "conv") else ("channel",)
    if axes is None and kind == "conv" and value.ndim > 2:
        axes = ("out", "in", *_SPATIAL[value.ndim - 2])
    return Parameter(
        name=tensor.name,
        value=value,
        layer=layer,
        role=role,
        kind=kind,
        axes=axes,
        trainable=False,
        buffer=role in ("mean", "variance"),
    )


def _sites(structure: Structure, uses: Mapping[str, Sequence[_Use]]) -> dict[tuple[int, ...], str]:
    """Node that makes up a layer -> the site that it belongs to. Where bodies hold several layers,
    each has a name below the site of the node with the bodies: they must not be taken for one."""
    layers = {use.layer for found in uses.values() for use in found}
    together = Counter(layer[0] for layer in layers)
    sites = {}
    for layer in layers:
        node, sites[layer] = structure.graph.node[layer[0]], structure.site_of(layer[0])
        if together[layer[0]] > 1:
            for body, index in zip(layer[1::2], layer[2::2], strict=True):
                node = list(subgraphs(node))[body].node[index]
                sites[layer] += f".{node.output[0]}"
    return sites


def _related(a: str, b: str) -> bool:
    """Whether one path is the other or lies inside it."""
    return f"{a}.".startswith(f"{b}." if b else "") or f"{b}.".startswith(f"{a}." if a else "")


# -- what nodes do with them -----------------------------------------------------------------------


_Origins = dict[str, tuple[str, tuple[int, ...] | None]]


def _uses(structure: Structure) -> defaultdict[str, list[_Use]]:
    """initializer -> its uses, also behind transpositions and changes of shape, and in bodies."""
    graph = structure.graph
    origin: _Origins = {t.name: (t.name, tuple(range(len(t.dims)))) for t in graph.initializer}
    found: defaultdict[str, list[_Use]] = defaultdict(list)
    _walk(graph, (), origin, {}, found)
    return found


def _walk(
    graph: onnx.GraphProto,
    place: tuple[int, ...],
    origin: _Origins,
    weighted: dict[str, _Use],
    found: defaultdict[str, list[_Use]],
) -> None:
    """Note the uses in a graph and in the bodies of its nodes.

    Args:
        place: the indices that lead to it.
        origin: values that are an initializer -> it, and axis of it -> axis of the value.
        weighted: outputs of products with a weight: what is added is a bias.
    """
    divided = {o for n in graph.node if n.op_type == "Div" for o in n.output}
    for i, node in enumerate(graph.node):
        at = (*place, i)
        for number, body in enumerate(subgraphs(node)):
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            outer = {value: known for value, known in origin.items() if value not in own}
            _walk(body, (*at, number), outer, dict(weighted), found)
            for output in body.output:  # a body may choose a weight, and be no more than that
                if output.name in outer:
                    found[outer[output.name][0]].append(_Use(at, at))
        first = origin.get(node.input[0]) if node.input else None
        if first is not None and node.op_type in _SAME_VALUES:
            origin[node.output[0]] = first
            continue
        if first is not None and node.op_type == "Transpose":
            origin[node.output[0]] = first[0], _permuted(first[1], _attribute(node, "perm"))
            continue
        if first is not None and node.op_type in _OTHER_SHAPE:
            origin[node.output[0]] = first[0], None
            continue
        if node.op_type in _SAME_VALUES and node.input[0] in weighted:
            weighted[node.output[0]] = weighted[node.input[0]]
        for position, value in enumerate(node.input):
            if value in origin:
                name, order = origin[value]
                use = _use(node, at, position, order, weighted, divided)
                found[name].append(use)
                if use.kind in ("dense", "conv", "norm") and use.role == "weight":
                    weighted[node.output[0]] = use


def _permuted(
    order: tuple[int, ...] | None, perm: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    if order is None:
        return None
    return tuple(order[p] for p in perm) if perm is not None else order[::-1]


def _attribute(node: onnx.NodeProto, name: str) -> tuple[int, ...] | None:
    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx.helper.get_attribute_value(attribute)
            return tuple(value) if isinstance(value, list) else (int(value),)
    return None


def _use(
    node: onnx.NodeProto,
    index: tuple[int, ...],
    position: int,
    order: tuple[int, ...] | None,
    weighted: Mapping[str, _Use],
    divided: Collection[str],
) -> _Use:
    """The role of one input.

    Args:
        order: axis of the initializer -> at the node; None where its shape was changed.
        weighted: outputs of products with a weight.
        divided: outputs of divisions; what multiplies one of them is the gamma of a norm that the
            file writes out.
    """
    op, ndim = node.op_type, len(order) if order is not None else 0
    names: tuple[str, ...] | None = None
    role, kind, layer = "other", "other", index
    if op in ("MatMul", "Gemm") and position < 2 and ndim == 2:
        role, kind = "weight", "dense"
        names = ("in", "out") if position == 1 else ("out", "in")
        if (_attribute(node, "transB" if position == 1 else "transA") or (0,))[0]:
            names = names[::-1]
    elif op == "Gemm" and position == 2:
        role, kind = "bias", "dense"
    elif op in ("Conv", "ConvTranspose"):
        role, kind = ("weight", "conv") if position == 1 else ("bias", "conv")
        if position == 1 and ndim > 2:
            front = ("out", "in") if op == "Conv" else ("in", "out")
            names = (*front, *_SPATIAL.get(ndim - 2, ()))
    elif op in _NORMS and 0 < position < len(_NORMS[op]):
        role, kind = _NORMS[op][position], "norm"
    elif op == "Gather" and position == 0 and ndim == 2:
        role, kind, names = "weight", "embedding", ("row", "dim")
    elif op == "Add" and ndim == 1 and any(value in weighted for value in node.input):
        product = next(weighted[value] for value in node.input if value in weighted)
        role, kind, layer = "bias", product.kind, product.layer
    elif op == "Mul" and ndim == 1 and any(value in divided for value in node.input):
        role, kind = "weight", "norm"
    elif (op in ("LSTM", "GRU", "RNN") and position in (1, 2, 3)) or op == "PRelu":
        role = "bias" if position == 3 else "weight"
    if names is not None and order is not None and len(names) == len(order):
        placed = dict(zip(order, names, strict=True))
        return _Use(index, layer, role, kind, tuple(placed[a] for a in range(len(order))))
    return _Use(index, layer, role, kind)
