"""`models/gpt` with a hundred million parameters, and the corpus' mistakes at places all over it.

The classes are those of the small pair; only the sizes differ, which are constants of its modules
and changed for the whole process. Weights are random. A mistake that people made in block 0 or 1 of
the small model is planted in other blocks of the large one as well.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from crosscheck.adapters import adapt
from crosscheck.weights import match_parameters
from models import defects
from models.defects import Defect
from models.defects.systematic import KINDS, places
from models.scratch import Layer

SIZES = {"VOCABULARY": 20_000, "LENGTH": 64, "DIM": 768, "HEADS": 12, "BLOCKS": 12}
INPUTS = {"tokens": f"int64[2,24] 0..{SIZES['VOCABULARY']}"}
DEEPER = (0, 3, 6, 9)  # by so many blocks mistakes of the small model are moved, in turn


class Large:
    """Reference and candidates, made once; every candidate is a copy.

    Attributes:
        reference: the PyTorch model, 100,465,152 parameters.
    """

    def __init__(self, seed: int = 0) -> None:
        from models.gpt import reference, scratch_net

        for module in (reference, scratch_net):
            for name, size in SIZES.items():
                setattr(module, name, size)
        self.reference = _random(reference.GPT, seed)
        net = scratch_net.GPT(np.random.default_rng(0))
        net.eval()
        match = match_parameters(adapt(self.reference).parameters(), adapt(net).parameters())
        match.require_complete()
        adapt(net).load(match.values())
        self._models = {"torch": self.reference, "numpy": net}

    def candidate(self, name: str) -> Any:
        """A fresh one, with the reference's weights."""
        return copy.deepcopy(self._models[name])


def _random(build: Callable[[], Any], seed: int) -> Any:
    """A PyTorch model with random weights; norms and biases as well, so that each one matters."""
    import torch

    torch.manual_seed(seed)
    model = build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape)
            if name.endswith("bias"):
                parameter.copy_(noise)
            elif "ln" in name:
                parameter.copy_(1 + noise)
    return model


def planted(name: str, model: Any, report: Any, per_kind: int) -> Iterator[Defect]:
    """People's mistakes, at all depths in turn, then ``per_kind`` of every systematic kind.

    Args:
        model: an honest candidate.
        report: of its comparison, which says where defects can be planted.
    """
    theirs = [d for d in defects.DEFECTS if (d.family, d.candidate) == ("gpt", name)]
    for defect, further in zip(theirs, itertools.cycle(DEEPER), strict=False):
        yield _deeper(defect, further)
    rng = random.Random(f"large {name}")  # noqa: S311  (a choice, not a secret)
    found = places(model, report)
    for kind, plant in KINDS:
        possible = [planted for place in found for planted in plant(model, name, place)]
        for site, phase, mistake, inject, keep in rng.sample(
            possible, min(per_kind, len(possible))
        ):
            yield Defect(
                name=f"large-{name}-{kind}@{site}",
                family="gpt",
                candidate=name,
                mistake=f"{mistake}, at {site}",
                source="",
                phase=phase,
                site=site,
                inject=inject,
                keep_weights=keep,
            )


def _deeper(defect: Defect, further: int) -> Defect:
    """The same mistake so many blocks further on."""
    name = defect.name.replace("gpt-", "large-")
    first, *rest = defect.site.split(".")
    if first != "blocks":
        return replace(defect, name=name)
    site = ".".join([first, str(int(rest[0]) + further), *rest[1:]])

    def inject(model: Layer) -> None:
        view = copy.copy(model)
        view.blocks = model.blocks[further:]  # type: ignore[attr-defined]
        defect.inject(view)

    return replace(defect, name=f"{name}@{site}", site=site, inject=inject)
