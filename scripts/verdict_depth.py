"""Mistakes of a few noise floors, planted at random places of shallow and of deep networks.

    python scripts/verdict_depth.py [--blocks 2 24] [--seeds 10]

The candidate is an honest rewrite of the reference (products in halves, another GELU formula) with
one layer's output off by so many of its own noise floors. How large the floor is there, measured
ill-conditioning included, is read off a check with a mistake that is large.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

import crosscheck

__all__ = ["DEPTHS", "FACTORS", "Rate", "depth_rates"]

DEPTHS = (2, 24)
FACTORS = (10, 14, 20, 30)
SEEDS = 6
LARGE = 1e-3
WIDTH = 48


@dataclass(frozen=True)
class Rate:
    """Shares of the planted mistakes; ``innocent``: layers blamed that nobody touched."""

    planted: int
    found: float
    located: float
    innocent: int


class Halved(nn.Linear):
    """The same product, summed in two halves."""

    def forward(self, x: Any) -> Any:
        h = self.in_features // 2
        return x[..., h:] @ self.weight[:, h:].T + x[..., :h] @ self.weight[:, :h].T + self.bias


class Gelu(nn.Module):
    """The same function, by the error function."""

    def forward(self, x: Any) -> Any:
        return 0.5 * x * (1 + torch.erf(x * 0.7071067811865476))


class Block(nn.Module):
    """A residual block as transformers have them, with attention over the second axis."""

    def __init__(self, *, rewritten: bool) -> None:
        super().__init__()
        linear = Halved if rewritten else nn.Linear
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.fc, self.out = linear(WIDTH, 2 * WIDTH), linear(2 * WIDTH, WIDTH)
        self.act = Gelu() if rewritten else nn.GELU()

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(torch.softmax(q @ k.mT * WIDTH**-0.5, -1) @ v)
        return x + self.out(self.act(self.fc(self.norm2(x))))


def network(blocks: int, seed: int, *, rewritten: bool = False) -> nn.Module:
    """A stack of blocks with the weights of ``seed``."""
    torch.manual_seed(seed)
    return nn.Sequential(*(Block(rewritten=rewritten) for _ in range(blocks)))


def check(reference: nn.Module, candidate: nn.Module, seed: int) -> crosscheck.Report:
    return crosscheck.check(
        reference, candidate, f"float32[2,6,{WIDTH}]", seed=seed, gradients=False, explain=False
    )


def scaled(blocks: int, seed: int, site: str, scale: float) -> nn.Module:
    """The honest rewrite with one layer's output multiplied."""
    network_ = network(blocks, seed, rewritten=True)
    network_.get_submodule(site).register_forward_hook(
        lambda module, inputs, output: output * scale
    )
    return network_


def _ratio(report: crosscheck.Report, site: str) -> float:
    return next(s.ratio for s in report.sites if s.reference == site and s.kind == "activation")


def depth_rates(blocks: int, seeds: int = SEEDS) -> list[Rate]:
    """One rate for each of `FACTORS`."""
    outcomes: dict[int, list[tuple[bool, bool, int]]] = {factor: [] for factor in FACTORS}
    for seed in range(seeds):
        reference = network(blocks, seed)
        honest = check(reference, network(blocks, seed, rewritten=True), seed)
        if honest.verdict != "agree":
            raise AssertionError(f"false alarm at seed {seed}: {honest}")
        rng = np.random.default_rng(seed)
        layers = ("norm1", "qkv", "proj", "norm2", "fc", "act", "out")
        site = f"{rng.integers(blocks)}.{rng.choice(layers)}"
        floor = LARGE / _ratio(check(reference, scaled(blocks, seed, site, 1 + LARGE), seed), site)
        for factor in FACTORS:
            candidate = scaled(blocks, seed, site, 1 + factor * floor)
            report = check(reference, candidate, seed)
            outcomes[factor].append(_outcome(report, site))
    return [
        Rate(
            len(found),
            float(np.mean([f for f, _, _ in found])),
            float(np.mean([located for _, located, _ in found])),
            sum(innocent for _, _, innocent in found),
        )
        for found in outcomes.values()
    ]


def _outcome(report: crosscheck.Report, site: str) -> tuple[bool, bool, int]:
    """(found, located, innocent layers blamed)"""
    first = report.first_divergence
    blamed = {d.reference for d in report.divergences}
    return (
        report.verdict != "agree",
        first is not None and first.reference == site,
        len(blamed - {site}),
    )


def main() -> int:
    """Print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    for blocks in options.blocks:
        for factor, rate in zip(FACTORS, depth_rates(blocks, options.seeds), strict=True):
            print(
                f"{blocks} blocks, {factor} floors: {rate.planted} planted, found "
                f"{rate.found:.0%}, located {rate.located:.0%}, innocent blamed {rate.innocent}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
