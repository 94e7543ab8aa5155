"""The vision pairs under `models/`: right ports agree, planted defects are found where they are.

One seed each. What compiles much (JAX) or exports (ONNX) is slow, and most defects with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from crosscheck.pair import load_pair  # noqa: E402
from models import scratch  # noqa: E402
from models.defects import VISION_DEFECTS, Defect  # noqa: E402
from models.mosaic import CORNERS, digit_mosaics, ink_classes  # noqa: E402
from scripts.planted_defects import MODELS, check_defect  # noqa: E402

FAMILIES = ("lenet", "mobilenet", "unet", "vit", "dcgan", "vae")
NORMALISED = ("mobilenet", "unet", "dcgan")  # those whose train mode differs
NEEDS = {"keras": "tensorflow", "jax": "flax", "onnx": "onnxruntime"}
QUICK = {  # defects that are checked on every run, of each phase one
    "mobilenet-numpy-batchnorm-momentum",
    "unet-numpy-resize-asymmetric",
    "vit-numpy-softmax-axis",
    "vae-numpy-half-missing",
}


def marks(candidate: str, *, slow: bool, corpus: bool = False) -> list[Any]:
    needed = NEEDS.get(candidate.partition("-")[0])
    found = [pytest.mark.slow] if slow else []
    found += [pytest.mark.corpus] if slow and corpus and candidate != "numpy" else []
    if needed is not None and importlib.util.find_spec(needed) is None:
        found.append(pytest.mark.skip(reason=f"{needed} is not installed"))
    return found


CANDIDATES = [
    pytest.param(name, marks=marks(name, slow=slow))
    for name, slow in {
        "numpy": False,
        "keras": False,
        "jax": True,
        "onnx": True,
        "onnx-optimized": True,
    }.items()
]


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_right_ports_agree(family: str, candidate: str) -> None:
    report = load_pair(MODELS / family).check(candidate, seed=21)
    assert report.verdict == "agree", str(report)
    assert report.coverage.unmatched_reference == ()
    assert report.coverage.unmatched_reference_parameters == ()
    assert report.coverage.unmatched_candidate_parameters == ()
    phases = {site.phase for site in report.sites}
    if candidate == "onnx-optimized":  # the fused graph goes forward only, which the report says
        assert all(text.startswith("backward") for text in report.coverage.not_compared)
        assert "forward" in phases
    else:
        assert report.coverage.not_compared == ()
        assert {"weights", "forward", "backward", "parameter_gradient"} <= phases


@pytest.mark.parametrize(
    "candidate",
    [
        pytest.param(c, marks=marks(c, slow=c != "numpy", corpus=c == "jax"))
        for c in ("numpy", "keras", "jax")
    ],
)
@pytest.mark.parametrize("family", NORMALISED)
def test_right_ports_agree_in_training(family: str, candidate: str) -> None:
    report = load_pair(MODELS / family).check(candidate, seed=22, train=True)
    assert report.verdict == "agree", str(report)
    assert report.coverage.not_compared == ()
    assert "buffer" in {site.phase for site in report.sites}


def _defects() -> list[Any]:
    return [
        pytest.param(
            d,
            i % 5,
            id=d.name,
            marks=marks(d.candidate, slow=d.name not in QUICK, corpus=True),
        )
        for i, d in enumerate(VISION_DEFECTS)
    ]


@pytest.mark.parametrize(("defect", "seed"), _defects())
def test_a_planted_defect_is_located(defect: Defect, seed: int) -> None:
    report = check_defect(load_pair(MODELS / defect.family), defect, seed)
    first = report.first_divergence
    assert first is not None, str(report)
    assert (first.phase, first.candidate) == (defect.phase, defect.site), str(report)


def test_the_list_of_defects() -> None:
    names = [d.name for d in VISION_DEFECTS]
    assert len(set(names)) == len(names) >= 40
    assert set(names) >= QUICK
    assert {d.family for d in VISION_DEFECTS} == set(FAMILIES)
    counts = Counter((d.candidate, d.phase) for d in VISION_DEFECTS)
    for candidate in ("numpy", "keras", "jax"):
        assert all(counts[candidate, phase] for phase in ("forward", "backward", "weights"))
    for d in VISION_DEFECTS:
        assert d.name.startswith(f"{d.family}-{d.candidate}-")
        assert re.fullmatch(r"([^/#]+/[^/#]+#\d+)?", d.source), d.name


def test_a_defect_leaves_the_classes_as_they_were() -> None:
    nets = {f: importlib.import_module(f"models.{f}.scratch_net") for f in FAMILIES}
    classes = [c for module in (scratch, *nets.values()) for c in vars(module).values()]
    classes = [c for c in classes if isinstance(c, type) and issubclass(c, scratch.Layer)]
    before = [dict(vars(c)) for c in classes]
    for defect in VISION_DEFECTS:
        if defect.candidate == "numpy":
            defect.inject(nets[defect.family].build())
    assert [dict(vars(c)) for c in classes] == before


# -- references ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_references_are_the_same_whatever_the_global_seed(family: str) -> None:
    build = importlib.import_module(f"models.{family}.reference").build
    torch.manual_seed(1)
    first = build().state_dict()
    torch.manual_seed(2)
    second = build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_a_reference_is_at_its_default(family: str) -> None:
    model = importlib.import_module(f"models.{family}.reference").build()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert not torch.isin(value, torch.tensor([0.0, 1.0])).any(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_values_in_a_reference_are_of_the_order_of_one(family: str) -> None:
    model = importlib.import_module(f"models.{family}.reference").build()
    largest: dict[str, float] = {}

    def see(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            values = [
                v for v in (output if isinstance(output, tuple) else [output]) if v is not None
            ]
            largest[name] = max(float(v.abs().max()) for v in values)

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(see(name))
    inputs = load_pair(MODELS / family).inputs(3)
    with torch.no_grad():
        model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    assert all(0.05 < size < 30 for size in largest.values()), largest


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_fit_the_outputs(family: str) -> None:
    module = importlib.import_module(f"models.{family}.pair")
    inputs, targets = module.inputs(4), module.targets(4)
    again = module.targets(4)
    batch = len(next(iter(inputs.values())))
    if family == "dcgan":
        assert [len(t) for t in targets.values()] == [len(inputs["real"]), len(inputs["z"])]
    else:
        assert len(targets) == batch
        np.testing.assert_array_equal(targets, again)
    assert batch % 2


def test_mosaics_hold_four_digits_and_a_gap() -> None:
    from models.data import digit_images

    mosaics, labels = digit_mosaics(5, 3)
    assert (mosaics.shape, mosaics.dtype, labels.shape) == ((3, 1, 17, 13), np.float32, (3, 4))
    images, all_labels = digit_images(5, 12)
    for k, (top, left) in enumerate(CORNERS):
        np.testing.assert_array_equal(mosaics[:, :, top : top + 8, left : left + 6], images[k::4])
        np.testing.assert_array_equal(labels[:, k], all_labels[k::4])
    assert not mosaics[:, :, 8].any()
    assert not mosaics[..., 6].any()


def test_ink_is_classed_by_the_digit_it_belongs_to() -> None:
    mosaics, labels = digit_mosaics(5, 3)
    classes = ink_classes(mosaics, labels)
    assert (classes.shape, classes.dtype) == ((3, 17, 13), np.int64)
    assert ((classes > 0) == (mosaics[:, 0] > 0.5)).all()
    top_left = classes[:, :8, :6]
    for picture, label in zip(top_left, labels[:, 0], strict=True):
        assert set(np.unique(picture)) <= {0, 1 + label % 2}
