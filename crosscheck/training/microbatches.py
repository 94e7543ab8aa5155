"""The parts of a batch whose gradients an optimizer accumulates (part of `stage`)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crosscheck.errors import InvalidArgument
from crosscheck.losses.stage import LossCotangents
from crosscheck.run import Runner

__all__ = ["split"]

Arrays = Mapping[str, np.ndarray]


def split(runner: Runner, parts: int) -> list[Runner]:
    """The same model on equal parts of the batch, each with its part of what drives the backward
    pass: rows of the targets, or rows of the seeded cotangents.

    An optimizer that accumulates takes the mean over the parts. What is a sum over the batch
    (seeded cotangents, a loss with ``reduction="sum"``) is scaled up, so that the mean is the sum.

    Raises:
        InvalidArgument: the batch cannot be split so.
    """
    sizes = [value.shape[0] for value in runner.inputs.values() if value.ndim]
    batch = sizes[0] if sizes else 0
    if not batch or batch % parts:
        raise InvalidArgument(
            f"optimizer=: accumulate={parts} does not divide the batch of {batch}.\n"
            f"  Fix: inputs whose first axis is a multiple of {parts}"
        )
    made = []
    for part in range(parts):
        rows = _Rows(slice(part * batch // parts, (part + 1) * batch // parts), batch, parts)
        source = runner.cotangents
        if isinstance(source, LossCotangents):
            stage = source.stage
            assert stage is not None
            stage = replace(stage, targets=rows.of(stage.targets), notes=[])
            parted: Any = _PartOfLoss(source.seed, source.skip, stage=stage, rows=rows)
        else:
            parted = functools.partial(rows.cotangents, getattr(source, "given", {}))
        made.append(replace(runner, inputs=rows.of(dict(runner.inputs)), cotangents=parted))
    return made


@dataclass(frozen=True)
class _Rows:
    """Some rows of a batch, one of so many parts."""

    rows: slice
    batch: int
    parts: int

    def of(self, values: Any) -> Any:
        """Those rows of an array, or of every array of a dict, that has the batch as its first
        axis."""
        if isinstance(values, Mapping):
            return {name: self.of(value) for name, value in values.items()}
        is_batch = isinstance(values, np.ndarray) and values.ndim and len(values) == self.batch
        return values[self.rows] if is_batch else values

    def cotangents(self, given: Arrays, outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Rows of the cotangents of the whole batch, scaled up."""
        part = self.of({s: g for s, g in given.items() if s in outputs})
        return {s: g * g.dtype.type(self.parts) for s, g in part.items()}


@dataclass
class _PartOfLoss(LossCotangents):
    """The gradient of the loss of some rows."""

    rows: _Rows = _Rows(slice(None), 0, 1)

    def __call__(self, outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        found = super().__call__(outputs)
        assert self.stage is not None
        terms = self.stage.terms(outputs)
        if not terms or any(t.options.get("reduction") != "sum" for t in terms):
            return found
        return {s: g * g.dtype.type(self.rows.parts) for s, g in found.items()}
