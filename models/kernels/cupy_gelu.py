"""GELU(x + b) as two CUDA kernels in CUDA C, launched by CuPy, in a layer to check.

    report = crosscheck.check(torch_layer, BiasGelu(6), "float32[5,6]", device="cuda")

Everything that the layer takes, keeps and gives is a CuPy array; see `numba_gelu` for the rest.
"""

from __future__ import annotations

from typing import Any, ClassVar

import cupy

THREADS = 256
SOURCE = """
template<typename T>
__device__ T cdf(T v) { return T(0.5) * (T(1) + erf(v * T(0.7071067811865476))); }

template<typename T>
__global__ void bias_gelu(const T* x, const T* b, T* y, int n, long long size) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= size) return;
    T v = x[i] + b[i % n];
    y[i] = v * cdf(v);
}

template<typename T>
__global__ void bias_gelu_vjp(const T* x, const T* b, const T* dy, T* dx, int n, long long size) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= size) return;
    T v = x[i] + b[i % n];
    dx[i] = dy[i] * (cdf(v) + v * T(0.3989422804014327) * exp(T(-0.5) * v * v));
}
"""
NAMES = [f"{k}<{t}>" for k in ("bias_gelu", "bias_gelu_vjp") for t in ("float", "double")]


class BiasGelu:
    """x (rows, n) -> GELU(x + b) (rows, n), in float32 or float64."""

    axes: ClassVar[dict[str, tuple[str, ...]]] = {"b": ("channel",)}

    def __init__(self, n: int) -> None:
        self.b, self.db = cupy.zeros(n, cupy.float32), cupy.zeros(n, cupy.float32)

    def forward(self, x: Any) -> Any:
        self.x = cupy.ascontiguousarray(x)  # the kernels count elements in memory
        y = cupy.empty_like(self.x)
        _launch("bias_gelu", self.x, self.b, y)
        return y

    def backward(self, dy: Any) -> Any:
        dx = cupy.empty_like(self.x)
        _launch("bias_gelu_vjp", self.x, self.b, cupy.ascontiguousarray(dy), dx)
        self.db += dx.sum(0)
        return dx


_MODULE = cupy.RawModule(code=SOURCE, options=("-std=c++14",), name_expressions=NAMES)


def _launch(kernel: str, x: Any, *others: Any) -> None:
    kind = "float" if x.dtype == cupy.float32 else "double"
    function = _MODULE.get_function(f"{kernel}<{kind}>")
    blocks = (x.size + THREADS - 1) // THREADS
    sizes = cupy.int32(x.shape[-1]), cupy.int64(x.size)
    function((blocks,), (THREADS,), (x, *others, *sizes))
