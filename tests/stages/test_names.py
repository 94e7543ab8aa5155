"""How alike two names are, and the best assignment that keeps an order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from crosscheck.aligning.assignment import best_monotone
from crosscheck.aligning.names import abbreviated, canonical, ends_in, similarity


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["layers.0", "layers.2", "layers.4"], ["layers_3", "layers_5", "layers_6"]),
        (["fc1", "fc2", "fc3"], ["dense", "dense_1", "dense_2"]),
        (["a.conv", "a.conv1"], ["a/conv_4", "a/conv_9"]),
        (["enc.layer.0.ln", "enc.layer.1.ln"], ["enc/blocks/0/norm", "enc/blocks/7/norm"]),
        (["layers.0", "layers.1", "layers.2"], ["layer", "layer#2", "layer#3"]),
    ],
)
def test_numbers_are_ranks(ours: list[str], theirs: list[str]) -> None:
    a, b = canonical(ours), canonical(theirs)
    for i, j in itertools.product(range(len(ours)), repeat=2):
        right = similarity(a[ours[i]], b[theirs[i]])
        assert i == j or similarity(a[ours[i]], b[theirs[j]]) < right


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [
        ("o1", "layers.1.attn.o", True),
        ("o", "layers.1.attn.o", False),
        ("", "layers.1", False),
    ],
)
def test_abbreviations(short: str, long: str, expected: bool) -> None:
    words = {path: canonical([path])[path] for path in (short, long)}
    assert abbreviated(words[short], words[long]) is expected
    assert abbreviated(words[long], words[short]) is expected


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [
        ("mlp", "layers.1.mlp", True),
        ("dense", "layers.1.fc", True),
        ("mlp", "layers.1.mlp.up", False),
        ("embeddings", "bert/token_type_embeddings", False),
        ("1", "layers.1", False),
        ("", "layers.1", False),
    ],
)
def test_last_parts(short: str, long: str, expected: bool) -> None:
    assert ends_in(short, long) is ends_in(long, short) is expected


def test_words() -> None:
    got = canonical(
        ["encoder.SelfAttention.query", "QKVProj", "layer_norm", "enc.layer", "enc.layer.3"]
    )
    assert got == {
        "encoder.SelfAttention.query": ("encoder", "self", "attn", "q"),
        "QKVProj": ("qkv", "linear"),
        "layer_norm": ("layer", "norm"),
        "enc.layer": ("enc", "layer"),  # a container; its members carry the numbers
        "enc.layer.3": ("enc", "layer", "0"),
    }


def test_similarity_is_between_nothing_and_everything() -> None:
    assert similarity(("a", "b"), ("a", "b")) == 1.0
    assert similarity((), ()) == 1.0
    assert similarity((), ("a",)) == similarity(("a",), ("b",)) == 0.0
    assert 0 < similarity(("a", "b"), ("a", "c")) < similarity(("a", "b", "c"), ("a", "b", "d")) < 1


def test_best_monotone_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, m = rng.integers(0, 5, size=2)
        score = rng.choice([0.0, 0.5, 1.0, 2.5], size=(n, m))
        got = best_monotone(score)
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(got))
        assert all(score[p] > 0 for p in got)
        best = 0.0
        for k in range(min(n, m) + 1):
            for rows in itertools.combinations(range(n), k):
                for columns in itertools.combinations(range(m), k):
                    terms = [score[p] for p in zip(rows, columns, strict=True)]
                    if all(t > 0 for t in terms):
                        best = max(best, sum(terms))
        assert sum(score[p] for p in got) == best
