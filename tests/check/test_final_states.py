"""The final state of a recurrent layer: a value of its own on one side, the last step's on the
other, whose cotangents are two things."""

from __future__ import annotations

from typing import Any

import pytest

import crosscheck

torch = pytest.importorskip("torch")
nn = torch.nn


class Encoder(nn.Module):
    """Returns the final state without the axis of layers, as many wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Any) -> Any:
        y, state = self.gru(x)
        return y, state[0]


class ByLayer(nn.Module):
    """``wrapped``: through `Encoder`; ``use``: what the heads are given."""

    def __init__(self, use: str, wrapped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder() if wrapped else nn.GRU(3, 5, batch_first=True)
        self.each, self.whole = nn.Linear(5, 2), nn.Linear(5, 2)
        self.use, self.wrapped = use, wrapped

    def forward(self, x: Any) -> Any:
        y, state = self.encoder(x)
        state = state if self.wrapped else state[0]
        found = {"steps": lambda: self.each(y), "state": lambda: self.whole(state)}
        return [f() for name, f in found.items() if self.use in (name, "both")]


class ByStep(nn.Module):
    """``wrong``: the state's head is given the step before the last."""

    def __init__(self, use: str, wrong: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cell = nn.GRUCell(3, 5)
        self.each, self.whole = nn.Linear(5, 2), nn.Linear(5, 2)
        self.use, self.wrong = use, wrong

    def forward(self, x: Any) -> Any:
        state, states = torch.zeros(x.shape[0], 5, dtype=x.dtype), []
        for step in x.unbind(1):
            state = self.cell(step, state)
            states.append(state)
        y, last = torch.stack(states, 1), states[-2 if self.wrong else -1]
        found = {"steps": lambda: self.each(y), "state": lambda: self.whole(last)}
        return [f() for name, f in found.items() if self.use in (name, "both")]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("use", ["steps", "state", "both"])
def test_a_final_state_is_not_the_last_step(use: str, wrapped: bool, turned: bool) -> None:
    sides = ByLayer(use, wrapped), ByStep(use)
    report = crosscheck.check(*(sides[::-1] if turned else sides), "float32[2,4,3]")
    assert report.verdict == "agree", str(report)


@pytest.mark.parametrize("wrapped", [False, True])
def test_another_state_is_seen_all_the_same(wrapped: bool) -> None:
    report = crosscheck.check(
        ByLayer("both", wrapped), ByStep("both", wrong=True), "float32[2,4,3]"
    )
    assert report.verdict == "diverge"
    assert (first := report.first_divergence) is not None and first.phase == "forward"
    assert "whole" in first.site, str(report)
