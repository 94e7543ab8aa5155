"""What the candidate is fed, where it takes the reference's inputs in another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import crosscheck
from crosscheck.cli import main
from crosscheck.errors import InvalidArgument
from tests.check.kit import agrees
from tests.check.numpy_models import ConvNet
from tests.check.torch_models import Convolutional

IMAGE = "float32[2,3,7,9]"


def net() -> Any:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, (3, 2)),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 5, 2),
    )


def port(*size: int | None, wrong: bool = False) -> Any:
    keras = pytest.importorskip("keras")

    x = keras.Input(size)
    h = keras.layers.Conv2D(4, (3, 2))(x)
    h = keras.layers.LeakyReLU(0.01)(h) if wrong else keras.layers.ReLU()(h)
    return keras.Model(x, keras.layers.Conv2D(5, 2)(h))


@pytest.mark.parametrize("size", [(7, 9, 3), (None, None, 3)])
@pytest.mark.parametrize("seed", [0, 3])
def test_images_are_turned_as_the_candidate_declares(size: tuple[int, ...], seed: int) -> None:
    report = crosscheck.check(net(), port(*size), IMAGE, seed=seed)
    assert agrees(report)
    assert report.coverage.parameters_matched == 4
    (note,) = [n for n in report.notes if "channels last" in n]
    assert "(2, 7, 9, 3) for (2, 3, 7, 9)" in note
    report = crosscheck.check(net(), port(*size, wrong=True), IMAGE, seed=seed)
    assert report.first_divergence is not None and report.first_divergence.reference == "1"


def test_a_sequential_model_declares_too() -> None:
    keras = pytest.importorskip("keras")

    whole = keras.Sequential([keras.Input((11, 3)), keras.layers.Conv1D(4, 3)])
    given = "float32[2,3,11]"
    report = crosscheck.check(torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3)), whole, given)
    assert agrees(report)
    assert any("last two axes exchanged: (2, 11, 3)" in n for n in report.notes)


def test_an_onnx_graph_declares(tmp_path: Path) -> None:
    """A reference that takes its channels last, and a file that has them first."""

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x.permute(0, 3, 1, 2))

    reference = Last()
    pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    torch.onnx.export(reference.inner, (torch.zeros(2, 3, 7, 9),), path, dynamo=False)
    report = crosscheck.check(reference, path, "float32[2,7,9,3]", weights="keep")
    assert report.verdict == "agree"
    assert any("channels first" in n and "(2, 3, 7, 9)" in n for n in report.notes)


def test_what_fits_as_it_is_is_not_turned() -> None:
    """A size that hides the layout leaves the arrays alone, as the convolution's own error says."""
    keras = pytest.importorskip("keras")

    x = keras.Input((None, None, None))
    same = keras.Model(x, keras.layers.ReLU()(x))
    report = crosscheck.check(torch.nn.ReLU(), same, "float32[2,3,3,3]")
    assert agrees(report)
    assert not any("channels" in n for n in report.notes)


def test_what_fits_in_no_layout_or_in_two_is_the_models_affair() -> None:
    keras = pytest.importorskip("keras")

    def wanting(*size: int | None) -> Any:
        x = keras.Input(size)
        return keras.Model(x, keras.layers.ReLU()(x))

    wrong = [((7, 9, 3), s) for s in ("float32[2,3,8,9]", "float32[2,7,3,9]", "float32[2,3,7]")]
    for size, shape in [*wrong, ((None, None, 3), "float32[2,3,3,5]")]:
        with pytest.raises(crosscheck.SideFailed, match='candidate_inputs="channels_last"'):
            crosscheck.check(torch.nn.ReLU(), wanting(*size), shape)


@pytest.mark.parametrize("given", ["channels_last", {"x": "channels_last"}])
def test_a_layout_by_name(given: Any) -> None:
    report = crosscheck.check(
        Convolutional(), ConvNet(), {"x": IMAGE}, candidate_inputs=given, probes=["small"], seeds=2
    )
    assert agrees(report)


def test_the_other_layout_and_inputs_without_channels() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.conv, self.last = torch.nn.Conv2d(3, 4, 2), last

        def forward(self, image: torch.Tensor, by: torch.Tensor) -> Any:
            x = image.permute(0, 3, 1, 2) if self.last else image
            return self.conv(x) * by[:, :, None, None]

    sides = Scaled(last=True), Scaled(last=False)
    inputs = {"image": "float32[2,7,9,3]", "by": "float32[2,1]"}
    assert agrees(crosscheck.check(*sides, inputs, candidate_inputs="channels_first"))
    back = {"image": IMAGE, "by": "float32[2,1]"}
    assert agrees(crosscheck.check(*sides[::-1], back, candidate_inputs="channels_last"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"y": "channels_last"}, "no input is called.*`y`.*are.*`x`"),
        ({"x": "channels_last", "z": np.ones(3)}, "layouts .* and arrays"),
        ("channel_last", "channels_last"),
    ],
)
def test_bad_layouts(given: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=f"(?s)candidate_inputs.*{says}"):
        crosscheck.check(Convolutional(), ConvNet(), {"x": IMAGE}, candidate_inputs=given)


def test_a_layout_of_a_matrix() -> None:
    identity = torch.nn.Identity()
    with pytest.raises(InvalidArgument, match="channels_last of input `x` .*a batch, channels"):
        crosscheck.check(
            identity, identity, {"x": "float32[2,3]"}, candidate_inputs={"x": "channels_last"}
        )


SIDES = """
from tests.check.numpy_models import ConvNet
from tests.check.torch_models import Convolutional
"""


@pytest.mark.parametrize("layout", ["channels_last", "x=channels_last"])
def test_on_the_command_line(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "sides.py"
    path.write_text(SIDES)
    command = ["run", "--reference", f"{path}:Convolutional", "--candidate", f"{path}:ConvNet"]
    command += ["--input", f"x={IMAGE}", "-q"]
    told = CliRunner().invoke(main, [*command, "--candidate-inputs", layout])
    assert told.exit_code == 0, told.output
    refused = CliRunner().invoke(main, [*command, "--candidate-inputs", "x=nhwc"])
    assert refused.exit_code == 2 and "NAME=LAYOUT" in refused.output


def test_a_saved_model_declares(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")

    class Port(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(np.zeros((2, 2, 3, 4), np.float32), name="kernel")

        @tf.function  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            return tf.nn.conv2d(x, self.kernel, 1, "VALID")

    made = Port()
    spec = tf.TensorSpec((None, 7, 9, 3), tf.float32)
    folder = str(tmp_path / "saved")
    tf.saved_model.save(made, folder, signatures=made.__call__.get_concrete_function(spec))
    report = crosscheck.check(
        torch.nn.Conv2d(3, 4, 2, bias=False), folder, {"image": IMAGE}, gradients=False
    )
    assert report.verdict == "agree"
    assert any("channels last" in n for n in report.notes)
