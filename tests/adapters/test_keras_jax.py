"""Keras 3 on JAX: the contract, and what only this backend does.

The backend of Keras is fixed for a process: `test_keras_backends` runs this file in one of its own.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("jax")
if os.environ.get("KERAS_BACKEND") != "jax":
    pytest.skip("Keras runs on another backend; see test_keras_backends", allow_module_level=True)
keras = pytest.importorskip("keras")


from .keras_cases import KerasContract  # noqa: E402
from .keras_checks import checks_of_a_port  # noqa: E402


class TestKerasOnJax(KerasContract):
    pass


def test_checks_of_a_port() -> None:
    checks_of_a_port()
