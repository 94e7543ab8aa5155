"""One check of a Keras model against a hand-written net, for each backend."""

from __future__ import annotations

from typing import Any

import keras

from crosscheck import Report, adapt, check
from tests.check.numpy_models import split

from .keras_kit import named

layers = keras.layers


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
    return split(4, 5, 3)


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
