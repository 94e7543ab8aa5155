"""What models and layers return beside one result: a dict of outputs, copies for those who ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import crosscheck

from .kit import agrees, forward
from .torch_models import randomised

WIDTH = 12
INPUTS = {"x": f"float32[2,7,{WIDTH}]", "y": f"float32[2,7,{WIDTH}]"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dense = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return x + torch.tanh(self.dense(self.norm(x)))


class TwoStacks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Block(), Block()

    def both(self, x: Any, y: Any) -> tuple[Any, Any]:
        encoded = self.encoder(x)
        return encoded, self.decoder(y + encoded.mean(1, keepdim=True))


class DecodedFirst(TwoStacks):
    def forward(self, x: Any, y: Any) -> Any:
        encoded, decoded = self.both(x, y)
        return {"last": decoded, "encoder_last": encoded}


class EncodedFirst(TwoStacks):
    def forward(self, x: Any, y: Any) -> Any:
        encoded, decoded = self.both(x, y)
        return {"encoded": encoded, "decoded": decoded}


@pytest.mark.parametrize("long", [7, 9])
def test_outputs_of_two_dicts_are_paired_by_what_they_hold(long: int) -> None:
    inputs = INPUTS | {"x": f"float32[2,{long},{WIDTH}]"}
    report = crosscheck.check(randomised(DecodedFirst()), EncodedFirst(), inputs)
    assert agrees(report)
    sites = {(s.reference, s.candidate) for s in report.sites if s.phase == "forward"}
    assert {("output", "output:decoded"), ("output:encoder_last", "output")} <= sites


def test_a_mistake_before_such_outputs_is_found_where_it_is() -> None:
    """Forced, the outputs are the reference's again: each gets its own cotangent then, too."""
    candidate = EncodedFirst()
    candidate.decoder.norm.eps = 0.3
    report = crosscheck.check(randomised(DecodedFirst()), candidate, INPUTS)
    assert forward(report) == [("decoder.norm", "decoder.norm")]
    named = [d.reference or "" for d in report.divergences]
    assert all(name.startswith("decoder.norm") for name in named), str(report)


class Stack(nn.Module):
    """A wrapper around its layers, as the reference's."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.beside = beside

    def forward(self, x: Any) -> Any:
        states = {}
        for i, layer in enumerate(self.layers):
            x = layer(x)
            states[f"stage{i}"] = x.clone()
        return (x, states) if self.beside else x


class Inside(nn.Module):
    """What a container with another name holds."""

    def __init__(self, beside: bool, names: tuple[str, str]) -> None:
        super().__init__()
        self.beside, self.names = beside, names
        setattr(self, names[0], Stack(beside))
        setattr(self, names[1], nn.Linear(WIDTH, 5))

    def forward(self, x: Any) -> Any:
        found = getattr(self, self.names[0])(x)
        return getattr(self, self.names[1])(found[0] if self.beside else found)


@pytest.mark.parametrize("beside", [True, False])
def test_a_copy_that_a_layer_returns_beside_its_result_stands_for_nothing_else(
    beside: bool,
) -> None:
    """Nobody uses it, so that no cotangent arrives there; the result's own does."""
    reference = randomised(Inside(beside, ("model", "head")))
    candidate = Inside(not beside, ("encoder", "classifier"))
    report = crosscheck.check(reference, candidate, f"float32[3,{WIDTH}]")
    assert agrees(report)
