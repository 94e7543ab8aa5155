"""The claim behind the verdict, on layers small enough to write twice.

Honest: float32 rewrites of one layer (another order of summation, another formula) are all within
8 x of one another's floor. Altered: a small mistake is more than 32 x outside, whichever of them
is the reference (save norms that sum one term after the other: their own error is the floor).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from crosscheck.compare import compare
from crosscheck.judging.noise import Floor, judge

F = np.float32
SEEDS = range(4)
Function = Callable[..., np.ndarray]


@dataclass
class Layer:
    """``truth`` takes float64 inputs; the others float32. ``n``: what `Reductions` finds."""

    inputs: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
    truth: Function
    honest: dict[str, Function]
    altered: dict[str, Function]
    n: float = 1.0

    def ratios(
        self, candidates: dict[str, Function], references: dict[str, Function]
    ) -> dict[tuple[str, str, int], float]:
        """(reference, candidate, seed) -> ρ."""
        found = {}
        floor = Floor(unit=2.0**-24, reduction=self.n)
        for seed in SEEDS:
            inputs = [x.astype(F) for x in self.inputs(np.random.default_rng(seed))]
            truth = self.truth(*(x.astype(np.float64) for x in inputs))
            ours = {k: compare(f(*inputs), truth) for k, f in references.items()}
            for label, function in candidates.items():
                value = function(*inputs)
                assert value.dtype == np.float32
                error = compare(value, truth)
                for k, own in ours.items():
                    found[k, label, seed] = judge(error, own, floor).ratio
        return found


# -- sums of many terms ----------------------------------------------------------------------------


def naive(x: np.ndarray) -> np.ndarray:
    return np.add.accumulate(x, axis=-1, dtype=F)[..., -1]


def blocked(x: np.ndarray, size: int = 64) -> np.ndarray:
    return naive(naive(x.reshape(*x.shape[:-1], -1, size)))


SUMS = {
    "naive": naive,
    "backwards": lambda x: naive(x[..., ::-1]),
    "pairwise": lambda x: x.sum(-1),
    "blocked": blocked,
    "lanes": lambda x: naive(x.reshape(*x.shape[:-1], -1, 8).swapaxes(-1, -2)).sum(-1),
}


def sums(n: int, mean: float) -> Layer:
    return Layer(
        inputs=lambda rng: (rng.normal(mean, 1, size=(3, n)),),
        truth=lambda x: x.sum(-1),
        honest=SUMS,
        altered={
            "1 % of the terms left out": lambda x: x[..., math.ceil(n / 100) :].sum(-1),
            "x 1.001": lambda x: x.sum(-1) * F(1.001),
        },
        n=n,
    )


# -- matmul ----------------------------------------------------------------------------------------


def split(parts: int) -> Function:
    def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        pieces = zip(np.split(x, parts, axis=-1), np.split(w, parts), strict=True)
        return naive(np.stack([a @ b for a, b in pieces], axis=-1))

    return product


def one_element(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    y = x @ w
    y[3, 5] += F(1e-4) * np.abs(y).max()
    return y


MATMUL = Layer(
    inputs=lambda rng: (rng.normal(size=(16, 96)), rng.normal(size=(96, 40))),
    truth=lambda x, w: x @ w,
    honest={
        "blas": lambda x, w: x @ w,
        "transposed": lambda x, w: np.ascontiguousarray(w.T @ x.T).T,
        "term by term": lambda x, w: naive(x[:, None, :] * w.T[None]),
        "pairwise": lambda x, w: (x[:, None, :] * w.T[None]).sum(-1),
        "split in 2": split(2),
        "split in 8": split(8),
    },
    altered={
        "x 1.0001": lambda x, w: (x @ w) * F(1.0001),
        "one element": one_element,
        "weights in bfloat16": lambda x, w: x @ w.astype(ml_dtypes.bfloat16).astype(F),
        "inputs in TF32": lambda x, w: (x.view(np.uint32) & 0xFFFFE000).view(F) @ w,
        "last term missing": lambda x, w: x[:, :-1] @ w[:-1],
    },
    n=96,
)

# -- normalisation ---------------------------------------------------------------------------------


def two_pass(x: np.ndarray) -> np.ndarray:
    d = x - x.mean(-1, keepdims=True)
    return (d * d).mean(-1, keepdims=True)


def one_pass(x: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    return (x * x).mean(-1, keepdims=True) - mean * mean


def norm(variance: Function, eps: float = 1e-5, *, folded: bool = False) -> Function:
    def layer(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
        scale = g / np.sqrt(variance(x) + x.dtype.type(eps))
        if folded:
            return x * scale + (b - x.mean(-1, keepdims=True) * scale)
        return (x - x.mean(-1, keepdims=True)) * scale + b

    return layer


def unbiased(x: np.ndarray) -> np.ndarray:
    return two_pass(x) * F(x.shape[-1] / (x.shape[-1] - 1))


def naive_two_pass(x: np.ndarray) -> np.ndarray:
    n = F(x.shape[-1])
    d = x - (naive(x) / n)[:, None]
    return (naive(d * d) / n)[:, None]


def naive_one_pass(x: np.ndarray) -> np.ndarray:
    n = F(x.shape[-1])
    return (naive(x * x) / n - (naive(x) / n) ** 2)[:, None]


def layer_norm(mean: float, width: int) -> Layer:
    # A norm has the floor of one operation: sums of many terms, one after the other, are too much.
    naives = {"naive, two passes": norm(naive_two_pass), "naive, one pass": norm(naive_one_pass)}
    naives = naives if width < 500 else {}
    return Layer(
        inputs=lambda rng: (
            rng.normal(mean, 1, size=(20, width)),
            rng.normal(1, 0.2, size=width),
            0.2 * rng.normal(size=width),
        ),
        truth=norm(two_pass),
        honest={
            "two passes": norm(two_pass),
            "one pass": norm(one_pass),
            "two passes, folded": norm(two_pass, folded=True),
            "one pass, folded": norm(one_pass, folded=True),
            **naives,
        },
        altered={
            "eps 1e-6": norm(two_pass, 1e-6),
            "eps 1e-3": norm(one_pass, 1e-3),
            "unbiased": norm(unbiased),
            "x 1.0001": lambda x, g, b: norm(two_pass)(x, g, b) * F(1.0001),
        },
    )


# -- elementwise and softmax -----------------------------------------------------------------------


def shifted(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unshifted(x: np.ndarray) -> np.ndarray:
    e = np.exp(x)
    return e * (1 / naive(e)[..., None])


def through_logs(x: np.ndarray) -> np.ndarray:
    d = x - x.max(-1, keepdims=True)
    return np.exp(d - np.log(np.exp(d).sum(-1, keepdims=True)))


def base_two(x: np.ndarray) -> np.ndarray:
    e = np.exp2((x - x.max(-1, keepdims=True)) * F(1.4426950408889634))
    return e / e.sum(-1, keepdims=True)


SOFTMAX = Layer(
    inputs=lambda rng: (2 * rng.normal(size=(30, 50)),),
    truth=shifted,
    honest={"shifted": shifted, "unshifted": unshifted, "logs": through_logs, "base 2": base_two},
    altered={
        "temperature 1.0001": lambda x: shifted(x * F(1.0001)),
        "x 1.0001": lambda x: shifted(x) * F(1.0001),
        "a column masked": lambda x: shifted(np.where(np.arange(50) == 49, F(-1e9), x)),
        "other axis": lambda x: shifted(x.T).T,
    },
)

C = 0.7978845608028654


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    t = x.dtype.type
    return t(0.5) * x * (t(1) + np.tanh(t(C) * (x + t(0.044715) * x**3)))


def sigmoid_gelu(x: np.ndarray) -> np.ndarray:
    inner = F(2 * C) * x * (F(1) + F(0.044715) * x * x)
    return x / (F(1) + np.exp(-inner))


GELU = Layer(
    inputs=lambda rng: (rng.normal(size=(40, 50)),),
    truth=tanh_gelu,
    honest={"tanh": tanh_gelu, "sigmoid": sigmoid_gelu},
    altered={
        "0.0447": lambda x: F(0.5) * x * (F(1) + np.tanh(F(C) * (x + F(0.0447) * x**3))),
        "x sigmoid(1.702 x)": lambda x: x / (F(1) + np.exp(F(-1.702) * x)),
        "x 1.0001": lambda x: tanh_gelu(x) * F(1.0001),
    },
)

LAYERS = {
    "sum 2^6": sums(2**6, 0.0),
    "sum 2^12": sums(2**12, 0.0),
    "sum 2^12, biased": sums(2**12, 0.5),
    "sum 2^18": sums(2**18, 0.0),
    "sum 2^18, biased": sums(2**18, 0.5),
    "matmul": MATMUL,
    "layer norm 64": layer_norm(0.0, 64),
    "layer norm 768": layer_norm(0.0, 768),
    "layer norm 768, mean 0.5": layer_norm(0.5, 768),
    "layer norm 4096": layer_norm(0.1, 4096),
    "softmax": SOFTMAX,
    "gelu": GELU,
}


@pytest.mark.parametrize("name", LAYERS)
def test_honest_rewrites_agree_whichever_is_the_reference(name: str) -> None:
    layer = LAYERS[name]
    ratios = layer.ratios(layer.honest, layer.honest)
    worst = max(ratios, key=ratios.__getitem__)
    assert ratios[worst] <= 8, (worst, ratios[worst])
    assert max(ratios.values()) > 0.01, "the rewrites are the same computation"


@pytest.mark.parametrize(
    ("name", "mistake"), [(n, m) for n, layer in LAYERS.items() for m in layer.altered]
)
def test_a_small_mistake_diverges_whichever_is_the_reference(name: str, mistake: str) -> None:
    layer = LAYERS[name]
    exact = {k: f for k, f in layer.honest.items() if not k.startswith("naive,")}
    ratios = layer.ratios({mistake: layer.altered[mistake]}, exact)
    weakest = min(ratios, key=ratios.__getitem__)
    assert ratios[weakest] > 32, (weakest, ratios[weakest])
