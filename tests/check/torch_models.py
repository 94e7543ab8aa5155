"""Small PyTorch models, as somebody would bring them: weights random, no module unused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randomised(model: Any, std: float = 0.5, seed: int = 0) -> Any:
    """Every parameter and statistic away from its initial value; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


def copied(x: Tensor, pull: Callable[[Tensor], Tensor | None]) -> Tensor:
    """A copy of ``x``; ``pull`` makes of the gradient at the copy the one at ``x``."""

    class Copy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            return pull(*gradients)

    return Copy.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class Mlp(nn.Module):
    """6 -> 8 -> 8 -> 3, every step a module."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.relu = nn.ReLU()
        self.norm = nn.LayerNorm(8)
        self.fc2 = nn.Linear(8, 8)
        self.tanh = nn.Tanh()
        self.head = nn.Linear(8, 3)
        randomised(self, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tanh(self.fc2(self.norm(self.relu(self.fc1(x))))))


class Chain(nn.Module):
    """Linear and ReLU in turn, in a Sequential."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n)
        self.up = nn.Linear(n, 2 * n)
        self.act = nn.GELU()
        self.down = nn.Linear(2 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Residual(nn.Module):
    """4 -> three blocks of 6 -> 3."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([Block(6) for _ in range(3)])
        self.out = nn.Linear(6, 3)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Recurrent(nn.Module):
    """One cell called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        randomised(self, 0.4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.cell(x))
        return self.head(x)


class Attention(nn.Module):
    """Causal attention of two heads between an embedding and a head; heads are functional code."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.proj = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11)
        randomised(self)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) / 2.0

    def mask(self, t: int) -> Tensor:
        return torch.ones(t, t, dtype=torch.bool).tril()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)  # (B, T, 8)
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        s = self.scores(q, k).masked_fill(~self.mask(t), -1e9).softmax(-1)  # (B, 2, T, T)
        y = (s @ v).transpose(1, 2).reshape(b, t, 8)
        return self.head(self.norm(x + self.proj(y)))


class TwoBranches(nn.Module):
    """Two inputs, two branches, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)
        self.join = nn.Linear(8, 3)
        randomised(self)

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], -1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.join(self.concat(torch.relu(self.left(a)), torch.relu(self.right(b))))


class Normed(nn.Module):
    """A bias in front of a BatchNorm; dropout."""

    def __init__(self, p: float = 0.5, momentum: float = 0.1) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.bn = nn.BatchNorm1d(5, momentum=momentum)
        self.drop = nn.Dropout(p)
        self.out = nn.Linear(5, 3)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(F.relu(self.bn(self.fc(x)))))


class Tied(nn.Module):
    """A head that uses the embedding's weight; a position table of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.pos = nn.Parameter(torch.zeros(5, 6))
        self.fc = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.emb.weight
        randomised(self)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fc(self.emb(ids) + self.pos)))


class Outputs(nn.Module):
    """A model whose way to return its results can be chosen."""

    def __init__(self, mode: str = "tuple") -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)
        self.mode = mode
        randomised(self)

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        y = self.b(h)
        return {
            "tuple": lambda: (y, h),
            "list": lambda: [y, h],
            "dict": lambda: {"logits": y, "hidden": h},
            "reversed": lambda: (h, y),
            "with integer": lambda: (y, y.argmax(-1)),
            "with text": lambda: (y, "done"),
            "integer": lambda: y.argmax(-1),
            "scalar": lambda: y.sum(),
            "three": lambda: (y, h, h + 1),
            "column": lambda: y[:, :1],
            "flat": lambda: y[:, 0],
            "none": lambda: None,
        }[self.mode]()


class Convolutional(nn.Module):
    """Two convolutions (NCHW), flattened into a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 4, 3, padding=1)
        self.c2 = nn.Conv2d(4, 6, 3, stride=2)
        self.fc = nn.Linear(6 * 3 * 4, 5)
        randomised(self, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c2(F.relu(self.c1(x))))  # (N, 3, 7, 9) -> (N, 6, 3, 4)
        return self.fc(x.flatten(1))
