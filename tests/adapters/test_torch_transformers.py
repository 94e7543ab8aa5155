"""Models in the style of Hugging Face: keyword inputs, dataclass outputs, caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import crosscheck  # noqa: E402

IDS = {"input_ids": "int64[2,9] 0..50"}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
MASK = np.ones((2, 9), np.int64)
MASK[1, 6:] = 0  # padding

MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 32},
        IDS,
        "transformer.h.1.attn",
    ),
    "bert": (
        "BertModel",
        "BertConfig",
        {**SMALL, "num_attention_heads": 2, "vocab_size": 50},
        {**IDS, "attention_mask": MASK},
        "encoder.layer.1.attention",
    ),
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50},
        {**IDS, "attention_mask": np.ones((2, 9), np.int64)},
        "model.layers.1.self_attn",
    ),
    "t5": (
        "T5EncoderModel",
        "T5Config",
        {"num_layers": 2, "num_heads": 2, "d_model": 16, "d_kv": 8, "d_ff": 32, "vocab_size": 50},
        IDS,
        "encoder.block.1.layer.0.SelfAttention",
    ),
    "vit": (
        "ViTModel",
        "ViTConfig",
        {**SMALL, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        {"pixel_values": "float32[2,3,16,16]"},
        "layers.1.attention",
    ),
}


def build(name: str, attention: str = "eager", seed: int = 0) -> Any:
    model, config, options, _, _ = MODELS[name]
    torch.manual_seed(seed)
    configured = getattr(transformers, config)(**options)
    configured._attn_implementation = attention
    return getattr(transformers, model)(configured).eval()


@pytest.mark.parametrize("name", MODELS)
def test_two_ways_to_attend(name: str) -> None:
    inputs, site = MODELS[name][3:]
    second = "eager" if name == "t5" else "sdpa"
    report = crosscheck.check(build(name), build(name, second, seed=1), inputs)
    assert report.verdict == "agree", str(report)
    assert site in {s.reference for s in report.sites if s.phase == "forward"}
    assert not report.coverage.not_compared
    outputs = [s.reference for s in report.sites if s.reference.startswith("output")]
    assert not any("past_key_values" in s or "cache" in s for s in outputs)
    # Only sdpa does not show the attention weights.
    hidden = set(report.coverage.unmatched_reference)
    assert all(s.endswith(":1") for s in hidden), hidden


def test_a_port_with_another_mask() -> None:
    port = build("bert")
    attention = port.encoder.layer[1].attention.self
    forward = attention.forward

    def unmasked(hidden: Any, *args: Any, **options: Any) -> Any:
        return forward(hidden, **{**options, "attention_mask": None})

    attention.forward = unmasked
    report = crosscheck.check(build("bert"), port, MODELS["bert"][3])
    assert report.first_divergence.candidate == "encoder.layer.1.attention.self"


def test_an_exported_language_model() -> None:
    model = build("gpt2")
    model.config.use_cache = False
    ids = torch.randint(0, 50, (2, 9))
    program = torch.export.export(model, (), {"input_ids": ids})
    report = crosscheck.check(model, program, IDS)
    assert report.verdict == "agree", str(report)
    assert "transformer.h.1.mlp.c_fc" in {s.candidate for s in report.sites}
