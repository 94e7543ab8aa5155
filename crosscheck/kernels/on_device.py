"""Arrays whose numbers lie on a CUDA device, and stay there until somebody reads them.

An adapter that has a value on a device shows a `DeviceArray` in its place. What a check asks of
most values (how far apart are two of them, what is their fingerprint) is computed where they lie,
and a few numbers come to the host. Whoever wants more gets a copy on the host without asking: to
NumPy it is an array like any other.

The tensors are PyTorch's: it reads those of others in their own memory (DLPack). Frameworks compute
on streams of their own, and DLPack says when memory may be read, not when it may be used again. So
memory that is another framework's is read before anybody goes on, and none is handed to one but for
the time of a copy.
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
    "has_room",
    "held",
    "is_one_number",
    "lent",
    "sees_devices",
    "stays",
    "together",
    "why_on_host",
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
"""Share of the memory that a framework can get which is left to the models: from there on values go
to the host."""
FEW = 8
"""One part in so many of an array is fetched by itself; who wants more gets all of it, once."""
_UNABLE: dict[str, str] = {}  # devices on which the Triton kernel does not run, and why
AT_ONCE = 1 << 24  # elements that are held in float64


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for the array of a tensor on a device.

    Axes are permuted, shapes changed, elements taken and copies made there. Anything else is done
    with a copy on the host, which is made once.

    Attributes:
        tensor: a PyTorch tensor of floating point numbers, without a gradient.
        lent: its memory is another framework's, which may use it again once this one is gone.
        lasting: nobody writes to it.
    """

    made = False
    """Whether there ever was one: else nobody has to look for them."""

    def __init__(self, tensor: Any, *, lent: bool = False, lasting: bool = False) -> None:
        DeviceArray.made = True
        self.tensor, self.lent, self.lasting = tensor, lent, lasting
        self._fetch: Callable[[], np.ndarray] = lambda: _fetched(tensor)
        self._host: np.ndarray | None = None
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        self.size: int = tensor.numel()
        self.itemsize: int = self.dtype.itemsize
        self.nbytes = self.size * self.itemsize
        self.ndim = len(self.shape)

    @property
    def host(self) -> np.ndarray:
        """The numbers, on the host; one copy, for all that is made of this one there as well."""
        if self._host is None:
            self._host = self._fetch()
        return self._host

    # -- on the device -----------------------------------------------------------------------

    def transpose(self, *axes: Any) -> DeviceArray:
        """As NumPy's; a view."""
        order = axes[0] if len(axes) == 1 else axes or None
        order = range(self.ndim)[::-1] if order is None else map(int, np.ravel(order))
        order = tuple(order)
        return self._made(self.tensor.permute(order), lambda: self.host.transpose(order))

    def reshape(self, *shape: Any, **how: Any) -> Any:
        """As NumPy's, in the order of the axes; a view where there is one."""
        if how:
            return self.host.reshape(*shape, **how)
        return self._made(self.tensor.reshape(*shape), lambda: self.host.reshape(*shape))

    @property
    def flat(self) -> Any:
        """The elements in the order of the axes, to be read."""
        return self.reshape(-1)

    def astype(self, dtype: Any, **how: Any) -> Any:
        """On the device if it computes with that dtype and nothing special is asked for; a copy."""
        name = np.dtype(dtype).name
        if name not in DTYPES or not set(how) <= {"copy"}:
            return self.host.astype(dtype, **how)
        wanted = getattr(sys.modules["torch"], name)
        made = self.tensor.to(wanted, copy=how.get("copy", True))
        return self._made(made, lambda: self.host.astype(DTYPES[name]))

    def copy(self) -> DeviceArray:
        """In one piece, in memory of its own."""
        torch = sys.modules["torch"]
        return self._made(self.tensor.clone(memory_format=torch.contiguous_format))

    def take_flat(self, places: np.ndarray) -> np.ndarray:
        """The elements with these numbers, in the order of the axes: an array of the host."""
        torch = sys.modules["torch"]
        index = map(torch.from_numpy, np.unravel_index(places, self.shape))
        return _fetched(self.tensor[tuple(axis.to(self.tensor.device) for axis in index)])

    def __getitem__(self, index: Any) -> Any:
        if self._host is None and _is_plain(index):
            part = self.tensor[index]
            if FEW * part.numel() <= self.size:
                return _fetched(part)[()]
        return self.host[index]

    def settled(self) -> DeviceArray:
        """In one piece, and computed: for who reads it on a stream of its own, and does not ask."""
        whole = self._made(self.tensor.contiguous())
        _wait_for(self.tensor.device)
        return whole

    def given_to(self, like: Any) -> Any:
        """A tensor of its own memory, in one piece, with the dtype and device of ``like``."""
        torch = sys.modules["torch"]
        made = self.tensor.to(
            like.device, like.dtype, copy=True, memory_format=torch.contiguous_format
        )
        return self._made(made).tensor

    def _made(self, tensor: Any, on_host: Callable[[], np.ndarray] | None = None) -> DeviceArray:
        """What was made of this one: a view, or memory of its own. ``on_host`` makes the same of
        this one's copy."""
        ours, theirs = (t.untyped_storage().data_ptr() for t in (self.tensor, tensor))
        is_view = ours == theirs
        if self.lent and not is_view:
            _wait_for(self.tensor.device)
        made = DeviceArray(tensor, lent=self.lent and is_view, lasting=self.lasting and is_view)
        made._fetch = on_host or made._fetch
        return made

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


def _is_plain(index: Any) -> bool:
    """Whether PyTorch takes an index for what NumPy does, and without copying."""
    return all(
        i.step is None or i.step > 0
        if isinstance(i, slice)
        else isinstance(i, (int, np.integer)) and not isinstance(i, bool)
        for i in (index if isinstance(index, tuple) else (index,))
    )


def address_of(value: Any) -> int:
    """Where the first number of an array lies."""
    if isinstance(value, DeviceArray):
        return int(value.tensor.data_ptr())
    return int(value.__array_interface__["data"][0])


def held(value: Any, *, borrowed: bool) -> Any:
    """What may be kept of a value: it, where it is ``borrowed``; else a copy where it lies."""
    if isinstance(value, DeviceArray):
        return value if borrowed or value.lasting else value.copy()
    return np.array(value, order="C", copy=None if borrowed else True)


def equal(a: Any, b: Any, *, bits: bool = False) -> bool:
    """`numpy.array_equal`, where the values lie.

    Args:
        bits: a NaN is what has its bits, and 0 is not -0; of two that lie `together`.
    """
    if not together([a, b]) or (a.shape, a.dtype) != (b.shape, b.dtype):
        return np.array_equal(as_host(a), as_host(b))
    torch = sys.modules["torch"]
    ours, theirs = a.tensor, b.tensor
    if bits:
        kind = getattr(torch, f"int{8 * a.itemsize}")
        ours, theirs = ours.view(kind), theirs.view(kind)
    return bool(torch.equal(ours, theirs))


def is_one_number(value: Any) -> bool:
    """Whether all elements of an array are equal; it has some."""
    flat = (value.tensor if isinstance(value, DeviceArray) else value).reshape(-1)
    return bool((flat == flat[0]).all())


def has_room(device: Any) -> bool:
    """Whether there is room for values in the memory that PyTorch can get on a device."""
    cuda = sys.modules["torch"].cuda
    free, _ = cuda.mem_get_info(device)
    reserved = cuda.memory_reserved(device)
    return bool(free + reserved - cuda.memory_allocated(device) > LEFT * (free + reserved))


def stays(tensor: Any, room: Callable[[Any], bool] = has_room) -> bool:
    """Whether a PyTorch tensor is shown where it lies, as a `DeviceArray`: large ones on a CUDA
    device, while there is ``room`` on that for them."""
    torch = sys.modules["torch"]
    return (
        tensor.device.type == "cuda"
        and tensor.numel() >= LEAST
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)  # others may hold no numbers
        and tensor.layout is torch.strided
        and str(tensor.dtype).removeprefix("torch.") in DTYPES
        and not tensor.is_neg()
        and room(tensor.device)
        and _able(tensor.device)
    )


def lent(
    array: Any, size: int, *, lasting: bool = False, room: Callable[[Any], bool] = has_room
) -> DeviceArray | None:
    """What stands for an array of another framework; None where it is shown on the host: PyTorch is
    not loaded, cannot read it in its place, or it does not stay (`stays`).

    Args:
        array: anything that gives DLPack; without negative strides, over which PyTorch crashes.
        size: its number of elements.
        lasting: nobody writes to it.
    """
    if size < LEAST or not sees_devices():
        return None
    try:
        tensor = sys.modules["torch"].from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None  # on several devices, of a dtype or kind of memory that it does not know
    return DeviceArray(tensor, lent=True, lasting=lasting) if stays(tensor, room) else None


def sees_devices() -> bool:
    """Whether PyTorch is loaded and there is a CUDA device for it."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


def _wait_for(device: Any) -> None:
    """Until PyTorch has done there what it was told to."""
    if device.type == "cuda":
        sys.modules["torch"].cuda.current_stream(device).synchronize()


def _fetched(tensor: Any) -> np.ndarray:
    """The numbers of a tensor, on the host."""
    torch = sys.modules["torch"]
    here = tensor.cpu()
    if here.dtype is torch.bfloat16:  # which NumPy does not have
        bits: np.ndarray = here.contiguous().view(torch.int16).numpy()
        return bits.view(DTYPES["bfloat16"])
    found: np.ndarray = here.numpy()
    return found


@cache
def _able(device: Any) -> bool:
    """Whether the Triton kernel runs on that device; tried once."""
    try:
        torch = sys.modules["torch"]
        from crosscheck.kernels.triton_pair import pair_sums

        one = torch.ones(3, device=device)
        found = pair_sums(one, 2 * one).diff2
        if found != 3.0:
            raise ArithmeticError(f"it gives {found} for 3.0")
        return True
    except Exception as error:  # no Triton, no compiler for what it makes, an unknown device
        _UNABLE[str(device)] = f"{type(error).__name__}: {error}".partition("\n")[0]
        return False


def why_on_host() -> str | None:
    """Why large values went from a device to the host, where the reason is that no kernel runs
    there; None: that did not happen."""
    return next((f"{device}: {why}" for device, why in _UNABLE.items()), None)


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
