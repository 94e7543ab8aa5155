"""Low precision between frameworks: PyTorch in half, and ports that hold bfloat16 or float16."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import Report

N, HIDDEN = 24, 40


class Reference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1 = nn.Linear(N, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(HIDDEN, 5)

    def forward(self, x: Any) -> Any:
        return self.fc2(self.act(self.norm(self.fc1(x))))


def verify(report: Report, slip: float, site: str = "act") -> None:
    if slip == 1.0:
        assert report.verdict == "agree", str(report)
        assert report.coverage.aligned >= 5
    else:
        assert report.verdict == "diverge", str(report)
        assert {d.reference for d in report.divergences if d.phase == "forward"} == {site}


class Dense:
    def __init__(self, n_in: int, n_out: int, dtype: Any) -> None:
        self.w, self.b = np.zeros((n_in, n_out), dtype), np.zeros(n_out, dtype)

    def forward(self, x: Any) -> Any:
        wide = x.astype(np.float32) @ self.w.astype(np.float32)  # accumulates in float32
        return (wide + self.b.astype(np.float32)).astype(x.dtype)


class Norm:
    def __init__(self, n: int, dtype: Any) -> None:
        self.gamma, self.beta = np.ones(n, dtype), np.zeros(n, dtype)

    def forward(self, x: Any) -> Any:
        wide = x.astype(np.float64)
        d = wide - wide.mean(-1, keepdims=True)
        d /= np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5)
        return (d.astype(x.dtype) * self.gamma + self.beta).astype(x.dtype)


class Gelu:
    def __init__(self, slip: float) -> None:
        self.slip = slip

    def forward(self, x: Any) -> Any:
        erf = torch.erf(torch.from_numpy(x.astype(np.float64)) / 2**0.5).numpy()
        return (0.5 * x.astype(np.float64) * (1 + erf) * self.slip).astype(x.dtype)


class Stack:
    def __init__(self, dtype: Any, slip: float) -> None:
        self.fc1, self.norm = Dense(N, HIDDEN, dtype), Norm(HIDDEN, dtype)
        self.act, self.fc2 = Gelu(slip), Dense(HIDDEN, 5, dtype)

    def forward(self, x: Any) -> Any:
        return self.fc2.forward(self.act.forward(self.norm.forward(self.fc1.forward(x))))


@pytest.mark.parametrize("slip", [1.0, 1.1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numpy(dtype: str, slip: float) -> None:
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    reference = Reference().to(getattr(torch, dtype))
    verify(crosscheck.check(reference, Stack(kind, slip), f"{dtype}[9,{N}]", explain=False), slip)


@pytest.mark.parametrize("slip", [1.0, pytest.param(1.1, marks=pytest.mark.slow)])
def test_jax_with_parameters_in_bfloat16(slip: float) -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy

    def layer_norm(x: Any, p: Any) -> Any:
        wide = x.astype(jnp.float32)
        d = wide - wide.mean(-1, keepdims=True)
        d = d * jax.lax.rsqrt((d * d).mean(-1, keepdims=True) + 1e-5)
        return d.astype(x.dtype) * p["weight"] + p["bias"]

    def model(p: Any, x: Any) -> Any:
        x = crosscheck.tap("fc1", x @ p["fc1"]["weight"].T + p["fc1"]["bias"])
        x = crosscheck.tap("norm", layer_norm(x, p["norm"]))
        x = crosscheck.tap("act", jax.nn.gelu(x, approximate=False) * slip)
        return x @ p["fc2"]["weight"].T + p["fc2"]["bias"]

    shapes = {"fc1": (HIDDEN, N), "norm": (HIDDEN,), "fc2": (5, HIDDEN)}
    params = {
        k: {"weight": jnp.zeros(s, jnp.bfloat16), "bias": jnp.zeros(s[0], jnp.bfloat16)}
        for k, s in shapes.items()
    }
    candidate = crosscheck.adapt(model, params=params)
    reference = Reference().to(torch.bfloat16)
    verify(crosscheck.check(reference, candidate, f"bfloat16[9,{N}]", explain=False), slip)


@pytest.mark.parametrize(
    ("policy", "slip"),
    [
        ("mixed_bfloat16", 1.0),
        ("mixed_bfloat16", 1.1),
        pytest.param("mixed_float16", 1.0, marks=pytest.mark.slow),
    ],
)
def test_keras_with_a_mixed_policy(policy: str, slip: float) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential(
        [
            keras.Input((N,)),
            keras.layers.Dense(HIDDEN, name="fc1", dtype=policy),
            keras.layers.LayerNormalization(epsilon=1e-5, name="norm", dtype=policy),
            keras.layers.Lambda(
                lambda x: keras.activations.gelu(x, approximate=False) * slip,
                name="act",
                dtype=policy,
            ),
            keras.layers.Dense(5, name="fc2", dtype=policy),
        ]
    )
    report = crosscheck.check(Reference(), model, f"float32[9,{N}]", explain=False)
    held = policy.removeprefix("mixed_")
    assert any(f"the candidate holds {held} where the reference" in n for n in report.notes)
    verify(report, slip)
