"""The runs of a reference that checks share through files (`crosscheck.traces.shared`).

Imports nothing: the suite's own processes, which load neither NumPy nor a framework, carry them
from one machine to the others.
"""

from __future__ import annotations

__all__ = ["FLOAT64", "FREE", "RUNS", "VJPS", "WANTED"]

FREE = ""
FLOAT64 = ".float64"
VJPS = ".vjps"
RUNS = (FREE, FLOAT64, VJPS)
"""What is added to the name of the file."""
WANTED = ".wanted"
"""What is added to that, for an empty file that is there when a check needs the run."""
