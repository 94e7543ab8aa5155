"""How a check grows with a model: depth, width, batch, and memory under a limit.

    python scripts/bench_scale.py [--depths 10 30 100 300 1000 2000] [--width 32] [--batch 4]
        [--tokens 8] [--max-memory 64MiB] [--forward] [--profile F] [--bar 1.1]
    python scripts/bench_scale.py --parameters 50e6 --tokens 64 --max-memory 100MiB
    python scripts/bench_scale.py --billion          # 20 GB, nothing else on the machine

A model is a row of blocks, each a norm, a linear layer, a GELU and a residual sum. The candidate
has the same weights and other formulas: a norm by hand, products the other way round, the error
function written out. Every size is checked in a process of its own.

Printed for each: seconds of the clock and of the processor, those of one bare forward and backward
of both sides, comparisons, comparisons per second of the processor, microseconds for each of them
that are not spent in the runs of the models, the size of all activations in one run, the peak of
memory over what the two models and the framework take, and over what the bare runs take on top of
that. The last lines are the exponent of processor time over depth, by least squares on a log-log
scale from depth 10 on, and what each further comparison costs: outside of the runs, and in all over
the bare runs.
Exit status 1 where it is above ``--bar``.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

MIB = 2**20
FITTED_FROM = 10
BILLION = {"parameters": 1e9, "width": 4096, "batch": 8, "tokens": 64, "max_memory": "2GiB"}
Row = dict[str, Any]


# -- one size, in a process of its own -------------------------------------------------------------


def build(depth: int, width: int) -> tuple[Any, Any]:
    """The reference, and a candidate that computes the same by other formulas."""
    import torch
    from torch import nn

    class Norm(nn.LayerNorm):
        def forward(self, x: Any) -> Any:  # (B, T, width)
            x = x - x.mean(-1, keepdim=True)
            deviation = torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)
            return x / deviation * self.weight + self.bias

    class Product(nn.Linear):
        def forward(self, x: Any) -> Any:  # (B, T, width)
            return (self.weight @ x.mT).mT + self.bias

    class Erf(nn.Module):
        def forward(self, x: Any) -> Any:
            return 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))

    class Block(nn.Module):
        def __init__(self, *parts: nn.Module) -> None:
            super().__init__()
            self.norm, self.fc, self.act = parts

        def forward(self, x: Any) -> Any:
            return x + self.act(self.fc(self.norm(x)))

    class Net(nn.Module):
        def __init__(self, blocks: list[nn.Module]) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(blocks)

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    ours = [Block(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(depth)]
    theirs = [Block(Norm(width), Product(width, width), Erf()) for _ in range(depth)]
    return Net(ours).eval(), Net(theirs).eval()


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bare(models: tuple[Any, Any], x: np.ndarray) -> float:
    """CPU seconds of one forward and backward of both sides, as nobody looks."""
    import torch

    started = time.process_time()
    for model in models:
        out = model(torch.tensor(x))
        torch.autograd.grad(out.sum(), list(model.parameters()))
    return time.process_time() - started


class Timed:
    """CPU seconds of all runs of the two models, taps included."""

    def __init__(self, *sides: Any) -> None:
        self.seconds = 0.0
        for side in sides:
            side.run = self._timed(side.run)

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return run(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - started

        return timed


def measure(depth: int, args: argparse.Namespace) -> Row:
    """Check one depth; the row of the table."""
    import torch

    import crosscheck.api  # what a check loads is not what a comparison costs
    from crosscheck.adapters import adapt

    torch.set_num_threads(args.threads)
    models = build(depth, args.width)
    x = np.random.default_rng(0).standard_normal((args.batch, args.tokens, args.width), np.float32)
    sides = adapt(models[0]), adapt(models[1])
    bare((torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), np.ones((1, 2), np.float32))
    loaded = peak()
    seconds_bare = 0.0 if args.no_bare else bare(models, x)
    before = peak()
    runs = Timed(*sides)
    options = {"max_memory": args.max_memory} if args.max_memory else {}
    profile = cProfile.Profile(time.process_time) if args.profile else None
    started, cpu = time.perf_counter(), time.process_time()
    if profile is not None:
        profile.enable()
    report = crosscheck.check(*sides, x, gradients=not args.forward, blind_spots=False, **options)
    if profile is not None:
        profile.disable()
        profile.dump_stats(args.profile)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "depth": depth,
        "parameters": sum(p.numel() for p in models[0].parameters()),
        "verdict": report.verdict,
        "seconds": seconds,
        "cpu": cpu,
        "own": (cpu - runs.seconds) / len(report.sites),
        "over": (cpu - seconds_bare) / len(report.sites),
        "bare": seconds_bare,
        "sites": len(report.sites),
        "activations": 4 * depth * x.nbytes,
        "over_models": peak() - loaded,
        "over_bare": peak() - before,
    }


# -- all sizes -------------------------------------------------------------------------------------


def in_a_child(depth: int, args: argparse.Namespace) -> Row:
    """`measure` in a process of its own, so that peaks and caches are its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--depths", str(depth), "--one"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"depth {depth}: the process ended with status {done.returncode}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def exponent(rows: list[Row]) -> float | None:
    """Of CPU time over depth, by least squares on a log-log scale; None below two depths."""
    rows = [r for r in rows if r["depth"] >= FITTED_FROM]
    if len(rows) < 2:
        return None
    depth, cpu = (np.log([r[key] for r in rows]) for key in ("depth", "cpu"))
    return float(np.polyfit(depth, cpu, 1)[0])


def further(rows: list[Row], key: str) -> float:
    """Seconds for each comparison more, by least squares: what a check costs once is left out."""
    deep = [r for r in rows if r["depth"] >= FITTED_FROM]
    sites = [r["sites"] for r in deep]
    return float(np.polyfit(sites, [r[key] * r["sites"] for r in deep], 1)[0])


def line(row: Row) -> str:
    cpu, sites = row["cpu"], row["sites"]
    return (
        f"{row['depth']:>6} {row['parameters'] / 1e6:>9.2f} {row['verdict']:>8}"
        f" {row['seconds']:>8.2f} {cpu:>8.2f} {row['bare']:>8.3f} {sites:>9} {sites / cpu:>7.0f}"
        f" {row['own'] * 1e6:>7.0f}"
        f" {row['activations'] / MIB:>8.0f} {row['over_models'] / MIB:>8.0f}"
        f" {row['over_bare'] / MIB:>8.0f}"
    )


HEADER = (
    f"{'depth':>6} {'params M':>9} {'verdict':>8} {'seconds':>8} {'CPU s':>8} {'bare':>8}"
    f" {'compared':>9} {'per s':>7} {'own us':>7} {'act MiB':>8} {'+models':>8} {'+bare':>8}"
)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 30, 100, 300, 1000, 2000])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--forward", action="store_true", help="the forward pass alone")
    parser.add_argument("--max-memory", help="as crosscheck.check takes it")
    parser.add_argument("--parameters", type=float, help="as many layers as that takes")
    parser.add_argument("--billion", action="store_true", help="10^9 parameters inside 20 GB")
    parser.add_argument("--no-bare", action="store_true", help="leave the bare runs out")
    parser.add_argument("--profile", help="write what cProfile says of the check to this file")
    parser.add_argument("--bar", type=float, help="fail where the exponent is larger")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.billion:
        vars(args).update(BILLION, no_bare=True)
    if args.parameters:
        args.width = args.width if args.width > 256 else 1024
        args.depths = [max(1, round(args.parameters / (args.width * (args.width + 3))))]
    return args


def main() -> int:
    args = parsed()
    if args.one:
        print(json.dumps(measure(args.depths[0], args)))
        return 0
    print(HEADER, flush=True)
    rows = []
    for depth in args.depths:
        rows.append(in_a_child(depth, args))
        print(line(rows[-1]), flush=True)
    found = exponent(rows)
    if found is not None:
        print(f"time grows as depth^{found:.2f}")
        own, in_all = (further(rows, key) * 1e6 for key in ("own", "over"))
        print(
            f"each further comparison: {own:.0f} us outside of the runs, {in_all:.0f} us over bare"
        )
    if any(row["verdict"] != "agree" for row in rows):
        return 1
    return int(args.bar is not None and found is not None and found > args.bar)


if __name__ == "__main__":
    raise SystemExit(main())
