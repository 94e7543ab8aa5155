"""The actor-critic in PyTorch."""

from __future__ import annotations

from torch import Tensor, nn

from models.random_weights import randomise

STATE, HIDDEN1, HIDDEN2, ACTIONS = 6, 17, 11, 3


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(STATE, HIDDEN1)
        self.tanh1 = nn.Tanh()
        self.fc2 = nn.Linear(HIDDEN1, HIDDEN2)
        self.tanh2 = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.tanh2(self.fc2(self.tanh1(self.fc1(x))))  # (B, 6) -> (B, 11)


class ActorCritic(nn.Module):
    """States (B, 6) -> log-probabilities of the actions (B, 3) and values of the states (B,)
    (Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, 2016).
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.policy = nn.Linear(HIDDEN2, ACTIONS)
        self.log_softmax = nn.LogSoftmax(dim=-1)
        self.value = nn.Linear(HIDDEN2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.trunk(x)
        value = self.value(shared)[:, 0]  # (B, 1) -> (B,)
        return self.log_softmax(self.policy(shared)), value


def build() -> ActorCritic:
    """A model of random weights, the same in every run, in evaluation mode."""
    model = ActorCritic()
    randomise(model, seed=7)
    return model.eval()
