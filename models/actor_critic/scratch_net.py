"""The actor-critic from scratch."""

from __future__ import annotations

import numpy as np

from models.scratch import Array, Layer, Linear, LogSoftmax, Tanh

STATE, HIDDEN1, HIDDEN2, ACTIONS = 6, 17, 11, 3


class Trunk(Layer):
    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.fc1 = Linear(STATE, HIDDEN1, rng)
        self.tanh1 = Tanh()
        self.fc2 = Linear(HIDDEN1, HIDDEN2, rng)
        self.tanh2 = Tanh()

    def forward(self, x: Array) -> Array:
        x = self.tanh1.forward(self.fc1.forward(x))  # (B, 6) -> (B, 17)
        return self.tanh2.forward(self.fc2.forward(x))  # (B, 11)

    def backward(self, dy: Array) -> Array:
        dy = self.fc2.backward(self.tanh2.backward(dy))
        return self.fc1.backward(self.tanh1.backward(dy))


class ActorCritic(Layer):
    """States (B, 6) -> log-probabilities of the actions (B, 3) and values of the states (B,)
    (Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, 2016).
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.trunk = Trunk(rng)
        self.policy = Linear(HIDDEN2, ACTIONS, rng)
        self.log_softmax = LogSoftmax()
        self.value = Linear(HIDDEN2, 1, rng)

    def forward(self, x: Array) -> tuple[Array, Array]:
        shared = self.trunk.forward(x)
        value = self.value.forward(shared)[:, 0]  # (B, 1) -> (B,)
        return self.log_softmax.forward(self.policy.forward(shared)), value

    def backward(self, dpolicy: Array, dvalue: Array) -> Array:
        dshared = self.policy.backward(self.log_softmax.backward(dpolicy))
        dshared = dshared + self.value.backward(dvalue[:, None])  # both heads use the trunk
        return self.trunk.backward(dshared)


def build() -> ActorCritic:
    """An untrained net, in evaluation mode."""
    net = ActorCritic(np.random.default_rng(0))
    net.eval()
    return net
