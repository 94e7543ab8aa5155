"""Honest ports and planted defects: are the first left alone, the second found where they are?

    python scripts/planted_defects.py [--seeds 20] [--defect-seeds 5] [-k WORD] [--markdown F]

Honest: every port of each model family must agree on every seed: by hand in NumPy, in Keras, in
Flax, and the reference's own ONNX export at optimisation levels none and all; and NumPy against
Keras. Planted: every defect of `models.defects` must be found (the verdict is not `agree`) and
located: the first divergence names the right phase and the layer or parameter that was altered.
What is not installed is left out and said. Exit status 0 if all of that holds.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from crosscheck.pair import Pair, load_pair
from crosscheck.results import Report
from models.defects import DEFECTS, GRAPH_DEFECTS, Defect

MODELS = Path(__file__).resolve().parent.parent / "models"
FAMILIES = ("mlp", "cnn", "gpt")
NEEDS = {"keras": "tensorflow", "jax": "flax", "onnx": "onnxruntime"}
PLANTED = (*DEFECTS, *GRAPH_DEFECTS)


def installed(candidate: str) -> bool:
    """Whether the framework of a candidate (``onnx-optimized``) is there."""
    needed = NEEDS.get(candidate.partition("-")[0])
    return needed is None or importlib.util.find_spec(needed) is not None


@dataclass(frozen=True)
class Outcome:
    """One check of an honest pair or of a planted defect."""

    seed: int
    verdict: str
    located: bool
    first: str
    ratio: float


def numpy_against_keras(pair: Pair) -> Pair:
    """The pair with its trained NumPy net as the reference and Keras as the candidate."""
    trained: list[Any] = []
    pair.check("numpy", alter=trained.append)  # leaves the reference's weights in the net
    layouts = pair.candidate_inputs or {}
    return Pair(
        trained[0],
        {"keras": pair.candidate["keras"]},
        pair.inputs,
        candidate_inputs=layouts,
        name=f"{pair.name} (numpy)",
    )


def honest_pairs() -> Iterator[tuple[str, Pair, str]]:
    """(label, pair, candidate) of the honest ports."""
    for family in FAMILIES:
        pair = load_pair(MODELS / family)
        for candidate in pair.candidates():
            if installed(candidate):
                yield f"{family}: torch - {candidate}", pair, candidate
        if installed("keras"):
            yield f"{family}: numpy - keras", numpy_against_keras(pair), "keras"


def check_defect(pair: Pair, defect: Defect, seed: int, **more: Any) -> Report:
    """Plant a defect in a fresh candidate and check it; ``more`` goes to the check."""
    options: dict[str, Any] = {"seed": seed, "train": defect.train, **more}
    if NEEDS.get(defect.candidate) == "onnxruntime":
        options["weights"] = "keep"  # an export has its own; a copy would mend them
    if not defect.keep_weights:
        return pair.check(defect.candidate, alter=defect.inject, **options)
    right: list[Any] = []
    pair.check(defect.candidate, alter=right.append, gradients=False, **options)
    defect.inject(right[0])
    return pair.check(defect.candidate, alter=lambda _: right[0], weights="keep", **options)


def outcome(report: Report, seed: int, defect: Defect | None = None) -> Outcome:
    """Mark a report against what was planted (nothing: an honest port)."""
    first = report.first_divergence
    place = "" if first is None else f"{first.phase}: {first.candidate or first.reference}"
    located = defect is not None and place == f"{defect.phase}: {defect.site}"
    ratio = max((r.ratio for r in report.sites), default=0.0) if first is None else first.ratio
    return Outcome(seed, report.verdict, located, place, ratio)


def run_honest(seeds: int, word: str) -> dict[str, list[Outcome]]:
    """Check the honest ports."""
    results: dict[str, list[Outcome]] = {}
    for label, pair, candidate in honest_pairs():
        if word not in label:
            continue
        begun = time.monotonic()
        results[label] = [outcome(pair.check(candidate, seed=seed), seed) for seed in range(seeds)]
        alarms = [o for o in results[label] if o.verdict != "agree"]
        worst = max(o.ratio for o in results[label])
        print(
            f"  {label:24} {len(alarms)} false alarms in {seeds} seeds; largest ratio "
            f"{worst:.1f}; {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        for o in alarms:
            print(f"      seed {o.seed}: {o.verdict} {o.first} ratio {o.ratio:.3g}")
    return results


def run_defects(seeds: int, word: str) -> dict[Defect, list[Outcome]]:
    """Check every defect."""
    pairs = {family: load_pair(MODELS / family) for family in FAMILIES}
    results: dict[Defect, list[Outcome]] = {}
    for defect in PLANTED:
        if word not in defect.name or not installed(defect.candidate):
            continue
        results[defect] = [
            outcome(check_defect(pairs[defect.family], defect, seed), seed, defect)
            for seed in range(seeds)
        ]
        found = sum(o.verdict != "agree" for o in results[defect])
        located = sum(o.located for o in results[defect])
        smallest = min(o.ratio for o in results[defect])
        flag = "" if found == located == seeds else "   <-- missed"
        print(
            f"  {defect.name:44} {defect.phase:18} found {found}/{seeds} located "
            f"{located}/{seeds} ratio from {smallest:.3g}{flag}",
            flush=True,
        )
        if flag:
            for o in results[defect]:
                if not o.located:
                    print(
                        f"      seed {o.seed}: {o.verdict}; named {o.first or 'nothing'}, "
                        f"planted {defect.phase}: {defect.site}"
                    )
    return results


def summary(honest: dict[str, list[Outcome]], planted: dict[Defect, list[Outcome]]) -> str:
    """The Markdown table of the README."""
    rows = [
        "| family | honest checks | false alarms | largest ratio | defects | checks | found "
        "| located |",
        "|-|-|-|-|-|-|-|-|",
    ]
    groups: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, int] = defaultdict(int)
    for label, outcomes in honest.items():
        groups[label.partition(":")[0]]["honest"] += outcomes
    for defect, outcomes in planted.items():
        groups[defect.family]["planted"] += outcomes
        counts[defect.family] += 1
    for family in [*FAMILIES, "all"]:
        chosen = FAMILIES if family == "all" else (family,)
        good = [o for f in chosen for o in groups[f]["honest"]]
        bad = [o for f in chosen for o in groups[f]["planted"]]
        rows.append(
            f"| {family} | {len(good)} | {sum(o.verdict != 'agree' for o in good)} | "
            f"{max((o.ratio for o in good), default=0.0):.1f} | "
            f"{sum(counts[f] for f in chosen)} | {len(bad)} | "
            f"{sum(o.verdict != 'agree' for o in bad)} | {sum(o.located for o in bad)} |"
        )
    return "\n".join(rows)


def main() -> int:
    """Run both halves and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="seeds of each honest pair")
    parser.add_argument("--defect-seeds", type=int, default=5, help="seeds of each defect")
    parser.add_argument("-k", default="", metavar="WORD", help="only what has WORD in its name")
    parser.add_argument("--markdown", metavar="F", help="also write the table to a file")
    arguments = parser.parse_args()
    absent = [name for name in NEEDS if not installed(name)]
    if absent:
        print(f"not installed, left out: {', '.join(absent)}")
    honest: dict[str, list[Outcome]] = {}
    if arguments.seeds:
        print(f"honest ports, {arguments.seeds} seeds each")
        honest = run_honest(arguments.seeds, arguments.k)
    planted: dict[Defect, list[Outcome]] = {}
    if arguments.defect_seeds:
        print(f"planted defects, {arguments.defect_seeds} seeds each")
        planted = run_defects(arguments.defect_seeds, arguments.k)
    table = summary(honest, planted)
    print(f"\n{table}")
    if arguments.markdown:
        Path(arguments.markdown).write_text(table + "\n", encoding="utf-8")
    alarms = any(o.verdict != "agree" for group in honest.values() for o in group)
    missed = any(not o.located or o.verdict == "agree" for g in planted.values() for o in g)
    return int(alarms or missed)


if __name__ == "__main__":
    sys.exit(main())
