r"""The text of a map: what `crosscheck weights` prints, what a `WeightMap` may say.

A map is a Python dict literal, {candidate parameter: value}, where a value is

    "name"                              that reference parameter; the shapes decide on the layout
    ("name", "steps")                   with steps, one after the other, separated by `|`
    ([value, value, ...], "steps")      several; the first step joins them

and the steps are

    same                     as it is
    transpose                all axes reversed
    axes 2 3 1 0             numpy.transpose with that order
    reshape 8 2 4            numpy.reshape (C order)
    part 0 8:16              indices 8 to 16 (exclusive) of axis 0
    blocks 0 1 0 2           axis 0 cut into three equal blocks, put in that order
    flip 2 3                 these axes backwards
    concat 0                 (first, after a list) concatenated along axis 0
    stack 0                  (first, after a list) stacked along a new axis 0
    sum                      (first, after a list) added up

``"zeros(5, 3)"`` in the place of a name stands for zeros of that shape.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crosscheck.errors import InvalidArgument
from crosscheck.weights.expressions import (
    Applied,
    Blocks,
    Flip,
    Joined,
    Node,
    Part,
    Reshape,
    Source,
    Step,
    Transpose,
    Zeros,
)

__all__ = ["load_map", "parsed", "spelled"]

_ZEROS = re.compile(r"zeros\(([\d, ]*)\)$")


def spelled(node: Node) -> Any:
    """A node as a value of a map; `parsed` reads it back."""
    if isinstance(node, Source):
        return node.name
    if isinstance(node, Zeros):
        return f"zeros({', '.join(map(str, node.shape))})"
    steps: list[str] = []
    while isinstance(node, Applied):
        steps.insert(0, str(node.step))
        node = node.node
    if isinstance(node, Joined):
        return [spelled(n) for n in node.nodes], " | ".join([str(node), *steps])
    return spelled(node), " | ".join(steps)


def parsed(value: Any, source: Callable[[Any], Source]) -> Node:
    """The node that a value stands for.

    Args:
        source: called with what stands for a parameter; raises where that does not exist.

    Raises:
        ValueError: what is wrong with the steps.
    """
    if isinstance(value, str) and (match := _ZEROS.match(value)):
        return Zeros(tuple(int(n) for n in match[1].replace(",", " ").split()))
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)):
        return source(value)
    first, *steps = [text.split() for text in value[1].split("|")]
    node: Node
    if isinstance(value[0], list):
        node = _joined(first, tuple(parsed(v, source) for v in value[0]))
    else:
        node = parsed(value[0], source)
        steps.insert(0, first)
    for words in steps:
        step = _step(words, len(node.shape))
        node = node if step is None else Applied(step, node)
    node.shape  # noqa: B018  (raises for steps that the shapes do not allow)
    return node


def _joined(words: list[str], nodes: tuple[Node, ...]) -> Node:
    name, numbers = words[0] if words else "", _numbers(words[1:])
    if not nodes:
        raise ValueError("the list of parameters is empty")
    if name == "sum" and not numbers:
        return Joined("sum", 0, nodes)
    if name in ("concat", "stack") and numbers is not None and len(numbers) == 1:
        return Joined(name, numbers[0], nodes)
    raise ValueError(f'{" ".join(words)!r} does not join a list; use "concat AXIS", "stack AXIS"')


def _step(words: list[str], ndim: int) -> Step | None:
    name, rest = words[0] if words else "", words[1:]
    numbers = _numbers(rest)
    if name == "same" and not rest:
        return None
    if name == "transpose" and not rest:
        return Transpose(tuple(reversed(range(ndim))))
    if name == "axes" and numbers is not None and sorted(numbers) == list(range(ndim)):
        return Transpose(numbers)
    if name == "reshape" and numbers is not None:
        return Reshape(numbers)
    if name == "part" and (found := re.fullmatch(r"(\d+) (\d+):(\d+)", " ".join(rest))):
        axis, start, stop = map(int, found.groups())
        return Part(axis, start, stop)
    if name == "blocks" and numbers is not None and len(numbers) > 1:
        return Blocks(numbers[0], numbers[1:])
    if name == "flip" and numbers:
        return Flip(numbers)
    raise ValueError(f"{' '.join(words)!r} is no step for {ndim} axes")


def _numbers(words: list[str]) -> tuple[int, ...] | None:
    return tuple(map(int, words)) if all(w.isdigit() for w in words) else None


def load_map(path: str | Path) -> Mapping[str, Any]:
    """Read a map that `crosscheck weights` printed (and somebody edited); nothing is executed.

    Raises:
        InvalidArgument: no such file, or it holds no dict literal.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidArgument(f"{path}: there is no such file of weights")
    try:
        found = ast.literal_eval(file.read_text(encoding="utf-8").strip())
    except (ValueError, SyntaxError) as error:
        raise InvalidArgument(
            f"{path}: must be a Python dict literal, as `crosscheck weights` prints it: {error}"
        ) from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path}: must hold a dict, not a {type(found).__name__}")
    return found
