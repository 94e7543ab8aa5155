"""A JAX port with all layers' weights stacked, which runs them in one `jax.lax.scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck import tap  # noqa: E402

WIDTH, DEPTH, CLASSES = 6, 3, 5
INPUTS = {"x": f"float32[4,{WIDTH}]"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 9), nn.SiLU(), nn.Linear(9, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))
        self.last = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def port(net: Net, act: Callable[[Any], Any] = jax.nn.silu, *, axis: int = 0) -> Any:
    """The port with the weights of ``net``, flat and stacked, as its own converter wrote them."""

    def layer(x: Any, p: Any) -> tuple[Any, None]:
        centred = x - x.mean(-1, keepdims=True)
        h = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        h = tap("norm", h * p["g"] + p["b"])
        x = x + tap("mlp", act(h @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
        return tap("layer", x), None

    def run(p: Any, x: Any) -> Any:
        x = tap("first", x @ p["embed"])
        layers = {name: jnp.moveaxis(value, axis, 0) for name, value in p["layers"].items()}
        return jax.lax.scan(layer, x, layers)[0] @ p["head"]

    names = {"g": "norm.weight", "b": "norm.bias", "w1": "mlp.0.weight", "b1": "mlp.0.bias"}
    names |= {"w2": "mlp.2.weight", "b2": "mlp.2.bias"}
    held = {name: value.numpy() for name, value in net.state_dict().items()}
    layers = {
        k: jnp.stack([jnp.array(held[f"layers.{i}.{name}"].T) for i in range(DEPTH)], axis)
        for k, name in names.items()
    }
    params = {"embed": jnp.array(held["first.weight"].T), "layers": layers}
    params["head"] = jnp.array(held["last.weight"].T)
    return crosscheck.adapt(run, params=params)


def net() -> Net:
    torch.manual_seed(2)
    return Net()


def test_a_wrong_activation_is_named_in_each_layer_and_nowhere_else() -> None:
    """Where all layers are wrong, names have to pair the sites: `mlp#2` and `layers.1.mlp`."""
    reference = net()
    report = crosscheck.check(reference, port(reference, jax.nn.gelu), INPUTS, weights="keep")
    assert report.first_divergence is not None
    assert report.first_divergence.candidate == "mlp"
    forward = [str(d.reference)[:12] for d in report.divergences if d.phase == "forward"]
    assert forward == [f"layers.{i}.mlp" for i in range(DEPTH)]  # or the last layer in it
    assert {str(d.reference)[:12] for d in report.divergences} == {*forward}


def test_bare_arrays_that_are_held_in_another_layout_are_found() -> None:
    """Those before and behind are turned, and the others stacked as well; all under names that say
    nothing."""
    reference = net()
    report = crosscheck.check(reference, port(reference), INPUTS, weights="keep")
    assert report.verdict == "agree"
    compared = {s.reference: s.candidate for s in report.sites if s.phase == "parameter_gradient"}
    assert {"first.weight": "embed", "last.weight": "head"}.items() <= compared.items()
    assert compared["layers.1.norm.weight"] == "layers.g"
    assert compared["layers.2.mlp.0.weight"] == "layers.w1"
    assert compared.keys() == dict(reference.named_parameters()).keys()


def flax_port(residual: float = 1.0) -> Any:
    """A port that nobody gave weights yet."""
    linen = pytest.importorskip("flax.linen")

    class Layer(linen.Module):  # type: ignore[misc, name-defined]
        @linen.compact  # type: ignore[untyped-decorator]
        def __call__(self, x: Any, _: None) -> tuple[Any, None]:
            h = linen.Dense(9, name="up")(linen.LayerNorm(epsilon=1e-5, name="norm")(x))
            return residual * x + linen.Dense(WIDTH, name="down")(jax.nn.silu(h)), None

    class Port(linen.Module):  # type: ignore[misc, name-defined]
        @linen.compact  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            x = linen.Dense(WIDTH, use_bias=False, name="first")(x)
            over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = linen.scan(Layer, length=DEPTH, **over)(name="layers")(x, None)
            return linen.Dense(CLASSES, use_bias=False, name="last")(x)

    module = Port()
    return crosscheck.adapt(module, variables=module.init(jax.random.key(0), jnp.ones((1, WIDTH))))


@pytest.mark.parametrize("residual", [1.0, 0.5])
def test_weights_are_stacked_for_a_scan(residual: float) -> None:
    reference = net()
    report = crosscheck.check(reference, flax_port(residual), INPUTS)
    compared = {s.reference for s in report.sites if s.phase == "parameter_gradient"}
    assert compared == dict(reference.named_parameters()).keys()
    assert report.verdict == ("agree" if residual == 1.0 else "diverge"), str(report)
    assert {d.reference for d in report.divergences} == (
        set() if residual == 1.0 else {f"layers.{k}" for k in range(DEPTH)}
    ), str(report)


@pytest.mark.parametrize("optimizer", ["adamw(lr=1e-2)", "sgd(0.1, clip_norm=0.5)"])
def test_later_steps_leave_alone_what_the_candidate_has_no_counterpart_for(optimizer: str) -> None:
    reference = net()
    report = crosscheck.check(
        reference, port(reference, axis=-1), INPUTS, weights="keep", optimizer=optimizer, steps=2
    )
    assert report.verdict == "agree", str(report)
    updated = {(s.reference, s.step) for s in report.sites if s.phase == "update"}
    assert updated == {(n, k) for n in ("first.weight", "last.weight") for k in (1, 2)}
    assert any("start from the first values" in note for note in report.notes)
    assert all(np.isfinite(p.detach().numpy()).all() for p in reference.parameters())
