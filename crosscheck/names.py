"""How alike two paths are, when two frameworks name the same layer differently.

Paths are cut into lower-case words; words that mean the same are made the same; a number becomes
its rank among the numbers at that place, so that ``layers.0, layers.2, layers.4`` (a Sequential
with activations between) reads like ``dense_1, dense_2, dense_3``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from difflib import SequenceMatcher

__all__ = ["canonical", "similarity"]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SAME = {
    "layernorm": "norm",
    "batchnorm": "norm",
    "ln": "norm",
    "bn": "norm",
    "normalization": "norm",
    "dense": "linear",
    "fc": "linear",
    "proj": "linear",
    "projection": "linear",
    "query": "q",
    "key": "k",
    "value": "v",
    "attention": "attn",
    "activation": "act",
    "embeddings": "embedding",
    "emb": "embedding",
    "embed": "embedding",
    "convolution": "conv",
    "layers": "layer",
    "blocks": "block",
    "h": "block",
    "avgpool": "pool",
    "maxpool": "pool",
    "pooling": "pool",
    "downsample": "shortcut",
    "output": "out",
}
Tokens = tuple[str, ...]


def _words(path: str) -> list[str]:
    return [_SAME.get(w.lower(), w.lower()) for w in _WORD.findall(path)]


def canonical(paths: Iterable[str]) -> dict[str, Tokens]:
    """path -> its words, numbers replaced by ranks among all the given paths."""
    words = {path: _words(path) for path in paths}
    numbers: defaultdict[Tokens, set[int]] = defaultdict(set)
    for parts in words.values():
        for i, part in enumerate(parts):
            if part.isdigit():
                numbers[tuple(parts[:i])].add(int(part))
    ranks = {p: {n: r for r, n in enumerate(sorted(ns))} for p, ns in numbers.items()}
    return {
        path: tuple(
            str(ranks[tuple(parts[:i])][int(part)]) if part.isdigit() else part
            for i, part in enumerate(parts)
        )
        for path, parts in words.items()
    }


def similarity(a: Tokens, b: Tokens) -> float:
    """0 (nothing in common) to 1 (the same words in the same order)."""
    if a == b:
        return 1.0
    if not a or not b:
        return 0.0
    return SequenceMatcher(None, a, b, autojunk=False).ratio()
