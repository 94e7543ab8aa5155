"""Keras 3 on PyTorch: the contract, and what only this backend does.

The backend of Keras is fixed for a process: `test_keras_backends` runs this file in one of its own.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("torch")
if os.environ.get("KERAS_BACKEND") != "torch":
    pytest.skip("Keras runs on another backend; see test_keras_backends", allow_module_level=True)
keras = pytest.importorskip("keras")

import torch  # noqa: E402

from crosscheck import adapt, check  # noqa: E402

from .contract import X, ones, record  # noqa: E402
from .keras_cases import KerasContract  # noqa: E402
from .keras_checks import checks_of_a_port, keras_net  # noqa: E402
from .keras_kit import named  # noqa: E402


class TestKerasOnTorch(KerasContract):
    pass


def test_checks_of_a_port() -> None:
    checks_of_a_port()


def test_a_port_of_a_torch_module() -> None:
    """Both are nn.Modules; the one that is a Keras layer is seen as one."""
    reference = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    report = check(reference, keras_net(), "float32[6,4]")
    assert report.verdict == "agree", str(report)
    assert (report.reference.framework, report.candidate.framework) == ("torch", "keras")


def test_a_torch_module_inside_a_keras_model() -> None:
    inside = torch.nn.Linear(4, 4)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.TorchModuleWrapper(inside, name="inside"), named("fc", 3)]
    )
    model(X)
    values, info = record(adapt(model), cotangents=ones)
    expected = inside(torch.tensor(X)).detach().numpy()
    assert np.array_equal(values["activation", "inside"], expected)
    assert len(info.parameter_gradients) == 4
