"""PyTorch nets with one mistake each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .kit import FEATURES, Net


class Detached(Net):
    def hidden(self, x: Any) -> Any:
        return self.drop(self.relu(self.norm(self.first(x).detach())))


class NotConnected(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 8)

    def hidden(self, x: Any) -> Any:
        hidden = super().hidden(x)
        self.second(hidden)
        return hidden


class SingleLogit(Net):
    def __init__(self) -> None:
        super().__init__(head=nn.Linear(8, 1))


class Limited(Net):
    def forward(self, x: Any) -> Any:
        return 0.01 * torch.tanh(super().forward(x))


class HardlyLooks(Net):
    def __init__(self) -> None:
        super().__init__(norm=nn.Identity())

    def before(self, x: Any) -> Any:
        return 1e-4 * x


class AlwaysDrops(nn.Dropout):
    def forward(self, x: Any) -> Any:
        return F.dropout(x, self.p, training=True)


class NeverDrops(nn.Dropout):
    def forward(self, x: Any) -> Any:
        return x


class RunningStatistics(nn.BatchNorm1d):
    def forward(self, x: Any) -> Any:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def before(self, x: Any) -> Any:
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return x + 1e-3 * noise if self.training else x


class RootOfNothing(Net):
    def before(self, x: Any) -> Any:
        return torch.where(x > 0, torch.sqrt(x), 0 * x)  # NaN comes back where x < 0


class SoftmaxOfOne(Net):
    def before(self, x: Any) -> Any:
        return torch.softmax(x[..., None], -1)[..., 0]


class Squeezed(Net):
    def __init__(self) -> None:
        super().__init__(head=nn.Linear(8, 1))

    def forward(self, x: Any) -> Any:
        return super().forward(x).squeeze()


class Unscaled(Net):
    def before(self, x: Any) -> Any:
        return (x - 50) / 100


class MixesTheBatch(Net):
    def before(self, x: Any) -> Any:
        return x - x.mean(dim=0)


class _SlightlyWrong(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Any) -> Any:
        return weight.clone()

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        return 1.001 * gradient


class WrongGradient(Net):
    def forward(self, x: Any) -> Any:
        return F.linear(self.hidden(x), _SlightlyWrong.apply(self.head.weight), self.head.bias)


class Deep(nn.Module):
    """Ten small sigmoid layers: each takes a factor of 16 and more from the gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [FEATURES, *[5] * 9]
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x


class Attention(nn.Module):
    """One head over embedded tokens, (batch, time) -> (batch, time, 5)."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.causal = causal
        self.embed = nn.Embedding(11, 8)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens)  # (B, T, 8)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.head(self.norm(x + seen))


def with_dead_units() -> Net:
    net = Net()
    with torch.no_grad():
        net.norm.bias[:5] = -100.0
    return net


def too_sure() -> Net:
    net = Net()
    with torch.no_grad():
        net.head.weight.mul_(60)
    return net


def constant() -> Net:
    net = Net()
    nn.init.constant_(net.head.weight, 0.3)
    return net
