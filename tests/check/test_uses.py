"""One value, used in other places: forward it is the same quantity, backward it is not."""

from __future__ import annotations

from typing import Any

import pytest

import crosscheck
from crosscheck.results import Report

torch = pytest.importorskip("torch")
nn = torch.nn

SPEC = "float32[2,4,3]"


class Branches(nn.Module):
    """Two heads on one layer, with a dropout each or one for both (``shared``).

    ``scaled``: a factor of the gradient that comes back from the first head, as a mistake;
    ``squashed``: what the second head returns is, which is another, and ``bent``: tanh is sigmoid.
    """

    def __init__(
        self, shared: bool, scaled: float = 1.0, squashed: bool = False, bent: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2)
        self.drop = nn.ModuleList(nn.Dropout(0.5) for _ in range(1 if shared else 2))
        self.shared, self.scaled, self.squashed, self.bent = shared, scaled, squashed, bent

    def forward(self, x: Any) -> Any:
        h = self.stem(x).sigmoid() if self.bent else self.stem(x).tanh()
        one = self.drop[0](h)
        other = one if self.shared else self.drop[1](h)
        if self.scaled != 1.0:
            one = one * self.scaled + (one * (1 - self.scaled)).detach()
        right = self.right(other)
        return self.left(one), right.sigmoid() if self.squashed else right


class Heads(nn.Module):
    """``again``: the stem is computed once for each head, as checkpointing does; ``seen``: through
    a layer that changes nothing."""

    def __init__(self, again: bool = False, seen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2)
        self.same = nn.Identity()
        self.again, self.seen = again, seen

    def forward(self, x: Any) -> Any:
        h = self.stem(x)
        left = self.stem(x) if self.again else self.same(h) if self.seen else h
        return self.left(left), self.right(h)


def not_compared(report: Report) -> list[str]:
    return [line for line in report.coverage.not_compared if "more places" in line]


@pytest.mark.parametrize("effort", ["thorough", "quick"])
@pytest.mark.parametrize("shared", [False, True])
def test_dropouts_by_branch_and_one_for_both(shared: bool, effort: str) -> None:
    report = crosscheck.check(Branches(shared), Branches(not shared), SPEC, effort=effort)
    assert report.verdict == "agree", str(report)
    if effort == "thorough":
        assert len(not_compared(report)) == 1
    assert len([s for s in report.sites if s.phase == "parameter_gradient"]) == 6


@pytest.mark.parametrize("what", ["again", "seen"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_layer_computed_twice_or_seen_twice(what: str, turned: bool) -> None:
    sides = Heads(), Heads(**{what: True})
    report = crosscheck.check(*(sides[::-1] if turned else sides), SPEC)
    assert report.verdict == "agree", str(report)


@pytest.mark.parametrize("sketch", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_recorded_runs(shared: bool, sketch: bool) -> None:
    reference = crosscheck.record(Branches(shared), SPEC, parameters=True, sketch=sketch)
    report = crosscheck.check(reference, Branches(not shared))
    assert report.verdict == "agree", str(report)
    if not sketch:
        candidate = crosscheck.record(Branches(not shared), SPEC, parameters=True)
        assert crosscheck.check(reference, candidate).verdict == "agree"


@pytest.mark.parametrize("shared", [False, True])
def test_a_mistake_in_the_same_place_is_found(shared: bool) -> None:
    """Nothing is forgiven where the gradients behind it do not agree."""
    for factor in (0.0, 0.9, 0.999):
        candidate = Branches(not shared, scaled=factor)
        report = crosscheck.check(Branches(shared), candidate, SPEC)
        assert report.verdict == "diverge"
        assert report.first_divergence is not None
        assert report.first_divergence.phase == "backward"
        assert not not_compared(report)


@pytest.mark.parametrize("shared", [False, True])
def test_beside_a_mistake_elsewhere_nothing_innocent_is_blamed(shared: bool) -> None:
    """No gradient agrees then; what comes back behind the dropouts does, if nothing is forced."""
    report = crosscheck.check(Branches(shared), Branches(not shared, squashed=True), SPEC)
    assert {d.site for d in report.divergences} == {"output:1", "right"}
    assert len(not_compared(report)) == 1


@pytest.mark.parametrize("squashed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_nor_behind_a_mistake_that_nothing_there_mends(shared: bool, squashed: bool) -> None:
    """In the code before the dropouts, so that what comes back behind them is wrong in any case."""
    candidate = Branches(not shared, bent=True, squashed=squashed)
    report = crosscheck.check(Branches(shared), candidate, SPEC)
    blamed = {d.site for d in report.divergences if d.phase == "backward"}
    assert blamed == ({"stem", "right"} if squashed else {"stem"})
    assert len(not_compared(report)) == 1


class Through(nn.Module):
    """A layer whose value is held twice: by one that hands it on, or by one around it."""

    def __init__(self, around: bool, scaled: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        stem, self.same = nn.Linear(3, 5), nn.Identity()
        self.stem = nn.Sequential(stem, nn.Tanh()) if around else stem
        self.left, self.right = nn.Linear(5, 2), nn.Linear(5, 2)
        self.around, self.scaled = around, scaled

    def forward(self, x: Any) -> Any:
        h = self.stem(x) if self.around else self.same(self.stem(x))
        one = h * self.scaled + (h * (1 - self.scaled)).detach() if self.scaled != 1.0 else h
        return self.left(one), self.right(h)


@pytest.mark.parametrize("factor", [0.0, 0.9])
@pytest.mark.parametrize("around", [False, True])
def test_of_a_value_that_is_handed_on_nothing_is_mended_from_outside(
    around: bool, factor: float
) -> None:
    """What comes back to the inner of two layers would be right, if it were forced at the outer."""
    report = crosscheck.check(Through(around), Through(around, factor), SPEC)
    first = report.first_divergence
    assert first is not None and first.site == ("stem" if around else "same")
    assert not not_compared(report)


class Compensated(torch.autograd.Function):
    """Sends back ``factor`` times what it is given, and is undone by a second one."""

    @staticmethod
    def forward(context: Any, x: Any, factor: float) -> Any:
        context.factor = factor
        return x.clone()

    @staticmethod
    def backward(context: Any, dy: Any) -> Any:
        return dy * context.factor, None


class Chain(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act, self.head = nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)
        self.factor = factor

    def forward(self, x: Any) -> Any:
        h = Compensated.apply(self.stem(x), 1 / self.factor)
        return self.head(Compensated.apply(self.act(h), self.factor))


def test_a_wrong_cotangent_that_is_undone_later_is_wrong() -> None:
    """There is but one variable that the cotangent can belong to."""
    report = crosscheck.check(Chain(), Chain(2.0), SPEC)
    assert report.verdict == "diverge"
