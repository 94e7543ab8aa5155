"""Stage 2, transfer: reference parameters -> candidate parameters, verified after loading.

layers, layouts     which layouts map a parameter onto another: named axes, else shapes
readings            layers stored in different pieces: `recurrent` (gates), `attention` (q, k, v)
ties                one parameter on one side, two on the other
matching            all of that in order -> a `Match`
trials              what stays open, settled by running or by the values held
expressions         the linear maps in between, which gradients go through backwards
given, spelling     maps by hand, and the text that `crosscheck weights` prints
"""

from __future__ import annotations

from crosscheck.weights.given import WeightMap
from crosscheck.weights.match import Match, Matched, decisions, layout_choices
from crosscheck.weights.matching import match_parameters
from crosscheck.weights.transform import Transform
from crosscheck.weights.trials import Fit, settle, settle_by_values

__all__ = [
    "Fit",
    "Match",
    "Matched",
    "Transform",
    "WeightMap",
    "decisions",
    "layout_choices",
    "match_parameters",
    "settle",
    "settle_by_values",
]
