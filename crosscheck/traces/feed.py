"""The inputs of a run as a file that any program can read, and the SHA-256 that names them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from crosscheck.errors import InvalidArgument
from crosscheck.inputs import cotangent, make_inputs, parse_spec
from crosscheck.traces.file import DTYPES, named_dtype, tag_of, write_tensors
from crosscheck.traces.records import metadata_of, record_name

__all__ = ["inputs_sha256", "save_inputs"]


def inputs_sha256(inputs: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of a set of inputs, 64 hexadecimal digits.

    Hashed are, for each input in the order of its name's UTF-8 bytes: the name, a zero byte, the
    dtype as safetensors writes it (``F32``), a zero byte, the lengths of the axes in decimal with
    commas between (nothing for a scalar), a zero byte, the elements (little-endian, C order).
    """
    digest = hashlib.sha256()
    for name in sorted(inputs, key=lambda name: name.encode()):
        value = inputs[name]
        tag = tag_of(value.dtype, name)
        shape = ",".join(str(n) for n in value.shape)
        digest.update(f"{name}\0{tag}\0{shape}\0".encode())
        digest.update(np.ascontiguousarray(value.astype(DTYPES[tag], copy=False)).tobytes())
    return digest.hexdigest()


def save_inputs(
    path: str | os.PathLike[str],
    inputs: Any,
    *,
    seed: int = 0,
    cotangents: Mapping[str, Any] | None = None,
    parameters: Any = None,
) -> str:
    """Write what another program needs to make a trace: inputs, cotangents, parameters.

    The file is laid out as a trace that has no activations (``docs/traces.md``): records
    ``model_input/NAME``, ``cotangent/OUTPUT`` and ``parameter/NAME``.

    Args:
        inputs: as for `crosscheck.check`: {name: array or spec}, or one array or spec.
        seed: of what is drawn. With the same seed `crosscheck.check` draws the same numbers.
        cotangents: {output site: array or spec}, such as ``{"output": "float32[5,10]"}``.
        parameters: a model (whatever `crosscheck.adapt` takes), or {name: array}.

    Returns:
        ``inputs_sha256``, which the file holds in its metadata for the program to copy.

    Raises:
        InvalidArgument: not inputs, or no place for a file.
    """
    fed = make_inputs(inputs, seed=seed)
    records = {record_name("model_input", name): value for name, value in fed.items()}
    for site, wanted in (cotangents or {}).items():
        records[record_name("cotangent", site)] = _cotangent(site, wanted, seed)
    for name, value in _parameters(parameters).items():
        records[record_name("parameter", name)] = value
    sha = inputs_sha256(fed)
    write_tensors(path, records, metadata_of(records, inputs_sha256=sha, extra={"seed": str(seed)}))
    return sha


def _cotangent(site: str, wanted: Any, seed: int) -> np.ndarray:
    if not isinstance(wanted, str):
        return make_inputs({site: wanted}, seed=seed)[site]
    spec = parse_spec(wanted, name=f"cotangent of {site}")
    if spec.low is not None or not spec.dtype.lstrip("b").startswith("float"):
        raise InvalidArgument(
            f"cotangent of `{site}`: {wanted!r} must be a float without a range (normals are drawn)"
        )
    like = np.broadcast_to(np.zeros((), DTYPES[tag_of(named_dtype(spec.dtype), site)]), spec.shape)
    return cotangent(site, like.astype(np.float32), seed=seed).astype(like.dtype)


def _parameters(given: Any) -> dict[str, np.ndarray]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return make_inputs(given, seed=0) if given else {}
    from crosscheck.adapters import adapt

    return {p.name: p.value for p in adapt(given).parameters()}
