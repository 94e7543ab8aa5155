"""Taps on PyTorch tensors; `hooks` places them.

Outputs are watched by tensor hooks, which see the cotangent summed over all consumers and follow
in-place operations. Inputs are watched through a view, one per layer call, so that the cotangent
seen there is that layer's own. Forcing goes through an ``autograd.Function`` whose forward returns
the replacement and whose backward passes the cotangent on.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any, cast

import numpy as np
import torch

from crosscheck.adapters.torch.lending import Loans
from crosscheck.adapters.torch.state import unwatched
from crosscheck.adapters.torch.wrapping import Wrapping
from crosscheck.arrays import dtype_name
from crosscheck.errors import CannotCompare, DeviceUnavailable
from crosscheck.kernels.on_device import DeviceArray, equal, held, stays
from crosscheck.observers import Key
from crosscheck.taps import COTANGENT_OF, Kind, Observer, Session, Wishes

__all__ = [
    "Replace",
    "TorchSession",
    "from_host",
    "is_tensor",
    "shared",
    "shown",
    "to_host",
]


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _beyond_numpy(dtype: torch.dtype) -> Any:
    """The ml_dtypes type of a dtype that NumPy does not have (bfloat16, float8), else None."""
    name = str(dtype).removeprefix("torch.")
    if not name.startswith(("bfloat16", "float8")):
        return None
    import ml_dtypes

    return getattr(ml_dtypes, name, None)


def to_host(tensor: torch.Tensor) -> np.ndarray:
    """A NumPy view of ``tensor`` where possible; bfloat16 and float8 through ml_dtypes.

    Raises:
        CannotCompare: a kind of tensor that no array can show (quantised, nested).
    """
    tensor = tensor.detach()
    try:  # nearly always that is all it takes
        return tensor.numpy()
    except (TypeError, RuntimeError):
        return _converted(tensor)


def _converted(tensor: torch.Tensor) -> np.ndarray:
    """`to_host` of a tensor that NumPy does not read in its place."""
    try:
        tensor = tensor.resolve_conj().resolve_neg().cpu()
        beyond = _beyond_numpy(tensor.dtype)
        if beyond is not None:
            bits = torch.int16 if tensor.element_size() == 2 else torch.uint8
            return tensor.contiguous().view(bits).numpy().view(beyond)
        return tensor.to_dense().numpy() if tensor.is_sparse else tensor.numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        if not (tensor.is_quantized or tensor.is_nested):
            raise
        kind = "quantised" if tensor.is_quantized else "nested"
        raise CannotCompare(
            f"a {kind} tensor of {tensor.dtype} cannot be shown as an array.\n  Fix: let the layer "
            "return an ordinary tensor (dequantize(), to_padded_tensor()), or check the part of "
            "the model in front of it"
        ) from error


def shown(tensor: torch.Tensor) -> np.ndarray:
    """What observers are shown of a tensor: its array, or what stands for it on a device."""
    if tensor.is_cpu or not stays(tensor):
        return to_host(tensor)
    return cast(np.ndarray, DeviceArray(tensor.detach()))


def from_host(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """A tensor of its own memory with the dtype and device of ``like``."""
    if isinstance(array, DeviceArray):
        return cast(torch.Tensor, array.given_to(like))
    if array.dtype.kind != "f" and "float" in dtype_name(array.dtype):
        array = array.astype(np.float32)  # exact, and a dtype that torch.tensor accepts
    if array.dtype.kind in "fi" and array.dtype.isnative and array.flags.carray:
        there = torch.from_numpy(array)
        if there.dtype is like.dtype and like.is_cpu:
            return there.clone()  # in half the time
    return torch.tensor(array, dtype=like.dtype, device=like.device)


def shared(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """A tensor to read from: in the array's own memory, in its dtype, where PyTorch can."""
    known = array.dtype.isnative and array.dtype.name in ("float64", "float32", "float16")
    if known and array.flags.writeable and min(array.strides, default=0) >= 0:
        return torch.from_numpy(array)
    return from_host(np.array(array, order="C"), like)


class Replace(torch.autograd.Function):
    """Forward: the replacement. Backward: the identity onto the value that was replaced.

    The replacement comes in a list: returned as it is, a tensor argument would become a view,
    which the model could not overwrite in place.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, box: list[torch.Tensor]) -> torch.Tensor:
        return box[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0], None


class TorchSession(Session):
    """Taps on tensors. Hooks hold site names and this session, never a tensor.

    ``device`` is where every value must lie; None: nobody asked. ``loans``: what is shown may be
    kept; else only copies may. ``returned``: what the layer calls return their tensors in, as far
    as an earlier run has seen it; kept up to date.

    Attributes:
        given: values of layers that are left out: they are what would replace them.
        replaying: the backward pass has begun. A layer that is called now is computed once more,
            out of a checkpoint: it has been seen, and is forced as it was the first time.
    """

    def __init__(
        self,
        observer: Observer,
        *,
        separator: str,
        root: str,
        passive: bool = False,
        device: str | None = None,
        loans: Loans | None = None,
        returned: dict[str, Wrapping | None] | None = None,
    ) -> None:
        super().__init__(observer, separator=separator, root=root, passive=passive)
        self.returned = {} if returned is None else returned
        self._device = device
        self._loans = loans
        self.given: set[tuple[Kind, str]] = set()
        self.replaying = False
        self._scopes: list[str] = []  # the layers being replayed, outermost first
        # Kept for a replay only; an observer that knows its plan is asked once more instead.
        wishes = Wishes.of(observer)
        self._planned, self._keeps = wishes.planned, wishes.keeps
        self._forced: dict[tuple[Kind, str], np.ndarray | None] = {}
        self._watched: dict[int, weakref.ref[torch.Tensor]] = {}
        self._views: list[tuple[str, torch.Tensor, int]] = []

    def tap_value(self, site: str, kind: Kind, value: torch.Tensor) -> torch.Tensor:
        self._require_device(site, value)
        host = self._lent(site, kind, value, self._host(site, value))
        if (kind, site) in self.given:
            self.observer(site, kind, host)
            replacement = None
        else:
            replacement = self.observe(site, kind, host)
        if replacement is not None and not (kind == "input" and equal(replacement, host)):
            value = Replace.apply(value, [from_host(replacement, value)])  # type: ignore[no-untyped-call]
            self._forced[kind, site] = replacement if self._planned is None else None
        elif kind == "input" and self.passive:
            self._watched[id(value)] = weakref.ref(value)  # nobody does, but it is a site
            return value
        elif value.requires_grad and (kind == "input" or self._is_shared(value)):
            value = value.view_as(value)
            if kind == "activation":
                self._views.append((site, value.detach(), value._version))
        if value.requires_grad:
            self.expect_cotangent(site, kind, host)
            self._watch(site, kind, value)
        return value

    def content(self, value: torch.Tensor) -> int:
        return value._version

    def tap(self, name: str, value: Any) -> Any:
        if not self.replaying:
            return super().tap(name, value)
        scope = f"{self._scopes[-1]}{self.separator}" if self._scopes else ""
        return self.tap_again(scope + name, "", "activation", value)

    def enter_again(self, path: str) -> None:
        """The layer at ``path`` is being replayed; a replay may have stopped inside others."""
        inside = self.separator
        while self._scopes and not path.startswith(self._scopes[-1] + inside):
            self._scopes.pop()
        self._scopes.append(path)

    def tap_again(self, path: str, suffix: str, kind: Kind, value: torch.Tensor) -> torch.Tensor:
        """The value at a site that has been seen: replaced as it was.

        Raises:
            CannotCompare: the layer was called several times and forced; no telling which it is.
        """
        if self._calls[path] > 1 and self._forced:
            raise CannotCompare(
                f"`{path}` is called {self._calls[path]} times, and computed once more in the "
                "backward pass (torch.utils.checkpoint), where its calls cannot be told apart.\n"
                "  Fix: switch checkpointing off for the check; it changes no value"
            )
        if (kind, path + suffix) not in self._forced:
            return value
        replacement = self._forced[kind, path + suffix]
        if replacement is None and self._planned is not None:
            replacement = self._planned(path + suffix, kind)
        assert replacement is not None  # what is not kept was planned
        again: torch.Tensor = Replace.apply(value, [from_host(replacement, value)])  # type: ignore[no-untyped-call]
        return again

    def _lent(self, site: str, kind: Kind, value: torch.Tensor, host: np.ndarray) -> np.ndarray:
        """What the observer may keep."""
        if self._loans is None or (self._keeps is not None and not self._keeps(kind, host)):
            return host
        if (kind, site) in self._loans.copied:
            return cast(np.ndarray, held(host, borrowed=False))
        self._loans.note((kind, site), value)
        return host

    def let_go(self, keys: Collection[Key]) -> None:
        if self._loans is not None:
            self._loans.end(keys)

    def _require_device(self, site: str, value: torch.Tensor) -> None:
        # A number without axes may lie on the host: PyTorch passes it to the kernel by itself.
        if (self._device == "cpu" and value.is_cpu) or self._device is None or value.ndim == 0:
            return
        if value.device.type == self._device:
            return
        raise DeviceUnavailable(
            f"`{site}` was computed on {value.device}, not on {self._device}: the model makes a "
            "tensor of its own there.\n  Fix: make it on its input's device (device=x.device), or "
            "register it as a buffer"
        )

    def _host(self, site: str, value: torch.Tensor) -> np.ndarray:
        try:
            return shown(value)
        except CannotCompare as error:
            raise CannotCompare(f"`{site}`: {error}") from error.__cause__

    def _is_shared(self, value: torch.Tensor) -> bool:
        """A layer returns a tensor that is a site already (what its last layer returned, or its
        own input), or a parameter: a hook on it would see other consumers too, run in the wrong
        order, or stay behind on the parameter."""
        known = self._watched.get(id(value))
        return value.is_leaf or (known is not None and known() is value)

    def forget_overwritten(self) -> None:
        """An output view that was overwritten in place has been rebuilt without our hook."""
        with unwatched():
            changed = [site for site, alias, version in self._views if alias._version != version]
        for site in changed:
            self.forget_cotangent(site, "activation")
        self._views.clear()

    def _watch(self, site: str, kind: Kind, value: torch.Tensor) -> None:
        back = COTANGENT_OF[kind]

        def on_cotangent(gradient: torch.Tensor | None) -> torch.Tensor | None:
            if gradient is None or (back, site) in self.unobservable:
                return None  # None: what is behind has no backward pass (a quantised kernel)
            with unwatched():
                host = self._lent(site, back, gradient, shown(gradient))
                replacement = self.observe(site, back, host)
                return None if replacement is None else from_host(replacement, gradient)

        value.register_hook(on_cotangent)  # type: ignore[no-untyped-call]
        self._watched[id(value)] = weakref.ref(value)
