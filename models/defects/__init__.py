"""Porting mistakes that were made elsewhere, planted one at a time to see whether they are found.

Each has a place and a phase, so a report can be marked: did it name the layer that was altered?
"""

from models.defects import cnn, gpt, jax, mlp, onnx, sequence
from models.defects.base import Defect
from models.defects.vision import VISION_DEFECTS

DEFECTS: tuple[Defect, ...] = (*mlp.DEFECTS, *cnn.DEFECTS, *gpt.DEFECTS, *jax.DEFECTS)
GRAPH_DEFECTS: tuple[Defect, ...] = onnx.DEFECTS  # in the reference's own export, not in a port
SEQUENCE_DEFECTS: tuple[Defect, ...] = sequence.DEFECTS

__all__ = ["DEFECTS", "GRAPH_DEFECTS", "SEQUENCE_DEFECTS", "VISION_DEFECTS", "Defect"]
