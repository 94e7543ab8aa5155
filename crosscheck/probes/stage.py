"""The checks that `crosscheck.check` makes of two sides: on the given inputs, and on the probes.

Weights are matched and copied once; every further check takes over that match. One report comes of
it: the worst verdict, the sites where they were worst, and what each probe said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.candidate_inputs import inputs_of_candidate
from crosscheck.devices import place
from crosscheck.errors import CannotCompare, CannotSplit, InvalidArgument, SideFailed, capped
from crosscheck.explain.fresh import fresh_inputs
from crosscheck.exported import keeping_own
from crosscheck.inputs import make_inputs
from crosscheck.pipeline import calls_of, match_in_order, transfer, verify_weights
from crosscheck.probes.blind import blind_spots, common, lines
from crosscheck.probes.inputs import BUILT_IN, NotApplicable, given_of, odd
from crosscheck.probes.merge import merged
from crosscheck.probes.randomise import moved, restored, with_values
from crosscheck.probes.rounding import without_rounding
from crosscheck.request import Request
from crosscheck.results import ProbeResult, Report
from crosscheck.run import Runner
from crosscheck.single import Outcome, run_as_it_can, run_once
from crosscheck.trial import by_running
from crosscheck.weights import Match

__all__ = ["Probes", "check_all", "planned"]

Sides = tuple[Adapter, Adapter]
RANDOMISED = "weights randomised (seed {}) on both sides for this check, and put back afterwards"


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What `crosscheck.check` is asked beyond one check; validated.

    Attributes:
        chosen: {name: the user's inputs, or None for a built-in probe}.
        seeds: how many seeds, the given one first.
        randomise: run with other weights, put back afterwards.
        blind_spots: look for what an agreement could not have shown.

    Raises:
        InvalidArgument: on construction, an unknown probe or a number of seeds below one.
    """

    chosen: Mapping[str, Any]
    seeds: int = 1
    randomise: bool = False
    blind_spots: bool = True

    @classmethod
    def of(cls, probes: Any, **options: Any) -> Probes:
        """From what the caller wrote: ``"all"``, a name, names, or {name: inputs or None}."""
        if probes is None:
            chosen: dict[str, Any] = {}
        elif isinstance(probes, str):
            chosen = dict.fromkeys(BUILT_IN if probes == "all" else [probes])
        elif isinstance(probes, Mapping):
            chosen = dict(probes)
        elif isinstance(probes, Sequence):
            chosen = dict.fromkeys(probes)
            if "all" in chosen:
                chosen = dict.fromkeys(BUILT_IN)
        else:
            raise InvalidArgument(
                f'probes={probes!r}: must be "all", a list of names or {{name: inputs}}; built in '
                f"are {capped(BUILT_IN, 10)}"
            )
        return cls(chosen=chosen, **options)

    def __post_init__(self) -> None:
        unknown = [n for n, given in self.chosen.items() if given is None and n not in BUILT_IN]
        if unknown:
            raise InvalidArgument(
                f"probes: there is no {capped(unknown)}; built in are {capped(BUILT_IN, 10)}.\n"
                "  Inputs of your own: probes={name: inputs}"
            )
        seeds = self.seeds
        if isinstance(seeds, bool) or not isinstance(seeds, (int, np.integer)) or seeds < 1:
            raise InvalidArgument(f"seeds={seeds!r}: must be an integer ≥ 1")
        for name in ("randomise", "blind_spots"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: must be True or False")

    @property
    def several(self) -> bool:
        """Whether more than one check is asked for."""
        return bool(self.chosen) or self.seeds > 1


def check_all(sides: Sides, inputs: Any, request: Request, probes: Probes) -> Report:
    """Check two sides on ``inputs`` (or a function seed -> inputs) and on every probe.

    Raises:
        InvalidArgument, CannotCompare, DeviceUnavailable, MissingFramework, SideFailed: of the
            check on the given inputs. What stops a probe stands in the report.
    """
    _require_models(sides, request, probes)
    raw = inputs(request.seed) if callable(inputs) else inputs
    if not probes.randomise:
        base, request = run_as_it_can(sides, raw, request)
        return _checked(sides, raw, inputs, request, probes, base)
    if request.weights == "copy" and not match_in_order(*sides, ((), ()), given={}).complete:
        request = keeping_own(sides, request)
    with restored(*sides) as (ours, theirs):
        match = _randomise(sides, raw, request)
        base = run_once(sides, raw, request, match=match)
        if match is None and base.evidence is not None:
            # What the candidate is put back to: what a copy would have left in it.
            theirs |= with_values(base.evidence.match, ours).values()
        report = _checked(sides, raw, inputs, request, probes, base)
    return replace(report, notes=(RANDOMISED.format(request.seed), *report.notes))


def _require_models(sides: Sides, request: Request, probes: Probes) -> None:
    if not probes.several and not probes.randomise:
        return
    if request.part is not None:
        several = "a check with probes=, seeds= or randomise="
        raise CannotSplit(request.part, several, fix="leave one out")
    what = "probes= and seeds=" if probes.several else "randomise=True"
    if any(isinstance(side, TraceAdapter) for side in sides):
        raise InvalidArgument(
            f"{what}: a recorded run has one set of inputs and weights.\n"
            "  Fix: give both models, or leave it out"
        )
    if probes.several and isinstance(request.candidate_inputs, Mapping):
        raise InvalidArgument(
            f"{what} change the inputs, but candidate_inputs= is one set of arrays.\n"
            "  Fix: a function from the reference's inputs to the candidate's"
        )


def _checked(
    sides: Sides, raw: Any, inputs: Any, request: Request, probes: Probes, base: Outcome
) -> Report:
    """The report of ``base`` and of every probe that follows it."""
    if base.evidence is None:
        return base.report
    run = _Run(sides, request, base, probes)
    results = [run.probe(*one) for one in planned(raw, inputs, request, probes, base)]
    report = merged(base.report, results)
    if report.verdict == "agree" and run.blind:
        report = replace(report, coverage=replace(report.coverage, blind_spots=lines(run.blind)))
    return report


# -- which runs ------------------------------------------------------------------------------------

Make = Callable[[], Mapping[str, np.ndarray]]


def planned(
    raw: Any, inputs: Any, request: Request, probes: Probes, base: Outcome
) -> Iterator[tuple[str, str, Make, int]]:
    """(name, what it feeds, how its inputs are made, seed) of every further check."""
    assert base.evidence is not None
    reference = base.evidence.reference
    for seed in range(request.seed + 1, request.seed + probes.seeds):
        again = inputs(seed) if callable(inputs) else raw
        make: Make = functools.partial(_reseeded, again, reference.inputs, seed)
        yield f"seed {seed}", "inputs and cotangents of another seed", make, seed
    given = given_of(raw, reference.inputs)
    for name, own in probes.chosen.items():
        if own is not None:
            make = functools.partial(make_inputs, own, seed=request.seed)
            yield name, "given", make, request.seed
            continue
        what, change = BUILT_IN[name]
        if change is None:
            refusal = functools.partial(_refusal, reference)
            make = functools.partial(odd, given, seed=request.seed, refusal=refusal)
        else:
            make = functools.partial(change, given)
        yield name, what, make, request.seed


def _reseeded(raw: Any, before: Mapping[str, np.ndarray], seed: int) -> Mapping[str, np.ndarray]:
    """Drawn again; arrays that the caller gave in another order and somewhat smaller."""
    made = make_inputs(raw, seed=seed)
    if all(np.array_equal(made[name], value) for name, value in before.items()):
        return fresh_inputs(made, seed=seed) or made
    return made


def _refusal(reference: Runner, inputs: Mapping[str, np.ndarray]) -> str:
    """Why the reference does not take these inputs; empty where it does."""
    try:
        replace(reference, inputs=inputs, cotangents=None).run(
            lambda site, kind, value: None, passive=True
        )
    except SideFailed as failure:
        return _reason(failure)
    return ""


def _reason(failure: SideFailed) -> str:
    cause = failure.__cause__
    text = str(cause).strip().splitlines()
    where = f" at `{failure.site}`" if failure.site else ""
    return f"{type(cause).__name__}{where}: {text[0] if text else 'no message'}"


# -- one run ---------------------------------------------------------------------------------------


class _Run:
    """The further checks of one pair, and what all of them were blind to."""

    def __init__(self, sides: Sides, request: Request, base: Outcome, probes: Probes) -> None:
        assert base.evidence is not None
        self._sides, self._request = sides, request
        self._match, self._base = base.evidence.match, base.report
        thorough = base.report.environment.get("effort") != "quick"  # else it has not been forced
        once = request.part is None or request.part[0] == 1  # they are of the whole check
        self._look = probes.blind_spots and once and thorough and base.report.verdict == "agree"
        self.blind: dict[str, str] = self._blind_in(base) if self._look else {}

    def probe(
        self, name: str, what: str, make: Make, seed: int
    ) -> tuple[ProbeResult, Report | None]:
        """What a probe says, and its own report; none where it did not run to the end."""

        def say(line: str) -> None:
            self._request.say(f"probe {name}: {line}")

        try:
            # The optimizer has been judged; another batch may not even divide as it needs.
            request = replace(self._request, seed=seed, say=say, optimizer=None, steps=1)
            outcome = run_once(self._sides, make(), request, match=self._match)
        except NotApplicable as nothing:
            return ProbeResult(name, "not run", what=what, reason=str(nothing)), None
        except SideFailed as failure:
            candidate = failure.side == "candidate"
            reason = _reason(failure) if candidate else f"the reference refuses: {_reason(failure)}"
            verdict: Any = "failed" if candidate else "not run"
            return ProbeResult(name, verdict, what=what, reason=reason), None
        except (CannotCompare, InvalidArgument) as error:
            text = str(error).splitlines()[0]
            return ProbeResult(name, "not run", what=what, reason=text), None
        if self.blind:
            self.blind = common(self.blind, self._blind_in(outcome))
        report = without_rounding(outcome, self._base)
        return ProbeResult(name, report.verdict, report.first_divergence, what), report

    def _blind_in(self, outcome: Outcome) -> dict[str, str]:
        assert outcome.evidence is not None
        self._request.say("blind spots: alter the reference where nothing vouches for it")
        return blind_spots(outcome.evidence)


# -- other weights ---------------------------------------------------------------------------------


def _randomise(sides: Sides, raw: Any, request: Request) -> Match | None:
    """Move the reference's parameters; with ``weights="keep"`` both sides', through the match,
    which is given. What does not agree before stays as it is: it shall be seen."""
    reference, candidate = sides
    place(sides, request.device)
    other = moved(reference.parameters(), seed=request.seed)
    if request.weights != "keep":
        reference.load(other)
        return None
    match = _held(sides, raw, request)
    results = verify_weights(match, candidate)
    equal = [m for m, r in zip(match.pairs, results, strict=True) if r.verdict == "agree"]
    unequal = {p.name for m in match.pairs if m not in equal for p in (*m.references, *m.tied)}
    matched = {p.name for m in equal for p in (*m.references, *m.tied)} - unequal - match.partial
    matched -= _one_for_several(match)
    chosen = {name: value for name, value in other.items() if name in matched}
    reference.load(chosen)
    match = with_values(match, chosen)
    theirs = {m.candidate.name for m in equal}
    candidate.load({name: v for name, v in match.values().items() if name in theirs})
    return match


def _one_for_several(match: Match) -> set[str]:
    """The reference's parameters that hold what one without a counterpart holds, too: exporters
    write equal arrays once, so what is matched may be the array of both."""
    others = match.unmatched_reference
    return {
        p.name
        for m in match.pairs
        for p in (*m.references, *m.tied)
        if any(p.value.shape == o.value.shape and np.array_equal(p.value, o.value) for o in others)
    }


def _held(sides: Sides, raw: Any, request: Request) -> Match:
    """The match of two sides that hold the same values."""
    inputs = make_inputs(raw, seed=request.seed)
    theirs, _ = inputs_of_candidate(request.candidate_inputs, inputs, request.seed, sides[1])
    first = Runner("reference", sides[0], inputs, None, request.train, request.seed)
    second = Runner("candidate", sides[1], theirs, None, request.train, request.seed)
    trial = by_running(second, first.record(passive=True), request.sites, request.skip)
    return transfer(*sides, "keep", trial, (calls_of(first), calls_of(second)))
