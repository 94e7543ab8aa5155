"""PyTorch: any ``nn.Module``, tapped by module hooks.

The taps are in `taps`, what a run changes and puts back in `state`; compiled and
exported programs, which have no hooks, in `programs`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from crosscheck.adapters.base import (
    Adapter,
    Capabilities,
    CotangentSource,
    ModelRaised,
    Operation,
    Parameter,
    call_arguments,
    guarded,
    input_site,
)
from crosscheck.adapters.torch.backward import gradients_of
from crosscheck.adapters.torch.compiled import compiled_inside
from crosscheck.adapters.torch.hooks import Boundaries, Hooks
from crosscheck.adapters.torch.left_out import LeftOut, leave_out
from crosscheck.adapters.torch.lending import Loans, copies_everything, gradients_taken
from crosscheck.adapters.torch.parameters import Described, named_tensors
from crosscheck.adapters.torch.saved import saved_within_limit
from crosscheck.adapters.torch.state import (
    default_float64,
    deterministic,
    flags,
    left_as_found,
    stood_in,
    unwatched,
)
from crosscheck.adapters.torch.taps import TorchSession, from_host, shared, shown, to_host
from crosscheck.adapters.torch.widened import Widened, widened
from crosscheck.adapters.torch.wrapping import Wrapping
from crosscheck.errors import DeviceUnavailable, InvalidArgument
from crosscheck.memory import is_limited
from crosscheck.observers import Key
from crosscheck.taps import Observer, Wishes
from crosscheck.trace import RunInfo

__all__ = ["TorchAdapter", "find", "from_host", "to_host"]

Tensors = dict[str, torch.Tensor]


class _Run(NamedTuple):
    """A run under way.

    Attributes:
        seen: where it is tapped.
        replaced: parameters and buffers in the place of the model's own, by name.
        left: what it goes without.
        casts: parameters that are cast where they are used.
    """

    session: TorchSession
    seen: Boundaries
    replaced: Tensors
    left: LeftOut
    casts: Widened | None


class TorchAdapter(Adapter):
    """An ``nn.Module``, on the CPU or on a CUDA device."""

    framework = "torch"
    capabilities = Capabilities(cuda=True, transparent=True, lends=True, leaves_out=True)

    def __init__(self, model: torch.nn.Module) -> None:
        _require_values(model)
        self.model = model
        self.version = torch.__version__.partition("+")[0]
        children = {name for name, _ in model.named_children()}
        self._root = "output" if "output" not in children else "model_output"
        self._flags: dict[str, Any] = {}
        self._copied: frozenset[Key] = frozenset()  # what models write to after it was shown
        self._returned: dict[str, Wrapping | None] = {}
        self._described = Described(model, to_host)
        if copies_everything(model):
            self.capabilities = replace(self.capabilities, lends=False)

    def use(self, device: str) -> None:
        if device == "cuda":
            _require_cuda()
        self.device = device

    @property
    def in_place(self) -> bool:
        return bool(self._copied) or not self.capabilities.lends

    @property
    def environment(self) -> dict[str, Any]:
        return self._flags

    @property
    def notes(self) -> tuple[str, ...]:
        inside = compiled_inside(self.model)
        return tuple(f"`{path}` is {kind}: not observed inside" for path, kind in inside.items())

    def parameters(self) -> tuple[Parameter, ...]:
        return self._described.now()

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        parameters, buffers = named_tensors(self.model)
        tensors: Tensors = {**parameters, **buffers}
        with torch.no_grad():
            for name, array in values.items():
                target = tensors[name]
                if target.shape != array.shape:
                    raise ValueError(f"{name}: shape {array.shape}, expected {tuple(target.shape)}")
                target.copy_(shared(array, target))

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        cotangents: CotangentSource | None = None,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        train: bool = False,
        seed: int = 0,
        passive: bool = False,
    ) -> RunInfo:
        again = functools.partial(
            self._run,
            inputs,
            observer,
            cotangents=cotangents,
            float64=float64,
            overrides=overrides,
            train=train,
            seed=seed,
            passive=passive,
        )
        if float64 and not overrides and is_limited() and type(self) is TorchAdapter:
            # A model that keeps its parameters where no module asks for them by name does not run.
            with suppress(ModelRaised):
                return again(widen=True)
        return again()

    def _run(
        self,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        cotangents: CotangentSource | None,
        float64: bool,
        overrides: Mapping[str, np.ndarray] | None,
        train: bool,
        seed: int,
        passive: bool,
        widen: bool = False,
    ) -> RunInfo:
        """Args as for `run`; ``widen``: cast parameters where they are used (`widened`)."""
        loans = Loans(self._copied) if Wishes.of(observer).borrows else None
        session = self._session(observer, loans, passive=passive)
        kept = [p.name for p in self.parameters() if p.buffer] if train else []
        with ExitStack() as stack:
            self._prepare(stack, train=train, seed=seed, float64=float64)
            run = self._begun(stack, session, overrides or {}, float64=float64, widen=widen)
            stack.enter_context(torch.set_grad_enabled(cotangents is not None))
            fed = {name: self._feed(a, float64=float64) for name, a in inputs.items()}
            tapped = {n: self._tap_input(session, n, t) for n, t in fed.items()}
            with guarded(session, "forward"):
                self._forward(run.seen, tapped)
            gradients = {} if cotangents is None else self._backward(run, cotangents, fed)
            held = run.replaced | named_tensors(self.model)[1] if kept else {}
            buffers = {name: np.array(to_host(held[name])) for name in kept}
        overwritten = frozenset() if loans is None else loans.overwritten(self.model)
        self._copied |= overwritten
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(site for site, _ in run.seen.outputs),
            parameter_gradients=gradients,
            buffers=buffers,
            overwritten=overwritten,
        )

    def _session(self, observer: Observer, loans: Loans | None, *, passive: bool) -> TorchSession:
        return TorchSession(
            observer,
            separator=self.separator,
            root=self._root,
            passive=passive,
            device=self.device,
            loans=loans,
            returned=self._returned,
        )

    def _begun(
        self,
        stack: ExitStack,
        session: TorchSession,
        overrides: Mapping[str, np.ndarray],
        *,
        float64: bool,
        widen: bool,
    ) -> _Run:
        """Everything stands where the run needs it, until ``stack`` is left."""
        left = stack.enter_context(leave_out(session, self.model))
        casts = stack.enter_context(widened(self.model)) if widen else None
        here = left.names | casts.names if casts is not None else left.names
        replaced = self._replaced(overrides, float64=float64, but=here)
        seen = self._boundaries(session, replaced, float64=float64)
        replaced = self._in_place_of(stack, replaced)
        stack.enter_context(seen.installed())
        stack.enter_context(session.active())
        live = replaced.values() or self.model.parameters()
        stack.enter_context(saved_within_limit(live, casts))
        return _Run(session, seen, replaced, left, casts)

    def _backward(
        self, run: _Run, cotangents: CotangentSource, fed: Tensors
    ) -> Mapping[str, np.ndarray]:
        """The backward pass; gives the gradients of the parameters."""
        session, outputs = run.session, run.seen.outputs
        session.forget_overwritten()
        wanted = cotangents({site: shown(t) for site, t in outputs})
        session.replaying = True
        takes = Wishes.of(session.observer).takes_gradient
        offered = None if takes is None else (lambda name, g: takes(name, to_host(g)))
        with guarded(session, "backward"):
            leaves = self._leaves(run.replaced)
            ends = [*(t for t in fed.values() if t.requires_grad), *run.left.ends]
            with gradients_taken(leaves, offered) as taken:
                found = gradients_of(leaves, outputs, wanted, ends)
        gone = run.left.names | taken
        gradients: Mapping[str, np.ndarray] = {n: g for n, g in found.items() if n not in gone}
        if run.casts is not None:
            gradients = run.casts.gradients(gradients)
        session.flush()
        return gradients

    def operations(
        self,
        site: str,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        train: bool = False,
        seed: int = 0,
    ) -> tuple[Operation, ...]:
        from crosscheck.adapters.torch.operations import OperationRecorder

        with OperationRecorder(site) as recorder:
            self.run(inputs, observer, train=train, seed=seed)
        return tuple(recorder.operations)

    # -- what a run is made of, for other kinds of programs to replace -----------------------

    def _prepare(self, stack: ExitStack, *, train: bool, seed: int, float64: bool) -> None:
        stack.enter_context(left_as_found(self.model, train=train, seed=seed))
        if self.device == "cuda":
            stack.enter_context(deterministic())
            name = torch.cuda.get_device_name()
            self._flags = {"device": name, "cuda": torch.version.cuda, **flags()}
        if float64:
            stack.enter_context(default_float64())

    def _boundaries(self, session: TorchSession, replaced: Tensors, *, float64: bool) -> Boundaries:
        return Hooks(session, self.model)

    def _in_place_of(self, stack: ExitStack, replaced: Tensors) -> Tensors:
        """Put values in the place of the model's own; gives those that the run computes with."""
        stack.enter_context(stood_in(self.model, replaced))
        return replaced

    def _forward(self, seen: Boundaries, tapped: dict[str, Any]) -> Any:
        args, kwargs = call_arguments(self.model.forward, tapped)
        return self.model(*args, **kwargs)

    # -- values ------------------------------------------------------------------------------

    def _feed(self, array: np.ndarray, *, float64: bool) -> torch.Tensor:
        beyond = array.dtype.kind == "V"  # bfloat16 and its kin, which torch.tensor does not know
        tensor = torch.tensor(np.array(array, np.float32 if beyond else array.dtype, order="C"))
        tensor = tensor.to(getattr(torch, array.dtype.name)) if beyond else tensor
        tensor = tensor.to(self.device)
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.double() if float64 else tensor
        return tensor.requires_grad_(torch.is_grad_enabled())

    def _tap_input(self, session: TorchSession, name: str, tensor: torch.Tensor) -> torch.Tensor:
        site = input_site(name)
        session.layers[site] = "input"
        # A copy: the model may overwrite its input in place, which a leaf would forbid.
        tapped = session.tap_value(site, "activation", tensor.clone())
        session.produced(tapped, site)
        return tapped

    def _leaves(self, replaced: Tensors) -> Tensors:
        """The parameters that get a gradient."""
        parameters, _ = named_tensors(self.model)
        own = {n: replaced.get(n, p) for n, p in parameters.items()}
        return {n: p for n, p in own.items() if p.requires_grad}

    def _replaced(
        self,
        overrides: Mapping[str, np.ndarray],
        *,
        float64: bool,
        but: frozenset[str] = frozenset(),
    ) -> Tensors:
        """Parameters and buffers to run with instead of the model's own; empty for its own.

        Args:
            but: names of those that the run does not need.
        """
        parameters, buffers = named_tensors(self.model)
        own: Tensors = {**parameters, **buffers}
        elsewhere = any(tensor.device.type != self.device for tensor in own.values())
        if not float64 and not overrides and not elsewhere:
            return {}
        with unwatched():
            return {
                name: self._stand_in(tensor, overrides.get(name), float64=float64)
                for name, tensor in own.items()
                if name not in but
            }

    def _stand_in(
        self, own: torch.Tensor, given: np.ndarray | None, *, float64: bool
    ) -> torch.Tensor:
        """A tensor of its own memory, with the model's own values or those that are given."""
        dtype = torch.float64 if float64 and own.is_floating_point() else own.dtype
        if given is None:
            value = own.detach().to(self.device, dtype, copy=True)
        else:
            value = from_host(given, own.new_empty(0, dtype=dtype, device=self.device))
        return value.requires_grad_(own.requires_grad)


def _require_values(model: torch.nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(tensor):
            raise InvalidArgument(
                f"`{name}` of the PyTorch module is lazy: it has no shape yet.\n"
                "  Fix: run the module once before the check"
            )
        if tensor.is_meta:
            raise InvalidArgument(
                f"`{name}` of the PyTorch module is on the meta device: it has no values.\n"
                '  Fix: module.to_empty(device="cpu"), then load its weights'
            )


def _require_cuda() -> None:
    if torch.cuda.is_available():
        # Else its random state could not be put back after the first run.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        return
    if torch.version.cuda is None:
        raise DeviceUnavailable(
            f"PyTorch {torch.__version__} is built without CUDA.\n"
            "  Fix: install a CUDA build of PyTorch (pytorch.org says which for your driver)"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
    raise DeviceUnavailable(
        f"PyTorch {torch.__version__} sees no CUDA device{hidden}.\n"
        "  Fix: run where there is one; `crosscheck doctor` shows driver and devices"
    )


def find(model: Any) -> TorchAdapter | None:
    """An adapter if ``model`` is a PyTorch module or an exported program, else None."""
    from crosscheck.adapters.torch.programs import program

    found = program(model)
    if found is None and isinstance(model, torch.nn.Module):
        found = TorchAdapter(model)
    return found
