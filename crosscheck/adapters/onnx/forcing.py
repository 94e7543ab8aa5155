"""Observers and ONNX sessions.

A session cannot be stopped between two layers. So an observer is asked first what it is going to
replace (its method ``planned(site, kind)``), the session runs with that in place, and then the
observer is shown every value. An observer without that method is shown the values of an unforced
run; if it replaces some, the run is repeated with its replacements until it asks for nothing else,
so it may see a site more than once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from crosscheck.adapters.base import ModelRaised, input_site
from crosscheck.adapters.onnx.structure import Structure
from crosscheck.observers import Key
from crosscheck.taps import Observer, Session, Wishes

__all__ = ["OnnxSession", "Run", "run_forced"]


class Run(Protocol):
    """Something that can be executed with replacements.

    Attributes:
        keys: everything that it shows and can replace, in order.
    """

    @property
    def keys(self) -> Collection[Key]: ...

    def values(self, plan: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
        """Key -> value as produced, with the replacements of ``plan`` in effect behind it."""


class OnnxSession(Session):
    """The bookkeeping of one run. ``given``: the graph's input names -> the caller's."""

    def __init__(
        self, structure: Structure, given: Mapping[str, str], observer: Observer, *, passive: bool
    ) -> None:
        super().__init__(observer, separator=".", root=structure.root, passive=passive)
        self._named = {input_site(graph): input_site(name) for graph, name in given.items()}
        self.layers = {**dict.fromkeys(self._named.values(), "input"), **structure.layers}
        self.sources = {s: self.name(source) for s, source in structure.sources.items()}
        self.parents = structure.parents

    def name(self, site: str) -> str:
        """The caller's name of a site."""
        return self._named.get(site, site)

    def plan(self, keys: Sequence[Key]) -> dict[Key, np.ndarray] | None:
        """What the observer is going to replace; None where it cannot say."""
        planned = Wishes.of(self.observer).planned
        if planned is None:
            return None
        answers = {key: planned(self.name(key[1]), key[0]) for key in keys}
        return {key: value for key, value in answers.items() if value is not None}

    def show(self, values: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
        """Show every value; returns the replacements that the observer asks for."""
        answers = {}
        for key, value in values.items():
            replacement = self.observe(self.name(key[1]), key[0], value)
            if replacement is not None:
                answers[key] = replacement
        return answers


def run_forced(session: OnnxSession, run: Run) -> None:
    """Run with the observer's replacements in effect, then show it what was produced."""
    plan = session.plan(list(run.keys))
    if plan is not None:
        answers = session.show(_executed(run, plan))
        unplanned = [key for key in answers if key not in plan]
        if unplanned:
            raise AssertionError(f"the observer replaces {unplanned[0]} but had not planned to")
        return
    plan = {}
    for _ in range(len(run.keys) + 1):
        answers = session.show(run.values(plan))
        if answers.keys() == plan.keys() and all(
            answers[key].tobytes() == plan[key].tobytes() for key in plan
        ):
            return
        plan = answers
    raise AssertionError("the observer's replacements do not settle: each run makes it ask anew")


def _executed(run: Run, plan: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    """Run as planned. A replacement of a wrong shape fails somewhere inside: say what it was."""
    try:
        return run.values(plan)
    except ModelRaised:
        free = run.values({})
        for key, value in plan.items():
            if key in free and value.shape != free[key].shape:
                raise AssertionError(
                    f"replacement for {key[0]} of {key[1]}: shape {value.shape}, "
                    f"not {free[key].shape}"
                ) from None
        raise
