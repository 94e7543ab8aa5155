"""`shrink`: the smallest inputs and depth at which a pair diverges in the same place, and a script.

Sizes first, then blocks; then the layer to blame is cut out with what it was given, and a script is
written that makes this layer on both sides with plain framework code. The script is run before it
is handed over: it shows the difference, or it is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.errors import CannotCompare, InvalidArgument, SideFailed
from crosscheck.inputs import make_inputs
from crosscheck.judging.evidence import Evidence
from crosscheck.probes.inputs import NotApplicable
from crosscheck.probes.stage import Probes, planned
from crosscheck.request import Request
from crosscheck.results import Divergence, Report
from crosscheck.shrink.cut import Cut, cut_out
from crosscheck.shrink.depth import BlockList, block_lists, choices, only, renamed
from crosscheck.shrink.layers import Build, CannotBuild, build
from crosscheck.shrink.script import relative, run_script, write_script
from crosscheck.shrink.sizes import MOST_CHECKS, smaller
from crosscheck.single import Outcome, run_as_it_can, run_once

__all__ = ["Shrunk", "shrink"]

NEAR = (
    2.0  # factor between the captured difference and the script's, which may sum in another order
)
Place = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Shrunk:
    """What `shrink` made of a divergence. ``print(shrunk)`` shows it.

    Attributes:
        report: the check of the smallest pair.
        inputs: its inputs.
        steps: what was made smaller, one line each.
        limits: what was not, and why.
        script: the file; None where none shows the difference.
        difference: the relative difference that running the script printed.
    """

    report: Report
    inputs: Mapping[str, np.ndarray]
    steps: tuple[str, ...]
    limits: tuple[str, ...]
    script: Path | None
    difference: float | None

    def __str__(self) -> str:
        lines = ["shrunk:", *(f"  {step}" for step in self.steps or ("nothing",))]
        if self.limits:
            lines += ["not shrunk:", *(f"  {limit}" for limit in self.limits)]
        if self.script is not None:
            lines.append(f"script: {self.script} (run: relative difference {self.difference:.3g})")
        return "\n".join(lines)


def shrink(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    directory: str | Path = ".",
    probe: str | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Shrunk:
    """Make a divergence as small as it gets, and write a script that shows it.

    Args:
        reference: as for `crosscheck.check`, as are the next two. Both models are left as found,
            except for the parameters copied into the candidate.
        candidate: the other side.
        inputs: what both are fed.
        directory: where ``reproduce.py`` (and ``reproduce.npz``, if the arrays are many) go.
        probe: start from the inputs of this built-in probe instead (``"small"``, ``"odd"``, ...).
        options: those of `crosscheck.check` that say how the two are compared.

    Raises:
        InvalidArgument: the pair agrees, a side is a recorded run, or an option that `shrink` does
            not take. And whatever `crosscheck.check` raises.
    """
    request = _request(options, progress)
    sides = adapt(reference), adapt(candidate)
    if any(isinstance(side, TraceAdapter) for side in sides):
        raise InvalidArgument("shrink: a recorded run cannot be run on smaller inputs; give models")
    raw = inputs(request.seed) if callable(inputs) else inputs
    whole, request = run_as_it_can(sides, raw, request)
    if probe is not None:
        whole = _probed(sides, raw, request, probe, whole)
    if whole.report.first_divergence is None:
        raise InvalidArgument(
            f"shrink: the verdict is {whole.report.verdict}; there is no divergence to shrink"
        )
    with ExitStack() as stack:
        work = _Work(sides, request, whole)
        work.sizes()
        work.depth(stack)
        script, difference = work.script(Path(directory))
        return Shrunk(
            work.outcome.report,
            work.inputs,
            tuple(work.steps),
            tuple(work.limits),
            script,
            difference,
        )


def _probed(
    sides: tuple[Adapter, Adapter], raw: Any, request: Request, probe: str, base: Outcome
) -> Outcome:
    """The check on the inputs of a built-in probe."""
    assert base.evidence is not None
    ((_, _, make, _),) = planned(raw, raw, request, Probes.of(probe), base)
    try:
        inputs = make()
    except NotApplicable as why:
        raise InvalidArgument(f"shrink: probe={probe!r}: {why}") from why
    return run_once(sides, inputs, request, match=base.evidence.match)


def _request(options: Mapping[str, Any], progress: Callable[[str], None] | None) -> Request:
    known = set(Request.__dataclass_fields__) - {"say"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InvalidArgument(f"shrink does not take {unknown}; it takes {sorted(known)}")
    given = {name: value for name, value in options.items() if value is not None}
    return Request(**given, say=progress or (lambda line: None))


class _Work:
    """The smallest pair so far."""

    def __init__(self, sides: tuple[Adapter, Adapter], request: Request, whole: Outcome) -> None:
        assert whole.evidence is not None
        self.sides = sides
        self.request = replace(request, explain=False, zoom=False)
        self.outcome = whole
        self.causes = [c.statement for c in self.first.causes if c.verified]
        self.inputs: dict[str, np.ndarray] = dict(whole.evidence.reference.inputs)
        self.steps: list[str] = []
        self.limits: list[str] = []

    @property
    def first(self) -> Divergence:
        found = self.outcome.report.first_divergence
        assert found is not None
        return found

    @property
    def evidence(self) -> Evidence:
        assert self.outcome.evidence is not None
        return self.outcome.evidence

    def _try(self, inputs: Any, place: Place, *, again: bool = False) -> Outcome | None:
        """The check on ``inputs`` if it diverges at ``place``, else None.

        Args:
            again: match (and copy) the parameters again, since the models have changed.
        """
        match = None if again else self.evidence.match
        quiet = replace(self.request, say=lambda line: None)
        try:
            outcome = run_once(self.sides, inputs, quiet, match=match)
        except (SideFailed, CannotCompare, InvalidArgument):
            return None
        found = outcome.report.first_divergence
        same = found is not None and found.verdict == self.first.verdict
        return outcome if same and found is not None and _place(found) == place else None

    # -- smaller inputs --------------------------------------------------------------------------

    def sizes(self) -> None:
        """Cut the inputs down."""
        if isinstance(self.request.candidate_inputs, Mapping):
            self.limits.append("sizes: the candidate has arrays of its own for inputs")
            return
        self.request.say("shrink: batch, sequence and spatial sizes")
        place, best = _place(self.first), self.outcome

        def still(trial: dict[str, np.ndarray]) -> bool:
            nonlocal best
            outcome = self._try(trial, place)
            best = outcome or best
            return outcome is not None

        made, ended = smaller(make_inputs(self.inputs, seed=self.request.seed), still)
        for name, value in made.items():
            before = self.inputs[name].shape
            if value.shape != before:
                self.steps.append(f"input `{name}`: {list(before)} -> {list(value.shape)}")
            elif value.size > 1:
                self.limits.append(f"input `{name}`: {list(before)} is as small as it goes")
        if ended:
            self.limits.append(f"sizes: the search ended after {MOST_CHECKS} checks")
        self.inputs, self.outcome = made, best

    # -- fewer blocks ----------------------------------------------------------------------------

    def depth(self, stack: ExitStack) -> None:
        """Take blocks out of the lists that both sides have; ``stack`` puts them back."""
        models = [getattr(side, "model", None) for side in self.sides]
        if any(side.framework not in ("torch", "numpy") for side in self.sides):
            self.limits.append(
                "depth: blocks are taken out of PyTorch modules and nets by hand only"
            )
            return
        pairs = _like_lists(*(block_lists(model) for model in models))
        if not pairs:
            self.limits.append("depth: the two sides have no list of like blocks in common")
        for ours, theirs in pairs:
            self.request.say(f"shrink: fewer blocks in {ours.path}")
            self._fewer(ours, theirs, models, stack)

    def _fewer(
        self, ours: BlockList, theirs: BlockList, models: list[Any], stack: ExitStack
    ) -> None:
        count = len(ours.blocks)
        for kept in choices(count, ours.index_of(self.first.reference)):
            with ExitStack() as these:
                before, place = self.sides, self._renamed(ours, theirs, kept)
                these.callback(setattr, self, "sides", before)
                these.enter_context(only([ours, theirs], kept))
                self.sides = adapt(models[0]), adapt(models[1])
                outcome = self._try(self.inputs, place, again=True)
                if outcome is not None:
                    self.outcome = outcome
                    self.steps.append(f"`{ours.path}`: {count} blocks -> {len(kept)}")
                    stack.push(these.pop_all())
                    return
        self.limits.append(f"`{ours.path}`: it takes all {count} blocks")

    def _renamed(self, ours: BlockList, theirs: BlockList, kept: list[int]) -> Place:
        phase, reference, candidate = _place(self.first)
        return phase, renamed(reference, ours, kept), renamed(candidate, theirs, kept)

    # -- the layer alone -------------------------------------------------------------------------

    def script(self, directory: Path) -> tuple[Path | None, float | None]:
        """Write and run the script; None where there is none to be had, `limits` says why."""
        cut = cut_out(self.evidence, self.first)
        if isinstance(cut, str):
            self.limits.append(f"script: {cut}")
            return None, None
        self.request.say("shrink: a script with the layer alone")
        file = directory / "reproduce.py"
        wanted = relative(*cut.compared())
        for reference, candidate in self._builds(cut):
            try:
                write_script(file, cut, reference, candidate, self._title(cut, wanted))
            except OSError as error:  # what was found so far stands all the same
                self.limits.append(f"script: cannot write {file}: {error.strerror or error}")
                return None, None
            shown = run_script(file)
            if isinstance(shown, float) and wanted / NEAR <= shown <= wanted * NEAR:
                if candidate is not None:
                    self.steps.append(f"the layer alone: `{cut.reference.layer}`")
                return file, shown
            self.limits.append(
                f"script: it shows {shown} instead of {wanted:.3g}"
                if isinstance(shown, float)
                else f"script: it fails: {shown}"
            )
        for path in (file, file.with_suffix(".npz")):
            path.unlink(missing_ok=True)
        return None, None

    def _builds(self, cut: Cut) -> Iterator[tuple[Build, Build | None]]:
        """Both layers made again; then the reference's beside what the candidate gave."""
        train = self.request.train
        try:
            ours = build(self.sides[0], cut.reference.layer, "reference", train=train)
        except CannotBuild as why:
            self.limits.append(f"script: the reference's layer cannot be made again: {why}")
            return
        try:
            yield ours, build(self.sides[1], cut.candidate.layer, "candidate", train=train)
        except CannotBuild as why:
            self.limits.append(
                f"script: the candidate's layer cannot be made again ({why}): the script compares "
                "with the value that it gave"
            )
        yield ours, None

    def _title(self, cut: Cut, wanted: float) -> str:
        ours, theirs = self.sides
        return (
            f"{ours.framework} {ours.version}: `{cut.reference.layer}` against "
            f"{theirs.framework} {theirs.version}: `{cut.candidate.layer}`.\n\n"
            f"{cut.phase}: relative difference {wanted:.3e} (seed {self.request.seed}).\n"
            + "".join(f"Cause, confirmed by reproducing it: {cause}.\n" for cause in self.causes)
        )


def _place(d: Divergence) -> Place:
    return d.phase, d.reference, d.candidate


def _like_lists(
    ours: list[BlockList], theirs: list[BlockList]
) -> list[tuple[BlockList, BlockList]]:
    """Lists of the same length, in order."""
    found, rest = [], list(theirs)
    for one in ours:
        twin = next((t for t in rest if len(t.blocks) == len(one.blocks)), None)
        if twin is not None:
            rest.remove(twin)
            found.append((one, twin))
    return found
