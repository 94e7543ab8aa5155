"""The list of porting mistakes: complete, planted, and told apart from one another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("torch")

from models.defects.rows import ROWS, Planted  # noqa: E402
from models.defects.single_rows import SINGLES, Single  # noqa: E402
from scripts.porting_rows import BEGIN, END, Marked, mark, table, write  # noqa: E402

QUICK = {9, 16, 24, 26, 29, 32, 35, 41, 44, 47, 53, 71, 72, 74}
UNEXPLAINED = {31}  # the shape differs behind the mistake


def planted(one: Single) -> Planted:
    names = frozenset(one.names)
    return Planted(one.number, "torch", one.what, one.check, one.located, names)


def by_number(chosen: bool) -> list[Single]:
    return [one for one in SINGLES if (one.number in QUICK) is chosen]


def require(one: Single) -> None:
    marked = mark(planted(one), 0)
    assert marked.found and marked.located, marked
    assert not marked.wrong, marked.wrong
    assert (marked.right is None) == (one.number in UNEXPLAINED), marked.causes


@pytest.mark.parametrize("one", by_number(True), ids=lambda one: f"{one.number} {one.what}")
def test_a_row_with_a_pair_of_its_own(one: Single) -> None:
    require(one)


@pytest.mark.slow
@pytest.mark.parametrize("one", by_number(False), ids=lambda one: f"{one.number} {one.what}")
def test_the_other_rows_with_a_pair_of_their_own(one: Single) -> None:
    require(one)


def test_the_list_is_complete_and_each_row_says_where_it_is_planted() -> None:
    assert [row.number for row in ROWS] == list(range(1, 76))
    own = {one.number for one in SINGLES}
    elsewhere = {56, 59, *range(61, 71)}  # losses and optimizers
    missing = [r.number for r in ROWS if not r.defects and not r.cannot and r.number not in own]
    assert set(missing) <= elsewhere


def test_the_table_is_put_between_its_marks(tmp_path: Path) -> None:
    one = next(s for s in SINGLES if s.number == 9)
    marked = mark(planted(one), 0)
    missed = dataclasses.replace(marked, found=False, located=False, causes=())
    text = table({9: [marked, missed]})
    assert "| 9 | GroupNorm | another eps | a GroupNorm | 1/2 | 1/2 | 1/2 | eps 0.001" in text
    assert len(text.splitlines()) == 2 + len(ROWS)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write(page, text)
    kept = page.read_text(encoding="utf-8")
    assert kept.startswith("before\n") and kept.endswith("\nafter\n")
    assert text in kept and "\nold\n" not in kept


def test_a_cause_of_another_name_is_wrong() -> None:
    one = dataclasses.replace(planted(SINGLES[0]), names=frozenset({"something else"}))
    marked: Marked = mark(one, 0)
    assert marked.wrong and marked.right is None
