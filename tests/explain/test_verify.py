"""What may be called verified, and what not."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from crosscheck.errors import InvalidArgument
from crosscheck.explain import Evidence, Proposal, causes, hypotheses, register, unregister
from crosscheck.explain.registry import GROUP, load_installed
from crosscheck.pair import load_pair

from .kit import evidence, forward, normal, told


@pytest.fixture
def own() -> Iterator[list[object]]:
    """Hypotheses to take back after a test."""
    added: list[object] = []
    yield added
    for one in added:
        unregister(one)  # type: ignore[arg-type]


def test_own_hypotheses_come_first_whoever_registers_when(own: list[object]) -> None:
    def others(evidence: Evidence) -> Iterator[Proposal]:
        yield from ()

    register("forward")(others)
    own.append(others)
    found = hypotheses("forward")
    assert found.index(others) == len(found) - 1
    assert len({one.__module__ for one in found}) > 10


def test_a_mistake_that_no_hypothesis_knows_is_not_verified() -> None:
    assert not told(forward(np.sin, lambda x: np.sin(x) + 0.01 * np.cos(3 * x)))
    assert not told(forward(lambda x: x**2, lambda x: x**2 + 1e-3 * normal(x.shape, 99)))
    assert not told(forward(lambda x: np.tanh(x), lambda x: np.tanh(x) * np.where(x > 1, 1.1, 1)))


def test_what_coincides_on_these_inputs_only_is_not_verified() -> None:
    """Where all inputs are positive, ReLU is the identity."""
    x = np.abs(normal((4, 12)))
    fresh = normal((4, 12), 1)

    def at(x: np.ndarray) -> Evidence:
        return evidence("forward", np.tanh(x), np.maximum(x, 0), inputs=(x,))

    both = causes(at(x), lambda: at(x * 0.9))
    assert {"the candidate computes the identity instead of tanh"} < set(told(both))
    one = causes(at(x), lambda: at(fresh))
    assert "the candidate computes ReLU instead of tanh" in told(one)
    assert "the candidate computes the identity instead of tanh" not in told(one)


def test_a_cast_may_fall_on_either_side_as_far_as_the_reference_itself_is_off() -> None:
    """Its own error says how far float32 is from the truth where a sum has many terms."""
    step = 2.0**-11  # of float16 at 0.75
    true = 0.75 + step * np.arange(40).reshape(4, 10) / 40 + step / 80
    off = 30 * 2.0**-24
    true[0, 0] = 0.75 + step / 2 - 0.9 * off
    made = (true + off).astype(np.float16).astype(float)

    def at(error: float) -> Evidence:
        first = evidence("forward", true, made)
        return replace(first, own=replace(first.own, maximum=error))

    assert "the value is rounded to float16" in told(causes(at(off), lambda: at(off)))
    assert not told(causes(at(2.0**-25), lambda: at(2.0**-25)))


def test_constants_are_not_fitted_again_on_fresh_inputs() -> None:
    """A factor that depends on the input is no constant factor."""
    found = forward(np.tanh, lambda x: np.tanh(x) * (1 + abs(float(x[0, 0]))))
    assert not told(found)


def test_a_description_of_the_value_is_no_hint_unless_it_reproduces_it() -> None:
    """What is small or lies near the reference has a factor, whatever the mistake is."""
    x = normal((4, 12))
    for wrong in (0.02 * x + 1e-3 * normal(x.shape, 9), 3 * x + 0.3 * normal(x.shape, 9)):
        found = causes(evidence("forward", x, wrong), lambda: None)
        assert not {"scaled", "scaled_parts", "shifted"} & {cause.name for cause in found}


@pytest.mark.filterwarnings("error")
def test_nan_is_no_factor_and_no_constant() -> None:
    assert not forward(np.tanh, lambda x: np.tanh(x) * np.nan)
    x = normal((4, 12))
    found = causes(evidence("forward", 0 * x, x), lambda: None)
    assert not any("nan" in cause.statement for cause in found)


def test_a_named_mistake_comes_before_a_factor_that_reproduces_it_too(own: list[object]) -> None:
    def doubling(e: Evidence) -> Iterator[Proposal]:
        yield Proposal("doubling", "it is doubled", lambda e: 2.0000002 * e.reference, constants=1)

    register("forward")(doubling)
    own.append(doubling)
    found = forward(lambda x: x + 0.1, lambda x: 2 * (x + 0.1))
    assert told(found)[:2] == ["it is doubled", "the output is scaled by 2"]


@pytest.mark.parametrize(
    ("beside", "named"),
    [(1.5e-7, ["it is bent"]), (0, ["it is bent", "the output is scaled by 2"])],
)
def test_a_factor_that_only_comes_near_does_not_stand_beside_a_mistake(
    own: list[object], beside: float, named: list[str]
) -> None:
    """A mistake that is nearly constant: a factor is within what the bound allows."""

    def bent(x: np.ndarray) -> np.ndarray:
        return 2 * x * (1 + beside * np.sign(x))

    def bending(e: Evidence) -> Iterator[Proposal]:
        yield Proposal("bent", "it is bent", lambda e: bent(e.reference))

    register("forward")(bending)
    own.append(bending)
    assert told(forward(lambda x: x + 0.1, lambda x: bent(x + 0.1))) == named


def test_without_fresh_inputs_nothing_is_verified() -> None:
    x = normal((4, 12))
    found = causes(evidence("forward", x, 1.5 * x), lambda: None)
    assert found and not any(cause.verified for cause in found)
    assert found[0].name == "scaled" and found[0].residual_ratio < 8


def test_where_the_fresh_value_is_right_nothing_has_been_reproduced() -> None:
    x = normal((4, 12))
    right = evidence("forward", x, x)
    assert not told(causes(evidence("forward", x, 1.5 * x), lambda: right))


def test_an_error_near_the_floor_is_not_explained_by_staying_near_it() -> None:
    """A suspect at 17 x the floor: a prediction that is 6 x off has reproduced little."""
    unit = 2.0**-24

    def suspect(x: np.ndarray) -> np.ndarray:
        return np.sin(x) + 12 * unit * (1 + 0.45 * np.cos(9 * x))

    assert not told(forward(np.sin, suspect, (40, 12)))


def test_a_prediction_never_sees_the_candidates_value(own: list[object]) -> None:
    @register("forward")
    def cheat(e: Evidence) -> Iterator[Proposal]:
        yield Proposal("cheat", "whatever it is", lambda e: e.candidate)

    own.append(cheat)
    assert "whatever it is" not in told(forward(np.sin, lambda x: np.sin(x) + np.cos(3 * x)))


def test_as_many_constants_as_elements_explain_nothing(own: list[object]) -> None:
    @register("forward")
    def fitted(e: Evidence) -> Iterator[Proposal]:
        value = e.candidate
        yield Proposal("fitted", "fitted", lambda e: value, constants=value.size)

    own.append(fitted)
    x = normal((2, 3))
    one = evidence("forward", x, np.sin(x) + x)
    assert "fitted" not in told(causes(one, lambda: one))


def test_a_hypothesis_that_fails_spoils_nothing(own: list[object]) -> None:
    def boom(e: Evidence) -> np.ndarray:
        raise RuntimeError

    @register("forward")
    def broken(e: Evidence) -> Iterator[Proposal]:
        yield Proposal("late", "fails when it predicts", boom)
        raise ZeroDivisionError

    own.append(broken)
    assert told(forward(np.sin, lambda x: 1.5 * np.sin(x)))[0] == "the output is scaled by 1.5"


def test_a_hypothesis_of_ones_own(own: list[object]) -> None:
    @register("forward")
    def wavy(e: Evidence) -> Iterator[Proposal]:
        yield Proposal("wavy", "a wave is added", lambda e: e.reference + np.sin(50 * e.reference))

    own.append(wavy)
    assert wavy in hypotheses("forward") and wavy not in hypotheses("weights")
    assert told(forward(lambda x: x**2, lambda x: x**2 + np.sin(50 * x**2))) == ["a wave is added"]


def test_hypotheses_of_an_installed_package(
    own: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that registers when it is loaded, and one that cannot be."""
    made = types.ModuleType("elsewhere_hypotheses")
    source = """
    from crosscheck.explain import Proposal, register

    @register("forward")
    def squared(e):
        yield Proposal("squared", "the output is squared", lambda e: e.reference**2)
    """

    def load(point: EntryPoint) -> object:
        if point.name == "broken":
            raise ImportError("no such module")
        exec(textwrap.dedent(source), made.__dict__)
        own.append(made.__dict__["squared"])
        return made

    points = [EntryPoint(n, "elsewhere_hypotheses", GROUP) for n in ("broken", "good")]
    monkeypatch.setattr(EntryPoint, "load", load)
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda *, group: points if group == GROUP else []
    )
    load_installed.cache_clear()
    try:
        with pytest.warns(UserWarning, match="`broken`.*left out: ImportError: no such module"):
            found = forward(lambda x: np.sin(x) + 2, lambda x: (np.sin(x) + 2) ** 2)
    finally:
        load_installed.cache_clear()
    assert told(found) == ["the output is squared"]


def test_a_pair_file_brings_its_own_hypotheses(own: list[object], tmp_path: Path) -> None:
    """`crosscheck run` loads the file; what it registers is asked like the rest."""
    (tmp_path / "pair.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            import crosscheck
            from crosscheck.explain import Proposal, register
            from tests.check.kit import replace
            from tests.check.numpy_models import Affine, Stack

            @register("forward")
            def bent(evidence):
                yield Proposal("bent", "its arctangent is taken", lambda e: np.arctan(e.reference))

            def wrong():
                net = Stack(Affine(6, 8))
                replace(net.layers[0], "forward", lambda self, call, x: np.arctan(call(x)))
                return net

            pair = crosscheck.Pair(
                lambda: Stack(Affine(6, 8)), wrong, "float32[5,6]", gradients=False
            )
            """
        )
    )
    pair = load_pair(tmp_path)
    own.extend(h for h in hypotheses("forward") if h.__name__ == "bent")
    first = pair.check().first_divergence
    assert first is not None
    assert [c.statement for c in first.causes if c.verified] == ["its arctangent is taken"]


@pytest.mark.parametrize("phases", [(), ("forwards",)])
def test_registering_for_no_phase(phases: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"name the phases.*forward"):
        register(*phases)  # type: ignore[arg-type]


def test_the_closest_is_named_and_not_verified() -> None:
    """A factor explains most of it; what remains is not rounding."""
    (closest,) = forward(np.sin, lambda x: 1.5 * np.sin(x) + 1e-3 * np.cos(7 * x))
    assert not closest.verified and closest.statement.startswith("the output is scaled by 1.5")
    assert closest.residual_ratio > 32


def test_a_place_is_described_and_not_verified() -> None:
    def last_row(x: np.ndarray) -> np.ndarray:
        y = np.sin(x)
        y[-1] += 0.1 * np.cos(5 * x[-1])
        return y

    (where,) = forward(np.sin, last_row, (5, 7))
    assert where.statement == "only index 4 of 5 along axis 0 is wrong" and not where.verified


def test_what_comes_no_nearer_than_nothing_is_no_hint(own: list[object]) -> None:
    """A candidate that is small beside the reference: whatever is small comes near."""

    def squashing(e: Evidence) -> Iterator[Proposal]:
        yield Proposal("squashed", "it is squashed", lambda e: e.reference / (1 + abs(e.reference)))

    register("forward")(squashing)
    own.append(squashing)
    x, other = normal((4, 12)), normal((4, 12), seed=1)
    found = causes(evidence("forward", 8 * x + other, x + other), lambda: None)
    assert not [cause.statement for cause in found]


@pytest.mark.parametrize(("beside", "verified"), [(0.0, True), (1e-4, False)])
def test_a_value_made_much_larger_rounds_as_much_more(
    own: list[object], beside: float, verified: bool
) -> None:
    """As momentum 0.9 for 0.1 makes statistics; what is beside it by more is not excused."""

    def enlarging(e: Evidence) -> Iterator[Proposal]:
        yield Proposal("enlarged", "it is enlarged", lambda e: 90 * e.reference)

    register("forward")(enlarging)
    own.append(enlarging)

    def at(seed: int) -> Evidence:
        x = normal((4, 12), seed)
        noise = np.random.default_rng(seed).uniform(-1, 1, x.shape)
        wrong = (90 * x * (1 + beside * noise)).astype(np.float32)
        wrong = np.nextafter(wrong, np.where(noise > 0, np.inf, -np.inf), dtype=np.float32)
        return evidence("forward", x, wrong.astype(np.float64))

    assert ("it is enlarged" in told(causes(at(1), lambda: at(2)))) == verified
