"""What `crosscheck doctor` asks Keras and TensorFlow, in a process of its own."""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf

__all__ = ["probe"]


def probe() -> dict[str, Any]:
    """Versions, GPUs and the flags that decide how exact its arithmetic is."""
    return {
        "versions": {
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "keras backend": keras.backend.backend(),
        },
        "devices": [device.name for device in tf.config.list_physical_devices("GPU")],
        "precision": {
            "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),
            "TF_DETERMINISTIC_OPS": os.environ.get("TF_DETERMINISTIC_OPS", "not set"),
            "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "not set (on)"),
            "TF_XLA_FLAGS": os.environ.get("TF_XLA_FLAGS", "not set"),
            "jit": tf.config.optimizer.get_jit() or "off",
            "floatx": keras.config.floatx(),
        },
    }
