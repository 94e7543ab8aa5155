"""Defects of the Llama-style decoder in Flax NNX.

A defect without a source was made up. For parameters that have changed places see
`models.defects.llama`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from models.defects.base import Defect, alter, change


def jax_tiled(self: Any, x: Any) -> Any:
    import jax.numpy as jnp

    return jnp.tile(x, (1, 3, 1, 1))


def jax_other_way_round(self: Any, x: Any, cos: Any, sin: Any) -> Any:
    return type(self).__base__.turn(self, x, cos, -sin)


def jax_from_position_one(self: Any, x: Any) -> Any:
    """Positions from one for from zero: the scores are the same, the rotated vectors are not."""
    import jax.numpy as jnp

    longer = jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))
    cos, sin = type(self).__base__.angles(self, longer)
    return cos[1:], sin[1:]


def jax_everything_visible(self: Any, length: int) -> Any:
    import jax.numpy as jnp

    return jnp.ones((length, length), bool)


def jax_gate_detached(self: Any, x: Any) -> Any:
    import jax

    return self.down(jax.lax.stop_gradient(self.silu(self.gate(x))) * self.up(x))


def jax_softmax_without_sum(self: Any, x: Any) -> Any:
    """Backward y · dy in place of y · (dy − Σ y dy)."""
    import jax

    @jax.custom_vjp
    def softmax(x: Any) -> Any:
        return jax.nn.softmax(x, axis=-1)

    def forward(x: Any) -> Any:
        y = jax.nn.softmax(x, axis=-1)
        return y, y

    softmax.defvjp(forward, lambda y, dy: (y * dy,))
    return softmax(x)


def jax_gate_up_swapped(mlp: Any) -> None:
    gate, up = mlp.gate.kernel[...], mlp.up.kernel[...]
    mlp.gate.kernel[...], mlp.up.kernel[...] = up, gate


jax_defect = functools.partial(Defect, family="llama", candidate="jax")

DEFECTS: tuple[Defect, ...] = (
    jax_defect(
        name="llama-jax-rmsnorm-eps-1e-6",
        mistake="RMSNorm eps 1e-6, Flax' default, for 1e-5",
        source="",
        phase="forward",
        site="blocks.0.norm1",
        inject=change("blocks.0.norm1", epsilon=1e-6),
    ),
    jax_defect(
        name="llama-jax-heads-tiled",
        mistake="key heads tiled for repeated: query heads look at the wrong ones",
        source="apple/axlearn#842",
        phase="forward",
        site="blocks.0.attn",
        inject=change("blocks.0.attn", spread=jax_tiled),
    ),
    jax_defect(
        name="llama-jax-rotary-other-way",
        mistake="rotated by the negative angle",
        source="how-to-train-your-gpt#7",
        phase="forward",
        site="blocks.1.attn.rotary",
        inject=change("blocks.1.attn.rotary", turn=jax_other_way_round),
    ),
    jax_defect(
        name="llama-jax-rotary-from-one",
        mistake="rotary positions from one for from zero, which no output shows",
        source="",
        phase="forward",
        site="blocks.0.attn.rotary",
        inject=change("blocks.0.attn.rotary", angles=jax_from_position_one),
    ),
    jax_defect(
        name="llama-jax-mask-missing",
        mistake="attention without its mask: the future leaks",
        source="tensorflow/tensorflow#45854",
        phase="forward",
        site="blocks.0.attn.core",
        inject=change("blocks.0.attn.core", visible=jax_everything_visible),
    ),
    jax_defect(
        name="llama-jax-scale-of-all-heads",
        mistake="scores scaled by the width of all heads for one's",
        source="",
        phase="forward",
        site="blocks.1.attn.core",
        inject=change("blocks.1.attn.core", scale=1 / math.sqrt(48)),
    ),
    jax_defect(
        name="llama-jax-softmax-backward",
        mistake="softmax's backward lacks the sum term",
        source="HomericIntelligence/Odyssey#2134",
        phase="backward",
        site="blocks.1.attn.core.softmax",
        inject=change("blocks.1.attn.core.softmax", __call__=jax_softmax_without_sum),
    ),
    jax_defect(
        name="llama-jax-gate-detached",
        mistake="no gradient passes through the gate of SwiGLU",
        source="paiml/aprender#3034",
        phase="backward",
        site="blocks.0.mlp",
        inject=change("blocks.0.mlp", __call__=jax_gate_detached),
    ),
    jax_defect(
        name="llama-jax-gate-up-swapped",
        mistake="gate and up loaded into each other's place",
        source="",
        phase="forward",
        site="blocks.1.mlp",
        inject=alter("blocks.1.mlp", jax_gate_up_swapped),
        keep_weights=True,
    ),
)
