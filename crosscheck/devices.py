"""Where the two sides run: ``device="cuda"`` puts both on the GPU, or says why it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crosscheck.adapters.base import Adapter
from crosscheck.errors import DeviceUnavailable, InvalidArgument
from crosscheck.kernels.on_device import why_on_host

__all__ = ["as_they_ran", "place"]

DEVICES = ("cpu", "cuda")


def place(sides: Sequence[Adapter], device: str) -> None:
    """Let both sides run on ``device``, or neither.

    Raises:
        InvalidArgument: no such device.
        DeviceUnavailable: a side cannot; says which, what is missing and what to do.
    """
    if device not in DEVICES:
        raise InvalidArgument(f'device={device!r}: must be "cpu" or "cuda"')
    before = [adapter.device for adapter in sides]
    for name, adapter in zip(("reference", "candidate"), sides, strict=True):
        try:
            adapter.use(device)
        except DeviceUnavailable as error:
            for moved, home in zip(sides, before, strict=True):
                moved.device = home
            raise DeviceUnavailable(
                f'device="{device}": the {name} ({adapter.framework}) cannot run there: {error}'
            ) from error


def as_they_ran(sides: Sequence[Adapter]) -> Mapping[str, Any]:
    """What the sides say of precision, determinism and device; nothing where both are silent."""
    named = zip(("reference", "candidate"), sides, strict=True)
    found = {name: _as_it_ran(adapter) for name, adapter in named}
    return {name: said for name, said in found.items() if said}


def _as_it_ran(adapter: Adapter) -> dict[str, Any]:
    said = dict(adapter.environment)
    why = why_on_host()
    if said and adapter.device == "cuda" and why is not None:  # slow, and nobody would know why
        said["large values"] = f"compared on the host: no Triton kernel runs on {why}"
    return said
