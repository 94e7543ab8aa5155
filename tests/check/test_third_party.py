"""Models that nobody here wrote, each against itself with one defect planted inside."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import crosscheck  # noqa: E402

from .kit import backward, forward, found, run  # noqa: E402

IDS: dict[str, Any] = {"input_ids": "int64[2,9] 1..50"}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}


def build(model: str, config: str, **options: Any) -> Any:
    """A tiny model whose norms and biases do something."""
    torch.manual_seed(0)
    configured = getattr(transformers, config)(**options)
    configured._attn_implementation = "eager"
    made = getattr(transformers, model)(configured).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(p + 0.1 * noise if p.ndim == 1 else 4 * p)
    return made


def gpt2() -> Any:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 32}
    return build("GPT2LMHeadModel", "GPT2Config", **sizes)


def bert() -> Any:
    return build("BertModel", "BertConfig", **SMALL, num_attention_heads=2)


def mixtral() -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return build("MixtralForCausalLM", "MixtralConfig", **SMALL, **heads, **experts)


def check(model: Any, path: str, plant: Any) -> crosscheck.Report:
    wrong = copy.deepcopy(model)
    plant(wrong.get_submodule(path))
    return crosscheck.check(model, wrong, IDS, weights="keep")


def another_eps(norm: Any) -> None:
    name = "eps" if hasattr(norm, "eps") else "variance_epsilon"
    setattr(norm, name, 10 * getattr(norm, name))


def detached(module: Any) -> None:
    original = module.forward

    def cut(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        return (made[0].detach(), *made[1:]) if isinstance(made, tuple) else made.detach()

    module.forward = cut


@pytest.mark.parametrize(
    ("make", "path"),
    [(gpt2, "transformer.h.0.ln_1"), (mixtral, "model.layers.0.post_attention_layernorm")],
)
def test_an_epsilon_whose_effect_fades(make: Any, path: str) -> None:
    """What follows is off by less than a thousandth, and passes for the same value."""
    report = check(make(), path, another_eps)
    assert forward(report) == backward(report) == [(path, path)]
    assert {d.candidate.rpartition(".")[0] for d in report.divergences[2:]} == {path}  # type: ignore[union-attr]


def test_a_rounded_weight_inside_a_gated_layer() -> None:
    path = "model.layers.1.self_attn.k_proj"

    def rounded(linear: Any) -> None:
        with torch.no_grad():
            linear.weight.copy_(linear.weight.bfloat16().float())

    report = check(mixtral(), path, rounded)
    assert found(report)[0] == ("weights", f"{path}.weight", f"{path}.weight")
    assert forward(report) == [(path, path)]


def test_what_makes_a_second_output() -> None:
    report = check(bert(), "pooler.dense", lambda m: m.register_forward_hook(lambda *a: 1.3 * a[2]))
    assert forward(report)[0] == ("pooler.dense", "pooler.dense")
    assert "output:pooler_output" not in {c for _, c in forward(report)}


@pytest.mark.parametrize(
    "path",
    [
        "transformer.h.1.mlp.c_fc",
        "transformer.h.1.attn.resid_dropout",
        "transformer.h.0",
        "transformer.ln_f",
        "transformer.wte",
    ],
)
def test_a_layer_that_returns_a_detached_value(path: str) -> None:
    report = check(gpt2(), path, detached)
    assert found(report)[0] == ("backward", path, path), str(report)
    first = report.first_divergence
    assert first is not None and "is out of the graph" in first.statement


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(4, 6, 3), nn.Linear(42, 3)

    def forward(self, x: Any) -> Any:
        return self.head(F.elu(self.conv(x)).flatten(1))


class Modules(Functional):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.elu, self.drop, self.flat = nn.ELU(alpha), nn.Dropout(), nn.Flatten()

    def forward(self, x: Any) -> Any:
        return self.head(self.flat(self.drop(self.elu(self.conv(x)))))


def test_layers_that_only_pass_numbers_on() -> None:
    x = np.random.default_rng(0).normal(size=(5, 4, 9)).astype(np.float32)
    assert run(Functional(), Modules(1.0), x).verdict == "agree"
    assert forward(run(Functional(), Modules(0.5), x)) == [(None, "elu")]
