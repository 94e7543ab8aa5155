"""The actor-critic in Flax NNX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

STATE, HIDDEN1, HIDDEN2, ACTIONS = 6, 17, 11, 3


class Tanh(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x)


class LogSoftmax(nnx.Module):
    def __init__(self) -> None:
        self.axis = -1

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.log_softmax(x, axis=self.axis)


class Trunk(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(STATE, HIDDEN1, rngs=rngs)
        self.tanh1 = Tanh()
        self.fc2 = nnx.Linear(HIDDEN1, HIDDEN2, rngs=rngs)
        self.tanh2 = Tanh()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.tanh2(self.fc2(self.tanh1(self.fc1(x))))  # (B, 6) -> (B, 11)


class ActorCritic(nnx.Module):
    """States (B, 6) -> log-probabilities of the actions (B, 3) and values of the states (B,)
    (Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, 2016).
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.trunk = Trunk(rngs)
        self.policy = nnx.Linear(HIDDEN2, ACTIONS, rngs=rngs)
        self.log_softmax = LogSoftmax()
        self.value = nnx.Linear(HIDDEN2, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shared = self.trunk(x)
        value = self.value(shared)[:, 0]  # (B, 1) -> (B,)
        return self.log_softmax(self.policy(shared)), value


def build() -> ActorCritic:
    """An untrained model."""
    return ActorCritic(nnx.Rngs(0))
