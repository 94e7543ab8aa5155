"""Ports that nobody here wrote: Hugging Face models with random weights, and what KerasHub's own
converters make of them. Nothing is downloaded: a config with random weights is saved to a folder,
and KerasHub reads that folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]

TOKENS = {"input_ids": "int64[2,13] 0..211"}
BOTH = {"input_ids": "int64[2,13] 0..211", "decoder_input_ids": "int64[2,9] 0..211"}
PIXELS = {"pixel_values": "float32[2,3,32,32]"}


@dataclass(frozen=True)
class Port:
    """One family: how to make the reference, which class loads it, and how inputs translate.

    Attributes:
        skip: outputs that the port does not have.
        told: what its converter reads in config.json, and transformers no longer writes there.
        whole: the reference is the model itself: its ``base_model`` is a part of it.
    """

    config: Callable[[Any], Any]
    model: str
    backbone: str
    inputs: dict[str, str]
    translate: Callable[[Arrays], Arrays | np.ndarray]
    skip: tuple[str, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False

    def make(self, folder: Path, **changes: Any) -> tuple[torch.nn.Module, Any]:
        """(the reference, KerasHub's port of it), in eval mode.

        Biases and norm weights are moved off their initial zeros and ones: a parameter that
        changes nothing would hide that it was not loaded.
        """
        import keras_hub
        import transformers

        config = self.config(transformers)
        for name, value in changes.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        whole = getattr(transformers, self.model)(config).eval()
        reference = whole if self.whole else whole.base_model
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in whole.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        whole.save_pretrained(folder)
        written = folder / "config.json"
        written.write_text(json.dumps({**json.loads(written.read_text()), **self.told}))
        return reference, getattr(keras_hub.models, self.backbone).from_preset(str(folder))


def _padded(inputs: Arrays) -> Arrays:
    ids = inputs["input_ids"].astype(np.int32)
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


def _segmented(inputs: Arrays) -> Arrays:
    return _padded(inputs) | {"segment_ids": np.zeros(inputs["input_ids"].shape, np.int32)}


def _both(inputs: Arrays) -> Arrays:
    found = {}
    for side, name in (("encoder", "input_ids"), ("decoder", "decoder_input_ids")):
        ids = inputs[name].astype(np.int32)
        found |= {f"{side}_token_ids": ids, f"{side}_padding_mask": np.ones_like(ids)}
    return found


def _channels_last(inputs: Arrays) -> np.ndarray:
    return inputs["pixel_values"].transpose(0, 2, 3, 1)


_ENCODER = {
    "vocab_size": 211,
    "max_position_embeddings": 24,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_DECODER = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
}
_GEMMA = _DECODER | {
    "head_dim": 12,
    "query_pre_attn_scalar": 12,
    "sliding_window": 8,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
_VISION = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}

PORTS = {
    "gpt2": Port(
        lambda t: t.GPT2Config(vocab_size=211, n_positions=24, n_embd=48, n_layer=3, n_head=4),
        "GPT2LMHeadModel",
        "GPT2Backbone",
        TOKENS,
        _padded,
    ),
    "bert": Port(
        lambda t: t.BertConfig(**_ENCODER), "BertModel", "BertBackbone", TOKENS, _segmented
    ),
    "roberta": Port(
        lambda t: t.RobertaConfig(**_ENCODER, type_vocab_size=1),
        "RobertaForMaskedLM",
        "RobertaBackbone",
        {"input_ids": "int64[2,13] 3..211"},
        _padded,
    ),
    "distilbert": Port(
        lambda t: t.DistilBertConfig(
            vocab_size=211,
            max_position_embeddings=24,
            dim=48,
            n_layers=3,
            n_heads=4,
            hidden_dim=96,
        ),
        "DistilBertForMaskedLM",
        "DistilBertBackbone",
        TOKENS,
        _padded,
    ),
    "albert": Port(
        lambda t: t.AlbertConfig(**_ENCODER, embedding_size=20, num_hidden_groups=1),
        "AlbertForSequenceClassification",
        "AlbertBackbone",
        TOKENS,
        _segmented,
    ),
    "llama": Port(
        lambda t: t.LlamaConfig(**_DECODER),
        "LlamaForCausalLM",
        "Llama3Backbone",
        TOKENS,
        _padded,
    ),
    "mistral": Port(
        lambda t: t.MistralConfig(**_DECODER),
        "MistralForCausalLM",
        "MistralBackbone",
        TOKENS,
        _padded,
    ),
    "qwen2": Port(
        lambda t: t.Qwen2Config(**_DECODER), "Qwen2ForCausalLM", "QwenBackbone", TOKENS, _padded
    ),
    "qwen3": Port(
        lambda t: t.Qwen3Config(**_DECODER, head_dim=12),
        "Qwen3ForCausalLM",
        "Qwen3Backbone",
        TOKENS,
        _padded,
    ),
    "gemma": Port(
        lambda t: t.GemmaConfig(**_DECODER, head_dim=12),
        "GemmaForCausalLM",
        "GemmaBackbone",
        TOKENS,
        _padded,
    ),
    "vit": Port(
        lambda t: t.ViTConfig(**_VISION),
        "ViTForImageClassification",
        "ViTBackbone",
        PIXELS,
        _channels_last,
    ),
    "deit": Port(
        lambda t: t.DeiTConfig(**_VISION),
        "DeiTForImageClassification",
        "DeiTBackbone",
        PIXELS,
        _channels_last,
    ),
    "dinov2": Port(
        lambda t: t.Dinov2Config(**{k: v for k, v in _VISION.items() if k != "intermediate_size"}),
        "Dinov2Model",
        "DINOV2Backbone",
        PIXELS,
        _channels_last,
        ("output:pooler_output",),  # the first token again
    ),
    "dinov3": Port(
        lambda t: t.DINOv3ViTConfig(**_VISION, num_register_tokens=2),
        "DINOv3ViTModel",
        "DINOV3Backbone",
        PIXELS,
        _channels_last,
        ("output:pooler_output",),
        whole=True,
    ),
    "swin": Port(
        lambda t: t.SwinConfig(
            image_size=56, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4]
        ),
        "SwinForImageClassification",
        "SwinTransformerBackbone",
        {"pixel_values": "float32[2,3,56,56]"},
        _channels_last,
        ("output:pooler_output",),
    ),
    "bart": Port(
        lambda t: t.BartConfig(
            vocab_size=211,
            max_position_embeddings=24,
            d_model=48,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": 96 for side in ("encoder", "decoder")},
        ),
        "BartModel",
        "BartBackbone",
        BOTH,
        _both,
        told={"num_hidden_layers": 2},
    ),
    "t5gemma": Port(
        lambda t: t.T5GemmaConfig(
            encoder=t.T5GemmaModuleConfig(**_GEMMA),
            decoder=t.T5GemmaModuleConfig(**_GEMMA),
            vocab_size=211,
        ),
        "T5GemmaForConditionalGeneration",
        "T5GemmaBackbone",
        BOTH,
        _both,
        ("output:decoder_hidden_states:0",),
    ),
}
