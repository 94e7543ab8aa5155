"""What an ONNX model is fed: the caller's inputs under its own names, checked; and type names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx

from crosscheck.errors import InvalidArgument, capped

__all__ = ["check_inputs", "declared", "numpy_type"]

_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    **{f"{u}int{bits}": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)},
}


def numpy_type(name: str) -> np.dtype | None:
    """The dtype of ONNX Runtime's ``tensor(float)``; None for what NumPy does not have."""
    inner = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype(_TYPES[inner]) if inner in _TYPES and name.startswith("tensor(") else None


def check_inputs(
    wanted: Sequence[onnx.ValueInfoProto], given: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """Whose input is which: one by position; several by name if all are known, else in order.

    Returns:
        name in the graph -> the caller's name, in the caller's order.

    Raises:
        InvalidArgument: the count, a dtype or a shape is not the model's.
    """
    names = [info.name for info in wanted]
    if len(given) != len(names):
        raise InvalidArgument(
            f"the ONNX model takes {len(names)} inputs ({capped(names) or 'none'}); "
            f"it was given {len(given)} ({capped(given) or 'none'})"
        )
    pairs = _paired(names, given)
    for info in wanted:
        _check_one(info, pairs[info.name], np.asarray(given[pairs[info.name]]))
    return pairs


def _paired(names: Sequence[str], given: Iterable[str]) -> dict[str, str]:
    """Name in the graph -> the caller's; there are as many of both."""
    given = [*given]
    by_name = len(given) > 1 and set(given) == set(names)
    return {n: n for n in given} if by_name else dict(zip(names, given, strict=True))


def declared(
    wanted: Sequence[onnx.ValueInfoProto], given: Collection[str]
) -> dict[str, tuple[int | None, ...]]:
    """The caller's name -> the shape in the graph, None for any size."""
    if len(given) != len(wanted):
        return {}
    pairs, found = _paired([info.name for info in wanted], given), {}
    for info in wanted:
        if (dims := _dims(info)) is not None:
            shape = tuple(d if isinstance(d, int) else None for d in dims)
            found[pairs[info.name]] = shape
    return found


def _dims(info: onnx.ValueInfoProto) -> list[int | str] | None:
    """Sizes, or what stands for any; None where the graph does not say."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim
    ]


def _check_one(info: onnx.ValueInfoProto, name: str, array: np.ndarray) -> None:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        raise InvalidArgument(f"the ONNX model's input `{info.name}` is no tensor; only those work")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    dims = _dims(info)
    fits = dims is None or (
        len(dims) == array.ndim
        and all(isinstance(d, str) or d == n for d, n in zip(dims, array.shape, strict=True))
    )
    if fits and array.dtype == dtype:
        return
    shape = "of any shape" if dims is None else f"({', '.join(map(str, dims))})"
    alias = "" if name == info.name else f" (the model's `{info.name}`)"
    raise InvalidArgument(
        f"input `{name}`{alias} is {array.dtype} {array.shape}; the ONNX model takes {dtype} "
        f"{shape}.\n  Fix: inputs of that type and shape, candidate_inputs= where the sides take "
        "different ones, or an export with dynamic shapes"
    )
