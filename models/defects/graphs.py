"""The systematic mistakes (`models.defects.systematic`) in an exported ONNX graph."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from crosscheck.pair import Pair
from models.defects.base import Defect
from models.defects.onnx import Edit, initializer, plant
from models.defects.systematic import FACTOR, HALF, SHIFT

CANDIDATE = "onnx"
FLOAT = 1  # onnx.TensorProto.FLOAT


def systematic_graphs(pair: Pair, family: str, *, per_kind: int = 1, seed: int = 0) -> list[Defect]:
    """``per_kind`` defects of every kind that the exported graph has a place for."""
    graphs: list[Any] = []
    report = pair.check(
        CANDIDATE,
        alter=lambda adapter: setattr(adapter, "transform", graphs.append),
        gradients=False,
        explain=False,
    )
    graph = graphs[0].graph
    names = {s.candidate for s in report.sites if s.phase == "weights"}
    paths = [
        s.candidate
        for s in report.sites
        if s.phase == "forward" and s.kind == "activation" and s.dtype.startswith("f")
    ]
    paths = [p for p in paths if not any(mark in p for mark in ":#") and _end(graph, p) is not None]
    rng = random.Random(f"{family} onnx {seed}")  # noqa: S311  (a choice, not a secret)
    found = []
    for kind, mistake, edits, phase in (*_outputs(paths), *_weights(graph, names)):
        for site, edit in rng.sample(edits, min(per_kind, len(edits))):
            found.append(
                Defect(
                    name=f"{family}-onnx-{kind}@{site}",
                    family=family,
                    candidate=CANDIDATE,
                    mistake=f"{mistake}, at {site}",
                    source="",
                    phase=phase,  # type: ignore[arg-type]
                    site=site,
                    inject=plant(edit),
                )
            )
    return found


Kind = tuple[str, str, list[tuple[str, Edit]], str]


def _outputs(paths: list[str]) -> Iterator[Kind]:
    for kind, mistake, operations in (
        ("scaled", f"output × {FACTOR}", [("Mul", FACTOR)]),
        ("shifted", f"output + {SHIFT}", [("Add", SHIFT)]),
        ("sign", "sign of the output", [("Neg", None)]),
        ("float16", "output rounded to float16", [("Cast", 10), ("Cast", FLOAT)]),
        ("bfloat16", "output rounded to bfloat16", [("Cast", 16), ("Cast", FLOAT)]),
    ):
        yield kind, mistake, [(p, behind(p, operations)) for p in paths], "forward"


def _weights(graph: Any, names: set[str]) -> Iterator[Kind]:
    import onnx

    held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name in names}
    for kind, mistake, made in (
        ("weight-scaled", "a weight × 1.001", lambda v: v * np.float32(FACTOR)),
        ("weight-float16", "a weight through float16", lambda v: v.astype(HALF).astype(v.dtype)),
        ("weight-not-loaded", "a parameter left at zero", np.zeros_like),
    ):
        changed: list[tuple[str, Edit]] = [
            (name, initializer(name, made))
            for name, value in held.items()
            if value.dtype == np.float32
            and value.size > 3
            and not np.array_equal(made(value), value)
        ]
        yield kind, mistake, changed, "weights"


def behind(path: str, operations: list[tuple[str, Any]]) -> Edit:
    """Put operations behind the last node of the module at ``path``, and in the module."""

    def edit(model: Any) -> None:
        import onnx

        position = _end(model.graph, path)
        assert position is not None, path
        last = model.graph.node[position]
        result = last.output[0]
        value = last.output[0] = f"{result}_before_the_change"
        for i, (op, argument) in enumerate(operations):
            name = result if i == len(operations) - 1 else f"{result}_step_{i}"
            inputs, attributes = [value], {}
            if op == "Cast":
                attributes["to"] = argument
            elif argument is not None:
                constant = onnx.numpy_helper.from_array(np.float32(argument), f"{name}_constant")
                model.graph.initializer.append(constant)
                inputs.append(constant.name)
            node = onnx.helper.make_node(op, inputs, [name], **attributes)
            node.metadata_props.extend(last.metadata_props)
            model.graph.node.insert(position + 1 + i, node)
            value = name

    return edit


def _end(graph: Any, path: str) -> int | None:
    """The last node inside the module, where that is its own and not one of its children's."""
    from crosscheck.adapters.onnx.scopes import scopes

    inside = [i for i, node in enumerate(graph.node) if path in scopes(node)[:-1]]
    own = inside and scopes(graph.node[inside[-1]])[-2] == path
    return inside[-1] if own else None
