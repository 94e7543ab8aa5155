"""What a run of a PyTorch model changes in the process and on the model, and puts back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from crosscheck.adapters.torch.parameters import named_modules, named_tensors
from crosscheck.kernels.two_llvms import without_triton

__all__ = [
    "default_float64",
    "deterministic",
    "exact_arithmetic",
    "flags",
    "left_as_found",
    "raised",
    "stood_in",
    "unwatched",
]

_LOWER = frozenset({torch.float32, torch.float16, torch.bfloat16})


def raised(argument: Any) -> Any:
    """A dtype of lower precision becomes float64; everything else stays."""
    # `in` would compare tensors elementwise: ask for the type first.
    lower = isinstance(argument, torch.dtype) and argument in _LOWER
    return torch.float64 if lower else argument


class _AllFloat64(TorchFunctionMode):
    """Casts to lower precision inside the model become casts to float64 (the oracle's run)."""

    _CASTS = frozenset({torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self._CASTS:
            return args[0].double()
        return func(*map(raised, args), **{k: raised(v) for k, v in (kwargs or {}).items()})


class _Unwatched:
    """Takes a mode off the stack, and puts it back."""

    def __init__(self, mode: TorchFunctionMode) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: object) -> None:
        self._mode.__enter__()  # type: ignore[no-untyped-call]


_NOBODY_WATCHES = nullcontext()


def unwatched() -> AbstractContextManager[None]:
    """For calls of our own: they ask for no lower precision, and PyTorch takes long to look at each
    (at every attribute of a tensor, too)."""
    mode = _get_current_function_mode()  # type: ignore[no-untyped-call]
    return _Unwatched(mode) if isinstance(mode, _AllFloat64) else _NOBODY_WATCHES


@contextmanager
def default_float64(*, casts: bool = True) -> Iterator[None]:
    """New tensors are float64; with ``casts``, casts to lower precision are too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with ExitStack() as stack:
            if casts:
                stack.enter_context(_AllFloat64())
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def left_as_found(model: torch.nn.Module, *, train: bool, seed: int) -> Iterator[None]:
    """Modes, buffers and random states are put back at the end; arithmetic is exact until then."""
    modules = [module for _, module in named_modules(model)]
    modes = [module.training for module in modules]
    kept = [
        (owner, key, buffer, buffer.detach().clone())
        for owner in modules
        for key, buffer in owner._buffers.items()
        if buffer is not None
    ]
    devices = [*range(torch.cuda.device_count())] if _cuda_is_in_use() else []
    with torch.random.fork_rng(devices=devices), exact_arithmetic():
        # Not `torch.manual_seed`: devices that are not in use yet would get the seed when they are.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        if any(mode != train for mode in modes):
            model.train(train)  # exported programs know one mode only, and refuse to be asked
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                if module.training != mode:  # to write it takes longer than to read it
                    module.training = mode
            with torch.no_grad():
                for owner, key, buffer, value in kept:
                    owner._buffers[key] = buffer
                    if buffer.layout is not torch.strided or not torch.equal(buffer, value):
                        buffer.copy_(value)


@contextmanager
def stood_in(model: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Tensors stand in the place of the model's parameters and buffers of these names, in every
    module that holds them. In the backward pass as well: checkpoints are computed once more."""
    if not values:
        yield
        return
    parameters, buffers = named_tensors(model)
    own: dict[str, torch.Tensor] = {**parameters, **buffers}
    others = {id(own[name]): value for name, value in values.items()}
    modules = [module for _, module in named_modules(model)]
    places: list[Any] = [held for m in modules for held in (m._parameters, m._buffers)]
    before: list[tuple[Any, str, torch.Tensor]] = []
    try:
        for held in places:
            for key, tensor in list(held.items()):
                if id(tensor) in others:
                    before.append((held, key, tensor))
                    held[key] = others[id(tensor)]
        yield
    finally:
        for held, key, tensor in before:
            held[key] = tensor


def _cuda_is_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


# -- precision -------------------------------------------------------------------------------------


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Float32 means float32: TF32 and reduced-precision sums are off, and put back at the end."""
    with ExitStack() as stack:
        for owner in _precisions():  # the older switches below change these as well
            stack.callback(_restore, owner, "fp32_precision", owner.fp32_precision)
        _set_older_switches(stack)
        for owner in _precisions():
            # "none" leaves it to the setting above it, and so does not lower anything itself.
            if owner.fp32_precision not in ("none", "ieee"):
                owner.fp32_precision = "ieee"
        for name in ("fp16", "bf16"):
            flag = f"allow_{name}_reduced_precision_reduction"
            _set(stack, torch.backends.cuda.matmul, flag, False)
        _set(stack, torch.backends.cuda.matmul, "allow_fp16_accumulation", False)
        yield


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that give the same bits each time, where there are any; put back at the end.

    The backward pass runs on the thread that asks for it, and not on one for each device: what is
    in force here is in force there, and public taps in layers that are computed once more
    (checkpoints) find the run.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with ExitStack() as stack:
        stack.callback(torch.use_deterministic_algorithms, enabled, warn_only=warn_only)
        stack.callback(_set_variable, "CUBLAS_WORKSPACE_CONFIG", workspace)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        with without_triton():  # PyTorch loads its compiler for this
            torch.use_deterministic_algorithms(True, warn_only=True)
        _set(stack, torch.backends.cudnn, "benchmark", False)
        _set(stack, torch.backends.cudnn, "deterministic", True)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        yield


def flags() -> dict[str, Any]:
    """The settings above, as they are now, for the report."""
    return {
        "fp32_precision": {n: getattr(o, "fp32_precision", None) for n, o in _NAMED.items()},
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
    }


_NAMED: dict[str, Any] = {
    "cuda.matmul": torch.backends.cuda.matmul,
    **{
        f"cudnn.{name}": getattr(torch.backends.cudnn, name)
        for name in ("conv", "rnn")
        if hasattr(torch.backends.cudnn, name)
    },
    **{
        f"mkldnn.{name}": getattr(torch.backends.mkldnn, name)
        for name in ("matmul", "conv", "rnn")
        if hasattr(torch.backends.mkldnn, name)
    },
}


def _precisions() -> list[Any]:
    return [owner for owner in _NAMED.values() if hasattr(owner, "fp32_precision")]


def _set_older_switches(stack: ExitStack) -> None:
    """The switches from before ``fp32_precision``: PyTorch lets nobody read them once the newer
    ones say something else, so they are set where they can be read, and agree with them then."""
    with suppress(RuntimeError):
        before = torch.get_float32_matmul_precision()
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision("highest")
    with suppress(RuntimeError):
        _set(stack, torch.backends.cudnn, "allow_tf32", False)


def _restore(owner: Any, name: str, value: Any) -> None:
    if getattr(owner, name) != value:
        setattr(owner, name, value)


def _set(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    if hasattr(owner, name):
        stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
