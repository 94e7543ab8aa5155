"""Every planted defect changes what it says, where it says so, and nothing before that."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from models import scratch
from models.defects import DEFECTS, Defect


@dataclass
class Run:
    """What one forward and backward pass showed, in the order in which it appeared."""

    forward: list[tuple[str, Any]] = field(default_factory=list)  # a layer's output
    backward: list[tuple[str, Any]] = field(default_factory=list)  # the cotangent of its input
    gradients: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)  # before the run


def run_numpy(net: scratch.Layer, x: np.ndarray) -> Run:
    run = Run()

    def record(seen: list[tuple[str, Any]], path: str, method: Callable[..., Any]) -> Any:
        @functools.wraps(method)
        def recording(*args: Any) -> Any:
            value = method(*args)
            seen.append((path, value))
            return value

        return recording

    for path, layer in net.named_layers():
        run.weights |= {f"{path}.{k}": v for k, v in (layer.params | layer.buffers).items()}
    for path, layer in list(net.named_layers()):
        layer.forward = record(run.forward, path, layer.forward)
        layer.backward = record(run.backward, path, layer.backward)
    y = net.forward(x)
    net.backward(np.random.default_rng(1).normal(size=y.shape))
    for path, layer in net.named_layers():
        run.gradients |= {f"{path}.{k}": v for k, v in layer.grads.items()}
        run.buffers |= {f"{path}.{k}": v for k, v in layer.buffers.items()}
    return run


def keras_layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for layer in model._flatten_layers(include_self=False, recursive=False):
        yield prefix + layer.name, layer
        yield from keras_layers(layer, f"{prefix}{layer.name}/")


def run_keras(model: Any, x: np.ndarray, train: bool) -> Run:
    import tensorflow as tf

    run, inputs = Run(), []

    def record(path: str, call: Callable[..., Any]) -> Any:
        @functools.wraps(call)
        def recording(x: Any, *args: Any, **kwargs: Any) -> Any:
            inputs.append((path, x))  # a container goes backward after its children
            value = call(x, *args, **kwargs)
            run.forward.append((path, value))
            return value

        return recording

    run.weights = {v.path: v.numpy() for v in model.variables}
    for path, layer in keras_layers(model):
        layer.call = record(path, layer.call)
    with tf.GradientTape() as tape:
        x = tf.constant(x)
        if x.dtype.is_floating:
            tape.watch(x)
        y = model(x, training=train)
    dy = np.random.default_rng(1).normal(size=y.shape).astype("float32")
    seen = [(path, value) for path, value in inputs if value.dtype.is_floating][::-1]
    variables = model.trainable_variables
    sources = [value for _, value in seen] + [v.value for v in variables]
    found = [
        np.zeros(source.shape, "float32") if g is None else tf.convert_to_tensor(g).numpy()
        for g, source in zip(tape.gradient(y, sources, tf.constant(dy)), sources, strict=True)
    ]
    run.backward = [(path, g) for (path, _), g in zip(seen, found, strict=False)]
    names = [v.path for v in variables]
    run.gradients = dict(zip(names, found[len(seen) :], strict=True))
    run.buffers = {v.path: v.numpy() for v in model.non_trainable_variables}
    return run


def differs(left: Any, right: Any, tolerance: float) -> bool:
    if left is None and right is None:
        return False
    left, right = np.asarray(left), np.asarray(right)
    if left.shape != right.shape:  # a padding layer that now pads otherwise: not to be compared
        return False
    if not np.array_equal(np.isfinite(left), np.isfinite(right)):
        return True
    finite = np.isfinite(left)
    error = np.abs(left - right)[finite].max(initial=0)
    return bool(error > tolerance * np.abs(left[finite]).max(initial=1e-30))


def different(left: Any, right: Any, tolerance: float) -> list[str]:
    """Names at which two runs part, in order."""
    left, right = (list(r.items()) if isinstance(r, dict) else r for r in (left, right))
    assert [name for name, _ in left] == [name for name, _ in right]
    pairs = zip(left, right, strict=True)
    return [name for (name, a), (_, b) in pairs if differs(a, b, tolerance)]


@pytest.fixture(scope="module")
def observe(bench: Any) -> Callable[..., Run]:
    """(family, candidate, train, defect or None) -> a run; those without a defect are kept."""
    references: dict[str, Any] = {}

    def observe(family: str, candidate: str, train: bool, defect: Defect | None) -> Run:
        models = bench(family)
        reference = references.setdefault(family, models.build("reference"))
        x = models.inputs()
        if candidate == "numpy":
            net = models.numpy_net(reference, "float64").train(train)
            if defect:
                defect.inject(net)
            return run_numpy(net, x if family == "gpt" else x.astype("float64"))
        model = models.keras_model(reference)
        if defect:
            defect.inject(model)
        return run_keras(model, x.transpose(0, 2, 3, 1) if family == "cnn" else x, train)

    sound = functools.cache(functools.partial(observe, defect=None))
    return lambda f, c, t, defect: observe(f, c, t, defect) if defect else sound(f, c, t)


WATCHED = [d for d in DEFECTS if d.candidate in ("numpy", "keras")]  # with what is written here


@pytest.mark.parametrize("defect", WATCHED, ids=lambda d: d.name)
def test_a_defect_shows_at_its_site(defect: Defect, observe: Callable[..., Run]) -> None:
    where = defect.family, defect.candidate, defect.train
    sound, broken = observe(*where, None), observe(*where, defect)
    tolerance, separator = (1e-9, ".") if defect.candidate == "numpy" else (1e-6, "/")
    root = "" if defect.candidate == "numpy" else f"{defect.family}/"
    parted = {
        phase: different(getattr(sound, phase), getattr(broken, phase), tolerance)
        for phase in ("weights", "forward", "backward", "gradients", "buffers")
    }
    if defect.phase != "weights":
        assert not parted["weights"]
    if defect.phase == "weights":
        assert defect.keep_weights
        assert parted["weights"][0] == root + defect.site
        assert parted["forward"]
    elif defect.phase in ("forward", "backward"):
        first = parted[defect.phase][0]
        assert first == defect.site or first.startswith(defect.site + separator)
        if defect.phase == "backward":
            assert not parted["forward"]
    else:
        kind = {"parameter_gradient": "gradients", "buffer": "buffers"}[defect.phase]
        assert root + defect.site in parted[kind]
        assert not parted["forward"] + parted["backward"]
        if defect.phase == "parameter_gradient":
            assert parted["gradients"] == [root + defect.site]


def test_the_corpus_is_broad() -> None:
    assert len({d.name for d in DEFECTS}) == len(DEFECTS) >= 36
    assert all(count >= 10 for count in Counter(d.family for d in DEFECTS).values())
    candidates = Counter(d.candidate for d in DEFECTS)
    assert candidates["keras"] >= 8 and candidates["jax"] >= 8
    assert Counter(d.phase for d in DEFECTS)["backward"] >= 8
    for defect in DEFECTS:
        assert defect.name.startswith(f"{defect.family}-{defect.candidate}-")
        assert re.fullmatch(r"[^/#]+/[^/#]+#\d+", defect.source) or (
            defect.candidate == "jax" and not defect.source
        )


def test_classes_stay_as_they_were(bench: Any) -> None:
    classes = [getattr(scratch, name) for name in scratch.__all__]
    classes = [c for c in classes if isinstance(c, type)]
    before = [dict(vars(c)) for c in classes]
    for defect in DEFECTS:
        if defect.candidate == "numpy":
            defect.inject(bench(defect.family).build("scratch_net"))
    assert [dict(vars(c)) for c in classes] == before
