"""The contract, second half: parameters, train mode, neutrality, state and errors."""

from __future__ import annotations

import random

import numpy as np
import pytest

import crosscheck.taps as taps
from crosscheck.adapters.base import ModelRaised
from crosscheck.errors import InvalidArgument

from .kit import IDS, Suite, X, equal, ones, record


class StateContract(Suite):
    """A run leaves nothing behind, and observing changes nothing."""

    # -- parameters --------------------------------------------------------------------------

    def test_parameters(self) -> None:
        adapter = self.adapter("mlp")
        dotted = [
            f"{p.layer.replace(self.kit.separator, '.')}.{p.role}" for p in adapter.parameters()
        ]
        assert dotted == [
            f"{layer}.{role}"
            for layer in ("fc1", "block.inner", "fc2")
            for role in ("weight", "bias")
        ]
        for p in adapter.parameters():
            assert p.kind == "dense"
            assert p.name.startswith(p.layer + self.kit.separator)
            assert p.trainable
            assert not p.buffer
            assert p.axes is not None
            assert set(p.axes) == ({"in", "out"} if p.role == "weight" else {"out"})

    def test_load(self) -> None:
        adapter, other = self.adapter("mlp"), self.adapter("mlp")
        new = {p.name: p.value.astype(np.float64) * 2 + 1 for p in adapter.parameters()}
        adapter.load(new)
        for p in adapter.parameters():
            assert p.value.dtype == np.float32
            assert np.array_equal(p.value, new[p.name].astype(np.float32))
        overridden, _ = record(other, overrides=new)
        loaded, _ = record(adapter)
        assert equal(overridden, loaded) == set(loaded)

    def test_load_refuses(self) -> None:
        adapter = self.adapter("mlp")
        first = adapter.parameters()[0]
        with pytest.raises(KeyError, match="nonsense"):
            adapter.load({"nonsense": first.value})
        with pytest.raises(ValueError, match=r"\(1, 2\)") as error:
            adapter.load({first.name: np.zeros((1, 2), np.float32)})
        assert first.name in str(error.value)

    def test_overrides_last_for_one_run(self) -> None:
        model, adapter = self.model("mlp")
        before = self.kit.state(model)
        free, _ = record(adapter)
        bias = next(p for p in adapter.parameters() if p.layer == "fc2" and p.role == "bias")
        override = {bias.name: bias.value + 1}
        for float64 in (False, True):
            values, _ = record(adapter, overrides=override, float64=float64)
            shifted = free["activation", "output"] + 1
            np.testing.assert_allclose(values["activation", "output"], shifted, atol=1e-5)
        np.testing.assert_equal(self.kit.state(model), before)

    # -- train mode, neutrality, state -------------------------------------------------------

    def test_train_mode_uses_batch_statistics(self) -> None:
        model, adapter = self.model("norm")
        before = self.kit.state(model)
        values, info = record(adapter, train=True)
        h = values["activation", "fc"].astype(np.float64)
        expected = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
        np.testing.assert_allclose(values["activation", "bn"], expected, atol=1e-5)
        roles = {p.role: p for p in adapter.parameters() if p.buffer}
        assert set(roles) == {"mean", "variance"}
        assert all(p.kind == "norm" and not p.trainable for p in roles.values())
        assert set(info.buffers) == {p.name for p in roles.values()}
        np.testing.assert_allclose(info.buffers[roles["mean"].name], 0.1 * h.mean(0), atol=1e-6)
        assert not set(info.buffers) & set(info.parameter_gradients)
        np.testing.assert_equal(self.kit.state(model), before)
        values, info = record(adapter)
        np.testing.assert_allclose(values["activation", "bn"], h / np.sqrt(1 + 1e-5), atol=1e-5)
        assert info.buffers == {}
        oracle, info = record(adapter, train=True, float64=True)
        assert oracle["activation", "bn"].dtype == np.float64
        np.testing.assert_equal(self.kit.state(model), before)

    @pytest.mark.parametrize(
        "name", ["mlp", "shared", "fan_out", "structured", "returning", "embedding"]
    )
    def test_observation_is_neutral(self, name: str) -> None:
        model, adapter = self.model(name)
        inputs = {"ids": IDS} if name == "embedding" else {"x": X}
        rng = np.random.default_rng(3)
        dys: list[np.ndarray] = []

        def cotangents(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            dys.extend(rng.normal(size=v.shape).astype(v.dtype) for v in outputs.values())
            return dict(zip(outputs, dys, strict=True))

        values, info = record(adapter, inputs, cotangents=cotangents, passive=True)
        outputs, gradients = self.kit.bare(model, inputs, dys)
        for site, output in zip(info.outputs, outputs, strict=True):
            assert values["activation", site].tobytes() == output.tobytes()
        assert set(info.parameter_gradients) == set(gradients)
        for parameter, gradient in gradients.items():
            assert info.parameter_gradients[parameter].tobytes() == gradient.tobytes(), parameter

    def test_a_passive_run_shows_the_same_and_refuses_to_replace(self) -> None:
        _, adapter = self.model("mlp")
        active, _ = record(adapter)
        passive, _ = record(adapter, passive=True)
        assert {k for k in active if k[0] != "input_cotangent"} <= set(passive)
        for key, value in passive.items():
            np.testing.assert_allclose(value, active[key], rtol=1e-5, atol=1e-6)
        with pytest.raises(AssertionError, match="passive run was asked to replace"):
            record(adapter, observer=lambda site, kind, value: value, passive=True)

    def test_two_runs_are_identical(self) -> None:
        _, adapter = self.model("dropout")
        first, _ = record(adapter, train=True, seed=5)
        np.random.random(3)
        random.random()
        second, _ = record(adapter, train=True, seed=5)
        assert equal(first, second) == set(first)
        other, _ = record(adapter, train=True, seed=6)
        assert equal(first, other) != set(first)
        still, _ = record(adapter)
        assert np.array_equal(still["activation", "drop"], still["activation", "fc"])

    @pytest.mark.parametrize("name", ["mlp", "norm", "dropout", "shared", "tapped"])
    def test_the_model_is_left_as_it_was(self, name: str) -> None:
        model, adapter = self.model(name)
        before = self.kit.state(model)
        for options in ({}, {"train": True}, {"float64": True}, {"train": True, "float64": True}):
            record(adapter, **options)
            np.testing.assert_equal(self.kit.state(model), before)

    # -- errors ------------------------------------------------------------------------------

    @pytest.mark.parametrize("float64", [False, True])
    def test_a_model_that_raises(self, float64: bool) -> None:
        model, adapter = self.model("raising")
        before = self.kit.state(model)
        with pytest.raises(ModelRaised) as error:
            record(adapter, train=True, float64=float64)
        assert (error.value.site, error.value.stage) == ("boom", "forward")
        assert isinstance(error.value.__cause__, ValueError)
        assert "boom" in str(error.value.__cause__)
        np.testing.assert_equal(self.kit.state(model), before)
        assert taps.active_session() is None

    def test_a_model_that_raises_backward(self) -> None:
        model, adapter = self.model("raising_backward")
        before = self.kit.state(model)
        with pytest.raises(ModelRaised) as error:
            record(adapter)
        assert error.value.stage == "backward"
        assert error.value.site in ("boom", None)  # autograd does not say where it is
        assert isinstance(error.value.__cause__, ValueError)
        np.testing.assert_equal(self.kit.state(model), before)

    @pytest.mark.parametrize("kind", ["activation", "cotangent"])
    def test_errors_of_the_observer_pass(self, kind: str) -> None:
        model, adapter = self.model("mlp")
        before = self.kit.state(model)

        def refuse(site: str, seen: str, value: np.ndarray) -> None:
            if (seen, site) == (kind, "block"):
                raise InvalidArgument("enough")

        with pytest.raises(InvalidArgument, match="enough"):
            adapter.run({"x": X}, refuse, cotangents=ones)
        np.testing.assert_equal(self.kit.state(model), before)

    def test_errors_of_the_cotangents_pass(self) -> None:
        def refuse(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            raise InvalidArgument("no cotangent")

        with pytest.raises(InvalidArgument, match="no cotangent"):
            record(self.adapter("mlp"), cotangents=refuse)
