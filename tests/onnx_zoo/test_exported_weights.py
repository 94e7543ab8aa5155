"""Files that PyTorch's exporters made of the reference: weights were transposed and joined."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import torch.nn as nn  # noqa: E402

import crosscheck  # noqa: E402
from crosscheck.adapters.onnx.numbers import held_among  # noqa: E402
from crosscheck.errors import CannotCompare  # noqa: E402

SHAPE = "float32[2,9,6]"
EXPORTERS = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])


class Recurrent(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.emb = nn.Linear(6, 10)
        self.rnn = nn.LSTM(10, 7, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(14, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(self.emb(x))[0])


class Encoder(nn.Module):
    def __init__(self, seed: int = 0, eps: float = 1e-5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.emb = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, layer_norm_eps=eps)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)
        for p in self.parameters():
            if p.ndim == 1:
                nn.init.normal_(p, 0.5, 0.3)

    def forward(self, x: Any) -> Any:
        return self.head(self.enc(self.emb(x)))


def exported(model: Any, path: Path, *, dynamo: bool) -> Path:
    said = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with said[0], said[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (torch.randn(2, 9, 6),), path, dynamo=dynamo)
    return path


def kept(report: Any) -> list[str]:
    return [note for note in report.notes if "the file holds the numbers" in note]


@EXPORTERS
@pytest.mark.parametrize("make", [Recurrent, Encoder])
def test_an_export_agrees_as_it_is(make: Any, dynamo: bool, tmp_path: Path) -> None:
    path = exported(make(), tmp_path / "net.onnx", dynamo=dynamo)
    report = crosscheck.check(make().eval(), path, SHAPE, seeds=2)
    assert report.verdict == "agree", str(report)
    (note,) = kept(report)
    count = sum(1 for p in make().parameters())
    assert f"{count} of {count} parameters" in note


@EXPORTERS
def test_a_mistake_in_it_has_its_cause(dynamo: bool, tmp_path: Path) -> None:
    path = exported(Encoder(eps=1e-3), tmp_path / "net.onnx", dynamo=dynamo)
    report = crosscheck.check(Encoder().eval(), path, SHAPE)
    first = report.first_divergence
    assert first is not None and first.reference == "enc.layers.0.norm1"
    assert first.causes[0].verified and "eps 0.001 instead of 1e-05" in first.causes[0].statement


def test_other_weights_cannot_be_copied_to_it(tmp_path: Path) -> None:
    path = exported(Recurrent(seed=1), tmp_path / "net.onnx", dynamo=True)
    with pytest.raises(CannotCompare, match="(?s)no counterpart.*other numbers.*optimize=False"):
        crosscheck.check(Recurrent().eval(), path, SHAPE)


def test_one_other_weight_is_found(tmp_path: Path) -> None:
    """As if one layer had been trained on since."""
    path = exported(Recurrent(), tmp_path / "net.onnx", dynamo=True)
    reference = Recurrent().eval()
    with torch.no_grad():
        reference.head.weight.mul_(1.01)
    report = crosscheck.check(reference, path, SHAPE)
    assert report.first_divergence is not None and report.first_divergence.reference == "head"
    assert "not at all: `head.weight`" in kept(report)[0]


def test_what_can_be_copied_is(tmp_path: Path) -> None:
    small = nn.Sequential(nn.Conv1d(9, 4, 3), nn.ReLU())
    path = exported(small, tmp_path / "net.onnx", dynamo=True)
    for p in small.parameters():
        nn.init.normal_(p)
    report = crosscheck.check(small, path, SHAPE)
    assert report.verdict == "agree" and not kept(report)


def test_randomised_and_shrunk(tmp_path: Path) -> None:
    path = exported(Encoder(eps=1e-3), tmp_path / "net.onnx", dynamo=True)
    right = exported(Encoder(), tmp_path / "right.onnx", dynamo=True)
    assert crosscheck.check(Encoder().eval(), right, SHAPE, randomise=True).verdict == "agree"
    report = crosscheck.check(Encoder().eval(), path, SHAPE, randomise=True)
    assert report.first_divergence is not None
    assert report.first_divergence.reference == "enc.layers.0.norm1"
    shrunk = crosscheck.shrink(Encoder().eval(), path, SHAPE, directory=tmp_path)
    assert shrunk.report.first_divergence is not None
    assert shrunk.report.first_divergence.reference == "enc.layers.0.norm1"


def test_numbers_that_a_file_holds() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((4, 3), (5,), (4, 3)))
    file = {"one": a.T.astype(np.float16), "joined": np.concatenate([c.ravel()[::-1], b])[None]}
    wanted = {"a": a, "b": b, "c": c, "d": c + 1, "e": rng.normal(size=40)}
    assert held_among(wanted, file, file.__getitem__) == {"a", "b", "c"}
    assert held_among({}, file, file.__getitem__) == frozenset()
