"""Flax Linen and Equinox, and checks of JAX ports against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax")

import jax.numpy as jnp  # noqa: E402
from flax import linen, nnx  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck.adapters.base import ModelRaised  # noqa: E402
from crosscheck.adapters.jax.adapter import JaxAdapter, find  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.observers import Forcer  # noqa: E402
from crosscheck.taps import tap  # noqa: E402

from .contract import DY, X, equal, record  # noqa: E402

IMAGES = np.random.default_rng(5).normal(size=(2, 6, 7, 3)).astype(np.float32)

# -- Linen ---------------------------------------------------------------------------------------


class Block(linen.Module):
    @linen.compact
    def __call__(self, h: Any) -> Any:
        return h + linen.relu(tap("pre", linen.Dense(5)(h)))


class Net(linen.Module):
    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        h = Block()(linen.Dense(5, name="fc1")(x))
        h = linen.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(h)
        h = linen.Dropout(0.5, name="drop")(h, deterministic=not train)
        return linen.Dense(3, name="fc2")(h)


def linen_adapter(module: Any, x: np.ndarray = X) -> JaxAdapter:
    adapter = find(module, variables=module.init(jax.random.key(0), x))
    assert adapter is not None
    return adapter


def test_linen() -> None:
    adapter = linen_adapter(Net())
    described = {p.name: (p.role, p.kind, p.axes, p.buffer) for p in adapter.parameters()}
    channel = ("channel",)
    assert described == {
        "fc1.kernel": ("weight", "dense", ("in", "out"), False),
        "fc1.bias": ("bias", "dense", ("out",), False),
        "Block_0.Dense_0.kernel": ("weight", "dense", ("in", "out"), False),
        "Block_0.Dense_0.bias": ("bias", "dense", ("out",), False),
        "bn.scale": ("weight", "norm", channel, False),
        "bn.bias": ("bias", "norm", channel, False),
        "bn.mean": ("mean", "norm", channel, True),
        "bn.var": ("variance", "norm", channel, True),
        "fc2.kernel": ("weight", "dense", ("in", "out"), False),
        "fc2.bias": ("bias", "dense", ("out",), False),
    }
    values, info = record(adapter)
    assert info.sources == {
        "fc1": "input:x",
        "Block_0": "fc1",
        "Block_0.Dense_0": "fc1",
        "bn": "Block_0",
        "drop": "bn",
        "fc2": "drop",
    }
    assert info.layers["Block_0.pre"] == "tap"
    assert info.parents["Block_0.Dense_0"] == "Block_0"
    inner = np.maximum(values["activation", "Block_0.pre"], 0)
    np.testing.assert_allclose(
        values["activation", "Block_0"], values["activation", "fc1"] + inner, rtol=1e-6
    )
    np.testing.assert_allclose(info.parameter_gradients["fc2.bias"], DY.sum(0), rtol=1e-5)
    assert "bn.mean" not in info.parameter_gradients
    forced = np.zeros((6, 5), np.float32)
    values, _ = record(adapter, observer=Forcer({("activation", "drop"): forced}))
    assert not values["input", "fc2"].any()


def test_linen_in_train_mode_and_float64() -> None:
    adapter = linen_adapter(Net())
    first, info = record(adapter, train=True, seed=5)
    mean = first["input", "bn"].astype(np.float64).mean(0)
    assert set(info.buffers) == {"bn.mean", "bn.var"}
    np.testing.assert_allclose(info.buffers["bn.mean"], 0.1 * mean, atol=1e-6)
    again, _ = record(adapter, train=True, seed=5)
    assert equal(first, again) == set(first)
    other, _ = record(adapter, train=True, seed=6)
    assert not np.array_equal(other["activation", "drop"], first["activation", "drop"])
    wide, _ = record(adapter, train=True, seed=5, float64=True)
    assert {v.dtype for v in wide.values()} == {np.dtype(np.float64)}
    assert not adapter.params["batch_stats"]["bn"]["mean"].any()


def test_linen_parameters_are_owned_by_the_adapter() -> None:
    module = Net()
    variables = module.init(jax.random.key(0), X)
    adapter = find(module, variables=variables)
    assert adapter is not None
    adapter.load({"fc2.bias": np.ones(3), "bn.mean": np.ones(5)})
    assert np.array_equal(adapter.params["params"]["fc2"]["bias"], np.ones(3))
    assert not variables["params"]["fc2"]["bias"].any()
    values, _ = record(adapter)
    output = module.apply(adapter.params, X)
    np.testing.assert_allclose(values["activation", "output"], output, rtol=1e-6)


def test_linen_lifted_scan_and_remat() -> None:
    class Step(linen.Module):
        @linen.compact
        def __call__(self, h: Any, _: Any) -> Any:
            return jnp.sin(linen.Dense(4, name="fc")(h)), None

    class Stack(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            over = linen.scan(
                linen.remat(Step),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return linen.Dense(3, name="head")(over(name="step")(x, None)[0])

    values, info = record(linen_adapter(Stack()))
    assert [s for k, s in values if k == "activation" and "fc" in s] == [
        "step.fc",
        "step.fc#2",
        "step.fc#3",
    ]
    assert info.parameter_gradients["step.fc.kernel"].shape == (3, 4, 4)
    shared = np.sin(values["activation", "step.fc#3"])
    np.testing.assert_allclose(values["input", "head"], shared, rtol=1e-5)
    sent = values["input_cotangent", "head"] * np.cos(values["activation", "step.fc#3"])
    np.testing.assert_allclose(values["cotangent", "step.fc#3"], sent, rtol=1e-4, atol=1e-6)


def test_linen_arguments_and_errors() -> None:
    with pytest.raises(InvalidArgument, match=r"adapt\(module, variables=module.init\(key, x\)\)"):
        find(Net())
    with pytest.raises(InvalidArgument, match=r"no collection 'params' \(it is \['fc1'\]\)"):
        find(Net(), variables={"fc1": {}})

    class Boom(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            raise ValueError("boom")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return Boom(name="boom")(linen.Dense(3, name="fc")(x))

    adapter = find(
        Model(), variables={"params": {"fc": {"kernel": jnp.ones((4, 3)), "bias": X[0, :3]}}}
    )
    assert adapter is not None
    with pytest.raises(ModelRaised) as error:
        record(adapter)
    assert (error.value.site, error.value.stage) == ("boom", "forward")


def test_kinds_of_linen_kernels() -> None:
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            h = linen.Conv(4, (3, 3))(x)
            h = linen.MultiHeadDotProductAttention(num_heads=2)(h.reshape(2, -1, 4))
            return h, linen.Embed(5, 4)(jnp.zeros(3, int))

    found = {p.name: (p.kind, p.axes) for p in linen_adapter(Model(), IMAGES).parameters()}
    assert found["Conv_0.kernel"] == ("conv", ("h", "w", "in", "out"))
    attention = "MultiHeadDotProductAttention_0"
    assert found[f"{attention}.query.kernel"] == ("dense", ("in", "out/0", "out/1"))
    assert found[f"{attention}.out.kernel"] == ("dense", ("in/0", "in/1", "out"))
    assert found["Embed_0.embedding"] == ("embedding", ("row", "dim"))


# -- Equinox -------------------------------------------------------------------------------------


def test_equinox() -> None:
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):  # type: ignore[misc, name-defined]
        layers: list[Any]
        head: Any
        drop: Any

        def __init__(self) -> None:
            keys = jax.random.split(jax.random.key(0), 2)
            self.layers = [eqx.nn.Linear(4, 5, key=keys[0]), jnp.tanh]
            self.head = eqx.nn.Linear(5, 3, key=keys[1])
            self.drop = eqx.nn.Dropout(0.5)

        def __call__(self, x: Any, *, key: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return self.head(self.drop(x, key=key))

    model = Model()
    adapter = find(model, batched=True)
    assert adapter is not None
    described = {p.name: (p.role, p.kind, p.axes) for p in adapter.parameters()}
    assert described == {
        "layers.0.weight": ("weight", "dense", ("out", "in")),
        "layers.0.bias": ("bias", "dense", ("out",)),
        "head.weight": ("weight", "dense", ("out", "in")),
        "head.bias": ("bias", "dense", ("out",)),
    }
    values, info = record(adapter)
    assert [s for k, s in values if k == "activation"] == [
        "input:x",
        "layers.0",
        "drop",
        "head",
        "output",
    ]
    hidden = X @ np.asarray(model.layers[0].weight).T + np.asarray(model.layers[0].bias)
    np.testing.assert_allclose(values["activation", "layers.0"], hidden, atol=1e-5)
    sent = DY @ np.asarray(model.head.weight)
    np.testing.assert_allclose(values["input_cotangent", "head"], sent, atol=1e-5)
    gradient = DY.T @ values["input", "head"]
    np.testing.assert_allclose(info.parameter_gradients["head.weight"], gradient, atol=1e-5)
    one, _ = record(find(model), {"x": X[0]}, cotangents=lambda o: {"output": DY[0]})  # type: ignore[arg-type]
    np.testing.assert_allclose(
        one["activation", "head"], values["activation", "head"][0], rtol=1e-5
    )
    train, _ = record(adapter, train=True)
    assert (train["activation", "drop"] == 0).any()
    adapter.load({"head.bias": np.ones(3)})
    assert np.array_equal(adapter.params.head.bias, np.ones(3))
    assert not np.array_equal(model.head.bias, np.ones(3))
    wide, _ = record(adapter, float64=True)
    assert {v.dtype for v in wide.values()} == {np.dtype(np.float64)}
    assert "__call__" in vars(Model)
    with pytest.raises(InvalidArgument, match="Equinox module Model has its parameters inside"):
        find(model, params={})


def test_a_batched_model_is_compiled_once_for_all_adapters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its taps lie under vmap of eager code: nothing that JAX keeps compiled holds one."""
    eqx = pytest.importorskip("equinox")
    counts = []
    for _ in range(2):
        adapter = find(eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0)), batched=True)
        caplog.clear()
        with jax.log_compiles():
            record(adapter)
        counts.append(sum("Finished XLA compilation" in r.getMessage() for r in caplog.records))
    assert counts[0] > 0 == counts[1]


def test_equinox_convolutions() -> None:
    eqx = pytest.importorskip("equinox")
    adapter = find(eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0)), batched=True)
    assert adapter is not None
    found = {p.name: (p.kind, p.axes, p.value.shape) for p in adapter.parameters()}
    assert found == {
        "weight": ("conv", ("out", "in", "h", "w"), (4, 3, 3, 3)),
        "bias": ("conv", ("out",), (4,)),
    }
    adapter.load({"bias": np.arange(4)})
    images = IMAGES.transpose(0, 3, 1, 2).copy()
    dy = np.ones((2, 4, 4, 5), np.float32)
    _, info = record(adapter, {"x": images}, cotangents=lambda o: {"output": dy})
    assert np.array_equal(info.parameter_gradients["bias"], np.full(4, 40))


# -- against PyTorch -----------------------------------------------------------------------------


def torch_net() -> Any:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class TorchNet(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.fc1, self.norm, self.fc2 = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            h = torch.relu(self.bn(self.conv(x))).mean((2, 3))
            return self.fc2(self.norm(torch.tanh(self.fc1(h))))

    torch.manual_seed(0)
    model = TorchNet()
    for tensor in (model.bn.running_mean, model.bn.weight, model.bn.bias, model.norm.bias):
        torch.nn.init.normal_(tensor, std=0.3)
    return model


class NnxNet(nnx.Module):
    def __init__(self, eps: float) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.fc1 = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=eps, rngs=rngs)
        self.fc2 = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = nnx.relu(self.bn(self.conv(x))).mean((1, 2))
        return self.fc2(self.norm(jnp.tanh(self.fc1(h))))


class LinenNet(linen.Module):
    eps: float

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        h = linen.Conv(4, (3, 3), name="conv")(x)
        h = linen.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name="bn")(h)
        h = linen.relu(h).mean((1, 2))
        h = jnp.tanh(linen.Dense(8, name="fc1")(h))
        return linen.Dense(5, name="fc2")(linen.LayerNorm(self.eps, name="norm")(h))


def port(kind: str, eps: float) -> JaxAdapter:
    if kind == "linen":
        return linen_adapter(LinenNet(eps), IMAGES)
    adapter = find(NnxNet(eps))
    assert adapter is not None
    return adapter


def check(candidate: Any, **options: Any) -> Any:
    images = {"x": IMAGES.transpose(0, 3, 1, 2).copy()}
    as_nhwc = lambda given: {"x": given["x"].transpose(0, 2, 3, 1)}  # noqa: E731
    return crosscheck.check(torch_net(), candidate, images, candidate_inputs=as_nhwc, **options)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_a_port_of_a_torch_model_agrees(kind: str) -> None:
    report = check(port(kind, eps=1e-5))
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 12
    assert not report.coverage.unmatched_reference_parameters
    assert not report.coverage.unmatched_candidate_parameters
    phases = {(s.phase, s.candidate) for s in report.sites}
    assert {("forward", "norm"), ("backward", "conv")} <= phases
    assert ("parameter_gradient", "conv.kernel") in phases


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_a_planted_epsilon_is_located(kind: str) -> None:
    first = check(port(kind, eps=1e-6)).first_divergence
    assert first is not None
    assert (first.phase, first.reference, first.candidate) == ("forward", "norm", "norm")
