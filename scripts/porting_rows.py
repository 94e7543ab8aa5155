"""The list of porting mistakes: which are found, located and explained where they are planted?

    python scripts/porting_rows.py [--rows N ...] [--adapters NAME ...] [--markdown F] [--per row]

Runs what `models.defects.rows` plants for each row and prints a table. Of the defects of models it
takes the first of each adapter (``--per row``: the first of all, ``--per defect``: every one).
``--markdown`` puts the table into a page between two marks (`docs/porting_bugs.md`).
Explained: a cause of the first divergence is verified and has one of the names that say the
mistake. Exit status 0 if everything planted is found and located and no verified cause has another
name.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from crosscheck.errors import CrosscheckError
from crosscheck.results import Cause
from models.defects.rows import ROWS, Per, Planted, Row, planted

BEGIN, END = "<!-- table: made by scripts/porting_rows.py -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Marked:
    """One mistake that was planted, and what the check said."""

    planted: Planted
    found: bool
    located: bool
    causes: tuple[Cause, ...]
    seconds: float
    error: str = ""

    @property
    def right(self) -> Cause | None:
        """The verified cause that says the mistake."""
        fitting = (c for c in self.causes if c.verified and c.name in self.planted.names)
        return next(fitting, None)

    @property
    def wrong(self) -> tuple[Cause, ...]:
        """Verified causes that do not."""
        return tuple(c for c in self.causes if c.verified and c.name not in self.planted.names)


def mark(one: Planted, seed: int) -> Marked:
    """Check one planted mistake."""
    begun = time.monotonic()
    try:
        report = one.check(seed)
    except CrosscheckError as error:
        return Marked(one, False, False, (), time.monotonic() - begun, str(error).splitlines()[0])
    first = report.first_divergence
    return Marked(
        one,
        report.verdict != "agree",
        one.located(report),
        () if first is None else first.causes,
        time.monotonic() - begun,
    )


def said(marked: Marked) -> str:
    """One line for the terminal."""
    marks = [
        "found" if marked.found else "MISSED",
        "located" if marked.located else "ELSEWHERE",
        "explained" if marked.right else "not explained",
    ]
    cause = marked.right or next(iter(marked.causes), None)
    lines = [
        f"  {marked.planted.number:2} {marked.planted.adapter:6} {marked.planted.where:44} "
        f"{', '.join(marks)}"
    ]
    if cause is not None:
        lines.append(f"        {'' if cause.verified else 'not verified: '}{cause.statement}")
    lines += [f"        WRONG: {wrong.statement}" for wrong in marked.wrong]
    return "\n".join([*lines, *([f"        {marked.error}"] if marked.error else [])])


def table(results: dict[int, list[Marked]]) -> str:
    """The Markdown table, one line for each row of the list."""
    lines = [
        "| # | layer | mistake | planted in | found | located | explained | the cause it names |",
        "|-|-|-|-|-|-|-|-|",
    ]
    return "\n".join([*lines, *(_line(row, results.get(row.number, [])) for row in ROWS)])


def _line(row: Row, marks: list[Marked]) -> str:
    start = f"| {row.number} | {row.layer} | {row.mistake} | "
    if not marks:
        return f"{start}{row.cannot or 'not planted yet'} | | | | |"
    causes = [cause.statement for cause in (m.right for m in marks) if cause is not None]
    counts = (
        sum(m.found for m in marks),
        sum(m.located for m in marks),
        sum(m.right is not None for m in marks),
    )
    cells = " | ".join(f"{count}/{len(marks)}" for count in counts)
    return f"{start}{_where(marks)} | {cells} | {_escaped(causes[0]) if causes else ''} |"


def _where(marks: list[Marked]) -> str:
    """Adapters of the candidates, and what the pairs of one layer are."""
    models = sorted({m.planted.adapter for m in marks if " " not in m.planted.where})
    singles = dict.fromkeys(m.planted.where for m in marks if " " in m.planted.where)
    return "; ".join([*([f"models: {', '.join(models)}"] if models else []), *singles])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def summary(results: dict[int, list[Marked]]) -> str:
    """One sentence of totals."""
    marks = [m for group in results.values() for m in group]
    rows = [number for number, group in results.items() if any(m.right for m in group)]
    return (
        f"{len(results)} of {len(ROWS)} rows planted, {len(marks)} times: found "
        f"{sum(m.found for m in marks)}, located {sum(m.located for m in marks)}, explained "
        f"{sum(m.right is not None for m in marks)} ({len(rows)} rows at least once); verified "
        f"causes that say something else: {sum(bool(m.wrong) for m in marks)}."
    )


def write(path: Path, text: str) -> None:
    """Put the table into a page, between its marks, or make the page."""
    page = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", type=int, default=[], metavar="N")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="NAME", help="of candidates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, metavar="F", help="put the table into this page")
    parser.add_argument("--per", choices=get_args(Per), default="adapter", help="how many defects")
    parser.add_argument("--times", action="store_true", help="seconds of each check")
    arguments = parser.parse_args()
    results: dict[int, list[Marked]] = defaultdict(list)
    for one in planted(set(arguments.rows), per=arguments.per):
        if arguments.adapters and one.adapter not in arguments.adapters:
            continue
        marked = mark(one, arguments.seed)
        results[one.number].append(marked)
        print(said(marked) + (f"  {marked.seconds:.1f} s" if arguments.times else ""), flush=True)
    results = dict(sorted(results.items()))
    print(f"\n{summary(results)}")
    if arguments.markdown:
        write(arguments.markdown, f"{table(results)}\n\n{summary(results)}")
    marks = [m for group in results.values() for m in group]
    return int(any(m.wrong or not (m.found and m.located) for m in marks))


if __name__ == "__main__":
    sys.exit(main())
