"""The main job in four checks of one trained residual network on real digits.

1. the NumPy net and the Keras model, as they are: both agree with PyTorch;
2. the NumPy net with one BatchNorm eps of 1e-6 for 1e-5: its output still passes
   ``np.testing.assert_allclose(rtol=1e-4)``;
3. the NumPy net with a mistake in one layer's backward pass: every output is right.

Each report is also written to ``out/`` as HTML and JSON. Exit status 0 if all four checks came out
as they should.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from crosscheck.pair import Pair, load_pair
from crosscheck.report.terminal import print_report
from crosscheck.results import Report
from models.defects import DEFECTS

OUT = ROOT / "out"
SEED = 0


def title(number: int, text: str) -> None:
    """A heading between the reports."""
    print(f"\n{'=' * 100}\n{number}. {text}\n{'=' * 100}\n", flush=True)


def wrong_eps(net: Any) -> None:
    """BatchNorm eps 1e-6 for 1e-5, in one of six."""
    net.block2.bn1.eps = 1e-6


def check(pair: Pair, candidate: str, name: str, alter: Callable[[Any], Any] | None) -> Report:
    """Check, show the report and keep it in ``out/``."""
    report = pair.check(
        candidate,
        seed=SEED,
        alter=alter,
        progress=lambda line: print(f"... {line}", file=sys.stderr, flush=True),
    )
    sys.stderr.flush()
    print_report(report)
    report.save_html(OUT / f"{name}.html")
    report.save_json(OUT / f"{name}.json")
    return report


def passes_a_fixed_tolerance(pair: Pair, net: Any) -> bool:
    """Whether the outputs pass ``np.testing.assert_allclose(rtol=1e-4)``."""
    import torch

    x = pair.inputs(SEED)["x"]
    with torch.no_grad():
        expected = pair.reference()(torch.from_numpy(x)).numpy()
    try:
        np.testing.assert_allclose(net.forward(x), expected, rtol=1e-4)
    except AssertionError:
        return False
    return True


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """TensorFlow greets from C++ while it loads, whatever its log level; keep it off the page."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException:
            sink.seek(0)
            os.write(kept, sink.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def main() -> int:
    """Run the checks; say what was to be expected."""
    pair = load_pair(ROOT / "models" / "cnn")
    right = []
    title(1, "PyTorch against a from-scratch NumPy net: the port is right")
    right.append(check(pair, "numpy", "1-numpy", None).verdict == "agree")

    title(2, "PyTorch against Keras on TensorFlow (NHWC, other kernel layouts): right as well")
    if importlib.util.find_spec("tensorflow") is None:
        print("skipped: TensorFlow is not installed; pip install 'crosscheck[keras]'")
    else:
        with quietly():
            pair.candidate["keras"]()  # loads TensorFlow
        right.append(check(pair, "keras", "2-keras", None).verdict == "agree")

    title(3, "the NumPy net again, with BatchNorm eps 1e-6 for 1e-5 in `block2.bn1`")
    nets: list[Any] = []

    def plant(net: Any) -> None:
        wrong_eps(net)
        nets.append(net)

    report = check(pair, "numpy", "3-eps", plant)
    first = report.first_divergence
    right.append(first is not None and (first.phase, first.candidate) == ("forward", "block2.bn1"))
    passes = passes_a_fixed_tolerance(pair, nets[0])
    word = "passes" if passes else "fails"
    print(f"\nnp.testing.assert_allclose(rtol=1e-4) on the outputs: {word}")

    defect = next(d for d in DEFECTS if d.name == "cnn-numpy-avgpool-backward")
    title(4, f"wrong in the backward pass only: {defect.mistake}")
    report = check(pair, "numpy", "4-backward", defect.inject)
    first = report.first_divergence
    right.append(first is not None and (first.phase, first.candidate) == ("backward", defect.site))

    print(f"\n{sum(right)} of {len(right)} checks came out as planted; reports are in out/")
    return 0 if all(right) and passes else 1


if __name__ == "__main__":
    sys.exit(main())
