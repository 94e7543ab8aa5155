"""Stage 9, explain: which known mistake reproduces what the candidate computed?

A hypothesis is a function of an `Evidence` that yields `Proposal`s; `register` adds one. A cause is
called verified only where a proposal reproduced the candidate's value on the inputs of the check
*and*, with the same constants, on fresh ones.
"""

from crosscheck.explain.evidence import Evidence, Proposal, Use
from crosscheck.explain.registry import hypotheses, register, unregister
from crosscheck.explain.verify import causes

__all__ = ["Evidence", "Proposal", "Use", "causes", "hypotheses", "register", "unregister"]
