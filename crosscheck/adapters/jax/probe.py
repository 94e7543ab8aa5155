"""What `crosscheck doctor` asks JAX, in a process of its own."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import jax

__all__ = ["probe"]


def probe() -> dict[str, Any]:
    """Versions, accelerators and the flags that decide how exact its arithmetic is."""
    versions = {"jax": jax.__version__}
    for name in ("jaxlib", "flax", "equinox"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "versions": versions,
        "devices": [f"{d} {d.device_kind}" for d in jax.devices() if d.platform != "cpu"],
        "precision": {
            "default_matmul_precision": _flag("jax_default_matmul_precision") or "default",
            "enable_x64": _flag("jax_enable_x64"),
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", "not set"),
        },
    }


def _flag(name: str) -> Any:
    return getattr(jax.config, name, None)
