"""Small fixed reports, written by hand, for the tests of every rendering.

``python -m tests.report.samples`` rewrites the expected texts: read the difference as a reader
of reports would, then keep it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosscheck.results import (
    Cause,
    Coverage,
    Divergence,
    Metrics,
    Phase,
    Report,
    Side,
    SiteResult,
    Verdict,
    worst,
)

FLOOR = 6.3e-08
LAYERS = ("embed", "block1.norm", "block1.fc1", "block1.gelu", "block1.fc2",
          "block2.norm", "block2.fc1", "block2.gelu", "block2.fc2", "head")  # fmt: skip
CANDIDATE = {"block2.gelu": "block_2/activation"}


def metrics(ratio: float, **changes: Any) -> Metrics:
    made = Metrics(
        rel_l2=ratio * FLOOR,
        max_abs=1e-4,
        worst_index=(1, 87, 12),
        cosine=1.0,
        nonfinite=0,
        worst_reference=0.84121,
        worst_candidate=0.84129,
    )
    return replace(made, **changes)


def site(
    name: str, ratio: float, *, phase: Phase = "forward", kind: str = "activation", **changes: Any
) -> SiteResult:
    verdict: Verdict = "agree" if ratio <= 8 else "suspect" if ratio <= 32 else "diverge"
    made = SiteResult(
        phase=phase,
        kind=kind,
        reference=name,
        candidate=CANDIDATE.get(name, name),
        shape=(2, 128, 64),
        dtype="float32",
        verdict=verdict,
        noise_floor=FLOOR,
        ratio=ratio,
        free_ratio=ratio * 2,
        metrics=metrics(ratio),
        candidate_shape=(2, 128, 64),
        candidate_dtype="float32",
        aligned_by="value",
    )
    return replace(made, **changes)


def forward(**ratios: float) -> list[SiteResult]:
    return [
        site(name, ratios.get(name.replace(".", "_"), 0.4 + 0.15 * i))
        for i, name in enumerate(LAYERS)
    ]


def backward(**ratios: float) -> list[SiteResult]:
    rows = []
    for i, name in enumerate(reversed(LAYERS)):
        rows.append(site(name, 0.5 + 0.1 * i, phase="backward", kind="cotangent"))
        ratio = ratios.get(name.replace(".", "_"), 0.7 + 0.1 * i)
        rows.append(site(name, ratio, phase="backward", kind="input_cotangent"))
    return rows


def gradients(**ratios: float) -> list[SiteResult]:
    names = [f"{layer}.weight" for layer in LAYERS if "gelu" not in layer]
    return [
        site(
            name,
            ratios.get(name.replace(".", "_"), 0.6),
            phase="parameter_gradient",
            kind="parameter",
            shape=(64, 64),
            candidate_shape=(64, 64),
        )
        for name in names
    ]


def report(
    sites: Sequence[SiteResult], divergences: Sequence[Divergence] = (), **changes: Any
) -> Report:
    made = Report(
        verdict=worst([s.verdict for s in sites]),
        seed=0,
        reference=Side("torch", "2.13.0", "cpu"),
        candidate=Side("keras", "3.15.0", "cpu"),
        environment={"python": "3.11", "tf32": False},
        coverage=Coverage(aligned=10, parameters_matched=8),
        divergences=tuple(divergences),
        sites=tuple(sites),
    )
    return replace(made, **changes)


def agree() -> Report:
    return report(forward(block2_norm=1.3) + backward() + gradients())


def forward_divergence() -> Report:
    rows = forward(block2_gelu=3168.0)
    rows[-2:] = [replace(row, free_ratio=1900.0) for row in rows[-2:]]
    first = Divergence(
        phase="forward",
        reference="block2.gelu",
        candidate="block_2/activation",
        site="block2.gelu",
        after="block2.fc1",
        ratio=3168.0,
        metrics=metrics(3168.0),
        causes=(Cause("gelu_tanh", "reference uses erf GELU, candidate the tanh form", True, 1.1),),
    )
    vjp = replace(
        first, phase="backward", after="block2.fc2", ratio=2810.0, metrics=metrics(2810.0)
    )
    return report(rows + backward(block2_gelu=2810.0) + gradients(), [first, vjp])


def backward_divergence() -> Report:
    first = Divergence(
        phase="backward",
        reference="block1.norm",
        candidate="block1.norm",
        site="block1.norm",
        after="block1.fc1",
        ratio=413.0,
        metrics=metrics(413.0),
        causes=(
            Cause("norm_vjp", "the VJP treats the variance as a constant", False, 71.0),
            Cause("eps", "eps is 1e-6 for 1e-5", False, 230.0),
        ),
        statement="The VJP of `block1.norm` returns another cotangent for the same one.",
    )
    return report(forward() + backward(block1_norm=413.0) + gradients(), [first])


def suspect() -> Report:
    rows = forward(block1_norm=18.4)
    rows[1] = replace(rows[1], notes=("unstable: 18.4, 2.1 and 2.0 in three runs",))
    first = Divergence(
        phase="forward",
        reference="block1.norm",
        candidate="block1.norm",
        site="block1.norm",
        after="embed",
        ratio=18.4,
        metrics=metrics(18.4),
        verdict="suspect",
        statement="The error did not repeat on the candidate's side.",
    )
    return report(rows, [first])


def infinite() -> Report:
    """A transposed output, then a NaN in another place."""
    rows = forward()
    rows[2] = site(
        "block1.fc1", math.inf, metrics=None, shape=(2, 3), candidate_shape=(3, 2), free_ratio=None
    )
    bad = metrics(1.0, nonfinite=7, nonfinite_mismatch=3, worst_reference=math.nan)
    rows[4] = site("block1.fc2", math.inf, metrics=bad, free_ratio=math.inf)
    divergences = [
        Divergence("forward", r.reference, r.candidate, r.reference, None, math.inf, r.metrics)
        for r in (rows[2], rows[4])
    ]
    return report(rows, divergences)


def long_model(n: int = 5000) -> Report:
    rows = [site(f"layers.{i}.mlp", 0.5 + (i % 7) / 10) for i in range(n)]
    return report(rows, coverage=Coverage(aligned=n, parameters_matched=2 * n))


def unmatched() -> Report:
    many = tuple(f"block{i}.dropout" for i in range(9))
    coverage = Coverage(
        aligned=10,
        unmatched_reference=many,
        unmatched_candidate=("lambda_1",),
        skipped=("head.cache",),
        parameters_matched=7,
        unmatched_reference_parameters=("head.bias",),
        unmatched_candidate_parameters=(),
        not_compared=("`embed.weight`: rows 5 to 99 were never looked up",),
    )
    return replace(agree(), coverage=coverage, notes=("TF32 was switched off on both sides",))


def hostile() -> Report:
    """Names and statements that would colour, script, link or reorder a careless page."""
    evil = "[red]x[/red]<script>alert('1')</script>\x1b[31m`\u202e" + "very.long." * 30 + "end"
    first = Divergence("forward", evil, None, evil, None, 99.0, metrics(99.0), statement="[b]\n<b>")
    return report([site(evil, 99.0)], [first], name="<i>[link=x]")


EXPECTED = Path(__file__).parent / "expected"
TEXTS = [
    ("agree", 100),
    ("forward_divergence", 100),
    ("forward_divergence", 60),
    ("backward_divergence", 100),
    ("suspect", 100),
    ("infinite", 100),
    ("unmatched", 100),
    ("hostile", 60),
]


def _rewrite() -> None:
    from crosscheck.report.terminal import to_text

    EXPECTED.mkdir(exist_ok=True)
    for name, width in TEXTS:
        text = to_text(globals()[name](), width=width, ascii=False)
        (EXPECTED / f"{name}-{width}.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    _rewrite()
