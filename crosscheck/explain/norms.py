"""Hypotheses on normalisation layers: which norm is it, and what does the candidate do otherwise?

A norm is y = (x − m) / √(v + eps) · weight + bias. Which axes m and v are taken over, whether there
is an m at all and which eps the reference has is found by reproducing the reference's own value.
(Ioffe, Szegedy 2015; Ba et al. 2016; Wu, He 2018; Zhang, Sennrich 2019.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from crosscheck.explain.evidence import Evidence, Proposal
from crosscheck.explain.numbers import tidy
from crosscheck.explain.registry import register
from crosscheck.explain.rounding import FORMATS, either
from crosscheck.judging.noise import AGREE

__all__ = ["Norm", "apart", "eps_of", "kinds_of", "reference_norm"]

Distance = Callable[[np.ndarray], float]

USUAL_EPS = (1e-3, 1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-4, 1e-2, 1e-15, 0.0)


@dataclass(frozen=True)
class Norm:
    """One way to normalise.

    Attributes:
        axes: the axes of ``x`` that statistics are taken over, once it is cut into groups.
        channel: first axis of ``x`` that weight and bias run along.
        centred: whether the mean is taken off.
        running: statistics are the layer's buffers.
        groups: channels are cut into so many groups; 0: not at all.
        strided: each group takes every ``groups``-th channel, not a run of them.
    """

    axes: tuple[int, ...]
    channel: int
    eps: float = 1e-5
    centred: bool = True
    running: bool = False
    groups: int = 0
    strided: bool = False
    unbiased: bool = False
    outside: bool = False
    weight: str = "w"  # "w", "1" (ignored), "1+w"
    bias: float = 1.0

    def __call__(self, e: Evidence) -> np.ndarray:
        """The norm of the layer's input."""
        return self.finished(e, self.normalised(e))

    def finished(self, e: Evidence, hat: np.ndarray) -> np.ndarray:
        """x̂ with weight and bias."""
        x = _x(e)
        weight, bias = self.spread(e.value("weight"), x), self.spread(e.value("bias"), x)
        if weight is not None and self.weight != "1":
            hat = hat * (weight + 1.0 if self.weight == "1+w" else weight)
        return hat if bias is None else hat + self.bias * bias

    def normalised(self, e: Evidence) -> np.ndarray:
        """x̂ = (x − m) / √(v + eps)."""
        mean, variance = self.statistics(e)
        x = self._cut(_x(e))
        scale = np.sqrt(variance) + self.eps if self.outside else np.sqrt(variance + self.eps)
        return np.asarray(((x - mean) / scale).reshape(_x(e).shape))

    def statistics(self, e: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """(m, v), to broadcast against the input cut into groups."""
        x = _x(e)
        if self.running:
            mean, variance = (self.spread(e.value(r), x) for r in ("mean", "variance"))
            if mean is None or variance is None:
                raise ValueError("no running statistics")
            return mean, variance
        x = self._cut(x)
        mean = x.mean(self.axes, keepdims=True) if self.centred else np.zeros(1)
        variance = ((x - mean) ** 2).mean(self.axes, keepdims=True)
        if self.unbiased:
            n = math.prod(x.shape[a] for a in self.axes)
            variance = variance * (n / (n - 1))
        return mean, variance

    def _cut(self, x: np.ndarray) -> np.ndarray:
        if not self.groups:
            return x
        shape = list(x.shape)
        pair = [self.groups, shape[self.channel] // self.groups]
        shape[self.channel : self.channel + 1] = reversed(pair) if self.strided else pair
        return x.reshape(shape)

    def spread(self, parameter: np.ndarray | None, x: np.ndarray) -> np.ndarray | None:
        """A parameter, to broadcast against the input."""
        if parameter is None:
            return None
        after = x.ndim - self.channel - parameter.ndim
        return parameter.reshape(parameter.shape + (1,) * after)


def _x(e: Evidence) -> np.ndarray:
    assert e.x is not None
    return e.x


def kinds_of(e: Evidence) -> Iterator[tuple[str, Norm]]:
    """Every norm that the shapes allow, with its name."""
    x = _x(e)
    weight = e.value("weight")
    last = x.ndim - (1 if weight is None else weight.ndim)
    tail = tuple(range(last, x.ndim))
    yield "layer", Norm(tail, last)
    yield "rms", Norm(tail, last, centred=False)
    channels = weight.size if weight is not None and weight.ndim == 1 else None
    for channel in dict.fromkeys((1, x.ndim - 1)):
        if channel >= x.ndim or channels not in (None, x.shape[channel]):
            continue
        rest = tuple(a for a in range(x.ndim) if a != channel)
        yield "batch", Norm(rest, channel)
        yield "running", Norm(rest, channel, running=True)
        yield "channel", Norm((channel,), channel)
        inner = tuple(a for a in rest if a)
        if inner:
            yield "instance", Norm(inner, channel)
        for groups in range(1, x.shape[channel]):
            if x.shape[channel] % groups == 0:
                cut = tuple(a + (a >= channel) for a in inner) + (channel + 1,)
                yield f"group ({groups})", Norm(cut, channel, groups=groups)


def eps_of(e: Evidence, norm: Norm, value: np.ndarray) -> float | None:
    """The eps with which a norm comes closest to ``value``; None if it explains nothing.

    √(v + eps) is, for each m and v, the factor between (x − m) · weight and value − bias.
    """
    x = _x(e)
    mean, variance = norm.statistics(e)
    weight, bias = norm.spread(e.value("weight"), x), norm.spread(e.value("bias"), x)
    numerator = (norm._cut(x) - mean).reshape(x.shape)
    if weight is not None and norm.weight != "1":
        numerator = numerator * (weight + 1.0 if norm.weight == "1+w" else weight)
    rest = value if bias is None else value - norm.bias * bias
    axes = norm.axes
    over = norm._cut(rest * numerator).sum(axes, keepdims=True)
    under = norm._cut(numerator * numerator).sum(axes, keepdims=True)
    factor = over / under  # 1 / √(v + eps)
    spread = np.broadcast_to(_over(variance, axes), factor.shape)
    good = np.isfinite(factor) & (factor > 0)
    if not good.any():
        return None
    root = 1.0 / factor[good]
    found = root - np.sqrt(spread[good]) if norm.outside else root**2 - spread[good]
    weights = 1.0 / np.maximum(spread[good], 1e-12) ** 2  # small variances say most about eps
    eps = float(np.sum(found * weights) / np.sum(weights))
    return eps if math.isfinite(eps) else None


def _over(variance: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return variance.mean(axes, keepdims=True) if variance.ndim > max(axes) else variance


def reference_norm(e: Evidence, value: np.ndarray, distance: Distance) -> Norm | None:
    """The norm that the reference's layer is, with its eps; None if it is none.

    Args:
        value: what the reference's layer returned.
        distance: of a prediction from it; up to 8 is near enough.
    """
    if e.x is None or e.x.shape != value.shape or e.x.ndim < 2:
        return None
    kinds = [kind for _, kind in kinds_of(e)]
    kinds += [replace(kind, weight="1+w") for name, kind in kinds_of(e) if name in ("layer", "rms")]
    for kind in kinds:
        found = _with_eps(e, kind, value, distance)
        if found is not None:
            return found
    return None


def _with_eps(e: Evidence, kind: Norm, value: np.ndarray, distance: Distance) -> Norm | None:
    try:
        solved = eps_of(e, kind, value)
    except ValueError:
        return None
    if solved is None or solved < -1e-3:
        return None
    near = replace(kind, eps=max(solved, 0.0))
    if distance(near(e)) > 1e3 * AGREE:  # solving loses digits, but not as many
        return None
    options = [near, *(replace(kind, eps=number) for number in USUAL_EPS)]
    best = min(options, key=lambda norm: distance(norm(e)))
    return best if distance(best(e)) <= AGREE else None


def _from_reference(e: Evidence) -> Distance:
    return lambda prediction: e.ratio(prediction, e.reference)


@register("forward")
def eps(e: Evidence) -> Iterator[Proposal]:
    """Another eps, or eps added to the deviation."""
    norm = reference_norm(e, e.reference, _from_reference(e))
    if norm is None:
        return
    ours = _eps_text(norm, e.reference, e)
    for outside in (False, True):
        kind = replace(norm, outside=outside)
        where = " added to the deviation, not to the variance" if outside else ""
        if outside:
            yield Proposal("norm_eps_outside", f"eps {ours}{where}", kind)
        solved = eps_of(e, kind, e.candidate)
        if solved is None or outside:
            continue
        best = _best(e, kind, solved)
        text = _eps_text(best, e.candidate, e)
        yield Proposal("norm_eps", f"eps {text} instead of {ours}", best, constants=1)


def _best(e: Evidence, norm: Norm, solved: float) -> Norm:
    """The usual eps that comes closest; what was solved for where none fits."""
    usual = [replace(norm, eps=number) for number in USUAL_EPS]
    closest = min(usual, key=lambda n: e.ratio(n(e)))
    if e.fits_candidate(closest(e)):
        return closest
    number, _ = tidy(max(solved, 0.0), lambda k: e.fits_candidate(replace(norm, eps=k)(e)))
    return replace(norm, eps=number)


def _eps_text(norm: Norm, value: np.ndarray, e: Evidence) -> str:
    """An eps in as many digits as the data support: a small one may only be known to be small."""
    best = e.ratio(norm(e), value)

    def same(number: float) -> bool:
        return e.ratio(replace(norm, eps=number)(e), value) <= max(2.0, 1.5 * best)

    if same(0.0):
        most = max((n for n in USUAL_EPS if same(n)), default=0.0)
        return f"at most {most:g}" if most else "0"
    _, text = tidy(norm.eps, same)
    return text


@register("forward")
def other_norm(e: Evidence) -> Iterator[Proposal]:
    """The same eps, but something else is different."""
    norm = reference_norm(e, e.reference, _from_reference(e))
    if norm is None:
        return
    changes: list[tuple[str, str, Norm]] = [
        ("norm_weight_ignored", "the weight (gamma) is ignored", replace(norm, weight="1")),
        _one_plus(norm),
        ("norm_bias_ignored", "the bias (beta) is ignored", replace(norm, bias=0.0)),
        ("norm_unbiased", "the variance is divided by n - 1", replace(norm, unbiased=True)),
        ("norm_centred", "the mean is not taken off", replace(norm, centred=False)),
    ]
    for name in FORMATS:
        text = f"rounds to {name} before the weight is applied"
        cast = functools.partial(_cast_early, norm=norm, name=name)
        yield Proposal("norm_cast_early", text, cast)
    for name, text, changed in changes:
        yield Proposal(name, text, changed)
    if norm.groups:
        yield from _grouped(e, norm)
    for label, kind in kinds_of(e):
        if (kind.axes, kind.centred, kind.running) != (norm.axes, norm.centred, norm.running):
            text = f"{_STATISTICS.get(label, 'another norm: ' + label)}"
            yield Proposal("norm_statistics", text, replace(kind, eps=norm.eps))


def _grouped(e: Evidence, norm: Norm) -> Iterator[Proposal]:
    """The channels of a group norm, put together in other groups."""
    channels = _x(e).shape[norm.channel]
    for count in range(1, channels + 1):
        if channels % count == 0 and count != norm.groups:
            text = f"group norm with {count} group{'s' * (count > 1)} for {norm.groups}"
            yield Proposal("norm_groups", text, replace(norm, groups=count))
    across = tuple(norm.channel if a == norm.channel + 1 else a for a in norm.axes)
    yield Proposal(
        "norm_groups",
        f"the groups are interleaved: channel c is in group c mod {norm.groups}",
        replace(norm, strided=True, axes=across),
    )


def _one_plus(norm: Norm) -> tuple[str, str, Norm]:
    if norm.weight == "1+w":
        text = "multiplies by the weight, not by 1 + weight"
        return "norm_one_plus_weight", text, replace(norm, weight="w")
    return "norm_one_plus_weight", "multiplies by 1 + weight", replace(norm, weight="1+w")


def _cast_early(e: Evidence, *, norm: Norm, name: str) -> tuple[np.ndarray, np.ndarray]:
    low, high = either(norm.normalised(e), FORMATS[name], e.floor.unit)
    return norm.finished(e, low), norm.finished(e, high)


_STATISTICS = {
    "batch": "normalises by the statistics of the batch",
    "running": "normalises by the running statistics",
    "layer": "normalises over the last axes",
    "rms": "divides by the root mean square of the last axes, no mean taken off",
    "channel": "normalises over the channels",
    "instance": "normalises each channel of each example",
}


# -- backward --------------------------------------------------------------------------------------


@register("backward")
def detached_statistics(e: Evidence) -> Iterator[Proposal]:
    """Mean and variance taken for constants: dx = dy · weight / √(v + eps)."""
    if e.kind != "input_cotangent" or e.output is None or e.given is None:
        return
    norm = reference_norm(e, e.output, functools.partial(apart, e.output))
    if norm is None or norm.running:
        return
    yield Proposal(
        "norm_detached",
        "the statistics are taken for constants: their derivative is missing",
        lambda e: _scaling(e, norm),
    )
    yield Proposal(
        "norm_variance_detached",
        "the variance is taken for a constant: its derivative is missing",
        lambda e: _off_mean(_scaling(e, norm), norm),
    )
    if norm.centred:
        yield Proposal(
            "norm_mean_detached",
            "the mean is taken for a constant: its derivative is missing",
            lambda e: _off_deviation(_scaling(e, norm), e, norm),
        )


def apart(value: np.ndarray, prediction: np.ndarray) -> float:
    """Relative distance in units in which 8 is as much as float32 may be off."""
    return float(np.linalg.norm(prediction - value) / np.linalg.norm(value)) / 4e-7


def _scaling(e: Evidence, norm: Norm) -> np.ndarray:
    x = _x(e)
    assert e.given is not None
    _, variance = norm.statistics(e)
    weight = norm.spread(e.value("weight"), x)
    d = e.given if weight is None else e.given * weight
    return np.asarray((norm._cut(d) / np.sqrt(variance + norm.eps)).reshape(x.shape))


def _off_mean(d: np.ndarray, norm: Norm) -> np.ndarray:
    cut = norm._cut(d)
    return np.asarray((cut - cut.mean(norm.axes, keepdims=True)).reshape(d.shape))


def _off_deviation(d: np.ndarray, e: Evidence, norm: Norm) -> np.ndarray:
    """d − x̂ · mean(d · x̂): what comes back through the variance taken off, the mean's part left."""
    cut, hat = norm._cut(d), norm._cut(norm.normalised(e))
    return np.asarray((cut - hat * (cut * hat).mean(norm.axes, keepdims=True)).reshape(d.shape))
