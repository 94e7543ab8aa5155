"""The recurrent, attention, expert and graph pairs and the actor-critic: right ports agree, planted
defects are found where they are.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from crosscheck.pair import Pair, load_pair  # noqa: E402
from models.defects import SEQUENCE_DEFECTS, Defect  # noqa: E402
from scripts.planted_defects import MODELS, check_defect  # noqa: E402

FAMILIES = ("lstm", "gru", "bert", "llama", "moe", "gcn", "actor_critic")
CANDIDATES = {
    "numpy": "numpy",
    "keras": "tensorflow",
    "jax": "flax",
    "onnx": "onnxruntime",
    "onnx-optimized": "onnxruntime",
}
QUICK = {  # the others compile for seconds
    *((family, "numpy") for family in FAMILIES),
    *((family, "keras") for family in ("gru", "gcn", "actor_critic")),
    ("gcn", "jax"),
    ("actor_critic", "onnx-optimized"),
}
QUICK_DEFECTS = ("lstm-numpy", "gru-numpy", "gcn-numpy", "actor-critic-numpy", "gcn-keras")


def _marks(candidate: str, *, quick: bool, corpus: bool = False) -> list[Any]:
    module = CANDIDATES[candidate]
    absent = importlib.util.find_spec(module) is None
    return [
        pytest.mark.skipif(absent, reason=f"{module} is not installed"),
        *([] if quick else [pytest.mark.slow]),
        *([pytest.mark.corpus] if corpus and not quick and candidate != "numpy" else []),
    ]


def _right() -> list[Any]:
    return [
        pytest.param(f, c, id=f"{f}-{c}", marks=_marks(c, quick=(f, c) in QUICK))
        for f in FAMILIES
        for c in CANDIDATES
    ]


def _planted() -> list[Any]:
    return [
        pytest.param(
            d,
            id=d.name,
            marks=_marks(d.candidate, quick=d.name.startswith(QUICK_DEFECTS), corpus=True),
        )
        for d in SEQUENCE_DEFECTS
    ]


@pytest.mark.parametrize(("family", "candidate"), _right())
def test_right_ports_agree(family: str, candidate: str) -> None:
    report = load_pair(MODELS / family).check(candidate, seed=11)
    assert report.verdict == "agree", str(report)
    assert report.coverage.unmatched_reference == ()
    assert report.coverage.unmatched_reference_parameters == ()
    assert report.coverage.unmatched_candidate_parameters == ()
    phases = {site.phase for site in report.sites}
    if candidate == "onnx-optimized":
        assert report.coverage.not_compared == (
            "backward: the candidate (onnx) has no backward pass",
        )
        assert {"weights", "forward"} <= phases
    else:
        assert report.coverage.not_compared == ()
        assert {"weights", "forward", "backward", "parameter_gradient"} <= phases


@pytest.mark.parametrize("defect", _planted())
def test_a_planted_defect_is_located(defect: Defect) -> None:
    report = check_defect(load_pair(MODELS / defect.family), defect, 3)
    first = report.first_divergence
    assert first is not None, str(report)
    assert (first.phase, first.candidate) == (defect.phase, defect.site), str(report)


def test_defects_have_names_and_places_of_their_own() -> None:
    names = [d.name for d in SEQUENCE_DEFECTS]
    assert len(set(names)) == len(names) >= 40
    assert {d.family for d in SEQUENCE_DEFECTS} == set(FAMILIES)
    for defect in SEQUENCE_DEFECTS:
        family = defect.family.replace("_", "-")
        assert defect.name.startswith(f"{family}-{defect.candidate}-"), defect.name


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return load_pair(MODELS / request.param)


def test_inputs_are_seeded(pair: Pair) -> None:
    one, again, other = pair.inputs(3), pair.inputs(3), pair.inputs(4)
    for name, value in one.items():
        np.testing.assert_array_equal(value, again[name])
        assert value.shape == other[name].shape
    assert any((value != other[name]).any() for name, value in one.items())


def test_the_padded_batch_has_padding_and_a_row_of_nothing_else() -> None:
    given = load_pair(MODELS / "bert").inputs(0)
    lengths = given["present"].sum(axis=1).tolist()
    assert max(lengths) == given["tokens"].shape[1]
    assert 0 in lengths
    assert len(set(lengths)) == len(lengths)
    assert set(given["types"].ravel().tolist()) == {0, 1}
