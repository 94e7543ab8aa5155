"""One check of a Keras model against a hand-written net, for each backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from crosscheck import Report, adapt, check

from .keras_kit import named

layers = keras.layers


class Linear:
    def __init__(self, rows: int, columns: int) -> None:
        rng = np.random.default_rng(rows)
        self.W = rng.normal(size=(rows, columns)).astype("f")
        self.b = rng.normal(size=columns).astype("f")

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy: Any) -> Any:
        self.dW, self.db = self.x.T @ dy, dy.sum(0)
        return dy @ self.W.T


class Relu:
    def forward(self, x: Any) -> Any:
        self.mask = x > 0
        return x * self.mask

    def backward(self, dy: Any) -> Any:
        return dy * self.mask


def keras_net(slope: float = 0.0) -> Any:
    return keras.Sequential(
        [
            keras.Input((4,)),
            named("first", 5),
            layers.ReLU(negative_slope=slope, name="act"),
            named("second", 3),
        ]
    )


def by_hand() -> list[Any]:
    return [Linear(4, 5), Relu(), Linear(5, 3)]


def checks_of_a_port() -> None:
    """An honest one agrees; a wrong slope is blamed on the activation."""
    report: Report = check(keras_net(), by_hand(), "float32[6,4]")
    assert report.verdict == "agree", str(report)
    assert report.coverage.parameters_matched == 4
    assert not report.coverage.not_compared
    assert report.reference.framework == "keras"
    assert keras.backend.backend() in report.reference.version
    report = check(by_hand(), keras_net(slope=0.1), "float32[6,4]")
    assert report.first_divergence is not None
    assert report.first_divergence.candidate == "act"
    assert adapt(keras_net()).framework == "keras"
