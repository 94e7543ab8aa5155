"""Shorter trees that make the same array, so that a map reads as a person would write it."""

from __future__ import annotations

from crosscheck.weights.expressions import (
    Applied,
    Blocks,
    Flip,
    Joined,
    Node,
    Part,
    Reshape,
    Transpose,
    Zeros,
)

__all__ = ["simplified"]


def simplified(node: Node) -> Node:
    """The same array from fewer steps; a tree that is simple already is returned as it is."""
    if isinstance(node, Applied):
        return _applied(Applied(node.step, simplified(node.node)))
    if isinstance(node, Joined):
        return _joined(Joined(node.how, node.axis, tuple(map(simplified, node.nodes))))
    return node


def _applied(node: Applied) -> Node:
    step, child = node.step, node.node
    if isinstance(child, Zeros):
        return Zeros(node.shape)
    if _changes_nothing(node):
        return child
    if isinstance(child, Applied):
        inner = child.step
        if isinstance(step, Transpose) and isinstance(inner, Transpose):
            axes = tuple(inner.axes[a] for a in step.axes)
            return _applied(Applied(Transpose(axes), child.node))
        if isinstance(step, Reshape) and isinstance(inner, Reshape):
            return _applied(Applied(step, child.node))
        if isinstance(step, Flip) and isinstance(inner, Flip) and step == inner:
            return child.node
        if isinstance(step, Part) and isinstance(inner, Transpose):  # slices go to the source
            part = Part(inner.axes[step.axis], step.start, step.stop)
            return _applied(Applied(inner, _applied(Applied(part, child.node))))
        if isinstance(step, Part) and isinstance(inner, Part) and step.axis == inner.axis:
            start = inner.start + step.start
            part = Part(step.axis, start, start + step.stop - step.start)
            return _applied(Applied(part, child.node))
    return node


def _changes_nothing(node: Applied) -> bool:
    step, shape = node.step, node.node.shape
    if isinstance(step, Transpose):
        return step.axes == tuple(range(len(shape)))
    if isinstance(step, Reshape):
        return step.to == shape
    if isinstance(step, Part):
        return (step.start, step.stop) == (0, shape[step.axis])
    if isinstance(step, Blocks):
        return step.order == tuple(range(len(step.order)))
    return not step.axes


def _joined(node: Joined) -> Node:
    if node.how == "sum":
        return _sum(node)
    if all(isinstance(n, Zeros) for n in node.nodes):
        return Zeros(node.shape)
    if node.how != "concat":
        return node
    if len(node.nodes) == 1:
        return node.nodes[0]
    for rule in (_flat, _sums_outside, _steps_outside, _blocks):
        shorter = rule(node)
        if shorter is not None:
            return shorter
    return node


def _sum(node: Joined) -> Node:
    terms = tuple(n for n in node.nodes if not isinstance(n, Zeros))
    if not terms:
        return Zeros(node.shape)
    return terms[0] if len(terms) == 1 else Joined("sum", 0, terms)


def _flat(node: Joined) -> Node | None:
    """concat(concat(a, b), c) is concat(a, b, c)."""

    def same(n: Node) -> bool:
        return isinstance(n, Joined) and n.how == "concat" and n.axis == node.axis

    if not any(same(n) for n in node.nodes):
        return None
    nodes: list[Node] = []
    for n in node.nodes:
        nodes += n.nodes if same(n) and isinstance(n, Joined) else (n,)
    return _joined(Joined("concat", node.axis, tuple(nodes)))


def _sums_outside(node: Joined) -> Node | None:
    """concat(a + b, c + d) is concat(a, c) + concat(b, d), where those are whole parameters."""
    terms = [n.nodes for n in node.nodes if isinstance(n, Joined) and n.how == "sum"]
    if len(terms) != len(node.nodes) or len({len(t) for t in terms}) != 1:
        return None
    columns = [
        _joined(Joined("concat", node.axis, tuple(column))) for column in zip(*terms, strict=True)
    ]
    if any(isinstance(c, Joined) for c in columns):
        return None
    return Joined("sum", 0, tuple(columns))


def _steps_outside(node: Joined) -> Node | None:
    """concat(T(a), T(b)) is T(concat(a, b)) for one transposition T."""
    first = node.nodes[0]
    if not isinstance(first, Applied) or not isinstance(first.step, Transpose):
        return None
    step = first.step
    inner = [n.node for n in node.nodes if isinstance(n, Applied) and n.step == step]
    if len(inner) != len(node.nodes):
        return None
    whole = _joined(Joined("concat", step.axes[node.axis], tuple(inner)))
    return _applied(Applied(step, whole))


def _blocks(node: Joined) -> Node | None:
    """concat of all the equal parts of one array is that array, or its blocks in another order."""
    parts = [n for n in node.nodes if isinstance(n, Applied) and isinstance(n.step, Part)]
    steps = [n.step for n in parts if isinstance(n.step, Part) and n.step.axis == node.axis]
    if len(steps) != len(node.nodes) or len({n.node for n in parts}) != 1:
        return None
    whole = parts[0].node
    size = whole.shape[node.axis]
    if all(a.stop == b.start for a, b in zip(steps, steps[1:], strict=False)):
        return _applied(Applied(Part(node.axis, steps[0].start, steps[-1].stop), whole))
    width = size // len(steps)
    regular = all(s.stop - s.start == width and s.start % width == 0 for s in steps)
    order = tuple(s.start // width for s in steps)
    if not regular or sorted(order) != list(range(len(steps))) or size % len(steps):
        return None
    return _applied(Applied(Blocks(node.axis, order), whole))
