"""Mistakes in the optimizer of a candidate: by hand in NumPy; Keras' and Optax' own, as they come.

The reference's optimizer is named; that of the candidate is meant to be the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from models.defects.options import Option, in_the_step, rows_of

__all__ = ["PLANTS", "ROWS"]

Arrays = dict[str, Any]
FAMILY = "mlp"
SPARED = "adamw(1e-3, weight_decay=0.1, exclude='biases and norms')"
LIKE_KERAS = f"{SPARED[:-1]}, eps=1e-7, eps_hat=True)"  # all but the exclusion
RATES = (0.1, 0.01)


# -- by hand ---------------------------------------------------------------------------------------


class Adam:
    """Adam and AdamW; ``eps_late=False``: ε is added to the root before v is corrected."""

    def __init__(
        self,
        *,
        eps_late: bool = True,
        corrected: bool = True,
        decay: float = 0.0,
        decay_rate: float = 1e-3,
    ) -> None:
        self.eps_late, self.corrected = eps_late, corrected
        self.decay, self.decay_rate = decay, decay_rate
        self.moments: dict[str, tuple[Any, Any]] = {}
        self.t = 0

    def step(self, params: Arrays, grads: Arrays) -> None:
        self.t += 1
        c1, c2 = (1 - 0.9**self.t, 1 - 0.999**self.t) if self.corrected else (1.0, 1.0)
        for name, p in params.items():
            g = grads[name]
            m, v = self.moments.get(name, (0 * g, 0 * g))
            m, v = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g * g
            self.moments[name] = m, v
            late, early = (1e-8, 0.0) if self.eps_late else (0.0, 1e-8)
            root = (np.sqrt(v) + early) / np.sqrt(c2) + late
            p -= self.decay_rate * self.decay * p + 1e-3 * (m / c1) / root


class RmsProp:
    """``inside``: ε under the root; ``start``: v before the first step."""

    def __init__(self, eps: float = 1e-6, *, inside: bool = False, start: float = 0.0) -> None:
        self.eps, self.inside, self.start = eps, inside, start
        self.v: Arrays = {}

    def step(self, params: Arrays, grads: Arrays) -> Arrays:
        made = {}
        for name, p in params.items():
            g = grads[name]
            v = 0.9 * self.v.get(name, np.full_like(g, self.start)) + (1 - 0.9) * g * g
            self.v[name] = v
            root = np.sqrt(v + self.eps) if self.inside else np.sqrt(v) + self.eps
            made[name] = p - 1e-2 * g / root
        return made


class Sgd:
    """Momentum; ``inside``: the velocity holds the rate; ``clip``: of all gradients."""

    def __init__(
        self,
        rates: tuple[float, ...],
        momentum: float = 0.0,
        *,
        inside: bool = False,
        clip: Callable[[Arrays], Arrays] | None = None,
    ) -> None:
        self.rates, self.momentum, self.inside, self.clip = rates, momentum, inside, clip
        self.velocity: Arrays = {}
        self.t = 0

    def step(self, params: Arrays, grads: Arrays) -> None:
        rate = self.rates[min(self.t, len(self.rates) - 1)]
        self.t += 1
        grads = grads if self.clip is None else self.clip(grads)
        for name, p in params.items():
            g = rate * grads[name] if self.inside else grads[name]
            v = self.velocity[name] = self.momentum * self.velocity.get(name, 0.0 * g) + g
            p -= v if self.inside else rate * v


def one_by_one(grads: Arrays) -> Arrays:
    return {n: g * min(1.0, 0.5 / np.linalg.norm(g)) for n, g in grads.items()}


def norm_and_a_millionth(grads: Arrays) -> Arrays:
    norm = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in grads.values()))
    return {n: g * min(1.0, 1e-4 / (norm + 1e-6)) for n, g in grads.items()}


# -- Keras' own ------------------------------------------------------------------------------------


def keras_own(name: str, rate: Any, **options: Any) -> Any:
    import keras

    if isinstance(rate, tuple):
        rate = keras.optimizers.schedules.PiecewiseConstantDecay([0], list(rate))
    return getattr(keras.optimizers, name)(rate, **options)


# -- Optax' own ------------------------------------------------------------------------------------


def optax_own(name: str, rate: float, **options: Any) -> Any:
    import optax

    return getattr(optax, name)(rate, **options)


def decay_behind_the_rate() -> Any:
    import optax

    return optax.chain(optax.scale_by_adam(), optax.scale(-1e-3), optax.add_decayed_weights(-0.01))


def rate_before_the_velocity() -> Any:
    import optax

    rates = optax.piecewise_constant_schedule(RATES[0], {1: RATES[1] / RATES[0]})
    return optax.chain(optax.scale_by_learning_rate(rates), optax.trace(0.9))


def each_block_clipped() -> Any:
    import jax
    import jax.numpy as jnp
    import optax

    def one(g: Any) -> Any:
        return g * jnp.minimum(1.0, 0.5 / jnp.linalg.norm(g.reshape(-1)))

    clip = optax.stateless(lambda grads, params: jax.tree.map(one, grads))
    return optax.chain(clip, optax.sgd(0.1))


# -- the rows --------------------------------------------------------------------------------------


def _planted(
    number: int,
    candidate: str,
    what: str,
    meant: str,
    make: Callable[[], Any],
    name: str,
    *,
    steps: int = 1,
    shows: int = 1,
    parameters: str = "",
    **more: Any,
) -> Option:
    """``meant``: the reference's; ``make``: the candidate's; ``shows``: first wrong step."""

    def options(seed: int) -> dict[str, Any]:
        return {"optimizer": (meant, make()), "steps": steps, **more}

    located = in_the_step(shows, parameters)
    return Option(number, FAMILY, candidate, what, options, located, frozenset([name]))


made = functools.partial
MOMENTUM = "sgd(lr=[0.1, 0.01], momentum=0.9)"
CLIPPED, RMSPROP = "sgd(0.1, clip_norm=0.5)", "rmsprop(1e-2, rho=0.9, eps=1e-6)"
FROM_ZERO = "rmsprop(1e-2, rho=0.9, eps=0.01)"  # beside √0.9 a small eps could be anywhere
LATE = {"steps": 2, "shows": 2}
VECTORS = {"parameters": "vectors"}
SMALL = {"loss": "0.001 * cross_entropy", "targets": "int64[5] 0..9"}

BY_HAND = (
    _planted(64, "numpy", "eps-early", "adam(1e-3)", made(Adam, eps_late=False), "eps_place"),
    _planted(
        65, "numpy", "uncorrected", "adam(1e-3)", made(Adam, corrected=False), "bias_correction"
    ),
    _planted(66, "numpy", "eps-inside", RMSPROP, made(RmsProp, inside=True), "eps_place"),
    _planted(
        66, "numpy", "start-one", FROM_ZERO, made(RmsProp, 0.01, start=1.0), "initial_accumulator"
    ),
    _planted(
        67,
        "numpy",
        "decay-without-rate",
        "adamw(1e-3, weight_decay=0.01)",
        made(Adam, decay=0.01, decay_rate=1.0),
        "decay_without_lr",
    ),
    _planted(68, "numpy", "all-decay", SPARED, made(Adam, decay=0.1), "decay_excluded", **VECTORS),
    _planted(
        69,
        "numpy",
        "rate-inside",
        MOMENTUM,
        made(Sgd, RATES, 0.9, inside=True),
        "lr_inside",
        **LATE,
    ),
    _planted(
        69,
        "numpy",
        "no-dampening",
        "sgd(0.1, momentum=0.9, dampening=0.5)",
        made(Sgd, (0.1,), 0.9),
        "dampening",
        **LATE,
    ),
    _planted(70, "numpy", "one-by-one", CLIPPED, made(Sgd, (0.1,), clip=one_by_one), "clip_each"),
    _planted(
        70,
        "numpy",
        "norm-and-a-millionth",
        "sgd(0.1, clip_norm=1e-4)",
        made(Sgd, (0.1,), clip=norm_and_a_millionth),
        "clip_eps",
        **SMALL,
    ),
)
OF_KERAS = (
    _planted(64, "keras", "adam", "adam(1e-3)", made(keras_own, "Adam", 1e-3), "eps_place"),
    _planted(
        66,
        "keras",
        "rmsprop",
        RMSPROP,
        made(keras_own, "RMSprop", 1e-2, rho=0.9, epsilon=1e-6),
        "eps_place",
    ),
    _planted(
        68,
        "keras",
        "adamw",
        LIKE_KERAS,
        made(keras_own, "AdamW", 1e-3, weight_decay=0.1),
        "decay_excluded",
        **VECTORS,
    ),
    _planted(
        69,
        "keras",
        "sgd-schedule",
        MOMENTUM,
        made(keras_own, "SGD", RATES, momentum=0.9),
        "lr_inside",
        **LATE,
    ),
    _planted(
        70, "keras", "clipnorm", CLIPPED, made(keras_own, "SGD", 0.1, clipnorm=0.5), "clip_each"
    ),
)
OF_OPTAX = (
    _planted(
        64,
        "jax",
        "eps-root",
        "adam(1e-3)",
        made(optax_own, "adam", 1e-3, eps=0.0, eps_root=1e-8),
        "eps_place",
    ),
    _planted(
        66,
        "jax",
        "start-one",
        FROM_ZERO,
        made(optax_own, "rmsprop", 1e-2, decay=0.9, eps=0.01, initial_scale=1.0, eps_in_sqrt=False),
        "initial_accumulator",
    ),
    _planted(
        66,
        "jax",
        "rmsprop",
        RMSPROP,
        made(optax_own, "rmsprop", 1e-2, decay=0.9, eps=1e-6),
        "eps_place",
    ),
    _planted(
        67,
        "jax",
        "decay-behind-the-rate",
        "adamw(1e-3, weight_decay=0.01)",
        decay_behind_the_rate,
        "decay_without_lr",
    ),
    _planted(
        68,
        "jax",
        "adamw-without-mask",
        SPARED,
        made(optax_own, "adamw", 1e-3, weight_decay=0.1),
        "decay_excluded",
        **VECTORS,
    ),
    _planted(
        69, "jax", "rate-before-velocity", MOMENTUM, rate_before_the_velocity, "lr_inside", **LATE
    ),
    _planted(70, "jax", "each-block-clipped", CLIPPED, each_block_clipped, "clip_each"),
)
PLANTS = (*BY_HAND, *OF_KERAS, *OF_OPTAX)
ROWS = rows_of(PLANTS)
