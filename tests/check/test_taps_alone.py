"""A JAX function whose taps are fewer than the reference's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck import tap  # noqa: E402


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, 9, bias=False), nn.Linear(6, 9, bias=False)
        self.down = nn.Linear(9, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mlp = nn.Linear(5, 6), Gated()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.first(x))


@pytest.mark.parametrize("cut", ["gate", "up"])
def test_of_several_layers_that_send_back_a_sum_none_is_named_alone(cut: str) -> None:
    torch.manual_seed(0)
    reference = Net()

    def port(p: Any, x: Any) -> Any:
        h = tap("first", x @ p["first"]["kernel"] + p["first"]["bias"])
        given = {"gate": h, "up": h, cut: jax.lax.stop_gradient(h)}
        gate, up = (given[name] @ p["mlp"][name]["kernel"] for name in ("gate", "up"))
        return tap("mlp", (jax.nn.silu(gate) * up) @ p["mlp"]["down"]["kernel"])

    shapes = {"gate": (6, 9), "up": (6, 9), "down": (9, 6)}
    params = {
        "first": {"kernel": jnp.zeros((5, 6)), "bias": jnp.zeros(6)},
        "mlp": {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()},
    }
    candidate = crosscheck.adapt(port, params=params)
    report = crosscheck.check(reference, candidate, {"x": "float32[4,5]"})
    first = report.first_divergence
    assert first is not None
    assert (first.phase, first.site, first.reference) == ("backward", "first", "mlp")
    assert "`mlp.gate`, `mlp.up`" in first.statement or "`mlp.up`, `mlp.gate`" in first.statement
    other = "up" if cut == "gate" else "gate"
    assert first.causes[0].statement == f"what `mlp.{other}` sends back, for that of `mlp`"


@pytest.mark.parametrize("weights", ["copy", "keep"])
def test_a_square_matrix_with_one_more_axis_may_be_turned(weights: str) -> None:
    """As the weights of a scan over one layer are."""
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 4))
    held = [np.asarray(p.detach()) for p in reference.parameters()]

    def port(p: Any, x: Any) -> Any:
        h = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["mix"])[0]
        return h @ p["last"]["kernel"] + p["last"]["bias"]

    params = {
        "mix": jnp.array(held[0].T[None]),
        "last": {"kernel": jnp.array(held[1].T), "bias": jnp.array(held[2])},
    }
    candidate = crosscheck.adapt(port, params=params)
    report = crosscheck.check(reference, candidate, "float32[7,6]", weights=weights)
    assert report.verdict == "agree", str(report)
    assert "0.weight" in {s.reference for s in report.sites if s.phase == "parameter_gradient"}
