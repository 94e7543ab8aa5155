"""The kit's models in PyTorch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from crosscheck.adapters.torch.adapter import TorchAdapter, find
from crosscheck.taps import tap

from .kit import Kit


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.act = nn.ReLU()

    def forward(self, h: Any) -> Any:
        return h + self.act(self.inner(h))


class Layers(nn.Module):
    """Named layers and a forward that is given as a function of them."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fl, self.fr = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, left: Any, right: Any) -> Any:
        return self.fl(left) - self.fr(right)


class Boom(nn.Module):
    def forward(self, x: Any) -> Any:
        raise ValueError("boom")


class _BackwardBoom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise ValueError("boom")


class BackwardBoom(nn.Module):
    def forward(self, x: Any) -> Any:
        return _BackwardBoom.apply(x)


class TorchKit(Kit):
    def build(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        dense = nn.Linear
        model: nn.Module = {
            "mlp": lambda: Layers(
                lambda m, x: m.fc2(m.block(m.fc1(x))),
                fc1=dense(4, 5),
                block=Block(),
                fc2=dense(5, 3),
            ),
            "shared": lambda: Layers(
                lambda m, x: m.head(m.cell(m.cell(x))), cell=dense(4, 4), head=dense(4, 3)
            ),
            "fan_out": lambda: Layers(
                lambda m, x: (lambda h: m.a(h) + m.b(h) + m.c(h))(m.fc(x)),
                fc=dense(4, 5),
                a=dense(5, 3),
                b=dense(5, 3),
                c=dense(5, 3),
            ),
            "structured": lambda: Layers(
                lambda m, x: (m.head(x), {"hidden": m.fc(x)}), head=dense(4, 3), fc=dense(4, 5)
            ),
            "returning": lambda: Layers(
                lambda m, x: (lambda h: (m.head(h), h))(m.fc(x)), fc=dense(4, 5), head=dense(5, 3)
            ),
            "two_inputs": TwoInputs,
            "embedding": lambda: Layers(
                lambda m, ids: m.head(m.table(ids)), table=nn.Embedding(7, 4), head=dense(4, 3)
            ),
            "cut": lambda: Layers(
                lambda m, x: m.main(x) + m.side(x).detach(), main=dense(4, 3), side=dense(4, 3)
            ),
            "norm": lambda: Layers(
                lambda m, x: m.bn(m.fc(x)), fc=dense(4, 3), bn=nn.BatchNorm1d(3, momentum=0.1)
            ),
            "dropout": lambda: Layers(
                lambda m, x: m.drop(m.fc(x)), fc=dense(4, 3), drop=nn.Dropout(0.5)
            ),
            "raising": lambda: Layers(lambda m, x: m.boom(m.fc(x)), fc=dense(4, 3), boom=Boom()),
            "raising_backward": lambda: Layers(
                lambda m, x: m.boom(m.fc(x)), fc=dense(4, 3), boom=BackwardBoom()
            ),
            "tapped": lambda: Layers(
                lambda m, x: m.head(tap("mid", m.attn(x))),
                attn=Layers(lambda m, x: tap("scores", m.fc(x)), fc=dense(4, 4)),
                head=dense(4, 3),
            ),
        }[name]()
        return model

    def adapt(self, model: Any) -> TorchAdapter:
        adapter = find(model)
        assert adapter is not None
        return adapter

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        model.eval()
        fed = [torch.tensor(a).requires_grad_(a.dtype.kind == "f") for a in inputs.values()]
        result = model(*fed)
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        outputs = [o["hidden"] if isinstance(o, dict) else o for o in outputs]
        parameters = dict(model.named_parameters())
        found = torch.autograd.grad(
            outputs, list(parameters.values()), [torch.tensor(d) for d in dys]
        )
        gradients = {n: g.numpy() for n, g in zip(parameters, found, strict=True)}
        return [o.detach().numpy() for o in outputs], gradients

    def state(self, model: Any) -> dict[str, Any]:
        return {
            "values": {n: v.numpy().copy() for n, v in model.state_dict().items()},
            "places": [t.data_ptr() for t in model.state_dict().values()],
            "grads": [p.grad for p in model.parameters()],
            "leaves": [(p.is_leaf, p.requires_grad) for p in model.parameters()],
            "modes": [m.training for m in model.modules()],
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
            "torch": torch.get_rng_state().numpy().copy(),
            "numpy": np.random.get_state()[1].copy(),  # type: ignore[index, union-attr]
            "python": random.getstate(),
            "default": str(torch.get_default_dtype()),
            "precision": torch.get_float32_matmul_precision(),
            "enabled": torch.is_grad_enabled(),
        }
