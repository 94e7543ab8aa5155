"""How alike two paths are, when two frameworks name the same layer differently.

Paths are cut into lower-case words; words that mean the same are made the same; a number becomes
its rank among the numbers at that place, so that ``layers.0, layers.2, layers.4`` (a Sequential
with activations between) reads like ``dense_1, dense_2, dense_3``, and also like ``dense, dense_1,
dense_2``: the first of a numbered family may go without a number. So may the first call of a layer
(``block, block#2``): a scan over layers reads like a list of them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from functools import lru_cache
from types import MappingProxyType

__all__ = ["Tokens", "abbreviated", "canonical", "ends_in", "numbered", "similarity", "spelled"]

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


@lru_cache(maxsize=1 << 16)
def _components(path: str) -> tuple[tuple[str, Tokens], ...]:
    """(what stands before it, its words) of each part of a path."""
    return tuple([(path[: part.start()], _words(part[0])) for part in _PART.finditer(path)])


@lru_cache(maxsize=1 << 14)
def _meant(words: Tokens) -> Tokens:
    return tuple([_SAME.get(word, word) for word in words])


def canonical(paths: Iterable[str]) -> Mapping[str, Tokens]:
    """path -> its words, numbers replaced by ranks among all the given paths."""
    return _canonical(tuple(paths))[0]


def numbered(paths: Iterable[str]) -> Mapping[Tokens, int]:
    """Words that numbers come behind in some of the paths -> how many different numbers."""
    return _canonical(tuple(paths))[1]


def spelled(path: str) -> Tokens:
    """Its words, numbers as they are."""
    return tuple([word for _, words in _components(path) for word in _meant(words)])


@lru_cache(maxsize=16)  # two sides of one framework often have the same paths
def _canonical(paths: tuple[str, ...]) -> tuple[Mapping[str, Tokens], Mapping[Tokens, int]]:
    called_again = {path.removesuffix("#2") for path in paths if path.endswith("#2")}
    components = {p: _components(f"{p}#1" if p in called_again else p) for p in paths}
    # (parent, words) of the numbered parts: ``a/dense_1`` -> ``("a/", ("dense",))``.
    families = {
        (parent, words[:-1])
        for parts in components.values()
        for parent, words in parts
        if len(words) > 1 and words[-1].isdigit()
    }
    words: dict[str, list[str]] = {}
    places: dict[str, list[tuple[int, Tokens, int]]] = {}  # of numbers, with what stands before
    numbers: defaultdict[Tokens, set[int]] = defaultdict(set)
    for path, parts in components.items():
        found: list[str] = []
        words[path] = found
        for parent, component in parts:
            found += _meant(component)
            if (parent, component) in families:
                found.append(_UNNUMBERED)
        places[path] = [
            (i, tuple(found[:i]), int(word)) for i, word in enumerate(found) if _is_number(word)
        ]
        for _, before, number in places[path]:
            numbers[before].add(number)
    ranks = {p: {n: str(r) for r, n in enumerate(sorted(ns))} for p, ns in numbers.items()}
    for path, found in words.items():
        for i, before, number in places[path]:
            found[i] = ranks[before][number]
    return (
        MappingProxyType({path: tuple(found) for path, found in words.items()}),
        MappingProxyType({before: len(known) for before, known in numbers.items()}),
    )


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


def abbreviated(a: Tokens, b: Tokens) -> bool:
    """Whether one path has two words or more, all of them the other's: ``o1`` for
    ``layers.1.attn.o``."""
    short, long = sorted((a, b), key=len)
    return len(short) > 1 and not Counter(short) - Counter(long)


def ends_in(a: str, b: str) -> bool:
    """Whether one path is a single word, and all of the last part of the other: ``mlp`` for
    ``layers.1.mlp`` (``embeddings`` not for ``token_embeddings``)."""
    short, long = sorted(([_meant(words) for _, words in _components(p)] for p in (a, b)), key=len)
    return (
        len(short) == 1 and len(short[0]) == 1 and short == long[-1:] and not short[0][0].isdigit()
    )


@lru_cache(maxsize=1 << 16)
def _ratio(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Of two paths, each word replaced by a number: all that counts is which words are equal, so
    that the layers of a deep model, which differ in their numbers, are few cases."""
    return SequenceMatcher(None, a, b, autojunk=False).ratio()
