"""GELU(x + b) as two CUDA kernels in Numba, in a layer that crosscheck can check.

A layer is an object with ``forward`` and ``backward``; its parameters are arrays with a usual name
(``b``) and their gradients lie beside them (``db``). What happens inside is its own affair.
Without a GPU, Numba's simulator runs the kernels: set NUMBA_ENABLE_CUDASIM=1 before it is imported.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numba import cuda

THREADS = 32


@cuda.jit
def _forward(x: Any, b: Any, y: Any) -> None:  # x, y (rows, n); b (n,)
    i = cuda.grid(1)
    if i < x.size:
        row, column = i // x.shape[1], i % x.shape[1]
        v = x[row, column] + b[column]
        y[row, column] = 0.5 * v * (1.0 + math.erf(v * 0.7071067811865476))


@cuda.jit
def _backward(x: Any, b: Any, dy: Any, dx: Any) -> None:
    i = cuda.grid(1)
    if i < x.size:
        row, column = i // x.shape[1], i % x.shape[1]
        v = x[row, column] + b[column]
        cdf = 0.5 * (1.0 + math.erf(v * 0.7071067811865476))
        pdf = 0.3989422804014327 * math.exp(-0.5 * v * v)
        dx[row, column] = dy[row, column] * (cdf + v * pdf)


class BiasGelu:
    """x (rows, n) -> GELU(x + b) (rows, n)."""

    axes: ClassVar[dict[str, tuple[str, ...]]] = {"b": ("channel",)}

    def __init__(self, n: int) -> None:
        self.b, self.db = np.zeros(n, np.float32), np.zeros(n, np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        y = np.empty_like(x)
        _forward[_blocks(x), THREADS](x, self.b, y)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = np.empty_like(dy)
        _backward[_blocks(dy), THREADS](self.x, self.b, dy, dx)
        self.db += dx.sum(0)
        return dx


def _blocks(x: np.ndarray) -> int:
    return -(-x.size // THREADS)
