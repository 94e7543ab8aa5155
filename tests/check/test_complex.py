"""Complex values inside a model: rounding is judged as rounding, in both parts, in both passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import crosscheck

pytestmark = [
    pytest.mark.filterwarnings("error:Casting complex"),
    pytest.mark.filterwarnings("error:The given NumPy array is not writable"),
]
X = {"x": "float32[5,7,6]"}


class Spectrum(nn.Module):
    """A real Fourier transform; by its definition, as somebody without `fft` writes it."""

    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        self.by_hand = by_hand

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.by_hand:
            return torch.fft.rfft(x)
        n = x.shape[-1]
        places, waves = torch.arange(n), torch.arange(n // 2 + 1)
        angle = 2 * np.pi * (places[:, None] * waves % n).to(x.dtype) / n
        return torch.complex(x @ angle.cos(), -(x @ angle.sin()))


class Filter(nn.Module):
    """Times complex weights that are kept as two real parameters."""

    def __init__(self, by_hand: bool = False, imaginary: float = 1.0) -> None:
        super().__init__()
        self.real, self.imag = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.by_hand, self.imaginary = by_hand, imaginary

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if not self.by_hand:
            return z * torch.complex(self.real, self.imag * self.imaginary)
        return torch.complex(
            z.real * self.real - z.imag * self.imag, z.real * self.imag + z.imag * self.real
        )


class Back(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft(z, n=6)


def net(by_hand: bool = False, imaginary: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 6), Spectrum(by_hand), Filter(by_hand, imaginary), Back(), nn.Linear(6, 3)
    )


@pytest.mark.parametrize("effort", ["thorough", "quick"])
def test_other_roundings_of_complex_values_agree(effort: str) -> None:
    report = crosscheck.check(net(), net(by_hand=True), X, effort=effort)
    assert report.verdict == "agree", str(report)
    seen = {(s.kind, s.reference) for s in report.sites if s.dtype == "complex64"}
    assert {("activation", "1"), ("activation", "2"), ("cotangent", "2")} <= seen


@pytest.mark.parametrize("effort", ["thorough", "quick"])
def test_what_differs_in_the_imaginary_part_alone(effort: str) -> None:
    found = crosscheck.check(net(), net(imaginary=1.001), X, effort=effort).first_divergence
    assert found is not None
    assert (found.phase, found.reference) == ("forward", "2")
    assert found.metrics is not None and found.metrics.worst_index is not None
    assert len(found.metrics.worst_index) == 3  # of the complex array


def test_a_tolerance_is_one_for_complex_values() -> None:
    wide, narrow = crosscheck.Tolerance(1e-2, 1e-2), crosscheck.Tolerance(1e-6, 1e-6)
    other = net(imaginary=1.001)
    assert crosscheck.check(net(), other, X, tolerance=wide).verdict == "agree"
    found = crosscheck.check(net(), other, X, tolerance=narrow).first_divergence
    assert found is not None and found.reference == "2"


PARAMS = {
    "0": {"kernel": jnp.zeros((6, 6)), "bias": jnp.zeros(6)},
    "2": {"real": jnp.zeros(4), "imag": jnp.zeros(4)},
    "4": {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(3)},
}


def port(params: Any, x: jax.Array) -> jax.Array:
    h = x @ params["0"]["kernel"] + params["0"]["bias"]
    z = crosscheck.tap("spectrum", jnp.fft.rfft(h))
    z = crosscheck.tap("filter", z * (params["2"]["real"] + 1j * params["2"]["imag"]))
    return jnp.fft.irfft(z, n=6) @ params["4"]["kernel"] + params["4"]["bias"]


def conjugated(params: Any, x: jax.Array) -> jax.Array:
    """Its filter turns the other way backward."""

    @jax.custom_vjp
    def times(z: jax.Array, w: jax.Array) -> jax.Array:
        return z * w

    times.defvjp(
        lambda z, w: (z * w, (z, w)),
        lambda kept, dy: (dy * kept[1].conj(), (dy * kept[0]).sum((0, 1))),
    )
    h = x @ params["0"]["kernel"] + params["0"]["bias"]
    z = crosscheck.tap("spectrum", jnp.fft.rfft(h))
    z = crosscheck.tap("filter", times(z, params["2"]["real"] + 1j * params["2"]["imag"]))
    return jnp.fft.irfft(z, n=6) @ params["4"]["kernel"] + params["4"]["bias"]


@pytest.mark.parametrize("staged", [False, True], ids=["eager", "jit"])
def test_jax_counts_complex_gradients_the_other_way_round(staged: bool) -> None:
    function = jax.jit(port) if staged else port
    report = crosscheck.check(net(), crosscheck.adapt(function, params=PARAMS), X)
    assert report.verdict == "agree", str(report)
    seen = {s.candidate for s in report.sites if s.kind == "cotangent" and s.dtype == "complex64"}
    assert seen == {"spectrum", "filter"}


def test_a_conjugated_cotangent_in_jax_is_seen() -> None:
    report = crosscheck.check(net(), crosscheck.adapt(conjugated, params=PARAMS), X)
    found = report.first_divergence
    assert found is not None and found.phase == "backward", str(report)
    assert found.reference == "2", str(report)


class Weighed(nn.Module):
    """With a complex parameter."""

    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.w = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))
        self.by_hand = by_hand

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_hand:
            return ((x @ self.w.real) ** 2 + (x @ self.w.imag) ** 2).sqrt()
        return (x.to(self.w.dtype) @ self.w).abs()


def test_gradients_of_complex_parameters() -> None:
    report = crosscheck.check(Weighed(), Weighed(by_hand=True), X)
    assert report.verdict == "agree", str(report)
    assert [s.dtype for s in report.sites if s.phase == "parameter_gradient"] == ["complex64"]


def test_steps_on_complex_parameters_are_said_not_to_be_compared() -> None:
    class Both(Weighed):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.scale

    report = crosscheck.check(Both(), Both(), X, optimizer="sgd(lr=0.1)")
    assert report.verdict == "agree", str(report)
    assert [s.reference for s in report.sites if s.phase == "update"] == ["scale"]
    assert any("update of `w`: steps on complex" in line for line in report.coverage.not_compared)


@pytest.mark.parametrize("sketch", [0, 300_000], ids=["trace", "sketch"])
def test_recorded_runs_with_complex_values(tmp_path: Path, sketch: int) -> None:
    path = tmp_path / "golden.safetensors"
    crosscheck.record(net(), X, sketch=sketch).save(path)
    report = crosscheck.check(str(path), net(by_hand=True), weights="keep")
    assert report.verdict == "agree", str(report)
    found = crosscheck.check(str(path), net(imaginary=1.001), weights="keep").first_divergence
    assert found is not None and found.reference == "2"
