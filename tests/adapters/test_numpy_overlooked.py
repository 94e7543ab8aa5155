"""Arrays that are not taken for parameters are named where parameters are missing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import crosscheck
from crosscheck.errors import CannotCompare


class Tensor:
    def __init__(self, *shape: int) -> None:
        self.data, self.grad = np.zeros(shape, np.float32), np.zeros(shape, np.float32)


class Called:
    """A layer that is called: it has no `forward`."""

    def __init__(self) -> None:
        self.kernel = Tensor(7, 3)

    def __call__(self, x: Any) -> Any:
        return x @ self.kernel.data


class Net:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)

    def forward(self, x: Any) -> Any:
        return x[:, :3]


def error_of(candidate: Any) -> str:
    reference = torch.nn.Linear(7, 3, bias=False)
    with pytest.raises(CannotCompare) as caught:
        crosscheck.check(reference, candidate, {"x": "float32[4,7]"})
    return str(caught.value)


@pytest.mark.parametrize(
    ("candidate", "name"),
    [
        (Net(weights=[np.zeros((7, 3), np.float32)]), "weights.0"),
        (Net(inner=Called()), "inner.kernel.data"),
        (Net(_hidden={"theta": np.zeros((3, 7), np.float32)}), "_hidden.theta"),
        (Called(), "function.kernel.data"),
    ],
)
def test_an_array_that_may_be_the_missing_parameter_is_named(candidate: Any, name: str) -> None:
    assert f"not taken for parameters: `{name}`.\n  Fix: " in error_of(candidate)


def test_arrays_of_other_sizes_and_gradients_are_not() -> None:
    other = Net(cache=np.zeros((4, 7)), grad_of=np.zeros((7, 3)), ids=np.zeros((7, 3), np.int64))
    assert "not taken for parameters" not in error_of(other)


def test_an_object_that_holds_itself_ends() -> None:
    net = Net(sizes=itertools.count(), theta=[np.zeros((7, 3), np.float32)])
    net.me = net  # type: ignore[attr-defined]
    assert "`theta.0`" in error_of(net)
