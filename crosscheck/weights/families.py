"""Families that are packed: query, key and value; a gate with what it multiplies."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from crosscheck.adapters.base import Parameter
from crosscheck.weights.expressions import Joined, Node, Source
from crosscheck.weights.packed import Family
from crosscheck.weights.readings import Reading, Unit

__all__ = ["GATED", "QKV", "mixed_units"]

QKV = Family(
    kind="qkv",
    names={"q": "q", "query": "q", "k": "k", "key": "k", "v": "v", "value": "v"},
    orders=(("q", "k", "v"),),
    packed=re.compile(r"c_attn|qkv|in_proj|query_key_value|kqv", re.IGNORECASE),
    by_head=True,
)
GATED = Family(
    kind="gated",
    names={"gate": "gate", "w1": "gate", "wi_0": "gate"}
    | {"up": "up", "w3": "up", "wi_1": "up", "intermediate": "up"},
    orders=(("gate", "up"), ("up", "gate")),
    packed=re.compile(r"gate_?up|up_?gate|w_?1_?[23]|wi\b|\bgu\b", re.IGNORECASE),
    alike=True,
)


def mixed_units(parameters: Sequence[Parameter]) -> list[Unit]:
    """Three kernels with their biases in one array, as PyTorch has it where sizes differ."""
    layers: defaultdict[str, dict[str, Parameter]] = defaultdict(dict)
    for p in parameters:
        layers[p.home][re.split(r"[./]", p.name)[-1]] = p
    found = []
    for path, own in layers.items():
        kernels = [own.get(f"{letter}_proj_weight") for letter in QKV.members]
        made: dict[str, Node] = {}
        parts = []
        for letter, kernel in zip(QKV.members, kernels, strict=True):
            if kernel is not None:
                made[kernel.name] = Source(f"{letter}.weight", kernel.value.shape)
                parts.append(Source(f"{letter}.bias", kernel.value.shape[:1]))
        if len(made) == len(QKV.members):
            bias = own.get("in_proj_bias")
            if bias is not None:
                made[bias.name] = Joined("concat", 0, tuple(parts))
            used = tuple(p for p in own.values() if p.name in made)
            found.append(Unit(path, used, (Reading("qkv", made),)))
    return found
