"""What stands in the place of a PyTorch model's own while it runs, and what a run does not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck.adapters.torch import state  # noqa: E402

from .contract import X, equal, ones, record  # noqa: E402
from .torch_kit import Layers, TorchKit  # noqa: E402


def recomputing(*, once_more: bool) -> Any:
    """A net of which a part is computed once more in the backward pass."""
    torch.manual_seed(0)

    def forward(m: Any, x: Any) -> Any:
        x = m.first(x)
        return m.last(checkpoint(m.part, x, use_reentrant=False) if once_more else m.part(x))

    part = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    return TorchKit().adapt(Layers(forward, first=nn.Linear(4, 5), part=part, last=nn.Linear(5, 3)))


@pytest.mark.parametrize(
    "options", [{"float64": True}, {"overrides": {"part.0.weight": np.eye(5, dtype=np.float32)}}]
)
def test_a_checkpoint_is_computed_once_more_with_the_values_of_the_run(options: Any) -> None:
    (values, info), (expected, plain) = (
        record(recomputing(once_more=again), cotangents=ones, **options) for again in (True, False)
    )
    assert equal(values, expected) == values.keys()
    gradients, others = info.parameter_gradients, plain.parameter_gradients
    assert [g.tobytes() for g in gradients.values()] == [g.tobytes() for g in others.values()]


class Counting(nn.Module):
    """Replaces its buffer; the weight of its layer has a second name."""

    running_mean: Any

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.fc.weight
        self.register_buffer("running_mean", torch.zeros(4))

    def forward(self, x: Any) -> Any:
        self.running_mean = self.running_mean + x.mean(0)
        return self.tied(self.fc(x)) + self.running_mean


def test_stand_ins_take_every_name_and_are_gone_afterwards() -> None:
    model = Counting()
    adapter = TorchKit().adapt(model)
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    eye, start = np.eye(4, dtype=np.float32), np.full(4, 2, np.float32)
    values, info = record(
        adapter,
        cotangents=None,
        train=True,
        overrides={"fc.weight": 2 * eye, "running_mean": start},
    )
    fc, tied = (getattr(model, name).bias.detach().numpy() for name in ("fc", "tied"))
    seen = start + X.mean(0)
    np.testing.assert_allclose(
        values["activation", "output"], 2 * (2 * X + fc) + tied + seen, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(info.buffers["running_mean"], seen, rtol=1e-6)
    assert {n: id(t) for n, t in model.state_dict(keep_vars=True).items()} == before
    assert not model.running_mean.any()


def test_a_sparse_buffer() -> None:
    net = Layers(lambda m, x: m.fc(x) @ m.mix.to_dense(), fc=nn.Linear(4, 3))
    net.register_buffer("mix", torch.eye(3).to_sparse())
    assert crosscheck.check(net, net, "float32[5,4]").verdict == "agree"


# -- casts in a float64 run ------------------------------------------------------------------------


def test_only_the_models_calls_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    look = state._AllFloat64.__torch_function__

    def counting(self: Any, func: Any, *args: Any) -> Any:
        looked.append(getattr(func, "__name__", ""))
        return look(self, func, *args)

    monkeypatch.setattr(state._AllFloat64, "__torch_function__", counting)
    counts = []
    for layers in (1, 9):
        looked.clear()
        net = nn.Sequential(*(nn.Identity() for _ in range(layers)), nn.Tanh())
        record(TorchKit().adapt(net), cotangents=ones, float64=True)
        counts.append(len(looked))
        assert "tanh" in looked
    assert counts[0] == counts[1]


def test_casts_around_a_mode_of_the_models_own() -> None:
    def forward(m: Any, x: Any) -> Any:
        x = m.first(x).float()
        with torch.device("cpu"):  # a mode that lies above ours while `second` is tapped
            x = m.second(x.to(torch.float32)) + torch.ones(3, dtype=torch.float32)
        return x.half()

    layers = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 3)}
    values, info = record(TorchKit().adapt(Layers(forward, **layers)), float64=True)
    assert {value.dtype for value in values.values()} == {np.dtype(np.float64)}
    assert {value.dtype for value in info.parameter_gradients.values()} == {np.dtype(np.float64)}


# -- a first check ---------------------------------------------------------------------------------


def test_a_check_imports_nothing_that_takes_longer_than_the_check() -> None:
    code = (
        "import sys, torch, crosscheck\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())\n"
        "assert crosscheck.check(net, net, 'float32[5,4]').verdict == 'agree'\n"
        "print(sorted({'sympy', 'onnx', 'tensorflow', 'jax'} & set(sys.modules)))\n"
    )
    root = Path(crosscheck.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
