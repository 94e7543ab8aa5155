"""Hand-written CUDA kernels as layers: how to put one under test."""
