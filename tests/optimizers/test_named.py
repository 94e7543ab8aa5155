"""Every framework's own optimizer computes the named definition, or is refused with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crosscheck.errors import InvalidArgument
from crosscheck.optimizers import Definition, parse

STEPS = 4
EXEMPT = frozenset(["norm"])
COMMON = [
    "sgd(0.1)",
    "sgd(lr=[0.1, 0.05, 0.2], momentum=0.9)",
    "sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)",
    "sgd(0.1, clip_norm=0.1)",
    "sgd(0.1, clip_value=0.05, accumulate=2)",
    "adam(1e-3)",
    "adam(1e-3, eps=1e-4, eps_hat=True)",
    "adam(lr=cosine(1e-2, total=4, warmup=2), betas=(0.5, 0.9), weight_decay=0.1, eps=1e-4)",
    "adamw(1e-2, weight_decay=0.5, exclude=['norm'])",
]
TORCH = [
    "sgd(0.1, momentum=0.9, dampening=0.3)",
    "rmsprop(1e-2, rho=0.9, eps=1e-3)",
    "rmsprop(lr=[0.1, 0.01], momentum=0.5, centered=True)",
    "adagrad(0.1, initial=0.1, eps=1e-3)",
]
INSIDE = [
    "rmsprop(1e-2, rho=0.9, eps=1e-3, eps_inside=True)",
    "rmsprop(lr=[0.1, 0.01], rho=0.9, momentum=0.5, centered=True, eps=1e-3, eps_inside=True)",
    "adagrad(0.1, initial=0.1, eps=1e-3, eps_inside=True)",
]
OPTAX = ["rmsprop(1e-2, rho=0.9, eps=1e-3)", "rmsprop(1e-2, initial=1.0)"]


def torch_stepper(rule: Any, wide: bool) -> Any:
    from crosscheck.adapters.torch import optimizer as own

    return own.TorchStepper(own.named(rule, EXEMPT), device="cpu", wide=wide, rule=rule)


def keras_stepper(rule: Any, wide: bool) -> Any:
    from crosscheck.adapters.keras import optimizer as own

    make = own.named(rule, EXEMPT)
    return own.KerasStepper(make, originals={}, device="cpu", wide=wide, rule=rule, exempt=EXEMPT)


def jax_stepper(rule: Any, wide: bool) -> Any:
    from crosscheck.adapters.jax import optimizer as own

    return own.OptaxStepper(own.named(rule, EXEMPT), tree=None, device="cpu", wide=wide)


def numpy_stepper(rule: Any, wide: bool) -> Any:
    return Definition(rule, EXEMPT)


CASES = [
    *((torch_stepper, text) for text in COMMON + TORCH),
    *((keras_stepper, text) for text in COMMON + INSIDE),
    *((jax_stepper, text) for text in COMMON[1:3] + COMMON[6:] + INSIDE[2:] + OPTAX),
    *((numpy_stepper, text) for text in ("sgd(0.1, momentum=0.9)", "adam(1e-3)")),
]


def trajectory(stepper: Any, parts: int, dtype: type) -> list[np.ndarray]:
    """θ of both parameters after each step, from the same gradients."""
    random = np.random.default_rng(5)
    values = {"w": random.normal(size=(3, 4)).astype(dtype), "norm": np.ones(3, dtype)}
    made = []
    for _ in range(STEPS):
        gradients = [
            {n: (0.1 * random.normal(size=v.shape)).astype(np.float32) for n, v in values.items()}
            for _ in range(parts)
        ]
        gradients = [{n: g.astype(dtype) for n, g in part.items()} for part in gradients]
        values = stepper.step(values, gradients)
        assert all(v.dtype == dtype for v in values.values())
        made.append(np.concatenate([v.ravel() for v in values.values()]))
    return made


@pytest.mark.parametrize(
    ("make", "text"), CASES, ids=[f"{m.__name__.partition('_')[0]} {t}" for m, t in CASES]
)
def test_computes_the_definition(make: Callable[..., Any], text: str) -> None:
    rule = parse(text)
    expected = trajectory(Definition(rule, EXEMPT), rule.accumulate, np.float64)
    wide = trajectory(make(rule, True), rule.accumulate, np.float64)
    narrow = trajectory(make(rule, False), rule.accumulate, np.float32)
    for e, w, n in zip(expected, wide, narrow, strict=True):
        np.testing.assert_allclose(w, e, rtol=2e-6, atol=3e-8)  # Keras keeps its rate in float32
        np.testing.assert_allclose(n, e, rtol=2e-5, atol=1e-6)


def test_a_definition_by_hand() -> None:
    rule = parse("sgd(0.1, momentum=0.5, dampening=0.2, weight_decay=0.1)")
    own = Definition(rule)
    first = own.step({"w": np.array([2.0])}, [{"w": np.array([1.0])}])["w"]
    second = own.step({"w": first}, [{"w": np.array([1.0])}])["w"]
    assert first[0] == pytest.approx(2.0 - 0.1 * 1.2)
    velocity = 0.5 * 1.2 + 0.8 * (1.0 + 0.1 * first[0])
    assert second[0] == pytest.approx(first[0] - 0.1 * velocity)
    adam = Definition(parse("adam(0.1, eps=0.5)"))
    made = adam.step({"w": np.array([1.0])}, [{"w": np.array([2.0])}])["w"]
    assert made[0] == pytest.approx(1.0 - 0.1 * 2.0 / 2.5)


def test_schedules() -> None:
    def rates(text: str) -> list[float]:
        lr = parse(f"sgd(lr={text})").lr
        return [round(lr.at(t), 6) for t in range(1, 7)]

    assert rates("[0.1, 0.2]") == [0.1, 0.2, 0.2, 0.2, 0.2, 0.2]
    assert rates("step(1, every=2, factor=0.5)") == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates("exponential(1, factor=0.5)")[:3] == [1, 0.5, 0.25]
    assert rates("linear(1, total=4)") == [1, 0.75, 0.5, 0.25, 0, 0]
    assert rates("linear(1, total=4, warmup=2, final=0.5)") == [0.5, 1, 1, 0.75, 0.5, 0.5]
    half = 0.5 + 0.5 * math.cos(math.pi / 4)
    assert rates("cosine(1, total=4)") == [1, round(half, 6), 0.5, round(1 - half, 6), 0, 0]
    assert rates("constant(1, warmup=2)")[:3] == [0.5, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adm(1e-3)", "unknown optimizer `adm`, did you mean `adam`?"),
        ("sgd(0.1, momentun=0.9)", "sgd has no option `momentun`, did you mean `momentum`?"),
        ("sgd(0.1, lr_inside=True)", "sgd has no option `lr_inside`"),
        ("sgd(lr=cosin(1, total=3))", "unknown schedule `cosin`, did you mean `cosine`?"),
        ("sgd(lr=cosine(1))", "write cosine(lr, warmup=, total=, final=)"),
        ("sgd(lr=-1)", "lr must be a number ≥ 0"),
        ("sgd(0.1", "cannot be read"),
        ("sgd(open('x'))", "unknown schedule `open`"),
        ("sgd(lr=x)", "`x` is no number"),
        ("adam(betas=0.9)", "betas must be two numbers"),
        ("sgd(0.1, nesterov=1)", "nesterov must be True or False"),
        ("sgd(0.1, accumulate=0)", "accumulate must be an integer"),
        ("sgd(0.1, 0.9)", "only the learning rate may stand without its name"),
        ("os.system('x')", "write it as in"),
        ("", "cannot be read"),
    ],
)
def test_a_text_that_says_nothing(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "text", "why"),
    [
        (torch_stepper, "rmsprop(1e-2, eps_inside=True)", "eps is added to the root"),
        (torch_stepper, "sgd(0.1, weight_decay=0.1, decoupled=True)", "added to the gradient"),
        (keras_stepper, "rmsprop(1e-2)", "eps is added inside the root"),
        (keras_stepper, "sgd(0.1, momentum=0.9, dampening=0.1)", "it has no dampening"),
        (jax_stepper, "adagrad(1e-2)", "eps is added inside the root"),
    ],
)
def test_another_definition_is_refused(make: Callable[..., Any], text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        make(parse(text), False)
    assert why in str(error.value) and "optimizer=(reference, candidate)" in str(error.value)
