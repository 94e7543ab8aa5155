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

from crosscheck.pair import Pair, load_pair
from crosscheck.results import Cause
from models.defects import SEQUENCE_DEFECTS, VISION_DEFECTS, Defect
from scripts.planted_defects import MODELS, PLANTED, check_defect, installed, outcome

# Names that say the same of a sum.
OF_A_SUM = {"absent_term", "other_terms", "residual_missing", "term_missing"}
# What a cause may be called, by the beginning of a defect's name without family and candidate; the
# longest that fits counts. Several where they say the same of this model.
EXPECTED: dict[str, set[str]] = {
    "activation-dropped": {"activation"},
    "activation-missing": {"activation"},
    "adjacency-detached": {"zero"},
    "avgpool-backward": {"pool_divisor"},
    "avgpool-counts": {"pool_border"},
    "avgpool-last": {"pool_border"},
    "backward-half-detached": {"scaled_parts", "zero_slice"},
    "batchnorm-biased": {"biased_variance"},
    "batchnorm-detached": {"norm_detached"},
    "batchnorm-eps": {"norm_eps"},
    "batchnorm-frozen": {"norm_statistics"},
    "batchnorm-momentum": {"momentum"},
    "bias-gradient-missing": {"zero"},
    "bias-not-loaded": {"not_loaded"},
    "bias-twice": {"bias"},
    "cell-state-cut": {"recurrent_backward"},
    "class-token-frozen": {"zero"},
    "class-token-last": {"rolled"},
    "coefficient-gradient-mean": {"scaled"},
    "conv-pads": {"conv_geometry"},
    "conv-transposed": {"conv_channels", "misread", "permuted_axes"},
    "depthwise-channels-first": {"kernel_read", "misread"},
    "depthwise-gradient-turned": {"flipped"},
    "deviation-detached": {"other_terms", "scaled_parts", "zero"},
    "division-reversed": {"reciprocal"},
    "experts-swapped": {"another_parameter"},
    "flatten-channels-last": {"flatten_order", "interleaved"},
    "forget-bias-of-one": {"forget_bias"},
    "future-leaks": {"attention_mask"},
    "gamma-forced": {"norm_weight_ignored"},
    "group-averaged": {"scaled"},
    "router-left-out": {"zero"},
    "second-bias-outside": {"recurrent_bias"},
    "sigmoid-router": {"activation"},
    "sigmoid-derivative": {"derivative"},
    "gate-detached": {"gate_detached", "zero"},
    "gate-up-swapped": {"another_parameter", "exchanged_parts", "permuted_blocks"},
    "gates-": {"gate_order", "permuted_blocks"},
    "gates-detached": {"zero"},
    "gates-not-normalised": {"gates_not_normalised"},
    "gates-shifted": {"rolled"},
    "gather-shifted": {"embedding_offset"},
    "gelu-": {"activation"},
    "gelu-backward": {"derivative"},
    "gelu-for-silu": {"activation"},
    "generator-detached": {"zero"},
    "half-missing": {"scaled"},
    "hard-sigmoid": {"hard_gates"},
    "hardsigmoid-slope": {"activation"},
    "hardswish-": {"activation"},
    "hardswish-detached": {"gate_detached"},
    "head-stale": {"untied"},
    "heads-tiled": {"exchanged_parts", "head_sharing", "interleaved"},
    "kernel-flipped": {"flipped"},
    "kernel-gradient-flipped": {"flipped"},
    "kernel-gradient-mean": {"scaled"},
    "kernel-not-turned": {"flipped"},
    "key-detached": {"scaled_parts", "zero"},
    "key-value-swapped": {"another_parameter"},
    "last-step-of-both": {"recurrent_state"},
    "layernorm-cast-early": {"norm_cast_early"},
    "layernorm-detached": {"norm_detached"},
    "layernorm-eps": {"norm_eps"},
    "layernorm-eps-outside": {"norm_eps_outside"},
    "layernorm-one-plus-weight": {"norm_one_plus_weight"},
    "leaky-": {"leaky_slope"},
    "log-softmax-backward": {"derivative", "softmax_sum"},
    "logvar-detached": {"other_terms", "scaled_parts", "zero"},
    "mask-inverted": {"attention_mask", "mask_polarity"},
    "mask-missing": {"attention_mask"},
    "masked-after": {"attention_mask"},
    "masked-by-infinity": {"mask_value", "masked_rows"},
    "maxpool-shares-ties": {"pool_ties"},
    "maxpool-zero-border": {"pool_border"},
    "nan-gradient": {"masked_nan"},
    "normalised-by-row": {"graph_normalisation"},
    "not-flipped-back": {"direction_flipped"},
    "padding-row-frozen": {"frozen_row"},
    "pool-counts-padding": {"pool_border"},
    "pool-max": {"pool_border"},
    "pool-sums": {"scaled"},
    "position-gradient-mean": {"scaled"},
    "position-offset": {"embedding_offset"},
    "positions-": {"embedding_offset", "rolled"},
    "positions-detached": {"zero"},
    "probabilities": {"log_softmax"},
    "projection-transposed": {"dense_transposed", "permuted_axes"},
    "qkv-per-head": {"packed_layout"},
    "query-key-swapped": {"another_parameter", "packed_order"},
    "reduced-precision": {"dense_precision"},
    "relu-dropped": {"activation", "leaky_slope"},
    "relu-for-leaky": {"activation", "activation_extra", "leaky_slope"},
    "relu-for-tanh": {"activation"},
    "reset-before": {"reset_gate"},
    "reset-gate-backward": {"recurrent_backward"},
    "residual-detached": {"other_terms"},
    "residual-left-out": {"other_terms", "residual_missing"},
    "residual-missing": {"other_terms", "residual_missing"},
    "residual-overwritten": {"other_terms"},
    "resize-": {"resize"},
    "rmsnorm-backward": {"norm_detached"},
    "rmsnorm-cast-early": {"norm_cast_early"},
    "rmsnorm-eps": {"norm_eps"},
    "rmsnorm-eps-beside": {"norm_eps_outside"},
    "rmsnorm-one-plus-weight": {"norm_one_plus_weight"},
    "rotary-": {"rotary_layout"},
    "rotary-backward": {"rotary_sign"},
    "rotary-base": {"rotary_base"},
    "rotary-from-one": {"rotary_start"},
    "rotary-other-way": {"rotary_sign"},
    "scale": {"attention_scale", "scaled"},
    "patches-by-column": {"conv_exchanged", "kernel_read", "flatten_order", "permuted_axes"},
    "scale-detached": {"term_missing", "zero"},
    "scale-backward": {"attention_backward", "scaled_parts"},
    "second-bias-missing": {"not_loaded", "recurrent_bias"},
    "second-bias-twice": {"recurrent_bias", "scaled"},
    "shortcut-missing": {"other_terms"},
    "sigmoid-for-tanh": {"activation"},
    "silu-for-hardswish": {"activation"},
    "silu-twice": {"activation", "activation_extra", "gate_function"},
    "skip-detached": {"scaled_parts", "zero"},
    "skip-last": {"exchanged_parts"},
    "softmax-axis": {"softmax_axis"},
    "softmax-backward": {"attention_backward", "softmax_sum"},
    "square-not-transposed": {"permuted_axes"},
    "state-detached": {"recurrent_backward"},
    "statistics-not-loaded": {"not_loaded"},
    "statistics-swapped": {"another_parameter"},
    "strided-same": {"conv_geometry"},
    "tanh-amplitude": {"scaled"},
    "tanh-derivative": {"derivative", "scaled"},
    "transposed-": {"transposed_shift"},
    "transposed-kernel-turned": {"conv_flipped", "flipped"},
    "types-left-out": {"absent_term", "other_terms"},
    "update-gate-reversed": {"update_gate"},
    "value-detached": {"other_terms", "scaled_parts", "zero"},
    "values-keys-swapped": {"packed_order"},
    "weight-float16": {"truncated", "weight_precision"},
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


def mistake_of(defect: Defect) -> str:
    """A defect's name without family and candidate."""
    family = defect.family.replace("_", "-")
    return defect.name.removeprefix(f"{family}-{defect.candidate}-")


def expected(defect: Defect) -> set[str]:
    """The names that a verified cause of this defect may have."""
    what = mistake_of(defect)
    fitting = [start for start in EXPECTED if what.startswith(start)]
    names = EXPECTED[max(fitting, key=len)] if fitting else set()
    return names | OF_A_SUM if names & OF_A_SUM else names


def run(words: list[str], without: list[str], seed: int) -> list[Explained]:
    """Check every chosen defect once."""
    pairs: dict[str, Pair] = {}
    rows = []
    for defect in (*PLANTED, *VISION_DEFECTS, *SEQUENCE_DEFECTS):
        chosen = any(w in defect.name for w in words) or not words
        if not chosen or any(w in defect.name for w in without) or not installed(defect.candidate):
            continue
        begun = time.monotonic()
        if defect.family not in pairs:
            pairs[defect.family] = load_pair(MODELS / defect.family)
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
