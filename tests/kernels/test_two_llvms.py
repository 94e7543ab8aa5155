"""TensorFlow and Triton in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import crosscheck
from crosscheck.compare import compare
from crosscheck.errors import DeviceUnavailable
from crosscheck.kernels.two_llvms import triton_aborts, without_triton

EXPORTED = """
import tensorflow
import torch
import crosscheck
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
graph = crosscheck.adapt(model, export="onnx")
print(crosscheck.check(model, graph, "float32[2,3]", explain=False).verdict)
"""


@pytest.mark.parametrize(
    ("loaded", "aborts"),
    [((), False), (("tensorflow",), True), (("triton",), False), (("tensorflow", "triton"), False)],
)
def test_triton_is_hidden_only_where_it_would_abort(
    monkeypatch: pytest.MonkeyPatch, loaded: tuple[str, ...], aborts: bool
) -> None:
    for name in ("tensorflow", "triton"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in loaded:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert triton_aborts() == aborts
    before = sys.modules.get("triton", "absent")
    with without_triton():
        assert (sys.modules.get("triton", "absent") is None) == aborts
    assert sys.modules.get("triton", "absent") is before


def test_the_kernel_for_devices_is_not_loaded_where_that_would_abort(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Tensor:
        """Anything that is not an array of the host."""

    for name in ("triton", "crosscheck.kernels.triton_pair"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    with pytest.raises(DeviceUnavailable, match="import triton first"):
        compare(Tensor(), np.ones(3))


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("tensorflow", "triton", "torch", "onnxscript", "onnxruntime"))),
    reason="TensorFlow, Triton, PyTorch or ONNX Runtime is not installed",
)
def test_a_model_is_exported_after_tensorflow_was_loaded() -> None:
    """PyTorch's exporter loads its compiler, and that Triton."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(crosscheck.__file__).parent.parent),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, "-c", EXPORTED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "agree"
