"""The pairs under `models/`: right ports agree, planted defects are found where they are.

One seed each; `scripts/planted_defects.py` does the same for many and prints the table.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from crosscheck.adapters import adapt  # noqa: E402
from crosscheck.inputs import cotangent  # noqa: E402
from crosscheck.observers import Recorder  # noqa: E402
from crosscheck.pair import Pair, load_pair  # noqa: E402
from models.defects import DEFECTS, Defect  # noqa: E402
from models.defects.base import change  # noqa: E402
from scripts.planted_defects import FAMILIES, MODELS, check_defect, numpy_against_keras  # noqa: E402

HAS_KERAS = importlib.util.find_spec("tensorflow") is not None
needs_keras = pytest.mark.skipif(not HAS_KERAS, reason="TensorFlow is not installed")
needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("flax") is None, reason="JAX and Flax are not installed"
)
NEEDS = {"numpy": [], "keras": [needs_keras], "jax": [needs_jax]}
CANDIDATES = [pytest.param(name, marks=marks) for name, marks in NEEDS.items()]


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return load_pair(MODELS / request.param)


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_right_ports_agree(pair: Pair, candidate: str, train: bool) -> None:
    report = pair.check(candidate, seed=11, train=train)
    assert report.verdict == "agree", str(report)
    assert report.coverage.unmatched_reference == ()
    assert report.coverage.not_compared == ()
    phases = {site.phase for site in report.sites}
    assert {"weights", "forward", "backward", "parameter_gradient"} <= phases
    assert ("buffer" in phases) == (train and pair.name == "cnn")


@needs_keras
def test_numpy_against_keras(pair: Pair) -> None:
    report = numpy_against_keras(pair).check("keras", seed=12)
    assert report.verdict == "agree", str(report)


def _defects() -> list[Any]:
    return [pytest.param(d, i, id=d.name, marks=NEEDS[d.candidate]) for i, d in enumerate(DEFECTS)]


@pytest.mark.parametrize(("defect", "seed"), _defects())
def test_a_planted_defect_is_located(defect: Defect, seed: int) -> None:
    report = check_defect(load_pair(MODELS / defect.family), defect, seed)
    first = report.first_divergence
    assert first is not None, str(report)
    assert (first.phase, first.candidate) == (defect.phase, defect.site), str(report)


@pytest.mark.parametrize("seed", range(3))
def test_two_defects_are_both_reported_and_nothing_between(seed: int) -> None:
    """Forward in an early layer, backward in a late one: the forced run proves itself."""

    def plant(net: Any) -> None:
        change("blocks.0.ln2", eps=1e-3)(net)
        late = next(d for d in DEFECTS if d.name == "gpt-numpy-softmax-backward")
        late.inject(net)

    report = load_pair(MODELS / "gpt").check("numpy", seed=seed, alter=plant)
    blamed = {(d.phase, d.candidate) for d in report.divergences if d.verdict == "diverge"}
    assert ("forward", "blocks.0.ln2") in blamed
    assert ("backward", "blocks.1.attn.softmax") in blamed
    layers = {name for _, name in blamed}
    own = ("blocks.0.ln2", "blocks.0.ln2.weight", "blocks.0.ln2.bias", "blocks.1.attn.softmax")
    assert layers <= set(own), str(report)
    clean = [s for s in report.sites if s.candidate not in own]
    assert len(clean) > 100
    assert all(s.verdict == "agree" for s in clean), str(report)


@pytest.mark.parametrize("candidate", ["reference", *CANDIDATES[:2]])
def test_a_free_run_is_bit_neutral(pair: Pair, candidate: str) -> None:
    """Outputs and gradients with taps recording are those of the framework alone."""
    make = pair.reference if candidate == "reference" else pair.candidate[candidate]
    model = make()
    inputs = dict(pair.inputs(5))
    layouts = pair.candidate_inputs or {}
    if candidate in layouts:
        inputs = layouts[candidate](inputs)
    given: dict[str, np.ndarray] = {}

    def cotangents(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given.update({s: cotangent(s, v, seed=5) for s, v in outputs.items()})
        return given

    recorder = Recorder()
    info = adapt(model).run(inputs, recorder, cotangents=cotangents, passive=True)
    output, gradients = BARE[candidate](model, *inputs.values(), given["output"])
    assert recorder.values["activation", "output"].tobytes() == output.tobytes()
    assert gradients
    for name, gradient in gradients.items():
        assert info.parameter_gradients[name].tobytes() == gradient.tobytes(), name


def _bare_torch(model: Any, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    import torch

    y = model(torch.from_numpy(x))
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(y, list(parameters.values()), torch.from_numpy(dy))
    return y.detach().numpy(), {n: g.numpy() for n, g in zip(parameters, found, strict=True)}


def _bare_numpy(model: Any, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    model.zero_grad()
    model.eval()
    y = model.forward(x)
    model.backward(dy)
    named = model.named_layers()
    layers = dict(named)
    return y, {
        f"{path}.{key}".lstrip("."): gradient
        for path, layer in layers.items()
        for key, gradient in layer.grads.items()
    }


def _bare_keras(model: Any, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    import tensorflow as tf

    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        y = model(tf.constant(x), training=False)
    found = tape.gradient(y, variables, output_gradients=tf.constant(dy))
    names = [p.name for p in adapt(model).parameters() if p.trainable]
    values = [np.asarray(tf.convert_to_tensor(g)) for g in found]
    known = {p.name: p for p in adapt(model).parameters()}
    by_place = dict(zip(_keras_names(model, names, known), values, strict=True))
    return y.numpy(), by_place


def _keras_names(model: Any, names: list[str], known: dict[str, Any]) -> list[str]:
    """Our names in the order of ``model.trainable_variables``: by what the variables hold."""
    found = []
    for variable in model.trainable_variables:
        value = variable.numpy()
        twin = next(
            n
            for n in names
            if n not in found
            and known[n].value.shape == value.shape
            and np.array_equal(known[n].value, value)
        )
        found.append(twin)
    return found


BARE = {"reference": _bare_torch, "numpy": _bare_numpy, "keras": _bare_keras}
