"""What a check gives back: frozen, plain data. Rendering lives in `crosscheck.report`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

__all__ = [
    "Cause",
    "Coverage",
    "Details",
    "Divergence",
    "Element",
    "HeatMap",
    "Histogram",
    "Metrics",
    "Phase",
    "ProbeResult",
    "Profile",
    "Report",
    "Side",
    "SiteDetail",
    "SiteKey",
    "SiteResult",
    "Verdict",
    "WeightPair",
    "worst",
]

Verdict = Literal["agree", "suspect", "diverge"]
SiteKey = tuple[str, str, str, str, int]
Phase = Literal["weights", "forward", "loss", "backward", "parameter_gradient", "update", "buffer"]
PHASES: tuple[Phase, ...] = (
    "weights",
    "forward",
    "loss",
    "backward",
    "parameter_gradient",
    "update",
    "buffer",
)
_SEVERITY: dict[str, int] = {"agree": 0, "suspect": 1, "diverge": 2}


def worst(verdicts: list[Verdict]) -> Verdict:
    """The most severe of ``verdicts``; agree for none."""
    return max(verdicts, key=_SEVERITY.__getitem__, default="agree")


class _OfThousands:
    """A frozen dataclass of which a check makes thousands: made `of` all its fields in a third of
    the time that calling it takes, and `but` for some in a tenth of that of `replace`."""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        made = object.__new__(cls)
        object.__setattr__(made, "__dict__", fields)
        return made

    def but(self, **changes: Any) -> Self:
        return self.of({**self.__dict__, **changes})


@dataclass(frozen=True)
class Metrics(_OfThousands):
    """How the candidate's value differs from the reference's, both as they ran (no oracle). Of
    complex values, both parts of a number count.

    Attributes:
        rel_l2: ‖candidate − reference‖₂ / ‖reference‖₂ over the elements finite on both sides;
            the absolute norm where the reference is zero.
        max_abs: the largest |candidate − reference| over the same elements.
        worst_index: where that is, in the reference's layout; None for an empty tensor. Where
            non-finite values differ, the first such place.
        cosine: cosine similarity; 1.0 where both are zero.
        nonfinite: number of elements that are NaN or Inf on at least one side.
        nonfinite_mismatch: how many of those differ between the sides, in kind or sign.
        worst_reference, worst_candidate: the two values at ``worst_index``.
    """

    rel_l2: float
    max_abs: float
    worst_index: tuple[int, ...] | None
    cosine: float
    nonfinite: int
    nonfinite_mismatch: int = 0
    worst_reference: float | None = None
    worst_candidate: float | None = None


@dataclass(frozen=True)
class SiteResult(_OfThousands):
    """One comparison, judged.

    Attributes:
        phase: see `Phase`.
        kind: ``"activation"``, ``"input"`` (what a layer was given: differs only where the code
            between layers differs), ``"cotangent"``, ``"input_cotangent"`` (a layer's own VJP) or
            ``"parameter"``.
        reference, candidate: site or parameter names on the two sides.
        shape, dtype: of the reference's value; the candidate's in ``candidate_shape`` / ``_dtype``.
        verdict: of the forced run: is an error *introduced* here?
        noise_floor: η, relative to the value's scale (see `crosscheck.judging.noise`).
        ratio: ρ, the candidate's error over η in the forced run; of a site that agrees without the
            oracle an upper bound, at least 1 (`crosscheck.judging.sparing`). Infinite where the
            shapes or the non-finite values differ.
        free_ratio: the same in the free run, against errors accumulated from the input on; None
            where the free run has no such value, and in a backward pass in which all agrees. Large
            here and small in ``ratio``: inherited.
        metrics: candidate against reference in the forced run; None where shapes differ.
        notes: what the reader has to know of this comparison (fallback floor, instability, ...).
        step: of training, from 1; more than 1 only with ``steps=``.
    """

    phase: Phase
    kind: str
    reference: str
    candidate: str
    shape: tuple[int, ...]
    dtype: str
    verdict: Verdict
    noise_floor: float
    ratio: float
    free_ratio: float | None
    metrics: Metrics | None
    candidate_shape: tuple[int, ...] = ()
    candidate_dtype: str = ""
    aligned_by: str = ""
    notes: tuple[str, ...] = ()
    step: int = 1

    @property
    def key(self) -> SiteKey:
        """What tells it from the other comparisons of one check."""
        return self.phase, self.kind, self.reference, self.candidate, self.step


@dataclass(frozen=True)
class Cause:
    """A porting mistake that explains a divergence; ``verified`` only if reproducing it did."""

    name: str
    statement: str
    verified: bool
    residual_ratio: float


@dataclass(frozen=True)
class Divergence:
    """An introduced difference.

    Attributes:
        phase: see `Phase`.
        reference, candidate: the layer to blame on each side, None where one side has none.
            Forward: the site whose value is wrong. Backward: the layer whose VJP returned the
            wrong cotangent. Weights, gradients, updates, buffers: the parameter or buffer.
        site: where it was seen.
        after: the last site before it (in execution order) that agrees; None for the first.
        ratio: ρ at ``site``.
        metrics: at ``site``.
        causes: best first.
        verdict: ``"diverge"`` or ``"suspect"``.
        statement: one sentence for the reader.
        between: sites without a partner inside the interval, which may hold the error.
        step: of training, from 1; what diverges in several steps is listed for the first of them.
    """

    phase: Phase
    reference: str | None
    candidate: str | None
    site: str
    after: str | None
    ratio: float
    metrics: Metrics | None
    causes: tuple[Cause, ...] = ()
    verdict: Verdict = "diverge"
    statement: str = ""
    between: tuple[str, ...] = ()
    step: int = 1


@dataclass(frozen=True)
class ProbeResult:
    """What one further run on other inputs said (`crosscheck.probes`).

    Attributes:
        name: ``small``, ``odd``, ``seed 1``, ... or the user's own.
        verdict: that of its own check; ``"failed"`` where only the candidate raised, ``"not run"``
            where the reference refuses such inputs or nothing could be compared.
        first: its first divergence.
        what: what it feeds.
        reason: of ``"failed"`` and ``"not run"``.
    """

    name: str
    verdict: Literal["agree", "suspect", "diverge", "failed", "not run"]
    first: Divergence | None = None
    what: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Coverage:
    """What was compared, and everything that was not.

    ``blind_spots`` are lines on what was compared and could not have differed: "`NAME`: why".
    """

    aligned: int = 0
    unmatched_reference: tuple[str, ...] = ()
    unmatched_candidate: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    parameters_matched: int = 0
    unmatched_reference_parameters: tuple[str, ...] = ()
    unmatched_candidate_parameters: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()
    blind_spots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """One of the two implementations."""

    framework: str
    version: str
    device: str


@dataclass(frozen=True)
class Profile:
    """How the squared difference is spread along one axis.

    Attributes:
        axis: of the reference's layout.
        length: of the axis.
        shares: of the sum of squares; one for each index, or for each of as many nearly equal runs
            of indices as there are shares.
    """

    axis: int
    length: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class HeatMap:
    """The same over two axes: RMS difference of each cell over the largest such.

    Attributes:
        rows, columns: axes of the reference's layout.
        row_length, column_length: theirs; a cell may stand for several indices.
        cells: from 0 to 1, row by row.
    """

    rows: int
    columns: int
    row_length: int
    column_length: int
    cells: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Histogram:
    """Counts of finite numbers of both sides, in equal bins from ``low`` to ``high``.

    Attributes:
        unit: ``"value"``, or ``"log10"`` of what is counted (then zeros are in ``zeros``).
        sampled: how many elements were looked at; 0: all.
        zeros: of the reference and the candidate, where ``unit`` has no place for them.
    """

    low: float
    high: float
    reference: tuple[int, ...]
    candidate: tuple[int, ...]
    unit: Literal["value", "log10"] = "value"
    sampled: int = 0
    zeros: tuple[int, ...] = ()


@dataclass(frozen=True)
class Element:
    """One element of a tensor; ``oracle`` is None where the reference has no float64 run."""

    index: tuple[int, ...]
    reference: float
    candidate: float
    oracle: float | None = None


@dataclass(frozen=True)
class SiteDetail:
    """Where in a tensor the sides differ, and by how much (`crosscheck.details.stage`).

    Attributes:
        phase, kind, reference, candidate, step: of its `SiteResult`.
        where: sentences on what stands out.
        profiles: of every axis that is longer than 1.
        heat: over the two axes along which the difference is least even; None below two axes.
        values: of both sides.
        errors: |value - oracle| of both sides; None where they are all zero, or without an oracle.
        worst: the elements that differ most, worst first.
    """

    phase: Phase
    kind: str
    reference: str
    candidate: str
    step: int = 1
    where: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    heat: HeatMap | None = None
    values: Histogram | None = None
    errors: Histogram | None = None
    worst: tuple[Element, ...] = ()

    @property
    def key(self) -> SiteKey:
        """`SiteResult.key` of its site."""
        return self.phase, self.kind, self.reference, self.candidate, self.step


@dataclass(frozen=True)
class WeightPair:
    """Which parameters of the reference one of the candidate's is made of, and by which steps."""

    candidate: str
    reference: str
    steps: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Details:
    """What only a page has room for.

    Attributes:
        sites: those that do not agree, and the largest ratios; not all of them.
        weights: the map that was found, in the candidate's order.
        command: for a shell, makes the check again; empty where it was called from Python.
    """

    sites: tuple[SiteDetail, ...] = ()
    weights: tuple[WeightPair, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Report:
    """The result of one check. ``print(report)`` shows it; see also `save_json`, `save_html`."""

    verdict: Verdict
    seed: int
    reference: Side
    candidate: Side
    environment: Mapping[str, Any]
    coverage: Coverage
    divergences: tuple[Divergence, ...]
    sites: tuple[SiteResult, ...]
    notes: tuple[str, ...] = ()
    name: str = field(default="")
    probes: tuple[ProbeResult, ...] = ()
    details: Details = field(default=Details(), repr=False)

    @property
    def first_divergence(self) -> Divergence | None:
        """The first introduced divergence; a suspect only where nothing diverges."""
        certain = (d for d in self.divergences if d.verdict == "diverge")
        return next(certain, next(iter(self.divergences), None))

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``report.json`` (schema 1) atomically."""
        from crosscheck.report.json import dumps
        from crosscheck.report.write import write_atomically

        write_atomically(path, dumps(self) + "\n")

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write a self-contained HTML page atomically."""
        from crosscheck.report.html import render
        from crosscheck.report.write import write_atomically

        write_atomically(path, render(self))

    def with_command(self, command: str) -> Report:
        """The same report, with the ``command`` that makes the check again."""
        return replace(self, details=replace(self.details, command=command))

    def raise_if_diverged(self) -> None:
        """Raise `Diverged` (an AssertionError) unless the verdict is ``agree``."""
        if self.verdict != "agree":
            from crosscheck.errors import Diverged

            raise Diverged(str(self), self)

    def __str__(self) -> str:
        from crosscheck.report.terminal import to_text

        return to_text(self)
