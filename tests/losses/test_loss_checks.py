"""Checks with a loss: honest sides agree; several outputs; the edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck.losses import Own
from tests.losses.kit import (
    CANDIDATES,
    IDS,
    LABELS,
    TOKENS,
    Net,
    X,
    check,
    divergences,
    keras_net,
    torch_net,
    verified,
)

torch = pytest.importorskip("torch")
F = torch.nn.functional
Array = Any


# -- honest ----------------------------------------------------------------------------------------


CLASSES = ("cross_entropy(label_smoothing=0.1, weight=[1, 2, 0.5, 3])", LABELS, X)
IN_SEQUENCES = ("cross_entropy(ignore_index=0)", IDS, TOKENS)


@pytest.mark.parametrize(
    ("framework", "case"),
    [
        ("numpy", CLASSES),
        ("numpy", IN_SEQUENCES),
        ("keras", CLASSES),
        ("keras", IN_SEQUENCES),
        ("jax", CLASSES),
    ],
    ids=["numpy", "numpy, tokens", "keras", "keras, tokens", "jax"],
)
def test_honest_sides_agree(framework: str, case: tuple[str, Any, str]) -> None:
    loss, targets, inputs = case
    candidate = CANDIDATES[framework](shape=(5, 6) if inputs == TOKENS else (6,))
    report = check(loss, targets, candidate, inputs)
    assert report.verdict == "agree", str(report)
    (value,) = [s for s in report.sites if s.phase == "loss"]
    assert (value.reference, value.candidate, value.shape) == ("loss", "loss", ())
    (gradient,) = [s for s in report.sites if s.phase == "backward" and s.reference == "loss"]
    assert gradient.kind == "input_cotangent" and gradient.free_ratio is not None
    assert any(s.phase == "parameter_gradient" for s in report.sites)


def test_the_gradients_are_those_of_the_loss() -> None:
    net, rng = torch_net(), np.random.default_rng(0)
    x = rng.normal(size=(7, 6)).astype(np.float32)
    y = rng.integers(0, 4, 7)
    F.cross_entropy(net(torch.tensor(x)), torch.tensor(y)).backward()
    seen = []

    class Watched(Net):
        def backward(self, dy: Any) -> Any:
            dx = super().backward(dy)
            seen.append(self.dW2.T)
            return dx

    crosscheck.check(net, Watched(), x, loss="cross_entropy", targets=y).raise_if_diverged()
    assert seen
    for gradient in (seen[0], seen[-1]):  # of the free run, and of a forced one
        np.testing.assert_allclose(gradient, net[2].weight.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_model_without_a_backward_pass_or_without_gradients() -> None:
    report = check("cross_entropy", LABELS, gradients=False)
    assert report.verdict == "agree"
    assert [s.phase for s in report.sites if s.reference == "loss"] == ["loss"]
    forward_only = crosscheck.check(
        lambda x: np.tanh(x),
        lambda x: np.tanh(x),
        "float32[5,3]",
        loss="mse",
        targets="float32[5,3]",
    )
    assert [s.reference for s in forward_only.sites if s.phase == "loss"] == ["loss"]


def test_a_factor_in_front() -> None:
    assert check("0.5 * huber(delta=0.4)", "float32[7,4]").verdict == "agree"


def test_probabilities_and_a_function_of_the_seed() -> None:
    def soft(seed: int) -> Array:
        e = np.exp(np.random.default_rng(seed).normal(size=(7, 4)))
        return (e / e.sum(-1, keepdims=True)).astype(np.float32)

    assert check("cross_entropy", soft, keras_net()).verdict == "agree"


class TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 4), torch.nn.Linear(6, 2)

    def forward(self, x: Any) -> Any:
        return self.a(x), self.b(x)


class TwoHeadsByHand:
    def __init__(self) -> None:
        self.Wa, self.ba = np.ones((6, 4), np.float32), np.zeros(4, np.float32)
        self.Wb, self.bb = np.ones((6, 2), np.float32), np.zeros(2, np.float32)

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.Wa + self.ba, x @ self.Wb + self.bb

    def backward(self, da: Any, db: Any) -> Any:
        self.dWa, self.dba = self.x.T @ da, da.sum(0)
        self.dWb, self.dbb = self.x.T @ db, db.sum(0)
        return da @ self.Wa.T + db @ self.Wb.T


HEADS = {"output": "cross_entropy", "output:1": "0.3 * mse"}
HEADS_TARGETS = {"output": LABELS, "output:1": "float32[7,2]"}


def heads(loss: Any, targets: Any = HEADS_TARGETS) -> Any:
    torch.manual_seed(0)
    return crosscheck.check(TwoHeads(), TwoHeadsByHand(), X, loss=loss, targets=targets)


def test_a_loss_for_each_output() -> None:
    report = heads(HEADS)
    assert report.verdict == "agree", str(report)
    gradients = [
        s.reference for s in report.sites if s.phase == "backward" and "loss" in s.reference
    ]
    assert gradients == ["loss", "loss:1"]


def test_channels_last_against_channels_first() -> None:
    keras = pytest.importorskip("keras")
    candidate = keras.Sequential([keras.layers.Conv2D(4, 3, padding="same")])
    candidate.build((None, 6, 5, 3))
    torch.manual_seed(0)
    labels = np.arange(60).reshape(2, 6, 5) % 4
    report = crosscheck.check(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        candidate,
        "float32[2,3,6,5]",
        candidate_inputs=lambda x: {"x": x["x"].transpose(0, 2, 3, 1)},
        loss="cross_entropy",
        targets=labels,
    )
    assert report.verdict == "agree", str(report)


def test_loss_objects_of_the_frameworks() -> None:
    keras = pytest.importorskip("keras")
    own = Own(
        reference=torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 1.0, 1.0])),
        candidate=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    report = check(own, LABELS, keras_net())
    assert report.verdict == "agree", str(report)
    assert {s.reference for s in report.sites if s.phase == "loss"} == {"loss"}


def test_a_term_of_a_weighted_sum() -> None:
    def forgets_the_factor(o: Any, t: Any) -> Any:
        import crosscheck.losses.definitions as d

        one, two = d.cross_entropy(o["output"], t["output"]), d.mse(o["output:1"], t["output:1"])
        return one.value + two.value, {"output": one.gradients[0], "output:1": two.gradients[0]}

    def reference(o: Any, t: Any) -> Any:
        first = F.cross_entropy(o["output"], t["output"])
        return first + 0.3 * F.mse_loss(o["output:1"], t["output:1"])

    report = heads(Own(reference, forgets_the_factor))
    assert divergences(report) == [("loss", "loss"), ("backward", "loss")]
    assert [d.site for d in report.divergences] == ["loss", "loss:1"]
    assert "the gradient is scaled by 3.33333" in verified(report, "backward")


def test_a_model_mistake_is_not_blamed_on_the_loss() -> None:
    net = Net()
    original = net.forward
    net.forward = lambda x: np.float32(1.01) * original(x)  # type: ignore[method-assign]
    report = check("cross_entropy", LABELS, net)
    assert "loss" not in {d.candidate for d in report.divergences}
    (value,) = [s for s in report.sites if s.phase == "loss"]
    assert value.verdict == "agree" and value.free_ratio is not None and value.free_ratio > 32


def test_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from crosscheck.cli import main

    file = tmp_path / "nets.py"
    file.write_text("from tests.losses.kit import Net, torch_net\n")
    args = ["run", "--reference", f"{file}:torch_net", "--candidate", f"{file}:Net"]
    args += ["--input", f"x={X}", "--loss", "cross_entropy", "--targets", LABELS, "--json", "-"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    assert '"phase": "loss"' in result.output


def test_a_pair_whose_targets_depend_on_the_seed() -> None:
    pair = crosscheck.Pair(
        torch_net,
        Net,
        X,
        loss="cross_entropy",
        targets=lambda seed: np.random.default_rng(seed).integers(0, 4, 7),
    )
    assert pair.check(seed=3).verdict == "agree"
    assert pair.check(seed=4).verdict == "agree"
