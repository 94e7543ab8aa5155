"""Hypotheses on the optimizer step: which mistake in the optimizer gives the candidate's change?

Each is the reference's rule with one thing changed, replayed in float64 on everything that the
optimizers were given since the first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.compare import compare
from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.numbers import slope, tidy
from crosscheck.explain.registry import register
from crosscheck.judging.noise import Floor, unit_roundoff
from crosscheck.optimizers.rules import Adagrad, Adam, RmsProp, Rule, Sgd
from crosscheck.optimizers.schedules import Constant, Schedule
from crosscheck.training.updates import (
    UNIT,
    Conditioning,
    Given,
    Past,
    Stepped,
    floor_of,
    ratio_of,
    replay,
)
from crosscheck.weights import Matched

__all__ = ["UpdateEvidence"]

EPS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-10, 1e-12, 1e-16, 0.0)
BETAS = ((0.9, 0.999), (0.9, 0.99), (0.9, 0.98), (0.9, 0.95), (0.5, 0.999), (0.0, 0.999))
SHARES = (0.9, 0.99, 0.95, 0.999, 0.5, 0.1, 0.0)
Named = tuple[str, str, Rule]


@dataclass(frozen=True, kw_only=True)
class UpdateEvidence(Evidence):
    """A parameter's change Δ in one step; ``reference`` and ``candidate`` are Δ.

    Attributes:
        rule: what the reference's optimizer computes; None where nobody knows.
        exempt: reference parameters that do not decay.
        past: everything that the optimizers were given.
        eta: the floor of every element; ``known``: how constants may be rounded in float64.
    """

    rule: Rule | None
    exempt: frozenset[str]
    past: Past
    eta: np.ndarray
    known: Conditioning | None

    @classmethod
    def of(
        cls,
        parameter: Parameter,
        held: Sequence[Matched],
        s: Stepped,
        rule: Rule | None,
        exempt: frozenset[str],
        past: Past,
    ) -> UpdateEvidence:
        """From one step."""
        is_wide, known = s.wide is not None, None
        unit = unit_roundoff(parameter.value.dtype, *(m.candidate.value.dtype for m in held))
        eta = floor_of(s.before, s.truth, unit, wide=is_wide)
        if rule is not None:
            known = Conditioning.of(rule, exempt, parameter.name, past)
            eta = np.maximum(eta, known.values if is_wide else known.everything)
        return cls(
            phase="update",
            kind="parameter",
            reference=s.truth,
            candidate=s.candidate if s.wide is None else s.wide,
            floor=Floor(unit=UNIT),
            own=compare(s.truth, s.truth),
            parameter=parameter,
            before=s.before,
            rule=rule,
            exempt=exempt,
            past=past,
            eta=eta,
            known=known if is_wide else None,
        )

    def ratio(self, prediction: np.ndarray, value: np.ndarray | None = None) -> float:
        value = self.candidate if value is None else value
        if prediction.shape != value.shape:
            return math.inf
        if self.known is not None:
            return self.known.ratio(value, prediction, self.eta)
        return ratio_of(value, prediction, self.eta)

    @property
    def name(self) -> str:
        """Of the parameter."""
        assert self.parameter is not None
        return self.parameter.name

    def by(
        self, rule: Rule, exempt: frozenset[str] | None = None, side: str = "reference"
    ) -> np.ndarray:
        """Δ by another rule."""
        spared = self.exempt if exempt is None else exempt
        return replay(rule, spared, self.name, self.past, side=side)


@register("update")
def not_updated(e: Evidence) -> Iterator[Proposal]:
    """The parameter stays where it is, or is moved more than once or the wrong way."""
    if not np.any(e.candidate):
        yield Proposal(
            "not_updated",
            "the optimizer does not move this parameter",
            lambda e: np.zeros(e.reference.shape),
        )
        return
    for times, text in (
        (2.0, "the update is applied twice"),
        (-1.0, "the update has the wrong sign: the gradient is ascended"),
    ):
        yield Proposal("repeated", text, lambda e, k=times: k * e.reference)
    k = slope(e.candidate, e.reference)
    if math.isfinite(k) and k not in (0.0, 1.0):
        k, text = tidy(k, lambda k: e.fits_candidate(k * e.reference))
        yield Proposal(
            "learning_rate",
            f"the update is {text} times the reference's: another learning rate",
            lambda e: k * e.reference,
            constants=1,
        )


@register("update")
def another_rule(e: Evidence) -> Iterator[Proposal]:
    """The rule with one thing changed."""
    if not isinstance(e, UpdateEvidence) or e.rule is None or not e.fits_reference(e.by(e.rule)):
        return
    for name, text, rule in _variants(e.rule):
        yield Proposal(name, text, lambda e, rule=rule: e.by(rule))


@register("update")
def another_exclusion(e: Evidence) -> Iterator[Proposal]:
    """Weight decay where there should be none, or none where it should be."""
    if not isinstance(e, UpdateEvidence) or e.rule is None or not e.rule.weight_decay:
        return
    if e.name in e.exempt:
        yield Proposal(
            "decay_excluded",
            "weight decay acts on this parameter, which is on the exclusion list",
            lambda e: e.by(e.rule, frozenset()),
        )
    else:
        yield Proposal(
            "no_decay",
            "weight decay does not act on this parameter",
            lambda e: e.by(e.rule, frozenset([e.name])),
        )


@register("update")
def another_gradient(e: Evidence) -> Iterator[Proposal]:
    """Gradients that are averaged otherwise, or not put back to zero."""
    if not isinstance(e, UpdateEvidence) or e.rule is None:
        return
    if len(e.past.steps[-1].reference) != len(e.past.steps[-1].candidate):
        yield Proposal(
            "mean_of_means",
            "gradient accumulation: the mean of the micro-batches' means, which weighs their terms "
            "otherwise than the mean over the whole batch",
            lambda e: e.by(e.rule, side="candidate"),
        )
    if len(e.past.steps) > 1:
        yield Proposal(
            "stale_gradients",
            "the gradients are not put back to zero: those of earlier steps are added",
            lambda e: replace(e, past=_summed(e.past)).by(e.rule),
        )


def _summed(past: Past) -> Past:
    total: dict[str, Any] = {}
    summed = Past()
    for values, ours, theirs in past.steps:
        for name in ours[0]:
            mean = sum(g[name].astype(np.float64) for g in ours) / len(ours)
            total[name] = total.get(name, 0.0) + mean
        summed = summed.then(Given(values, (dict(total),), theirs))
    return summed


# -- variants of a rule ----------------------------------------------------------------------------


def _variants(rule: Rule) -> Iterator[Named]:
    kinds: Mapping[type[Rule], Any] = {
        Sgd: _of_sgd,
        Adam: _of_adam,
        RmsProp: _of_rmsprop,
        Adagrad: _of_adagrad,
    }
    for cls, variants in kinds.items():
        if isinstance(rule, cls):
            yield from variants(rule)
    yield from _of_decay(rule)
    yield from _of_clipping(rule)
    yield from _of_rate(rule)


def _of_sgd(rule: Sgd) -> Iterator[Named]:
    if rule.momentum:
        inside = replace(rule, lr_inside=True)
        yield (
            "lr_inside",
            "the learning rate is inside the velocity: a change of it acts late",
            inside,
        )
        which = "missing" if rule.nesterov else "added"
        yield "nesterov", f"Nesterov's term is {which}", replace(rule, nesterov=not rule.nesterov)
        ema = replace(rule, dampening=rule.momentum, dampen_first=True)
        yield "momentum", "the velocity is an average: μ b + (1 − μ) g for μ b + g", ema
        late = replace(rule, dampening=rule.momentum)
        yield "dampening", "dampening as large as the momentum", late
    if rule.dampening:
        yield "dampening", "no dampening", replace(rule, dampening=0.0)
        first = replace(rule, dampen_first=True)
        yield "dampening", "the first gradient is dampened too", first
    for share in SHARES:
        if share != rule.momentum:
            text = f"momentum {share:g} instead of {rule.momentum:g}"
            yield "momentum", text, replace(rule, momentum=share)


def _of_adam(rule: Adam) -> Iterator[Named]:
    first, second = rule.betas
    for corrected, text in (
        ((False, False), "no bias correction"),
        ((True, False), "no bias correction of the second moment"),
        ((False, True), "no bias correction of the first moment"),
    ):
        yield "bias_correction", text, replace(rule, corrected=corrected, eps_hat=False)
    yield "betas", "β₁ and β₂ are swapped", replace(rule, betas=(second, first))
    for betas in BETAS:
        if betas != rule.betas:
            yield "betas", f"betas {betas} instead of {rule.betas}", replace(rule, betas=betas)
    here = "before" if rule.eps_hat else "after"
    for eps in (rule.eps, *EPS):
        amount = "" if eps == rule.eps else f", and is {eps:g} instead of {rule.eps:g}"
        other = replace(rule, eps=eps, eps_hat=not rule.eps_hat)
        where = "after" if rule.eps_hat else "before"
        text = f"eps is added {where} the bias correction instead of {here} it{amount}"
        yield "eps_place", text, other
        root = replace(rule, eps=eps, eps_in_root=True, eps_hat=False)
        yield "eps_place", f"eps is added inside the root{amount}", root
        if eps != rule.eps:
            text = f"eps {eps:g} instead of {rule.eps:g}"
            yield "optimizer_eps", text, replace(rule, eps=eps)


def _of_rmsprop(rule: RmsProp) -> Iterator[Named]:
    for eps in (rule.eps, *EPS):
        amount = "" if eps == rule.eps else f", and is {eps:g} instead of {rule.eps:g}"
        for start in dict.fromkeys((rule.initial, 1.0, 0.0)):
            begun = "" if start == rule.initial else _begun(start, rule.initial)
            other = replace(rule, eps=eps, eps_inside=not rule.eps_inside, initial=start)
            where = "outside" if rule.eps_inside else "inside"
            yield "eps_place", f"eps is added {where} the root{amount}{begun}", other
        if eps != rule.eps:
            text = f"eps {eps:g} instead of {rule.eps:g}"
            yield "optimizer_eps", text, replace(rule, eps=eps)
    yield from _of_start(rule, (1.0, 0.0))
    for share in SHARES:
        if share != rule.rho:
            text = f"rho {share:g} instead of {rule.rho:g}"
            yield "rho", text, replace(rule, rho=share)
    which = "not taken off" if rule.centered else "taken off"
    text = f"the mean of the gradients is {which} (centered)"
    yield "centered", text, replace(rule, centered=not rule.centered)
    if rule.momentum:
        inside = replace(rule, lr_inside=True)
        yield (
            "lr_inside",
            "the learning rate is inside the velocity: a change of it acts late",
            inside,
        )


def _of_adagrad(rule: Adagrad) -> Iterator[Named]:
    yield from _of_start(rule, (0.1, 0.0, 1.0, 1e-10))
    where = "outside" if rule.eps_inside else "inside"
    for eps in (rule.eps, *EPS):
        amount = "" if eps == rule.eps else f", and is {eps:g} instead of {rule.eps:g}"
        for start in dict.fromkeys((rule.initial, 0.1, 0.0)):
            begun = "" if start == rule.initial else _begun(start, rule.initial)
            other = replace(rule, eps=eps, eps_inside=not rule.eps_inside, initial=start)
            yield "eps_place", f"eps is added {where} the root{amount}{begun}", other
        if eps != rule.eps:
            text = f"eps {eps:g} instead of {rule.eps:g}"
            yield "optimizer_eps", text, replace(rule, eps=eps)


def _begun(start: float, ours: float) -> str:
    return f"; the accumulator starts at {start:g} instead of {ours:g}"


def _of_start(rule: Any, starts: Sequence[float]) -> Iterator[Named]:
    for start in starts:
        if start != rule.initial:
            text = f"the accumulator starts at {start:g} instead of {rule.initial:g}"
            yield "initial_accumulator", text, replace(rule, initial=start)


def _of_decay(rule: Rule) -> Iterator[Named]:
    decay = rule.weight_decay
    if not decay:
        for other in (1e-2, 1e-4, 1e-3, 5e-4, 0.1, 0.05):
            for decoupled in (False, True):
                how = "decoupled " if decoupled else ""
                text = f"{how}weight decay {other:g} where there is none"
                yield "weight_decay", text, replace(rule, weight_decay=other, decoupled=decoupled)
        return
    if rule.decoupled:
        bare = replace(rule, decay_without_lr=True)
        yield "decay_without_lr", "weight decay by λ instead of learning rate · λ", bare
        text = "weight decay is added to the gradient (L2) instead of acting on the weights"
        yield "coupled_decay", text, replace(rule, decoupled=False)
    else:
        text = "weight decay acts on the weights instead of being added to the gradient (L2)"
        yield "decoupled_decay", text, replace(rule, decoupled=True)
        text = "weight decay acts on the weights, by λ instead of learning rate · λ"
        yield "decoupled_decay", text, replace(rule, decoupled=True, decay_without_lr=True)
    for factor in (2.0, 0.5, 10.0, 0.1, 100.0, 0.01):
        text = f"weight decay {factor * decay:g} instead of {decay:g}"
        yield "weight_decay", text, replace(rule, weight_decay=factor * decay)


def _of_clipping(rule: Rule) -> Iterator[Named]:
    if rule.clip_norm is not None:
        text = "each gradient is clipped by its own norm instead of the norm of all"
        yield "clip_each", text, replace(rule, clip_each=True)
        for eps in (1e-6, 1e-8, 1e-7):
            text = f"the clipping factor divides by the norm + {eps:g}"
            yield "clip_eps", text, replace(rule, clip_eps=eps)
        text = f"gradients are clipped by value, at {rule.clip_norm:g}, instead of by norm"
        yield "clip_value", text, replace(rule, clip_norm=None, clip_value=rule.clip_norm)
    if rule.clip_norm is not None or rule.clip_value is not None:
        bare = replace(rule, clip_norm=None, clip_value=None)
        yield "not_clipped", "gradients are not clipped", bare


def _of_rate(rule: Rule) -> Iterator[Named]:
    if not rule.lr.is_constant:
        still = replace(rule, lr=Constant(rule.lr.at(1)))
        yield "schedule", "the learning rate stays what it was at the first step", still
        full = replace(rule, lr=Constant(rule.lr.lr))
        yield "schedule", f"the learning rate is {rule.lr.lr:g} at every step", full
        for by in (1, -1):
            when = "early" if by > 0 else "late"
            moved = replace(rule, lr=_Shifted(rule.lr.lr, of=rule.lr, by=by))
            yield "schedule", f"the learning rate changes a step too {when}", moved


@dataclass(frozen=True)
class _Shifted(Schedule):
    """Another schedule, some steps early."""

    of: Schedule = Constant(0.0)
    by: int = 0

    def at(self, step: int) -> float:
        return self.of.at(max(step + self.by, 1))
