"""Closer than a layer: which operation of a diverging layer is the first that departs?

A layer that diverges is run again on the reference's values, and every operation inside it is
recorded where the framework can show them (PyTorch). What one side computes and the other does
not, though it is made of values that both have, is where the two part. Values decide, not names:
an operation is *shared* if its value turns up on the other side. Ports cut a computation into
different pieces, so where they part between two shared values, the answer is that interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from crosscheck.adapters.base import Operation
from crosscheck.arrays import is_float
from crosscheck.judging.evidence import Evidence
from crosscheck.observers import Forcer, Key
from crosscheck.results import Divergence, SiteResult
from crosscheck.run import Runner
from crosscheck.trace import owner

__all__ = ["first_departure", "zoom"]

MOST = 3
"""So many divergences are looked at closely; what follows from them looks like them."""


def zoom(
    evidence: Evidence, divergences: Sequence[Divergence], results: Sequence[SiteResult]
) -> list[str]:
    """One sentence for each of the first forward divergences.

    Args:
        evidence: both sides and the values that they were forced onto.
        results: every comparison, for the floor at a divergence.
    """
    e, found = evidence, []
    for divergence in [d for d in divergences if d.phase == "forward"][:MOST]:
        if divergence.reference is None:
            continue
        on_reference = e.alignment.forced_on_reference(e.free_reference)
        on_candidate = e.alignment.forced_on_candidate(e.free_reference)
        ours = _operations(e.reference, divergence.reference, on_reference)
        theirs = _operations(e.candidate, divergence.candidate, on_candidate)
        tolerance = _tolerance(divergence, results)
        if not ours:
            text = f"the {e.reference.adapter.framework} adapter shows no operations there"
        elif theirs:
            text = first_departure(ours, theirs, tolerance=tolerance)
        else:
            shown = {s: v for (kind, s), v in e.forced.values.items() if kind == "activation"}
            text = _last_shown(ours, shown, tolerance=tolerance)
        found.append(f"zoom into `{divergence.reference}`: {text}")
    return found


def _operations(
    side: Runner, site: str | None, values: Mapping[Key, np.ndarray]
) -> tuple[Operation, ...]:
    if site is None:
        return ()
    return side.adapter.operations(
        owner(site), side.inputs, Forcer(values), train=side.train, seed=side.seed
    )


def _tolerance(divergence: Divergence, results: Sequence[SiteResult]) -> float:
    """Between what rounding does here and how far the layer is off: their geometric mean."""
    forward = [r for r in results if r.phase == "forward"]
    at = [r for r in forward if divergence.site in (r.reference, r.candidate)]
    floor = max((r.noise_floor for r in at), default=0.0) or float(np.finfo(np.float32).eps)
    error = divergence.metrics.rel_l2 if divergence.metrics is not None else 1.0
    return float(np.sqrt(floor * min(max(error, floor), 1.0)))


# -- two lists of operations -----------------------------------------------------------------------


def first_departure(
    reference: Sequence[Operation], candidate: Sequence[Operation], *, tolerance: float
) -> str:
    """Where the two lists part, in one sentence.

    Args:
        tolerance: relative difference up to which two values are the same one.
    """
    ours = _frontier(reference, _shared(reference, candidate, tolerance))
    theirs = _frontier(candidate, _shared(candidate, reference, tolerance))
    if not ours and not theirs:
        return "every operation's value turns up on the other side; the difference lies between"
    if not theirs:
        return f"the candidate never computes what the reference's {ours[0]} gives"
    if not ours:
        return f"the reference never computes what the candidate's {theirs[0]} gives"
    first, second = ours[0], theirs[0]
    if len(ours) == len(theirs) == 1 and first.name == second.name:
        return f"the first operation that departs is {second}{_arguments(first, second)}"
    return (
        f"up to there the values are shared; then the reference goes on with {_listed(ours)}, "
        f"the candidate with {_listed(theirs)}"
    )


def _arguments(first: Operation, second: Operation) -> str:
    if first.literals == second.literals:
        return ", on equal arguments"
    ours = [text for text in first.literals if text not in second.literals]
    theirs = [text for text in second.literals if text not in first.literals]
    return f": the reference passes {', '.join(ours) or 'nothing'}, " + (
        f"the candidate {', '.join(theirs) or 'nothing'}"
    )


def _listed(operations: Sequence[Operation]) -> str:
    rest = len(operations) - 2
    text = " and ".join(str(operation) for operation in operations[:2])
    return f"{text} and {rest} more" if rest > 0 else text


def _shared(
    operations: Sequence[Operation], others: Sequence[Operation], tolerance: float
) -> list[bool]:
    """Whether the value of each operation turns up among those of the other side."""
    # A tap may hand in what the other side did not compute.
    pool = _Pool((o.value for o in others if not o.hidden), tolerance)
    return [operation.value in pool for operation in operations]


class _Pool:
    """Values to find others among, up to rounding; norms spare most of the comparisons."""

    def __init__(self, values: Iterable[np.ndarray], tolerance: float) -> None:
        self._tolerance = tolerance
        self._values: defaultdict[tuple[int, bool], list[tuple[float, np.ndarray]]]
        self._values = defaultdict(list)
        for value in values:
            self._values[value.size, is_float(value)].append((_norm(value), value))

    def __contains__(self, value: np.ndarray) -> bool:
        norm = _norm(value)
        near = self._tolerance * norm
        return any(
            abs(size - norm) <= near and _same(value, other, self._tolerance)
            for size, other in self._values.get((value.size, is_float(value)), ())
        )


def _flat(value: np.ndarray) -> np.ndarray:
    return value.astype(np.complex128 if value.dtype.kind == "c" else np.float64).ravel()


def _norm(value: np.ndarray) -> float:
    flat = _flat(value)
    return float(np.linalg.norm(flat[np.isfinite(flat)]))


def _same(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Equal up to rounding, in this order of the elements or, for other shapes, in any."""
    left, right = _flat(a), _flat(b)
    if a.shape != b.shape:
        left, right = np.sort(left), np.sort(right)
    finite = np.isfinite(left)
    if not np.array_equal(finite, np.isfinite(right)):
        return False
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return False
    difference = float(np.linalg.norm(left[finite] - right[finite]))
    return difference <= tolerance * float(np.linalg.norm(left[finite]))


def _frontier(operations: Sequence[Operation], shared: Sequence[bool]) -> list[Operation]:
    """The operations that are not shared though all that they were given is, and on whose results
    the last value depends without a shared value between."""
    if not operations:
        return []
    last = len(operations) - 1
    while last > 0 and shared[last] and not all(shared):
        last -= 1
    found: list[int] = []
    waiting, seen = [last], {last}
    while waiting:
        index = waiting.pop()
        if shared[index]:
            continue
        sources = [i for i in operations[index].inputs if not shared[i]]
        if not sources and not operations[index].hidden:
            found.append(index)
        for source in sources:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return [operations[index] for index in sorted(found)]


# -- one list, and what the other side shows -------------------------------------------------------


def _last_shown(
    reference: Sequence[Operation], shown: Mapping[str, np.ndarray], *, tolerance: float
) -> str:
    """The interval of the reference's operations that the candidate's visible values leave open."""
    own = [operation for operation in reference if not operation.hidden]
    pool = _Pool(shown.values(), tolerance)
    known = [operation.value in pool for operation in own]
    missing = [o for o, there in zip(own, known, strict=True) if not there]
    if not missing:
        return "the candidate shows the value of every operation of the reference"
    if len(own) == 1:
        return f"the reference is one operation, {own[0]}; the candidate does not show its value"
    before = own[: own.index(missing[0])]
    start = f"shows the value of {before[-1]}, and " if before else ""
    return (
        f"the candidate {start}does not show that of {missing[0]}, the first of {len(missing)} "
        f"operations of the reference without a counterpart. The mistake lies there or after it"
    )
