"""The weights of an ONNX model as arrays, and its graph without them.

A model is hundreds of kilobytes of graph and hundreds of megabytes of weights. Whoever changes the
graph (to show values, to force them) or hands it to ONNX Runtime handles the first only; the second
are arrays that every session borrows. In the graph they are marked as external data.

Of a file only the graph is parsed; the weights are read where they lie. Two models made from one
file share them, as long as nobody writes: an array is replaced then, never written to.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

import numpy as np
import onnx

from crosscheck.kernels.on_device import equal, together

__all__ = ["Weights", "embedded", "same_bits"]

LEAST = 1024
"""Bytes from which on a tensor is lent; shapes and axes, which ONNX Runtime reads to infer what
others are, stay in the graph."""
_LENT = frozenset(
    getattr(onnx.TensorProto, name)
    for name in (
        *("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "BOOL"),
        *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    )
)
"""Types whose elements are whole bytes, which arrays have, too."""
_TO_WEIGHTS = (7, 5, 9)  # ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
Place = tuple[int, int]
"""Where bytes lie in a file: offset, length."""
_READ: WeakValueDictionary[tuple[object, ...], np.ndarray] = WeakValueDictionary()


@dataclass
class Weights:
    """A model in two parts.

    Attributes:
        proto: the model; initializers in ``lent`` hold no values.
        lent: name -> array, contiguous, read-only.
        tensors: the initializers of ``proto`` by name.
    """

    proto: onnx.ModelProto
    lent: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        self.tensors = {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> Weights:
        """Of a model in memory, which is left as it is."""
        return cls._split(proto, {})

    @classmethod
    def read(cls, path: Path) -> Weights:
        """Of a file, and of those that it refers to.

        Raises:
            Exception: of classes of `onnx`'s and protobuf's own, for what is no model.
        """
        try:
            proto, arrays = _read(path)
        except ValueError:
            return cls.of(onnx.load(path))  # says what is wrong with it
        onnx.load_external_data_for_model(proto, str(path.parent))
        return cls._split(proto, arrays)

    @classmethod
    def _split(cls, proto: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> Weights:
        """``arrays``: initializers that ``proto`` holds no values of."""
        light, lent = _without_initializers(proto), dict(arrays)
        for tensor in proto.graph.initializer:
            if tensor.name not in lent and _is_large(tensor):
                lent[tensor.name] = _lasting(onnx.numpy_helper.to_array(tensor))
            known = tensor.name in lent
            light.graph.initializer.append(_header(tensor) if known else tensor)
        return cls(light, lent)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.lent.values())

    def array(self, name: str) -> np.ndarray:
        """The value of an initializer; not to be written to.

        Raises:
            KeyError: there is none.
        """
        if name in self.lent:
            return self.lent[name]
        return onnx.numpy_helper.to_array(self.tensors[name])

    def put(self, values: Mapping[str, np.ndarray]) -> None:
        """Replace initializers by others of their types and shapes, which are not copied and must
        stay as they are."""
        for name, value in values.items():
            if name in self.lent:
                self.lent[name] = np.ascontiguousarray(value)
            else:
                self.tensors[name].CopyFrom(onnx.numpy_helper.from_array(value, name))

    def with_values(self, values: Mapping[str, np.ndarray]) -> Weights:
        """A copy of the graph, and the same arrays but for ``values``."""
        light = _without_initializers(self.proto)
        light.graph.initializer.extend(self.proto.graph.initializer)
        copied = Weights(light, dict(self.lent))
        copied.put(values)
        return copied


def embedded(weights: Weights) -> onnx.ModelProto:
    """The whole model as one message."""
    whole = _without_initializers(weights.proto)
    whole.graph.initializer.extend(
        onnx.numpy_helper.from_array(weights.lent[t.name], t.name) if t.name in weights.lent else t
        for t in weights.proto.graph.initializer
    )
    return whole


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays hold the same bytes in the same shape and type."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if together([a, b]):
        return equal(a, b, bits=True)
    one, other = (np.ascontiguousarray(v).reshape(-1).view(np.uint8) for v in (a, b))
    return np.array_equal(one, other)


def _without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without initializers: a message of more than 2 GB cannot be copied at once."""
    copied = onnx.ModelProto()
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version"):
        setattr(copied, name, getattr(proto, name))
    copied.opset_import.extend(proto.opset_import)
    copied.functions.extend(proto.functions)
    graph, ours = proto.graph, copied.graph
    ours.name = graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(ours, field).extend(getattr(graph, field))
    return copied


def _is_large(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in _LENT and _size(tensor) >= LEAST


def _size(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor of a type that NumPy has."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return int(dtype.itemsize * math.prod(tensor.dims))


def _lasting(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _header(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A tensor without its values, which somebody else has."""
    made = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = onnx.TensorProto.EXTERNAL
    made.external_data.add(key="location", value="lent")
    return made


# -- files -----------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model in a file without its large tensors, and those, read now or, from the very same
    file, before.

    Raises:
        ValueError: it is no such file.
    """
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        version = about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            light, places = _light(data, 0, len(data), _TO_WEIGHTS)
        try:
            proto = onnx.ModelProto.FromString(light)
        except Exception as error:  # of a class of protobuf's that is not public
            raise ValueError(str(error)) from error
        arrays = {}
        for tensor, place in zip(proto.graph.initializer, places, strict=True):
            if place is not None and _is_large(tensor):
                arrays[tensor.name] = _array(file, tensor, place, version)
            elif place is not None:
                file.seek(place[0])
                tensor.raw_data = file.read(place[1])
    return proto, arrays


def _array(
    file: BinaryIO, tensor: onnx.TensorProto, place: Place, version: tuple[int, ...]
) -> np.ndarray:
    if place[1] != _size(tensor):
        raise ValueError(f"{tensor.name}: {place[1]} bytes for {_size(tensor)}")
    array = _READ.get((version, place[0]))
    if array is None:
        file.seek(place[0])
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        array = np.fromfile(file, dtype, math.prod(tensor.dims)).reshape(tuple(tensor.dims))
        _READ[version, place[0]] = _lasting(array)
    return array


def _light(
    data: mmap.mmap, first: int, last: int, way: Sequence[int]
) -> tuple[bytes, list[Place | None]]:
    """A message in protobuf's wire format without the large bytes at the end of a way of fields.

    Args:
        data: the message lies at ``first`` to ``last``.
        way: numbers of fields, from the outermost message to the bytes.

    Returns:
        The message, and for each that may hold such bytes where they are; None where it has none.

    Raises:
        ValueError: this is no message.
    """
    kept, places = bytearray(), []
    for number, begin, value, end in _fields(data, first, last):
        if number == way[0] and len(way) > 1:
            inner, found = _light(data, value, end, way[1:])
            kept += _varint(number << 3 | 2) + _varint(len(inner)) + inner
            places += (found or [None]) if len(way) == 2 else found
        elif number == way[0] and end - value >= LEAST:
            places.append((value, end - value))
        else:
            kept += data[begin:end]
    return bytes(kept), places


def _fields(data: mmap.mmap, first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
    """(number of the field, where it begins, where its value begins, where it ends)."""
    at = first
    while at < last:
        begin = at
        tag, at = _number(data, at)
        value, kind = at, tag & 7
        if kind == 0:
            _, at = _number(data, at)
        elif kind == 2:
            length, value = _number(data, at)
            at = value + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > last:
            raise ValueError("cut short")
        yield tag >> 3, begin, value, at


def _number(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    found = shift = 0
    while at < len(data):
        byte = data[at]
        found, at, shift = found | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return found, at
    raise ValueError("cut short")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
