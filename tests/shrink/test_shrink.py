"""The smallest pair that diverges, and a script that shows it; every script is run."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import crosscheck
from crosscheck import InvalidArgument
from crosscheck.shrink import Shrunk
from tests.check.kit import replace, scaled
from tests.check.numpy_models import LN, Affine, Rectifier, Stack, Tanh
from tests.check.torch_models import Mlp, Residual

from .models import Attending, DoubledAffine, ForgetfulLN, Shifted


def shrink(
    tmp_path: Path, reference: Any, candidate: Any, inputs: Any = "float32[5,6]", **options: Any
) -> Shrunk:
    return crosscheck.shrink(reference, candidate, inputs, directory=tmp_path, **options)


def shows(shrunk: Shrunk, like: float) -> str:
    """The script's text; it was run, and showed the difference."""
    assert shrunk.script is not None and shrunk.difference is not None, str(shrunk)
    assert shrunk.difference == pytest.approx(like, rel=0.5)
    text = shrunk.script.read_text()
    assert "crosscheck" not in text
    return text


def stack(norm: Any = None, second: Any = None) -> Stack:
    norm, second = norm or LN(8), second or Affine(8, 8)
    return Stack(Affine(6, 8), Rectifier(), norm, second, Tanh(), Affine(8, 3))


def rel(shrunk: Shrunk) -> float:
    first = shrunk.report.first_divergence
    assert first is not None and first.metrics is not None
    return first.metrics.rel_l2


def test_a_layer_by_hand(tmp_path: Path, capsys: Any) -> None:
    shrunk = shrink(tmp_path, Mlp(), stack(LN(8, eps=1e-3)))
    assert shrunk.inputs["x"].shape == (1, 6)
    assert shrunk.steps == ("input `x`: [5, 6] -> [1, 6]", "the layer alone: `norm`")
    text = shows(shrunk, rel(shrunk))
    assert "torch.nn.LayerNorm(normalized_shape=(8,), eps=1e-05" in text
    assert "Cause, confirmed by reproducing it: eps 0.001 instead of 1e-05." in text
    assert "import pathlib" not in text
    assert "check.numpy_models import LN" in text and "candidate.eps = 0.001" in text
    assert not shrunk.script.with_suffix(".npz").exists()  # small: all of it is in the script
    runpy.run_path(str(shrunk.script))
    assert f"relative difference {shrunk.difference:.6e}, largest" in capsys.readouterr().out


def test_where_no_script_can_be_written_the_rest_stands(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    shrunk = shrink(tmp_path / "file", Mlp(), stack(LN(8, eps=1e-3)))
    assert shrunk.script is None
    assert shrunk.steps == ("input `x`: [5, 6] -> [1, 6]",)
    assert "script: cannot write" in str(shrunk)


def test_blocks_and_stock_layers(tmp_path: Path) -> None:
    reference, candidate = Residual(), Residual()
    candidate.blocks[1].act = nn.GELU("tanh")
    before = copy.deepcopy(reference.state_dict())
    shrunk = shrink(tmp_path, reference, candidate, "float32[7,4]")
    assert shrunk.steps == (
        "input `x`: [7, 4] -> [1, 4]",
        "`blocks`: 3 blocks -> 1",
        "the layer alone: `blocks.0.act`",
    )
    text = shows(shrunk, rel(shrunk))
    assert "reference = torch.nn.GELU(approximate='none')" in text
    assert "candidate = torch.nn.GELU(approximate='tanh')" in text
    for model in (reference, candidate):  # whole again
        assert [name for name, _ in model.blocks.named_children()] == ["0", "1", "2"]
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_wrong_vjp(tmp_path: Path) -> None:
    shrunk = shrink(tmp_path, stack(), stack(ForgetfulLN(8)))
    first = shrunk.report.first_divergence
    assert first is not None and (first.phase, first.reference) == ("backward", "layers.2")
    assert "candidate.backward(" in shows(shrunk, rel(shrunk))


def test_a_wrong_parameter_gradient(tmp_path: Path) -> None:
    shrunk = shrink(tmp_path, stack(), stack(second=DoubledAffine(8, 8)))
    first = shrunk.report.first_divergence
    assert first is not None and (first.phase, first.reference) == (
        "parameter_gradient",
        "layers.3.W",
    )
    shows(shrunk, 1.0)


def test_a_sequence_is_cut_as_far_as_it_shows(tmp_path: Path) -> None:
    shrunk = shrink(tmp_path, Attending(), Attending(leaks=True), "float32[3,9,4]")
    assert shrunk.inputs["x"].shape == (1, 2, 4)  # one token alone has no future to leak
    text = shows(shrunk, rel(shrunk))
    assert "shrink.models import Causal" in text and "Causal(n=4, leaks=True)" in text


def test_what_cannot_be_made_again_is_said(tmp_path: Path) -> None:
    candidate = Stack()
    replace(candidate.layers[3], "forward", scaled(1.01))
    shrunk = shrink(tmp_path, stack(), candidate)
    assert any("function that was put there at run time" in limit for limit in shrunk.limits)
    text = shows(shrunk, 0.01)
    assert 'data["candidate.value"]' in text
    assert "not shrunk:" in str(shrunk) and "reproduce.py" in str(shrunk)


def test_code_between_layers_has_no_script(tmp_path: Path) -> None:
    class Glue(Residual):
        def forward(self, x: Any) -> Any:
            return self.out(1.5 * self.blocks[0](self.emb(x)))

    class Whole(Residual):
        def forward(self, x: Any) -> Any:
            return self.out(self.blocks[0](self.emb(x)))

    shrunk = shrink(tmp_path, Whole(), Glue(), "float32[5,4]")
    assert shrunk.script is None and shrunk.inputs["x"].shape == (1, 4)
    assert any(limit.startswith("script: ") for limit in shrunk.limits)
    assert list(tmp_path.iterdir()) == []


def test_large_arrays_go_beside_the_script(tmp_path: Path) -> None:
    shrunk = shrink(tmp_path, Stack(Affine(30, 40)), Stack(Shifted(30, 40)), "float32[2,30]")
    assert (tmp_path / "reproduce.npz").exists()
    assert shrunk.inputs["x"].shape == (1, 30)
    shows(shrunk, rel(shrunk))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the verdict is agree"):
        shrink(tmp_path, Mlp(), Stack())
    with pytest.raises(InvalidArgument, match="shrink does not take"):
        shrink(tmp_path, Mlp(), Stack(), probes="all")


def test_own_arrays_of_the_candidate_stay(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    shrunk = shrink(tmp_path, stack(), stack(LN(8, eps=1e-3)), x, candidate_inputs={"x": x})
    assert shrunk.inputs["x"].shape == (5, 6)
    assert "sizes: the candidate has arrays of its own for inputs" in shrunk.limits
    shows(shrunk, rel(shrunk))


@pytest.mark.slow
def test_a_hook_is_not_in_the_script(tmp_path: Path) -> None:
    candidate = Mlp()
    candidate.fc2.register_forward_hook(lambda module, args, output: output * 1.1)
    shrunk = shrink(tmp_path, Mlp(), candidate)
    assert any(limit.startswith("script: it shows 0") for limit in shrunk.limits)
    assert 'data["candidate.value"]' in shows(shrunk, 0.1)


def test_from_a_probe(tmp_path: Path) -> None:
    x = 300 * np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    shrunk = shrink(tmp_path, Stack(LN(8)), Stack(LN(8, eps=1e-4)), x, probe="small")
    assert np.abs(shrunk.inputs["x"]).max() < 0.2
    shows(shrunk, rel(shrunk))
    with pytest.raises(InvalidArgument, match="probe='padded': no input of tokens"):
        shrink(tmp_path, Stack(LN(8)), Stack(LN(8, eps=1e-4)), x, probe="padded")
