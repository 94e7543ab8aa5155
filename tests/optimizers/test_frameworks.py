"""Whole checks against Keras and JAX: their own optimizers, named and given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import Report

X = "float32[6,5]"


def reference() -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(5, 4))
    model.add_module("act", nn.Tanh())
    model.add_module("last", nn.Linear(4, 3))
    return model


def keras_port() -> Any:
    import keras

    layers = [
        keras.layers.Input((5,)),
        keras.layers.Dense(4, activation="tanh", name="first"),
        keras.layers.Dense(3, name="last"),
    ]
    return keras.Sequential(layers)


def jax_port() -> Any:
    import jax.numpy as jnp

    def net(params: Any, x: Any) -> Any:
        h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
        return h @ params["last"]["kernel"] + params["last"]["bias"]

    sizes = {"first": (5, 4), "last": (4, 3)}
    tree = {
        name: {"kernel": jnp.ones(shape), "bias": jnp.ones(shape[1])}
        for name, shape in sizes.items()
    }
    return crosscheck.adapt(net, params=tree)


def run(candidate: Any, optimizer: Any, **options: Any) -> Report:
    return crosscheck.check(reference(), candidate, X, optimizer=optimizer, **options)


@pytest.mark.parametrize("port", [keras_port, jax_port])
def test_two_steps(port: Any) -> None:
    report = run(port(), "sgd(lr=linear(0.2, total=4), momentum=0.9, clip_norm=1.0)", steps=2)
    assert report.verdict == "agree", str(report)
    assert sum(s.phase == "update" for s in report.sites) == 8


def test_keras_adam_as_it_comes() -> None:
    """Its eps is larger, and is added before the bias correction."""
    import keras

    model = keras_port()
    named = run(model, "adam(1e-3)")
    assert named.verdict == "agree", str(named)
    assert any("adds eps before the bias correction" in note for note in named.notes)
    own = keras.optimizers.Adam(1e-3)
    report = run(model, ("adam(1e-3)", own))
    assert {d.phase for d in report.divergences} == {"update"}
    causes = [c for d in report.divergences for c in d.causes]
    place = "eps is added before the bias correction instead of after it"
    assert any(
        c.verified and c.statement == f"{place}, and is 1e-07 instead of 1e-08" for c in causes
    )
    assert not own.built
    assert run(model, ("adam(1e-3, eps_hat=True, eps=1e-7)", own)).verdict == "agree"


def test_keras_momentum_when_the_rate_changes() -> None:
    import keras

    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 0.01])
    own = keras.optimizers.SGD(schedule, momentum=0.9)
    report = run(keras_port(), ("sgd(lr=[0.1, 0.01], momentum=0.9)", own), steps=2)
    assert {(d.phase, d.step) for d in report.divergences} == {("update", 2)}
    cause = report.divergences[0].causes[0]
    assert (cause.name, cause.verified) == ("lr_inside", True)


def test_keras_optimizers_that_scale_the_loss() -> None:
    """What `fit` multiplies the loss by, the step divides the gradients by."""
    import keras

    inner = {"learning_rate": 1e-2, "weight_decay": 0.05}
    for own in (
        keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(**inner)),
        keras.optimizers.AdamW(**inner, loss_scale_factor=128.0),
    ):
        right = "adamw(1e-2, weight_decay=0.05, eps_hat=True, eps=1e-7)"
        report = run(keras_port(), (right, own), steps=2)
        assert report.verdict == "agree", str(report)
    doubled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.2))
    report = run(keras_port(), ("sgd(0.1)", doubled))
    assert {d.phase for d in report.divergences} == {"update"}


def test_an_optax_transformation_with_a_mask_by_shape() -> None:
    import jax
    import optax

    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    model = jax_port()
    own = optax.adamw(1e-2, weight_decay=0.5, mask=matrices)
    spared = "adamw(1e-2, weight_decay=0.5, exclude='biases and norms')"
    report = run(model, (spared, own), steps=2)
    assert report.verdict == "agree", str(report)
    report = run(model, ("adamw(1e-2, weight_decay=0.5)", own))
    assert {d.reference for d in report.divergences} == {"first.bias", "last.bias"}
    assert report.divergences[0].causes[0].name == "no_decay"


def test_a_pair_and_the_command_line(tmp_path: Any) -> None:
    import json

    from click.testing import CliRunner

    from crosscheck.cli import main

    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 3)\n"
    )
    (tmp_path / "pair.py").write_text(
        "import crosscheck, numpy as np\n"
        "from net import build\n"
        "def half(params, grads):\n"
        "    return {n: p - 0.05 * grads[n] for n, p in params.items()}\n"
        "pair = crosscheck.Pair(build, build, 'float32[2,4]', optimizer=('sgd(0.1)', half))\n"
    )
    runner = CliRunner()
    out = runner.invoke(main, ["run", str(tmp_path), "-q", "--json", "-"])
    assert out.exit_code == 1
    first = json.loads(out.stdout)["first_divergence"]
    assert (first["phase"], first["reference"]) == ("update", "weight")
    options = ["--optimizer", "adam(1e-3)", "--steps", "2"]
    out = runner.invoke(main, ["run", str(tmp_path), "-q", "--json", "-", *options])
    assert out.exit_code == 0, out.output
    sites = json.loads(out.stdout)["sites"]
    assert {s.get("step", 1) for s in sites if s["phase"] == "update"} == {1, 2}
    out = runner.invoke(main, ["run", str(tmp_path), "-q", "--optimizer", "adm(1e-3)"])
    assert out.exit_code == 2 and "did you mean `adam`" in out.stderr


def test_packed_parameters_pass_through_the_map_of_the_weights() -> None:
    """PyTorch's LSTM holds two biases, Keras' one: their sum moves twice as far."""
    import keras

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.rnn = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    port = keras.Sequential(
        [keras.layers.Input((5, 3)), keras.layers.LSTM(4, return_sequences=True)]
    )
    report = crosscheck.check(Net(), port, "float32[2,5,3]", optimizer="adam(1e-3)")
    assert report.verdict == "agree", str(report)
    compared = {s.reference for s in report.sites if s.phase == "update"}
    assert compared == {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    lines = [line for line in report.coverage.not_compared if "bias" in line]
    assert len(lines) == 2 and "a sum" in lines[0]


def test_values_that_no_step_explains() -> None:
    def random(params: dict[str, Any], grads: dict[str, Any]) -> dict[str, Any]:
        draw = np.random.default_rng(0)
        return {n: p + draw.normal(size=p.shape).astype(p.dtype) for n, p in params.items()}

    report = run(reference(), ("sgd(0.1)", random))
    assert report.verdict == "diverge"
    assert not any(c.verified for d in report.divergences for c in d.causes)
