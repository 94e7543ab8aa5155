"""The container of a trace: a safetensors file (https://github.com/huggingface/safetensors).

    8 bytes   length N of the header, unsigned, little-endian
    N bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
              "__metadata__": {"key": "string", ...}}
    the rest  the tensors, little-endian, in C order; offsets count from here

Reading maps the file and touches no tensor before it is asked for; nothing in a file is ever
executed. Every claim of the header is checked against the size of the file first, so that a
hostile file costs no more memory than its header. Our own reader, since NumPy has no bfloat16 and
no float8 of its own, and the library's NumPy half gives up on them.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from crosscheck.errors import InvalidArgument, TraceFormatError

__all__ = ["DTYPES", "TensorFile", "named_dtype", "shown", "tag_of", "write_tensors"]

DTYPES: dict[str, np.dtype[Any]] = {
    tag: np.dtype(kind)
    for tag, kind in (
        ("F64", "<f8"),
        ("F32", "<f4"),
        ("F16", "<f2"),
        ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        ("I64", "<i8"),
        ("I32", "<i4"),
        ("I16", "<i2"),
        ("I8", "i1"),
        ("U64", "<u8"),
        ("U32", "<u4"),
        ("U16", "<u2"),
        ("U8", "u1"),
        ("BOOL", "?"),
        ("C64", "<c8"),
    )
}
_TAGS = {dtype.name: tag for tag, dtype in DTYPES.items()}
LARGEST_HEADER = 25_000_000  # parsed, it takes some thirty times that
MOST_AXES = 32
METADATA = "__metadata__"


def named_dtype(name: str) -> np.dtype[Any]:
    """The dtype that NumPy (or ml_dtypes) calls by this name, one of `DTYPES`."""
    return DTYPES[_TAGS[name]]


def tag_of(dtype: np.dtype[Any], name: str) -> str:
    """The format's word for a dtype.

    Raises:
        InvalidArgument: it has none.
    """
    if dtype.name not in _TAGS:
        known = ", ".join(sorted(_TAGS))
        raise InvalidArgument(
            f"`{name}` has dtype {dtype}, which a trace file cannot hold; it holds {known}"
        )
    return _TAGS[dtype.name]


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies; ``start`` counts from the beginning of the file."""

    tag: str
    shape: tuple[int, ...]
    start: int


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a file by name, read-only; each is a view of the file, made when asked for.

    Attributes:
        path: of the file, for messages.
        metadata: the file's strings.

    Raises:
        TraceFormatError: not such a file; says what is wrong with it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with self._opened() as file:
            size = os.fstat(file.fileno()).st_size
            header, start = self._header(file, size)
            self.metadata = self._strings(header.pop(METADATA, {}))
            self._places = {
                name: self._place(name, entry, start, size) for name, entry in header.items()
            }
            self._require_disjoint(start, size)
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, name: str) -> np.ndarray:
        place = self._places[name]
        return _view(self._bytes, place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype that a tensor is stored in."""
        return DTYPES[self._places[name].tag]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._places[name].shape

    def wrong(self, what: str, fix: str) -> TraceFormatError:
        """The error that says what is wrong with this file and what to do."""
        return TraceFormatError(f"`{self.path}`: {what}.\n  Fix: {fix}")

    def _opened(self) -> BinaryIO:
        try:
            if os.path.isfile(self.path):
                return open(self.path, "rb")
            reason = "is a folder" if os.path.isdir(self.path) else "there is no such file"
        except (OSError, ValueError) as error:  # no permission; a NUL in the name
            reason = str(error)
        raise self.wrong(reason, "give the path of a .safetensors file")

    def _header(self, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if size < 10 or length > min(size - 8, LARGEST_HEADER):
            raise self.wrong(
                f"{size} bytes, but its header claims {length}: cut short, or no safetensors file",
                "write it again, or copy it in binary mode",
            )
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:  # JSON, UTF-8 and repeated keys
            raise self.wrong(
                f"its header is not the JSON of a safetensors file: {shown(error)}",
                "write the header as one JSON object, each name once",
            ) from None
        if not isinstance(header, dict) or not all(map(_is_text, header)):
            raise self.wrong("its header is no JSON object of names", "write {name: {...}, ...}")
        return header, 8 + length

    def _strings(self, metadata: Any) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(
            isinstance(text, str) and _is_text(text) for pair in metadata.items() for text in pair
        ):
            raise self.wrong(
                "__metadata__ is not an object of strings",
                "write every value of __metadata__ as a string, lists and numbers as JSON in it",
            )
        return metadata

    def _place(self, name: str, entry: Any, start: int, size: int) -> _Place:
        fix = 'write {"dtype": "F32", "shape": [2, 3], "data_offsets": [first, end]}'
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
            raise self.wrong(f"the entry of tensor `{shown(name)}` is incomplete", fix)
        tag, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(tag, str) or tag not in DTYPES:
            raise self.wrong(
                f"tensor `{shown(name)}` has the dtype {shown(tag)}",
                f"use one of {', '.join(DTYPES)}",
            )
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
            raise self.wrong(f"shape or offsets of tensor `{shown(name)}` are no whole ≥ 0", fix)
        if len(shape) > MOST_AXES:
            raise self.wrong(
                f"tensor `{shown(name)}` has {len(shape)} axes", f"use at most {MOST_AXES}"
            )
        first, end = offsets
        wanted = math.prod(shape) * DTYPES[tag].itemsize
        if not first <= end <= size - start or end - first != wanted:
            raise self.wrong(
                f"tensor `{shown(name)}`, {tag}{shown(shape)}, takes {wanted} bytes; its offsets "
                f"are {shown(offsets)} in {size - start} bytes of data",
                "count offsets in bytes from the end of the header; or the file is cut short",
            )
        place = _Place(tag, tuple(shape), start + first)
        try:
            np.empty(0, DTYPES[tag]).reshape(place.shape) if not wanted else None
        except ValueError:  # an empty array with an axis that NumPy has no number for
            raise self.wrong(f"tensor `{shown(name)}` has the shape {shown(shape)}", fix) from None
        return place

    def _require_disjoint(self, reached: int, size: int) -> None:
        """Tensors may not share bytes, and no byte may be left over (it could hold anything)."""
        spans = [
            (p.start, p.start + math.prod(p.shape) * DTYPES[p.tag].itemsize, name)
            for name, p in self._places.items()
        ]
        fix = "write the tensors one behind the other, without gaps, and nothing else"
        for start, end, name in sorted(spans):
            if start != reached:
                where = "overlaps another one" if start < reached else "leaves a gap before it"
                raise self.wrong(f"tensor `{shown(name)}` {where}", fix)
            reached = end
        if reached != size:
            raise self.wrong(f"{size - reached} bytes behind the last tensor belong to none", fix)


def _view(data: mmap.mmap, place: _Place) -> np.ndarray:
    if math.prod(place.shape) == 0:
        return np.empty(place.shape, DTYPES[place.tag])
    stored = np.dtype("u1") if place.tag == "BOOL" else DTYPES[place.tag]
    view: np.ndarray = np.ndarray(place.shape, stored, buffer=data, offset=place.start)
    if place.tag == "BOOL":  # a byte other than 0 and 1 is no bool that NumPy can work with
        return view != 0 if view.ndim else np.asarray(view != 0)
    return view if view.flags.aligned else view.copy()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"`{shown(name)}` appears twice")
        found[name] = value
    return found


def _is_text(value: str) -> bool:
    """Whether a string can be printed: JSON can spell half a surrogate pair, UTF-8 cannot."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def shown(value: Any, limit: int = 80) -> str:
    """What a file claims, safe to print."""
    text = value if isinstance(value, str) else repr(value) if _is_small(value) else "(too large)"
    if isinstance(value, Exception):
        text = str(value)
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."


def _is_small(value: Any, depth: int = 2) -> bool:
    """Whether writing a value out is cheap; Python refuses to print integers beyond 4300 digits."""
    if isinstance(value, list):
        return depth > 0 and len(value) <= 64 and all(_is_small(v, depth - 1) for v in value)
    if isinstance(value, int):
        return value.bit_length() < 256
    return not isinstance(value, dict) and (not isinstance(value, str) or len(value) <= 1000)


# -- writing ---------------------------------------------------------------------------------------


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write a file whole or not at all; equal contents give equal bytes.

    Tensors are stored by the size of their elements, then by name, so that each is aligned.

    Raises:
        InvalidArgument: a dtype that the format does not know, a reserved name, or no place for
            a file.
    """
    if METADATA in tensors:
        raise InvalidArgument(f"`{METADATA}` is the name of the file's own strings; rename it")
    tags = {name: tag_of(value.dtype, name) for name, value in tensors.items()}
    names = sorted(tensors, key=lambda name: (-DTYPES[tags[name]].itemsize, name))
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        value = tensors[name]
        end = offset + value.size * value.dtype.itemsize
        header[name] = {
            "dtype": tags[name],
            "shape": list(value.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise InvalidArgument(f"{len(names)} tensors: the header would exceed the format's limit")
    with _replacing(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in names:
            little = tensors[name].astype(DTYPES[tags[name]], order="C", copy=False)
            file.write(np.ascontiguousarray(little).tobytes())


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A temporary file beside ``path`` that takes its place when all went well."""
    given = os.fspath(path)
    if not given or "\0" in given or os.path.isdir(given):
        raise InvalidArgument(f"cannot write to {given!r}: give a file, such as ref.safetensors")
    target = Path(os.path.realpath(given))
    temporary = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidArgument(
            f"cannot write to `{given}`: {reason}.\n  Fix: give a file in a folder that can be "
            "written to and has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
