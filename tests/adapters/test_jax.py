"""JAX: the contract with Flax NNX, and what NNX modules do beyond it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax")

import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

from crosscheck.adapters.jax.adapter import find  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.observers import Forcer  # noqa: E402
from crosscheck.taps import tap  # noqa: E402

from .contract import DY, Contract, X, equal, ones, record  # noqa: E402
from .jax_kit import JaxKit, Layers, dense  # noqa: E402


class TestJax(Contract):
    kit = JaxKit()


def adapt(function: Any, **layers: Any) -> Any:
    return JaxKit().adapt(Layers(function, **layers))


# -- transformations of NNX ----------------------------------------------------------------------


class Compiled(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = dense(rngs)(4, 4)

    @nnx.jit
    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.fc(x))


def test_blocks_under_nnx_jit_have_each_their_own_sites() -> None:
    model = Layers(
        lambda m, x: m.head(m.b(m.a(x))),
        a=Compiled(nnx.Rngs(0)),
        b=Compiled(nnx.Rngs(1)),
        head=dense(nnx.Rngs(2))(4, 3),
    )
    model(X)  # the user's own call is in the cache, without taps
    adapter = JaxKit().adapt(model)
    values, info = record(adapter)
    sites = ["input:x", "a", "a.fc", "b", "b.fc", "head", "output"]
    assert {s for k, s in values if k == "activation"} == set(sites)
    assert {k: info.parents[k] for k in ("a.fc", "b.fc")} == {"a.fc": "a", "b.fc": "b"}
    inner = np.tanh(values["activation", "a.fc"])
    np.testing.assert_allclose(values["activation", "a"], inner, rtol=1e-5)
    slope = 1 - values["activation", "b"].astype(np.float64) ** 2
    expected = values["input_cotangent", "head"] * slope
    np.testing.assert_allclose(values["cotangent", "b.fc"], expected, rtol=1e-5)
    again, _ = record(adapter)
    assert list(again) == list(values)
    assert equal(values, again) == set(values)
    forced = np.full((6, 4), 0.5, np.float32)
    values, _ = record(adapter, observer=Forcer({("activation", "a.fc"): forced}))
    np.testing.assert_allclose(values["input", "b"], np.tanh(forced), rtol=1e-5)


def test_a_passive_run_is_neutral_under_nnx_jit() -> None:
    model = Layers(
        lambda m, x: m.head(m.a(x)), a=Compiled(nnx.Rngs(0)), head=dense(nnx.Rngs(2))(4, 3)
    )
    values, info = record(JaxKit().adapt(model), passive=True)
    outputs, gradients = JaxKit().bare(model, {"x": X}, [DY])
    assert values["activation", "output"].tobytes() == outputs[0].tobytes()
    for name, gradient in gradients.items():
        assert info.parameter_gradients[name].tobytes() == gradient.tobytes(), name
    assert ("cotangent", "a.fc") in values


def test_layers_under_nnx_scan_and_remat() -> None:
    class Stack(nnx.Module):
        def __init__(self) -> None:
            make = nnx.vmap(lambda rngs: dense(rngs)(4, 4))
            self.layers = make(nnx.Rngs(0).fork(split=3))

        def __call__(self, x: Any) -> Any:
            @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            def over(layer: Any, h: Any) -> Any:
                return nnx.remat(lambda layer, h: jnp.sin(layer(h)))(layer, h)

            return over(self.layers, x)

    model = Stack()
    adapter = JaxKit().adapt(model)
    shapes = {p.name: p.value.shape for p in adapter.parameters()}
    assert shapes == {"layers.kernel": (3, 4, 4), "layers.bias": (3, 4)}
    values, info = record(adapter, cotangents=ones)
    sites = [s for k, s in values if k == "activation"]
    assert sites == ["input:x", "layers", "layers#2", "layers#3", "output"]
    assert np.allclose(values["input", "layers#3"], np.sin(values["activation", "layers#2"]))
    order = [s for k, s in values if k == "cotangent"]
    assert order == ["output", "layers#3", "layers#2", "layers", "input:x"]
    last = np.cos(values["activation", "layers#3"].astype(np.float64))
    np.testing.assert_allclose(values["cotangent", "layers#3"], last, rtol=1e-5)
    kernel = model.layers.kernel.get_value()
    sent = values["cotangent", "layers#2"] @ np.asarray(kernel)[1].T
    np.testing.assert_allclose(values["input_cotangent", "layers#2"], sent, rtol=1e-5)


# -- modules -------------------------------------------------------------------------------------


def test_names_kinds_and_axes() -> None:
    rngs = nnx.Rngs(0)

    class Inner(nnx.Module):
        def __init__(self) -> None:
            self.free = nnx.Param(jnp.ones((2, 2)))
            self.steps = nnx.BatchStat(jnp.zeros((), jnp.int32))

    model = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), rngs=rngs),
        nnx.ConvTranspose(4, 5, (2,), transpose_kernel=True, use_bias=False, rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.LayerNorm(4, rngs=rngs),
        nnx.Embed(7, 4, rngs=rngs),
        nnx.LinearGeneral(4, (2, 3), rngs=rngs),
        Inner(),
    )
    found = {
        p.name: (p.role, p.kind, p.axes, p.trainable, p.buffer)
        for p in JaxKit().adapt(model).parameters()
    }
    channel = ("channel",)
    assert found == {
        "layers.0.kernel": ("weight", "conv", ("h", "w", "in", "out"), True, False),
        "layers.0.bias": ("bias", "conv", ("out",), True, False),
        "layers.1.kernel": ("weight", "conv", ("w", "out", "in"), True, False),
        "layers.2.mean": ("mean", "norm", channel, False, True),
        "layers.2.var": ("variance", "norm", channel, False, True),
        "layers.2.scale": ("weight", "norm", channel, True, False),
        "layers.2.bias": ("bias", "norm", channel, True, False),
        "layers.3.bias": ("bias", "norm", channel, True, False),
        "layers.3.scale": ("weight", "norm", channel, True, False),
        "layers.4.embedding": ("weight", "embedding", ("row", "dim"), True, False),
        "layers.5.kernel": ("weight", "dense", ("in", "out/0", "out/1"), True, False),
        "layers.5.bias": ("bias", "dense", ("out/0", "out/1"), True, False),
        "layers.6.free": ("other", "other", None, True, False),
    }


def test_lists_and_shared_modules() -> None:
    fc = dense(nnx.Rngs(0))
    shared = fc(4, 4)
    model = Layers(
        lambda m, x: m.tied(m.stack[1](m.stack[0](x))), stack=nnx.List([shared, fc(4, 4)])
    )
    model.tied = shared
    values, info = record(JaxKit().adapt(model), cotangents=ones)
    assert info.sources == {"stack.0": "input:x", "stack.1": "stack.0", "stack.0#2": "stack.1"}
    assert "stack.0.kernel" in info.parameter_gradients
    assert not any(name.startswith("tied") for name in info.parameter_gradients)


def test_a_method_of_the_parent_class_is_not_a_call_of_its_own() -> None:
    class Scaled(nnx.Linear):
        def __call__(self, x: Any) -> Any:
            return 2 * super().__call__(x)

    rngs = nnx.Rngs(0)
    adapter = adapt(
        lambda m, x: m.b(m.a(x)), a=Scaled(4, 4, rngs=rngs), b=nnx.Linear(4, 3, rngs=rngs)
    )
    values, _ = record(adapter)
    assert {s for k, s in values if k == "activation"} == {"input:x", "a", "b", "output"}
    assert "__call__" in vars(Scaled)
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"


def test_a_top_level_layer_called_output() -> None:
    values, info = record(adapt(lambda m, x: m.output(x), output=dense(nnx.Rngs(0))(4, 3)))
    assert info.outputs == ("model_output",)
    assert info.parents["output"] == "model_output"


def test_a_passive_run_is_neutral_where_a_layer_returns_its_input() -> None:
    rngs = nnx.Rngs(0)
    fc = dense(rngs)

    def attention(m: Any, x: Any) -> Any:
        h = m.stem(x)
        d = m.drop(h)  # the very same array in eval mode
        return m.head(h + nnx.softmax(m.q(d) @ m.k(d).T) @ m.v(d))

    layers = {name: fc(6, 6) for name in "qkv"}
    model = Layers(
        attention, stem=fc(4, 6), drop=nnx.Dropout(0.5, rngs=rngs), head=fc(6, 3), **layers
    )
    values, info = record(JaxKit().adapt(model), passive=True)
    outputs, gradients = JaxKit().bare(model, {"x": X}, [DY])
    assert values["activation", "output"].tobytes() == outputs[0].tobytes()
    for name, gradient in gradients.items():
        assert info.parameter_gradients[name].tobytes() == gradient.tobytes(), name


def test_modes_given_as_arguments() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x: Any, *, train: bool) -> Any:
            return self.drop(x, deterministic=not train)

    adapter = JaxKit().adapt(Model())
    assert np.array_equal(record(adapter, cotangents=ones)[0]["activation", "output"], X)
    values, _ = record(adapter, cotangents=ones, train=True)
    assert not np.array_equal(values["activation", "output"], X)


# -- precision and state -------------------------------------------------------------------------


def test_float64_through_casts_and_dtypes_of_layers() -> None:
    adapter = adapt(
        lambda m, x: jax.nn.softmax(m.fc(x).astype(jnp.float32)),
        fc=nnx.Linear(4, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    )
    values, info = record(adapter)
    assert values["activation", "fc"].dtype.name == "bfloat16"
    assert values["cotangent", "fc"].dtype.name == "bfloat16"
    assert info.parameter_gradients["fc.kernel"].dtype == np.float32
    forced = np.ones((6, 3), values["activation", "fc"].dtype)
    record(adapter, observer=Forcer({("activation", "fc"): forced}))
    values, _ = record(adapter, float64=True)
    assert {v.dtype for v in values.values()} == {np.dtype(np.float64)}
    logits = values["activation", "fc"]
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(values["activation", "output"], expected, rtol=1e-12)
    assert not jax.config.jax_enable_x64
    with jax.enable_x64(True):
        assert jnp.ones(2, jnp.float64).astype(jnp.float32).dtype == np.float32


def test_float64_of_numbers_and_of_requested_dtypes() -> None:
    """Rotary angles (a number to the power of positions asked for in float32), the carry of a scan,
    a constant of the model's own beside a number; bits stay bits."""
    constant = jnp.float32(0.1)

    def forward(m: nnx.Module, x: jax.Array) -> jax.Array:
        angle = 10000.0 ** (-jnp.arange(0, 3, dtype=jnp.float32) / 3)
        carry = jnp.zeros(3, jnp.float32)
        _, sums = jax.lax.scan(lambda c, r: (c + jnp.sin(r * angle),) * 2, carry, m.fc(x))
        bits = jax.lax.bitcast_convert_type(jnp.int32(0x3FC00000), jnp.float32)
        return sums * (2.0 * constant) * bits

    adapter = adapt(forward, fc=nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    narrow, wide = record(adapter)[0], record(adapter, float64=True)[0]
    assert {v.dtype for v in narrow.values()} == {np.dtype(np.float32)}
    assert {v.dtype for v in wide.values()} == {np.dtype(np.float64)}
    rows = wide["activation", "fc"]
    sums = np.sin(rows * 10000.0 ** (-np.arange(3) / 3)).cumsum(0)
    expected = sums * (2 * float(np.float32(0.1))) * 1.5
    np.testing.assert_allclose(wide["activation", "output"], expected, rtol=1e-12)
    assert jnp.zeros(1, jnp.float32).dtype == np.float32


def test_two_models_at_once_do_not_mix() -> None:
    kit = JaxKit()
    outer, inner = kit.adapt(kit.build("mlp")), kit.adapt(kit.build("shared"))
    alone, _ = record(outer)

    def nested(site: str, kind: str, value: np.ndarray) -> None:
        if site == "block" and kind == "activation":
            seen, _ = record(inner)
            assert ("activation", "cell#2") in seen

    values, _ = record(outer, observer=nested)
    assert equal(alone, values) == set(alone)


def test_find_leaves_others_alone() -> None:
    assert find(object()) is None
    assert find(lambda x: x) is None
    assert find(jax.jit(lambda x: x)) is None
    assert find(nnx.Linear) is None
    assert find(lambda params, x: x, params={"w": np.ones(2)}) is None  # NumPy's own
    with pytest.raises(InvalidArgument, match="NNX module Linear has its parameters inside"):
        find(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), params={})


def test_taps_let_other_values_through() -> None:
    def call(m: Any, x: Any) -> Any:
        assert tap("n", 3) == 3
        return m.fc(x)

    values, _ = record(adapt(call, fc=dense(nnx.Rngs(0))(4, 3)))
    assert ("activation", "n") not in values
