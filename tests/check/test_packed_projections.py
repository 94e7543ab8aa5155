"""Projections that are one layer on one side and several on the other: query, key and value, a gate
and what it multiplies. What they return is no site of both sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .kit import run

WIDTH, INNER, HEADS = 8, 12, 2
ROWS = f"float32[3,5,{WIDTH}]"


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o_proj = nn.Linear(WIDTH, WIDTH)
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.act = nn.SiLU()
        self.down_proj = nn.Linear(INNER, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (split(p(h)) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.o_proj(join(F.scaled_dot_product_attention(q, k, v)))
        out: torch.Tensor = x + self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


class Packed(nn.Module):
    """Made with the values of another one, with one thing wrong.

    Args:
        up_first: of the two in the second packed layer, the gate comes last.
    """

    def __init__(self, *, wrong: str = "", up_first: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.both, self.down = nn.Linear(WIDTH, 2 * INNER, bias=False), nn.Linear(INNER, WIDTH)
        self.wrong, self.up_first = wrong, up_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (split(part) for part in self.attn(self.norm(x)).chunk(3, -1))
        scale = 0.9 if self.wrong == "scale" else None
        x = x + self.proj(join(F.scaled_dot_product_attention(q, k, v, scale=scale)))
        gate, up = self.both(x).chunk(2, -1)
        if self.up_first != (self.wrong == "gate"):
            gate, up = up, gate
        act = F.gelu if self.wrong == "act" else F.silu
        out: torch.Tensor = x + self.down(act(gate) * up)
        return out


class Biased(Packed):
    """The packed layer itself is wrong."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.attn.bias[WIDTH] = 1.0
        return super().forward(x)


def split(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def join(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


class Net(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.last(x)
        return out


def check(*packed: nn.Module, turned: bool = False) -> Any:
    torch.manual_seed(0)
    nets = Net(*(Apart() for _ in packed)), Net(*packed)
    return run(*(nets[::-1] if turned else nets), ROWS)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("up_first", [False, True])
def test_honest_ports_agree_in_either_order(up_first: bool, turned: bool) -> None:
    """In which order the two are packed only running tells."""
    report = check(Packed(up_first=up_first), Packed(up_first=up_first), turned=turned)
    assert report.verdict == "agree", str(report)
    assert not report.coverage.unmatched_reference_parameters
    assert not report.coverage.unmatched_candidate_parameters


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("wrong", ["scale", "act"])
def test_the_code_behind_a_packed_projection_is_named(wrong: str, turned: bool) -> None:
    """Not the projections, which are right."""
    report = check(Packed(), Packed(wrong=wrong), turned=turned)
    named = {
        (d.reference, d.candidate) for d in report.divergences if d.phase != "parameter_gradient"
    }
    assert named == {("blocks.1", "blocks.1")}, str(report)
    first = report.first_divergence
    assert first is not None and "is right: the code between the layers differs" in first.statement


def test_a_wrong_packed_projection_is_named_itself() -> None:
    report = check(Packed(), Biased())
    first = report.first_divergence
    assert first is not None and first.candidate in ("blocks.1.attn", "blocks.1.attn.bias")


def test_another_function_of_the_gate_is_a_cause() -> None:
    """Also where the reference has it as a layer."""
    first = check(Packed(), Packed(wrong="act")).first_divergence
    assert [(c.name, c.verified) for c in first.causes] == [("gate_function", True)]


class Halved(nn.Linear):
    """Right forward; sends back half of what it should."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(0.5 * x + 0.5 * x.detach())


@pytest.mark.parametrize("turned", [False, True])
def test_layers_that_send_back_the_wrong_thing_are_named_themselves(turned: bool) -> None:
    """Not the code behind them, which sends them the right cotangents."""
    plain, wrong = Packed(), Apart() if turned else Packed()
    if isinstance(wrong, Packed):
        wrong.attn = Halved(WIDTH, 3 * WIDTH)
        pair = Net(Apart(), Apart()), Net(plain, wrong)
    else:
        wrong.q_proj, wrong.k_proj, wrong.v_proj = (Halved(WIDTH, WIDTH) for _ in range(3))
        pair = Net(plain, Packed()), Net(Apart(), wrong)
    report = run(*pair, ROWS)
    first = report.first_divergence
    assert first is not None
    assert first.phase == "backward", str(report)
    assert "attn" in str(first.reference if turned else first.candidate)
    assert "send back is wrong" in first.statement
    assert not [d for d in report.divergences if "code" in d.statement], str(report)
