"""The two levels of effort: which runs they make, what they say, and that they agree."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import crosscheck
from crosscheck.adapters import adapt
from crosscheck.cli import main
from crosscheck.cotangents import ReferenceCotangents
from crosscheck.errors import InvalidArgument
from crosscheck.judging.sparing import CERTAIN
from crosscheck.observers import Forcer, Recorder
from crosscheck.oracle import oracle
from crosscheck.run import Runner

from .kit import Run

ROOT = Path(__file__).resolve().parents[2]
X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


class Block(nn.Module):
    """Attention-like: a sum over rows in code between the layers, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.key, self.out = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = self.key(self.norm(x))
        return x + self.out(torch.softmax(k @ k.T, -1) @ k)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


class Port(Net):
    """The same by other sums: in float64, block by block, and rounded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            k = block.key(block.norm(x))
            mixed = torch.einsum("ij,jk->ik", torch.softmax(torch.einsum("ik,jk", k, k), -1), k)
            x = block.out(mixed) + x
        return self.head(x)


def net(kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind().eval()


def test_quick_makes_one_run_of_each_side(runs: list[Run]) -> None:
    report = crosscheck.check(net(), net(Port), X, effort="quick")
    assert report.verdict == "agree"
    assert runs == [("reference", False, True), ("candidate", False, True)]


def test_thorough_makes_no_run_twice(runs: list[Run]) -> None:
    report = crosscheck.check(net(), net(Port), X, blind_spots=False)
    assert report.verdict == "agree"
    assert runs[:3] == [
        ("reference", False, True),
        ("candidate", False, False),  # free
        ("candidate", False, True),  # forced
    ]
    # The oracle, where it is needed: forced, and its backward pass if that is.
    assert runs[3:] in ([], [("reference", True, False)], [("reference", True, True)])


def test_of_equal_sides_nothing_needs_the_oracle(runs: list[Run]) -> None:
    report = crosscheck.check(net(), net(), X, blind_spots=False)
    assert report.verdict == "agree"
    assert ("reference", True, True) not in runs
    assert all(site.ratio <= CERTAIN for site in report.sites)
    assert all(s.free_ratio is not None for s in report.sites if s.phase == "forward")


def test_quick_says_what_it_is_and_what_it_missed() -> None:
    report = crosscheck.check(net(), net(Port), X, effort="quick")
    assert report.environment["effort"] == "quick"
    assert any("VJP" in line for line in report.coverage.not_compared)
    assert not report.coverage.blind_spots
    kinds = {site.kind for site in report.sites}
    assert kinds == {"parameter", "activation", "input", "cotangent"}
    assert all(s.free_ratio == s.ratio for s in report.sites if s.phase != "weights")
    thorough = crosscheck.check(net(), net(Port), X)
    assert thorough.environment["effort"] == "thorough"
    assert len(thorough.sites) > len(report.sites)


def scaled(model: Net) -> None:
    model.blocks[1].out.register_forward_hook(lambda m, args, y: 1.001 * y)


def wrong_vjp(model: Net) -> None:
    def send(module: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
        return y.detach() + 2.0 * (y - y.detach())

    model.blocks[0].key.register_forward_hook(send)


@pytest.mark.parametrize("defect", [scaled, wrong_vjp])
def test_what_quick_cannot_clear_is_checked_thoroughly(defect: Callable[[Net], None]) -> None:
    candidate = net(Port)
    defect(candidate)
    quick = crosscheck.check(net(), candidate, X, effort="quick")
    thorough = crosscheck.check(net(), candidate, X)
    assert quick.verdict == thorough.verdict == "diverge"
    assert quick.first_divergence == thorough.first_divergence
    assert quick.environment["effort"] == "thorough"
    assert quick.notes[0].startswith('effort="quick" could not clear')


def test_a_backward_mistake_still_has_its_free_ratios() -> None:
    candidate = net(Port)
    wrong_vjp(candidate)
    report = crosscheck.check(net(), candidate, X)
    behind = [s for s in report.sites if s.reference.startswith("blocks.0.norm")]
    assert any((s.free_ratio or 0.0) > 32.0 and s.verdict == "agree" for s in behind)


def test_other_weights_are_seen_at_once() -> None:
    candidate = net(Port)
    with torch.no_grad():
        candidate.head.weight[0, 0] += 1.0
    report = crosscheck.check(net(), candidate, X, weights="keep", effort="quick")
    assert report.first_divergence is not None
    assert report.first_divergence.phase == "weights"


def test_layers_that_run_in_another_order_are_loaded_by_it(runs: list[Run]) -> None:
    class Swapped(nn.Module):
        def __init__(self, *, turned: bool) -> None:
            super().__init__()
            self.turned = turned
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = (self.b, self.a) if self.turned else (self.a, self.b)
            return second(torch.tanh(first(x)))

    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q9, self.z1 = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q9(torch.tanh(self.z1(x)))

    torch.manual_seed(1)
    assert crosscheck.check(Swapped(turned=False), Renamed(), X, effort="quick").verdict == "agree"
    assert crosscheck.check(Swapped(turned=True), Renamed(), X, effort="quick").verdict == "agree"


def test_the_argument_is_validated() -> None:
    with pytest.raises(InvalidArgument, match=r'effort=.brief.: must be "quick" or "thorough"'):
        crosscheck.check(net(), net(), X, effort="brief")
    with pytest.raises(InvalidArgument, match=r'optimizer= needs effort="thorough"'):
        crosscheck.check(net(), net(), X, effort="quick", optimizer="sgd(lr=0.1)")


def test_the_command_line(tmp_path: Any) -> None:
    pair = tmp_path / "pair.py"
    pair.write_text(
        "import numpy as np, crosscheck\n"
        "def double(x):\n    return 2.0 * x\n"
        "pair = crosscheck.Pair(lambda x: x + x, double, {'x': 'float32[3]'}, gradients=False)\n"
    )
    done = CliRunner().invoke(main, ["run", str(pair), "--effort", "quick", "--json", "-", "-q"])
    assert done.exit_code == 0, done.output
    assert '"effort": "quick"' in done.output


# -- what makes it cheap ---------------------------------------------------------------------------


class Overwriting(nn.Module):
    """Writes to a value that was shown, and keeps another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.state = torch.zeros(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = torch.sigmoid(y)
        y.detach().mul_(3.0)
        return self.second(z)


def test_values_that_the_model_overwrites_are_those_that_were_seen() -> None:
    torch.manual_seed(0)
    model = Overwriting()
    seen = Runner("model", adapt(model), {"x": X}).record(passive=True)
    expected = X @ model.first.weight.detach().numpy().T + model.first.bias.detach().numpy()
    np.testing.assert_allclose(seen.values["activation", "first"], expected, rtol=1e-5, atol=1e-6)


def test_values_are_not_copied_where_nobody_writes_to_them() -> None:
    model = net()
    kept: list[torch.Tensor] = []
    model.head.register_forward_hook(lambda m, args, y: kept.append(y))
    seen = Runner("model", adapt(model), {"x": X}).record(passive=True)
    assert np.shares_memory(seen.values["activation", "head"], kept[0].detach().numpy())


def test_what_the_model_keeps_is_copied() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = self.inner(x)
            return torch.tanh(self.kept)

    model = Keeping()
    seen = Runner("model", adapt(model), {"x": X}).record(passive=True)
    assert not np.shares_memory(seen.values["activation", "inner"], model.kept.detach().numpy())


def test_layers_that_nobody_needs_are_not_computed() -> None:
    model = net()
    free = Runner("model", adapt(model), {"x": X}).record(passive=True)
    whole, part = (
        _forced(model, free.values, frozenset(needless)) for needless in ((), ("blocks.0.key",))
    )
    assert "forward" not in vars(model.blocks[0].key)
    for key, value in whole.items():
        if key[1] != "blocks.0.key":
            np.testing.assert_array_equal(part[key], value, err_msg=str(key))
    assert part["activation", "blocks.0.key"].dtype == np.float64
    known, computed = (run["activation", "blocks.0.key"] for run in (part, whole))
    np.testing.assert_array_equal(known, free.values["activation", "blocks.0.key"])
    assert not np.array_equal(known, computed)


def test_cotangents_pass_through_where_nothing_in_front_is_needed() -> None:
    """Tokens have no gradient: only a layer that is left out leads back from the kept one."""
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    tokens = {"x": np.arange(8).reshape(2, 4)}
    runner = Runner("reference", adapt(model), tokens, ReferenceCotangents(0))
    forced = runner.record().values
    whole = oracle(runner, forced)
    part = oracle(runner, forced, needless=frozenset({"0", "1", "3"}))
    assert whole is not None and part is not None
    for key in (("cotangent", "2"), ("input_cotangent", "2")):
        assert np.abs(whole.values[key]).max() > 0.0
        np.testing.assert_allclose(part.values[key], whole.values[key], rtol=1e-6, atol=1e-9)


def _forced(model: nn.Module, values: Any, needless: frozenset[str]) -> dict[Any, np.ndarray]:
    recorder = Recorder()
    sites = {k: v for k, v in values.items() if k == ("activation", "blocks.0.key")}
    runner = Runner("model", adapt(model), {"x": X})
    runner.record(Forcer(sites, needless=needless), recorder=recorder, float64=True)
    return dict(recorder.values)


# -- cost at start ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded_for_help() -> Iterator[set[str]]:
    code = (
        "import sys\nfrom crosscheck.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Usage" in done.stdout
    yield set(done.stderr.splitlines()[-1].split()[1:])


def test_help_loads_nothing_heavy(loaded_for_help: set[str]) -> None:
    heavy = {"torch", "tensorflow", "keras", "jax", "onnx", "onnxruntime", "numba", "matplotlib"}
    assert not loaded_for_help & (heavy | {"numpy", "scipy", "ray", "jinja2", "ml_dtypes"})
