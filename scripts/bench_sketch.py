"""Planted defects and honest rewrites through a sketch: are they found, located, left alone?

    python scripts/bench_sketch.py [--families gpt cnn bert] [--candidates numpy keras]
        [--bytes 40000] [--per-kind 1] [--least 100] [--results F]
    python scripts/bench_sketch.py --large DIR [--candidates numpy torch] [--bytes 400000] ...

The reference of each pair is sketched once. The candidate is given the reference's weights, a
defect is planted, and one run of it is compared with the sketch. A defect counts if its ratio is
above ``--least`` in a check with the whole reference; where it stands above that in the sketch, and
at its place, the whole check, whose floors are lower, is left out. An honest rewrite must agree.
``--large`` does the same with a model of a hundred million parameters (`scripts.large_gpt`); DIR
keeps its trace and its sketch. Cases that F has already are not run again. Exit status 0 if 95 % of
the defects are located and nothing honest is condemned.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import crosscheck
from crosscheck import CrosscheckError
from crosscheck.pair import Pair, load_pair, make
from models import defects
from models.defects.systematic import systematic
from models.rewrites import REWRITES
from scripts.planted_defects import MODELS, check_defect, outcome

SEED = 1
Row = dict[str, Any]


class Sketches:
    """The sketch of a pair's reference in either mode, made once."""

    def __init__(self, pair: Pair, most: int) -> None:
        self.pair, self.most = pair, most
        self._made: dict[bool, Any] = {}

    def of(self, train: bool) -> Any:
        if train not in self._made:
            inputs = self.pair.inputs(SEED) if callable(self.pair.inputs) else self.pair.inputs
            trace = crosscheck.record(
                make(self.pair.reference), inputs, parameters=True, train=train, seed=SEED
            )
            self._made[train] = trace.sketch(self.most)
        return self._made[train]

    def check(self, name: str, model: Any, *, train: bool = False) -> Any:
        """Compare one run of a candidate that has its weights."""
        given = self.pair.candidate_inputs
        if isinstance(given, dict):
            given = given.get(name)
        return crosscheck.check(self.of(train), model, candidate_inputs=given)


def weighted(pair: Pair, name: str, *, train: bool = False) -> Any:
    """A fresh candidate with the reference's weights."""
    kept: list[Any] = []
    pair.check(
        name, alter=kept.append, seed=SEED, gradients=False, explain=False, blind_spots=False,
        train=train,
    )  # fmt: skip
    return kept[0]


def cases(pair: Pair, family: str, name: str, per_kind: int) -> Iterator[Any]:
    """People's mistakes, then the systematic ones."""
    named = (*defects.DEFECTS, *defects.SEQUENCE_DEFECTS, *defects.VISION_DEFECTS)
    yield from (d for d in named if (d.family, d.candidate) == (family, name))
    yield from systematic(pair, family, name, per_kind=per_kind)


def run(family: str, name: str, arguments: argparse.Namespace, known: set[str]) -> Iterator[Row]:
    """Every case of one pair."""
    pair = load_pair(MODELS / family)
    sketches = Sketches(pair, arguments.bytes)
    for rewrite in REWRITES[name]():
        label = f"{family}-{name}: {rewrite.name}"
        model = weighted(pair, name)
        if label not in known and rewrite.apply(model):
            yield {"set": "honest", "name": label} | _seen(sketches.check(name, model), None)
    for defect in cases(pair, family, name, arguments.per_kind):
        if defect.name in known:
            continue

        def whole(defect: Any = defect) -> Any:
            return check_defect(pair, defect, SEED, explain=False, blind_spots=False)

        def few(defect: Any = defect) -> Any:
            model = weighted(pair, name, train=defect.train)
            model = defect.inject(model) or model
            return sketches.check(name, model, train=defect.train)

        yield _row(defect, whole, few, arguments.least)


def run_large(arguments: argparse.Namespace, known: set[str]) -> Iterator[Row]:
    """Every case of the large model."""
    from scripts.large_gpt import INPUTS, Large, planted

    large = Large()
    trace, golden = arguments.large / "whole.safetensors", arguments.large / "golden.safetensors"
    if not trace.is_file():
        crosscheck.record(large.reference, INPUTS, parameters=True, seed=SEED).save(trace)
    if not golden.is_file():
        crosscheck.load_trace(trace).save(golden, sketch=arguments.bytes)
    print(f"{golden}: {golden.stat().st_size:,} bytes", flush=True)
    for name in arguments.candidates:
        honest = crosscheck.check(golden, large.candidate(name))
        if f"large-{name}: as it is" not in known:
            yield {"set": "honest", "name": f"large-{name}: as it is"} | _seen(honest, None)
        for rewrite in REWRITES[name]():
            label, model = f"large-{name}: {rewrite.name}", large.candidate(name)
            if label not in known and rewrite.apply(model):
                yield {"set": "honest", "name": label} | _seen(
                    crosscheck.check(golden, model), None
                )
        for defect in planted(name, large.candidate(name), honest, arguments.per_kind):
            if defect.name in known:
                continue
            model = large.candidate(name)
            defect.inject(model)

            def whole(model: Any = model, kept: bool = defect.keep_weights) -> Any:
                weights = "keep" if kept else "copy"
                options = {"explain": False, "blind_spots": False}
                return crosscheck.check(trace, model, weights=weights, **options)

            def few(model: Any = model) -> Any:
                return crosscheck.check(golden, model)

            yield _row(defect, whole, few, arguments.least)


def _row(defect: Any, whole: Callable[[], Any], few: Callable[[], Any], least: float) -> Row:
    """One defect: the comparison with the sketch, and if need be the check with the whole."""
    row: Row = {"set": "defect", "name": defect.name, "mistake": defect.mistake}
    row |= {"place": f"{defect.phase}: {defect.site}", "phase": defect.phase}
    begun = time.monotonic()
    try:
        row |= _seen(few(), defect)
        row["s"] = round(time.monotonic() - begun, 1)
        if row["located"] and row["ratio"] > least:
            return row
        begun = time.monotonic()
        full = outcome(whole(), SEED, defect)
        row |= {"whole": full.ratio, "whole_located": full.located, "whole_first": full.first}
        return row | {"whole_s": round(time.monotonic() - begun, 1), "counts": full.ratio > least}
    except CrosscheckError as error:
        return row | {"verdict": "error", "first": f"{type(error).__name__}: {error}"[:200]}


def _seen(report: Any, defect: Any) -> Row:
    marks = outcome(report, SEED, defect)
    place = "" if defect is None else f"{defect.phase}: {defect.site}"
    located = marks.located or marks.first.partition("#")[0] == place
    return {
        "verdict": report.verdict,
        "located": located,
        "first": marks.first,
        "ratio": min(marks.ratio, 1e300),
    }


def summary(rows: list[Row]) -> tuple[str, bool]:
    """The counts, every miss, and whether the bar is met."""
    planted = [r for r in rows if r["set"] == "defect" and r.get("counts", True)]
    honest = [r for r in rows if r["set"] == "honest"]
    alarms = [r for r in honest if r["verdict"] != "agree"]
    found = [r for r in planted if r.get("verdict") in ("suspect", "diverge")]
    located = [r for r in found if r["located"]]
    small = sum(not r.get("counts", True) for r in rows)
    lines = [
        f"{len(planted)} defects with a ratio above the least ({small} below left out): "
        f"{len(found)} found, {len(located)} located "
        f"({100 * len(located) / max(len(planted), 1):.1f} %)",
        f"checked with the whole reference: {sum('whole' in r for r in planted)}; located by that: "
        f"{sum(bool(r.get('whole_located')) for r in planted)}",
        f"by phase: {dict(Counter(r['phase'] for r in located))} of "
        f"{dict(Counter(r['phase'] for r in planted))}",
        f"{len(honest)} honest rewrites: {len(alarms)} condemned; largest ratio "
        f"{max((r['ratio'] for r in honest), default=0.0):.2f}",
    ]
    lines += [f"* false alarm: {r['name']}: {r['first']}, {r['ratio']:.3g}" for r in alarms]
    for r in planted:
        if r not in located:
            lines.append(
                f"* {r['name']}: planted {r['place']}; {r.get('verdict')} at {r['first']} "
                f"(whole reference: {r.get('whole', 0):.3g}, located {r.get('whole_located')})"
            )
    return "\n".join(lines), not alarms and len(located) >= 0.95 * len(planted)


def main() -> int:
    """Run what is asked for and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="*", default=["gpt", "cnn", "bert"])
    parser.add_argument("--candidates", nargs="*", default=["numpy", "keras"])
    parser.add_argument("--bytes", type=int, default=40_000)
    parser.add_argument("--per-kind", type=int, default=1)
    parser.add_argument("--least", type=float, default=100.0)
    parser.add_argument("--results", type=Path, help="one JSON line for each case")
    parser.add_argument(
        "--large", type=Path, metavar="DIR", help="the large model; keep files here"
    )
    arguments = parser.parse_args()
    rows: list[Row] = []
    if arguments.results and arguments.results.is_file():
        rows = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    known = {row["name"] for row in rows}
    if arguments.large:
        found = run_large(arguments, known)
    else:
        pairs = itertools.product(arguments.families, arguments.candidates)
        found = itertools.chain.from_iterable(run(*pair, arguments, known) for pair in pairs)
    for row in found:
        rows.append(row)
        print(_line(row), flush=True)
        if arguments.results:
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    text, good = summary(rows)
    print(text)
    return 0 if good else 1


def _line(row: Row) -> str:
    """One case as it ends."""
    whole = f"whole {row['whole']:.3g}, " if "whole" in row else ""
    if not row.get("counts", True):
        return f"  {row['name']}: {whole}left out"
    mark = "" if row["set"] == "honest" or row.get("located") else " <-- not located"
    ratio = f"{row.get('ratio', 0.0):.3g}"
    return f"  {row['name']}: {whole}{row['verdict']} {ratio} {row['first']}{mark}"


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
