"""Train the three PyTorch references and write models/<family>/weights.safetensors.

Run from the repository's root: python -m scripts.train_models
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models import data
from models.cnn.reference import CNN
from models.gpt.reference import GPT, LENGTH
from models.mlp.reference import MLP
from models.weights import save

MODELS = Path(data.__file__).parent


def train_classifier(model: nn.Module, x: Tensor, labels: Tensor, epochs: int) -> float:
    """Train on four fifths of the digits; the accuracy on the rest."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    train, test = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        return (model(x[test]).argmax(dim=1) == labels[test]).float().mean().item()


def train_gpt(model: GPT, steps: int) -> float:
    """Train on nine tenths of the text; the loss on the rest, in nats per character."""
    tokens = torch.from_numpy(data.text_tokens())
    train, test = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        next_character_loss(model, train, 48).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        return next_character_loss(model, test, 1024).item()


def next_character_loss(model: GPT, tokens: Tensor, batch: int) -> Tensor:
    start = torch.randint(len(tokens) - LENGTH, (batch, 1))
    passages = tokens[start + torch.arange(LENGTH + 1)]  # (B, T + 1)
    logits = model(passages[:, :-1])  # (B, T, 96)
    return cross_entropy(logits.flatten(0, 1), passages[:, 1:].flatten())


def main() -> None:
    pixels, labels = data.digits()
    target = torch.from_numpy(labels)

    torch.manual_seed(0)
    mlp = MLP()
    accuracy = train_classifier(mlp, torch.from_numpy(pixels), target, epochs=40)
    save(mlp, MODELS / "mlp" / "weights.safetensors")
    print(f"mlp: test accuracy {accuracy:.3f}")

    torch.manual_seed(0)
    cnn = CNN()
    images = torch.from_numpy(data.as_images(pixels))
    accuracy = train_classifier(cnn, images, target, epochs=40)
    save(cnn, MODELS / "cnn" / "weights.safetensors")
    print(f"cnn: test accuracy {accuracy:.3f}")

    torch.manual_seed(0)
    gpt = GPT()
    loss = train_gpt(gpt, steps=2500)
    save(gpt, MODELS / "gpt" / "weights.safetensors")
    print(f"gpt: test loss {loss:.3f} nats per character")


if __name__ == "__main__":
    main()
