"""The corpus of `scripts/bench_verdict.py`: what it plants is wrong, what it rewrites is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from crosscheck.errors import CannotCompare  # noqa: E402
from models.defects.around import Change, around  # noqa: E402
from models.defects.systematic import KINDS, systematic  # noqa: E402
from models.rewrites import REWRITES  # noqa: E402
from scripts.bench_verdict import pair_of, run_one  # noqa: E402
from scripts.by_hand import PEERS, condemned_by, values_by_hand  # noqa: E402
from scripts.planted_defects import check_defect, outcome  # noqa: E402
from scripts.verdict_page import HEADING, explained, summary, wrong  # noqa: E402


@pytest.mark.parametrize("candidate", ["numpy", "torch"])
def test_every_systematic_mistake_is_located(candidate: str) -> None:
    pair = pair_of("mlp")
    planted = systematic(pair, "mlp", candidate)
    kinds = {d.name.partition("@")[0].removeprefix(f"mlp-{candidate}-") for d in planted}
    impossible = {"weight-transposed"} | ({"gradient-halved", "gradient-sign"} - kinds)
    assert kinds >= {kind for kind, _ in KINDS} - impossible
    for defect in planted:
        report = check_defect(pair, defect, 5, explain=False)
        assert outcome(report, 5, defect).located, f"{defect.name}\n{report}"


@pytest.mark.parametrize("candidate", ["numpy", "torch"])
def test_rewrites_change_the_bits_and_not_the_verdict(candidate: str) -> None:
    """What leaves every bit as it is would be condemned by nobody, and show nothing."""
    pair, changed = pair_of("mlp"), 0
    plain = _outputs(pair, candidate, lambda model: None)
    for rewrite in REWRITES[candidate]():
        layers: list[int] = []
        made = _outputs(pair, candidate, lambda m, r=rewrite, n=layers: n.append(r.apply(m)))
        changed += bool(layers[0]) and not np.array_equal(plain, made)
    assert changed >= 4


def _outputs(pair: Any, candidate: str, alter: Any) -> np.ndarray:
    kept: list[Any] = []

    def change(model: Any) -> None:
        kept.append(model)
        alter(model)

    report = pair.check(candidate, seed=6, alter=change, explain=False)
    assert report.verdict == "agree", str(report)
    ((_, value),) = values_by_hand(pair, candidate, kept[0], seed=6)[0]
    return value


def test_peers_see_what_they_are_given() -> None:
    right = np.linspace(1, 2, 7, dtype=np.float32)
    near, far = right * np.float32(1 + 1e-6), right * np.float32(1.01)
    same = ([(right, right)], [(right, right)])
    assert not any(condemned_by(peer, same) for peer in PEERS)
    assert all(condemned_by(peer, ([(right, far)], [])) for peer in PEERS)
    gradients = [condemned_by(peer, ([(right, right)], [(right, far)])) for peer in PEERS]
    assert gradients == ["gradients" in peer for peer in PEERS]
    assert condemned_by("np.testing.assert_allclose, outputs", ([(right, near)], []))
    assert not condemned_by("torch.testing.assert_close, outputs", ([(right, near)], []))


def test_the_page_counts_what_happened() -> None:
    rows = list(run_one("mlp", "numpy", 1, 2, set()))
    planted = [row for row in rows if row["set"] == "defect"]
    assert all(map(explained, planted)) and not any(map(wrong, planted))
    assert f"{len(planted)} planted mistakes" in summary(rows)
    mistaken = planted[0] | {"causes": [["cast", "rounded", True]], "expected": ["sign"]}
    alarm = next(r for r in rows if r["set"] == "honest") | {"verdict": "diverge", "first": "x"}
    page = summary([mistaken, alarm])
    assert "* wrong cause: " in page and "* false alarm: " in page and "| all | 1 | 1 |" in page
    assert HEADING.startswith("# ")


def test_what_could_not_be_checked_counts_as_planted_and_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(pair: Any, defect: Any) -> Any:
        raise CannotCompare("refused")

    monkeypatch.setattr("scripts.bench_verdict._planted", refuse)
    rows = [row for row in run_one("mlp", "numpy", 1, 0, set()) if row["set"] == "defect"]
    page = summary(rows)
    assert f"{len(rows)} planted mistakes" in page and page.count("* not found: ") == len(rows) > 0
    assert f"| crosscheck | 0 of {len(rows)} (0.0 %)" in page


@pytest.mark.parametrize("candidate", ["numpy", "torch"])
def test_of_several_outputs_the_first_is_altered(candidate: str) -> None:
    negated = Change(lambda arrays, y: -y, lambda dy: -dy)
    report = pair_of("vae").check(
        candidate, alter=around(candidate, "encoder", change=negated), explain=False
    )
    wrong = {s.candidate for s in report.sites if s.verdict != "agree"}
    assert report.first_divergence.candidate == "encoder" and "encoder:1" not in wrong, wrong
