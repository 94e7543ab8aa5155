"""Whole checks whose large values stay on a device: JAX and ONNX Runtime beside PyTorch.

There is none here: memory of the host stands for it, handed over in the same ways (DLPack, bound
outputs), and Triton's interpreter compares. That wants a process of its own.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.kernels.kit import interpreted, report_the_same

CHECKED = """
import json
import sys

import numpy as np
import torch

import crosscheck
from crosscheck.adapters.torch import adapter, taps
from crosscheck.judging import sifting
from crosscheck.kernels import on_device, stacked
from crosscheck.kernels.on_device import DeviceArray

LARGE, fetched, put = 512, [], []


class Net(torch.nn.Module):
    def __init__(self, approximate):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(20, 64), torch.nn.Linear(64, 5)
        self.act = torch.nn.GELU(approximate=approximate)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


def torch_net(wrong=False):
    return Net("tanh" if wrong else "none")


def jax_net(wrong=False):
    import jax
    import jax.numpy as jnp

    def net(params, x):
        h = crosscheck.tap("up", x @ params["up"]["weight"] + params["up"]["bias"])
        h = crosscheck.tap("act", jax.nn.gelu(h, approximate=False) * (1.01 if wrong else 1.0))
        return h @ params["down"]["weight"] + params["down"]["bias"]

    shapes = {"up": (20, 64), "down": (64, 5)}
    params = {n: {"weight": jnp.ones(s), "bias": jnp.zeros(s[1])} for n, s in shapes.items()}
    return crosscheck.adapt(net, params=params)


def exported(wrong=False):
    return crosscheck.adapt(torch_net(wrong), export="onnx")


SIDES = {
    "torch, jax": (torch_net, jax_net, ["quick", "thorough", "wrong"]),
    "jax, jax": (jax_net, jax_net, ["quick"]),
}
if sys.argv[1] == "onnx":
    SIDES = {"torch, onnx": (torch_net, exported, ["quick", "wrong"])}
KINDS = {"quick": (False, "quick"), "thorough": (False, "thorough"), "wrong": (True, "quick")}


def shown(tensor):
    return DeviceArray(tensor.detach()) if stays(tensor) else taps.to_host(tensor)


def stays(tensor, room=None):
    return tensor.is_floating_point() and tensor.numel() >= LARGE


def counting(tensor, original=on_device._fetched):
    fetched.append(tensor.numel())
    return original(tensor).copy()


def emulate():
    for module in (taps, adapter):
        module.shown = shown
    on_device.LEAST = sifting.LARGE = stacked.LONGEST = LARGE
    on_device.stays, on_device.sees_devices, on_device._fetched = stays, lambda: True, counting
    if sys.argv[1] == "onnx":
        from crosscheck.adapters.onnx import fetching

        fetching.stays, fetching.sees_devices = stays, on_device.sees_devices
        fetching.BOUND, fetching.LEAST = "cpu", LARGE
        bound = fetching.computed

        def computed(session, names, feeds, **how):
            put.extend(isinstance(value, DeviceArray) for value in feeds.values())
            return bound(session, names, feeds, **how)

        from crosscheck.adapters.onnx import sessions

        sessions.computed = computed
    else:
        from crosscheck.adapters.jax import taps as jax_taps
        from crosscheck.adapters.jax.values import placed

        def place(array):
            put.append(isinstance(array, DeviceArray))
            return placed(array)

        jax_taps.placed = place


def checks():
    found = {}
    for name, (reference, candidate, kinds) in SIDES.items():
        for kind in kinds:
            wrong, effort = KINDS[kind]
            fetched.clear(), put.clear()
            report = crosscheck.check(
                reference(), candidate(wrong), "float32[40,20]", effort=effort, blind_spots=False
            )
            first = report.first_divergence
            found[f"{name}, {kind}"] = {
                "verdict": report.verdict,
                "first": first and [first.phase, first.candidate],
                "causes": first and [c.statement for c in first.causes if c.verified],
                "sites": [[s.phase, s.kind, s.reference, s.verdict] for s in report.sites],
                "ratios": [s.ratio for s in report.sites],
                "errors": [s.metrics.rel_l2 for s in report.sites if s.metrics],
                "fetched": sum(n >= LARGE for n in fetched),
                "put": sum(put),
            }
    return found


here = checks()
emulate()
print(json.dumps([here, checks(), DeviceArray.made]))
"""


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def reports_the_same(kind: str) -> dict[str, Any]:
    here, there, made = interpreted(CHECKED, kind)
    assert made
    report_the_same(here, there)
    for name, want in here.items():
        assert want["verdict"] == ("diverge" if name.endswith("wrong") else "agree"), name
        assert (want["first"] or ["forward", "act"]) == ["forward", "act"], name
        assert want["fetched"] == want["put"] == 0, name
    return there


@needs("triton", "torch", "jax")
def test_jax() -> None:
    there = reports_the_same("jax")
    assert there["jax, jax, quick"]["fetched"] == 0
    # Functions have no inputs of layers, PyTorch's modules do: alignment looks at one of them.
    assert there["torch, jax, quick"]["fetched"] <= 3
    assert there["torch, jax, thorough"]["put"] > 0  # forced onto PyTorch's values


@needs("triton", "torch", "onnxruntime", "onnxscript")
def test_onnx_runtime() -> None:
    there = reports_the_same("onnx")
    assert there["torch, onnx, quick"]["fetched"] == 0
    assert there["torch, onnx, wrong"]["put"] > there["torch, onnx, quick"]["put"] > 0
