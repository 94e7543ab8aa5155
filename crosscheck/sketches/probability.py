"""What a sketch promises, as probabilities over the choice of its seed (docs/traces.md).

For a difference d that is spread over many elements, k‖Sd‖²/‖d‖² is close to χ² with k degrees of
freedom, whose tails Chernoff's bound holds below (x e^(1−x))^(k/2) (Dasgupta & Gupta, "An
elementary proof of a theorem of Johnson and Lindenstrauss", Random Struct. Algorithms 22, 2003).
For any d at all, Var‖Sd‖² ≤ (2/k)‖d‖⁴ and Cantelli's inequality hold.
"""

from __future__ import annotations

import math

from crosscheck.judging.noise import AGREE, DIVERGE
from crosscheck.sketches.make import Sketch
from crosscheck.sketches.project import Plan

__all__ = ["kept", "misplaced", "missed", "sees", "spread", "tail", "tail_of_any"]

HONEST = 4.0
"""What an honest port stays below, in floors (``docs/verdict.md``); about two is usual."""


def tail(rows: int, share: float) -> float:
    """Bounds P(‖Sd‖² ≤ share·‖d‖²) for share < 1 and P(‖Sd‖² ≥ share·‖d‖²) for share > 1."""
    return math.pow(share * math.exp(1.0 - share), rows / 2)


def tail_of_any(rows: int, share: float) -> float:
    """The same for a difference of any form, single elements included."""
    variance = 2.0 / rows
    return variance / (variance + (1.0 - share) ** 2)


def spread(rows: int) -> float:
    """The relative standard deviation of the estimated ‖d‖², at most."""
    return math.sqrt(2.0 / rows)


def missed(rows: int, share: float = (AGREE / DIVERGE) ** 2) -> float:
    """How likely a difference passes for agreement, at most; by default one of 32 floors."""
    return tail(rows, share)


def misplaced(rows: int, values: int) -> float:
    """How likely a difference of 32 floors or more is missed, or found elsewhere, at most.

    None of the values before it may look like a departure: each of at most ``values`` differs
    honestly, by up to four floors, and is estimated above eight with probability ``tail(k, 4)``.
    """
    return min(1.0, missed(rows) + values * tail(rows, (AGREE / HONEST) ** 2))


def kept(plan: Plan) -> str:
    """What is kept of each value, in words."""
    k = plan.rows
    return (
        f"each value is {k} projections and {plan.sample} sampled elements (those of up to {k} "
        "elements are whole)"
    )


def sees(sketch: Sketch) -> str:
    """The promise of a sketch, in words."""
    k = sketch.plan.rows
    return (
        f"a difference is estimated to within {100 * spread(k):.0f} % of its square (one standard "
        f"deviation); one that is spread out and stands at {DIVERGE:.0f} times the floor passes "
        f"for agreement ({AGREE:.0f} times) with a probability of at most {missed(k):.1g}, a "
        "single wrong element never"
    )
