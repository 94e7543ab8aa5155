"""Defects of the recurrent, attention, expert and graph models, and of the actor-critic."""

from __future__ import annotations

from models.defects import bert, gru, llama, llama_jax, mixed, recurrent
from models.defects.base import Defect

DEFECTS: tuple[Defect, ...] = (
    *recurrent.DEFECTS,
    *gru.DEFECTS,
    *bert.DEFECTS,
    *llama.DEFECTS,
    *llama_jax.DEFECTS,
    *mixed.DEFECTS,
)
