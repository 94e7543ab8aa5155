"""What `crosscheck doctor` asks PyTorch, in a process of its own."""

from __future__ import annotations

import os
from typing import Any

import torch

__all__ = ["probe"]


def probe() -> dict[str, Any]:
    """Versions, CUDA devices and the flags that decide how exact its arithmetic is."""
    cuda = torch.cuda.is_available()
    count = torch.cuda.device_count() if cuda else 0
    return {
        "versions": {"torch": torch.__version__, "cuda (built with)": torch.version.cuda or "none"},
        "devices": [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(count)],
        "precision": {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "not set"),
            "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        },
    }
