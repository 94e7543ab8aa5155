"""A module that looks at its values to decide what to compute, as many skip a mask of ones."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import crosscheck  # noqa: E402


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = torch.nn.Linear(4, 3)
        self.out = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.fc(x)
        if torch.compiler.is_exporting() or not bool((mask == 1).all()):
            h = h * mask[:, None]
        return self.out(h.tanh())


def test_the_backward_pass_follows_the_values() -> None:
    model = Masked()
    port = crosscheck.adapt(model, export="onnx", gradients=True)
    for mask in (np.ones(5, np.float32), np.array([1, 1, 0, 1, 0], np.float32)):
        report = crosscheck.check(model, port, {"x": "float32[5,4]", "mask": mask}, weights="keep")
        assert report.verdict == "agree", str(report)
        assert sum(site.phase == "parameter_gradient" for site in report.sites) == 4
