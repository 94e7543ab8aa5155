"""The NumPy nets and the Keras ports against their trained references."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from models import data

FAMILIES = ["mlp", "cnn", "gpt"]


def run_reference(
    model: torch.nn.Module, x: np.ndarray, dy: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Output, cotangent and parameter gradients; the cotangent is drawn where none is given."""
    y = model(torch.from_numpy(x))
    if dy is None:
        dy = np.random.default_rng(1).normal(size=y.shape)
    dy = dy.astype(y.detach().numpy().dtype)
    y.backward(torch.from_numpy(dy))
    return y.detach().numpy(), dy, {n: p.grad.numpy() for n, p in model.named_parameters()}


def assert_close(
    actual: Any, expected: np.ndarray, tolerance: float, name: str, scale: float = 0.0
) -> None:
    """Within ``tolerance`` of the largest value, or of ``scale`` where the true value may be 0."""
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype, name
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max()
    assert error <= tolerance * max(np.abs(expected).max(), scale), f"{name}: {error}"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("family", FAMILIES)
def test_numpy(bench: Any, family: str, mode: str, dtype: str, tolerance: float) -> None:
    bench = bench(family)
    reference = bench.build("reference").to(getattr(torch, dtype)).train(mode == "train")
    net = bench.numpy_net(reference, dtype).train(mode == "train")
    x = bench.inputs()
    x = x if family == "gpt" else x.astype(dtype)
    y, dy, gradients = run_reference(reference, x)
    assert_close(net.forward(x), y, tolerance, "output")
    net.backward(dy)
    scale = 0.1 * max(np.abs(g).max() for g in gradients.values())
    for path, layer in net.named_layers():
        for name, gradient in layer.grads.items():
            expected = gradients.pop(f"{path}.{name}")
            expected = expected.T if layer.axes[name] == ("in", "out") else expected
            assert_close(gradient, expected, tolerance, f"{path}.{name}", scale)
        for name, buffer in layer.buffers.items():
            expected = reference.get_buffer(f"{path}.{name}").numpy()
            assert_close(buffer, expected, tolerance, f"{path}.{name}")
    assert not gradients


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("family", FAMILIES)
def test_keras(bench: Any, keras_layout: Any, family: str, mode: str) -> None:
    bench, (reference_name, from_torch) = bench(family), keras_layout
    reference = bench.build("reference").train(mode == "train")
    model = bench.keras_model(reference)
    import tensorflow as tf

    x = bench.inputs()
    y, dy, gradients = run_reference(reference, x)
    with tf.GradientTape() as tape:
        out = model(x.transpose(0, 2, 3, 1) if family == "cnn" else x, training=mode == "train")
    assert_close(out, y, 1e-5, "output")
    variables = [v.value for v in model.trainable_variables]
    scale = 0.1 * max(np.abs(g).max() for g in gradients.values())
    found = tape.gradient(out, variables, output_gradients=tf.constant(dy))
    for variable, gradient in zip(model.trainable_variables, found, strict=True):
        expected = from_torch(gradients.pop(reference_name(variable.path)), variable.path)
        assert_close(tf.convert_to_tensor(gradient), expected, 1e-5, variable.path, scale)
    assert not gradients
    buffers = dict(reference.named_buffers())
    for variable in model.non_trainable_variables:
        expected = buffers[reference_name(variable.path)].numpy()
        assert_close(variable.value, expected, 1e-5, variable.path)


def test_keras_layers_bear_the_reference_names(bench: Any) -> None:
    for family in FAMILIES:
        reference, model = bench(family).build("reference"), bench(family).build("keras_port")
        expected = {path.split(".")[0] for path, _ in reference.named_modules() if path}
        names = {layer.name.partition("_0")[0].partition("_1")[0] for layer in model.layers}
        assert names == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_references_are_trained(bench: Any, family: str) -> None:
    reference = bench(family).build("reference")
    with torch.no_grad():
        if family == "gpt":
            tokens = torch.from_numpy(data.text_batch(0, 64, 32))
            logits = reference(tokens[:, :-1]).flatten(0, 1)
            assert torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()) < 2
        else:
            draw = data.digits_batch if family == "mlp" else data.digit_images
            x, labels = draw(0, 500)
            guess = reference(torch.from_numpy(x)).argmax(dim=1).numpy()
            assert (guess == labels).mean() > 0.95


def test_a_pair_imports_no_framework() -> None:
    program = (
        "import sys, types; sys.modules['crosscheck'] = types.SimpleNamespace(Pair=dict)\n"
        "import models.mlp.pair, models.cnn.pair, models.gpt.pair\n"
        "print(sorted({'torch', 'tensorflow', 'keras', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_inputs_are_real_and_seeded() -> None:
    x, labels = data.digit_images(3, 4)
    assert (x.shape, x.dtype, labels.shape) == ((4, 1, 8, 6), np.float32, (4,))
    pixels, _ = data.digits_batch(3, 4)
    np.testing.assert_array_equal(pixels.reshape(4, 8, 8)[:, :, 1:7], x[:, 0])
    tokens = data.text_batch(3, 2, 7)
    assert (tokens.shape, tokens.dtype) == ((2, 7), np.int64)
    np.testing.assert_array_equal(tokens, data.text_batch(3, 2, 7))
    assert (tokens != data.text_batch(4, 2, 7)).any()
    assert len(data.VOCABULARY) == 96
    assert data.text_tokens().max() < 96


def test_text_falls_back_to_the_zen(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Beautiful is better than ugly." in data._zen()
    assert not capsys.readouterr().out


def test_the_digits_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    known = datasets.load_digits()
    pixels, labels = data.digits()
    assert (pixels.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(pixels, (known.data / 16).astype(np.float32))
    np.testing.assert_array_equal(labels, known.target)
