"""A deep residual stream: many sites look alike, and few of them have to be compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from crosscheck.aligning import align
from crosscheck.aligning.align import Aligner
from crosscheck.aligning.fingerprints import (
    Fingerprints,
    fingerprints,
    least_errors,
    looks_like,
)
from crosscheck.aligning.layout import Two, relative_error
from crosscheck.trace import Trace
from tests.stages.test_scale import trace

DEPTH = 100


def renamed(run: Trace) -> Trace:
    """With names that tell nothing for its layers."""
    letters = str.maketrans("0123456789", "abcdefghij")
    names = {s: str(i).translate(letters) for i, s in enumerate(run.info.layers)}
    names |= {s: s for s in (*run.info.inputs, *run.info.outputs)}
    info = replace(
        run.info,
        layers={names[s]: layer for s, layer in run.info.layers.items()},
        sources={names[a]: names[b] for a, b in run.info.sources.items()},
        parents={names[a]: names[b] for a, b in run.info.parents.items()},
    )
    return Trace({(kind, names[s]): v for (kind, s), v in run.values.items()}, info, "")


@pytest.mark.parametrize("named", [True, False])
def test_only_the_likeliest_are_compared(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    original = align.differences

    def differences(pairs: Iterable[Two]) -> list[float]:
        found = original(pairs)
        asked.extend(found)
        return found

    monkeypatch.setattr(align, "differences", differences)
    one, other = trace(DEPTH), trace(DEPTH)
    run = other if named else renamed(other)
    found = Aligner(one, run, explicit={}, anchors=()).alignment()
    sites = zip(one.activations(), run.activations(), strict=True)
    assert {(p.reference, p.candidate) for p in found.pairs} == set(sites)
    # Where names tell nothing, how equal the values are decides.
    assert len(asked) <= 2 * DEPTH if named else len(asked) > 10 * DEPTH


@pytest.mark.parametrize("portion", [1, 50, 1 << 16])
def test_fingerprints_are_found_whatever_they_are_searched_by(
    portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crosscheck.aligning.fingerprints.AT_ONCE", portion)
    rng = np.random.default_rng(0)
    normed = rng.standard_normal((40, 500))
    normed = (normed - normed.mean(1, keepdims=True)) / normed.std(1, keepdims=True)
    scaled = rng.standard_normal((40, 500)) * np.linspace(0.1, 3.0, 40)[:, None]
    odd = [np.zeros(500), np.ones(500), np.full(500, np.nan), np.full(500, 1e300)]
    rows = np.array(fingerprints([*normed, *scaled, *odd]))
    others = np.array(fingerprints([*(scaled * 1.0005), *(normed + 2e-4), *odd, normed[0]]))
    found = [
        (i, j)
        for asked, there in Fingerprints(rows).like(others)
        for i, j in zip(asked.tolist(), there.tolist(), strict=True)
    ]
    every = [(i, j) for i, one in enumerate(others) for j in np.flatnonzero(looks_like(rows, one))]
    assert found == every and len(every) >= len(others)


def test_fingerprints_bound_the_error() -> None:
    rng = np.random.default_rng(1)
    truths = [rng.standard_normal(400) * scale + shift for scale in (1e-3, 1.0) for shift in (0, 5)]
    values = []
    for size in (1e-7, 1e-5, 1e-3):
        for truth in truths:
            errors = rng.standard_normal(400), np.ones(400), np.sign(truth), truth
            values += [(truth + size * error, truth) for error in errors]
    values.append((np.zeros(400), np.zeros(400)))
    values.append((np.full(400, np.nan), np.full(400, np.nan)))
    least = least_errors(*(np.array(fingerprints(side)) for side in zip(*values, strict=True)))
    for (value, truth), bound in zip(values, least, strict=True):
        error = relative_error(value, truth)
        assert 0.0 <= bound <= error, (bound, error)
    shifted = [i for i in range(len(values)) if i % 4 == 1 and i < 12]
    assert all(least[i] > 0.3 * relative_error(*values[i]) for i in shifted)
