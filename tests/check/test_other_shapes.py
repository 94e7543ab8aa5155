"""Layers that return the same in another shape: patches as an image or in a row, a padded sequence
that the code behind cuts, sequences before the batch. They are neither blamed for what comes later
nor left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import crosscheck
from crosscheck.results import Report

jax = pytest.importorskip("jax", reason="needs crosscheck[jax]")
nnx = pytest.importorskip("flax.nnx", reason="needs crosscheck[jax]")
jnp = jax.numpy

WIDTH, PATCH, SIDE = 10, 3, 4
TOKENS = SIDE * SIDE + 1


class Patches(nn.Module):
    """The beginning of a vision transformer: a convolution makes the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(2, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.norm1 = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.pos
        tokens = tokens + torch.relu(self.fc(self.norm1(tokens))).cumsum(1).flip(1)
        made: torch.Tensor = self.head(tokens[:, 0])
        return made


class InARow(nnx.Module):
    """The same with a dense layer on patches that were cut out before.

    Args:
        last: whether a patch holds its channels last.
        defect: what is wrong with it.
    """

    def __init__(self, last: bool = False, defect: str = "") -> None:
        rngs = nnx.Rngs(0)
        self.patch = nnx.Linear(2 * PATCH * PATCH, WIDTH, rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.pos = nnx.Param(jnp.zeros((1, TOKENS, WIDTH)))
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.fc = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)
        self.last, self.defect = last, defect

    def __call__(self, x: Any) -> Any:
        cut = x.reshape(len(x), 2, SIDE, PATCH, SIDE, PATCH)
        rows, columns = (4, 2) if self.defect == "columns first" else (2, 4)
        inner = (3, 5, 1) if self.last else (1, 3, 5)
        cut = cut.transpose(0, rows, columns, *inner)
        tokens = self.patch(cut.reshape(len(x), SIDE * SIDE, -1))
        tokens = jnp.concatenate([jnp.broadcast_to(self.cls[...], (len(x), 1, WIDTH)), tokens], 1)
        tokens = tokens + self.pos * (0.5 if self.defect == "position" else 1)
        tokens = tokens + jnp.cumsum(jax.nn.relu(self.fc(self.norm1(tokens))), 1)[:, ::-1]
        return self.head(tokens[:, 1 if self.defect == "pooled" else 0])


def checked(reference: nn.Module, candidate: Any, inputs: str) -> Report:
    return crosscheck.check(reference, candidate, inputs, probes=())


@pytest.fixture
def patches() -> Patches:
    torch.manual_seed(0)
    return Patches()


IMAGES = f"float32[2,2,{SIDE * PATCH},{SIDE * PATCH}]"


def site(report: Report, name: str) -> Any:
    found = (s for s in report.sites if (s.phase, s.kind) == ("forward", "activation"))
    return next(s for s in found if s.reference == name)


@pytest.mark.parametrize("last", [False, True])
def test_patches_are_compared_with_a_convolution(patches: Patches, last: bool) -> None:
    report = checked(patches, InARow(last), IMAGES)
    assert report.verdict == "agree"
    one = site(report, "patch_embed")
    assert (one.candidate, one.verdict) == ("patch", "agree")
    assert one.shape == (2, WIDTH, SIDE, SIDE) and one.candidate_shape == (2, SIDE * SIDE, WIDTH)
    gradients = {s.reference for s in report.sites if s.phase == "parameter_gradient"}
    assert "patch_embed.weight" in gradients


@pytest.mark.parametrize(("defect", "first"), [("position", "norm1"), ("pooled", "head")])
def test_patches_are_innocent_of_what_comes_later(
    patches: Patches, defect: str, first: str
) -> None:
    report = checked(patches, InARow(True, defect), IMAGES)
    found = report.divergences[0]
    assert (found.site, found.reference, found.candidate) == (first, "output", "output")
    assert site(report, "patch_embed").verdict == "agree"


def test_patches_in_another_order_are_not_said_to_be_given_the_right_ones(
    patches: Patches,
) -> None:
    found = checked(patches, InARow(defect="columns first"), IMAGES).divergences[0]
    assert (found.reference, found.candidate) == ("patch_embed", "patch")
    assert "could not be compared" in found.statement


# -- a sequence that is cut ------------------------------------------------------------------------

LENGTH, KERNEL = 11, 4


class Cut(nn.Module):
    """A causal convolution: padded at both ends, what is too much is cut off by the code behind."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.conv = nn.Conv1d(8, 8, KERNEL, groups=8, padding=KERNEL - 1)
        self.gate = nn.Linear(8, 8)
        self.down = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(self.up(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        h = nn.functional.silu(h)
        made: torch.Tensor = self.down(torch.sigmoid(self.gate(h)) * h)
        return made


class Causal(nnx.Module):
    def __init__(self, defect: str = "") -> None:
        rngs = nnx.Rngs(0)
        padding = "SAME" if defect == "padding" else "CAUSAL"
        self.up = nnx.Linear(6, 8, rngs=rngs)
        self.conv = nnx.Conv(8, 8, (KERNEL,), padding=padding, feature_group_count=8, rngs=rngs)
        self.gate = nnx.Linear(8, 8, rngs=rngs)
        self.down = nnx.Linear(8, 6, rngs=rngs)
        self.defect = defect

    def __call__(self, x: Any) -> Any:
        h = self.conv(self.up(x))
        if self.defect != "activation":
            h = jax.nn.silu(h)
        gate = self.gate(h)
        return self.down((jnp.tanh(gate) if self.defect == "gate" else jax.nn.sigmoid(gate)) * h)


SEQUENCES = f"float32[2,{LENGTH},6]"


@pytest.fixture
def cut() -> Cut:
    torch.manual_seed(0)
    return Cut()


def test_a_sequence_cut_behind_a_layer_agrees(cut: Cut) -> None:
    assert checked(cut, Causal(), SEQUENCES).verdict == "agree"


@pytest.mark.parametrize(("defect", "into"), [("gate", "down"), ("activation", "gate")])
def test_a_layer_whose_value_is_cut_is_innocent_of_what_comes_later(
    cut: Cut, defect: str, into: str
) -> None:
    report = checked(cut, Causal(defect), SEQUENCES)
    found = report.divergences[0]
    assert (found.site, found.reference, found.candidate) == (into, "output", "output")
    assert "the code between the layers differs" in found.statement
    assert all(d.reference != "conv" for d in report.divergences)


def test_a_layer_that_returns_another_part_is_blamed(cut: Cut) -> None:
    """Padded evenly it returns a part as well; what comes next then tells that it is another."""
    found = checked(cut, Causal("padding"), SEQUENCES).divergences[0]
    assert (found.reference, found.candidate) == ("conv", "conv")


# -- sequences first -------------------------------------------------------------------------------


class SequencesFirst(nn.Module):
    """As PyTorch's recurrent layers and transformers have them by default.

    Args:
        back: whether what it returns has the batch first again.
    """

    def __init__(self, back: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.mix = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.down = nn.Linear(8, 5)
        self.back = back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x.transpose(0, 1))
        h = self.norm(h + torch.tanh(self.mix(h)).cumsum(0))
        made: torch.Tensor = self.down(h)
        return made.transpose(0, 1) if self.back else made


class BatchFirst(nnx.Module):
    def __init__(self, defect: str = "") -> None:
        rngs = nnx.Rngs(0)
        self.up = nnx.Linear(6, 8, rngs=rngs)
        self.mix = nnx.Linear(8, 8, rngs=rngs)
        eps = 1e-3 if defect == "eps" else 1e-5
        self.norm = nnx.LayerNorm(8, epsilon=eps, rngs=rngs)
        self.down = nnx.Linear(8, 5, rngs=rngs)
        self.axis = 0 if defect == "axis" else 1

    def __call__(self, x: Any) -> Any:
        h = self.up(x)
        return self.down(self.norm(h + jnp.cumsum(jnp.tanh(self.mix(h)), self.axis)))


@pytest.mark.parametrize("sizes", [(3, 7), (5, 5)])
def test_sequences_first_are_compared(sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    reference, inputs = SequencesFirst(), f"float32[{sizes[0]},{sizes[1]},6]"
    report = checked(reference, BatchFirst(), inputs)
    assert report.verdict == "agree"
    for name in ("up", "mix", "norm", "down"):
        assert site(report, name).verdict == "agree"
        assert site(report, name).shape == (*sizes[::-1], 5 if name == "down" else 8)
    found = checked(reference, BatchFirst("eps"), inputs).divergences[0]
    assert (found.reference, found.candidate) == ("norm", "norm")
    found = checked(reference, BatchFirst("axis"), inputs).divergences[0]
    assert found.site == "norm" and found.reference == "output"  # what goes into it


def test_what_a_model_returns_may_not_have_another_order() -> None:
    torch.manual_seed(0)
    report = checked(SequencesFirst(back=False), BatchFirst(), "float32[3,7,6]")
    found = report.divergences[0]
    assert (found.site, found.metrics) == ("output", None)
    assert "the reference's axes in its order" in found.statement
    assert site(report, "down").verdict == "agree"


# -- a border that one side adds before the layer, and the other within it -------------------------


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.conv = nn.Conv2d(5, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.conv(torch.relu(self.stem(x)))
        return made


class Before(nnx.Module):
    def __init__(self, defect: str) -> None:
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(2, 5, (3, 3), rngs=rngs)
        self.conv = nnx.Conv(5, 4, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.defect = defect

    def __call__(self, x: Any) -> Any:
        h = self.stem(jnp.transpose(x, (0, 2, 3, 1)))
        if self.defect != "activation":
            h = jax.nn.relu(h)
        border = (0, 1) if self.defect == "border" else (1, 1)
        h = jnp.pad(h, ((0, 0), border, border, (0, 0)))
        return jnp.transpose(self.conv(h), (0, 3, 1, 2))


@pytest.mark.parametrize(
    ("defect", "blamed", "said"),
    [
        ("", None, ""),
        ("border", "conv", "the reference's, but for a border"),
        ("activation", "output", "not what the reference is given with a border"),
    ],
)
def test_a_border_around_what_a_layer_is_given(defect: str, blamed: str | None, said: str) -> None:
    torch.manual_seed(0)
    report = checked(Within(), Before(defect), "float32[2,2,8,8]")
    first = report.divergences[0] if report.divergences else None
    assert (first.reference if first else None) == blamed
    assert said in (first.statement if first else "")
