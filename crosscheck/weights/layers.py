"""Parameters grouped by the layer that owns them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from crosscheck.adapters.base import Parameter

__all__ = ["Layer", "layers_of", "with_roles"]

_ROLE_PREFIX = re.compile(
    r"^(weights?|bias(es)?|kernel|gamma|beta|running_mean|running_var|moving_mean|moving_variance"
    r"|embeddings?|[wbugre])[_.]?",
    re.IGNORECASE,
)


@dataclass
class Layer:
    """A layer, or one of several that share a path."""

    path: str
    parameters: dict[str, Parameter]  # role -> parameter

    @property
    def kind(self) -> str:
        """Of its parameters, which agree."""
        return next(iter(self.parameters.values())).kind


def layers_of(parameters: Sequence[Parameter]) -> list[Layer]:
    """Group parameters by layer; a layer with several of a role is split by what follows the role
    in their names (``W1, b1, W2, b2``)."""
    groups: defaultdict[str, list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.home].append(parameter)
    layers: list[Layer] = []
    for path, members in groups.items():
        roles = [m.role for m in members]
        if len(set(roles)) == len(roles):
            layers.append(Layer(path, {m.role: m for m in members}))
            continue
        parts: defaultdict[str, dict[str, Parameter]] = defaultdict(dict)
        for member in members:
            leaf = re.split(r"[./]", member.name)[-1]
            key = leaf if member.role == "other" else _ROLE_PREFIX.sub("", leaf) or leaf
            parts[key if member.role not in parts[key] else leaf][member.role] = member
        _give_lone_bias(parts)
        layers.extend(Layer(f"{path} {key}".strip(), part) for key, part in parts.items())
    return layers


def with_roles(layers: Sequence[Layer], others: Sequence[Layer]) -> list[Layer]:
    """``layers``, where a tree of plain arrays (``{"q": array}``) names what is a layer with one
    weight on the other side (``q.weight``): that array is the weight."""
    named = {_last_word(o.path) for o in others if set(o.parameters) == {"weight"}}
    return [
        Layer(layer.path, {"weight": layer.parameters["other"]})
        if set(layer.parameters) == {"other"} and _last_word(layer.path) in named
        else layer
        for layer in layers
    ]


def _last_word(path: str) -> str:
    return re.split(r"[./ ]", path)[-1]


def _give_lone_bias(parts: dict[str, dict[str, Parameter]]) -> None:
    """A bias beside several kernels (a separable convolution) is added to what the last makes."""
    lone = [key for key, part in parts.items() if set(part) == {"bias"}]
    bare = [key for key, part in parts.items() if set(part) == {"weight"}]
    if len(lone) == 1 and len(bare) > 1 and len(bare) + 1 == len(parts):
        parts[bare[-1]]["bias"] = parts.pop(lone[0])["bias"]
