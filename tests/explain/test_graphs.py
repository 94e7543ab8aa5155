"""Graph convolutions: self-loops, and by whose degree the neighbours are divided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import crosscheck  # noqa: E402


def hat(a: Any, how: str) -> Any:
    looped = a if how == "no loops" else a + torch.eye(len(a))
    degrees = looped.sum(-1)
    if how == "rows":
        return looped / degrees[:, None]
    if how == "as it is":
        return looped
    root = torch.where(degrees > 0, degrees, torch.ones(())).rsqrt()
    return looped * root[:, None] * root


class Convolution(nn.Module):
    """Â X W + b, with Â made inside of the adjacency, of pairs, or made outside."""

    def __init__(self, inputs: int, outputs: int, how: str, given: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / 2)
        self.bias = nn.Parameter(torch.randn(outputs))
        self.how, self.given = how, given

    def forward(self, x: Any, a: Any) -> Any:
        if self.given == "pairs":
            edges, a = a, torch.zeros(len(x), len(x))
            a.index_put_((edges[1], edges[0]), torch.ones(edges.shape[1]), accumulate=True)
        a = a if self.given == "outside" else hat(a, self.how)
        return a @ (x @ self.weight) + self.bias


class Net(nn.Module):
    def __init__(self, how: str, given: str) -> None:
        super().__init__()
        self.first, self.second = (Convolution(w, w + 1, how, given) for w in (5, 6))
        self.how, self.given = how, given

    def forward(self, x: Any, a: Any) -> Any:
        a = hat(a, self.how) if self.given == "outside" else a
        return self.second(torch.relu(self.first(x, a)), a)


def graph(given: str) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    a = np.triu((rng.random((9, 9)) < 0.4), 1)
    x = rng.normal(size=(9, 5)).astype(np.float32)
    if given != "pairs":
        return {"x": x, "a": (a | a.T).astype(np.float32)}
    return {"x": x, "a": np.stack(np.nonzero(a | a.T)).astype(np.int64)}


@pytest.mark.parametrize("given", ["dense", "pairs", "outside"])
@pytest.mark.parametrize(
    ("how", "statement"),
    [
        ("rows", "the adjacency is taken as D^-1 (A + I); in the reference as D^-½ (A + I) D^-½"),
        ("no loops", "the adjacency is taken as D^-½ A D^-½; in the reference as D^-½ (A + I) D^"),
        ("as it is", "the adjacency is taken as (A + I), not normalised; in the reference as"),
    ],
)
def test_another_normalisation(how: str, statement: str, given: str) -> None:
    report = crosscheck.check(Net("right", given), Net(how, given), graph(given))
    first = report.first_divergence
    assert first is not None and first.phase == "forward", str(report)
    assert first.reference == ("output" if given == "outside" else "first"), first
    told = [c.statement for c in first.causes if c.verified]
    assert any(text.startswith(statement) for text in told), first.causes
    assert all(c.name in ("graph_normalisation", "self_loops") for c in first.causes), first.causes


@pytest.mark.parametrize("given", ["dense", "pairs", "outside"])
def test_the_same_normalisation_agrees(given: str) -> None:
    report = crosscheck.check(Net("right", given), Net("right", given), graph(given))
    assert report.verdict == "agree", str(report)


class Other(Net):
    """A mistake that is none of these."""

    def forward(self, x: Any, a: Any) -> Any:
        a = hat(a, "right") ** 1.5
        return self.second(torch.relu(self.first(x, a)), a)


def test_something_else_is_not_taken_for_one_of_them() -> None:
    report = crosscheck.check(Net("right", "outside"), Other("right", "outside"), graph("outside"))
    assert report.verdict == "diverge"
    named = {c.name for d in report.divergences for c in d.causes if c.verified}
    assert not named & {"graph_normalisation", "self_loops"}, named
