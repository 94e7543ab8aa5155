"""Ports with the reference's weights, carried over by hand, not by the harness under test."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from models import data

INPUTS = {
    "mlp": lambda seed: data.digits_batch(seed, 5)[0],
    "cnn": lambda seed: data.digit_images(seed, 5)[0],
    "gpt": lambda seed: data.text_batch(seed, 3, 29),
}


class Bench:
    """Builds, loads and runs the models of one family."""

    def __init__(self, family: str) -> None:
        self.family = family

    def build(self, module: str) -> Any:
        if module == "keras_port":
            pytest.importorskip("tensorflow")
            pytest.importorskip("keras")
        return importlib.import_module(f"models.{self.family}.{module}").build()

    def inputs(self, seed: int = 0) -> np.ndarray:
        return INPUTS[self.family](seed)

    def numpy_net(self, reference: torch.nn.Module, dtype: str = "float32") -> Any:
        net, state = self.build("scratch_net"), reference.state_dict()
        for path, layer in net.named_layers():
            for values in (layer.params, layer.buffers):
                for name in values:
                    value = state[f"{path}.{name}"].numpy().astype(dtype)
                    transposed = layer.axes.get(name) == ("in", "out")
                    values[name] = value.T.copy() if transposed else value.copy()
        net.zero_grad()
        return net

    def keras_model(self, reference: torch.nn.Module) -> Any:
        model, state = self.build("keras_port"), reference.state_dict()
        for variable in model.variables:
            value = state[reference_name(variable.path)].numpy()
            variable.assign(from_torch(value, variable.path))
        return model


KERAS_NAMES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "embeddings": "weight",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def reference_name(path: str) -> str:
    """gpt/blocks_0/ln1/gamma -> blocks.0.ln1.weight."""
    *layers, name = path.split("/")[1:]
    return ".".join([*layers, KERAS_NAMES.get(name, name)]).replace("blocks_", "blocks.")


def from_torch(value: np.ndarray, path: str) -> np.ndarray:
    """Kernels in Keras' layout: (out, in) -> (in, out), (out, in, h, w) -> (h, w, in, out)."""
    if not path.endswith("kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    return Bench


@pytest.fixture
def keras_layout() -> Any:
    """(variable path -> torch name, torch value and path -> value in Keras' layout)."""
    return reference_name, from_torch
