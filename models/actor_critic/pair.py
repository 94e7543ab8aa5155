"""PyTorch's actor-critic against NumPy's, Keras', Flax' and its own ONNX export."""

from __future__ import annotations

from typing import Any

import crosscheck


def reference() -> Any:
    from models.actor_critic.reference import build

    return build()


def numpy_net() -> Any:
    from models.actor_critic.scratch_net import build

    return build()


def keras_model() -> Any:
    from models.actor_critic.keras_port import build

    return build()


def jax_module() -> Any:
    from models.actor_critic.jax_port import build

    return build()


def onnx_export() -> Any:
    """Run by ONNX Runtime as exported, with the gradients that PyTorch's formulas give."""
    return crosscheck.adapt(reference(), export="onnx", optimization="none", gradients=True)


def onnx_optimized() -> Any:
    """With every fusion of ONNX Runtime, as it would run in production; forward only."""
    return crosscheck.adapt(reference(), export="onnx", optimization="all")


def inputs(seed: int) -> dict[str, Any]:
    """States of an acrobot (Sutton, 1996), (7, 6): of its two joints cos, sin and velocity."""
    import numpy as np

    rng = np.random.default_rng(seed)
    angles, speeds = rng.uniform(-np.pi, np.pi, (7, 2)), rng.normal(size=(7, 2))
    states = np.concatenate([np.cos(angles), np.sin(angles), speeds], axis=1)
    return {"x": states.astype(np.float32)}


def targets(seed: int) -> dict[str, Any]:
    """The actions that were taken and the rewards that followed, (7,) each."""
    import numpy as np

    rng = np.random.default_rng(seed + 1)
    return {"output": rng.integers(0, 3, 7), "output:1": rng.normal(size=7).astype(np.float32)}


pair = crosscheck.Pair(
    reference=reference,
    candidate={
        "numpy": numpy_net,
        "keras": keras_model,
        "jax": jax_module,
        "onnx": onnx_export,
        "onnx-optimized": onnx_optimized,
    },
    inputs=inputs,
    loss={"output": "nll", "output:1": "0.5 * mse"},
    targets=targets,
    name="actor_critic",
)
