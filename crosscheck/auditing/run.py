"""`crosscheck.audit`: all checks of one implementation."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import crosscheck.auditing.data
import crosscheck.auditing.dependencies
import crosscheck.auditing.differences
import crosscheck.auditing.learning
import crosscheck.auditing.modes
import crosscheck.auditing.numbers
import crosscheck.auditing.training
import crosscheck.auditing.values  # noqa: F401  (they register their checks)
from crosscheck.adapters import adapt
from crosscheck.adapters.trace import TraceAdapter
from crosscheck.auditing.registry import CHECKS, Check, Failure, Skip
from crosscheck.auditing.results import AuditReport, Finding
from crosscheck.auditing.subject import Subject
from crosscheck.errors import InvalidArgument
from crosscheck.inputs import make_inputs
from crosscheck.losses.spec import Loss, Own, parse
from crosscheck.losses.targets import make_targets

__all__ = ["OPTIONS", "audit", "one", "subject_of"]

OPTIONS = (
    "causal",
    "lowest_loss",
    "one_example",
    "output_range",
    "overfit_lr",
    "overfit_steps",
    "parameters",
    "trained",
)


def audit(
    model: Any,
    inputs: Any,
    loss: Any = None,
    targets: Any = None,
    *,
    step: Callable[[], Any] | None = None,
    optimizer: str | None = None,
    frozen: Sequence[str] = (),
    trains: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    seed: int = 0,
    name: str = "",
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> AuditReport:
    """Is this implementation fit to be trained? What usually goes wrong, looked for.

    Args:
        model: a model of any framework, or an Adapter (`crosscheck.adapt`).
        inputs: a batch: {name: array or spec}, or one array or spec. Real data says more.
        loss: a named one as for `crosscheck.check`, or your own function of (outputs, targets) in
            the model's framework; without, checks of the loss are skipped.
        targets: of the loss.
        step: your own training step, a function without arguments that changes the model: then
            what really changes is looked at. The model, whatever else the function holds
            (optimizers, other networks) and the random states are put back. Where the model is a
            JAX function, a Linen or an Equinox module, it must return the new parameters.
        optimizer: spec of the optimizer that you use, for the size of an update.
        frozen: patterns of the parameters that shall not train (``"encoder.*"``).
        trains: patterns of the only ones that shall (``"generator.*"``).
        skip: names of checks to leave out.
        only: names of the only checks to make.
        seed: of inputs drawn from specs, and of everything random.
        options: ``causal=True`` (position t sees up to t only), ``output_range=(0, 1)``,
            ``parameters=1234`` (how many there should be), ``trained=True`` (not at its
            initialisation), ``lowest_loss`` (that the loss can reach), ``overfit_steps``
            and ``overfit_lr`` (of learning a few examples by heart),
            ``one_example=True`` (the first axis is not a batch: the nodes of a graph).

    The model, its buffers and all random states are left as they were found. A check that raises
    is a finding of status ``error``, and does not keep the others from being made.

    Raises:
        InvalidArgument: the model, the inputs or an option cannot be used.
        MissingFramework: what the model needs is not installed.
        SideFailed: the model raises in its plain run.
    """
    subject = subject_of(
        model,
        inputs,
        loss,
        targets,
        step=step,
        optimizer=optimizer,
        frozen=frozen,
        trains=trains,
        seed=seed,
        **options,
    )
    chosen = _chosen(skip, only)
    say = progress or (lambda line: None)
    subject.run(backward=subject.adapter.capabilities.cotangents)
    found = []
    for check in chosen:
        say(check.name.replace("_", " "))
        found.append(_caught(check, subject))
    return AuditReport(
        tuple(found), subject.adapter.framework, subject.adapter.version, name, int(seed)
    )


def subject_of(
    model: Any,
    inputs: Any,
    loss: Any = None,
    targets: Any = None,
    *,
    step: Callable[[], Any] | None = None,
    optimizer: str | None = None,
    frozen: Sequence[str] = (),
    trains: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Subject:
    """What the checks look at; arguments as for `audit`.

    Raises:
        InvalidArgument: an unknown option, patterns that name nothing, targets without a loss.
    """
    _require_known(options)
    for argument, patterns in (("frozen", frozen), ("trains", trains)):
        if isinstance(patterns, str):
            raise InvalidArgument(f"{argument}={patterns!r}: give a list; [{patterns!r}]")
    if targets is not None and loss is None:
        raise InvalidArgument('targets= is given without loss=: say which, e.g. "cross_entropy"')
    if step is not None and not callable(step):
        raise InvalidArgument(f"step={step!r}: must be a function without arguments")
    adapter = adapt(model)
    if isinstance(adapter, TraceAdapter):
        raise InvalidArgument("a recorded run cannot be audited: it cannot be run again")
    made = Subject(
        adapter,
        make_inputs(inputs, seed=seed),
        _loss(loss),
        make_targets(targets, seed=seed),
        seed=seed,
        step=step,
        optimizer=optimizer,
        frozen=tuple(frozen),
        trains=None if trains is None else tuple(trains),
        options=options,
    )
    made.check_patterns()
    return made


def _require_known(options: Iterable[str]) -> None:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise InvalidArgument(
            f"audit: unknown option {unknown[0]!r}; {_nearest(unknown[0], OPTIONS)}"
        )


def _loss(loss: Any) -> Loss | None:
    """A named loss; a function is the caller's own."""
    if loss is None:
        return None
    own = callable(loss) and not isinstance(loss, (Loss, Own, type))
    return parse(Own(loss, loss) if own else loss)


def _caught(check: Check, subject: Subject) -> Finding:
    """Make one check of many: if it raises, the others are made all the same."""
    begun = time.monotonic()
    try:
        return one(check, subject)
    except Exception as error:  # noqa: BLE001  (model, loss and step are foreign code)
        text = " ".join(str(error).split())
        statement = f"the check raised {type(error).__name__}: {text}"
        seconds = time.monotonic() - begun
        return Finding(check.name, "error", check.severity, statement, seconds=seconds)


def one(check: Check, subject: Subject) -> Finding:
    """Make one check; what it raises comes out."""
    begun = time.monotonic()
    forward_only = not subject.adapter.capabilities.cotangents
    if check.needs_loss and subject.loss is None:
        outcome: Any = Skip("no loss= is given")
    elif forward_only and check.needs_loss:
        outcome = Skip(f"the {subject.adapter.framework} model has no backward pass")
    else:
        with np.errstate(all="ignore"):
            outcome = check.function(subject)
    finding = _finding(check, outcome)
    return replace(finding, seconds=time.monotonic() - begun)


def _finding(check: Check, outcome: Any) -> Finding:
    if isinstance(outcome, Skip):
        return Finding(check.name, "skipped", check.severity, outcome.reason)
    if isinstance(outcome, Failure):
        return Finding(
            check.name,
            "fail",
            outcome.severity or check.severity,
            outcome.statement,
            outcome.tensor,
            outcome.number,
            details=outcome.details,
        )
    return Finding(
        check.name,
        "pass",
        check.severity,
        outcome.statement,
        number=outcome.number,
        details=outcome.details,
    )


def _chosen(skip: Sequence[str], only: Sequence[str]) -> list[Check]:
    for argument, names in (("skip", skip), ("only", only)):
        if isinstance(names, str):
            raise InvalidArgument(f"{argument}={names!r}: must be a list of checks; [{names!r}]")
        unknown = [n for n in names if n not in CHECKS]
        if unknown:
            raise InvalidArgument(
                f"{argument}: no check is called {unknown[0]!r}; {_nearest(unknown[0], CHECKS)}"
            )
    return [c for n, c in CHECKS.items() if n not in skip and (not only or n in only)]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.4)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
