"""How fast two arrays are compared: against the machine's read bandwidth, and against others.

    python scripts/bench_compare.py [--elements 64] [--peer-elements 64] [--repeats 9]

Sizes in millions. GB/s counts both arrays. The machine may be shared, so everything takes turns: in
each round every comparison is made once, right after both arrays are read (the bandwidth). The
table has the best and the median round, and the share of the bandwidth: of the best reading ever,
and the median of that just before. Other tools are slow: they are measured on contiguous float32,
three times less often, on fewer elements if asked; the ratios are of GB/s. An assertion that passes
has said only that; one that fails tells by how much and where, which is what ours does: both are
timed, and the bar is on the second. Polygraphy is left out unless it is there (`pip install
polygraphy`). Exit status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ml_dtypes
import numba
import numpy as np

from crosscheck.compare import compare_three
from crosscheck.kernels.pairs import group_sums, pair_sums
from crosscheck.kernels.threads import share, threads

Work = Callable[[], Any]
SITES, SITE = 5000, 1024
CONTIGUOUS, PERMUTED = "float32, contiguous", "float32, NCHW against NHWC"
BARS = {CONTIGUOUS: 0.55, PERMUTED: 0.35}
NUMPY_TELLS, POLYGRAPHY = "np.testing.assert_allclose, telling", "Polygraphy, CompareFunc.simple"
PEER_BARS = {NUMPY_TELLS: 100.0, POLYGRAPHY: 300.0}


@numba.njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _total(a: np.ndarray, b: np.ndarray) -> float:
    total = np.float32(0.0)
    for i in range(a.size):
        total += a[i] + b[i]
    return total


def read(a: np.ndarray, b: np.ndarray) -> None:
    """Every element of both arrays once, with all threads."""
    parts = list(zip(np.array_split(a, 16), np.array_split(b, 16), strict=True))
    share(lambda first, last: [_total(*part) for part in parts[first:last]], len(parts))


def cases(a: np.ndarray, b: np.ndarray) -> dict[str, tuple[int, Work]]:
    """name -> (bytes read, what to time)."""
    found: dict[str, tuple[int, Work]] = {}

    def case(name: str, x: np.ndarray, y: np.ndarray) -> None:
        found[name] = x.nbytes + y.nbytes, lambda: pair_sums(x, y)

    case(CONTIGUOUS, a, b)
    image = (-1, 64, 64, 64)
    last = np.ascontiguousarray(b.reshape(image).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    case(PERMUTED, a.reshape(image), last)
    case("float32, NHWC against NCHW", last, a.reshape(image))
    case("float32, both NHWC", last, last.copy(order="K"))
    half, brain = a.astype(np.float16), a.astype(ml_dtypes.bfloat16)
    case("float16", half, b.astype(np.float16))
    case("bfloat16", brain, b.astype(ml_dtypes.bfloat16))
    some = a.size // 2
    wide = b[:some].astype(np.float64)
    case("float64", wide, wide + 1e-9)
    case("bfloat16 against float32", brain, b)
    case("float32 against float64", a[:some], wide)
    triple = a[:some], b[:some], wide
    found["three at once (candidate, reference, float64 oracle)"] = (
        sum(x.nbytes for x in triple),
        lambda: compare_three([triple]),
    )
    small = [(a[i : i + SITE], b[i : i + SITE]) for i in range(0, SITES * SITE, SITE)]
    size = SITES * SITE * 8
    found[f"{SITES} sites of 4 kB, one call"] = size, lambda: group_sums(small)
    found[f"{SITES} sites of 4 kB, a call each"] = size, lambda: [pair_sums(*s) for s in small]
    return found


def refused(work: Work) -> Work:
    """``work`` that must end in an AssertionError, whose message is what it is made for."""

    def attempt() -> None:
        try:
            work()
        except AssertionError:
            return
        raise RuntimeError("two arrays that differ were accepted")

    return attempt


def peers(a: np.ndarray, b: np.ndarray) -> dict[str, Work]:
    """Other tools on the same arrays: with tolerances that pass, where most only say yes, and with
    their own, which these arrays fail: then they say by how much and where, as ours always does."""
    found: dict[str, Work] = {
        "np.allclose": lambda: np.allclose(a, b, rtol=0, atol=1),
        "np.testing.assert_allclose, passing": lambda: np.testing.assert_allclose(
            a, b, rtol=0, atol=1
        ),
        NUMPY_TELLS: refused(lambda: np.testing.assert_allclose(a, b)),
    }
    try:
        import torch

        x, y = torch.from_numpy(a), torch.from_numpy(b)
        close = torch.testing.assert_close
        found["torch.testing.assert_close, passing"] = lambda: close(x, y, rtol=0, atol=1)
        found["torch.testing.assert_close, telling"] = refused(
            lambda: close(x, y, rtol=1e-7, atol=0)
        )
    except ImportError:
        print("torch.testing.assert_close: left out (pip install torch)")
    try:
        from polygraphy.comparator import CompareFunc, IterationResult
        from polygraphy.logger import G_LOGGER

        G_LOGGER.module_severity = G_LOGGER.CRITICAL
        ours, theirs = IterationResult({"x": a}), IterationResult({"x": b})
        simple = CompareFunc.simple(rtol=0, atol=1)
        found[POLYGRAPHY] = lambda: simple(ours, theirs)
    except ImportError:
        print("Polygraphy: left out (pip install polygraphy)")
    return found


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds(
    works: dict[str, Work], repeats: int, before: Work = lambda: None
) -> dict[str, list[tuple[float, float]]]:
    """For each work, in each round, the seconds of ``before`` and of the work itself; after one
    round that does not count."""
    for work in works.values():
        work()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append((seconds(before), seconds(work)))
    return taken


def main() -> int:
    given = _arguments()
    size, fewer = given.elements << 20, given.peer_elements << 20
    a = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    b = a + np.float32(1e-6)
    print(f"{threads()} threads, NumPy {np.__version__}, Numba {numba.__version__}")
    fastest, missed = compare_with_reading(a, b, given.repeats)
    missed += compare_with_others(a[:fewer], b[:fewer], fastest, max(given.repeats // 3, 1))
    print("\n".join(["", *(f"MISSED: {line}" for line in missed)]) if missed else "\nall bars met")
    return int(bool(missed))


def compare_with_reading(a: np.ndarray, b: np.ndarray, repeats: int) -> tuple[float, list[str]]:
    """Each of our cases beside reading the same arrays.

    Returns:
        GB/s of the contiguous case, and lines on bars that were missed.
    """
    ours = cases(a, b)
    works = {name: work for name, (_, work) in ours.items()}
    taken = rounds(works, repeats, lambda: read(a, b))
    reads = [2 * a.nbytes / s / 1e9 for times in taken.values() for s, _ in times]
    bandwidth = max(reads)
    print(f"reading both arrays: best {bandwidth:.1f} GB/s, median {statistics.median(reads):.1f}")
    print(f"\n{'':52s} {'best GB/s':>10s} {'median':>8s} {'of reading, best':>17s} {'median':>7s}")
    missed, fastest = [], 0.0
    for name, (size_read, _) in ours.items():
        speeds = [size_read / s / 1e9 for _, s in taken[name]]
        shares = [(size_read / s) / (2 * a.nbytes / r) for r, s in taken[name]]
        best = max(speeds) / bandwidth
        print(
            f"{name:52s} {max(speeds):10.2f} {statistics.median(speeds):8.2f} {best:17.0%} "
            f"{statistics.median(shares):7.0%}"
        )
        fastest = max(speeds) if name == CONTIGUOUS else fastest
        if best < BARS.get(name, 0.0):
            missed.append(f"{name}: {best:.0%} of the read bandwidth, not {BARS[name]:.0%}")
    return fastest, missed


def compare_with_others(a: np.ndarray, b: np.ndarray, fastest: float, repeats: int) -> list[str]:
    """Other libraries' comparisons beside our contiguous case; lines on bars that were missed."""
    heading = "others, float32, contiguous"
    print(f"\n{heading:52s} {'best GB/s':>10s} {'median':>8s} {'ours is':>17s}")
    missed = []
    for name, times in rounds(peers(a, b), repeats).items():
        speeds = [2 * a.nbytes / s / 1e9 for _, s in times]
        ratio = fastest / max(speeds)
        print(f"{name:52s} {max(speeds):10.3f} {statistics.median(speeds):8.3f} {ratio:15.0f} x")
        if ratio < PEER_BARS.get(name, 0.0):
            missed.append(f"{name}: {ratio:.0f} x, not {PEER_BARS[name]:.0f} x")
    return missed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=64, metavar="M")
    parser.add_argument("--peer-elements", type=int, default=64, metavar="M")
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
