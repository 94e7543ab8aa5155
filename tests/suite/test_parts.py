"""A check in parts says what the whole check says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import crosscheck
from crosscheck.errors import CannotSplit, InvalidArgument
from crosscheck.judging.parts import NotCleared, joined
from crosscheck.report.json import to_dict
from crosscheck.results import Report

torch = pytest.importorskip("torch")

from crosscheck.adapters.torch.adapter import TorchAdapter  # noqa: E402

X = {"x": "float32[3,8]"}


class Block(torch.nn.Module):
    def __init__(self, width: int, called: list[Any]) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(width), torch.nn.Linear(width, width)
        self.act, self.called = torch.nn.GELU(), called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.called.append(self)
        return x + self.act(self.fc(self.norm(x)))


class Net(torch.nn.Module):
    """Blocks in a row; ``wrong`` says which is off, forward or backward."""

    def __init__(self, wrong: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = None):
        super().__init__()
        self.called: list[Any] = []
        self.blocks = torch.nn.ModuleList(Block(8, self.called) for _ in range(6))
        self.head, self.wrong = torch.nn.Linear(8, 5), wrong or {}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.blocks):
            x = self.wrong.get(i, lambda x: x)(block(x))
        return self.head(x)


def check(candidate: Net, **options: Any) -> Report:
    return crosscheck.check(Net(), candidate, X, **options)


def facts(report: Report) -> dict[str, Any]:
    found = to_dict(report)
    found["sites"] = sorted(found["sites"], key=str)
    for key in ("environment", "details"):
        found.pop(key)
    return found


def in_parts(count: int, candidate: Callable[[], Net], **options: Any) -> Report:
    parts = [check(candidate(), part=(k + 1, count), **options) for k in range(count)]
    return joined(parts)


@pytest.mark.parametrize(
    ("count", "options"),
    [(3, {}), (2, {"train": True}), (2, {"loss": "mse"})],
)
def test_parts_are_the_whole(count: int, options: dict[str, Any]) -> None:
    if "loss" in options:
        options = {**options, "targets": "float32[3,5]"}
    whole = check(Net(), **options)
    assert whole.verdict == "agree"
    assert facts(in_parts(count, Net, **options)) == facts(whole)


def test_each_part_is_a_part() -> None:
    """No comparison is made twice, and layers of other parts are left out."""
    sites, calls = [], []
    for k in range(3):
        candidate = Net()
        report = check(candidate, part=(k + 1, 3), blind_spots=False)
        sites += [s.key for s in report.sites if s.phase != "weights"]
        calls.append(len(candidate.called))
    assert len(sites) == len(set(sites))
    whole = Net()
    check(whole, blind_spots=False)
    assert max(calls) < len(whole.called)


class Wrapped(torch.nn.Module):
    """A block that returns its tensor in something else."""

    def __init__(self, inside: Block, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inside, self.wrap = inside, wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.inside(x))


@pytest.mark.parametrize("key", [0, 1, "h"])
def test_layers_that_return_more_than_a_tensor(key: Any) -> None:
    """What stands for a layer of another part looks like what the layer returns."""
    wraps = {0: lambda x: (x, None), 1: lambda x: [None, x], "h": lambda x: {"h": x}}

    def net() -> Net:
        made = Net()
        for i in (1, 4):
            made.blocks[i] = Wrapped(made.blocks[i], wraps[key])  # type: ignore[arg-type]
            made.wrong[i] = lambda returned: returned[key]
        return made

    whole = crosscheck.check(net(), net(), X)
    assert whole.verdict == "agree"
    parts = [crosscheck.check(net(), net(), X, part=(k + 1, 3)) for k in range(3)]
    assert facts(joined(parts)) == facts(whole)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, d: torch.Tensor) -> torch.Tensor:
        return d * 1.01


@pytest.mark.parametrize(
    ("place", "mistake"),
    [(1, lambda x: x * 1.001), (2, Backward.apply)],
    ids=["forward", "backward"],
)
def test_a_mistake_anywhere_is_found_by_some_part(place: int, mistake: Any) -> None:
    """At a border between two parts as well; the whole check then says what it is."""
    raised = 0
    for k in range(3):
        try:
            check(Net({place: mistake}), part=(k + 1, 3), blind_spots=False)
        except NotCleared:
            raised += 1
    assert raised


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"part": (0, 2)}, "give the number of a part, from 1"),
        ({"part": (3, 2)}, "give the number of a part, from 1"),
        ({"part": (1, 2), "effort": "quick"}, 'with effort="quick" cannot be split'),
        ({"part": (1, 2), "optimizer": "sgd(lr=0.1)"}, "with optimizer= cannot be split"),
        ({"part": (1, 2), "seeds": 2}, "cannot be split"),
    ],
)
def test_what_cannot_be_split(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        check(Net(), **options)


class NoBackend(Exception):
    """A run that must not be made."""


class Unknown(TorchAdapter):
    """An adapter without something, that must not run."""

    def __init__(self, **capabilities: bool) -> None:
        super().__init__(Net())
        self.capabilities = replace(self.capabilities, **capabilities)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        raise NoBackend


@pytest.mark.parametrize(
    ("reference", "candidate", "reason"),
    [
        ({"float64": False}, {}, r"whose reference \(torch\) has no float64.* cannot be split"),
        ({"forcing": False}, {}, r"a recorded run \(torch\) cannot be split; check it as a whole"),
        ({}, {"forcing": False}, "a recorded run"),
    ],
)
def test_sides_that_cannot_be_split(reference: Any, candidate: Any, reason: str) -> None:
    """Nothing is run to find out."""
    sides = Unknown(**reference), Unknown(**candidate)
    with pytest.raises(CannotSplit, match=reason):
        crosscheck.check(*sides, X, part=(1, 2))
    with pytest.raises(NoBackend):
        crosscheck.check(Unknown(), Unknown(float64=False), X, part=(1, 2))


def test_parts_that_are_none() -> None:
    first = check(Net(), part=(1, 2))
    for wrong in ([], [first], [first, first], [check(Net())]):
        with pytest.raises(InvalidArgument, match="no parts of one check"):
            joined(wrong)
