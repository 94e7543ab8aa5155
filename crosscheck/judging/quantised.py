"""How coarsely a quantised model holds its values: the step between two numbers that it can hold.

Between the two integers next to it, a value lies at most half a step off. A quantised port is right
when it is off by that and by what follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crosscheck.observers import Key

__all__ = ["SHARE", "Steps"]

SHARE = 1.0 / 12.0
"""Part of a step that counts as one noise floor: half a step is 6 of them and agrees (up to 8), a
whole one is 12."""


@dataclass(frozen=True)
class Steps:
    """Quantisation steps by the names of the side that has them; absolute, the largest of a value.

    Attributes:
        held: of values that are multiples of a step as they are shown.
        passed: of values that are shown as they were before they were quantised: what lies behind
            them reads the quantised ones.
        parameters: of the weights.
    """

    held: Mapping[Key, float] = field(default_factory=dict)
    passed: Mapping[Key, float] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)
