"""How fast two tensors are compared on a CUDA device: against its bandwidth, and against others.

    python scripts/bench_compare_device.py [--elements 256] [--repeats 20] [--calls 200]

Sizes in millions. As `bench_compare`, with everything on the device: the bandwidth is PyTorch's sum
of both tensors, the others are PyTorch's comparisons and the way that a check goes without Triton
(both copied to the host and compared there). Each time ends when the device has nothing left to do.
Below the table: what one comparison costs where a value is as small as those that stay
(`crosscheck.kernels.on_device.LEAST`). Exit status 1 where a bar is missed, 2 without a device.

``TRITON_INTERPRET=1 ... --device cpu --elements 0.01 --calls 1`` runs the same program on the host,
to see that it works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton  # type: ignore[import,unused-ignore]

from crosscheck.compare import compare
from crosscheck.kernels.on_device import LEAST
from crosscheck.kernels.triton_pair import pair_sums
from scripts.bench_compare import BARS, CONTIGUOUS, PERMUTED, Work, refused, rounds

TELLING = "torch.testing.assert_close, telling"


def main() -> int:
    given = _arguments()
    if given.device != "cpu" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device: nothing to measure", file=sys.stderr)
        return 2
    print(_machine(given.device))
    size = max(int(given.elements * (1 << 20)) // 4096, 1) * 4096
    a = torch.randn(size, device=given.device, generator=torch.Generator(given.device))
    b = a + 1e-6
    fastest, missed = compare_with_reading(a, b, given.repeats)
    compare_with_others(a, b, fastest, max(given.repeats // 3, 1))
    small_ones(a[:LEAST], b[:LEAST], given.calls)
    print("\n".join(["", *(f"MISSED: {line}" for line in missed)]) if missed else "\nall bars met")
    return int(bool(missed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=float, default=256.0, metavar="M")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--calls", type=int, default=200, help="of the smallest comparison")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...")
    given = parser.parse_args()
    if given.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--device cpu takes TRITON_INTERPRET=1: the kernel is for a GPU")
    return given


def _machine(device: str) -> str:
    if device == "cpu":
        name = "Triton's interpreter on the host: these figures mean nothing"
    else:
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{name}; PyTorch {torch.__version__}, Triton {triton.__version__}"


def cases(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """name -> two tensors."""
    image = (-1, 16, 16, 16)
    last = b.reshape(image).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    half = a.numel() // 2
    wide = b[:half].double()
    return {
        CONTIGUOUS: (a, b),
        PERMUTED: (a.reshape(image), last),
        "float32, NHWC against NCHW": (last, a.reshape(image)),
        "float32, both NHWC": (last, last.clone()),
        "float16": (a.half(), b.half()),
        "bfloat16": (a.bfloat16(), b.bfloat16()),
        "float64": (wide, wide + 1e-9),
        "bfloat16 against float32": (a.bfloat16(), b),
        "float32 against float64": (a[:half], wide),
    }


def compare_with_reading(a: Any, b: Any, repeats: int) -> tuple[float, list[str]]:
    """Each of our cases beside PyTorch's sums of the same two tensors.

    Returns:
        GB/s of the contiguous case, and lines on bars that were missed.
    """
    pairs = cases(a, b)
    works = {name: _waited(pair_sums, *pair) for name, pair in pairs.items()}
    taken = rounds(works, repeats, _waited(lambda: (a.sum(), b.sum())))
    read = a.nbytes + b.nbytes
    bandwidth = max(read / s / 1e9 for times in taken.values() for s, _ in times)
    print(f"reading both tensors: best {bandwidth:.0f} GB/s")
    print(f"\n{'':52s} {'best GB/s':>10s} {'median':>8s} {'of reading':>11s}")
    missed, fastest = [], 0.0
    for name, pair in pairs.items():
        speeds = [sum(t.nbytes for t in pair) / s / 1e9 for _, s in taken[name]]
        share = max(speeds) / bandwidth
        median = statistics.median(speeds)
        print(f"{name:52s} {max(speeds):10.1f} {median:8.1f} {share:11.0%}")
        fastest = max(speeds) if name == CONTIGUOUS else fastest
        if share < BARS.get(name, 0.0):
            missed.append(f"{name}: {share:.0%} of the read bandwidth, not {BARS[name]:.0%}")
    return fastest, missed


def compare_with_others(a: Any, b: Any, fastest: float, repeats: int) -> None:
    """Other comparisons of the same two tensors beside our contiguous case."""
    close = torch.testing.assert_close

    def on_host() -> None:
        compare(a.cpu().numpy(), b.cpu().numpy())

    others: dict[str, Work] = {
        "torch.allclose": _waited(torch.allclose, a, b, rtol=0.0, atol=1.0),
        "torch.testing.assert_close, passing": _waited(close, a, b, rtol=0.0, atol=1.0),
        TELLING: refused(_waited(close, a, b, rtol=1e-7, atol=0.0)),
        "both copied to the host, compared there": lambda: compare(
            a.cpu().numpy(), b.cpu().numpy()
        ),
    }
    print(f"\n{'others, float32, contiguous':52s} {'best GB/s':>10s} {'ours is':>20s}")
    for name, times in rounds(others, repeats).items():
        speed = max((a.nbytes + b.nbytes) / s / 1e9 for _, s in times)
        print(f"{name:52s} {speed:10.1f} {fastest / speed:18.1f} x")


def small_ones(a: Any, b: Any, calls: int) -> None:
    """What one comparison costs, on the average, of values that are just large enough to stay."""
    works: dict[str, Work] = {
        "on the device": lambda: pair_sums(a, b),
        "copied to the host": lambda: compare(a.cpu().numpy(), b.cpu().numpy()),
    }
    print(f"\none comparison of {a.numel():,} elements of float32, us")
    for name, times in rounds(works, calls).items():
        print(f"{name:52s} {statistics.fmean(s for _, s in times) * 1e6:10.1f}")


def _waited(work: Any, *args: Any, **options: Any) -> Work:
    """``work``, until the device has nothing left to do."""

    def done() -> None:
        try:
            work(*args, **options)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()

    return done


if __name__ == "__main__":
    sys.exit(main())
