"""One layer and one mistake in it: pairs for what no model of this folder has a layer for.

Both sides are PyTorch; the candidate is the reference's layer with its forward pass, or its
weights, as a port had them.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor
Forward = Callable[..., Any]


class Net(nn.Module):
    """A layer between its input and its output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return y[0] if isinstance(y, tuple) else y


class Of(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Any:
        return self.function(*x)


def pair(layer: nn.Module, forward: Forward) -> tuple[nn.Module, nn.Module]:
    """A net with random weights, and the same with another forward pass in its layer."""
    randomise(layer)
    other = copy.deepcopy(layer)
    other.forward = types.MethodType(forward, other)  # type: ignore[method-assign]
    return Net(layer), Net(other)


def functions(right: Forward, wrong: Forward) -> tuple[nn.Module, nn.Module]:
    """Two nets of one function each."""
    return Net(Of(right)), Net(Of(wrong))


def reweighted(layer: nn.Module, **changes: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    """A net, and the same with some parameters converted wrongly; keys begin their names."""
    randomise(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            for start, change in changes.items():
                if name.startswith(start):
                    parameter.copy_(change(parameter.clone()))
    return Net(layer), Net(other)


def randomise(layer: nn.Module) -> None:
    """Weights that no initialisation would give: no ones, no zeros."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter) + 0.1)


# -- norms -----------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """x / √(mean x² + eps) · (1 + w)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def hat(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.hat(x) * (1.0 + self.weight)


def weight_alone(self: RMSNorm, x: Tensor) -> Tensor:
    return self.hat(x) * self.weight


def eps_outside(self: RMSNorm, x: Tensor) -> Tensor:
    return x / (torch.sqrt((x * x).mean(-1, keepdim=True)) + self.eps) * (1.0 + self.weight)


def cast_early(self: RMSNorm, x: Tensor) -> Tensor:
    return self.hat(x).half().to(x.dtype) * (1.0 + self.weight)


def other_groups(self: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, self.num_groups, self.weight, self.bias, 1e-3)


# -- convolution and pooling -----------------------------------------------------------------------


def transposed(stride: int = 2) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(3, 3, 3, stride, padding=1, output_padding=1)


def by_a_pixel(self: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    y = F.conv_transpose2d(x, self.weight, self.bias, self.stride)
    return y[:, :, : 2 * x.shape[2], : 2 * x.shape[3]]


def ceiling(self: nn.MaxPool2d, x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


# -- layouts ---------------------------------------------------------------------------------------


def depth_first(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    cut = x.reshape(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    return cut.reshape(b, c // 4, 2 * h, 2 * w)


class Merging(nn.Module):
    """Two by two neighbours side by side, then a matrix."""

    order = ((0, 0), (1, 0), (0, 1), (1, 1))

    def __init__(self) -> None:
        super().__init__()
        self.reduction = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.quarters(self.padded(x)))

    def padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))

    def quarters(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, r::2, c::2] for r, c in self.order], dim=-1)


def rows_first(self: Merging, x: Tensor) -> Tensor:
    x = self.padded(x)
    order = ((0, 0), (0, 1), (1, 0), (1, 1))
    return self.reduction(torch.cat([x[:, r::2, c::2] for r, c in order], dim=-1))


def height_for_width(self: Merging, x: Tensor) -> Tensor:
    x = F.pad(x, (0, 0, 0, x.shape[1] % 2, 0, x.shape[2] % 2))
    h, w = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    parts = [x[:, r::2, c::2] for r, c in self.order]
    h, w = min(p.shape[1] for p in parts), min(p.shape[2] for p in parts)
    return self.reduction(torch.cat([p[:, :h, :w] for p in parts], dim=-1))


def resized(size: tuple[int, int], mode: str, **options: Any) -> Forward:
    return lambda x: F.interpolate(x, size, mode=mode, **options)


# -- recurrent layers ------------------------------------------------------------------------------


def gates(*order: int) -> Callable[[Tensor], Tensor]:
    """Blocks of the first axis in another order."""
    return lambda w: torch.cat([w.chunk(len(order))[i] for i in order])


def reset_before(self: nn.GRU, x: Tensor) -> tuple[Tensor, Tensor]:
    w, u, b, c = (
        getattr(self, f"{n}_l0") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h, seen = x.new_zeros(len(x), self.hidden_size), []
    for step in x.unbind(1):
        fed, back = (step @ w.T + b).chunk(3, 1), (h @ u.T + c).chunk(3, 1)
        r, z = torch.sigmoid(fed[0] + back[0]), torch.sigmoid(fed[1] + back[1])
        n = torch.tanh(fed[2] + ((r * h) @ u.T + c).chunk(3, 1)[2])
        h = (1 - z) * n + z * h
        seen.append(h)
    return torch.stack(seen, 1), h[None]


def not_turned_back(self: nn.LSTM, x: Tensor) -> tuple[Tensor, Any]:
    y, state = nn.LSTM.forward(self, x)
    there, back = y.chunk(2, -1)
    return torch.cat([there, back.flip(1)], -1), state


# -- attention -------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Grouped-query attention with a soft cap and a causal mask, its softmax a layer."""

    def __init__(self, *, heads: int = 4, shared: int = 2, width: int = 16) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, shared * self.size)
        self.v = nn.Linear(width, shared * self.size)
        self.softmax = nn.Softmax(-1)
        self.out = nn.Linear(width, width)
        self.cap, self.fill = 5.0, -1e9

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).reshape(b, t, self.heads, self.size).transpose(1, 2)
        k, v = (
            self.spread(f(x).reshape(b, t, self.shared, self.size).transpose(1, 2))
            for f in (self.k, self.v)
        )
        scores = self.capped(q @ k.transpose(-1, -2) / self.size**0.5)
        hidden = ~torch.tril(torch.ones(t, t, dtype=torch.bool))
        weights = self.softmax(scores.masked_fill(hidden, self.fill))
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, -1))

    def spread(self, value: Tensor) -> Tensor:
        return value.repeat_interleave(self.heads // self.shared, 1)

    def capped(self, scores: Tensor) -> Tensor:
        return self.cap * torch.tanh(scores / self.cap)


class Tiled(Attention):
    def spread(self, value: Tensor) -> Tensor:
        return value.repeat(1, self.heads // self.shared, 1, 1)


class Uncapped(Attention):
    def capped(self, scores: Tensor) -> Tensor:
        return scores


def attentions(wrong: type[Attention], **changes: Any) -> tuple[nn.Module, nn.Module]:
    """A net of `Attention`, and one of a class that has it otherwise."""
    right, other = Attention(), wrong()
    randomise(right)
    other.load_state_dict(right.state_dict())
    for name, value in changes.items():
        setattr(other, name, value)
    return Net(right), Net(other)


def padded_rows(fill: float) -> nn.Module:
    """Softmax over keys of which all are padding in the last example."""

    def masked(x: Tensor) -> Tensor:
        hidden = torch.zeros_like(x, dtype=torch.bool)
        hidden[-1], hidden[:, :, :, -2:] = True, True
        return x.masked_fill(hidden, fill)

    return Net(nn.Sequential(Of(masked), nn.Softmax(-1)))


def turned(pairs: str, angles: str, base: float = 1e4) -> Forward:
    """Rotary embedding of (B, H, T, D), with its pairs and its table each in one of two layouts."""

    def rotary(x: Tensor) -> Tensor:
        t, d = x.shape[-2:]
        frequency = base ** (-torch.arange(0, d, 2, dtype=x.dtype) / d)
        angle = torch.arange(t, dtype=x.dtype)[:, None] * frequency
        wide = angle.repeat(1, 2) if angles == "half" else angle.repeat_interleave(2, 1)
        if pairs == "half":
            a, b = x.chunk(2, -1)
            across = torch.cat([-b, a], -1)
        else:
            across = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
        return x * wide.cos() + across * wide.sin()

    return rotary


# -- the rest --------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """An embedding times the root of its width."""

    def __init__(self, root: Callable[[float], float] = float) -> None:
        super().__init__()
        self.table, self.root = nn.Embedding(11, 24), root

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens) * self.root(24**0.5)


def coloured() -> tuple[nn.Module, nn.Module]:
    """Two equal nets for images of three colours."""
    layer = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    randomise(layer)
    return Net(layer), Net(copy.deepcopy(layer))


def other_colours(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Blue, green, red for red, green, blue."""
    return {"x": inputs["x"][:, ::-1].copy()}


def low_precision_scale() -> tuple[nn.Module, nn.Module]:
    right, wrong = Scaled(), Scaled(lambda k: float(np.float16(k)))
    randomise(right)
    wrong.load_state_dict(right.state_dict())
    return Net(right), Net(wrong)


class HalfAtZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0.0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return dy * torch.where(x == 0, 0.5, (x > 0).to(dy.dtype))


class Embedded(nn.Module):
    """Words, positions and token types, added and normalised."""

    def __init__(self, types: bool = True) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(20, 8), nn.Embedding(7, 8)
        self.token_type = nn.Embedding(2, 8) if types else None
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.word(tokens) + self.position(torch.arange(tokens.shape[1]))
        if self.token_type is not None:
            y = y + self.token_type(torch.zeros_like(tokens))
        return self.norm(y)


def without_token_types() -> tuple[nn.Module, nn.Module]:
    right, wrong = Embedded(), Embedded(types=False)
    randomise(right)
    wrong.load_state_dict({k: v for k, v in right.state_dict().items() if "token_type" not in k})
    return Net(right), Net(wrong)
