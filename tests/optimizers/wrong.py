"""Optimizers as people write them by hand for a NumPy net, each with a switch for a mistake."""

from __future__ import annotations

from typing import Any

import numpy as np

Arrays = dict[str, Any]


class Adam:
    """Returns nothing: changes the parameters in place."""

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        eps_early: bool = False,
        correct: bool = True,
        decay: float = 0.0,
        decay_by: str = "lr",
        spare: str = "",
    ) -> None:
        self.lr, self.betas, self.eps = lr, betas, eps
        self.eps_early, self.correct = eps_early, correct
        self.decay, self.decay_by, self.spare = decay, decay_by, spare
        self.m: Arrays = {}
        self.v: Arrays = {}
        self.t = 0

    def step(self, params: Arrays, grads: Arrays) -> None:
        self.t += 1
        b1, b2 = self.betas
        for name, p in params.items():
            g = grads[name]
            m = self.m[name] = b1 * self.m.get(name, 0.0 * g) + (1 - b1) * g
            v = self.v[name] = b2 * self.v.get(name, 0.0 * g) + (1 - b2) * g * g
            c1, c2 = (1 - b1**self.t, 1 - b2**self.t) if self.correct else (1.0, 1.0)
            if not self.spare or self.spare not in name:
                p -= (self.lr if self.decay_by == "lr" else 1.0) * self.decay * p
            root = (np.sqrt(v) + self.eps) / np.sqrt(c2) if self.eps_early else None
            p -= self.lr * (m / c1) / (np.sqrt(v / c2) + self.eps if root is None else root)


class RmsProp:
    """Returns the new parameters."""

    def __init__(self, lr: float, rho: float, eps: float, *, inside: bool, start: float) -> None:
        self.lr, self.rho, self.eps, self.inside, self.start = lr, rho, eps, inside, start
        self.v: Arrays = {}

    def step(self, params: Arrays, grads: Arrays) -> Arrays:
        made = {}
        for name, p in params.items():
            g = grads[name]
            before = self.v.get(name, np.full_like(g, self.start))
            v = self.v[name] = self.rho * before + (1 - self.rho) * g * g
            root = np.sqrt(v + self.eps) if self.inside else np.sqrt(v) + self.eps
            made[name] = p - self.lr * g / root
        return made


class Sgd:
    """Momentum, in the forms that frameworks and papers give it."""

    def __init__(
        self,
        rates: list[float],
        momentum: float = 0.0,
        *,
        lr_inside: bool = False,
        share: float = 1.0,
        clip: Any = None,
        keep: bool = False,
        only: str = "",
    ) -> None:
        self.rates, self.momentum, self.lr_inside, self.share = rates, momentum, lr_inside, share
        self.clip, self.keep, self.only = clip, keep, only
        self.velocity: Arrays = {}
        self.total: Arrays = {}
        self.t = 0

    def step(self, params: Arrays, grads: Arrays) -> None:
        lr = self.rates[min(self.t, len(self.rates) - 1)]
        self.t += 1
        if self.clip is not None:
            grads = self.clip(grads)
        for name, p in params.items():
            if self.only and self.only not in name:
                continue
            g = grads[name]
            if self.keep:
                g = self.total[name] = self.total.get(name, 0.0) + g
            g = lr * g if self.lr_inside else g
            first = name not in self.velocity
            before = self.velocity.get(name, 0.0 * g)
            v = self.momentum * before + (1.0 if first else self.share) * g
            self.velocity[name] = v
            p -= v if self.lr_inside else lr * v


def per_tensor(limit: float) -> Any:
    def clip(grads: Arrays) -> Arrays:
        return {n: g * min(1.0, limit / np.linalg.norm(g)) for n, g in grads.items()}

    return clip


def by_global_norm(limit: float, eps: float = 0.0) -> Any:
    def clip(grads: Arrays) -> Arrays:
        norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads.values()))
        return {n: g * min(1.0, limit / (norm + eps)) for n, g in grads.items()}

    return clip
