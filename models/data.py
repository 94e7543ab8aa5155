"""Real inputs without a download: scikit-learn's digits and the text of Python's help topics."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np

VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))  # newline and printable ASCII: 96 characters
PADDING, START, END = 96, 97, 98  # tokens that are no character


def digits_batch(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` digits drawn by ``seed``: pixels (n, 64) float32 in [0, 1] and labels (n,) int64."""
    pixels, labels = digits()
    chosen = np.random.default_rng(seed).choice(len(labels), n, replace=False)
    return pixels[chosen], labels[chosen]


def digit_images(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The same digits as images (n, 1, 8, 6): without the outer columns, height is not width."""
    pixels, labels = digits_batch(seed, n)
    return as_images(pixels), labels


def text_batch(seed: int, batch: int, length: int) -> np.ndarray:
    """``batch`` passages drawn by ``seed``: indices into `VOCABULARY`, (batch, length) int64."""
    tokens = text_tokens()
    start = np.random.default_rng(seed).integers(0, len(tokens) - length, batch)
    return tokens[start[:, None] + np.arange(length)]  # (batch, length)


def kinds(tokens: np.ndarray) -> np.ndarray:
    """What each token is: 0 a letter, 1 a digit, 2 a blank or a newline, 3 another character."""
    table = [
        0 if c.isalpha() else 1 if c.isdigit() else 2 if c.isspace() else 3 for c in VOCABULARY
    ]
    return np.array(table, dtype=np.int64)[tokens]


def passage_pairs(
    seed: int, lengths: tuple[int, ...], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two passages a row, padded to ``width``: START, the first, END, the second, END.

    ``lengths`` counts all five; 0 is a row of padding alone. Returns tokens, types (0 up to the
    first END, 1 up to the second) and presence (0 is padding), (batch, width) int64 each, and
    labels (batch,): 1 where the second passage follows the first in the text.
    """
    rng, text = np.random.default_rng(seed), text_tokens()
    tokens = np.full((len(lengths), width), PADDING, dtype=np.int64)
    types, present = np.zeros_like(tokens), np.zeros_like(tokens)
    labels = np.zeros(len(lengths), dtype=np.int64)
    for row, length in enumerate(lengths):
        if not length:
            continue
        first = (length - 3) // 2
        start = int(rng.integers(0, len(text) - length))
        labels[row] = rng.integers(2)
        then = start + first if labels[row] else int(rng.integers(0, len(text) - length))
        second = text[then : then + length - 3 - first]
        tokens[row, :length] = [START, *text[start : start + first], END, *second, END]
        types[row, first + 2 : length] = 1
        present[row, :length] = 1
    return tokens, types, present, labels


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1797 digits, pixels (n, 64) float32 in [0, 1] and labels (n,) int64."""
    table = _digits_table()
    return (table[:, :-1] / 16).astype(np.float32), table[:, -1].astype(np.int64)


def _digits_table() -> np.ndarray:
    """Pixels 0 to 16 and the digit, (1797, 65): scikit-learn's file, read without importing it,
    which takes a second."""
    spec = importlib.util.find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.column_stack([data.data, data.target])


def as_images(pixels: np.ndarray) -> np.ndarray:
    """(n, 64) -> (n, 1, 8, 6)."""
    return np.ascontiguousarray(pixels.reshape(-1, 1, 8, 8)[..., 1:7])


@functools.cache
def text_tokens() -> np.ndarray:
    """The help text as tokens (n,) int64; characters outside the vocabulary are dropped."""
    index = {character: i for i, character in enumerate(VOCABULARY)}
    return np.array([index[c] for c in _text() if c in index], dtype=np.int64)


def _text() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return _zen()
    return "\n".join(topics[name] for name in sorted(topics))


def _zen() -> str:
    """The Zen of Python, which `this` keeps in ROT13 and prints on import."""
    import codecs
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13")
