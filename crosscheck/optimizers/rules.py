"""What each named optimizer computes: one definition, in the dtype of the arrays it is given.

Notation: θ parameter, g gradient, η learning rate of this step, t = 1, 2, ... the step, λ weight
decay. Before a rule is applied the gradients are clipped (`crosscheck.optimizers.definition`).

**Weight decay** is *coupled* where g + λθ takes the place of g (an L2 penalty), and *decoupled*
where θ is multiplied by 1 − ηλ before the step (Loshchilov & Hutter, Decoupled Weight Decay
Regularization, 2019). ``adamw`` decouples, the others couple unless ``decoupled=True``.

The fields in `_SLIPS` are the mistakes that ports make. No text sets them; `crosscheck.explain`
does, to see which one reproduces what the candidate's optimizer did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from crosscheck.optimizers.schedules import Constant, Schedule

__all__ = ["Adagrad", "Adam", "AdamW", "RmsProp", "Rounding", "Rule", "Sgd", "State"]

State = dict[str, np.ndarray]
Rounding = Callable[[Any], Any]
"""Called with what float32 code rounds: the identity, or a perturbation to measure a floor with."""


def _slip(default: Any) -> Any:
    return field(default=default, metadata={"slip": True})


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What all optimizers have in common.

    Attributes:
        lr: learning rate of every step.
        weight_decay: λ.
        decoupled: how it acts, see above.
        exclude: names of reference parameters (patterns as in a shell) that do not decay; or
            ``("biases and norms",)``.
        clip_value: every element of a gradient is cut to ± this.
        clip_norm: g · min(1, clip_norm / ‖g‖), ‖g‖ over all parameters together.
        accumulate: a step is made of so many micro-batches: the mean of their gradients.
    """

    name: ClassVar[str] = ""
    lr: Schedule = Constant(1e-3)
    weight_decay: float = 0.0
    decoupled: bool = False
    exclude: tuple[str, ...] = ()
    clip_value: float | None = None
    clip_norm: float | None = None
    accumulate: int = 1

    decay_without_lr: bool = _slip(False)  # θ (1 − λ)
    clip_each: bool = _slip(False)  # every parameter by its own norm
    clip_eps: float = _slip(0.0)  # clip_norm / (‖g‖ + this)

    def start(self, theta: np.ndarray) -> State:
        """The state of one parameter before its first step."""
        return {}

    def step(
        self,
        theta: np.ndarray,
        g: np.ndarray,
        state: State,
        *,
        t: int,
        decays: bool,
        rounded: Rounding,
    ) -> np.ndarray:
        """The parameter after step ``t``; ``state`` is updated."""
        lr = rounded(self.lr.at(t))
        decay = self.weight_decay if decays else 0.0
        if decay and self.decoupled:
            theta = theta - rounded((1.0 if self.decay_without_lr else lr) * decay * theta)
        elif decay:
            g = rounded(g) + rounded(decay * theta)
        moved = rounded(self.move(rounded(g), state, lr=lr, t=t, rounded=rounded))
        return np.asarray(theta - moved)

    def move(
        self, g: np.ndarray, state: State, *, lr: float, t: int, rounded: Rounding
    ) -> np.ndarray:
        """What is subtracted from θ."""
        raise NotImplementedError

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """The options that a text may give."""
        return tuple(f.name for f in fields(cls) if not f.metadata.get("slip"))


@dataclass(frozen=True, kw_only=True)
class Sgd(Rule):
    """Gradient descent with momentum μ, dampening τ, Nesterov's variant.

    b ← g at t = 1, else μ b + (1 − τ) g;   d = g + μ b (nesterov) or b;   θ ← θ − η d

    (Sutskever et al., On the importance of initialization and momentum, 2013; the velocity b is
    free of η, so that a change of the learning rate acts at once.)
    """

    name: ClassVar[str] = "sgd"
    lr: Schedule = Constant(1e-2)
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    lr_inside: bool = _slip(False)  # b ← μ b + η g
    dampen_first: bool = _slip(False)

    def move(
        self, g: np.ndarray, state: State, *, lr: float, t: int, rounded: Rounding
    ) -> np.ndarray:
        if not self.momentum:
            return np.asarray(lr * g)
        share = 1.0 - (self.dampening if t > 1 or self.dampen_first else 0.0)
        new = rounded((lr if self.lr_inside else 1.0) * share * g)
        b = new if t == 1 else rounded(self.momentum * state["b"]) + new
        state["b"] = rounded(b)
        if self.lr_inside:
            return np.asarray(lr * g + self.momentum * b if self.nesterov else b)
        return np.asarray(lr * (g + self.momentum * b if self.nesterov else b))


@dataclass(frozen=True, kw_only=True)
class Adam(Rule):
    """m ← β₁ m + (1 − β₁) g;   v ← β₂ v + (1 − β₂) g²;   m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ)

    θ ← θ − η m̂ / (√v̂ + ε)

    (Kingma & Ba, Adam, 2015, algorithm 1.) ``eps_hat=True`` is the form that they give behind it,
    and Keras has: θ ← θ − η √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε).
    """

    name: ClassVar[str] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_hat: bool = False

    corrected: tuple[bool, bool] = _slip((True, True))  # of m, of v
    eps_in_root: bool = _slip(False)  # √(v̂ + ε)

    def start(self, theta: np.ndarray) -> State:
        return {"m": np.zeros_like(theta), "v": np.zeros_like(theta)}

    def move(
        self, g: np.ndarray, state: State, *, lr: float, t: int, rounded: Rounding
    ) -> np.ndarray:
        first, second = self.betas
        m = state["m"] = rounded(first * state["m"]) + rounded((1.0 - first) * g)
        v = state["v"] = rounded(second * state["v"] + rounded((1.0 - second) * (g * g)))
        powers = [
            rounded(beta**t) if on else 0.0
            for beta, on in zip(self.betas, self.corrected, strict=True)
        ]
        correction = 1.0 - powers[1]
        if self.eps_hat:
            root = (np.sqrt(v) + self.eps) / np.sqrt(correction)
        elif self.eps_in_root:
            root = np.sqrt(v / correction + self.eps)
        else:
            root = np.sqrt(v / correction) + self.eps
        return np.asarray(lr * (m / (1.0 - powers[0])) / root)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: θ ← (1 − ηλ) θ first, then as `Adam`.

    (Loshchilov & Hutter, 2019, algorithm 2, with PyTorch's reading of λ as η·λ.)
    """

    name: ClassVar[str] = "adamw"
    weight_decay: float = 1e-2
    decoupled: bool = True


@dataclass(frozen=True, kw_only=True)
class RmsProp(Rule):
    """v ← ρ v + (1 − ρ) g²;   d = g / (√v + ε);   with momentum b ← μ b + d;   θ ← θ − η b

    (Tieleman & Hinton, lecture 6.5, 2012.) ``eps_inside=True``: d = g / √(v + ε), as TensorFlow
    and Keras have it. ``centered=True``: v − a² for v, where a ← ρ a + (1 − ρ) g (Graves, 2013).
    ``initial``: v before the first step.
    """

    name: ClassVar[str] = "rmsprop"
    lr: Schedule = Constant(1e-2)
    rho: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False
    eps_inside: bool = False
    initial: float = 0.0

    lr_inside: bool = _slip(False)

    def start(self, theta: np.ndarray) -> State:
        zero = np.zeros_like(theta)
        return {"v": np.full_like(theta, self.initial), "a": zero, "b": zero}

    def move(
        self, g: np.ndarray, state: State, *, lr: float, t: int, rounded: Rounding
    ) -> np.ndarray:
        v = state["v"] = rounded(self.rho * state["v"] + rounded((1.0 - self.rho) * (g * g)))
        if self.centered:
            a = state["a"] = rounded(self.rho * state["a"]) + rounded((1.0 - self.rho) * g)
            v = v - rounded(a * a)
        d = g / np.sqrt(v + self.eps) if self.eps_inside else g / (np.sqrt(v) + self.eps)
        if not self.momentum:
            return np.asarray(lr * d)
        b = state["b"] = rounded(self.momentum * state["b"]) + (lr * d if self.lr_inside else d)
        return np.asarray(b if self.lr_inside else lr * b)


@dataclass(frozen=True, kw_only=True)
class Adagrad(Rule):
    """s ← s + g²;   θ ← θ − η g / (√s + ε)

    (Duchi, Hazan & Singer, 2011.) ``initial``: s before the first step. ``eps_inside=True``:
    η g / √(s + ε), as Keras and optax have it.
    """

    name: ClassVar[str] = "adagrad"
    lr: Schedule = Constant(1e-2)
    eps: float = 1e-10
    initial: float = 0.0
    eps_inside: bool = False

    def start(self, theta: np.ndarray) -> State:
        return {"s": np.full_like(theta, self.initial)}

    def move(
        self, g: np.ndarray, state: State, *, lr: float, t: int, rounded: Rounding
    ) -> np.ndarray:
        s = state["s"] = rounded(state["s"] + rounded(g * g))
        root = np.sqrt(s + self.eps) if self.eps_inside else np.sqrt(s) + self.eps
        return np.asarray(lr * g / root)
