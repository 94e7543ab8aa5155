"""Training sanity checks of one implementation: `crosscheck.audit`, and each check by itself in
`crosscheck.checks`.

The checks are those that articles on debugging neural networks recommend: every variable trains
and no other does, the loss at initialisation is a random guess's, BatchNorm and dropout are in the
right mode, gradients agree with finite differences, a few examples can be learnt by heart, examples
do not depend on each other.
"""

from crosscheck.auditing.results import AuditReport, Finding
from crosscheck.auditing.run import audit

__all__ = ["AuditReport", "Finding", "audit"]
