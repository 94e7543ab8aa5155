"""An audit with the caller's own step leaves nothing behind, whether it passes, fails or raises."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import crosscheck
from crosscheck import checks
from crosscheck.errors import SideFailed

from .kit import CLASSES, FEATURES, Net, X, Y, audit

INPUT, LABELS = torch.tensor(X), torch.tensor(Y)
NET = Net()
OPTIMIZER = torch.optim.Adam(NET.parameters(), lr=0.01)


def state(net: torch.nn.Module, *others: Any) -> dict[str, Any]:
    """Bytes, flags and random states that have to be the same afterwards."""
    return {
        "tensors": {n: t.numpy().tobytes() for n, t in net.state_dict().items()},
        "places": {n: p.data_ptr() for n, p in net.named_parameters()},
        "modes": {n: m.training for n, m in net.named_modules()},
        "hooks": {n: len(m._forward_hooks) for n, m in net.named_modules()},
        "gradients": {
            n: None if p.grad is None else p.grad.numpy().tobytes()
            for n, p in net.named_parameters()
        },
        "requires": {n: p.requires_grad for n, p in net.named_parameters()},
        "others": [repr(o.state_dict()) for o in others],
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tobytes(),  # type: ignore[index, union-attr]  # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


def train(net: Net, optimizer: Any, scheduler: Any = None) -> None:
    """A step that leaves traces everywhere."""
    net.train()
    net.drop.p = 0.5
    net.head.weight.requires_grad_(True)
    random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002, B018
    net.register_forward_hook(lambda *_: None)
    optimizer.zero_grad()
    F.cross_entropy(net(INPUT), LABELS).backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()


def global_step() -> None:
    train(NET, OPTIMIZER)


class Trainer:
    """A step as a method."""

    def __init__(self, net: Net) -> None:
        self.net, self.count = net, 0
        self.optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5)

    def step(self) -> None:
        self.count += 1
        train(self.net, self.optimizer, self.scheduler)

    __call__ = step


def held_in(place: str) -> tuple[Net, Callable[[], Any], list[Any]]:
    """(model, step, what else has a state) for a step that reaches its optimizer in some way."""
    if place == "globals":
        return NET, global_step, [OPTIMIZER]
    trainer = Trainer(Net())
    held = [trainer.optimizer, trainer.scheduler]
    if place == "method":
        return trainer.net, trainer.step, held
    if place == "object":
        return trainer.net, trainer, held
    if place == "partial":
        return trainer.net, functools.partial(train, trainer.net, optimizer=held[0]), held
    if place == "lambda":
        return trainer.net, lambda: trainer.step(), held
    parts = {"net": trainer.net, "held": held}

    def step() -> None:
        train(parts["net"], *parts["held"])  # type: ignore[misc]

    return trainer.net, step, held


PLACES = ("globals", "method", "object", "partial", "lambda", "closure")


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("place", PLACES)
def test_torch_step(place: str, used: bool) -> None:
    net, step, held = held_in(place)
    if used:  # gradients and moments are there already
        train(net, held[0])
        net._forward_hooks.clear()
    net.eval()
    net.drop.train()
    before = state(net, *held)
    finding = checks.variables_train(net, {"x": X}, "cross_entropy", Y, step=step)
    assert finding.statement == "the step changed all of 6 parameters"
    assert state(net, *held) == before
    if place == "method":
        assert step.__self__.count == 0  # type: ignore[attr-defined]


def test_whole_audits_that_pass_and_fail() -> None:
    net, step, held = held_in("closure")
    before = state(net, *held)
    assert audit(net, step=step).verdict == "healthy"
    assert state(net, *held) == before
    assert audit(net, step=step, frozen=["first.*"]).verdict == "wrong"
    assert state(net, *held) == before


def test_a_step_that_raises() -> None:
    net, step, held = held_in("method")

    def broken() -> None:
        step()
        raise ValueError("out of data")

    before = state(net, *held)
    with pytest.raises(SideFailed, match="training step.*out of data"):
        checks.variables_train(net, {"x": X}, "cross_entropy", Y, step=broken)
    assert state(net, *held) == before
    report = audit(net, step=broken)
    assert state(net, *held) == before
    assert {f.check for f in report.errors} == {
        "batchnorm_uses_the_batch_in_training",
        "variables_train",
        "only_these_train",
    } - {f.check for f in report.findings if f.status == "skipped"}
    assert report.verdict == "incomplete" and "out of data" in str(report)
    assert sum(f.status == "pass" for f in report.findings) > 15


class ByHand:
    """A NumPy net, with momentum kept in its optimizer."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.W = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
        self.dW = np.zeros_like(self.W)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W

    def backward(self, dy: Any) -> Any:
        self.dW = self.x.T @ dy
        return dy @ self.W.T


class Momentum:
    def __init__(self, net: ByHand) -> None:
        self.net, self.kept = net, {"W": np.zeros_like(net.W)}

    def step(self) -> None:
        self.net.backward(self.net.forward(X))
        self.kept["W"] = 0.9 * self.kept["W"] + self.net.dW
        self.net.W -= 0.1 * self.kept["W"]


def test_numpy_step() -> None:
    net = ByHand()
    rule = Momentum(net)
    weights, gradient, before = net.W, net.dW, net.W.copy()
    checks.variables_train(net, {"x": X}, step=rule.step)
    assert net.W is weights and net.dW is gradient and not hasattr(net, "x")
    np.testing.assert_array_equal(net.W, before)
    np.testing.assert_array_equal(rule.kept["W"], 0)


def test_keras_step() -> None:
    keras = pytest.importorskip("keras")
    import tensorflow as tf

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((FEATURES,)), layers.Dense(5), layers.BatchNormalization(), layers.Dense(3)]
    )
    used, new = keras.optimizers.Adam(0.01), keras.optimizers.Adagrad(0.01)

    def step(optimizer: Any) -> None:
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(model(X + tf.random.uniform(X.shape), training=True) ** 2)
        trained = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))

    step(used)

    def values() -> list[bytes]:
        return [np.array(v).tobytes() for v in (*model.variables, *used.variables)]

    tf.random.set_seed(3)
    tf.random.uniform((2,))
    before = values()
    for optimizer in (used, new):
        checks.variables_train(model, {"x": X}, step=functools.partial(step, optimizer))
    assert values() == before
    after = float(tf.random.uniform(()))
    tf.random.set_seed(3)
    tf.random.uniform((2,))
    assert float(tf.random.uniform(())) == after
    assert int(new.iterations) == 0
    fresh = keras.optimizers.Adagrad(0.01)
    fresh.build(model.trainable_variables)
    for ours, theirs in zip(new.variables, fresh.variables, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


def test_flax_step() -> None:
    nnx = pytest.importorskip("flax.nnx")
    import jax
    import optax

    model = nnx.Linear(FEATURES, CLASSES, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    def step() -> None:
        def loss(net: Any) -> Any:
            return (net(X) ** 2).mean()

        model.eval()
        optimizer.update(model, nnx.grad(loss)(model))

    def values() -> list[bytes]:
        leaves = jax.tree.leaves((nnx.state(model), nnx.state(optimizer)))
        return [np.asarray(leaf).tobytes() for leaf in leaves]

    before = values()
    checks.variables_train(model, {"x": X}, step=step)
    assert values() == before


def test_a_functional_model_returns_its_new_parameters() -> None:
    pytest.importorskip("jax")
    import jax
    import jax.numpy as jnp

    params = {"w": jnp.ones((FEATURES, CLASSES)), "b": jnp.zeros(CLASSES)}

    def function(params: Any, x: Any) -> Any:
        return x @ params["w"] + params["b"]

    def step() -> Any:
        gradients = jax.grad(lambda p: (function(p, X) ** 2).mean())(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), "the optimizer's state"

    model = crosscheck.adapt(function, params=params)
    checks.variables_train(model, {"x": X}, step=step)
    with pytest.raises(AssertionError, match="`w` shall not train, but the training step changed"):
        checks.only_these_train(model, {"x": X}, trains=["b"], step=step)
    with pytest.raises(crosscheck.InvalidArgument, match="must return the new parameters"):
        checks.variables_train(model, {"x": X}, step=lambda: None)
