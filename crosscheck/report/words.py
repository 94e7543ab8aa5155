"""Stage 10, report: the numbers, names and nouns that every rendering shares."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crosscheck.errors import capped
from crosscheck.results import PHASES, Divergence, Phase, Report, SiteResult

__all__ = ["Line", "Page", "Unit"]

PASS = {
    "weights": "weights",
    "forward": "forward pass",
    "loss": "loss",
    "backward": "backward pass",
    "parameter_gradient": "parameter gradients",
    "update": "updated parameters",
    "buffer": "buffers",
}
_NOUNS: dict[str, tuple[str, str]] = {
    "weights": ("weight", "weights"),
    "forward": ("activation", "activations"),
    "loss": ("loss", "losses"),
    "backward": ("cotangent", "cotangents"),
    "parameter_gradient": ("parameter gradient", "parameter gradients"),
    "update": ("updated parameter", "updated parameters"),
    "buffer": ("buffer", "buffers"),
}
_INPUT = ("layer input", "layer inputs")


@dataclass(frozen=True)
class Unit:
    """What a ratio is a multiple of, and above which ratio it is suspect or diverges."""

    name: str = "the rounding floor"
    short: str = "floor"
    suspect: float = 8.0
    diverge: float = 32.0

    @classmethod
    def of(cls, report: Report) -> Unit:
        """The noise floor, or the tolerance where the caller gave one (in the environment)."""
        if report.environment.get("tolerance") is None:
            return cls()
        return cls(name="the tolerance", short="tolerance", suspect=1.0, diverge=1.0)

    @property
    def marks(self) -> str:
        """What the marks under a bar mean."""
        if self.suspect == self.diverge:
            return f"! above {self.diverge:g}: diverges"
        return f"? above {self.suspect:g}: suspect   ! above {self.diverge:g}: diverges"


@dataclass(frozen=True)
class Line:
    """One paragraph.

    Attributes:
        indent: spaces in front of it.
        tone: a verdict, ``"cause"``, ``"title"``, ``"dim"`` or nothing.
        tight: kept on one line, cut where it is too long.
    """

    indent: int
    text: str
    tone: str = ""
    tight: bool = False


@dataclass(frozen=True)
class Page:
    """What is written on: its width in characters, and whether it takes ASCII only."""

    width: int = 100
    ascii: bool = False
    unit: Unit = field(default_factory=Unit)

    def clean(self, text: str) -> str:
        """``text`` without anything that could move the cursor, colour or reorder the page."""
        shown = "".join(c if c.isprintable() else _escaped(c) for c in text)
        return _escaped(shown) if self.ascii else shown

    def prose(self, text: str) -> str:
        """``text`` on one line, made safe."""
        return self.clean(" ".join(text.split()))

    def short(self, name: str, width: int) -> str:
        """``name``, cut in its middle to ``width`` characters: both ends of a path tell."""
        name = self.clean(name)
        dots = ".." if self.ascii else "…"
        if len(name) <= width:
            return name
        keep = max(width - len(dots), 2)
        return name[: keep // 2] + dots + name[len(name) - (keep + 1) // 2 :]

    def wrap(self, text: str, indent: int = 0) -> list[str]:
        """The rows of a paragraph; all but the first are indented by two more."""
        return textwrap.wrap(
            text,
            self.width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 2),
            break_on_hyphens=False,
        )

    def start(self, text: str, width: int) -> str:
        """``text``, cut at its end to ``width`` characters."""
        dots = ".." if self.ascii else "…"
        return text if len(text) <= width else text[: max(width - len(dots), 0)] + dots

    def name(self, name: str, limit: int | None = None) -> str:
        """``name`` in backquotes, for a sentence."""
        limit = max(self.width - 30, 24) if limit is None else limit
        return "`" + self.short(name.replace("`", "'"), limit) + "`"

    def names(self, names: Iterable[str], limit: int = 5) -> str:
        """`crosscheck.errors.capped`, made safe."""
        width = max(self.width - 30, 24)
        return capped([self.short(n.replace("`", "'"), width) for n in names], limit)


def _escaped(text: str) -> str:
    escaped = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped)


def magnitude(ratio: float) -> float:
    """``ratio`` for ordering; one that is not a number is worse than any."""
    return math.inf if math.isnan(ratio) else ratio


def ratio_text(ratio: float) -> str:
    """``0``, ``0.42``, ``1.3``, ``3168``, ``1.2e+07``, ``inf``: what fits eight characters."""
    if math.isnan(ratio) or math.isinf(ratio):
        return str(ratio)
    if ratio == 0 or ratio >= 9.95:
        return f"{ratio:.0f}" if ratio < 99999.5 else f"{ratio:.1e}"
    if ratio >= 0.995:
        return f"{ratio:.1f}"
    return f"{ratio:.2g}" if ratio >= 0.01 else "<0.01"


def error_text(error: float) -> str:
    """A relative error or a floor, to two digits."""
    return "0" if error == 0 else f"{error:.1e}"


def values_text(reference: float, candidate: float) -> tuple[str, str]:
    """Both values with as many digits as it takes to tell them apart, at least four."""
    shown = ("", "")
    for digits in range(4, 18):
        shown = (f"{reference:.{digits}g}", f"{candidate:.{digits}g}")
        if shown[0] != shown[1] or reference == candidate:
            break
    return shown


def counted(n: int, one: str, many: str) -> str:
    """``1 loss``, ``3 losses``."""
    return f"{n} {one if n == 1 else many}"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def noun(result: SiteResult) -> tuple[str, str]:
    """What ``result`` compares, in the singular and the plural."""
    if result.kind == "input":
        return _INPUT
    return _NOUNS[result.phase]


def described(result: SiteResult, page: Page) -> str:
    """What ``result`` compares, for a sentence: ``the VJP of `norm```."""
    name = page.name(result.reference or result.candidate)
    return _described(result.phase, result.kind, name) + _in_step(result)


def blamed(
    divergence: Divergence, page: Page, limit: int | None = None, row: SiteResult | None = None
) -> str:
    """What to blame, for a sentence: a layer or parameter, or what arrives at one.

    Args:
        row: where the divergence was seen (`row_of`).
    """
    if is_between(divergence, row):
        return f"the cotangent of {page.name(divergence.site, limit)}"
    name = page.name(divergence.reference or divergence.candidate or divergence.site, limit)
    kind = "input_cotangent" if divergence.phase == "backward" else ""
    return _described(divergence.phase, kind, name) + _in_step(divergence)


def is_between(divergence: Divergence, row: SiteResult | None) -> bool:
    """Whether what arrives at a layer on the way back is wrong by the code between the layers: the
    model's own (``output``), or that of a container of the layer."""
    if row is None or row.kind != "cotangent" or divergence.phase != "backward":
        return False
    scope = (divergence.reference or divergence.candidate or "output").partition("#")[0]
    return scope == "output" or divergence.site.startswith((f"{scope}.", f"{scope}/"))


def _in_step(found: SiteResult | Divergence) -> str:
    if found.step == 1:
        return ""
    return f" {found.step}" if found.phase == "update" else f" in step {found.step}"


def _described(phase: Phase, kind: str, name: str) -> str:
    if kind == "input":
        return f"the input of {name}"
    if kind == "input_cotangent":
        return f"the VJP of {name}"
    words = {
        "forward": name,
        "loss": "the loss",
        "weights": f"the weight {name}",
        "backward": f"the cotangent of {name}",
        "parameter_gradient": f"the gradient of {name}",
        "update": f"{name} after the optimizer step",
        "buffer": f"the buffer {name}",
    }
    return words[phase]


def label(result: SiteResult) -> tuple[str, str]:
    """For a table: what is in front of the name, and ``reference -> candidate`` or one name."""
    before = {"input": "into ", "input_cotangent": "VJP of "}.get(result.kind, "")
    if result.step > 1:
        before = f"step {result.step}: {before}"
    if result.reference == result.candidate:
        return before, result.reference
    return before, f"{result.reference} -> {result.candidate}"


def short_place(result: SiteResult, page: Page, width: int) -> str:
    """`label` by the reference's name alone."""
    before = label(result)[0]
    return before + page.short(result.reference, max(width - len(before), 3))


def short_label(result: SiteResult, page: Page, width: int) -> str:
    """`label` in ``width`` characters; of two names, both keep their ends."""
    before, both = label(result)
    both, room = page.clean(both), max(width - len(before), 8)
    if len(both) <= room or result.reference == result.candidate:
        return before + page.short(both, room)
    reference, candidate = page.clean(result.reference), page.clean(result.candidate)
    room -= 4
    left = max(room // 2, room - len(candidate))
    right = max(room - left, room - min(left, len(reference)))
    return f"{before}{page.short(reference, left)} -> {page.short(candidate, right)}"


def verdict_text(result: SiteResult, unit: Unit) -> str:
    """``introduced``, ``suspect``, ``inherited`` (an error seen in the free run only) or ``ok``."""
    if result.verdict == "diverge":
        return "introduced"
    if result.verdict == "suspect":
        return "suspect"
    if result.free_ratio is not None and magnitude(result.free_ratio) > unit.diverge:
        return "inherited"
    return "ok"


def shapes(result: SiteResult) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both shapes; a candidate's that was not recorded is the reference's."""
    recorded = bool(result.candidate_dtype) or bool(result.candidate_shape)
    return result.shape, result.candidate_shape if recorded else result.shape


def why_infinite(result: SiteResult) -> str:
    """Why a ratio has no finite value, in one clause."""
    reference, candidate = shapes(result)
    metrics = result.metrics
    if metrics is None:
        if reference != candidate:
            return f"shapes differ: {reference} / {candidate}"
        return "the values could not be subtracted"
    if metrics.nonfinite_mismatch:
        return (
            f"NaN or Inf in other places: {metrics.nonfinite_mismatch} of "
            f"{counted(metrics.nonfinite, 'non-finite element', 'non-finite elements')} differ"
        )
    return "a difference where none is allowed (the floor is 0)"


def row_of(report: Report, divergence: Divergence) -> SiteResult | None:
    """The comparison that ``divergence`` was seen in, None where it is not in the report."""
    return row_among(report.sites, divergence)


def row_among(sites: Sequence[SiteResult], divergence: Divergence) -> SiteResult | None:
    """`row_of` some comparisons."""
    rows = [
        s
        for s in sites
        if (s.phase, s.step) == (divergence.phase, divergence.step)
        and divergence.site in (s.reference, s.candidate)
    ]
    return max(
        rows,
        key=lambda s: (
            s.verdict == divergence.verdict,
            s.ratio == divergence.ratio,
            s.reference == divergence.site,
        ),
        default=None,
    )


def by_phase(sites: Sequence[SiteResult]) -> dict[Phase, list[SiteResult]]:
    """The sites of each phase that has any, in the order of the phases and then as given."""
    groups = {phase: [s for s in sites if s.phase == phase] for phase in PHASES}
    return {phase: rows for phase, rows in groups.items() if rows}


def tally(sites: Iterable[SiteResult]) -> list[str]:
    """``["31 activations", "58 cotangents"]``."""
    counts: dict[tuple[str, str], int] = {}
    for result in sites:
        counts[noun(result)] = counts.get(noun(result), 0) + 1
    return [counted(n, *words) for words, n in counts.items()]
