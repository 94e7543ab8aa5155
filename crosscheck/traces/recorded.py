"""`RecordedTrace`: a run, what was fed into it, and how far its rounding went; as a file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.trace import Trace
from crosscheck.traces.file import write_tensors
from crosscheck.traces.records import dumped, metadata_of, record_name

if TYPE_CHECKING:
    from crosscheck.sketches.make import Sketch

__all__ = ["RecordKey", "RecordedTrace", "Renamed", "Rounding", "parameter_entry"]

RecordKey = tuple[str, str]
"""(kind, name) of a value that is kept of a run."""


class Rounding(NamedTuple):
    """The error of one record against the same run in float64, in absolute norms."""

    l2: float
    maximum: float


class Renamed(Mapping[Any, np.ndarray]):
    """Arrays of another mapping under other keys; none is fetched before it is asked for."""

    def __init__(self, arrays: Mapping[str, np.ndarray], table: Mapping[Any, str]) -> None:
        self._arrays, self._table = arrays, table

    def __getitem__(self, key: Any) -> np.ndarray:
        return self._arrays[self._table[key]]

    def __contains__(self, key: object) -> bool:
        return key in self._table

    def __iter__(self) -> Iterator[Any]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


@dataclass(frozen=True, repr=False)
class RecordedTrace(Trace):
    """A run that can be compared long after, and elsewhere.

    Attributes:
        inputs: what was fed into the model, by name.
        inputs_sha256: of the inputs (`crosscheck.traces.feed.inputs_sha256`).
        parameters: all parameters of the model; the value of one that is not ``held`` is a
            placeholder of its shape.
        held: the names of the parameters whose values are part of the trace.
        not_finite: the names of those that held NaN or Inf when recorded; not kept in files.
        rounding: (kind, name) of a record -> its error against a float64 run; empty where the
            model does not run in float64.
        local: the same against a float64 run that is forced onto the recorded values.
        seed: of inputs and cotangents; None where nobody said.
        train: whether the run was in train mode.
        version: of the framework.
        device: that the run was on.
        origin: the file that it was loaded from, for messages.
    """

    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs_sha256: str = ""
    parameters: tuple[Parameter, ...] = ()
    held: frozenset[str] = frozenset()
    not_finite: tuple[str, ...] = ()
    rounding: Mapping[RecordKey, Rounding] = field(default_factory=dict)
    local: Mapping[RecordKey, Rounding] = field(default_factory=dict)
    seed: int | None = None
    train: bool = False
    version: str = ""
    device: str = "cpu"
    origin: str = ""

    def __repr__(self) -> str:
        fed = ", ".join(f"{name}: {value.shape}" for name, value in self.inputs.items())
        return (
            f"RecordedTrace({self.framework}, {len(self.activations())} sites, inputs {{{fed}}}, "
            f"inputs_sha256={self.inputs_sha256[:12]}...)"
        )

    @property
    def has_cotangents(self) -> bool:
        """Whether the run had a backward pass, from cotangents that are known."""
        return bool(self.output_cotangents())

    def output_cotangents(self) -> dict[str, np.ndarray]:
        """The cotangents that were sent into the outputs."""
        keys = [("cotangent", site) for site in self.info.outputs]
        return {site: self.values[kind, site] for kind, site in keys if (kind, site) in self.values}  # type: ignore[index]

    def sketch(self, most: int = 300_000) -> Sketch:
        """The run in at most ``most`` bytes on disk (`crosscheck.sketches`).

        Raises:
            InvalidArgument: too few bytes for so many values; says how many it takes.
        """
        from crosscheck.sketches.make import make_sketch

        return make_sketch(self, most)

    def save(self, path: str | os.PathLike[str], *, sketch: int | None = None) -> None:
        """Write the trace to a file, whole or not at all; equal traces give equal bytes.

        Args:
            sketch: write a sketch of at most so many bytes instead.

        Raises:
            InvalidArgument: a dtype that no trace file can hold, or no place for a file.
        """
        if sketch is not None:
            self.sketch(sketch).save(path)
            return
        records = self._records()
        details: dict[str, dict[str, Any]] = {}
        for label, floors in (("rounding", self.rounding), ("local_rounding", self.local)):
            for key, rounding in floors.items():
                if all(map(math.isfinite, rounding)):
                    details.setdefault(record_name(*key), {})[label] = list(rounding)
        for p in self.parameters:
            for kind in ("gradient", "buffer", "parameter"):
                detail = details.setdefault(record_name(kind, p.name), {})
                detail["axes"] = None if p.axes is None else list(p.axes)
        strings = metadata_of(
            records, inputs_sha256=self.inputs_sha256, extra=self._strings(), details=details
        )
        write_tensors(path, records, strings)

    def _records(self) -> Mapping[str, np.ndarray]:
        found = {record_name("model_input", name): value for name, value in self.inputs.items()}
        found |= {record_name(*key): value for key, value in self.values.items()}
        found |= {record_name("gradient", n): v for n, v in self.info.parameter_gradients.items()}
        found |= {record_name("buffer", n): v for n, v in self.info.buffers.items()}
        values = {p.name: p.value for p in self.parameters if p.name in self.held}
        return found | {record_name("parameter", n): v for n, v in values.items()}

    def _strings(self) -> dict[str, str]:
        info = self.info
        found = {
            "framework": self.framework,
            "framework_version": self.version,
            "device": self.device,
            "mode": "train" if self.train else "eval",
            "inputs": dumped(list(info.inputs)),
            "outputs": dumped(list(info.outputs)),
            "layers": dumped(dict(info.layers)),
            "sources": dumped(dict(info.sources)),
            "parents": dumped(dict(info.parents)),
            "unobservable": dumped(sorted(map(list, info.unobservable))),
            "parameters": dumped([parameter_entry(p) for p in self.parameters]),
        }
        return found if self.seed is None else {**found, "seed": str(self.seed)}


def parameter_entry(p: Parameter) -> dict[str, Any]:
    """What a file says of a parameter beside its value."""
    return {
        "name": p.name,
        "shape": list(p.value.shape),
        "dtype": p.value.dtype.name,
        "layer": p.layer,
        "role": p.role,
        "layer_kind": p.kind,
        "axes": None if p.axes is None else list(p.axes),
        "trainable": p.trainable,
        "buffer": p.buffer,
        **({"named": p.named} if p.named else {}),
    }
