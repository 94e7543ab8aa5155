"""The actor-critic in Keras 3."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

STATE, HIDDEN1, HIDDEN2, ACTIONS = 6, 17, 11, 3


class Trunk(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fc1 = layers.Dense(HIDDEN1, name="fc1")
        self.tanh1 = layers.Activation("tanh", name="tanh1")
        self.fc2 = layers.Dense(HIDDEN2, name="fc2")
        self.tanh2 = layers.Activation("tanh", name="tanh2")

    def call(self, x: Any) -> Any:
        return self.tanh2(self.fc2(self.tanh1(self.fc1(x))))  # (B, 6) -> (B, 11)


class ActorCritic(keras.Model):
    """States (B, 6) -> log-probabilities of the actions (B, 3) and values of the states (B,)
    (Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, 2016).
    """

    def __init__(self) -> None:
        super().__init__(name="actor_critic")
        self.trunk = Trunk(name="trunk")
        self.policy = layers.Dense(ACTIONS, name="policy")
        self.log_softmax = layers.Activation("log_softmax", name="log_softmax")
        self.value = layers.Dense(1, name="value")

    def call(self, x: Any) -> Any:
        shared = self.trunk(x)
        value = self.value(shared)[:, 0]  # (B, 1) -> (B,)
        return self.log_softmax(self.policy(shared)), value


def build() -> ActorCritic:
    """An untrained model with all of its variables."""
    model = ActorCritic()
    model(ops.zeros((1, STATE)))
    return model
