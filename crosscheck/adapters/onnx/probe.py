"""What `crosscheck doctor` asks ONNX and ONNX Runtime, in a process of its own."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import onnx
import onnxruntime

__all__ = ["probe"]


def probe() -> dict[str, Any]:
    """Versions and execution providers; the CUDA one is built in, which does not mean it runs."""
    try:
        script = metadata.version("onnxscript")
    except metadata.PackageNotFoundError:
        script = "not installed"
    providers = onnxruntime.get_available_providers()
    return {
        "versions": {
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "onnxscript": script,
        },
        "devices": [p for p in providers if p.startswith(("CUDA", "Tensorrt", "ROCM"))],
        "precision": {"providers": ", ".join(providers)},
    }
