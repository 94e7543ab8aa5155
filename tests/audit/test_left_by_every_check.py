"""Every check leaves the model, the optimizer and all random states as they were, in every
framework: when it passes, and when the model raises in the midst of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import crosscheck
from crosscheck.auditing.registry import CHECKS
from crosscheck.auditing.run import one, subject_of
from crosscheck.auditing.subject import Subject
from models.scratch import ReLU

from . import nets
from .kit import Net, X, Y

# Calls of the model before it raises -> the checks that are made, and how many raise at least.
FUSES = {0: (tuple(CHECKS), 15), 1: (("overfits_a_few_examples",), 1)}


class Fused(torch.nn.ReLU):
    def forward(self, x: Any) -> Any:
        nets.burn()
        return super().forward(x)


class FusedByHand(ReLU):
    def forward(self, x: Any) -> Any:
        nets.burn()
        return super().forward(x)


# -- a net, a training step, and everything that they hold ----------------------------------------


def of_torch() -> tuple[Any, Any, Callable[[], Any]]:
    net = Net(relu=Fused())
    net.drop.eval()  # modes differ
    net.first.bias.requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def step() -> None:
        net.train()
        torch.nn.functional.cross_entropy(net(torch.tensor(X)), torch.tensor(Y)).backward()
        optimizer.step()

    step()
    net.eval()

    def state() -> Any:
        return {
            "tensors": [t.detach().numpy().tobytes() for t in net.state_dict().values()],
            "gradients": [p.grad is None or p.grad.numpy().tobytes() for p in net.parameters()],
            "flags": [p.requires_grad for p in net.parameters()],
            "modes": [m.training for m in net.modules()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
            "optimizer": repr(optimizer.state_dict()),
            "random": torch.get_rng_state().numpy().tobytes(),
        }

    return net, step, state


def of_numpy() -> tuple[Any, Any, Callable[[], Any]]:
    net = nets.ByHand()
    net.relu = FusedByHand()
    net._order[2] = net.relu
    net.norm.eval()

    def step() -> None:
        net.first.params["weight"] -= 0.1
        net.head.params["weight"] = net.head.params["weight"] * 0.9

    def state() -> Any:
        found: dict[str, Any] = {}
        for path, layer in net.named_layers():
            kept = {**vars(layer), **layer.params, **layer.grads, **layer.buffers}
            for name, value in kept.items():
                array = isinstance(value, np.ndarray)
                found[f"{path}.{name}"] = value.tobytes() if array else type(value).__name__
            found[f"{path} mode"] = layer.training
        return found

    return net, step, state


def of_keras() -> tuple[Any, Any, Callable[[], Any]]:
    keras = pytest.importorskip("keras")
    import tensorflow as tf

    net = nets.keras_net()
    net.first.trainable = False
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(net.trainable_variables)

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(net(X, training=True) ** 2)
        trained = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))

    tf.random.set_seed(3)
    tf.random.uniform(())
    following = float(tf.random.uniform(()))

    def state() -> Any:
        kept = [*net.variables, *optimizer.variables]
        now = float(tf.random.uniform(()))  # what comes next, and back to where it was
        tf.random.set_seed(3)
        tf.random.uniform(())
        return {
            "variables": [np.array(v).tobytes() for v in kept],
            "flags": [(v.trainable, v.dtype) for v in net.variables],
            "layers": [(layer.trainable, layer.dtype_policy.name) for layer in net.layers],
            "floatx": keras.config.floatx(),
            "losses": len(net.losses),
            "random": now == following,
            "seed": keras.src.backend.common.global_state.get_global_attribute(
                "global_random_seed"
            ),
        }

    tf.random.set_seed(3)
    tf.random.uniform(())
    return net, step, state


def of_jax() -> tuple[Any, Any, Callable[[], Any]]:
    nnx = pytest.importorskip("flax.nnx")
    import jax
    import optax

    net = nets.flax_net()
    net.drop.deterministic = True
    optimizer = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    def step() -> None:
        net.train()
        gradients = nnx.grad(lambda model: (model(X) ** 2).mean())(net)
        optimizer.update(net, gradients)

    def state() -> Any:
        leaves = jax.tree.leaves((nnx.state(net), nnx.state(optimizer)))
        shown = [jax.random.key_data(v) if "key" in str(v.dtype) else v for v in leaves]
        return {
            "leaves": [np.asarray(v).tobytes() for v in shown],
            "modes": (net.drop.deterministic, net.norm.use_running_average),
            "names": [sorted(vars(m)) for _, m in nnx.iter_modules(net)],
            "x64": jax.config.jax_enable_x64,
        }

    return net, step, state


MADE = {"torch": of_torch, "numpy": of_numpy, "keras": of_keras, "jax": of_jax}
FRAMEWORKS = ["torch", "numpy", pytest.param("keras", marks=pytest.mark.slow)]
FRAMEWORKS += [pytest.param("jax", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=FRAMEWORKS)
def kept(request: pytest.FixtureRequest) -> Any:
    """(adapter, step, what its state is)."""
    net, step, state = MADE[request.param]()

    def everything() -> Any:
        python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
        return state(), python, legacy[1].tobytes(), legacy[2]  # type: ignore[index, union-attr]

    return crosscheck.adapt(net), step, everything


def made(adapter: Any, step: Any) -> Subject:
    given = {"optimizer": "sgd(lr=0.01)", "overfit_steps": 3, "overfit_lr": 0.1}
    return subject_of(
        adapter, {"x": X}, "cross_entropy", Y, step=step, frozen=["first*bias"], **given
    )


def test_checks_that_are_made(kept: Any) -> None:
    adapter, step, state = kept
    before, subject = state(), made(adapter, step)
    for name, check in CHECKS.items():
        one(check, subject)
        assert state() == before, name


@pytest.mark.parametrize("calls", FUSES)
def test_checks_that_raise(kept: Any, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, _, state = kept
    before, raised = state(), []
    checks, least = FUSES[calls]
    for name in checks:
        monkeypatch.setattr(nets, "FUSE", calls)
        try:
            one(CHECKS[name], made(adapter, None))
        except crosscheck.CrosscheckError:
            raised.append(name)
        monkeypatch.setattr(nets, "FUSE", None)
        assert state() == before, name
    assert len(raised) >= least, raised
