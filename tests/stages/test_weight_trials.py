"""Stage 2: what names and shapes leave open is settled by running, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck.adapters.base import Parameter
from crosscheck.errors import CannotCompare
from crosscheck.weights import Fit, Match, match_parameters, settle, settle_by_values

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.adapters.layer_kit import First, Projections, Words, agrees, scattered, spec  # noqa: E402
from tests.stages.recurrent_nets import LSTM, Dense, LSTMByGate  # noqa: E402


def lstm(n_in: int = 3, hidden: int = 5) -> Any:
    return scattered(First(nn.LSTM(n_in, hidden, batch_first=True)))


# -- gates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["ifgo", "iofg", "gofi"])
def test_gate_orders_of_a_net_by_hand(order: str) -> None:
    agrees(lstm(), LSTM(3, 5, order=order), spec(2, 4, 3))


@pytest.mark.parametrize(("order", "joined"), [("ifgo", "xh"), ("ifog", "hx")])
@pytest.mark.parametrize("n_in", [3, 5])
def test_concatenated_inputs(n_in: int, order: str, joined: str) -> None:
    """[x, h] or [h, x]: no shape tells, least of all where both have one size."""
    agrees(lstm(n_in), LSTM(n_in, 5, order=order, joined=joined), spec(2, 4, n_in))


def test_the_same_framework_needs_no_transform() -> None:
    reference, candidate = lstm(), First(nn.LSTM(3, 5, batch_first=True))
    report = agrees(reference, candidate, spec(2, 4, 3))
    pairs = [(s.reference, s.candidate) for s in report.sites if s.phase == "weights"]
    assert len(pairs) == 4 and all(ours == theirs for ours, theirs in pairs)


def test_a_matrix_and_a_column_of_biases_for_each_gate() -> None:
    report = crosscheck.check(lstm(), LSTMByGate(3, 5), spec(2, 4, 3))
    assert report.verdict == "agree" and report.coverage.parameters_matched == 8


def test_two_gates_swapped_by_hand_are_seen() -> None:
    reference, candidate = lstm(), LSTM(3, 5)
    agrees(reference, candidate, spec(2, 4, 3))
    parts = np.split(candidate.W_x, 4, axis=1)
    candidate.W_x[...] = np.concatenate([parts[k] for k in (1, 0, 2, 3)], axis=1)
    report = crosscheck.check(reference, candidate, spec(2, 4, 3), weights="keep")
    assert report.verdict == "diverge"
    phases = {d.phase for d in report.divergences}
    assert phases & {"weights", "forward"}


# -- squares, branches, copies ---------------------------------------------------------------------


def test_a_square_matrix_by_hand() -> None:
    reference, candidate = scattered(nn.Linear(6, 6)), Dense(6, 6)
    agrees(reference, candidate, spec(5, 6))
    assert np.array_equal(candidate.W, reference.weight.detach().numpy().T)
    candidate.W[...] = candidate.W.T.copy()
    report = crosscheck.check(reference, candidate, spec(5, 6), weights="keep")
    assert report.verdict == "diverge"


class Branches(nn.Module):
    """Two layers of one shape, one after the other; names without numbers."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.names = first, second
        for name in sorted(self.names):
            setattr(self, name, nn.Linear(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (getattr(self, name) for name in self.names)
        return second(torch.tanh(first(x)))  # type: ignore[no-any-return]


def test_equal_layers_with_names_that_say_nothing() -> None:
    """Defined in the order of use on one side, against it on the other."""
    agrees(scattered(Branches("ant", "bee")), Branches("wolf", "seal"), spec(5, 6))
    agrees(scattered(Branches("ant", "bee")), Branches("seal", "wolf"), spec(5, 6))


class Heads(nn.Module):
    """Two layers that are given the same, and of which only what is made of them tells which."""

    def __init__(self, mean: str, spread: str, *, spread_first: bool) -> None:
        super().__init__()
        self.names, self.spread_first = (mean, spread), spread_first
        for name in sorted(self.names):
            setattr(self, name, nn.Linear(6, 4))
        self.decode = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, spread = (getattr(self, name) for name in self.names)
        h = torch.tanh(x)
        if self.spread_first:
            width = spread(h).exp()
            return self.decode(mean(h) * width)  # type: ignore[no-any-return]
        return self.decode(mean(h) * spread(h).exp())  # type: ignore[no-any-return]


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("names", [("ant", "bee"), ("bee", "ant")])
def test_layers_side_by_side_with_names_that_say_nothing(
    names: tuple[str, str], ours: bool, theirs: bool
) -> None:
    """Each returns what the reference's does, whichever of the two it was given the weights of."""
    reference = scattered(Heads("mean", "spread", spread_first=ours))
    agrees(reference, Heads(*names, spread_first=theirs).eval(), spec(5, 6))


def test_layers_side_by_side_that_the_names_tell_apart_are_not_exchanged_to_fit() -> None:
    reference = scattered(Heads("mean", "spread", spread_first=True))
    candidate = Heads("spread", "mean", spread_first=False).eval()
    assert crosscheck.check(reference, candidate, spec(5, 6)).verdict == "diverge"


class TwoNorms(nn.Module):
    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.names = first, second
        for name in sorted(self.names):
            setattr(self, name, nn.LayerNorm(6))
        self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (getattr(self, name) for name in self.names)
        x = x + torch.tanh(self.up(first(x)))
        return x + torch.tanh(self.down(second(x)))  # type: ignore[no-any-return]


def two_norms(first: str, second: str, blocks: int) -> nn.Module:
    return nn.Sequential(*(TwoNorms(first, second) for _ in range(blocks)), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize("blocks", [1, 3, 20])
@pytest.mark.parametrize("turned", [False, True])
def test_a_number_that_is_alone_at_its_place_is_no_rank(blocks: int, turned: bool) -> None:
    """``n2`` beside ``norm`` is not the other side's ``n1``."""
    sides = [("norm", "n2"), ("n1", "n2")]
    ours, theirs = sides[::-1] if turned else sides
    agrees(scattered(two_norms(*ours, blocks)), two_norms(*theirs, blocks), spec(5, 6))


def test_norms_that_the_names_tell_apart_are_not_exchanged_to_fit() -> None:
    reference, candidate = two_norms("n1", "n2", 2), two_norms("n2", "n1", 2)
    assert crosscheck.check(scattered(reference), candidate, spec(5, 6)).verdict == "diverge"


@pytest.mark.parametrize("options", [{}, {"heads": 4, "kv": 2}])
@pytest.mark.parametrize("fused", [True, False])
def test_one_projection_for_three(fused: bool, options: dict[str, int]) -> None:
    reference = scattered(Projections(fused=fused, **options))
    agrees(reference, Projections(fused=not fused, **options).eval(), spec(2, 5, 8))


# -- ties ------------------------------------------------------------------------------------------

IDS = "int64[2,5] 0..11"


@pytest.mark.parametrize("theirs", ["tied", "function", "copies"])
@pytest.mark.parametrize("ours", ["tied", "function"])
def test_tied_weights(ours: str, theirs: str) -> None:
    agrees(scattered(Words(ours)), Words(theirs).eval(), IDS)


@pytest.mark.parametrize("theirs", ["tied", "function"])
def test_equal_copies_against_one_parameter(theirs: str) -> None:
    """The candidate's gradient is the sum of the reference's two."""
    reference = Words("copies").eval()
    report = crosscheck.check(reference, Words(theirs).eval(), IDS)
    assert report.verdict == "agree"
    assert report.coverage.unmatched_reference_parameters == ()
    gradients = [s for s in report.sites if s.phase == "parameter_gradient"]
    assert [(s.reference, s.candidate) for s in gradients] == [("emb.weight", "emb.weight")]


def test_unequal_copies_cannot_be_one_parameter() -> None:
    with pytest.raises(CannotCompare, match="holds one parameter, `emb.weight`, for"):
        crosscheck.check(scattered(Words("copies")), Words("tied").eval(), IDS)


def test_a_lost_share_of_a_tied_gradient_is_seen() -> None:
    class Detached(Words):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.emb(x))
            return nn.functional.linear(h, self.emb.weight.detach())

    report = crosscheck.check(scattered(Words("tied")), Detached("function").eval(), IDS)
    found = {(d.phase, d.reference) for d in report.divergences}
    assert ("parameter_gradient", "emb.weight") in found


# -- decisions -------------------------------------------------------------------------------------


def parameters(side: str, **shapes: tuple[int, ...]) -> list[Parameter]:
    rng = np.random.default_rng([*side.encode()])
    return [
        Parameter(
            f"{side}.{n}",
            rng.normal(size=s),
            side,
            "weight" if len(s) > 1 else "bias",
            "dense",
            None,
        )
        for n, s in shapes.items()
    ]


def test_only_as_many_trials_as_needed() -> None:
    match = match_parameters(parameters("a", w=(4, 4)), parameters("b", w=(4, 4)))
    turned = {"b.w": match.pairs[0].alternatives[0]}
    tried: list[Any] = []

    def trial(best: int) -> Any:
        def run(option: Match) -> Fit:
            tried.append(option.pairs[0].transform)
            good = (option.pairs[0].transform == turned["b.w"]) == bool(best)
            return Fit(3, 1e-7) if good else Fit(1, 0.7)

        return run

    assert settle(match, trial(0)).pairs[0].transform == match.pairs[0].transform
    assert len(tried) == 1  # the first one fits: nothing else is tried
    assert settle(match, trial(1)).pairs[0].transform == turned["b.w"]
    assert len(tried) == 3


def test_a_layer_that_matches_is_not_tried_otherwise() -> None:
    """A mistake elsewhere keeps the outputs apart: that says nothing against these weights."""
    match = match_parameters(parameters("a", w=(4, 4)), parameters("b", w=(4, 4)))
    layer = match.pairs[0].candidate.layer
    tried: list[Match] = []

    def trial(option: Match) -> Fit:
        tried.append(option)
        return Fit(3, 0.5, frozenset([layer]))

    assert settle(match, trial).pairs[0].transform == match.pairs[0].transform
    assert len(tried) == 1


def trials_where(right: Sequence[str], match: Match) -> int:
    """How many choices are tried where the layers ``right`` match and the outputs never do."""
    tried: list[Match] = []

    def trial(option: Match) -> Fit:
        tried.append(option)
        return Fit(3, 0.5, frozenset(right))

    settle(match, trial)
    return len(tried)


def test_choices_together_leave_what_matches_alone() -> None:
    """Two kinds of layers, each with an open square; nothing is tried twice."""
    sides = [
        [
            *parameters(a, w=(4, 4)),
            *(replace(p, kind="recurrent") for p in parameters(b, w=(3, 3))),
        ]
        for a, b in (("ant", "bee"), ("wolf", "seal"))
    ]
    match = match_parameters(*sides)
    for right, count in (["wolf", "seal"], 1), (["seal"], 2), ([], 4):
        assert trials_where(right, match) == count, right


def test_a_layer_that_matches_is_not_exchanged() -> None:
    """Three layers alike in everything; a mistake in the first keeps the outputs apart."""
    sides = ("ant", "bee", "cat"), ("wolf", "seal", "crow")
    match = match_parameters(
        *([p for name in names for p in parameters(name, w=(4, 3))] for names in sides)
    )
    for right, count in (["seal", "crow"], 1), (["crow"], 2), ([], 4):
        assert trials_where(right, match) == count, right


def test_what_holds_the_same_is_not_exchanged() -> None:
    """Norms that are not trained: whichever has the weights of which, both hold the same."""
    names = [("ant", "bee", "cat"), ("wolf", "seal", "crow")]
    ours, theirs = ([p for name in side for p in parameters(name, w=(4, 3))] for side in names)
    ours = [replace(p, value=ours[0].value) for p in ours]
    assert trials_where([], match_parameters(ours, theirs)) == 0


def test_what_the_candidate_holds_decides_without_running() -> None:
    ours, theirs = parameters("a", w=(4, 4)), parameters("bb", w=(4, 4))
    match = match_parameters(ours, theirs)
    for turned in (False, True):
        held = {"bb.w": ours[0].value.T if turned else ours[0].value}
        settled = settle_by_values(match, held)
        assert settled.ambiguous() == []
        assert np.array_equal(settled.values()["bb.w"], held["bb.w"])


def test_more_sites_are_better_than_less_error() -> None:
    assert Fit(3, 0.9).better(Fit(2, 0.1)) and not Fit(2, 0.1).better(Fit(3, 0.9))
    assert Fit(2, 0.1).better(Fit(2, 0.2)) and not Fit(2, 0.2).better(Fit(2, 0.2))


# -- gradients through a transform -----------------------------------------------------------------


def test_a_wrong_gradient_is_blamed_on_every_parameter_that_shares_it() -> None:
    """One bias for two: its gradient is that of either."""

    class Wrong(LSTM):
        def backward(self, dy: np.ndarray) -> np.ndarray:
            dx = super().backward(dy)
            self.db = self.db * np.float32(1.001)
            return dx

    report = crosscheck.check(lstm(), Wrong(3, 5), spec(2, 4, 3))
    found = [(d.phase, d.reference, d.candidate) for d in report.divergences]
    assert sorted(found) == [
        ("parameter_gradient", f"inner.bias_{side}_l0", "b") for side in ("hh", "ih")
    ]


def test_a_lost_part_of_a_packed_gradient_is_seen() -> None:
    class Detached(Projections):
        def __init__(self) -> None:
            super().__init__()
            self.v_proj.bias.register_hook(lambda g: 0 * g)

    report = crosscheck.check(scattered(Projections(fused=True)), Detached().eval(), spec(2, 5, 8))
    found = [(d.phase, d.reference, d.candidate) for d in report.divergences]
    assert found == [("parameter_gradient", "c_attn.bias", "q_proj.bias, k_proj.bias, v_proj.bias")]
