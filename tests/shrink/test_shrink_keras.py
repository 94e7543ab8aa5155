"""A Keras candidate: its stock layers are made again from their configuration."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from torch import nn

import crosscheck


@pytest.mark.slow
def test_a_stock_layer_of_keras(tmp_path: Path) -> None:
    reference = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.LeakyReLU(0.01)).eval()
    candidate = keras.Sequential(
        [
            keras.Input((6, 5, 2)),
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(epsilon=1e-3),
            keras.layers.LeakyReLU(negative_slope=0.01),
        ]
    )
    shrunk = crosscheck.shrink(
        reference,
        candidate,
        "float32[4,2,6,5]",
        candidate_inputs=lambda given: np.moveaxis(given["x"], 1, -1),
        directory=tmp_path,
        gradients=False,
    )
    first = shrunk.report.first_divergence
    assert first is not None and first.reference == "1"
    assert shrunk.inputs["x"].shape[0] == 1
    assert "depth: blocks are taken out of PyTorch modules and nets by hand only" in shrunk.limits
    assert shrunk.script is not None, str(shrunk)
    text = shrunk.script.read_text()
    assert "reference = torch.nn.BatchNorm2d(num_features=3, eps=1e-05" in text
    assert "candidate = keras.layers.BatchNormalization.from_config(" in text
    assert ".transpose((0, 3, 1, 2))  # the reference's layout" in text
    assert first.metrics is not None
    assert shrunk.difference == pytest.approx(first.metrics.rel_l2, rel=0.5)
