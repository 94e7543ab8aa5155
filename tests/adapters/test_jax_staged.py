"""JAX functions of (params, *inputs): taps in eager code and under jit, scan, remat and vmap."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from crosscheck.adapters.base import ModelRaised  # noqa: E402
from crosscheck.adapters.jax.adapter import JaxAdapter, find  # noqa: E402
from crosscheck.errors import InvalidArgument  # noqa: E402
from crosscheck.observers import Forcer, Recorder  # noqa: E402
from crosscheck.taps import tap  # noqa: E402

from .contract import DY, X, equal, ones, record  # noqa: E402

RNG = np.random.default_rng(4)
W = {
    "fc1": {"w": RNG.normal(size=(4, 5)).astype(np.float32), "b": np.ones(5, np.float32)},
    "fc2": {"w": RNG.normal(size=(5, 3)).astype(np.float32), "b": np.zeros(3, np.float32)},
}


def params() -> Any:
    return jax.tree.map(jnp.asarray, W)


def adapt(function: Any, tree: Any = None) -> JaxAdapter:
    adapter = find(function, params=params() if tree is None else tree)
    assert adapter is not None
    return adapter


def mlp(p: Any, x: Any) -> Any:
    h = tap("h", x @ p["fc1"]["w"] + p["fc1"]["b"])
    a = tap("act", jnp.maximum(h, 0))
    return a @ p["fc2"]["w"] + p["fc2"]["b"]


WRAPPED = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "remat": jax.remat,
    "jit of remat": lambda f: jax.jit(jax.remat(f)),
    "remat of jit": lambda f: jax.remat(jax.jit(f)),
    "vmap": lambda f: jax.vmap(f, (None, 0)),
    "vmap of jit": lambda f: jax.vmap(jax.jit(f), (None, 0)),
    "jit of vmap": lambda f: jax.jit(jax.vmap(f, (None, 0))),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_function_with_taps(wrap: str) -> None:
    function = WRAPPED[wrap](mlp)
    function(params(), X)  # cached by JAX, without taps
    adapter = adapt(function)
    free, info = record(adapter)
    values = free
    h = X @ W["fc1"]["w"] + 1
    np.testing.assert_allclose(values["activation", "h"], h, atol=1e-5)
    np.testing.assert_allclose(values["activation", "act"], np.maximum(h, 0), atol=1e-5)
    d_act = DY @ W["fc2"]["w"].T
    np.testing.assert_allclose(values["cotangent", "act"], d_act, atol=1e-5)
    np.testing.assert_allclose(values["cotangent", "h"], d_act * (h > 0), atol=1e-5)
    np.testing.assert_allclose(
        info.parameter_gradients["fc1.w"], X.T @ (d_act * (h > 0)), atol=1e-4
    )
    assert list(values) == [
        ("activation", "input:x"),
        ("activation", "h"),
        ("activation", "act"),
        ("activation", "output"),
        ("cotangent", "output"),
        ("cotangent", "act"),
        ("cotangent", "h"),
        ("cotangent", "input:x"),
    ]
    assert dict(info.parents) == {"h": "output", "act": "output"}
    forced = np.full((6, 5), 0.5, np.float32)
    sent = np.full((6, 5), 0.25, np.float32)
    forcer = Forcer({("activation", "act"): forced, ("cotangent", "act"): sent})
    values, info = record(adapter, observer=forcer)
    np.testing.assert_allclose(
        values["activation", "output"], forced @ W["fc2"]["w"], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(values["cotangent", "h"], sent * (h > 0))
    np.testing.assert_allclose(info.parameter_gradients["fc2.w"], forced.T @ DY, atol=1e-5)
    again, _ = record(adapter)
    assert equal(again, free) == set(free)
    np.testing.assert_allclose(function(params(), X), mlp(params(), X), atol=1e-5)


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_passive_run_is_neutral(wrap: str) -> None:
    function = WRAPPED[wrap](mlp)
    values, info = record(adapt(function), passive=True)
    output, pullback = jax.vjp(function, params(), jnp.asarray(X))
    gradients = pullback(jnp.asarray(DY))[0]
    assert values["activation", "output"].tobytes() == np.asarray(output).tobytes()
    for layer in W:
        for leaf in ("w", "b"):
            bare = np.asarray(gradients[layer][leaf])
            assert info.parameter_gradients[f"{layer}.{leaf}"].tobytes() == bare.tobytes()
    assert ("cotangent", "h") in values
    forward, _ = record(adapt(function), passive=True, cotangents=None)
    assert forward["activation", "output"].tobytes() == np.asarray(function(params(), X)).tobytes()


@pytest.mark.parametrize("jit", [False, True])
def test_scan_gives_a_site_per_step(jit: bool) -> None:
    def function(p: Any, x: Any) -> Any:
        step = jax.remat(lambda h, _: (jnp.sin(tap("h", h @ p)), None))
        return jax.lax.scan(step, x, None, length=3)[0]

    w = RNG.normal(size=(4, 4)).astype(np.float32)
    adapter = adapt(jax.jit(function) if jit else function, jnp.asarray(w))
    values, info = record(adapter, cotangents=ones)
    sites = [s for k, s in values if k == "activation"]
    assert sites == ["input:x", "h", "h#2", "h#3", "output"]
    order = [s for k, s in values if k == "cotangent"]
    assert order == ["output", "h#3", "h#2", "h", "input:x"]
    d = np.ones((6, 4))
    for site in ("h#3", "h#2", "h"):
        d = d * np.cos(values["activation", site].astype(np.float64))
        np.testing.assert_allclose(values["cotangent", site], d, atol=1e-4)
        d = d @ w.T
    forced = np.zeros((6, 4), np.float32)
    values, _ = record(adapter, observer=Forcer({("activation", "h#2"): forced}), cotangents=ones)
    assert not values["activation", "h#3"].any()
    assert [p.name for p in adapter.parameters()] == ["params"]


def test_only_the_branch_that_runs_is_seen() -> None:
    def function(p: Any, x: Any) -> Any:
        return jax.lax.cond(
            x[0, 0] > 1e6, lambda: tap("same", x * p), lambda: tap("same", jnp.sin(x * p))
        )

    values, info = record(adapt(function, jnp.ones(4)), cotangents=ones)
    assert [s for k, s in values if k == "activation"] == ["input:x", "same", "output"]
    np.testing.assert_allclose(values["activation", "same"], np.sin(X), rtol=1e-6)
    assert np.array_equal(values["cotangent", "same"], np.ones_like(X))


def test_a_value_that_nobody_uses_is_seen_under_jit() -> None:
    @jax.jit
    def function(p: Any, x: Any) -> Any:
        tap("unused", jnp.cos(x))
        tap("count", (x > 0).sum())
        return x * p

    for passive in (False, True):
        values, _ = record(adapt(function, jnp.ones(4)), cotangents=ones, passive=passive)
        np.testing.assert_allclose(values["activation", "unused"], np.cos(X), rtol=1e-6)
        assert values["activation", "count"] == (X > 0).sum()
        assert not values["cotangent", "unused"].any()


def test_a_jitted_helper_called_twice() -> None:
    @jax.jit
    def helper(x: Any) -> Any:
        return tap("mid", jnp.sin(x))

    adapter = adapt(lambda p, x: helper(helper(x) * p), jnp.ones(4))
    values, _ = record(adapter, cotangents=ones)
    assert [s for k, s in values if k == "activation"] == ["input:x", "mid", "mid#2", "output"]
    cosine = np.cos(values["activation", "mid"])
    np.testing.assert_allclose(values["cotangent", "mid"], cosine, rtol=1e-5)
    again, _ = record(adapter, cotangents=ones)
    assert equal(values, again) == set(values)


def test_a_large_value_leaves_jit() -> None:
    function = jax.jit(lambda p, x: tap("b", tap("a", x * p) @ jnp.ones((1000, 50))).sum(1))
    x = np.ones((2000, 1000), np.float32)
    values, _ = record(adapt(function, jnp.ones(1000)), {"x": x}, cotangents=ones)
    assert np.array_equal(values["activation", "b"], np.full((2000, 50), 1000))


def test_a_model_that_differentiates_itself() -> None:
    def force(p: Any, x: Any) -> Any:
        slope = jax.grad(lambda x: jnp.sum(tap("sine", jnp.sin(x)) * p))(x)
        return tap("force", -slope)

    for wrap in (lambda f: f, jax.jit):
        values, info = record(adapt(wrap(force), jnp.ones(4)), cotangents=ones)
        np.testing.assert_allclose(values["activation", "sine"], np.sin(X), rtol=1e-5)
        np.testing.assert_allclose(values["activation", "force"], -np.cos(X), rtol=1e-5)
        np.testing.assert_allclose(values["cotangent", "sine"], np.ones_like(X))  # the inner one
        slope = -np.cos(X).sum(0)
        np.testing.assert_allclose(info.parameter_gradients["params"], slope, rtol=1e-4)


def test_a_model_in_forward_mode() -> None:
    def slope(p: Any, x: Any) -> Any:
        return tap("out", jax.jvp(lambda x: tap("sine", jnp.sin(x)) * p, (x,), (x,))[1])

    adapter = adapt(slope, jnp.full(4, 2.0))
    values, info = record(adapter, cotangents=ones)
    np.testing.assert_allclose(values["activation", "out"], 2 * X * np.cos(X), rtol=1e-5)
    assert info.unobservable == {("cotangent", "sine")}
    assert ("cotangent", "sine") not in values
    gradient = (X * np.cos(X)).sum(0)
    np.testing.assert_allclose(info.parameter_gradients["params"], gradient, rtol=1e-4)
    forcer = Forcer({("activation", "sine"): np.zeros_like(X)})
    values, _ = record(adapter, observer=forcer, cotangents=ones)
    np.testing.assert_allclose(values["activation", "out"], 2 * X * np.cos(X), rtol=1e-5)


# -- what cannot be seen, and errors -------------------------------------------------------------


def test_a_value_without_the_batch_under_vmap() -> None:
    def function(p: Any, x: Any) -> Any:
        return jax.vmap(lambda row: row * tap("scale", jnp.exp(p)))(x)

    values, info = record(adapt(function, jnp.ones(4)), cotangents=ones)
    assert values["activation", "scale"].shape == (4,)
    np.testing.assert_allclose(values["cotangent", "scale"], X.sum(0), rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_cotangents_per_element_of_a_value_without_the_batch(jit: bool) -> None:
    def energy(p: Any, row: Any) -> Any:
        return jnp.sum(row * tap("scale", jnp.exp(p)))

    def function(p: Any, x: Any) -> Any:
        return jax.vmap(jax.grad(energy), (None, 0))(p, x)

    with pytest.raises(InvalidArgument) as error:
        record(adapt(jax.jit(function) if jit else function, jnp.ones(4)), cotangents=ones)
    assert str(error.value) == (
        "the tap at `scale` lies inside jax.vmap, on a value of shape (4,) that is the same "
        "for the whole batch; its cotangent has shape (6, 4), one for each element.\n"
        "  Fix: move the tap out of the vmap, or onto a value that depends on the mapped input"
    )


def test_compiled_code_in_forward_mode() -> None:
    inner = jax.jit(lambda x: tap("sine", jnp.sin(x)))
    adapter = adapt(lambda p, x: jax.jvp(inner, (x * p,), (x,))[1], jnp.ones(4))
    with pytest.raises(InvalidArgument) as error:
        record(adapter, cotangents=ones)
    assert str(error.value) == (
        "the tap at `sine`, or one before it, lies inside compiled code (jit, scan, remat) that "
        "the model differentiates in forward mode (jax.jvp, jax.jacfwd, jax.hessian), which taps "
        "refuse there.\n  Fix: jax.jacrev instead of jax.jacfwd, or no jit inside the model"
    )


def test_a_tap_inside_a_kernel() -> None:
    pallas = pytest.importorskip("jax.experimental.pallas")

    def kernel(x: Any, out: Any) -> None:
        out[...] = tap("sine", jnp.sin(x[...]))

    def function(p: Any, x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pallas.pallas_call(kernel, out_shape=shape, interpret=True)(x * p)

    with pytest.raises(InvalidArgument) as error:
        record(adapt(function, jnp.ones(4)), cotangents=None)
    assert str(error.value) == (
        "the tap at `sine`, or one before it, lies inside code that values cannot leave: a Pallas "
        "kernel, or one that runs on several devices.\n"
        "  Fix: tap what goes into it and what comes out"
    )


def test_errors_of_the_observer_pass_through_compiled_code() -> None:
    for kind, site in (("activation", "h"), ("cotangent", "h")):

        def refuse(seen_site: str, seen: str, value: np.ndarray) -> None:
            if (seen, seen_site) == (kind, site):  # noqa: B023
                raise InvalidArgument("enough")

        adapter = adapt(jax.jit(mlp))
        with pytest.raises(InvalidArgument, match="enough"):
            adapter.run({"x": X}, refuse, cotangents=ones)
        values, _ = record(adapter)
        assert ("cotangent", "h") in values


def test_an_error_inside_compiled_code() -> None:
    @jax.jit
    def function(p: Any, x: Any) -> Any:
        return tap("h", x * p) @ jnp.ones((7, 7))

    with pytest.raises(ModelRaised) as error:
        record(adapt(function, jnp.ones(4)))
    assert error.value.stage == "forward"
    assert isinstance(error.value.__cause__, TypeError)


def test_a_run_inside_the_callback_of_another() -> None:
    outer, inner = adapt(jax.jit(mlp)), adapt(jax.jit(lambda p, x: tap("in", x * p)), jnp.ones(4))
    alone, _ = record(outer)

    def nested(site: str, kind: str, value: np.ndarray) -> None:
        if (kind, site) == ("activation", "h"):
            seen, _ = record(inner, cotangents=ones)
            assert np.array_equal(seen["activation", "in"], X)

    values, _ = record(outer, observer=nested)
    assert equal(alone, values) == set(alone)


def test_no_cache_keeps_what_a_run_has_seen() -> None:
    adapter = adapt(jax.jit(mlp))
    recorder = Recorder()
    adapter.run({"x": X}, recorder, cotangents=ones)
    assert ("activation", "h") in recorder.values
    alive = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert alive() is None


# -- parameters ----------------------------------------------------------------------------------


def test_parameters_are_owned_by_the_adapter() -> None:
    mine = {"z": jnp.ones((2, 3)), "a": [jnp.zeros(3), {"kernel": jnp.ones((3, 3))}], "n": 3}
    adapter = adapt(lambda p, x: x, mine)
    found = {p.name: (p.layer, p.role, p.kind, p.axes) for p in adapter.parameters()}
    assert found == {
        "z": ("", "other", "other", None),
        "a.0": ("a", "other", "other", ("channel",)),
        "a.1.kernel": ("a.1", "weight", "dense", ("in", "out")),
    }
    adapter.load({"a.1.kernel": np.eye(3)})
    assert np.array_equal(adapter.params["a"][1]["kernel"], np.eye(3))
    assert adapter.params["n"] == 3
    assert mine["a"][1]["kernel"].all()  # type: ignore[index, call-overload]
    with pytest.raises(KeyError, match="b"):
        adapter.load({"b": np.eye(3)})
    with pytest.raises(ValueError, match=r"z: shape \(1,\), expected \(2, 3\)"):
        adapter.load({"z": np.ones(1)})


def test_named_inputs_and_modes() -> None:
    def function(p: Any, left: Any, right: Any, *, train: bool = False) -> Any:
        return (left - right) * p * (2 if train else 1)

    adapter = adapt(function, jnp.ones(4))
    values, _ = record(adapter, {"right": 3 * X, "left": X}, cotangents=ones)
    np.testing.assert_allclose(values["activation", "output"], -2 * X, rtol=1e-6)
    values, _ = record(adapter, {"right": 3 * X, "left": X}, cotangents=ones, train=True)
    np.testing.assert_allclose(values["activation", "output"], -4 * X, rtol=1e-6)


def test_jitted_functions_may_have_numpy_parameters() -> None:
    values, _ = record(adapt(jax.jit(mlp), W))
    assert ("activation", "h") in values
