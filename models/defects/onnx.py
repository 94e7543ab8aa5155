"""Defects of exported graphs: what exporters, optimisers and hands that edit a file get wrong.

They are planted in the graph between its export and its first run; `edit_of` gives the change
alone, for a graph in a file. A defect without a source was made up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from models.defects.base import Defect

Edit = Callable[[Any], None]
"""Changes an ``onnx.ModelProto`` in place."""


def plant(edit: Edit) -> Callable[[Any], None]:
    """An injection into a model that is exported on the fly."""

    def inject(adapter: Any) -> None:
        adapter.transform = edit

    return inject


def edit_of(defect: Defect) -> Edit:
    """What a defect does to a graph, for one that is in a file."""
    planted: list[Edit] = []
    defect.inject(_Target(planted))
    return planted[0]


class _Target:
    def __init__(self, planted: list[Edit]) -> None:
        object.__setattr__(self, "_planted", planted)

    def __setattr__(self, name: str, value: Edit) -> None:
        self._planted.append(value)


# -- edits -----------------------------------------------------------------------------------------


def nodes(model: Any, path: str, op: str) -> list[Any]:
    """The nodes of one type that a module itself has, in order."""
    from crosscheck.adapters.onnx.scopes import scopes

    found = [n for n in model.graph.node if n.op_type == op and scopes(n)[-2:-1] == [path]]
    assert found, f"no {op} in {path}"
    return found


def attribute(path: str, op: str, name: str, value: Any) -> Edit:
    """Set an attribute of a module's (first) node of a type."""

    def edit(model: Any) -> None:
        import onnx

        node = nodes(model, path, op)[0]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return edit


def initializer(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Replace the values of a weight."""

    def edit(model: Any) -> None:
        import onnx

        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        value = np.ascontiguousarray(change(onnx.numpy_helper.to_array(tensor)))
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))

    return edit


def swap_inputs(path: str, op: str) -> Edit:
    """Exchange the operands of a module's (first) node of a type."""

    def edit(model: Any) -> None:
        node = nodes(model, path, op)[0]
        node.input[0], node.input[1] = node.input[1], node.input[0]

    return edit


def bypass(path: str, op: str) -> Edit:
    """Drop a node: it hands on what it was given."""

    def edit(model: Any) -> None:
        node = nodes(model, path, op)[0]
        node.op_type = "Identity"
        del node.attribute[:], node.input[1:]

    return edit


def swap_slices(path: str, first: int, second: int) -> Edit:
    """Exchange two of the parts that a module cuts its value into (0: q, 1: k, 2: v)."""

    def edit(model: Any) -> None:
        parts = nodes(model, path, "Squeeze")
        a, b = parts[first], parts[second]
        a.input[0], b.input[0] = b.input[0], a.input[0]

    return edit


def constant(path: str, op: str, position: int, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Change a constant that a module's (first) node of a type reads."""

    def edit(model: Any) -> None:
        import onnx

        node = nodes(model, path, op)[0]
        value = _constant(model, node.input[position])
        name = f"{node.output[0]}_wrong"
        array = np.array(change(value), dtype=value.dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        node.input[position] = name

    return edit


def _constant(model: Any, name: str) -> np.ndarray:
    import onnx

    for tensor in model.graph.initializer:
        if tensor.name == name:
            return onnx.numpy_helper.to_array(tensor)
    (node,) = [n for n in model.graph.node if name in n.output]
    return onnx.numpy_helper.to_array(node.attribute[0].t)


def shifted_rows(path: str) -> Edit:
    """A table whose rows are counted from 1: what is looked up is the neighbour."""

    def edit(model: Any) -> None:
        node = nodes(model, path, "Gather")[0]
        table = _constant(model, node.input[0])
        import onnx

        name = f"{node.input[0]}_shifted"
        value = np.roll(table, 1, axis=0)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        node.input[0] = name

    return edit


def half(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).astype(value.dtype)


def square(value: np.ndarray) -> np.ndarray:
    assert value.shape[0] == value.shape[1]
    return value.swapaxes(0, 1)


# -- the defects -----------------------------------------------------------------------------------

defect = functools.partial(Defect, candidate="onnx", phase="forward")
on_mlp = functools.partial(defect, family="mlp")
on_cnn = functools.partial(defect, family="cnn")
on_gpt = functools.partial(defect, family="gpt")

DEFECTS: tuple[Defect, ...] = (
    on_mlp(
        name="mlp-onnx-layernorm-epsilon",
        mistake="LayerNormalization's epsilon 1e-6 for 1e-5",
        source="huggingface/transformers#15332",
        site="norm",
        inject=plant(attribute("norm", "LayerNormalization", "epsilon", 1e-6)),
    ),
    on_mlp(
        name="mlp-onnx-leaky-alpha",
        mistake="LeakyRelu's alpha 0.02 for 0.01",
        source="jinyu121/DW2TF#2",
        site="act1",
        inject=plant(attribute("act1", "LeakyRelu", "alpha", 0.02)),
    ),
    on_mlp(
        name="mlp-onnx-activation-dropped",
        mistake="an optimiser removed an activation",
        source="",
        site="act2",
        inject=plant(bypass("act2", "HardSwish")),
    ),
    on_mlp(
        name="mlp-onnx-weight-float16",
        mistake="a weight rounded to float16",
        source="jax-ml/jax#10413",
        phase="weights",
        site="fc2.weight",
        inject=plant(initializer("fc2.weight", half)),
    ),
    on_cnn(
        name="cnn-onnx-batchnorm-epsilon",
        mistake="BatchNormalization's epsilon 1e-3 for 1e-5",
        source="gzuidhof/nn-transfer#3",
        site="block1.bn1",
        inject=plant(attribute("block1.bn1", "BatchNormalization", "epsilon", 1e-3)),
    ),
    on_cnn(
        name="cnn-onnx-conv-pads",
        mistake="all padding at the end (SAME_UPPER) for half on each side",
        source="keras-team/keras#19291",
        site="block1.conv1",
        inject=plant(attribute("block1.conv1", "Conv", "pads", [0, 0, 2, 2])),
    ),
    on_cnn(
        name="cnn-onnx-pool-counts-padding",
        mistake="AveragePool counts the padding",
        source="pytorch/pytorch#13934",
        site="block1.shortcut.pool",
        inject=plant(attribute("block1.shortcut.pool", "AveragePool", "count_include_pad", 1)),
    ),
    on_cnn(
        name="cnn-onnx-conv-transposed",
        mistake="a convolution's kernel with input and output channels exchanged",
        source="vllm-project/vllm#44110",
        phase="weights",
        site="block2.conv1.weight",
        inject=plant(initializer("block2.conv1.weight", square)),
    ),
    on_cnn(
        name="cnn-onnx-relu-dropped",
        mistake="the activation behind a residual sum was dropped",
        source="",
        site="block1.relu2",
        inject=plant(bypass("block1.relu2", "Relu")),
    ),
    on_gpt(
        name="gpt-onnx-gelu-tanh",
        mistake="Gelu in its tanh form for erf",
        source="chelsea0x3b/dfdx#804",
        site="blocks.0.mlp.gelu",
        inject=plant(attribute("blocks.0.mlp.gelu", "Gelu", "approximate", "tanh")),
    ),
    on_gpt(
        name="gpt-onnx-softmax-axis",
        mistake="Softmax over the queries for the keys",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        site="blocks.0.attn.softmax",
        inject=plant(attribute("blocks.0.attn.softmax", "Softmax", "axis", -2)),
    ),
    on_gpt(
        name="gpt-onnx-projection-transposed",
        mistake="a square weight transposed",
        source="vllm-project/vllm#44110",
        phase="weights",
        site="blocks.1.attn.c_proj.weight",
        inject=plant(initializer("blocks.1.attn.c_proj.weight", square)),
    ),
    on_gpt(
        name="gpt-onnx-query-key-swapped",
        mistake="queries and keys exchanged",
        source="",
        site="blocks.1.attn",
        inject=plant(swap_slices("blocks.1.attn", 0, 1)),
    ),
    on_gpt(
        name="gpt-onnx-values-keys-swapped",
        mistake="keys and values exchanged",
        source="",
        site="blocks.0.attn",
        inject=plant(swap_slices("blocks.0.attn", 1, 2)),
    ),
    on_gpt(
        name="gpt-onnx-scale",
        mistake="attention scores divided by the head size for its root",
        source="ml-explore/mlx-swift-examples#99",
        site="blocks.0.attn",
        inject=plant(constant("blocks.0.attn", "Div", 1, lambda scale: scale * scale)),
    ),
    on_gpt(
        name="gpt-onnx-division-reversed",
        mistake="the operands of a division exchanged",
        source="",
        site="blocks.1.attn",
        inject=plant(swap_inputs("blocks.1.attn", "Div")),
    ),
    on_gpt(
        name="gpt-onnx-gather-shifted",
        mistake="the rows of an embedding are counted from 1",
        source="huggingface/transformers#20761",
        site="wpe",
        inject=plant(shifted_rows("wpe")),
    ),
    on_gpt(
        name="gpt-onnx-weight-float16",
        mistake="a weight rounded to float16",
        source="jax-ml/jax#10413",
        phase="weights",
        site="blocks.1.mlp.fc.weight",
        inject=plant(initializer("blocks.1.mlp.fc.weight", half)),
    ),
)
