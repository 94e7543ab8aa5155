"""PyTorch: any ``nn.Module``, tapped by module hooks.

Outputs are watched by tensor hooks, which see the cotangent summed over all consumers and follow
in-place operations. Inputs are watched through a view, one per layer call, so that the cotangent
seen there is that layer's own. Forcing goes through an ``autograd.Function`` whose forward returns
the replacement and whose backward passes the cotangent on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from crosscheck.adapters.base import (
    Adapter,
    Capabilities,
    CotangentSource,
    Parameter,
    call_arguments,
    guarded,
    input_site,
)
from crosscheck.adapters.torch_parameters import describe
from crosscheck.structure import replace_leaves
from crosscheck.taps import COTANGENT_OF, Kind, Observer, Session
from crosscheck.trace import RunInfo

__all__ = ["TorchAdapter", "find", "from_host", "to_host"]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def to_host(tensor: torch.Tensor) -> np.ndarray:
    """A NumPy view of ``tensor`` where possible; bfloat16 through ml_dtypes."""
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.to_dense().numpy() if tensor.is_sparse else tensor.numpy()


def from_host(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """A tensor of its own memory with the dtype and device of ``like``."""
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)  # exact, and a dtype that torch.tensor accepts
    return torch.tensor(array, dtype=like.dtype, device=like.device)


class _Replace(torch.autograd.Function):
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


class _AllFloat64(TorchFunctionMode):
    """Casts to lower precision inside the model become casts to float64 (the oracle's run)."""

    _LOWER = frozenset({torch.float32, torch.float16, torch.bfloat16})
    _CASTS = frozenset({torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self._CASTS:
            return args[0].double()
        raised = {k: self._raise(v) for k, v in (kwargs or {}).items()}
        return func(*(self._raise(a) for a in args), **raised)

    def _raise(self, argument: Any) -> Any:
        # `in` would compare tensors elementwise: ask for the type first.
        lower = isinstance(argument, torch.dtype) and argument in self._LOWER
        return torch.float64 if lower else argument


class _TorchSession(Session):
    """Taps on tensors. Hooks hold site names and this session, never a tensor."""

    def __init__(
        self, observer: Observer, *, separator: str, root: str, passive: bool = False
    ) -> None:
        super().__init__(observer, separator=separator, root=root, passive=passive)
        self._watched: dict[int, weakref.ref[torch.Tensor]] = {}
        self._views: list[tuple[str, torch.Tensor, int]] = []

    def tap_value(self, site: str, kind: Kind, value: torch.Tensor) -> torch.Tensor:
        host = to_host(value)
        replacement = self.observe(site, kind, host)
        if replacement is not None and not (kind == "input" and np.array_equal(replacement, host)):
            value = _Replace.apply(value, [from_host(replacement, value)])  # type: ignore[no-untyped-call]
        elif kind == "input" and self.passive:
            return value
        elif value.requires_grad and (kind == "input" or self._is_shared(value)):
            value = value.view_as(value)
            if kind == "activation":
                self._views.append((site, value.detach(), value._version))
        if value.requires_grad:
            self.expect_cotangent(site, kind, host)
            self._watch(site, kind, value)
        return value

    def _is_shared(self, value: torch.Tensor) -> bool:
        """A layer returns a tensor that is a site already (what its last layer returned, or its
        own input), or a parameter: a hook on it would see other consumers too, run in the wrong
        order, or stay behind on the parameter."""
        known = self._watched.get(id(value))
        return value.is_leaf or (known is not None and known() is value)

    def forget_overwritten(self) -> None:
        """An output view that was overwritten in place has been rebuilt without our hook."""
        for site, alias, version in self._views:
            if alias._version != version:
                self.forget_cotangent(site, "activation")
        self._views.clear()

    def _watch(self, site: str, kind: Kind, value: torch.Tensor) -> None:
        def on_cotangent(gradient: torch.Tensor) -> torch.Tensor | None:
            if (COTANGENT_OF[kind], site) in self.unobservable:
                return None
            replacement = self.observe(site, COTANGENT_OF[kind], to_host(gradient))
            return None if replacement is None else from_host(replacement, gradient)

        value.register_hook(on_cotangent)  # type: ignore[no-untyped-call]
        self._watched[id(value)] = weakref.ref(value)


class _Hooks:
    """The module hooks of one run."""

    def __init__(self, session: _TorchSession, model: torch.nn.Module) -> None:
        self.session = session
        self.outputs: list[tuple[str, torch.Tensor]] = []
        self._root = model
        self._paths = {module: path or session.root for path, module in model.named_modules()}
        self._inputs: list[list[tuple[str, weakref.ref[torch.Tensor], int]]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self._paths:
                pre = module.register_forward_pre_hook(self._before, with_kwargs=True)
                stack.callback(pre.remove)
                post = module.register_forward_hook(self._after, with_kwargs=True)
                stack.callback(post.remove)
            yield

    def _before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        session = self.session
        site = session.begin(self._paths[module], type(module).__name__)
        watched: list[tuple[str, weakref.ref[torch.Tensor], int]] = []
        self._inputs.append(watched)
        if module is self._root:
            return None  # the model's inputs are sites of their own already

        def tap_input(suffix: str, tensor: torch.Tensor) -> torch.Tensor:
            source = session.producer(tensor)
            if source is not None:
                session.sources[site + suffix] = source
            tapped = session.tap_value(site + suffix, "input", tensor)
            if source is not None:
                session.produced(tapped, source)  # the same value, as a view
            watched.append((site + suffix, weakref.ref(tapped), tapped._version))
            return tapped

        return replace_leaves((args, kwargs), _is_tensor, tap_input)

    def _after(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        session = self.session
        site = session.current
        assert site is not None
        for input_name, reference, version in self._inputs.pop():
            tensor = reference()
            if tensor is not None and tensor._version != version and tensor.requires_grad:
                # Overwritten in place: autograd rebuilds the view, and our hook hangs on the old
                # one, so the cotangent seen there would not be this layer's.
                session.forget_cotangent(input_name, "input")
        session.end()

        def tap_output(suffix: str, tensor: torch.Tensor) -> torch.Tensor:
            tapped = session.tap_value(site + suffix, "activation", tensor)
            session.produced(tapped, site + suffix)
            if module is self._root:
                self.outputs.append((site + suffix, tapped))
            return tapped

        return replace_leaves(output, _is_tensor, tap_output)


class TorchAdapter(Adapter):
    """An ``nn.Module`` on the CPU."""

    framework = "torch"

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.version = torch.__version__.partition("+")[0]
        self.capabilities = Capabilities()
        children = {name for name, _ in model.named_children()}
        self._root = "output" if "output" not in children else "model_output"

    def parameters(self) -> tuple[Parameter, ...]:
        return describe(self.model, to_host)

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, array in values.items():
                target = tensors[name]
                if target.shape != array.shape:
                    raise ValueError(f"{name}: shape {array.shape}, expected {tuple(target.shape)}")
                target.copy_(from_host(array, target))

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
        session = _TorchSession(
            observer, separator=self.separator, root=self._root, passive=passive
        )
        hooks = _Hooks(session, self.model)
        with ExitStack() as stack:
            stack.enter_context(_left_as_found(self.model, train=train, seed=seed))
            replaced = self._replaced(overrides or {}, float64=float64)
            if float64:
                stack.enter_context(_default_float64())
            stack.enter_context(hooks.installed())
            stack.enter_context(session.active())
            stack.enter_context(torch.set_grad_enabled(cotangents is not None))
            fed = {name: _feed(a, float64=float64) for name, a in inputs.items()}
            tapped = {n: self._tap_input(session, n, t) for n, t in fed.items()}
            with guarded(session, "forward"):
                self._forward(tapped, replaced)
            gradients: dict[str, np.ndarray] = {}
            if cotangents is not None:
                session.forget_overwritten()
                wanted = cotangents({site: to_host(t) for site, t in hooks.outputs})
                with guarded(session, "backward"):
                    gradients = self._backward(hooks.outputs, wanted, fed, replaced)
                session.flush()
            live = replaced or dict(self.model.named_buffers())
            buffers = {
                p.name: np.array(to_host(live[p.name])) for p in self.parameters() if p.buffer
            }
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(site for site, _ in hooks.outputs),
            parameter_gradients=gradients,
            buffers=buffers if train else None,
        )

    def _tap_input(self, session: _TorchSession, name: str, tensor: torch.Tensor) -> torch.Tensor:
        site = input_site(name)
        session.layers[site] = "input"
        # A copy: the model may overwrite its input in place, which a leaf would forbid.
        tapped = session.tap_value(site, "activation", tensor.clone())
        session.produced(tapped, site)
        return tapped

    def _forward(self, tapped: dict[str, Any], replaced: dict[str, torch.Tensor]) -> Any:
        args, kwargs = call_arguments(self.model.forward, tapped)
        if replaced:
            return torch.func.functional_call(self.model, replaced, tuple(args), kwargs)
        return self.model(*args, **kwargs)

    def _backward(
        self,
        outputs: list[tuple[str, torch.Tensor]],
        cotangents: Mapping[str, np.ndarray],
        fed: dict[str, torch.Tensor],
        replaced: dict[str, torch.Tensor],
    ) -> dict[str, np.ndarray]:
        leaves_ = {n: replaced.get(n, p) for n, p in self.model.named_parameters()}
        leaves_ = {n: p for n, p in leaves_.items() if p.requires_grad}
        roots = [(t, cotangents[s]) for s, t in outputs if s in cotangents and t.requires_grad]
        if not roots:
            return {n: np.zeros(tuple(p.shape), np.float32) for n, p in leaves_.items()}
        wanted = [*leaves_.values(), *(t for t in fed.values() if t.requires_grad)]
        gradients = torch.autograd.grad(
            [t for t, _ in roots],
            wanted,
            [from_host(c, t) for t, c in roots],
            allow_unused=True,
        )
        return {
            name: np.array(to_host(torch.zeros_like(p) if g is None else g))
            for (name, p), g in zip(leaves_.items(), gradients[: len(leaves_)], strict=True)
        }

    def _replaced(
        self, overrides: Mapping[str, np.ndarray], *, float64: bool
    ) -> dict[str, torch.Tensor]:
        """Parameters and buffers to run with instead of the model's own; empty for its own."""
        if not float64 and not overrides:
            return {}
        replaced = {}
        own = [*self.model.named_parameters(), *self.model.named_buffers()]
        for name, tensor in own:
            value = tensor.detach()
            if float64 and value.is_floating_point():
                value = value.double()
            if name in overrides:
                value = from_host(overrides[name], value)
            replaced[name] = value.clone().requires_grad_(tensor.requires_grad)
        return replaced


def _feed(array: np.ndarray, *, float64: bool) -> torch.Tensor:
    bfloat16 = array.dtype.name == "bfloat16"  # which torch.tensor does not know
    tensor = torch.tensor(np.array(array, np.float32 if bfloat16 else array.dtype, order="C"))
    tensor = tensor.bfloat16() if bfloat16 else tensor
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.double() if float64 else tensor
    return tensor.requires_grad_(torch.is_grad_enabled())


@contextmanager
def _default_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _AllFloat64():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _left_as_found(model: torch.nn.Module, *, train: bool, seed: int) -> Iterator[None]:
    """Modes, buffers, random state and precision flags are put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    kept = [
        (owner, key, buffer, buffer.detach().clone())
        for owner in model.modules()
        for key, buffer in owner._buffers.items()
        if buffer is not None
    ]
    precision = torch.get_float32_matmul_precision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("highest")
        model.train(train)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for owner, key, buffer, value in kept:
                    owner._buffers[key] = buffer
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def find(model: Any) -> TorchAdapter | None:
    """An adapter if ``model`` is a PyTorch module, else None."""
    return TorchAdapter(model) if isinstance(model, torch.nn.Module) else None
