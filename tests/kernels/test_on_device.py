"""Values that stay on a device: Triton's interpreter, and host tensors in the place of a GPU's."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.kit import interpreted, report_the_same

torch = pytest.importorskip("torch")

from crosscheck.aligning.layout import Layout  # noqa: E402
from crosscheck.details.stage import OTHERS  # noqa: E402
from crosscheck.kernels import on_device  # noqa: E402
from crosscheck.kernels.on_device import (  # noqa: E402
    DeviceArray,
    device_moments,
    equal,
    has_room,
    held,
    lent,
    stays,
    together,
)
from crosscheck.kernels.pairs import moments  # noqa: E402

NUMBERS = np.random.default_rng(0).standard_normal((3, 40, 5)).astype(np.float32)


def there(array: np.ndarray = NUMBERS, **how: bool) -> DeviceArray:
    return DeviceArray(torch.from_numpy(array.copy()), **how)


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many elements were copied to the host, each time."""
    counts: list[int] = []
    original = on_device._fetched

    def counting(tensor: Any) -> np.ndarray:
        counts.append(tensor.numel())
        return original(tensor).copy()

    monkeypatch.setattr(on_device, "_fetched", counting)
    monkeypatch.setattr(DeviceArray, "made", False)  # nobody looks for them afterwards
    return counts


def test_shapes_and_views_fetch_nothing(fetched: list[int]) -> None:
    value = there()
    assert (value.shape, value.dtype, value.size, value.ndim) == ((3, 40, 5), np.float32, 600, 3)
    assert (value.nbytes, value.itemsize, len(value)) == (2400, 4, 3)
    turned, flat = value.transpose(0, 2, 1), value.reshape(3, 200)
    assert turned.shape == (3, 5, 40) and value.transpose().shape == (5, 40, 3)
    assert value.transpose((2, 0, 1)).shape == np.transpose(value, (2, 0, 1)).shape == (5, 3, 40)
    last = Layout((0, 2, 1))
    assert last.to_candidate(value).shape == last.to_reference(value).shape == (3, 5, 40)
    assert there(NUMBERS[0, 0]).transpose(0).shape == (5,) and value.transpose(None).shape[0] == 5
    assert not fetched
    assert np.array_equal(turned, NUMBERS.transpose(0, 2, 1))
    assert np.array_equal(flat, NUMBERS.reshape(3, 200))
    wide = value.astype(np.float64)
    assert isinstance(wide, DeviceArray) and np.array_equal(wide, NUMBERS.astype(np.float64))
    assert value[1, 2, 3] == NUMBERS[1, 2, 3] and value[-1, -1, -1] == NUMBERS[-1, -1, -1]
    assert np.array_equal(value.take_flat(np.array([0, 7, 599])), NUMBERS.ravel()[[0, 7, 599]])


def test_to_numpy_it_is_an_array(fetched: list[int]) -> None:
    value = there()
    assert np.array_equal(value[1:, ::2], NUMBERS[1:, ::2])
    assert np.array_equal(value + 1, NUMBERS + 1) and np.array_equal(1 - value, 1 - NUMBERS)
    assert np.array_equal(value > 0, NUMBERS > 0) and value.flags.c_contiguous
    assert np.array_equal(np.abs(value).max(axis=1), np.abs(NUMBERS).max(axis=1))
    assert np.array_equal(np.stack([value, value])[1], NUMBERS)
    assert np.array_equal(np.asarray(value, dtype=np.int64), NUMBERS.astype(np.int64))
    assert np.allclose(np.add.reduce(value, axis=0), NUMBERS.sum(0))
    assert np.array_equal(value.astype(np.int32), NUMBERS.astype(np.int32))
    assert fetched == [600]  # once
    copy = np.array(value)
    copy[:] = 0.0
    assert np.array_equal(value, NUMBERS)
    with pytest.raises(AttributeError):
        value.no_such_thing  # noqa: B018


def test_a_copy_is_of_its_own() -> None:
    value = there()
    copy, same = held(value, borrowed=False), held(value, borrowed=True)
    value.tensor.zero_()
    assert same is value and np.array_equal(copy, NUMBERS)
    assert equal(there(), there()) and not equal(there(), copy.transpose())
    brain = DeviceArray(torch.ones(3, dtype=torch.bfloat16))
    assert brain.dtype == ml_dtypes.bfloat16 and np.asarray(brain).dtype == ml_dtypes.bfloat16


def test_moments_are_those_of_the_host() -> None:
    numbers = np.random.default_rng(1).standard_normal((50, 3000)).astype(np.float32)
    numbers[3, 4], numbers[5, 6] = np.nan, -np.inf
    want, got = moments(numbers), device_moments(there(numbers))
    assert want is not None
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_only_what_lies_together_is_compared_there() -> None:
    assert together([there(), there()])
    assert not together([there(), NUMBERS]) and not together([NUMBERS, NUMBERS])


def test_what_was_fetched_once_serves_what_is_made_of_it(fetched: list[int]) -> None:
    value = there()
    turned, wide, flat = value.transpose(2, 0, 1), value.astype(np.float64), value.reshape(-1)
    assert np.array_equal(turned, NUMBERS.transpose(2, 0, 1)) and fetched == [600]
    assert np.array_equal(wide, NUMBERS.astype(np.float64)) and np.asarray(wide).dtype == np.float64
    assert np.array_equal(flat[::2], NUMBERS.ravel()[::2]) and np.array_equal(value, NUMBERS)
    assert fetched == [600]
    assert np.array_equal(value.copy(), NUMBERS) and fetched == [600, 600]  # memory of its own


def test_a_few_elements_are_fetched_alone(fetched: list[int]) -> None:
    value = there()
    assert np.array_equal(value.reshape(-1)[::20], NUMBERS.ravel()[::20])
    assert (
        np.array_equal(value.flat[:7], NUMBERS.ravel()[:7])
        and value.flat[-1] == NUMBERS[-1, -1, -1]
    )
    assert np.array_equal(value[1, 2:4], NUMBERS[1, 2:4])
    assert fetched == [30, 7, 1, 10]
    for index in (np.array([2]), True, slice(None, None, -1), ..., (0, None)):
        assert np.array_equal(there()[index], NUMBERS[index])  # as NumPy reads them


def test_equal_is_of_values_and_of_bits() -> None:
    odd = NUMBERS.copy()
    odd[0, 0, 0] = np.nan
    assert not equal(there(odd), there(odd)) and equal(there(odd), there(odd), bits=True)
    zeros = np.zeros((2, 3), np.float32)
    assert equal(there(zeros), there(-zeros)) and not equal(there(zeros), there(-zeros), bits=True)
    assert equal(there(zeros), there(zeros.astype(np.float64))) and equal(there(zeros), zeros)


def test_memory_of_another_framework_is_read_before_anybody_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(on_device, "_wait_for", waited.append)
    value = there(lent=True, lasting=True)
    assert held(value, borrowed=False) is value  # nobody writes to it
    view = value.transpose().reshape(5, 40, 3).astype(np.float32, copy=False)
    assert view.lent and view.lasting and not waited
    for made in (value.copy(), value.astype(np.float64), value.transpose().reshape(-1)):
        assert not made.lent and not made.lasting
    assert len(waited) == 3
    given = value.given_to(torch.empty(0, dtype=torch.float64))
    assert given.dtype is torch.float64 and len(waited) == 4
    own = there()
    assert not own.copy().lent and held(own, borrowed=False) is not own and len(waited) == 4


class Card:
    """Where PyTorch would say how much memory there is: 100 bytes."""

    def __init__(self, free: int, reserved: int = 0, allocated: int = 0) -> None:
        self.mem_get_info = lambda device: (free, 100)
        self.memory_reserved = lambda device: reserved
        self.memory_allocated = lambda device: allocated


@pytest.mark.parametrize(
    ("card", "room"),
    [
        (Card(100), True),
        (Card(20), True),  # another framework has taken the rest beforehand
        (Card(20, 60, 30), True),
        (Card(10, 70, 65), False),
        (Card(0), False),
    ],
)
def test_a_quarter_of_what_pytorch_can_get_is_left(
    monkeypatch: pytest.MonkeyPatch, card: Card, room: bool
) -> None:
    for name, told in vars(card).items():
        monkeypatch.setattr(torch.cuda, name, told)
    assert has_room(torch.device("cuda", 0)) is room


def test_only_what_lies_on_a_device_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "LEAST", 1)
    assert not stays(torch.ones(3)) and not stays(torch.ones(3, device="meta"))
    assert lent(NUMBERS, NUMBERS.size) is None  # PyTorch sees no device
    monkeypatch.setattr(on_device, "sees_devices", lambda: True)
    assert lent(NUMBERS, NUMBERS.size) is None  # the array is the host's
    assert lent(object(), 600) is None  # nothing that PyTorch could read


CHECKED = """
import json
import sys

import numpy as np
import torch
from torch import nn

import crosscheck
from crosscheck.adapters.torch import adapter, taps
from crosscheck.judging import sifting
from crosscheck.kernels import on_device, stacked
from crosscheck.kernels.on_device import DeviceArray

LARGE, fetched = 512, []


def shown(tensor):  # what it does with large tensors on a device
    return taps.to_host(tensor) if tensor.numel() <= LARGE else DeviceArray(tensor.detach())


def counting(tensor, original=on_device._fetched):
    fetched.append(tensor.numel())
    return original(tensor).copy()


if sys.argv[1] == "there":
    taps.shown, sifting.LARGE, stacked.LONGEST = shown, LARGE, LARGE
    adapter.shown, on_device._fetched = shown, counting


class Net(nn.Module):
    def __init__(self, act, bias):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), act
        self.up, self.head, self.bias = nn.Linear(8, 30), nn.Linear(30, 5), bias

    def forward(self, x):
        h = self.norm(self.conv(x))
        h.mul_(2.0)  # what a run has shown
        return self.head(torch.tanh(self.up(self.act(h).mean((2, 3))))) + self.bias


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2.0 * gradient


class Wrong(nn.ReLU):
    def forward(self, x):
        return Twice.apply(super().forward(x))


found = {}
for name, effort, candidate in [
    ("agree", "quick", Net(nn.ReLU(), 0.0)),
    ("agree", "thorough", Net(nn.ReLU(), 0.0)),
    ("forward", "quick", Net(nn.GELU(), 0.0)),
    ("backward", "thorough", Net(Wrong(), 0.0)),
]:
    fetched.clear()
    report = crosscheck.check(
        Net(nn.ReLU(), 0.0), candidate, "float32[2,3,10,10]", effort=effort, blind_spots=False
    )
    first = report.first_divergence
    found[f"{name}, {effort}"] = {
        "verdict": report.verdict,
        "first": first and [first.phase, first.candidate],
        "causes": first and [c.statement for c in first.causes if c.verified],
        "sites": [
            [s.phase, s.kind, s.reference, s.verdict, s.metrics is None] for s in report.sites
        ],
        "ratios": [s.ratio for s in report.sites],
        "errors": [s.metrics.rel_l2 for s in report.sites if s.metrics],
        "fetched": sum(n > LARGE for n in fetched),  # else single elements and samples
    }
print(json.dumps(found))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_a_check_finds_the_same_without_fetching_the_values() -> None:
    there, here = interpreted(CHECKED, "there"), interpreted(CHECKED, "here")
    report_the_same(here, there)
    verdicts = {name: one["verdict"] for name, one in there.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "agree"} == {
        "agree, quick",
        "agree, thorough",
    }
    assert there["agree, quick"]["fetched"] == 0 < there["forward, quick"]["fetched"]
    # Both sides of what a report shows details of.
    assert there["agree, thorough"]["fetched"] <= 2 * OTHERS
