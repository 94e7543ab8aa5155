"""The verdict on a large corpus, beside tolerances: found, located, explained; false alarms.

    python scripts/bench_verdict.py [--families mlp cnn ...] [--candidates numpy keras ...]
                                    [--per-kind N] [--most N] [--jobs N]
                                    [--results F.jsonl] [--markdown F.md]

Two sets. Planted mistakes: those of `models.defects` that people made, and the systematic ones, a
few kinds at layer after layer of every pair. Honest rewrites: `models.rewrites`, and every level of
ONNX Runtime's optimiser. Each is checked once, and what a person would compare by hand (the model's
outputs; those and the gradients of all parameters) is given to `np.testing.assert_allclose` and
`torch.testing.assert_close` as well, in the same run.

Found: the verdict is not "agree". Located: the first divergence names the layer or parameter that
was changed, and the phase. Explained: a cause that was verified is the mistake that was made. A
verified cause that is not is wrong; there must be none, as there must be no false alarm.

Each family and candidate runs in a process of its own; results are appended as they come, and what
a results file already holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from crosscheck.errors import CrosscheckError
from crosscheck.pair import Pair, load_pair
from scripts.by_hand import PEERS, condemned_by, values_by_hand
from scripts.planted_defects import MODELS, check_defect, installed, outcome
from scripts.verdict_page import HEADING, Row, false_alarm, summary, wrong

CANDIDATES = ("numpy", "torch", "keras", "jax", "onnx")
LEVELS = ("none", "basic", "extended", "all")
SYSTEMATIC = {  # which cause says what was done; rounding to float16 is rounding to TF32 as well
    "systematic: scaled": {"scaled"},
    "systematic: shifted": {"shifted"},
    "systematic: sign": {"sign", "scaled"},
    "systematic: rolled": {"rolled"},
    "systematic: last-example": {"zero_slice"},
    "systematic: bfloat16": {"cast"},
    "systematic: float16": {"cast"},
    "systematic: eps-tenfold": {"norm_eps"},
    "systematic: eps-tenth": {"norm_eps"},
    "systematic: sent-back-doubled": {"scaled", "doubled"},
    "systematic: sent-back-sign": {"sign", "scaled"},
    "systematic: sent-back-near": {"scaled"},
    "systematic: detached": {"zero"},
    "systematic: weight-scaled": {"scaled"},
    "systematic: weight-float16": {"truncated"},
    "systematic: weight-not-loaded": {"not_loaded"},
    "systematic: weight-transposed": {"permuted_axes"},
    "systematic: weights-exchanged": {"another_parameter"},
    "systematic: gradient-halved": {"scaled"},
    "systematic: gradient-sign": {"sign", "scaled"},
}


def families() -> list[str]:
    """Every folder of the zoo that holds a pair."""
    return sorted(path.parent.name for path in MODELS.glob("*/pair.py"))


def pair_of(family: str) -> Pair:
    """The family's pair with one candidate more: the reference's own code."""
    pair = load_pair(MODELS / family)
    return Pair(
        pair.reference,
        {**pair.candidate, "torch": pair.reference},
        pair.inputs,
        candidate_inputs=pair.candidate_inputs,
        name=pair.name,
        **pair.options,
    )


# -- one family, one candidate ---------------------------------------------------------------------


def defects_of(
    pair: Pair, family: str, candidate: str, per_kind: int, most: int = 10**6
) -> Iterator[Any]:
    """The mistakes that people made, then the systematic ones, of which ``most`` are drawn."""
    from models import defects
    from models.defects.graphs import systematic_graphs
    from models.defects.systematic import systematic

    named = (*defects.DEFECTS, *defects.GRAPH_DEFECTS)
    named += (*getattr(defects, "VISION_DEFECTS", ()), *getattr(defects, "SEQUENCE_DEFECTS", ()))
    yield from (d for d in named if (d.family, d.candidate) == (family, candidate))
    if candidate == "onnx":
        made = systematic_graphs(pair, family, per_kind=per_kind)
    else:
        made = systematic(pair, family, candidate, per_kind=per_kind)
    rng = random.Random(f"{family} {candidate}")  # noqa: S311  (a choice, not a secret)
    yield from rng.sample(made, min(most, len(made)))


def honest_of(family: str, pair: Pair, candidate: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, what checks it); a rewrite that suits no layer is left out."""
    from models.rewrites import REWRITES

    if candidate == "onnx":
        import crosscheck

        for level in LEVELS:
            graph = crosscheck.adapt(pair.reference(), export="onnx", optimization=level)
            exported = Pair(pair.reference, graph, pair.inputs, name=f"{family}: {level}")
            yield f"optimiser: {level}", lambda p=exported, g=graph: (p.check(seed=1), g)
        return

    def rewritten(rewrite: Any) -> Any:
        kept: list[Any] = []

        def apply(model: Any) -> None:
            kept.append(model)
            if not rewrite.apply(model):
                raise LookupError

        return pair.check(candidate, seed=1, alter=apply), kept[0]

    for rewrite in REWRITES[candidate]():
        yield rewrite.name, lambda r=rewrite: rewritten(r)


def run_one(
    family: str, candidate: str, per_kind: int, most: int, known: set[str]
) -> Iterator[Row]:
    """Every case of a family and a candidate that is not known yet."""
    pair = pair_of(family)
    for name, check in honest_of(family, pair, candidate):
        label = f"{family}-{candidate}: {name}"
        if label in known:
            continue
        row = {"name": label, "family": family, "candidate": candidate, "set": "honest"}
        yield from _checked(row | {"kind": name}, pair, check, None)
    for defect in defects_of(pair, family, candidate, per_kind, most):
        if defect.name not in known:
            row = {"name": defect.name, "family": family, "candidate": candidate, "set": "defect"}
            row |= {"kind": kind_of(defect), "phase": defect.phase, "mistake": defect.mistake}
            row |= {"site": f"{defect.phase}: {defect.site}"}
            row |= {"expected": sorted(expected_of(defect))}
            yield from _checked(row, pair, lambda d=defect: _planted(pair, d), defect)


def kind_of(defect: Any) -> str:
    """``systematic: scaled``, or where the mistake was seen."""
    if "@" not in defect.name:
        return "seen elsewhere" if defect.source else "made up"
    stem = defect.name.partition("@")[0]
    return "systematic: " + stem.removeprefix(f"{defect.family}-{defect.candidate}-")


def expected_of(defect: Any) -> set[str]:
    """What a verified cause of a mistake may be called."""
    from scripts.explain_corpus import expected

    kind = kind_of(defect)
    return SYSTEMATIC[kind] if kind in SYSTEMATIC else expected(defect)


def has_gradients(defect: Any) -> bool:
    """Not an altered graph: its backward pass was exported apart, and knows nothing of that."""
    return defect is None or defect.candidate != "onnx"


def _planted(pair: Pair, defect: Any) -> tuple[Any, Any]:
    kept: list[Any] = []

    def inject(model: Any) -> Any:
        kept.append(model)
        return defect.inject(model)

    more = {} if has_gradients(defect) else {"gradients": False}
    report = check_defect(pair, replace(defect, inject=inject), seed=1, **more)
    return report, kept[-1]


def _checked(row: Row, pair: Pair, check: Callable[[], Any], defect: Any) -> Iterator[Row]:
    begun = time.monotonic()
    try:
        report, model = check()
    except LookupError:
        return  # a rewrite for layers that this model does not have
    except CrosscheckError as error:
        yield row | {"verdict": "error", "first": f"{type(error).__name__}: {error}"[:300]}
        return
    row["seconds"] = time.monotonic() - begun
    marks, first = outcome(report, 1, defect), report.first_divergence
    # Of a layer that is called twice, either call may be the first to differ.
    located = marks.located or marks.first.partition("#")[0] == row.get("site")
    row |= {"verdict": report.verdict, "located": located, "first": marks.first}
    row |= {"ratio": min(marks.ratio, 1e300)}
    if defect is not None:
        causes = [] if first is None else first.causes
        row["causes"] = [[c.name, c.statement, c.verified] for c in causes]
    train = defect is not None and defect.train
    values = values_by_hand(
        pair, row["candidate"], model, seed=1, train=train, gradients=has_gradients(defect)
    )
    row["peers"] = {name: condemned_by(name, values) for name in PEERS}
    yield row


# -- all of them -----------------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    """The rows of a results file; a last line that was cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def main() -> int:
    """Run what is asked for and print the page."""
    given = _arguments()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    if given.child:
        _run_here(given)
        return 0
    chosen = [(f, c) for f in given.families for c in given.candidates if installed(c)]
    with ThreadPoolExecutor(given.jobs) as pool:
        failed = [error for error in pool.map(partial(_run_apart, given), chosen) if error]
    rows = [r for r in read(given.results) if (r["family"], r["candidate"]) in set(chosen)]
    page = summary(rows)
    print(page)
    for line in failed:
        print(f"did not finish: {line}", file=sys.stderr)
    if given.markdown:
        given.markdown.write_text(HEADING + page, encoding="utf-8")
    return int(bool(failed) or any(false_alarm(r) or wrong(r) for r in rows))


def _run_here(given: argparse.Namespace) -> None:
    """Append the cases of one family and candidate to the results, as they come."""
    known = {row["name"] for row in read(given.results)}
    with given.results.open("a", encoding="utf-8") as file:
        for row in run_one(*given.child, given.per_kind, given.most, known):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _run_apart(given: argparse.Namespace, job: tuple[str, str]) -> str:
    """The same in a process of its own; what it says where it fails."""
    begun = time.monotonic()
    command = [sys.executable, __file__, "--results", str(given.results)]
    command += ["--per-kind", str(given.per_kind), "--most", str(given.most), "--child", *job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    took = time.monotonic() - begun
    print(f"  {job[0]} - {job[1]}: {took:.0f} s", file=sys.stderr, flush=True)
    return f"{job}: {done.stderr[-500:]}" if done.returncode else ""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="*", default=families())
    parser.add_argument("--candidates", nargs="*", default=list(CANDIDATES))
    parser.add_argument("--per-kind", type=int, default=1, help="systematic mistakes of each kind")
    parser.add_argument(
        "--most", type=int, default=10**6, help="systematic mistakes of a family and a candidate"
    )
    parser.add_argument("--results", type=Path, default=Path("out/bench_verdict.jsonl"))
    parser.add_argument("--markdown", type=Path, help="write the page to a file")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--child", nargs=2, metavar=("FAMILY", "CANDIDATE"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
