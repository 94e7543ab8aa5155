"""Compiled PyTorch modules: TorchScript and ``torch.compile``, of which only the ends are seen.

Hooks inside would change what is compiled (``torch.compile`` traces them too) or are refused
(TorchScript), and the check would be of something that nobody runs. So these are run as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from crosscheck.adapters.torch.parameters import named_modules
from crosscheck.errors import CannotCompare

__all__ = ["compiled_inside", "kind_of", "note_on", "original", "refusing_fallback", "swapped"]


def kind_of(module: torch.nn.Module) -> str | None:
    """``"TorchScript"``, ``"torch.compile"``, or None for a module that runs as it is written."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
        return "torch.compile"
    return None


def original(module: torch.nn.Module) -> torch.nn.Module:
    """The module that holds the parameters of a compiled one."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, torch.nn.Module)
    return inner


def compiled_inside(model: torch.nn.Module) -> dict[str, str]:
    """path -> kind of the outermost compiled modules inside an ordinary one."""
    found: dict[str, str] = {}
    for path, module in named_modules(model):
        kind = kind_of(module)
        if kind is not None and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = kind
    return found


def note_on(kind: str) -> str:
    """What the reader of a report has to know of a model that is compiled as a whole."""
    source = "the module it was made of" if kind == "TorchScript" else "the module before compiling"
    return (
        f"{kind}: outputs and gradients are the compiled program's own; its inside is not "
        f"observed. To see the sites inside, check {source}"
    )


@contextmanager
def swapped(model: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Parameters and buffers hold other data meanwhile; compiled code keeps the objects."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    before = {name: own[name].data for name in values}
    try:
        for name, value in values.items():
            own[name].data = value.detach()
        yield
    finally:
        for name, data in before.items():
            own[name].data = data


@contextmanager
def refusing_fallback() -> Iterator[None]:
    """`torch.compile` may not give up and run the original: that would be another program.

    Raises:
        CannotCompare: it has compiled so often that it would.
    """
    import torch._dynamo.config as config
    import torch._dynamo.exc as errors

    gave_up: Any = getattr(errors, "FailOnRecompileLimitHit", ())
    with ExitStack() as stack:
        if hasattr(config, "fail_on_recompile_limit_hit"):
            stack.enter_context(config.patch(fail_on_recompile_limit_hit=True))  # type: ignore[attr-defined]
        try:
            yield
        except gave_up as error:
            raise CannotCompare(
                "torch.compile has compiled this model so often that it would run the original "
                "from now on.\n  Fix: torch._dynamo.reset() before the check, or a larger "
                "torch._dynamo.config.recompile_limit"
            ) from error
