"""The multilayer perceptron in PyTorch."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from models.weights import load


class MLP(nn.Module):
    """64 pixels -> 48 -> 32 -> 10 logits; every step is a named module."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 48)
        self.norm = nn.LayerNorm(48, eps=1e-5)
        self.act1 = nn.LeakyReLU(0.01)
        self.fc2 = nn.Linear(48, 32)
        self.act2 = nn.Hardswish()
        self.fc3 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm(self.fc1(x)))  # (N, 64) -> (N, 48)
        x = self.act2(self.fc2(x))  # (N, 32)
        return self.fc3(x)  # (N, 10)


def build() -> MLP:
    """The trained model, in evaluation mode."""
    model = MLP()
    load(model, Path(__file__).with_name("weights.safetensors"))
    return model.eval()
