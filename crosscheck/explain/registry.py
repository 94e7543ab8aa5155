"""The open list of hypotheses.

@crosscheck.explain.register("forward")
def doubled(evidence):
    yield Proposal("doubled", "the output is doubled", lambda e: 2.0 * e.reference)

A project registers its own in its pair file; an installed package, by an entry point of the group
``crosscheck.hypotheses`` that names a module which registers them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterable
from typing import get_args

from crosscheck.errors import InvalidArgument
from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.results import Phase

__all__ = ["GROUP", "Hypothesis", "hypotheses", "load_installed", "register", "unregister"]

GROUP = "crosscheck.hypotheses"

Hypothesis = Callable[[Evidence], Iterable[Proposal]]

_REGISTERED: dict[Hypothesis, tuple[Phase, ...]] = {}
_OWN = (
    "absent activations attention attention_backward between dense fused gated gradients graphs "
    "heads losses masks norms outputs packed placement pools rearranged recurrent "
    "recurrent_backward resize rotary sums transposed turned updates weights windows"
)
_PACKAGE = "crosscheck.explain."


def register(*phases: Phase) -> Callable[[Hypothesis], Hypothesis]:
    """Add a hypothesis for divergences of ``phases``.

    It must not change the arrays that it is given. An exception in it, or in a prediction, drops
    what it was about to say and nothing else.

    Raises:
        InvalidArgument: no phase, or an unknown one.
    """
    unknown = [phase for phase in phases if phase not in get_args(Phase)]
    if unknown or not phases:
        raise InvalidArgument(
            f"register({', '.join(map(repr, phases))}): name the phases whose divergences it "
            f"explains, of {', '.join(get_args(Phase))}"
        )

    def add(hypothesis: Hypothesis) -> Hypothesis:
        _REGISTERED[hypothesis] = phases
        return hypothesis

    return add


def unregister(hypothesis: Hypothesis) -> None:
    """Take a hypothesis back; one that is not there is no error."""
    _REGISTERED.pop(hypothesis, None)


@functools.cache
def load_installed() -> tuple[str, ...]:
    """Load every entry point of `GROUP`, once; one that fails is left out, with a warning.

    Returns:
        The names of those that were loaded.
    """
    loaded = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001  (anybody's code; a check must not fail over it)
            warnings.warn(
                f"hypotheses of the entry point `{point.name}` ({point.value}) are left out: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
        else:
            loaded.append(point.name)
    return tuple(loaded)


@functools.cache
def _load_own() -> None:
    for name in _OWN.split():
        importlib.import_module(_PACKAGE + name)


def hypotheses(phase: Phase) -> list[Hypothesis]:
    """Those registered for a phase: crosscheck's own, then others in the order of registration,
    installed packages' last."""
    _load_own()
    load_installed()
    found = [hypothesis for hypothesis, phases in _REGISTERED.items() if phase in phases]
    return sorted(found, key=lambda one: not one.__module__.startswith(_PACKAGE))
