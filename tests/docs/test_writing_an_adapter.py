"""The adapter that docs/adapters/writing.md shows keeps to the contract."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from crosscheck.adapters.base import Adapter
from tests.adapters.contract import Contract
from tests.adapters.kit import Kit

from .markdown import ROOT, blocks

PAGE = ROOT / "docs" / "adapters" / "writing.md"


@pytest.fixture(autouse=True)
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's files can be imported."""
    for block in blocks(PAGE):
        if block.title in ("tape.py", "tape_adapter.py"):
            (tmp_path / block.title).write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path)


class TapeKit(Kit):
    """Of the kit's models those that the page's framework has layers for."""

    def build(self, name: str) -> Any:
        tape = importlib.import_module("tape")
        model = tape.Net() if name == "mlp" else tape.Layer()
        if name == "shared":
            model.cell, model.head = tape.Linear(4, 4), tape.Linear(4, 3)
            model.forward = lambda x: model.head(model.cell(model.cell(x)))
        elif name == "fan_out":
            model.fc = tape.Linear(4, 5)
            model.a, model.b, model.c = (tape.Linear(5, 3) for _ in range(3))
            model.forward = lambda x: _fan(model, model.fc(x))
        elif name == "tapped":
            model.attn, model.head = tape.Layer(), tape.Linear(4, 3)
            model.attn.fc = tape.Linear(4, 4)
            model.attn.forward = lambda x: crosscheck.tap("scores", model.attn.fc(x))
            model.forward = lambda x: model.head(crosscheck.tap("mid", model.attn(x)))
        elif name != "mlp":
            pytest.skip(f"the page's framework has no layers for `{name}`")
        rng = np.random.default_rng(0)
        for _, value in _values(model):
            value.data[...] = rng.normal(size=value.data.shape)
        return model

    def adapt(self, model: Any) -> Adapter:
        adapter: Adapter = importlib.import_module("tape_adapter").TapeAdapter(model)
        return adapter

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        tape = importlib.import_module("tape")
        output = model(tape.Value(inputs["x"]))
        tape.backward(output, dys[0])
        return [output.data], {name: value.grad for name, value in _values(model)}

    def state(self, model: Any) -> dict[str, Any]:
        return {n: (v.data.copy(), v.grad, list(v.hooks)) for n, v in _values(model)}


def _fan(model: Any, h: Any) -> Any:
    return model.a(h) + model.b(h) + model.c(h)


def _values(model: Any) -> list[tuple[str, Any]]:
    """(name, value) of every parameter."""
    adapter = importlib.import_module("tape_adapter").TapeAdapter(model)
    return [(name, value) for name, _, _, value in adapter._values()]


class TestThePagesAdapter(Contract):
    kit = TapeKit()
