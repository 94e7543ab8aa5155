"""Gated units in the code between layers: which factor is the gate, and what it goes through."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import crosscheck  # noqa: E402


class Unit(nn.Module):
    def __init__(self, packed: bool, how: str = "") -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 16 if packed else 8), nn.Linear(8, 6)
        self.gate = None if packed else nn.Linear(6, 8)
        self.how = how

    def forward(self, x: Any) -> Any:
        a, b = (self.into(x), self.gate(x)) if self.gate else self.into(x).chunk(2, -1)
        if self.how == "exchanged":
            a, b = b, a
        f = {"gelu": F.gelu, "none": lambda v: v}.get(self.how, F.silu)
        return x + self.out(f(a) * b * (1.01 if self.how == "scaled" else 1.0))


STATEMENTS = {
    "exchanged": "SiLU is applied to the other factor of the product",
    "gelu": "{gate} goes through GELU (erf), not SiLU, in the product",
    "none": "{gate} goes through the identity, not SiLU, in the product",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("how", [*STATEMENTS, "scaled"])
def test_a_wrong_gate(how: str, packed: bool) -> None:
    report = crosscheck.check(Unit(packed), Unit(packed, how), "float32[3,4,6]")
    first = report.first_divergence
    assert first is not None and (first.phase, first.site) == ("forward", "out"), str(report)
    told = [c.statement for c in first.causes if c.verified]
    if how == "scaled":
        assert told == ["the value is scaled by 1.01"], first.causes
    else:
        gate = "the gate" if packed else "`into`"
        assert STATEMENTS[how].format(gate=gate) in told, first.causes
