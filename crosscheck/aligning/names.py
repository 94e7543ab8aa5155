"""How alike two paths are, when two frameworks name the same layer differently.

Paths are cut into lower-case words; words that mean the same are made the same; a number becomes
its rank among the numbers at that place, so that ``layers.0, layers.2, layers.4`` (a Sequential
with activations between) reads like ``dense_1, dense_2, dense_3``, and also like ``dense, dense_1,
dense_2``: the first of a numbered family may go without a number.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import lru_cache

__all__ = ["canonical", "similarity"]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PART = re.compile(r"[^./:#]+")
_UNNUMBERED = "-1"  # ``dense`` beside ``dense_1``: it comes first
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


@lru_cache(maxsize=1 << 14)
def _words(part: str) -> Tokens:
    return tuple([w.lower() for w in _WORD.findall(part)])


def _components(path: str) -> list[tuple[str, Tokens]]:
    """(what stands before it, its words) of each part of a path."""
    return [(path[: part.start()], _words(part[0])) for part in _PART.finditer(path)]


def _families(paths: Iterable[str]) -> set[tuple[str, Tokens]]:
    """(parent, words) of the numbered parts: ``a/dense_1`` -> ``("a/", ("dense",))``."""
    return {
        (parent, words[:-1])
        for path in paths
        for parent, words in _components(path)
        if len(words) > 1 and words[-1].isdigit()
    }


def canonical(paths: Iterable[str]) -> dict[str, Tokens]:
    """path -> its words, numbers replaced by ranks among all the given paths."""
    paths = list(paths)
    families = _families(paths)
    words: dict[str, list[str]] = {}
    for path in paths:
        words[path] = parts = []
        for parent, component in _components(path):
            parts += [_SAME.get(word, word) for word in component]
            if (parent, component) in families:
                parts.append(_UNNUMBERED)
    numbers: defaultdict[Tokens, set[int]] = defaultdict(set)
    for parts in words.values():
        for i, part in enumerate(parts):
            if _is_number(part):
                numbers[tuple(parts[:i])].add(int(part))
    ranks = {p: {n: r for r, n in enumerate(sorted(ns))} for p, ns in numbers.items()}
    return {
        path: tuple(
            str(ranks[tuple(parts[:i])][int(part)]) if _is_number(part) else part
            for i, part in enumerate(parts)
        )
        for path, parts in words.items()
    }


def _is_number(word: str) -> bool:
    return word.isdigit() or word == _UNNUMBERED


def similarity(a: Tokens, b: Tokens) -> float:
    """0 (nothing in common) to 1 (the same words in the same order)."""
    if a == b:
        return 1.0
    if not a or not b:
        return 0.0
    places: dict[str, int] = {}
    return _ratio(*(tuple([places.setdefault(word, len(places)) for word in w]) for w in (a, b)))


@lru_cache(maxsize=1 << 16)
def _ratio(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Of two paths, each word replaced by a number: all that counts is which words are equal, so
    that the layers of a deep model, which differ in their numbers, are few cases."""
    return SequenceMatcher(None, a, b, autojunk=False).ratio()
