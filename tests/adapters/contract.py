"""The contract of `crosscheck.adapters.base`, as tests that every adapter passes.

A framework brings a kit of small models (`Kit`); the expected numbers come from NumPy in float64.
This half is about the values: what the observer is shown, and what comes of its replacements.
"""

from __future__ import annotations

import numpy as np
import pytest

import crosscheck.taps as taps
from crosscheck.adapters.base import Adapter
from crosscheck.observers import Forcer, Key, Recorder

from .kit import DY, IDS, Values, X, equal, ones, record
from .state_contract import StateContract

__all__ = ["DY", "IDS", "Contract", "X", "equal", "ones", "record"]


class Contract(StateContract):
    """Subclass with `kit`."""

    def expected_mlp(self, adapter: Adapter) -> dict[str, np.ndarray]:
        """Activations ``a:site``, cotangents ``d:site`` and gradients, computed in float64."""
        w, x, dy = self.weights(adapter), X.astype(np.float64), DY.astype(np.float64)
        h = x @ w["fc1.weight"] + w["fc1.bias"]
        inner = h @ w["block.inner.weight"] + w["block.inner.bias"]
        act = np.maximum(inner, 0)
        y = (h + act) @ w["fc2.weight"] + w["fc2.bias"]
        d_block = dy @ w["fc2.weight"].T
        d_inner = d_block * (inner > 0)
        d_h = d_block + d_inner @ w["block.inner.weight"].T
        return {
            "a:fc1": h,
            "a:block.inner": inner,
            "a:block.act": act,
            "a:block": h + act,
            "a:output": y,
            "d:block": d_block,
            "d:block.inner": d_inner,
            "d:fc1": d_h,
            "d:input:x": d_h @ w["fc1.weight"].T,
            "fc1.weight": x.T @ d_h,
            "fc1.bias": d_h.sum(0),
            "block.inner.weight": h.T @ d_inner,
            "fc2.bias": dy.sum(0),
        }

    # -- record ------------------------------------------------------------------------------

    def test_forward_order_sources_parents(self) -> None:
        values, info = record(self.adapter("mlp"), cotangents=None)
        expected = [
            *self.keys("activation", "input:x"),
            *self.keys("input", "fc1"),
            *self.keys("activation", "fc1"),
            *self.keys("input", "block", "block.inner"),
            *self.keys("activation", "block.inner"),
            *self.keys("input", "block.act"),
            *self.keys("activation", "block.act", "block"),
            *self.keys("input", "fc2"),
            *self.keys("activation", "fc2", "output"),
        ]
        assert list(values) == expected
        assert info.inputs == ("input:x",)
        assert info.outputs == ("output",)
        assert set(info.layers) == {site for _, site in expected}
        p = self.path
        sources = {"fc1": "input:x", "block": "fc1", "fc2": "block"}
        sources |= {p("block.inner"): "fc1", p("block.act"): p("block.inner")}
        assert dict(info.sources) == sources
        parents = dict.fromkeys(("fc1", "block", "fc2"), "output")
        parents |= {p("block.inner"): "block", p("block.act"): "block"}
        assert dict(info.parents) == parents
        assert info.parameter_gradients == {}
        assert info.buffers == {}

    def test_backward_order(self) -> None:
        values, info = record(self.adapter("mlp"))
        order = [key for key in values if key[0] in taps.COTANGENT_OF.values()]
        layers = [self.path(s) for s in ("fc1", "block", "block.inner", "block.act", "fc2")]
        wanted = {("input_cotangent", site) for site in layers}
        wanted |= {("cotangent", site) for site in [*layers, "input:x", "output"]}
        assert set(order) == wanted
        assert list(values)[-len(order) :] == order  # all of them after the forward pass
        for site in layers:
            assert order.index(("cotangent", site)) < order.index(("input_cotangent", site))
        for consumer, producer in info.sources.items():
            sent = order.index(("input_cotangent", consumer))
            assert sent < order.index(("cotangent", producer))
        assert order[:2] == self.keys("cotangent", "output", "fc2")
        assert order[-1] == ("cotangent", "input:x")
        assert not info.unobservable

    def test_float64_agrees_with_numpy(self) -> None:
        adapter = self.adapter("mlp")
        values, info = record(adapter, float64=True)
        assert {v.dtype for v in values.values()} == {np.dtype(np.float64)}
        expected = self.expected_mlp(adapter)
        for name, array in expected.items():
            letter, _, site = name.partition(":")
            if letter in ("a", "d"):
                kind = "activation" if letter == "a" else "cotangent"
                actual = values[kind, self.path(site)]
                np.testing.assert_allclose(actual, array, rtol=1e-12, atol=1e-12, err_msg=name)
        gradients = self.gradients(adapter, info)
        for name in ("fc1.weight", "fc1.bias", "block.inner.weight", "fc2.bias"):
            np.testing.assert_allclose(gradients[name], expected[name], rtol=1e-12, atol=1e-12)
        assert {p.value.dtype for p in adapter.parameters()} == {np.dtype(np.float32)}

    def test_float32_values(self) -> None:
        adapter = self.adapter("mlp")
        values, _ = record(adapter)
        assert {v.dtype for v in values.values()} == {np.dtype(np.float32)}
        expected = self.expected_mlp(adapter)
        np.testing.assert_allclose(values["activation", "output"], expected["a:output"], atol=1e-5)
        np.testing.assert_allclose(values["cotangent", "input:x"], expected["d:input:x"], atol=1e-5)

    def test_shared_layer_has_a_site_per_call(self) -> None:
        adapter = self.adapter("shared")
        values, info = record(adapter)
        assert info.sources["cell"] == "input:x"
        assert info.sources["cell#2"] == "cell"
        assert info.sources["head"] == "cell#2"
        first, second = values["cotangent", "cell"], values["cotangent", "cell#2"]
        assert np.array_equal(values["input_cotangent", "cell#2"], first)
        w = self.weights(adapter)
        x = values["input", "cell"].astype(np.float64)
        h = values["input", "cell#2"].astype(np.float64)
        gradient = self.gradients(adapter, info)["cell.weight"]
        np.testing.assert_allclose(gradient, x.T @ first + h.T @ second, atol=1e-5)
        np.testing.assert_allclose(first, second @ w["cell.weight"].T, atol=1e-5)
        names = [p.name for p in adapter.parameters()]
        assert len(names) == len(set(names)) == 4

    def test_structured_outputs(self) -> None:
        adapter = self.adapter("structured")
        asked: list[dict[str, np.ndarray]] = []

        def cotangents(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            asked.append(outputs)
            return ones(outputs)

        values, info = record(adapter, cotangents=cotangents)
        assert info.outputs == ("output", "output:1:hidden")
        assert len(asked) == 1
        assert list(asked[0]) == list(info.outputs)
        assert np.array_equal(asked[0]["output:1:hidden"], values["activation", "fc"])
        assert np.array_equal(values["cotangent", "fc"], np.ones((6, 5)))
        # Only one output receives a cotangent: the other branch has zeros.
        values, info = record(adapter)
        assert not values["cotangent", "fc"].any()
        assert not self.gradients(adapter, info)["fc.weight"].any()
        assert self.gradients(adapter, info)["head.weight"].any()

    def test_an_output_that_is_also_used_inside(self) -> None:
        adapter = self.adapter("returning")
        values, info = record(adapter, cotangents=ones)
        assert info.outputs == ("output", "output:1")
        # At the output, what came from outside; at the layer, all of it.
        assert np.array_equal(values["cotangent", "output:1"], np.ones((6, 5)))
        sent = values["input_cotangent", "head"]
        np.testing.assert_allclose(values["cotangent", "fc"], 1 + sent, rtol=1e-6)

    def test_two_named_inputs(self) -> None:
        adapter = self.adapter("two_inputs")
        right = X[::-1].copy()
        values, info = record(adapter, {"right": right, "left": X})
        assert info.inputs == ("input:right", "input:left")
        assert np.array_equal(values["input", "fl"], X)
        assert np.array_equal(values["input", "fr"], right)
        assert np.array_equal(values["cotangent", "fr"], -DY)
        by_position, _ = record(adapter, {"p": X, "q": right})
        assert np.array_equal(by_position["activation", "output"], values["activation", "output"])

    def test_integer_input(self) -> None:
        adapter = self.adapter("embedding")
        values, info = record(adapter, {"ids": IDS}, cotangents=ones)
        assert values["activation", "input:ids"].dtype.kind == "i"
        assert ("cotangent", "input:ids") not in values
        assert ("input_cotangent", "table") not in values
        table = next(p for p in adapter.parameters() if p.layer == "table")
        assert (table.role, table.kind, table.axes) == ("weight", "embedding", ("row", "dim"))
        gradient = info.parameter_gradients[table.name]
        expected = np.zeros((7, 4))
        np.add.at(expected, IDS, values["cotangent", "table"])
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
        oracle, _ = record(adapter, {"ids": IDS}, cotangents=ones, float64=True)
        assert oracle["activation", "input:ids"].dtype.kind == "i"
        assert oracle["activation", "table"].dtype == np.float64

    # -- force -------------------------------------------------------------------------------

    def test_force_an_activation(self) -> None:
        adapter = self.adapter("mlp")
        free, _ = record(adapter, cotangents=None)
        act = ("activation", self.path("block.act"))
        forced = np.full_like(free[act], 0.25)
        values, _ = record(adapter, observer=Forcer({act: forced}), cotangents=None)
        changed = set(free) - equal(free, values)
        assert changed == {
            *self.keys("activation", "block", "fc2", "output"),
            *self.keys("input", "fc2"),
        }
        block = free["activation", "fc1"] + forced
        np.testing.assert_allclose(values["activation", "block"], block, rtol=1e-6)

    def test_force_an_input(self) -> None:
        adapter = self.adapter("mlp")
        free, _ = record(adapter, cotangents=None)
        forcer = Forcer({("input", "block"): np.zeros((6, 5), np.float32)})
        values, _ = record(adapter, observer=forcer, cotangents=None)
        same = equal(free, values)
        assert ("activation", "fc1") in same
        assert ("input", "block") in same  # shown as produced; the layer sees the replacement
        assert not values["input", self.path("block.inner")].any()

    def test_force_the_model_input(self) -> None:
        forcer = Forcer({("activation", "input:x"): np.zeros_like(X)})
        values, _ = record(self.adapter("mlp"), observer=forcer)
        assert not values["input", "fc1"].any()

    def test_gradients_of_a_forced_run_use_the_forced_values(self) -> None:
        adapter = self.adapter("mlp")
        forced = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
        forcer = Forcer({("activation", "block"): forced})
        values, info = record(adapter, observer=forcer)
        gradients = self.gradients(adapter, info)
        np.testing.assert_allclose(gradients["fc2.weight"], forced.T @ DY, atol=1e-5)
        # The cotangent passes the replacement and reaches what produced the value.
        assert np.array_equal(values["cotangent", "block"], values["input_cotangent", "fc2"])
        assert gradients["fc1.weight"].any()

    @pytest.mark.parametrize("site", ["output", "fc2", "block", "block.act", "fc1"])
    def test_force_a_cotangent(self, site: str) -> None:
        adapter = self.adapter("mlp")
        free, _ = record(adapter)
        key: Key = ("cotangent", self.path(site))
        values, info = record(adapter, observer=Forcer({key: -3 * free[key]}))
        changed = set(free) - equal(free, values)
        upstream = {
            "output": ["fc2", "block", "block.act", "block.inner", "fc1", "input:x"],
            "fc2": ["block", "block.act", "block.inner", "fc1", "input:x"],
            "block": ["block.act", "block.inner", "fc1", "input:x"],
            "block.act": ["block.inner", "fc1", "input:x"],
            "fc1": ["input:x"],
        }[site]
        assert {s for kind, s in changed if kind == "cotangent"} == set(map(self.path, upstream))
        assert self.path(site) in {s for k, s in changed if k == "input_cotangent"} | {"output"}
        if site == "output":  # everything is linear in it
            scaled = self.gradients(adapter, info)["fc1.weight"]
            _, plain = record(adapter)
            np.testing.assert_allclose(
                scaled, -3 * self.gradients(adapter, plain)["fc1.weight"], rtol=1e-4, atol=1e-5
            )

    def test_force_an_input_cotangent(self) -> None:
        adapter = self.adapter("mlp")
        forced = np.full((6, 5), 0.5, np.float32)
        values, info = record(adapter, observer=Forcer({("input_cotangent", "block"): forced}))
        assert np.array_equal(values["cotangent", "fc1"], forced)
        assert not np.array_equal(values["input_cotangent", "block"], forced)  # as produced
        np.testing.assert_allclose(
            self.gradients(adapter, info)["fc1.bias"], forced.sum(0), rtol=1e-6
        )

    def test_an_input_cotangent_is_the_layers_own(self) -> None:
        adapter = self.adapter("fan_out")
        values, info = record(adapter)
        w = self.weights(adapter)
        for name in "abc":
            assert info.sources[name] == "fc"
            own = values["input_cotangent", name]
            np.testing.assert_allclose(own, DY @ w[f"{name}.weight"].T, atol=1e-5)
        total = sum(values["input_cotangent", name] for name in "abc")
        np.testing.assert_allclose(values["cotangent", "fc"], total, atol=1e-5)
        forced, _ = record(
            adapter, observer=Forcer({("input_cotangent", "b"): np.zeros((6, 5), np.float32)})
        )
        assert np.array_equal(forced["input_cotangent", "c"], values["input_cotangent", "c"])
        rest = values["input_cotangent", "a"] + values["input_cotangent", "c"]
        np.testing.assert_allclose(forced["cotangent", "fc"], rest, atol=1e-5)

    def test_a_cotangent_that_never_arrives_is_zero(self) -> None:
        adapter = self.adapter("cut")
        values, info = record(adapter)
        for key in (("cotangent", "side"), ("input_cotangent", "side")):
            assert not values[key].any()  # type: ignore[index]
        assert np.array_equal(values["cotangent", "main"], DY)
        gradients = self.gradients(adapter, info)
        assert gradients["side.weight"].shape == (4, 3)
        assert not gradients["side.weight"].any()
        assert gradients["main.weight"].any()

    # -- taps --------------------------------------------------------------------------------

    def test_public_taps(self) -> None:
        adapter = self.adapter("tapped")
        values, info = record(adapter)
        scores = self.path("attn.scores")
        assert info.layers[scores] == "tap"
        assert info.parents[scores] == "attn"
        assert info.parents["mid"] == "output"
        assert info.sources["head"] == "mid"
        assert np.array_equal(values["activation", "mid"], values["activation", "attn"])
        assert np.array_equal(values["cotangent", "mid"], values["input_cotangent", "head"])
        assert np.array_equal(values["cotangent", scores], values["cotangent", "attn"])
        zero: Values = {("activation", scores): np.zeros((6, 4), np.float32)}
        forced, _ = record(adapter, observer=Forcer(zero))
        assert not forced["activation", "attn"].any()
        stop: Values = {("cotangent", scores): np.zeros((6, 4), np.float32)}
        forced, _ = record(adapter, observer=Forcer(stop))
        assert not forced["cotangent", "input:x"].any()

    def test_taps_outside_a_run_return_their_argument(self) -> None:
        value = object()
        assert taps.tap("a", value) is value
        assert taps.tap_cotangent("a", value) is value
        self.adapter("mlp").run({"x": X}, Recorder())
        assert taps.active_session() is None
