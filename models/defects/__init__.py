"""Porting mistakes that were made elsewhere, planted one at a time to see whether they are found.

Each has a place and a phase, so a report can be marked: did it name the layer that was altered?
"""

from models.defects import cnn, gpt, jax, mlp, onnx
from models.defects.base import Defect

DEFECTS: tuple[Defect, ...] = (*mlp.DEFECTS, *cnn.DEFECTS, *gpt.DEFECTS, *jax.DEFECTS)
GRAPH_DEFECTS: tuple[Defect, ...] = onnx.DEFECTS  # in the reference's own export, not in a port

__all__ = ["DEFECTS", "GRAPH_DEFECTS", "Defect"]
