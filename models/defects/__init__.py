"""Porting mistakes that were made elsewhere, planted one at a time to see whether they are found.

Each has a place and a phase, so a report can be marked: did it name the layer that was altered?
"""

from models.defects import cnn, gpt, mlp
from models.defects.base import Defect

DEFECTS: tuple[Defect, ...] = (*mlp.DEFECTS, *cnn.DEFECTS, *gpt.DEFECTS)

__all__ = ["DEFECTS", "Defect"]
