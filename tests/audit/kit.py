"""The batch that the tests share, a healthy PyTorch net, and what an audit found."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import crosscheck
from crosscheck.auditing import AuditReport

BATCH, FEATURES, CLASSES = 16, 6, 3


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x (16, 6) float32 and labels (16,) that a linear map of x gives."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((BATCH, FEATURES)).astype(np.float32)
    return x, (x @ rng.standard_normal((FEATURES, CLASSES))).argmax(axis=1)


X, Y = batch()


class Net(nn.Module):
    """What each planted fault changes a line of."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, CLASSES)
        for name, part in parts.items():
            setattr(self, name, part)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.relu(self.norm(self.first(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.before(x)))


def audit(
    model: Any, x: Any = X, loss: Any = "cross_entropy", y: Any = Y, **given: Any
) -> AuditReport:  # noqa: E501
    """With few steps of learning: these models are small."""
    few = {"overfit_steps": 40, "overfit_lr": 0.1}
    return crosscheck.audit(model, {"x": x}, loss, y, **{**few, **given})


def speaking(report: AuditReport) -> dict[str, str]:
    """Name -> severity of every check that is not content; notes left out."""
    return {f.check: f.severity for f in (*report.wrong, *report.suspicious)}


def finding(report: AuditReport, check: str) -> Any:
    return next(f for f in report.findings if f.check == check)
