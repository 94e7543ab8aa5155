"""Stage 3, feed: a spec and a seed -> inputs and cotangents, identical on both sides.

The numbers come from the Philox-4x64-10 counter generator (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011) through its raw 64-bit words only. NumPy keeps raw words
stable across versions and platforms, but not its distributions; so the distributions here are our
own and use nothing but integer arithmetic and one exact scaling:

* a standard normal is a sum of twelve 16-bit uniforms minus six (Irwin-Hall): mean 0, variance
  1 − 2⁻³², range ±6;
* a uniform is a 53-bit integer scaled by 2⁻⁵³;
* an integer in [low, high) is a 64-bit word modulo the span.

A value depends on the seed, on the name and on its position alone. Where the cast to a narrower
type would leave the half-open range, the nearest number inside it is taken.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.errors import InvalidArgument
from crosscheck.kernels.threads import share

__all__ = [
    "Spec",
    "cotangent",
    "draw",
    "make_inputs",
    "normal",
    "parse_spec",
]

_SPEC = re.compile(
    r"""\s*(?P<dtype>[a-z]+\d*)\s*
        \[(?P<shape>[\d\s,]*)\]\s*
        (?:(?P<low>[-+\w.]+?)\s*\.\.\s*(?P<high>[-+\w.]+))?\s*$""",
    re.VERBOSE,
)
_LANES = np.uint64(0x0000FFFF0000FFFF)
_BLOCK = 8192  # normals at a time: their words and sums stay in the second-level cache
_ALONE = 1 << 18  # normals that one thread draws sooner than others are woken up
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_LARGEST = {
    "float16": 65504.0,
    "bfloat16": 2.0**127 * (2 - 2.0**-7),
    "float32": 2.0**128 - 2.0**104,
}
_EXAMPLES = 'for example "float32[2,3,33,47]", "int64[2,13] 4..200" or "bool[2,13]"'


@dataclass(frozen=True)
class Spec:
    """What to draw: dtype, shape and, for a uniform or an integer, the half-open range."""

    dtype: str
    shape: tuple[int, ...]
    low: float | int | None = None
    high: float | int | None = None


def parse_spec(text: str, *, name: str = "input") -> Spec:
    """Parse a spec: ``float32[2,3]``, ``float32[2,3] -1..1``, ``int64[2,13] 4..200``, ``bool[5]``.

    A range is half-open: 4..200 draws 4 to 199. Floats without a range are standard normal.

    Raises:
        InvalidArgument: not a spec; says what was wrong with it.
    """
    match = _SPEC.match(text)
    if match is None:
        raise InvalidArgument(f"input `{name}`: {text!r} is not a spec; write {_EXAMPLES}")
    dtype = match["dtype"]
    if dtype not in (*_FLOATS, *_INTEGERS, "bool"):
        known = ", ".join((*_FLOATS, *_INTEGERS, "bool"))
        raise InvalidArgument(
            f"input `{name}`: unknown dtype {dtype!r} in {text!r}; known: {known}"
        )
    shape = _shape(match["shape"], text, name)
    if match["low"] is not None:
        return Spec(dtype, shape, *_range(dtype, match["low"], match["high"], text, name))
    if dtype in _INTEGERS:
        raise InvalidArgument(
            f"input `{name}`: {text!r} needs a range, since only you know which integers the "
            f'model can take: "{text.strip()} 0..200" draws 0 to 199'
        )
    return Spec(dtype, shape)


def _shape(lengths: str, text: str, name: str) -> tuple[int, ...]:
    """The shape in a spec; ``text`` and ``name`` of the input are for the error."""
    try:
        return tuple(int(part) for part in lengths.rstrip(" ,").split(",") if lengths.strip())
    except ValueError:
        raise InvalidArgument(
            f"input `{name}`: the shape in {text!r} must be whole numbers and commas, {_EXAMPLES}"
        ) from None


def _range(
    dtype: str, low: str, high: str, text: str, name: str
) -> tuple[float | int, float | int]:
    """The range in a spec; ``text`` and ``name`` of the input are for the error."""
    number = int if dtype in _INTEGERS else float
    try:
        first, end = number(low), number(high)
    except ValueError:
        raise InvalidArgument(
            f"input `{name}`: the range in {text!r} must be two {dtype} numbers, {_EXAMPLES}"
        ) from None
    if dtype == "bool" or not first < end or not (math.isfinite(first) and math.isfinite(end)):
        raise InvalidArgument(
            f"input `{name}`: the range in {text!r} must be low..high with low < high, both finite"
            + (" (a bool takes none)" if dtype == "bool" else "")
        )
    least, most = _limits(dtype)
    if first < least or end - (dtype in _INTEGERS) > most:
        raise InvalidArgument(
            f"input `{name}`: the range in {text!r} leaves {dtype}, which holds {least} to {most}"
        )
    return first, end


def _limits(dtype: str) -> tuple[float, float]:
    """The range of a dtype; half of float64's, so that high − low is finite."""
    if dtype in _INTEGERS:
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    most = _LARGEST.get(dtype, 2.0**1023)
    return -most, most


def _stream(seed: int, name: str) -> np.random.Philox:
    """The Philox stream of ``(seed, name)``; names separate streams through SHA-256."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    return np.random.Philox(key=key)


def _words(stream: np.random.Philox, count: int) -> np.ndarray:
    return np.asarray(stream.random_raw(count), dtype="<u8") if count else np.zeros(0, "<u8")


def normal(
    seed: int, name: str, shape: tuple[int, ...], dtype: np.dtype | type = np.float64
) -> np.ndarray:
    """Standard normals (Irwin-Hall, see the module), of ``shape``, rounded to ``dtype``; float32
    and float64 hold them as they are."""
    out = np.empty(math.prod(shape), dtype)

    def fill(first: int, last: int) -> None:
        stream = _stream(seed, name)
        stream.advance(first * 3 * _BLOCK // 4)  # a step makes four words
        for start in range(first * _BLOCK, last * _BLOCK, _BLOCK):
            block = out[start : start + _BLOCK]
            words = _words(stream, 3 * block.size)
            lanes = (words & _LANES) + (words >> np.uint64(16) & _LANES)  # two sums in each word
            halves = (lanes[0::3] + lanes[1::3] + lanes[2::3]).view("<u4").reshape(-1, 2)
            total = (halves[:, 0] + halves[:, 1]).astype(np.int32) * 2 - 12 * 65535  # symmetric
            block[:] = (total.astype(np.float64) / 131072.0).astype(dtype)

    share(fill, -(-out.size // _BLOCK), alone=out.size < _ALONE)
    return out.reshape(shape)


def draw(spec: Spec, *, seed: int, name: str) -> np.ndarray:
    """The array of ``spec``: the same bits on every platform and NumPy version."""
    count = math.prod(spec.shape)
    dtype = _dtype(spec.dtype)
    if spec.dtype == "bool":
        top_bits = _words(_stream(seed, name), count) >> np.uint64(63)
        return top_bits.astype(bool).reshape(spec.shape)
    if spec.dtype in _INTEGERS:
        assert spec.low is not None and spec.high is not None
        return _integers(spec, _words(_stream(seed, name), count)).reshape(spec.shape)
    if spec.low is None or spec.high is None:
        return normal(seed, name, spec.shape, dtype)
    unit = (_words(_stream(seed, name), count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    values = (unit * (spec.high - spec.low) + spec.low).astype(dtype)
    return _inside(values, spec.low, spec.high).reshape(spec.shape)


def _integers(spec: Spec, words: np.ndarray) -> np.ndarray:
    """Words modulo the span, plus low; all in unsigned arithmetic, which wraps without harm."""
    low, span = int(spec.low or 0), int(spec.high or 0) - int(spec.low or 0)
    offsets = words % np.uint64(span) if span < 2**64 else words
    return (offsets + np.uint64(low % 2**64)).astype(np.dtype(spec.dtype))


def _inside(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Move what rounding to a narrower type has put at ``high`` (or below ``low``) back inside."""
    wide = values.astype(np.float64)
    towards = np.asarray(low, values.dtype), np.asarray(high, values.dtype)
    values = np.where(wide >= high, np.nextafter(values, towards[0]), values)
    return np.where(wide < low, np.nextafter(values, towards[1]), values)


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def cotangent(name: str, value: np.ndarray, *, seed: int) -> np.ndarray:
    """The seeded cotangent of one output: standard normals in the output's shape and dtype."""
    return normal(seed, f"cotangent {name}", value.shape, value.dtype)


def make_inputs(inputs: Any, *, seed: int) -> dict[str, np.ndarray]:
    """Turn the caller's ``inputs`` into named arrays.

    Args:
        inputs: ``{name: array or spec}``, or a single array or spec (named ``x``). An array is
            anything that NumPy can take; a PyTorch CPU tensor too.
        seed: of the specs.

    Raises:
        InvalidArgument: nothing given, not an array, a non-finite float, an object array.
    """
    named = inputs if isinstance(inputs, Mapping) else {"x": inputs}
    if not named:
        raise InvalidArgument(f"inputs is empty: give at least one array or spec, {_EXAMPLES}")
    return {str(name): _one(str(name), value, seed) for name, value in named.items()}


def _one(name: str, value: Any, seed: int) -> np.ndarray:
    if isinstance(value, str):
        value = parse_spec(value, name=name)
    if isinstance(value, Spec):
        try:
            return draw(value, seed=seed, name=name)
        except MemoryError as error:
            raise InvalidArgument(
                f"input `{name}`: {value.dtype}{list(value.shape)} does not fit into memory"
            ) from error
    if value is None:
        raise InvalidArgument(f"input `{name}` is None: give an array or a spec, {_EXAMPLES}")
    if hasattr(value, "detach"):  # a PyTorch tensor, possibly one that requires a gradient
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has none of its own; float32 holds it
            return _one(name, np.array(value.float()), seed).astype(_dtype("bfloat16"))
    try:
        array = np.array(value, order="C")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"input `{name}` of type {type(value).__name__} is not an array: {error}"
        ) from error
    if array.dtype.kind not in "fiubc" and array.dtype.name != "bfloat16":
        raise InvalidArgument(
            f"input `{name}` has dtype {array.dtype}: models take numbers or booleans"
        )
    if (is_float(array) or array.dtype.kind == "c") and not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InvalidArgument(
            f"input `{name}` holds {array[place]} at {place}: a check starts from finite inputs. "
            "Feed the values that make the model produce NaN, not NaN itself"
        )
    # As it was read from a file of another machine; frameworks take their own order alone.
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
