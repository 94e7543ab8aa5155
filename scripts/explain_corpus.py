"""Planted defects: is the reason that a check gives the mistake that was made?

    python scripts/explain_corpus.py [-k WORD ...] [--without WORD ...] [--seed N] [--markdown F]

Every defect of `models.defects` is planted and checked once. Explained: the first divergence has a
verified cause, and its name is one of those that `EXPECTED` allows for the mistake. Wrong: a
verified cause of another name; there must be none. Exit status 0 if there is none and every defect
is found and located.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from crosscheck.pair import load_pair
from crosscheck.results import Cause
from models.defects import Defect
from scripts.planted_defects import FAMILIES, MODELS, PLANTED, check_defect, installed, outcome

# What a cause may be called, by the beginning of a defect's name without family and candidate; the
# longest that fits counts. Several where they say the same of this model.
EXPECTED: dict[str, set[str]] = {
    "activation-dropped": {"activation"},
    "avgpool-backward": {"pool_divisor"},
    "avgpool-counts": {"pool_border"},
    "avgpool-last": {"pool_border"},
    "batchnorm-biased": {"biased_variance"},
    "batchnorm-detached": {"norm_detached"},
    "batchnorm-eps": {"norm_eps"},
    "batchnorm-frozen": {"norm_statistics"},
    "batchnorm-momentum": {"momentum"},
    "bias-gradient-missing": {"zero"},
    "bias-not-loaded": {"not_loaded"},
    "bias-twice": {"bias"},
    "conv-pads": {"conv_geometry"},
    "conv-transposed": {"conv_channels"},
    "future-leaks": {"attention_mask"},
    "gamma-forced": {"norm_weight_ignored"},
    "gather-shifted": {"embedding_offset"},
    "gelu-backward": {"derivative"},
    "gelu-": {"activation"},
    "hardswish-detached": {"gate_detached"},
    "hardswish-": {"activation"},
    "head-stale": {"untied"},
    "kernel-flipped": {"flipped"},
    "kernel-gradient-flipped": {"flipped"},
    "kernel-gradient-mean": {"scaled"},
    "key-detached": {"scaled_parts"},
    "layernorm-cast-early": {"norm_cast_early"},
    "layernorm-detached": {"norm_detached"},
    "layernorm-eps": {"norm_eps"},
    "layernorm-eps-outside": {"norm_eps_outside"},
    "layernorm-one-plus-weight": {"norm_one_plus_weight"},
    "leaky-": {"leaky_slope"},
    "mask-missing": {"attention_mask"},
    "maxpool-shares-ties": {"pool_ties"},
    "maxpool-zero-border": {"pool_border"},
    "nan-gradient": {"masked_nan"},
    "padding-row-frozen": {"frozen_row"},
    "pool-counts-padding": {"pool_border"},
    "position-offset": {"embedding_offset"},
    "positions-detached": {"zero"},
    "projection-transposed": {"dense_transposed"},
    "qkv-per-head": {"packed_layout"},
    "query-key-swapped": {"packed_order"},
    "reduced-precision": {"dense_precision"},
    "relu-dropped": {"activation", "leaky_slope"},
    "relu-for-leaky": {"activation", "activation_extra", "leaky_slope"},
    "residual-detached": {"other_terms"},
    "residual-overwritten": {"other_terms"},
    "scale-backward": {"scaled_parts"},
    "scale": {"attention_scale", "scaled"},
    "shortcut-missing": {"other_terms"},
    "silu-for-hardswish": {"activation"},
    "softmax-axis": {"softmax_axis"},
    "softmax-backward": {"softmax_sum"},
    "square-not-transposed": {"permuted_axes"},
    "statistics-not-loaded": {"not_loaded"},
    "statistics-swapped": {"another_parameter"},
    "strided-same": {"conv_geometry"},
    "value-detached": {"scaled_parts"},
    "values-keys-swapped": {"packed_order"},
    "weight-float16": {"weight_precision"},
    "weight-gradient-mean": {"scaled"},
}


@dataclass(frozen=True)
class Explained:
    """One defect, checked: what was found, and the reason given."""

    defect: Defect
    found: bool
    located: bool
    causes: tuple[Cause, ...]
    seconds: float

    @property
    def verified(self) -> tuple[Cause, ...]:
        return tuple(cause for cause in self.causes if cause.verified)

    @property
    def right(self) -> bool:
        return any(cause.name in expected(self.defect) for cause in self.verified)

    @property
    def wrong(self) -> bool:
        return any(cause.name not in expected(self.defect) for cause in self.verified)


def expected(defect: Defect) -> set[str]:
    """The names that a verified cause of this defect may have."""
    what = defect.name.removeprefix(f"{defect.family}-{defect.candidate}-")
    fitting = [start for start in EXPECTED if what.startswith(start)]
    return EXPECTED[max(fitting, key=len)] if fitting else set()


def run(words: list[str], without: list[str], seed: int) -> list[Explained]:
    """Check every chosen defect once."""
    pairs = {family: load_pair(MODELS / family) for family in FAMILIES}
    rows = []
    for defect in PLANTED:
        chosen = any(w in defect.name for w in words) or not words
        if not chosen or any(w in defect.name for w in without) or not installed(defect.candidate):
            continue
        begun = time.monotonic()
        report = check_defect(pairs[defect.family], defect, seed)
        marks, first = outcome(report, seed, defect), report.first_divergence
        causes = () if first is None else first.causes
        taken = time.monotonic() - begun
        row = Explained(defect, report.verdict != "agree", marks.located, causes, taken)
        rows.append(row)
        mark = "WRONG" if row.wrong else "right" if row.right else "-"
        print(f"  {mark:6}{defect.name:42} {defect.mistake}", flush=True)
        for cause in causes:
            how = "verified" if cause.verified else "not verified"
            print(f"        {how}: {cause.statement} ({cause.residual_ratio:.2g})")
    return rows


def summary(rows: list[Explained]) -> str:
    """Found, located, explained and wrongly explained, by phase."""
    groups: defaultdict[str, list[Explained]] = defaultdict(list)
    for row in rows:
        groups[row.defect.phase].append(row)
    lines = [
        "| phase | defects | found | located | explained (verified) | wrong, verified |",
        "|-|-|-|-|-|-|",
    ]
    for phase, group in [*groups.items(), ("all", rows)]:
        counts = [
            len(group),
            sum(row.found for row in group),
            sum(row.located for row in group),
            sum(row.right for row in group),
            sum(row.wrong for row in group),
        ]
        lines.append(f"| {phase} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", nargs="*", default=[], metavar="WORD", help="only names with one")
    parser.add_argument("--without", nargs="*", default=[], metavar="WORD", help="leave these out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", metavar="F", help="also write the table to a file")
    arguments = parser.parse_args()
    rows = run(arguments.k, arguments.without, arguments.seed)
    table = summary(rows)
    print(f"\n{table}")
    if arguments.markdown:
        Path(arguments.markdown).write_text(table + "\n", encoding="utf-8")
    return int(any(row.wrong or not (row.found and row.located) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
