"""Records: how a value of a run is named and described in a file.

The name is ``KIND/NAME``: ``activation/blocks.0.fc``, ``gradient/blocks.0.fc.weight``. A tensor
whose name begins with no known kind is an activation of that name. Each record may have an entry
of its own name in the file's strings: JSON with ``kind``, ``axes``, ``dtype`` and more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["FORMAT", "KINDS", "OBSERVED", "described", "metadata_of", "record_name", "split_name"]

FORMAT = 1
SKETCH_MARK = "crosscheck.sketch"  # the string that tells a sketch from a trace
OBSERVED = ("activation", "input", "cotangent", "input_cotangent")  # the kinds of a tap
KINDS = (*OBSERVED, "model_input", "gradient", "buffer", "parameter")


def record_name(kind: str, name: str) -> str:
    """The tensor's name in the file."""
    return f"{kind}/{name}"


def split_name(record: str, kind: str | None = None) -> tuple[str, str]:
    """(kind, name) of a tensor; ``kind`` is what the record's own entry says, if anything."""
    prefix, separator, rest = record.partition("/")
    known = bool(separator) and bool(rest) and prefix in KINDS
    if kind is None:
        return (prefix, rest) if known else ("activation", record)
    return (kind, rest) if known and prefix == kind else (kind, record)


def described(record: str, value: np.ndarray, **more: Any) -> str:
    """The entry of one record: JSON with kind, axes, dtype and what else is known."""
    entry = {"kind": split_name(record)[0], "axes": None, "dtype": value.dtype.name}
    return dumped({**entry, **more})


def dumped(value: Any) -> str:
    """JSON, the same text for equal values."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def metadata_of(
    records: Mapping[str, np.ndarray],
    *,
    inputs_sha256: str,
    extra: Mapping[str, str],
    details: Mapping[str, Mapping[str, Any]] | None = None,
    order: Iterable[str] | None = None,
) -> dict[str, str]:
    """All strings of a file.

    Args:
        records: in execution order.
        extra: of the trace as a whole.
        details: record -> what its entry says beside kind and dtype.
    """
    from crosscheck import __version__

    found = {
        "crosscheck.version": __version__,
        "crosscheck.format": str(FORMAT),
        "inputs_sha256": inputs_sha256,
        "order": dumped(list(records)),
        **extra,
    }
    for name, value in records.items():
        found[name] = described(name, value, **((details or {}).get(name) or {}))
    return found
