"""The work of each stage grows with the depth of a model, not with its square.

Counted in calls of functions, which do not depend on the machine: twice the layers may take at most
2.2 times as many.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crosscheck.adapters.base import Parameter
from crosscheck.aligning.align import Aligner
from crosscheck.aligning.alignment import Alignment
from crosscheck.aligning.layout import SAME
from crosscheck.comparisons import Item
from crosscheck.judging.reductions import Reductions
from crosscheck.locating.locate import Locator
from crosscheck.locating.severed import Severed
from crosscheck.observers import Key
from crosscheck.results import Metrics, SiteResult
from crosscheck.trace import RunInfo, Trace
from crosscheck.weights import match_parameters
from crosscheck.weights.leftovers import leftover_pairs

WIDTH = 12


def calls(work: Callable[[], object]) -> int:
    profile = cProfile.Profile()
    profile.runcall(work)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def grows(prepared: Callable[[int], Callable[[], object]], depth: int = 60) -> float:
    """How many times the calls of twice the depth."""
    prepared(4)()  # what is done once and kept
    return calls(prepared(2 * depth)) / calls(prepared(depth))


def parameters(depth: int, name: str = "blocks.{}", dtype: Any = np.float32) -> list[Parameter]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(depth):
        layer = name.format(i)
        weight = rng.standard_normal((WIDTH, WIDTH)).astype(dtype)
        bias = rng.standard_normal(WIDTH).astype(dtype)
        found += [
            Parameter(
                f"{layer}.fc.weight", weight, f"{layer}.fc", "weight", "dense", ("out", "in")
            ),
            Parameter(f"{layer}.fc.bias", bias, f"{layer}.fc", "bias", "dense", ("out",)),
        ]
    return found


def trace(depth: int, seed: int = 0) -> Trace:
    """A residual stream that hardly changes from one block to the next, forward and backward."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6, WIDTH)).astype(np.float32)
    values: dict[Key, np.ndarray] = {("activation", "input:x"): x}
    layers, sources, parents, before = {"input:x": "input"}, {}, {}, "input:x"
    for i in range(depth):
        block, fc = f"blocks.{i}", f"blocks.{i}.fc"
        change = rng.standard_normal(x.shape).astype(np.float32)
        values["input", block] = values["input", fc] = x
        values["activation", fc] = change
        x = x + np.float32(1e-4) * change
        values["activation", block] = x
        layers |= {block: "Block", fc: "Linear"}
        sources |= {block: before, fc: before}
        parents |= {block: "output", fc: block}
        before = block
    values["activation", "output"] = x
    for kind, site in reversed(list(values)):
        twin: Any = "cotangent" if kind == "activation" else "input_cotangent"
        values[twin, site] = rng.standard_normal(x.shape).astype(np.float32)
    info = RunInfo(("input:x",), ("output",), {**layers, "output": "Net"}, sources, parents)
    return Trace(values, info, "")


def aligned(one: Trace, other: Trace) -> Alignment:
    return Aligner(one, other, explicit={}, anchors=[]).alignment()


def flagged(one: Trace, kinds: dict[str, Any]) -> list[SiteResult]:
    """A divergence at every value of some kinds."""
    metrics = Metrics(1.0, 1.0, (0, 0), 0.0, 0, 0)
    return [
        SiteResult(
            phase=kinds[kind],
            kind=kind,
            reference=site,
            candidate=site,
            shape=value.shape,
            dtype=value.dtype.name,
            verdict="diverge",
            noise_floor=1e-7,
            ratio=1e4,
            free_ratio=None,
            metrics=metrics,
        )
        for (kind, site), value in one.values.items()
        if kind in kinds
    ]


def test_weights_of_one_name() -> None:
    def prepared(depth: int) -> Callable[[], object]:
        ours, theirs = parameters(depth), parameters(depth)
        return lambda: match_parameters(ours, theirs).require_complete()

    assert grows(prepared) < 2.2


def test_weights_that_are_held_already() -> None:
    def prepared(depth: int) -> Callable[[], object]:
        ours, theirs = parameters(depth), parameters(depth)
        return lambda: match_parameters(ours, theirs, held=True).require_complete()

    assert grows(prepared) < 2.2


def test_bare_weights_that_are_held_in_another_layout() -> None:
    """Of one size and alike in distribution: only those that are equal are compared."""

    def bare(name: str, value: np.ndarray) -> Parameter:
        return Parameter(name, value, name, "other", "other", None)

    def prepared(depth: int) -> Callable[[], object]:
        rng = np.random.default_rng(0)
        values = rng.standard_normal((depth, WIDTH, WIDTH)).astype(np.float32)
        ours = [bare(f"ours_{i}", value) for i, value in enumerate(values)]
        theirs = [bare(f"w{(7 * i) % depth}", values[i].T.copy()) for i in range(depth)]
        return lambda: leftover_pairs(ours, theirs, held=True)

    assert grows(prepared) < 2.2
    found: Any = prepared(10)()
    assert sorted(m.reference.name for m in found) == [f"ours_{i}" for i in range(10)]


def test_weights_of_other_names_are_matched_in_a_deep_model() -> None:
    """Beyond 512 layers names are compared in a band: what stands at one place still meets."""
    ours, theirs = parameters(560), parameters(560, name="net_{}/dense")
    match = match_parameters(ours, theirs)
    assert [(m.reference.name, m.candidate.name) for m in match.pairs] == [
        (a.name, b.name) for a, b in zip(ours, theirs, strict=True)
    ]


def test_sites_that_all_look_alike() -> None:
    def prepared(depth: int) -> Callable[[], object]:
        return lambda: aligned(trace(depth), trace(depth))

    assert grows(prepared) < 2.2
    alignment = aligned(trace(60), trace(60))
    assert len(alignment.pairs) == 2 * 60 + 2
    assert all(pair.reference == pair.candidate for pair in alignment.pairs)


def test_lengths_and_scales_of_gradients() -> None:
    def prepared(depth: int) -> Callable[[], object]:
        one, held = trace(depth), parameters(depth)
        items = [
            Item("parameter_gradient", "parameter", p.name, p.name, SAME, "parameter") for p in held
        ]

        def work() -> None:
            reductions = Reductions(held, one, frozenset(one.activations()))
            for item in items:
                assert reductions.length(item) == 6.0 and reductions.scale(item) > 0.0

        return work

    assert grows(prepared) < 2.2


@pytest.mark.parametrize(
    "kinds",
    [{"input": "forward", "activation": "forward"}, {"cotangent": "backward"}],
    ids=["forward", "backward"],
)
def test_blame_where_everything_is_wrong(kinds: dict[str, Any]) -> None:
    def prepared(depth: int) -> Callable[[], object]:
        one, other = trace(depth), trace(depth)
        alignment, results = aligned(one, other), flagged(one, kinds)
        return lambda: Locator(alignment, one, other).locate(results)

    assert grows(prepared) < 2.2


def test_what_a_cut_in_front_of_everything_entails() -> None:
    kinds = {"cotangent": "backward", "input_cotangent": "backward"}

    def prepared(depth: int) -> Callable[[], object]:
        one, other = trace(depth), trace(depth)
        silent = {
            key: np.zeros_like(value) if "cotangent" in key[0] else value
            for key, value in other.values.items()
        }
        results = flagged(one, kinds)
        return lambda: Severed(one, Trace(silent, other.info, ""), results)

    assert grows(prepared) < 2.2
