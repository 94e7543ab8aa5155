"""Hypotheses on the way back through an attention that is one piece of code.

Of y = P v, P = softmax(S), S = q kᵀ · scale + mask:

    dv = Pᵀ dy    dP = dy vᵀ    dS = P ∘ (dP − Σ dP ∘ P)    dq = dS k · scale    dk = dSᵀ q · scale

Queries, keys and values are a layer's inputs, packed or not; or what projections returned, with the
attention in the code between them and the projection on the way out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.heads import cut, head_counts, softmax
from crosscheck.explain.registry import register

__all__: list[str] = []

MOST_ELEMENTS = 500_000  # of the scores; a look costs a few passes over them
MOST_TRIED = 4  # layers around a projection that may be the other two
ROWS = 16  # queries that are looked at first

SLIPS = {
    "sum": "the softmax sends back P · dP, without the sum that is taken off",
    "softmax": "the softmax's derivative is missing: scores get what the weights are sent",
    "scale": "the scale of the scores is missing on the way back",
    "scale twice": "the scale of the scores is applied twice on the way back",
    "scores turned": "queries and keys get each other's gradient of the scores: dS is transposed",
    "weights turned": "the values get P dy, not Pᵀ dy",
    "unmasked": "the mask is not applied on the way back",
    "first head": "of several heads that share a key, only the first one's gradient arrives",
    "mean of heads": "heads that share a key send it their mean, not their sum",
}

Three = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Place:
    """Where queries, keys, values and the cotangent of what is made of them are.

    Attributes:
        inputs: q, k and v are the layer's inputs; else layers around, ``names``.
        packed: one value holds all three, one after the other.
        sent: site of the cotangent (``nearby``); empty: the one that the layer was given.
        part: which of the three the value belongs to.
    """

    inputs: bool
    packed: bool
    part: int = 0
    names: tuple[str, ...] = ()
    sent: str = ""

    def values(self, e: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """q, k, v and dy."""
        dy = e.nearby[self.sent] if self.sent else e.given
        if self.inputs:
            floats = [x for x in e.inputs if x.dtype.kind == "f"]
        else:
            made = {s.name: s.output for s in e.siblings}
            floats = [made[name] for name in self.names]
        if self.packed:
            floats = np.split(floats[0], 3, axis=-1)
        q, k, v = floats[:3]
        assert dy is not None
        return q, k, v, dy

    def chosen(self, sent: Three) -> np.ndarray:
        """Of the cotangents of all three, what the site's value is."""
        return np.concatenate(sent, axis=-1) if self.packed else sent[self.part]


@dataclass(frozen=True)
class _Way:
    """How an attention goes back.

    Attributes:
        layout: as in `heads.Attention`.
        causal: every position sees itself and those before it.
        slip: a key of `SLIPS`; ``""``: nothing is wrong.
    """

    place: _Place
    heads: int
    layout: str
    causal: bool
    scaled: bool = True
    slip: str = ""

    def __call__(self, e: Evidence) -> np.ndarray:
        """The cotangent at the site."""
        return self.of(self.place.values(e))

    def of(self, given: tuple[np.ndarray, ...]) -> np.ndarray:
        """The same, of q, k, v and dy."""
        q, k, v, dy = (self._cut(value, given[0]) for value in given)
        sent = self._sent(q, k, v, dy)
        dq, dk, dv = (
            _joined(d, self.layout, x.shape) for d, x in zip(sent, given[:3], strict=True)
        )
        return self.place.chosen((dq, dk, dv))

    def _cut(self, value: np.ndarray, q: np.ndarray) -> np.ndarray:
        """(B, H, T, D); fewer heads of keys are of the queries' size."""
        if value.ndim == 4:
            return cut(value, self.heads, self.layout)
        size = q.shape[-1] // self.heads
        return cut(value, value.shape[-1] // size, self.layout)

    def _sent(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, dy: np.ndarray) -> Three:
        shared = q.shape[1] // k.shape[1]
        k, v = (np.repeat(x, shared, axis=1) for x in (k, v))
        scale = q.shape[-1] ** -0.5 if self.scaled else 1.0
        s = q @ k.swapaxes(-1, -2) * scale
        if self.causal and self.slip != "unmasked":
            s = np.where(
                np.tril(np.ones(s.shape[-2:], bool), s.shape[-1] - s.shape[-2]), s, -np.inf
            )
        p = softmax(s)
        dp = dy @ v.swapaxes(-1, -2)
        ds = self._scores(p, dp)
        dv = (p if self.slip == "weights turned" else p.swapaxes(-1, -2)) @ dy
        back = {"scale": 1.0, "scale twice": scale * scale}.get(self.slip, scale)
        ds = ds.swapaxes(-1, -2) if self.slip == "scores turned" else ds
        dk = ds.swapaxes(-1, -2) @ q * back
        return ds @ k * back, self._gathered(dk, shared), self._gathered(dv, shared)

    def _scores(self, p: np.ndarray, dp: np.ndarray) -> np.ndarray:
        if self.slip == "softmax":
            return np.where(p > 0.0, dp, 0.0)
        taken = 0.0 if self.slip == "sum" else (p * dp).sum(-1, keepdims=True)
        return np.asarray(p * (dp - taken))

    def _gathered(self, d: np.ndarray, shared: int) -> np.ndarray:
        """The sum over the heads that share a key."""
        d = d.reshape(d.shape[0], -1, shared, *d.shape[2:])
        if self.slip == "first head":
            return d[:, :, 0]
        return np.asarray(d.mean(2) if self.slip == "mean of heads" else d.sum(2))


def _joined(value: np.ndarray, layout: str, shape: tuple[int, ...]) -> np.ndarray:
    """(B, H, T, D) as it was before `heads.cut`."""
    return value if layout == "heads first" else value.swapaxes(1, 2).reshape(shape)


@register("backward")
def attention_backward(e: Evidence) -> Iterator[Proposal]:
    """Softmax, scale, mask, products or shared heads made wrong on an attention's way back."""
    ours = next((way for place in _places(e) if (way := _reference(e, place))), None)
    if ours is None:
        return
    for slip, text in SLIPS.items():
        yield Proposal("attention_backward", text, replace(ours, slip=slip))


def _places(e: Evidence) -> Iterator[_Place]:
    """Where an attention may be, from the shapes."""
    shape = e.reference.shape
    floats = [x for x in e.inputs if x.dtype.kind == "f"]
    if e.kind == "input_cotangent" and e.given is not None and e.output is not None:
        if len(floats) >= 3 and e.slot < 3:
            yield _Place(True, False, e.slot)
        elif len(floats) == 1 and shape[-1] == 3 * e.output.shape[-1]:
            yield _Place(True, True)
    if e.kind != "cotangent" or not e.siblings or e.output is None:
        return
    here = next((s.name for s in e.siblings if s.when == 0), "")
    for sent, dy in e.nearby.items():
        if dy.shape == (*shape[:-1], shape[-1] // 3):
            yield _Place(False, True, names=(here,), sent=sent)
    home = here.rpartition(".")[0]  # queries, keys and values are made in one place
    others = [
        s.name
        for s in e.siblings
        if s.when and s.output.shape[:-1] == shape[:-1] and s.name.rpartition(".")[0] == home
    ]
    for sent in e.nearby:
        for pair in itertools.permutations(others[:MOST_TRIED], 2):
            for part in range(3):
                names = (*pair[:part], here, *pair[part:])
                yield _Place(False, False, part, names, sent)


def _reference(e: Evidence, place: _Place) -> _Way | None:
    """How the reference goes back; None if it does otherwise."""
    q, k, v, dy = place.values(e)
    if q.ndim not in (3, 4) or dy.ndim != q.ndim or k.ndim != q.ndim:
        return None
    if q.shape[-1] % k.shape[-1] or dy.shape[-1] % v.shape[-1]:  # heads may share keys
        return None
    if q.ndim == 3 and not _adds_up(place, e.reference[:1], dy[:1]):
        return None
    layouts = ("flat",) if q.ndim == 3 else ("heads first", "heads second")
    for layout in layouts:
        for heads in head_counts(replace(e, reference=q), q) if q.ndim == 3 else (q.shape[1],):
            if heads * q.shape[0] * q.shape[-2] * k.shape[-2] > MOST_ELEMENTS:
                continue
            for causal, scaled in itertools.product((False, True), (True, False)):
                way = _Way(place, heads, layout, causal, scaled)
                if _fits(e, way):
                    return way
    return None


def _adds_up(place: _Place, sent: np.ndarray, dy: np.ndarray) -> bool:
    """Whether Σ dv = Σ dy and Σ dk = 0 over the positions: true of every attention whatever its
    heads, scale and mask, as the rows of P add up to 1 and those of dS to 0."""
    parts = np.split(sent, 3, axis=-1) if place.packed else [sent] * 3
    for part, due in ((1, 0.0), (2, dy.sum(-2))):
        found = parts[part].sum(-2)
        if (place.packed or place.part == part) and np.shape(due) in ((), found.shape):
            size = max(np.abs(parts[part]).sum(-2).max(), np.abs(dy).sum(-2).max() * (part == 2))
            if np.abs(found - due).max() > 1e-3 * size:
                return False
    return True


def _fits(e: Evidence, way: _Way) -> bool:
    """The first example tells nearly always; of the queries' cotangent the last rows of it."""
    q, k, v, dy = (value[:1] for value in way.place.values(e))
    truth = e.reference[:1]
    if q.ndim == 3 and way.place.part == 0 and not way.place.packed:
        q, dy, truth = (value[:, -ROWS:] for value in (q, dy, truth))
    try:
        atol = 1e-3 * np.abs(e.reference).max()
        near = np.allclose(way.of((q, k, v, dy)), truth, rtol=1e-2, atol=atol)
        return near and e.fits_reference(way(e))
    except (ValueError, IndexError, ZeroDivisionError):  # other shapes than those of an attention
        return False
