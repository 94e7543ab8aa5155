"""Weights of the PyTorch references, a safetensors file each, named as in the state dict."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn


def save(model: nn.Module, path: Path) -> None:
    """Write parameters and running statistics, a tied tensor once, the step counters never."""
    state, written = {}, set()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.data_ptr() not in written:
            written.add(value.data_ptr())
            state[name] = value.contiguous()
    save_file(state, path)


def load(model: nn.Module, path: Path) -> None:
    """Load what `save` wrote; a key that is neither tied nor a step counter must be there."""
    state = load_file(path)
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in state}
    missing, unexpected = model.load_state_dict(state, strict=False)
    absent = [n for n in missing if own[n].is_floating_point() and own[n].data_ptr() not in loaded]
    if absent or unexpected:
        raise ValueError(
            f"{path}: missing {absent}, unexpected {unexpected}; train the model again"
        )
