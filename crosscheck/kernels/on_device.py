"""Arrays whose numbers lie on a CUDA device, and stay there until somebody reads them.

An adapter that has a value on a device shows a `DeviceArray` in its place. What a check asks of
most values (how far apart are two of them, what is their fingerprint) is computed where they lie,
and a few numbers come to the host. Whoever wants more gets a copy on the host without asking: to
NumPy it is an array like any other.

The tensors are PyTorch's: it reads those of others in their own memory (DLPack).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

__all__ = [
    "DeviceArray",
    "address_of",
    "as_host",
    "device_moments",
    "device_rows",
    "equal",
    "held",
    "is_one_number",
    "stays",
    "together",
]

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
LEAST = 1 << 17
"""Elements below which a copy to the host is as fast as a comparison on the device."""
LEFT = 0.25
"""Share of a device's memory that is left to the models: from there on values go to the host."""
AT_ONCE = 1 << 24  # elements that are held in float64


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for the array of a tensor on a device.

    Axes are permuted, shapes changed, elements taken and copies made there. Anything else is done
    with a copy on the host, which is made once.

    Attributes:
        tensor: a PyTorch tensor of floating point numbers, without a gradient.
    """

    made = False
    """Whether there ever was one: else nobody has to look for them."""

    def __init__(self, tensor: Any, fetch: Callable[[Any], np.ndarray]) -> None:
        """``fetch`` gives the numbers of a tensor as an array of the host."""
        DeviceArray.made = True
        self.tensor, self._fetch = tensor, fetch
        self._host: np.ndarray | None = None
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        self.size: int = tensor.numel()
        self.itemsize: int = self.dtype.itemsize
        self.nbytes = self.size * self.itemsize
        self.ndim = len(self.shape)

    @property
    def host(self) -> np.ndarray:
        """The numbers, on the host."""
        if self._host is None:
            self._host = self._fetch(self.tensor)
        return self._host

    # -- on the device -----------------------------------------------------------------------

    def transpose(self, *axes: Any) -> DeviceArray:
        """As NumPy's; a view."""
        order = axes[0] if len(axes) == 1 else axes or None
        order = range(self.ndim)[::-1] if order is None else map(int, np.ravel(order))
        return self._of(self.tensor.permute(tuple(order)))

    def reshape(self, *shape: Any, **how: Any) -> Any:
        """As NumPy's, in the order of the axes; a view where there is one."""
        if how:
            return self.host.reshape(*shape, **how)
        return self._of(self.tensor.reshape(*shape))

    def astype(self, dtype: Any, **how: Any) -> Any:
        """On the device if it computes with that dtype and nothing special is asked for; a copy."""
        name = np.dtype(dtype).name
        if name not in DTYPES or not set(how) <= {"copy"}:
            return self.host.astype(dtype, **how)
        wanted = getattr(sys.modules["torch"], name)
        return self._of(self.tensor.to(wanted, copy=how.get("copy", True)))

    def copy(self) -> DeviceArray:
        """In one piece, in memory of its own."""
        torch = sys.modules["torch"]
        return self._of(self.tensor.clone(memory_format=torch.contiguous_format))

    def take_flat(self, places: np.ndarray) -> np.ndarray:
        """The elements with these numbers, in the order of the axes: an array of the host."""
        torch = sys.modules["torch"]
        flat = self.tensor.reshape(-1)
        return self._fetch(flat[torch.from_numpy(places).to(flat.device)])

    def __getitem__(self, index: Any) -> Any:
        one = isinstance(index, tuple) and len(index) == self.ndim
        if one and all(isinstance(i, (int, np.integer)) for i in index):
            return self._fetch(self.tensor[index])[()]
        return self.host[index]

    def _of(self, tensor: Any) -> DeviceArray:
        return DeviceArray(tensor, self._fetch)

    # -- on the host -------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.host, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*map(as_host, inputs), **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.host, name)

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.tensor.device})"


def as_host(value: Any) -> Any:
    """An array of the host for a `DeviceArray`; anything else as it is."""
    return value.host if isinstance(value, DeviceArray) else value


def address_of(value: Any) -> int:
    """Where the first number of an array lies."""
    if isinstance(value, DeviceArray):
        return int(value.tensor.data_ptr())
    return int(value.__array_interface__["data"][0])


def held(value: Any, *, borrowed: bool) -> Any:
    """What may be kept of a value: it, where it is ``borrowed``; else a copy where it lies."""
    if isinstance(value, DeviceArray):
        return value if borrowed else value.copy()
    return np.array(value, order="C", copy=None if borrowed else True)


def equal(a: Any, b: Any) -> bool:
    """`numpy.array_equal`, where the values lie."""
    if isinstance(a, DeviceArray) and isinstance(b, DeviceArray):
        return a.shape == b.shape and bool(sys.modules["torch"].equal(a.tensor, b.tensor))
    return np.array_equal(a, b)


def is_one_number(value: Any) -> bool:
    """Whether all elements of an array are equal; it has some."""
    flat = (value.tensor if isinstance(value, DeviceArray) else value).reshape(-1)
    return bool((flat == flat[0]).all())


def stays(tensor: Any) -> bool:
    """Whether a PyTorch tensor is shown where it lies, as a `DeviceArray`: large ones on a CUDA
    device, while there is room for them."""
    return (
        tensor.device.type == "cuda"
        and tensor.numel() >= LEAST
        and tensor.layout is sys.modules["torch"].strided
        and str(tensor.dtype).removeprefix("torch.") in DTYPES
        and not tensor.is_neg()
        and _has_room(tensor.device)
        and _able(tensor.device)
    )


def _has_room(device: Any) -> bool:
    cuda = sys.modules["torch"].cuda
    free, total = cuda.mem_get_info(device)
    cached = cuda.memory_reserved(device) - cuda.memory_allocated(device)
    return bool(free + cached > LEFT * total)


@cache
def _able(device: Any) -> bool:
    """Whether the Triton kernel runs on that device; tried once."""
    try:
        torch = sys.modules["torch"]
        from crosscheck.kernels.triton_pair import pair_sums

        one = torch.ones(3, device=device)
        return pair_sums(one, 2 * one).diff2 == 3.0
    except Exception:  # no Triton, no compiler for what it makes, a device that it does not know
        return False


def together(group: Sequence[Any]) -> bool:
    """Whether all arrays of a group lie on one device."""
    devices = {a.tensor.device if isinstance(a, DeviceArray) else None for a in group}
    return len(devices) == 1 and None not in devices


def device_rows(
    groups: Sequence[Sequence[Any]],
    limits: Sequence[float],
    pairs: Sequence[Sequence[int]],
) -> np.ndarray:
    """`crosscheck.kernels.pairs.group_rows` of groups whose arrays lie `together`.

    Args:
        pairs: which two of a group are compared.
    """
    from crosscheck.kernels.triton_pair import pair_sums

    return np.array(
        [
            [astuple(pair_sums(group[a].tensor, group[b].tensor, limit)) for a, b in pairs]
            for group, limit in zip(groups, limits, strict=True)
        ]
    )


def device_moments(value: DeviceArray) -> tuple[np.ndarray, np.ndarray]:
    """`crosscheck.kernels.pairs.moments` of a value where it lies, by PyTorch."""
    torch = sys.modules["torch"]
    parts = value.tensor.reshape(-1).split(AT_ONCE)
    first = torch.zeros(5, dtype=torch.float64, device=value.tensor.device)
    for part in parts:
        x, bad = _finite(torch, part)
        size = x.abs()
        sums = torch.stack([x.sum(), (x * x).sum(), size.sum(), bad])
        first[:4] += sums
        first[4] = torch.maximum(first[4], size.max())
    rms = torch.sqrt(first[1] / torch.clamp(value.size - first[3], min=1.0))
    second = torch.zeros(3, dtype=torch.float64, device=value.tensor.device)
    for part in parts:
        x, _ = _finite(torch, part)
        tails = x - rms, -x - rms, x.abs() - 2.0 * rms
        second += torch.stack([torch.clamp(tail, min=0.0).sum() for tail in tails])
    return first.cpu().numpy(), second.cpu().numpy()


def _finite(torch: Any, part: Any) -> tuple[Any, Any]:
    """Numbers in float64, zeros for NaN and Inf, and how many those are."""
    x = part.double()
    good = torch.isfinite(x)
    return torch.where(good, x, 0.0), (~good).sum().double()
