"""A check under ``max_memory`` says what it says without, and stays within the limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import crosscheck
from crosscheck import CannotCompare, InvalidArgument, Pair, Report
from crosscheck.cli import main
from tests.check.numpy_models import LN, Affine, Stack, Tanh

WIDTH, ROWS, DEPTH = 32, 512, 4
INPUTS = f"float32[{ROWS},{WIDTH}]"  # 64 KiB for every value: no run fits into 1 MiB
LIMIT = "1MiB"


class Norm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


def chain(norm: type[nn.LayerNorm] = nn.LayerNorm, *, eps: dict[int, float] | None = None) -> Any:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(DEPTH):
        wrong = (eps or {}).get(i, 1e-5)
        layers += [norm(WIDTH, eps=wrong), nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    return nn.Sequential(*layers).eval()


def by_hand() -> Stack:
    return Stack(
        *(part for _ in range(DEPTH) for part in (LN(WIDTH), Affine(WIDTH, WIDTH), Tanh()))
    )


def said(report: Report) -> tuple[Any, ...]:
    coverage = (report.coverage.aligned, report.coverage.not_compared, report.coverage.blind_spots)
    return report.verdict, report.sites, report.divergences, coverage, report.notes


CASES: dict[str, Any] = {
    "honest": lambda: chain(Norm),
    "defect": lambda: chain(Norm, eps={2: 1e-3}),
    "by hand": by_hand,
}


@pytest.mark.parametrize("case", CASES)
def test_a_limit_changes_nothing_that_is_said(case: str) -> None:
    with_limit = crosscheck.check(chain(), CASES[case](), INPUTS, max_memory=LIMIT)
    without = crosscheck.check(chain(), CASES[case](), INPUTS)
    assert said(with_limit) == said(without)
    assert with_limit.verdict == ("diverge" if case == "defect" else "agree")
    if case == "defect":
        assert with_limit.first_divergence is not None
        assert with_limit.first_divergence.reference == "6"
        assert [c.name for c in with_limit.first_divergence.causes][:1] == ["norm_eps"]


def test_a_training_step_within_a_limit() -> None:
    options: dict[str, Any] = {"optimizer": "adamw(lr=1e-3)", "steps": 2, "train": True}
    with_limit = crosscheck.check(chain(), chain(Norm), INPUTS, max_memory=LIMIT, **options)
    assert said(with_limit) == said(crosscheck.check(chain(), chain(Norm), INPUTS, **options))


@pytest.mark.parametrize("limit", ["much", 12, -1])
def test_what_is_no_limit_is_refused(limit: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_memory="):
        crosscheck.check(chain(), chain(), INPUTS, max_memory=limit)


def test_a_folder_that_takes_no_file_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    lines: list[str] = []
    with pytest.raises(CannotCompare, match="no scratch file"):
        crosscheck.check(chain(), chain(), INPUTS, max_memory=LIMIT, progress=lines.append)
    assert lines == []


def test_nothing_is_left_when_a_check_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def interrupt(line: str) -> None:
        if line.startswith("align"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crosscheck.check(chain(), chain(Norm), INPUTS, max_memory=LIMIT, progress=interrupt)
    assert os.listdir(tmp_path) == []


def test_a_pair_takes_a_limit() -> None:
    pair = Pair(chain, lambda: chain(Norm), INPUTS, max_memory=LIMIT)
    assert pair.check().verdict == "agree"


PAIR = """
import crosscheck
from tests.memory.test_checks_within_limits import INPUTS, Norm, chain

pair = crosscheck.Pair(chain, lambda: chain(Norm), INPUTS)
"""


def test_the_command_line_takes_a_limit(tmp_path: Path) -> None:
    (tmp_path / "limited_pair.py").write_text(PAIR)
    pair = str(tmp_path / "limited_pair.py")
    done = CliRunner().invoke(main, ["run", pair, "--max-memory", LIMIT, "-q"])
    assert done.exit_code == 0, done.output
    wrong = CliRunner().invoke(main, ["run", pair, "--max-memory", "much", "-q"])
    assert wrong.exit_code == 2 and "max_memory='much'" in wrong.output


MEASURED = """
import json, resource, sys
import numpy as np
import torch
from scripts.bench_scale import build
import crosscheck

depth, width, rows, limit = map(int, sys.argv[1:])
rng = np.random.default_rng(0)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
x = rng.standard_normal((1, rows, width), np.float32)
crosscheck.check(*build(1, width), x, max_memory=limit)  # loads what is needed for such a model
models = build(depth, width)
before = peak()
report = crosscheck.check(*models, x, blind_spots=False, max_memory=limit)
values = sum(4 * np.prod(s.shape) for s in report.sites if s.kind == "activation")
print(json.dumps([report.verdict, len(report.sites), int(values), peak() - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are counted in other units")
@pytest.mark.parametrize(
    ("depth", "rows", "limit", "beside"),
    [
        (40, 1024, 4 * 2**20, 12 * 2**20),
        pytest.param(80, 1024, 8 * 2**20, 12 * 2**20, marks=pytest.mark.slow),
    ],
)
def test_activations_of_ten_times_the_limit_stay_within_it(
    tmp_path: Path, depth: int, rows: int, limit: int, beside: int
) -> None:
    """``beside``: what the interpreter and its report take, and one layer's values in float64."""
    arguments = [str(n) for n in (depth, 64, rows, limit)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # Numba alone takes more than what is measured here.
        env={**os.environ, "TMPDIR": str(tmp_path), "CROSSCHECK_KERNELS": "numpy"},
    )
    assert done.returncode == 0, done.stderr
    verdict, sites, values, over = json.loads(done.stdout.splitlines()[-1])
    assert verdict == "agree" and sites == 20 * depth + 4
    assert values > 10 * limit
    assert over < limit + beside, f"{over / 2**20:.0f} MiB over the models"
    assert os.listdir(tmp_path) == []
