"""`check` leaves both models, and the process, as it found them: also when it raises."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import crosscheck

from .kit import replace, run
from .numpy_models import RecurrentNet, Stack
from .torch_models import Mlp, Normed, Recurrent


def tensors(model: torch.nn.Module) -> dict[str, bytes]:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach().numpy().tobytes() for name, t in state.items()}


def of_torch(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "tensors": tensors(model),
        "places": {n: p.data_ptr() for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "hooks": {
            n: [len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)]
            for n, m in model.named_modules()
        },
        "grad": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},  # noqa: E501
        "requires": {n: p.requires_grad for n, p in model.named_parameters()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
    }  # fmt: skip


def of_process() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tobytes(),  # type: ignore[index, union-attr]
        "torch": torch.get_rng_state().numpy().tobytes(),
        "seeds of devices to come": torch.cuda._lazy_seed_tracker.get_calls(),
        "precision": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "cudnn": torch.backends.cudnn.allow_tf32,
    }


def of_numpy(net: Any) -> dict[str, Any]:
    layers = net.layers if hasattr(net, "layers") else [net.cell, net.head]
    return {
        "own": sorted(vars(net)),
        "attributes": [sorted(vars(layer)) for layer in layers],
        "arrays": [
            {k: (id(v), v.tobytes()) for k, v in vars(layer).items() if isinstance(v, np.ndarray)}
            for layer in layers
        ],
        "classes": [sorted(vars(type(layer))) for layer in layers],
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "train": {"train": True},
    "forward only": {"gradients": False},
    "tolerance": {"tolerance": crosscheck.Tolerance(rtol=1e-4, atol=1e-6)},
    "keep": {"weights": "keep"},
}


def same(before: Any, after: Any) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key == "grad" and isinstance(value, dict):
            for name, gradient in value.items():
                now = after[key][name]
                assert (gradient is None) == (now is None)
                assert gradient is None or torch.equal(gradient, now)
        else:
            assert value == after[key], key


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mode", [True, False])
def test_two_torch_models(options: str, mode: bool) -> None:
    reference, candidate = Normed().train(mode), Normed().train(mode)
    for model in (reference, candidate):  # gradients of an earlier step lie in .grad
        torch.manual_seed(3)
        model(torch.randn(4, 6)).sum().backward()
    candidate.fc.weight.requires_grad_(False)
    random.seed(1), np.random.seed(2)
    states = [of_torch(reference), of_torch(candidate), of_process()]
    run(reference, candidate, **OPTIONS[options])
    for before, after in zip(
        states, [of_torch(reference), of_torch(candidate), of_process()], strict=True
    ):
        same(before, after)


@pytest.mark.parametrize("options", ["plain", "train", "forward only", "keep"])
def test_a_numpy_net(options: str) -> None:
    net, reference = Stack(), Mlp()
    run(reference, net)  # after this it holds the reference's weights
    net.forward(np.ones((2, 6), np.float32))
    net.backward(np.ones((2, 3), np.float32))
    before, process = of_numpy(net), of_process()
    run(reference, net, **OPTIONS[options])
    same(process, of_process())
    same(before, of_numpy(net))


def test_a_net_that_keeps_a_stack() -> None:
    net = RecurrentNet()
    run(Recurrent(), net)
    before = of_numpy(net)
    run(Recurrent(), net)
    assert of_numpy(net) == before
    assert net.cell.seen == [] and not hasattr(net, "hidden")


def test_copy_is_the_only_thing_that_stays() -> None:
    reference, candidate = Mlp(), Mlp(seed=5)
    run(reference, candidate)
    assert tensors(reference) == tensors(candidate)
    other = Mlp(seed=5)
    before = tensors(other)
    run(reference, other, weights="keep")
    assert tensors(other) == before


def raising(method: str) -> Callable[[Any], None]:
    def fail(self: Any, original: Any, value: Any) -> Any:
        raise ValueError("boom")

    return lambda layer: replace(layer, method, fail)


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_after_a_model_has_raised(side: str) -> None:
    reference, candidate = Mlp().train(), Mlp().train()
    broken = reference if side == "reference" else candidate
    raising("forward")(broken.tanh)
    states = [of_torch(reference), of_torch(candidate), of_process()]
    with pytest.raises(crosscheck.SideFailed):
        run(reference, candidate)
    for before, after in zip(
        states, [of_torch(reference), of_torch(candidate), of_process()], strict=True
    ):
        same(before, after)


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_after_a_numpy_net_has_raised(method: str) -> None:
    net, reference = Stack(), Mlp()
    run(reference, net)
    raising(method)(net.layers[2])
    before, process = of_numpy(net), of_process()
    with pytest.raises(crosscheck.SideFailed):
        run(reference, net)
    same(before, of_numpy(net))
    same(process, of_process())


def test_after_arguments_were_refused() -> None:
    model, other = Mlp().train(), Mlp()
    before, process = of_torch(model), of_process()
    for options in ({"seed": -1}, {"weights": "foo"}, {"sites": {"no": "such"}}):
        with contextlib.suppress(crosscheck.InvalidArgument):
            run(model, other, **options)  # type: ignore[arg-type]
    same(before, of_torch(model))
    same(process, of_process())


def test_the_callers_inputs_are_not_written_to() -> None:
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    kept = copy.deepcopy(x)
    model = Mlp()
    replace(model, "forward", lambda self, original, x: original(x.mul_(2.0)))
    run(model, model, x, candidate_inputs=lambda given: given)
    np.testing.assert_array_equal(x, kept)
