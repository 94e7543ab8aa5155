"""The kit's models as ONNX files, exported from PyTorch's; and two nets to check as a whole."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
import torch.nn as nn
import torch.nn.functional as F

from crosscheck.adapters.onnx.adapter import OnnxAdapter
from crosscheck.observers import Forcer, Key
from crosscheck.trace import RunInfo

from .kit import IDS, Kit, X
from .torch_kit import Layers, TorchKit


class ForwardOnly(OnnxAdapter):
    """For tests of the contract whose forward half applies: cotangents are not asked for."""

    def run(self, *args: Any, **options: Any) -> RunInfo:
        options.pop("cotangents", None)
        return super().run(*args, **options)


class Planner(Forcer):
    """A forcer that says beforehand what it will replace, and counts what it is shown."""

    def __init__(self, values: Mapping[Key, np.ndarray]) -> None:
        super().__init__(values)
        self.seen = 0

    def planned(self, site: str, kind: Any) -> np.ndarray | None:
        return self._values.get((kind, site))

    def __call__(self, site: str, kind: Any, value: np.ndarray) -> np.ndarray | None:
        self.seen += 1
        return super().__call__(site, kind, value)


class Attention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (
            part.view(b, t, self.heads, d // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(d, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged: torch.Tensor = self.proj(y.transpose(1, 2).reshape(b, t, d))
        return merged


class Block(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(d), Attention(d, 2), nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        done: torch.Tensor = x + self.mlp(self.ln2(x))
        return done


class GPT(nn.Module):
    """Two blocks; the output layer shares the token embedding's weights."""

    def __init__(self, d: int = 16, words: int = 30) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(words, d), nn.Embedding(16, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(2))
        self.ln, self.head = nn.LayerNorm(d), nn.Linear(d, words, bias=False)
        self.head.weight = self.tok.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids) + self.pos(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.ln(x))
        return logits


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2)
        )
        self.up, self.gn = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.GroupNorm(2, 6)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.gn(self.up(self.body(self.stem(x)[:, :, :8])))
        scores: torch.Tensor = self.head(self.drop(h.mean((2, 3))))
        return scores


class Twice(nn.Module):
    """A container that is called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.cell(self.cell(x))
        return y


INPUTS: dict[str, Any] = {"cnn": {"x": "float32[2,3,9,8]"}, "gpt": {"ids": "int64[2,7] 0..30"}}


@functools.cache
def net(name: str) -> nn.Module:
    """A module with nothing at its initial value."""
    torch.manual_seed(0)
    if name in ("cnn", "gpt", "twice"):
        model: nn.Module = {"cnn": CNN, "gpt": GPT, "twice": Twice}[name]()
    elif name == "raising":
        model = Layers(
            lambda m, x: m.tail(m.fc(x).reshape(8, 3)), fc=nn.Linear(4, 4), tail=nn.ReLU()
        )
    else:
        model = TorchKit().build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2.0)
    return model.eval()


def example(name: str) -> dict[str, np.ndarray]:
    """Inputs of a net, by the names of its arguments."""
    if name in INPUTS:
        from crosscheck.inputs import make_inputs

        return make_inputs(INPUTS[name], seed=0)
    if name == "two_inputs":
        return {"left": X, "right": X[::-1].copy()}
    return {"ids": IDS} if name == "embedding" else {"x": X}


def export(model: nn.Module, inputs: Mapping[str, np.ndarray], *, optimize: bool = False) -> Any:
    """What a user's script does."""
    args = tuple(torch.tensor(a) for a in inputs.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, args, dynamo=True, optimize=optimize, verbose=False)
    assert program is not None
    return program.model_proto


@functools.cache
def _exported(name: str) -> bytes:
    found: bytes = export(net(name), example(name)).SerializeToString()
    return found


def proto(name: str) -> onnx.ModelProto:
    """A fresh copy of the export of a net."""
    return onnx.load_from_string(_exported(name))


def without_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        del node.metadata_props[:]
    for info in model.graph.value_info:
        del info.metadata_props[:]
    return model


def nodes_of(model: onnx.ModelProto, path: str, op: str) -> list[onnx.NodeProto]:
    """The nodes of one type in one module."""
    wanted = f"'{path}', "
    return [
        node
        for node in model.graph.node
        if node.op_type == op and any(wanted in entry.value for entry in node.metadata_props)
    ]


class OnnxKit(Kit):
    def build(self, name: str) -> onnx.ModelProto:
        return proto(name)

    def adapt(self, model: onnx.ModelProto) -> OnnxAdapter:
        return ForwardOnly(model)

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        session = onnxruntime.InferenceSession(model.SerializeToString())
        names = [i.name for i in session.get_inputs()]
        return session.run(None, dict(zip(names, inputs.values(), strict=True))), {}

    def state(self, model: Any) -> dict[str, Any]:
        return {"file": model.SerializeToString(deterministic=True)}
