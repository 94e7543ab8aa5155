"""Where a PyTorch model is tapped: at both ends of each layer call, by module hooks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from crosscheck.adapters.torch.compiled import kind_of, original
from crosscheck.adapters.torch.parameters import named_modules
from crosscheck.adapters.torch.state import unwatched
from crosscheck.adapters.torch.taps import TorchSession, is_tensor
from crosscheck.adapters.torch.wrapping import Wrapping
from crosscheck.structure import replace_leaves
from crosscheck.taps import Kind

__all__ = ["Boundaries", "Hooks"]

Watched = list[tuple[str, "weakref.ref[torch.Tensor]", int]]


class Boundaries:
    """Taps at both ends of a layer call, however the call is noticed.

    Attributes:
        outputs: (site, tensor) of the model's own outputs, once it has run.
    """

    def __init__(self, session: TorchSession) -> None:
        self.session = session
        self.outputs: list[tuple[str, torch.Tensor]] = []
        self._open: list[Watched] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For the time of a run."""
        yield

    def call(self, layer: str, function: Any, args: Any, kwargs: Any) -> Any:
        """Call the whole model, and tap what it returns."""
        self.session.begin(self.session.root, layer)
        self._open.append([])
        output = function(*args, **kwargs)
        return self.leave(output, is_root=True)

    def tap_input(self, site: str, tensor: torch.Tensor) -> torch.Tensor:
        """An input of the call that has just begun."""
        session = self.session
        with unwatched():
            source = session.producer(tensor)
            tapped = session.tap_value(site, "input", tensor)
            if source is not None:
                session.sources[site] = source
                if tapped is not tensor:
                    session.produced(tapped, source)  # the same value, as a view
            self._open[-1].append((site, weakref.ref(tapped), tapped._version))
        return tapped

    def enter(self, path: str, layer: str) -> str:
        """A layer call begins; gives its site."""
        self._open.append([])
        return self.session.begin(path, layer)

    def leave(self, output: Any, *, is_root: bool = False) -> Any:
        """The innermost layer call is over; gives what the model goes on with."""
        session = self.session
        site = session.current
        assert site is not None
        with unwatched():
            for input_name, reference, version in self._open.pop():
                tensor = reference()
                if tensor is not None and tensor._version != version and tensor.requires_grad:
                    # Overwritten in place: autograd rebuilds the view, and our hook hangs on the
                    # old one, so the cotangent seen there would not be this layer's.
                    session.forget_cotangent(input_name, "input")
            session.end()
            session.returned[site] = Wrapping.of(output)

            def tap_output(suffix: str, tensor: torch.Tensor) -> torch.Tensor:
                tapped = session.tap_value(site + suffix, "activation", tensor)
                session.produced(tapped, site + suffix)
                if is_root:
                    self.outputs.append((site + suffix, tapped))
                return tapped

            if is_tensor(output):  # nearly always
                return tap_output("", output)
            return replace_leaves(output, is_tensor, tap_output)


class Hooks(Boundaries):
    """The module hooks of one run.

    What is compiled has an inside that no hook is put on: it would be compiled as well, or is
    refused. One that is compiled in its place takes none itself.
    """

    def __init__(self, session: TorchSession, model: torch.nn.Module) -> None:
        super().__init__(session)
        self._root = model
        self._paths: dict[torch.nn.Module, str] = {}
        opaque: tuple[str, ...] = ()
        for path, module in named_modules(model):
            if path.startswith(opaque):
                continue
            kind = kind_of(module)
            if kind is not None:
                opaque += (f"{path}.",)
            if kind is None or original(module) is not module:
                self._paths[module] = path or session.root

    @contextmanager
    def installed(self) -> Iterator[None]:
        handles = []
        try:
            for module in self._paths:
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def call(self, layer: str, function: Any, args: Any, kwargs: Any) -> Any:
        return function(*args, **kwargs)  # the model has hooks of its own

    def _before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        if self.session.replaying:
            self.session.enter_again(self._paths[module])
            return self._again(module, "input", (args, kwargs))
        site = self.enter(self._paths[module], type(module).__name__)
        if module is self._root:
            return None  # the model's inputs are sites of their own already
        if len(args) == 1 and not kwargs and is_tensor(args[0]):  # nearly always
            return (self.tap_input(site, args[0]),), kwargs

        def tap(suffix: str, tensor: torch.Tensor) -> torch.Tensor:
            return self.tap_input(site + suffix, tensor)

        return replace_leaves((args, kwargs), is_tensor, tap)

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        if self.session.replaying:
            return self._again(module, "activation", output)
        return self.leave(output, is_root=module is self._root)

    def _again(self, module: torch.nn.Module, kind: Kind, values: Any) -> Any:
        path = self._paths[module]

        def tap(suffix: str, tensor: torch.Tensor) -> torch.Tensor:
            return self.session.tap_again(path, suffix, kind, tensor)

        return replace_leaves(values, is_tensor, tap)
