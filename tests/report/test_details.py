"""Where a difference is, found in arrays; and what a check gathers of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import crosscheck
from crosscheck.cli import main
from crosscheck.compare import describe
from crosscheck.details import spread
from crosscheck.details.spread import Values, examine
from crosscheck.details.stage import DIFFERENT, OTHERS, chosen
from crosscheck.results import SiteDetail
from tests.report import samples


def look(candidate: np.ndarray, reference: np.ndarray, oracle: np.ndarray | None = None):
    site = replace(samples.site("a", 99.0), metrics=describe(candidate, reference))
    return examine(site, Values(reference, candidate, oracle))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def at(places: object, shape: tuple[int, ...] = (4, 12, 32), by: float = 0.1) -> SiteDetail:
    """Of two arrays that differ at ``places`` only."""
    reference = noise(*shape)
    candidate = reference.copy()
    candidate[places] += by
    return look(candidate, reference)


BORDER = np.ones((9, 12, 12), bool)
BORDER[:, 1:-1, 1:-1] = False


@pytest.mark.parametrize(
    ("detail", "sentence"),
    [
        (
            at(np.s_[:, :, -1]),
            "100 % of the squared difference is at index 31, the last, of axis 2",
        ),
        (at(np.s_[:, 3]), "is at index 3 of axis 1 (length 12)"),
        (at(np.s_[:, :, 8:16]), "is at indices 8 to 15 of axis 2 (length 32)"),
        (at(np.s_[:, [0, -1]]), "is at the two ends (indices 0 and 11) of axis 1"),
        (at(np.s_[:, :, 1::2]), "is at the odd indices of axis 2"),
        (at(BORDER, (9, 12, 12)), "is on the border of axes 1 and 2"),
        (at((2, 5, 7)), "is in one element of 1536: (2, 5, 7)"),
        (at(([0, 3], [1, 8], [2, 29])), "is in 2 of 1536 elements"),
        (at(np.s_[...]), "no one index or stretch of an axis has most of the squared difference"),
        (at(np.eye(20, dtype=bool), (20, 20)), "cells of the map of axes 0 and 1"),
    ],
)
def test_the_place_is_said_in_a_sentence(detail: SiteDetail, sentence: str) -> None:
    assert len(detail.where) == 1 and sentence in detail.where[0]


def test_profiles_and_map_show_one_head() -> None:
    detail = at(np.s_[:, :, 8:16])
    shares = detail.profiles[2].shares
    assert sum(shares) == pytest.approx(1.0, abs=1e-3)
    assert sum(shares[8:16]) == pytest.approx(1.0, abs=1e-3)
    assert detail.heat is not None and detail.heat.columns == 2
    cells = np.array(detail.heat.cells)
    assert cells.max() == 1.0 and not cells[:, :8].any() and cells[:, 8:16].all()


def test_long_axes_are_binned_and_their_sentences_are_not() -> None:
    detail = at(np.s_[:, 700], (3, 1000))
    assert detail.where == (
        "100 % of the squared difference is at index 700 of axis 1 (length 1000)",
    )
    assert len(detail.profiles[1].shares) == 64 and detail.profiles[1].length == 1000
    assert detail.heat is not None
    assert (len(detail.heat.cells), len(detail.heat.cells[0])) == (3, 32)
    assert np.flatnonzero(detail.heat.cells[0]).tolist() == [700 * 32 // 1000]


def test_a_large_tensor_is_seen_block_by_block_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = noise(50, 7, 40)
    candidate = reference + 0.1 * noise(50, 7, 40)[::-1]
    whole = look(candidate, reference)
    monkeypatch.setattr(spread, "BLOCK", 900)
    parts = look(candidate, reference)
    assert parts.worst == whole.worst and parts.where == whole.where
    for one, other in zip(parts.profiles, whole.profiles, strict=True):
        np.testing.assert_allclose(one.shares, other.shares, atol=2e-4)
    assert parts.heat is not None and whole.heat is not None
    np.testing.assert_allclose(parts.heat.cells, whole.heat.cells, atol=2e-3)


def test_the_worst_elements_come_with_both_sides_and_the_oracle() -> None:
    oracle = np.zeros((5, 6))
    reference = oracle.astype(np.float32) + 0.25
    candidate = reference.copy()
    candidate[4, 5], candidate[0, 1] = 9.0, 3.0
    worst = look(candidate, reference, oracle).worst
    assert [(e.index, e.candidate, e.reference, e.oracle) for e in worst] == [
        ((4, 5), 9.0, 0.25, 0.0),
        ((0, 1), 3.0, 0.25, 0.0),
    ]


def test_not_a_number_on_one_side_is_the_finding() -> None:
    reference = noise(6, 8)
    candidate = reference + 5.0
    candidate[2, :] = np.nan
    reference[4, 4] = candidate[4, 4] = np.inf
    detail = look(candidate, reference)
    assert detail.where == (
        "100 % of the NaN or Inf that only one side has is at index 2 of axis 0 (length 6)",
    )
    assert detail.profiles[0].shares == (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    assert {e.index[0] for e in detail.worst} == {2}


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e160, 1e300])
def test_squares_neither_overflow_nor_vanish(scale: float) -> None:
    reference = noise(6, 8).astype(np.float64) * scale
    candidate = reference.copy()
    candidate[:, 3] += scale
    assert "index 3 of axis 1" in look(candidate, reference).where[0]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.float16, ml_dtypes.bfloat16])
def test_any_dtype_can_be_looked_into(dtype: type) -> None:
    reference = (np.arange(48).reshape(6, 8) % 2).astype(dtype)
    candidate = reference.copy()
    candidate[1, 2] = 1 - candidate[1, 2]
    detail = look(candidate, reference)
    assert "(1, 2)" in detail.where[0] and detail.worst[0].index == (1, 2)


def test_complex_tensors_are_left_alone() -> None:
    values = Values(noise(4, 5).astype(np.complex64), noise(4, 5).astype(np.complex64))
    assert examine(samples.site("a", 99.0), values).where == ()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (3, 0), (1, 5), (2,)])
def test_tensors_of_any_shape_can_be_looked_into(shape: tuple[int, ...]) -> None:
    reference = noise(*shape)
    candidate = np.asarray(reference + np.float32(0.5))  # NumPy makes a scalar of no axes
    detail = look(candidate, reference, reference.astype(np.float64))
    assert len(detail.worst) == min(reference.size, 8)


def test_equal_arrays_have_nothing_to_show() -> None:
    detail = look(noise(4, 5), noise(4, 5))
    assert detail.where == ("both sides are equal, element by element",)
    assert not detail.profiles and detail.heat is None and not detail.worst


def test_histograms_count_every_finite_element() -> None:
    truth = noise(30, 40).astype(np.float64)
    reference = truth.astype(np.float32)
    candidate = reference.copy()
    candidate[0, 0] = np.inf
    candidate[1] *= 1.001
    detail = look(candidate, reference, truth + 1e-9)
    assert detail.values is not None and detail.errors is not None
    assert sum(detail.values.reference) == 1200 and sum(detail.values.candidate) == 1199
    assert sum(detail.errors.candidate) + detail.errors.zeros[1] == 1199
    assert -9.5 < detail.errors.low < detail.errors.high < -2


def test_large_tensors_are_sampled_for_their_histograms() -> None:
    reference = noise(300, 400)
    values = look(reference + np.float32(1e-3), reference).values
    assert values is not None and values.sampled == sum(values.reference) < reference.size


def test_so_many_sites_are_looked_into_and_no_more() -> None:
    rows = [samples.site(f"bad{i}", 99.0) for i in range(100)]
    rows += [samples.site(f"good{i}", 0.01 * i) for i in range(100)]
    names = [r.reference for r in chosen(rows)]
    assert names == [f"bad{i}" for i in range(DIFFERENT)] + [
        f"good{i}" for i in range(100 - OTHERS, 100)
    ]


# -- gathered by a check ---------------------------------------------------------------------------


def halves(x: np.ndarray) -> np.ndarray:
    return crosscheck.tap("scaled", x * np.float32(0.5))


def halves_but_the_last(x: np.ndarray) -> np.ndarray:
    y = x * np.float32(0.5)
    y[:, -1] += 0.01
    return crosscheck.tap("scaled", y)


def test_a_check_says_where_inside_the_tensor() -> None:
    report = crosscheck.check(halves, halves_but_the_last, "float32[5,9]")
    first = report.details.sites[0]
    assert first.reference == "scaled" and "index 8, the last, of axis 1" in first.where[0]
    assert first.key in {s.key for s in report.sites}


def test_a_probe_that_is_worse_brings_its_own_details() -> None:
    def late(x: np.ndarray) -> np.ndarray:
        return crosscheck.tap("scaled", halves(x) + (np.float32(np.abs(x).max() > 50) * x))

    report = crosscheck.check(halves, late, "float32[5,9]", probes=["large"])
    assert report.verdict == "diverge"
    site = next(s for s in report.sites if s.verdict == "diverge")
    detail = next(d for d in report.details.sites if d.key == site.key)
    assert site.metrics is not None and detail.worst[0].index == site.metrics.worst_index
    assert detail.worst[0].candidate == site.metrics.worst_candidate


class Linear:
    """A layer with weights of its own."""

    def __init__(self) -> None:
        self.W = noise(6, 4)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x @ self.W

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.dW = self.x.T @ dy
        return dy @ self.W.T


def test_a_step_that_differs_is_looked_into() -> None:
    optimizers = "sgd(lr=0.1)", "sgd(lr=0.2)"
    report = crosscheck.check([Linear()], [Linear()], "float32[5,6]", optimizer=optimizers)
    (detail,) = (d for d in report.details.sites if d.phase == "update")
    assert detail.key in {s.key for s in report.sites}
    for element in detail.worst:
        assert element.candidate == pytest.approx(2 * element.reference, rel=1e-5)


NET = """
import numpy as np, crosscheck
def net(x): return crosscheck.tap("scaled", x * np.float32(0.5))
def port(x): return crosscheck.tap("scaled", x * np.float32(0.51))
def broken(x):
    crosscheck.tap("scaled", x * np.float32(0.5))
    raise ValueError("no <b>such</b> shape")
"""


def run(folder: Path, *words: str):
    (folder / "net.py").write_text(NET)
    given = ["--reference", f"{folder}/net.py:net", "--input", "x=float32[5,9]", "-q"]
    return CliRunner().invoke(main, ["run", *given, *words], prog_name="crosscheck")


def test_the_page_and_the_file_know_the_command(tmp_path: Path) -> None:
    where = ["--html", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")]
    result = run(tmp_path, "--candidate", f"{tmp_path}/net.py:port", *where)
    assert result.exit_code == 1, result.output
    expected = (
        f"crosscheck run --reference {tmp_path}/net.py:net --candidate {tmp_path}/net.py:port "
        "--input 'x=float32[5,9]' --seed 0"
    )
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["details"]["command"] == expected
    page = (tmp_path / "r.html").read_text()
    assert expected.replace("'", "&#39;") in page
    again = CliRunner().invoke(
        main, ["show", str(tmp_path / "r.json"), "--html", str(tmp_path / "again.html")]
    )
    assert again.exit_code == 0 and (tmp_path / "again.html").read_text() == page


def test_a_failure_has_its_page_and_keeps_its_status(tmp_path: Path) -> None:
    where = ["--html", str(tmp_path / "r.html")]
    result = run(tmp_path, "--candidate", f"{tmp_path}/net.py:broken", *where)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    page = (tmp_path / "r.html").read_text()
    assert "could not compare" in page and "no &lt;b&gt;such&lt;/b&gt; shape" in page
    assert "compared until then (1)" in page


def test_a_page_that_cannot_be_written_hides_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    where = ["--html", str(tmp_path / "file" / "r.html")]
    result = run(tmp_path, "--candidate", f"{tmp_path}/net.py:broken", *where)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "ValueError: no <b>such</b> shape" in result.stderr
    assert "cannot write to" in result.stderr
