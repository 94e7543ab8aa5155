"""Sums and concatenations that are layers on one side, and on the other the last line of a block.

Both return the same, and the first input of both may be the same: what goes on through a block's
other layers comes back through the sum's other input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from .kit import agrees, run
from .numpy_models import Affine, Rectifier
from .torch_models import randomised

INPUTS = "float32[5,4]"


class Block(nn.Module):
    """x + fc(relu(x)), or both side by side."""

    def __init__(self, n: int, *, side_by_side: bool) -> None:
        super().__init__()
        self.relu, self.fc = nn.ReLU(), nn.Linear(n, n)
        self.side_by_side = side_by_side

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(self.relu(x))
        return torch.cat([x, h], 1) if self.side_by_side else x + h


class Net(nn.Module):
    """4 -> two blocks from 6 on -> 3."""

    def __init__(self, *, side_by_side: bool = False) -> None:
        super().__init__()
        sizes = [6, 12, 24] if side_by_side else [6, 6, 6]
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.Sequential(*(Block(n, side_by_side=side_by_side) for n in sizes[:2]))
        self.head = nn.Linear(sizes[2], 3)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Add:
    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def backward(self, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return d, d


class Concat:
    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self._n = a.shape[1]
        return np.concatenate([a, b], 1)

    def backward(self, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return d[:, : self._n], d[:, self._n :]


class Flat:
    """The same net, all of its layers on one level."""

    def __init__(self, *, side_by_side: bool = False) -> None:
        sizes = [6, 12, 24] if side_by_side else [6, 6, 6]
        self.stem = Affine(4, 6)
        self.relu1, self.fc1 = Rectifier(), Affine(6, 6)
        self.join1 = Concat() if side_by_side else Add()
        self.relu2, self.fc2 = Rectifier(), Affine(sizes[1], sizes[1])
        self.join2 = Concat() if side_by_side else Add()
        self.head = Affine(sizes[2], 3)

    def forward(self, x: Any) -> Any:
        x = self.stem.forward(x)
        x = self.join1.forward(x, self.fc1.forward(self.relu1.forward(x)))
        x = self.join2.forward(x, self.fc2.forward(self.relu2.forward(x)))
        return self.head.forward(x)

    def backward(self, d: Any) -> Any:
        x, h = self.join2.backward(self.head.backward(d))
        x, h = self.join1.backward(x + self.relu2.backward(self.fc2.backward(h)))
        return self.stem.backward(x + self.relu1.backward(self.fc1.backward(h)))


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_block_against_the_layer_that_it_ends_with(side_by_side: bool, turned: bool) -> None:
    sides: list[Any] = [Net(side_by_side=side_by_side), Flat(side_by_side=side_by_side)]
    assert agrees(run(*(sides[::-1] if turned else sides), INPUTS))


class Gate(nn.Module):
    """x * fc(x): the block's own layer does more than the other side's on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x).tanh()


class Gated(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(4, 6), Gate(), nn.Linear(6, 3)
        self.shift = shift
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.gate(x + self.shift if self.shift else x))


class Squashed(Affine):
    def forward(self, x: Any) -> Any:
        self._y = np.tanh(super().forward(x))
        return self._y

    def backward(self, d: Any) -> Any:
        return super().backward(d * (1 - self._y**2))


class Multiply:
    def forward(self, a: Any, b: Any) -> Any:
        self._a, self._b = a, b
        return a * b

    def backward(self, d: Any) -> Any:
        return d * self._b, d * self._a


class FlatGated:
    def __init__(self, shift: float) -> None:
        self.stem, self.fc, self.times = Affine(4, 6), Squashed(6, 6), Multiply()
        self.head = Affine(6, 3)
        self.shift = shift

    def forward(self, x: Any) -> Any:
        x = self.stem.forward(x)
        x = x + x.dtype.type(self.shift) if self.shift else x
        return self.head.forward(self.times.forward(x, self.fc.forward(x)))

    def backward(self, d: Any) -> Any:
        x, gate = self.times.backward(self.head.backward(d))
        return self.stem.backward(x + self.fc.backward(gate))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["of a layer's output", "of code between"])
def test_a_gate_whose_layers_have_no_partner(shift: float, turned: bool) -> None:
    sides: list[Any] = [Gated(shift), FlatGated(shift)]
    assert agrees(run(*(sides[::-1] if turned else sides), INPUTS))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (self.q(query) @ self.k(key).transpose(-1, -2)).softmax(-1)
        return self.o(weights @ self.v(value))


class Positioned(Attention):
    def forward(self, x: Tensor, position: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + position, x + position, x)


class Encoder(nn.Module):
    """Adds the positions to queries and keys, or has the attention do it.

    Args:
        shift: added to what the attention is given, so that no layer returns that.
    """

    def __init__(self, attention: nn.Module, shift: float) -> None:
        super().__init__()
        self.norm, self.attention, self.head = nn.LayerNorm(6), attention, nn.Linear(6, 3)
        self.position, self.shift = nn.Parameter(torch.empty(5, 6)), shift
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x) + self.shift if self.shift else self.norm(x)
        if isinstance(self.attention, Positioned):
            return self.head(h + self.attention(h, self.position))
        query = h + self.position
        return self.head(h + self.attention(query, query, h))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_positions_are_added_within_the_attention_or_before_it(shift: float, turned: bool) -> None:
    """Before it: what comes back through the values is a part of what comes back to the input."""
    sides = [Encoder(Attention(), shift), Encoder(Positioned(), shift)]
    assert agrees(run(*(sides[::-1] if turned else sides), "float32[2,5,6]"))


def lost(self: Flat, d: Any) -> Any:
    """The cotangent that passes by the last block is forgotten."""
    _, h = self.join2.backward(self.head.backward(d))
    x, h = self.join1.backward(self.relu2.backward(self.fc2.backward(h)))
    return self.stem.backward(x + self.relu1.backward(self.fc1.backward(h)))


def halved(self: Flat, d: Any) -> Any:
    x, h = self.join2.backward(self.head.backward(d))
    x, h = self.join1.backward(x + self.relu2.backward(self.fc2.backward(0.5 * h)))
    return self.stem.backward(x + self.relu1.backward(self.fc1.backward(h)))


@pytest.mark.parametrize(
    ("way_back", "place"), [(lost, "blocks.0"), (halved, "blocks.1.fc")], ids=["lost", "halved"]
)
def test_a_mistake_at_the_sum_is_located(way_back: Callable[[Flat, Any], Any], place: str) -> None:
    candidate = Flat()
    candidate.backward = way_back.__get__(candidate)  # type: ignore[method-assign]
    report = run(Net(), candidate, INPUTS)
    assert [(d.phase, d.site) for d in report.divergences] == [("backward", place)]
