"""The page of `bench_verdict`: tables of what was found, and everything that missed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from scripts.by_hand import PEERS

__all__ = ["HEADING", "Row", "explained", "false_alarm", "summary", "wrong"]

Row = dict[str, Any]
HEADING = """# The verdict on a corpus, beside tolerances

Made by `python scripts/bench_verdict.py`, which says what counts as found, located and explained.
Each mistake is planted in a right port of `models/` and checked once; each honest rewrite computes
the same in another way. What a person would compare by hand (the model's outputs, then also the
gradients of all parameters) went through two libraries' assertions in the same run, with their
default tolerances and with rtol = 1e-3.

"""


def explained(row: Row) -> bool:
    return any(c[2] and c[0] in row["expected"] for c in row.get("causes", []))


def wrong(row: Row) -> bool:
    """Whether causes were verified and none is what was done. Beside the right one others may be:
    that reproduces the value just as well, on both inputs, is true of them (docs/hypotheses.md)."""
    return any(c[2] for c in row.get("causes", [])) and not explained(row)


def found(row: Row) -> bool:
    return row["verdict"] in ("suspect", "diverge")


def false_alarm(row: Row) -> bool:
    return row["set"] == "honest" and row["verdict"] != "agree"


def summary(rows: Sequence[Row]) -> str:
    """The page, without its heading."""
    planted = [r for r in rows if r["set"] == "defect"]
    honest = [r for r in rows if r["set"] == "honest"]
    lines = [f"{len(planted)} planted mistakes and {len(honest)} honest rewrites.", ""]
    lines += ["### Planted mistakes, by kind", "", *table(planted, lambda r: r["kind"]), ""]
    lines += ["### By phase", "", *table(planted, lambda r: r["phase"]), ""]
    lines += ["### By candidate", "", *table(planted, lambda r: r["candidate"]), ""]
    lines += ["### By family", "", *table(planted, lambda r: r["family"]), ""]
    lines += ["### Honest rewrites", "", *table_of_rewrites(honest), ""]
    lines += ["### The same cases through tolerances", "", *table_of_peers(planted, honest), ""]
    lines += ["### What missed", "", *missed(planted, honest)]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row], group: Callable[[Row], str]) -> list[str]:
    """Found, located, explained, wrong by group, and the total."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[group(row)].append(row)
    lines = ["| | planted | found | located | explained | wrong, verified |", "|-|-|-|-|-|-|"]
    for name, members in [*sorted(groups.items()), ("all", list(rows))]:
        counts = (
            len(members),
            sum(map(found, members)),
            sum(bool(r.get("located")) for r in members),
            sum(map(explained, members)),
            sum(map(wrong, members)),
        )
        lines.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
    return lines


def table_of_rewrites(honest: Sequence[Row]) -> Iterator[str]:
    yield from ("| candidate | rewrites | false alarms |", "|-|-|-|")
    for candidate in sorted({r["candidate"] for r in honest}):
        chosen = [r for r in honest if r["candidate"] == candidate]
        yield f"| {candidate} | {len(chosen)} | {sum(map(false_alarm, chosen))} |"
    yield f"| all | {len(honest)} | {sum(map(false_alarm, honest))} |"


def table_of_peers(planted: Sequence[Row], honest: Sequence[Row]) -> Iterator[str]:
    yield from ("| | mistakes found | honest rewrites condemned |", "|-|-|-|")
    alarms = sum(map(false_alarm, honest))
    yield f"| crosscheck | {share(sum(map(found, planted)), planted)} | {share(alarms, honest)} |"
    for peer in PEERS:
        caught, condemned = (
            sum(bool(r.get("peers", {}).get(peer)) for r in rows) for rows in (planted, honest)
        )
        yield f"| {peer} | {share(caught, planted)} | {share(condemned, honest)} |"


def share(count: int, rows: Sequence[Row]) -> str:
    return f"{count} of {len(rows)} ({100 * count / max(len(rows), 1):.1f} %)"


def missed(planted: Sequence[Row], honest: Sequence[Row]) -> Iterator[str]:
    for r in filter(false_alarm, honest):
        yield f"* false alarm: {r['name']}: {r['first']} ratio {r.get('ratio', np.nan):.3g}"
    for r in planted:
        if not found(r):
            yield f"* not found: `{r['name']}` ({r['mistake']}): {r['first'] or 'agrees'}"
        elif not r["located"]:
            yield f"* not located: `{r['name']}`, planted {r['site']}, named {r['first']}"
        if wrong(r):
            said = "; ".join(c[1] for c in r["causes"] if c[2])
            yield f"* wrong cause: `{r['name']}` ({r['mistake']}): {said}"
    unexplained = [r["name"] for r in planted if not explained(r) and r["expected"]]
    if unexplained:
        names = ", ".join(f"`{n}`" for n in unexplained)
        yield f"* not explained, {len(unexplained)}: {names}"
