"""The experiments behind the verdict, as figures: `docs/verdict.md` shows and explains them.

    python scripts/verdict_experiments.py [--out docs/figures] [--png FOLDER] [-k WORD]

Everything is seeded. Prints the numbers of every figure; `depth` takes minutes, the rest seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ml_dtypes
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from crosscheck.compare import compare
from crosscheck.judging.noise import AGREE, DIVERGE, unit_roundoff
from scripts.verdict_depth import DEPTHS, FACTORS, depth_rates
from tests.stages.test_rounding_or_bug import LAYERS, layer_norm, naive, one_pass, two_pass

U = 2.0**-24
NOTHING = 1e-9  # drawn there: not one element moved
F = np.float32
HONEST, WRONG, FLOOR = "#1b7837", "#b2182b", "#555555"


def relative(value: np.ndarray, truth: np.ndarray) -> float:
    """‖value − truth‖ / ‖truth‖."""
    found = compare(value, truth)
    return found.l2 / found.truth_l2


# -- how far honest code and small mistakes are from each other ------------------------------------


def separation(axes: Axes) -> None:
    """ρ of honest rewrites and of small mistakes, over twelve kinds of layers and four seeds."""
    honest, wrong = [], []
    for layer in LAYERS.values():
        exact = {k: f for k, f in layer.honest.items() if not k.startswith("naive,")}
        honest += list(layer.ratios(layer.honest, layer.honest).values())
        wrong += list(layer.ratios(layer.altered, exact).values())
    bins = np.logspace(-2, 7, 55)
    axes.hist(np.clip(honest, 1.1e-2, None), bins, color=HONEST, label=f"honest ({len(honest)})")
    axes.hist(wrong, bins, color=WRONG, label=f"mistaken ({len(wrong)})")
    for limit in (AGREE, DIVERGE):
        axes.axvline(limit, color=FLOOR, lw=1, ls="--")
        axes.text(limit, axes.get_ylim()[1] * 0.9, f" {limit:g}", color=FLOOR)
    axes.set(xscale="log", xlabel="ratio ρ of the error to the noise floor", ylabel="comparisons")
    axes.legend()
    print(f"  honest: {len(honest)}, largest {max(honest):.2f}")
    print(f"  mistaken: {len(wrong)}, smallest {min(wrong):.1f}")


# -- the length of a sum ---------------------------------------------------------------------------


def blocked(x: np.ndarray) -> np.ndarray:
    return naive(naive(x.reshape(*x.shape[:-1], -1, 16)))


def reduction(axes: Axes) -> None:
    """Relative error of three orders of summation against n, and the floor ½√n·u."""
    lengths = [2**k for k in range(4, 21)]
    orders: dict[str, Callable[..., Any]] = {
        "term by term": naive,
        "blocks of 16": blocked,
        "pairwise": lambda x: x.sum(-1),
    }
    markers = dict(zip(orders, "ovs", strict=True))
    for mean, style in ((0.0, "-"), (0.5, ":")):
        errors: dict[str, list[float]] = {name: [] for name in orders}
        for n in lengths:
            x = np.random.default_rng(n).normal(mean, 1, size=(8, n)).astype(F)
            for name, order in orders.items():
                errors[name].append(relative(order(x), x.astype(np.float64).sum(-1)))
        for name, found in errors.items():
            label = f"{name}, mean {mean:g}"
            axes.plot(lengths, found, style + markers[name], ms=4, lw=1, label=label)
            worst = max(e / (max(0.5 * n**0.5, 1) * U) for e, n in zip(found, lengths, strict=True))
            print(f"  {label}: at most {worst:.2f} x max(½√n, 1)·u")
    floor = np.array([max(0.5 * n**0.5, 1) * U for n in lengths])
    axes.plot(lengths, floor, color=FLOOR, lw=2, label="floor max(½√n, 1)·u")
    axes.plot(lengths, AGREE * floor, color=FLOOR, lw=1, ls="--", label="8 floors")
    axes.set(xscale="log", yscale="log", xlabel="terms n", ylabel="relative error")
    axes.legend(fontsize=7, ncol=2)


# -- precision -------------------------------------------------------------------------------------


def layer_in(dtype: Any, eps: float, *, folded: bool) -> Callable[..., np.ndarray]:
    """A layer norm every operation of which rounds to ``dtype``."""

    def norm(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
        def r(value: np.ndarray) -> np.ndarray:
            return np.asarray(value).astype(dtype).astype(np.float64)

        x, g, b = r(x), r(g), r(b)
        mean = r(x.mean(-1, keepdims=True))
        d = r(x - mean)
        scale = r(1 / np.sqrt(r(r(r(d * d).mean(-1, keepdims=True)) + eps)))
        if folded:
            return r(r(r(x * scale) - r(mean * scale)) * g + b)
        return r(r(r(d * scale) * g) + b)

    return norm


def precision(axes: Axes) -> None:
    """Rounding shrinks with the unit roundoff; a wrong eps does not."""
    types = [ml_dtypes.bfloat16, np.float16, np.float32, np.float64]
    units = [unit_roundoff(np.dtype(t)) for t in types]
    lines: dict[str, list[float]] = {"honest": [], "eps 1e-3": []}
    for dtype in types:
        rng = np.random.default_rng(0)
        inputs = [a.astype(dtype).astype(np.float64) for a in layer_norm(0.3, 256).inputs(rng)]
        truth = layer_in(np.float64, 1e-5, folded=False)(*inputs)
        lines["honest"].append(relative(layer_in(dtype, 1e-5, folded=True)(*inputs), truth))
        lines["eps 1e-3"].append(relative(layer_in(dtype, 1e-3, folded=False)(*inputs), truth))
    for (name, errors), color in zip(lines.items(), (HONEST, WRONG), strict=True):
        axes.plot(units, errors, "o-", color=color, label=name)
        print(f"  {name}: " + ", ".join(f"{e:.1e}" for e in errors))
    axes.plot(units, units, color=FLOOR, lw=1, ls="--", label="u")
    for unit, dtype in zip(units, types, strict=True):
        axes.annotate(np.dtype(dtype).name, (unit, unit / 30), ha="center", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="unit roundoff u", ylabel="relative error")
    axes.set_ylim(1e-18, 1)
    axes.legend()


# -- ill-conditioning ------------------------------------------------------------------------------


def conditioning(axes: Axes) -> None:
    """Variance in one pass against two: the error, the floor, and what an ulp redraws."""
    ratios = np.logspace(0, 3.5, 15)
    found: dict[str, list[float]] = {k: [] for k in ("one", "two", "perturbed", "redrawn", "bf16")}
    redrawn_bf16 = []
    for ratio in ratios:
        rng = np.random.default_rng(7)
        x = rng.normal(ratio, 1, size=(64, 256)).astype(F)
        moved = (x * (1 + 2 * U * rng.normal(size=x.shape))).astype(F)
        lower = [v.astype(ml_dtypes.bfloat16).astype(F) for v in (x, moved)]
        truth = two_pass(x.astype(np.float64))
        found["one"].append(relative(one_pass(x), truth))
        found["two"].append(relative(two_pass(x), truth))
        found["bf16"].append(relative(two_pass(lower[0]), truth))
        found["perturbed"].append(relative(two_pass(moved.astype(np.float64)), truth))
        found["redrawn"].append(relative(one_pass(moved), one_pass(x).astype(np.float64)))
        redrawn_bf16.append(relative(two_pass(lower[1]), two_pass(lower[0]).astype(np.float64)))
    axes.plot(ratios, found["one"], "o-", color=HONEST, label="one pass: error")
    axes.plot(ratios, found["redrawn"], "--", color=HONEST, label="one pass: redrawn by an ulp")
    axes.plot(ratios, found["two"], "s-", color="#2166ac", label="two passes: error")
    axes.plot(ratios, found["bf16"], "v-", color=WRONG, label="bfloat16 inside: error")
    shown = np.clip(redrawn_bf16, NOTHING, None)
    axes.plot(ratios, shown, "v--", ms=3, color=WRONG, label="bfloat16 inside: redrawn by an ulp")
    axes.plot(ratios, found["perturbed"], color=FLOOR, lw=2, label="e_pert of the oracle")
    axes.set(xscale="log", yscale="log", xlabel="mean / standard deviation")
    axes.set(ylabel="relative error of the variance", ylim=(1e-10, 1e4))
    axes.legend(fontsize=7)
    pairs = (("one pass", "one", found["redrawn"]), ("bfloat16", "bf16", redrawn_bf16))
    for name, key, redrawn in pairs:
        shares = np.array(found[key]) / np.clip(redrawn, NOTHING, None)
        print(f"  {name}: error / redrawn from {shares.min():.2f} to {shares.max():.2f}")


# -- depth -----------------------------------------------------------------------------------------


def depth(axes: Axes) -> None:
    """Mistakes of 10 to 30 noise floors, planted anywhere in 2 and in 24 blocks."""
    width = 0.35
    for i, blocks in enumerate(DEPTHS):
        rates = depth_rates(blocks)
        places = np.arange(len(FACTORS)) + (i - 0.5) * width
        axes.bar(places, [100 * r.found for r in rates], width, label=f"{blocks} blocks: found")
        located = [100 * r.located for r in rates]
        axes.plot(places, located, "k_", ms=18, label="located" if i == 0 else None)
        for factor, rate in zip(FACTORS, rates, strict=True):
            print(
                f"  {blocks} blocks, {factor} floors: {rate.planted} planted, found "
                f"{100 * rate.found:.0f} %, located {100 * rate.located:.0f} %, innocent "
                f"layers blamed {rate.innocent}"
            )
    axes.set_xticks(range(len(FACTORS)), [f"{factor}" for factor in FACTORS])
    axes.set(xlabel="size of the mistake in noise floors", ylabel="percent", ylim=(0, 105))
    axes.legend(loc="lower right")


FIGURES: dict[str, Callable[[Axes], None]] = {
    "separation": separation,
    "reduction": reduction,
    "precision": precision,
    "conditioning": conditioning,
    "depth": depth,
}


def main() -> int:
    """Draw; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--png", type=Path, help="also as pictures, into this folder")
    parser.add_argument("-k", default="", help="only figures whose name contains this")
    options = parser.parse_args()
    plt.rcParams.update({"svg.hashsalt": "crosscheck", "svg.fonttype": "none", "font.size": 9})
    for name, draw in FIGURES.items():
        if options.k not in name:
            continue
        print(name)
        figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        options.out.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.out / f"verdict_{name}.svg", metadata={"Date": None})
        if options.png:
            options.png.mkdir(parents=True, exist_ok=True)
            figure.savefig(options.png / f"verdict_{name}.png", dpi=80)
        plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
