"""What depends on what: example i on itself alone, position t on what came before."""

from __future__ import annotations

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.auditing.arrays import others, relative
from crosscheck.auditing.registry import Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.subject import Subject
from crosscheck.errors import SideFailed

__all__: list[str] = []

TOUCHED = 1e-4  # relative: another batch may take another BLAS routine, which rounds otherwise


@check("wrong")
def examples_are_independent(subject: Subject) -> Outcome:
    """In eval mode the output for one example does not change with the others of its batch."""
    n = subject.batch
    batched = {k: v for k, v in subject.inputs.items() if v.ndim and v.shape[0] == n}
    if subject.options.get("one_example"):
        return Skip(subject.separable())
    if n < 2 or not batched:
        return Skip("no batch of several examples")
    rng = np.random.default_rng(subject.seed + 2)
    changed = dict(subject.inputs)
    for name, value in batched.items():
        new = np.array(value)
        new[1:] = others(value, rng)[1:]
        changed[name] = new
    try:
        other = subject.run(inputs=changed, backward=False)
    except SideFailed as error:
        return Skip(f"the model does not take other inputs: {type(error.__cause__).__name__}")
    of_graph = any(v.shape[:2] == (n, n) for v in subject.inputs.values())
    looked = moved = False
    for site, value in subject.run().outputs.items():
        after = other.outputs.get(site)
        if after is None or not is_float(value) or not value.ndim or value.shape[0] != n:
            continue
        looked = True
        moved = moved or relative(value[1:], after[1:]) > TOUCHED
        apart = relative(value[0], after[0])
        if apart > TOUCHED and of_graph and subject.separable():
            return Skip(subject.separable())
        if apart > TOUCHED:
            return Failure(
                f"the first example's `{site}` changes (by {apart:.2g}) when the other examples "
                "do: something mixes the batch",
                site,
                apart,
            )
    if not looked:
        return Skip("no output has the batch as its first axis")
    if not moved:  # what never changes is independent of everything, and shows nothing
        return Skip("no output changes with its input, so independence shows nothing")
    return Looked("the first example's output stays when the others change")


@check("wrong")
def positions_are_causal(subject: Subject) -> Outcome:
    """Position t depends on positions up to t alone (asked for by ``causal=True``)."""
    if not subject.options.get("causal"):
        return Skip("causal=True asks for it")
    candidates = {k: v for k, v in subject.inputs.items() if v.ndim >= 2 and v.shape[1] >= 3}
    if not candidates:
        return Skip("no input with positions on its second axis")
    name, value = next(iter(candidates.items()))
    length = value.shape[1]
    rng = np.random.default_rng(subject.seed + 3)
    moved = False
    for start in sorted({1, length // 2, length - 1}):
        new = np.array(value)
        new[:, start:] = _different(value, rng)[:, start:]
        other = subject.run(inputs={**subject.inputs, name: new}, backward=False)
        for site, before in subject.run().outputs.items():
            if before.ndim < 2 or before.shape[1] != length:
                continue
            after = other.outputs[site]
            moved = moved or relative(before[:, start:], after[:, start:]) > TOUCHED
            early = relative(before[:, :start], after[:, :start])
            if early > TOUCHED:
                return Failure(
                    f"`{site}` before position {start} changes (by {early:.2g}) when `{name}` from "
                    "there on does: it sees the future",
                    site,
                    early,
                )
    if not moved:
        return Skip("no output has the positions on its second axis, or none changes")
    return Looked("no position sees a later one")


def _different(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another value at every place, of the values that are there."""
    if is_float(value):
        return others(value, rng)
    kinds = np.unique(value)
    places = np.searchsorted(kinds, value)
    shift = rng.integers(1, max(len(kinds), 2), value.shape)
    return np.asarray(kinds[(places + shift) % len(kinds)], value.dtype)
