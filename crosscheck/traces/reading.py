"""The records of a trace file: its tensors, the entries that describe them, and their order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crosscheck.arrays import is_float, is_inexact
from crosscheck.traces.file import DTYPES, TensorFile, shown
from crosscheck.traces.records import FORMAT, KINDS, OBSERVED, SKETCH_MARK, split_name

__all__ = ["DTYPE_NAMES", "Records", "is_names"]

_GRADIENT_OF = {
    "cotangent": "activation",
    "input_cotangent": "input",
    "gradient": "parameter",
    "buffer": "parameter",
}
DTYPE_NAMES = {d.name: d for d in DTYPES.values()} | DTYPES
"""The names by which a file may call a dtype."""


class _Typed(Mapping[str, np.ndarray]):
    """The tensors of a file in the dtypes that their entries name."""

    def __init__(self, file: TensorFile, dtypes: Mapping[str, np.dtype[Any]]) -> None:
        self._file, self._dtypes = file, dtypes

    def __getitem__(self, name: str) -> np.ndarray:
        value, dtype = self._file[name], self._dtypes.get(name)
        return value if dtype is None else value.astype(dtype)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


@dataclass
class Records:
    """Makes sense of the strings of one file, and checks them.

    Raises:
        TraceFormatError: says what is wrong and how to write it right.
    """

    file: TensorFile
    arrays: _Typed = field(init=False)

    def __post_init__(self) -> None:
        self.wrong = self.file.wrong
        if SKETCH_MARK in self.file.metadata:
            raise self.wrong(
                "it is a sketch, which holds no values to run or to force",
                "give it as the reference, the first of the two sides",
            )
        version = self.file.metadata.get("crosscheck.format", str(FORMAT))
        if version != str(FORMAT):
            raise self.wrong(
                f"format {shown(version)} of traces; this version reads {FORMAT}",
                "read it with the version of crosscheck that wrote it",
            )
        self._entries = {name: self._entry(name) for name in self.file}
        dtypes = {name: self._dtype(name, entry) for name, entry in self._entries.items()}
        self.arrays = _Typed(self.file, {name: d for name, d in dtypes.items() if d is not None})
        self._names: dict[tuple[str, str], str] = {}
        for record in self._order():
            key = split_name(record, self._entries[record].get("kind"))
            if key in self._names:
                raise self.wrong(
                    f"`{shown(record)}` and `{shown(self._names[key])}` are both the {key[0]} of "
                    f"`{shown(key[1])}`",
                    "write each once",
                )
            self._names[key] = record
        self._require_twins()

    def named(self, kind: str) -> dict[str, str]:
        """name -> tensor, for the records of one kind, in order."""
        return {name: record for (k, name), record in self._names.items() if k == kind}

    # -- records -----------------------------------------------------------------------------------

    def _entry(self, record: str) -> dict[str, Any]:
        text = self.file.metadata.get(record)
        if text is None or record in ("order", "inputs_sha256"):
            return {}
        entry = self._json(record, text)
        if not isinstance(entry, dict):
            raise self.wrong(
                f"the entry of `{shown(record)}` is not a JSON object",
                'write {"kind": "activation", "axes": null, "dtype": "float32"}, or leave it out',
            )
        kind, axes = entry.get("kind"), entry.get("axes")
        if kind is not None and kind not in KINDS:
            raise self.wrong(
                f"`{shown(record)}` is of kind {shown(kind)}", f"use one of {', '.join(KINDS)}"
            )
        ndim = len(self.file.shape(record))
        if axes is not None and not (is_names(axes) and len(axes) == ndim):
            raise self.wrong(
                f"the axes of `{shown(record)}` are {shown(axes)}; it has {ndim}",
                "name every axis, or write null",
            )
        return entry

    def _dtype(self, record: str, entry: Mapping[str, Any]) -> np.dtype[Any] | None:
        """The dtype that an entry names, where the tensor is stored in another one."""
        name, stored = entry.get("dtype"), self.file.dtype(record)
        if name is None:
            return None
        dtype = DTYPE_NAMES.get(name) if isinstance(name, str) else None
        if dtype is None:
            raise self.wrong(
                f"`{shown(record)}` was computed in the dtype {shown(name)}",
                f"use one of {', '.join(d.name for d in DTYPES.values())}, or leave it out",
            )
        if dtype == stored:
            return None
        if is_float(np.empty(0, dtype)) != is_float(np.empty(0, stored)) or dtype.kind in "bc":
            raise self.wrong(
                f"`{shown(record)}` is stored as {stored.name} and said to be {dtype.name}",
                "store a value in its own dtype, or in a wider one of the same kind",
            )
        return dtype

    def _order(self) -> list[str]:
        text = self.file.metadata.get("order")
        if text is None:
            raise self.wrong(
                "its metadata has no `order`",
                'add "order": a JSON list of the tensors in the order in which they were computed',
            )
        order = self._json("order", text)
        if not is_names(order):
            raise self.wrong("`order` is not a list of names", 'write ["activation/fc1", ...]')
        seen: set[str] = set()
        for record in order:
            if record not in self.file or record in seen:
                what = "twice" if record in seen else "but there is no such tensor"
                raise self.wrong(
                    f"`order` names `{shown(record)}` {what}", "name each tensor once, as stored"
                )
            seen.add(record)
        for record in self.file:
            kind, _ = split_name(record, self._entries[record].get("kind"))
            if record not in seen and kind in OBSERVED:
                raise self.wrong(
                    f"`order` leaves out `{shown(record)}`", "list every value of the run in it"
                )
        return [*order, *(record for record in self.file if record not in seen)]

    def _require_twins(self) -> None:
        """A gradient has the shape of what it is the gradient of, and is a float."""
        for (kind, name), record in self._names.items():
            twin = self._names.get((_GRADIENT_OF.get(kind, ""), name))
            if twin is not None and self.file.shape(twin) != self.file.shape(record):
                raise self.wrong(
                    f"`{shown(record)}` has the shape {self.file.shape(record)} and "
                    f"`{shown(twin)}` {self.file.shape(twin)}",
                    "write both in one shape: a gradient has that of its value",
                )
            is_gradient = kind in ("cotangent", "input_cotangent", "gradient")
            if is_gradient and not is_inexact(np.empty(0, self.file.dtype(record))):
                raise self.wrong(
                    f"`{shown(record)}` is {self.file.dtype(record)}", "write gradients as floats"
                )

    # -- strings -----------------------------------------------------------------------------------

    def _text(self, key: str, default: str) -> str:
        if key in self.file and key != "inputs_sha256":
            return default  # it is the entry of a tensor of that name
        return self.file.metadata.get(key, default)

    def _object(self, key: str, default: Any) -> Any:
        text = self.file.metadata.get(key)
        return default if text is None or key in self.file else self._json(key, text)

    def _json(self, key: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.wrong(
                f"the entry `{shown(key)}` of its metadata is not JSON: {shown(error)}",
                "write it as JSON",
            ) from None


def is_names(value: Any) -> bool:
    """Whether it is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
