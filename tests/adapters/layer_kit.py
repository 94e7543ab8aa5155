"""PyTorch models and checks that the tests of weight transfer share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import crosscheck
from crosscheck import Report

torch.manual_seed(0)


def spec(*shape: int) -> str:
    return f"float32[{','.join(map(str, shape))}]"


def scattered(model: nn.Module) -> nn.Module:
    """In eval mode, with no parameter or statistic at its initial value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


class First(nn.Module):
    """A recurrent module without its final state."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)[0]
        return y


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` of an input with itself."""

    def __init__(self, dim: int, heads: int, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.attn(x, x, x, need_weights=False)[0]
        return y


class Projections(nn.Module):
    """Attention by hand: three projections, or one (``fused``) as GPT-2 has it; fewer key heads."""

    def __init__(self, *, fused: bool = False, dim: int = 8, heads: int = 2, kv: int = 2) -> None:
        super().__init__()
        self.heads, self.kv, self.size = heads, kv, dim // heads
        if fused:
            self.c_attn = nn.Linear(dim, dim + 2 * kv * self.size)
        else:
            self.q_proj = nn.Linear(dim, dim)
            self.k_proj = nn.Linear(dim, kv * self.size)
            self.v_proj = nn.Linear(dim, kv * self.size)
        self.o_proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "c_attn"):
            width = self.kv * self.size
            parts = self.c_attn(x).split([x.shape[-1], width, width], -1)
        else:
            parts = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (t.view(*t.shape[:2], -1, self.size).transpose(1, 2) for t in parts)
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / self.size**0.5, -1)
        y: torch.Tensor = self.o_proj((weights @ v).transpose(1, 2).reshape(x.shape))
        return y


class Words(nn.Module):
    """An embedding and a head on its table: ``tied``, equal copies, or one parameter used twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        if how != "function":
            self.head = nn.Linear(6, 11, bias=False)
        if how == "tied":
            self.head.weight = self.emb.weight
        if how == "copies":
            with torch.no_grad():
                self.head.weight.copy_(self.emb.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.emb(x))
        y: torch.Tensor
        y = self.head(h) if hasattr(self, "head") else nn.functional.linear(h, self.emb.weight)
        return y


def channels_last(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.moveaxis(x, 1, -1) for name, x in inputs.items()}


def agrees(
    reference: Any, candidate: Any, inputs: str, *, last: bool = False, **more: Any
) -> Report:
    """Check a port; it agrees, every parameter is matched and every gradient was compared."""
    if last:
        more["candidate_inputs"] = channels_last
    report = crosscheck.check(reference, candidate, inputs, **more)
    assert report.verdict == "agree", str(report)
    assert report.coverage.unmatched_reference_parameters == ()
    assert report.coverage.unmatched_candidate_parameters == ()
    assert report.coverage.not_compared == ()
    trainable = {p.name for p in crosscheck.adapt(reference).parameters() if p.trainable}
    compared = [s.reference for s in report.sites if s.phase == "parameter_gradient"]
    assert set(compared) == trainable and len(compared) == len(trainable)
    return report
