"""What crosscheck says of ports that nobody here wrote, without any map.

The expected answers come from reading both sources (keras-hub 0.32, transformers 5.23). Where a
port is called wrong, it is: the difference stands in KerasHub's code, and each test says where.
Needs keras-hub and transformers; `make ports` installs them and runs this group.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crosscheck
from tests.ports.pairs import PORTS

pytest.importorskip("keras_hub", reason="make ports installs it")
pytest.importorskip("transformers", reason="make ports installs it")

BLOCKS = 3


def judged(name: str, folder: Path, **changes: Any) -> crosscheck.Report:
    port = PORTS[name]
    reference, candidate = port.make(folder, **changes)
    return crosscheck.check(
        reference,
        candidate,
        port.inputs,
        candidate_inputs=port.translate,
        weights="keep",
        skip=port.skip,
    )


def forward(report: crosscheck.Report) -> list[tuple[str | None, str | None]]:
    return [(d.reference, d.candidate) for d in report.divergences if d.phase == "forward"]


def sites_of(report: crosscheck.Report, block: str) -> list[Any]:
    """Results inside a block of the reference, both phases."""
    return [
        s
        for s in report.sites
        if s.phase in ("forward", "backward") and f"{s.reference}.".startswith(f"{block}.")
    ]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("gpt2", "h.{}"),
        ("distilbert", "transformer.layer.{}"),
        ("gemma", "layers.{}"),
        ("deit", "layers.{}"),
        ("llama", "layers.{}"),
        ("qwen2", "layers.{}"),
        ("albert", "encoder.albert_layer_groups.0.albert_layers.0"),
    ],
)
def test_right_ports_agree_everywhere(name: str, block: str, tmp_path: Path) -> None:
    report = judged(name, tmp_path)
    assert report.verdict == "agree", str(report)
    for i in range(BLOCKS):
        assert len(sites_of(report, block.format(i))) >= 12
    assert any(s.phase == "parameter_gradient" for s in report.sites)


@pytest.mark.parametrize("name", ["swin", "dinov3"])
def test_states_that_a_layer_returns_beside_are_not_taken_for_a_layer(
    name: str, tmp_path: Path
) -> None:
    """Nobody uses them, so that no cotangent arrives there."""
    report = judged(name, tmp_path)
    assert report.verdict == "agree", str(report)
    assert any(s.phase == "parameter_gradient" for s in report.sites)


def test_bart_lets_the_padding_token_learn(tmp_path: Path) -> None:
    """The outputs have other names in another order. One difference: no padding index."""
    report = judged("bart", tmp_path)
    assert [(d.phase, d.reference) for d in report.divergences] == [
        ("parameter_gradient", "shared.weight")
    ]
    cause = report.divergences[0].causes[0]
    statement = "looking up row 1 sends a gradient, which the reference's padding index stops"
    assert (cause.statement, cause.verified) == (statement, True)


def test_t5gemma_has_other_windows(tmp_path: Path) -> None:
    """Its encoder sees all tokens where the config says 8 on either side; its decoder sees one
    more than 8."""
    report = judged("t5gemma", tmp_path)
    places = {site for d in report.divergences if (site := d.site) and d.phase == "forward"}
    wrong = ("encoder.layers.1.self_attn", "decoder.layers.1.self_attn")
    assert places and all(site.startswith(wrong) for site in places), str(report)
    assert {site.partition(".")[0] for site in places} == {"encoder", "decoder"}


@pytest.mark.parametrize("name", ["gpt2", "llama", "deit", "albert"])
def test_weights_are_carried_over_without_a_map(name: str, tmp_path: Path) -> None:
    """Into a port that holds nothing of them: the converters' work, found by crosscheck alone."""
    port = PORTS[name]
    reference, candidate = port.make(tmp_path)
    generator = np.random.default_rng(2)
    for variable in candidate.weights:
        if "float" in str(variable.dtype):
            variable.assign(generator.normal(size=variable.shape).astype(np.float32))
    report = crosscheck.check(
        reference, candidate, port.inputs, candidate_inputs=port.translate, skip=port.skip
    )
    assert report.verdict == "agree", str(report)
    assert report.coverage.unmatched_reference_parameters == ()


def test_bert_uses_another_gelu(tmp_path: Path) -> None:
    """KerasHub's encoder takes the tanh approximation; the feed-forward's first half holds it."""
    report = judged("bert", tmp_path)
    assert report.first_divergence is not None
    assert report.first_divergence.phase == "forward"
    assert forward(report) == [
        (
            f"encoder.layer.{i}.intermediate",
            f"transformer_layer_{i}/feedforward_intermediate_dense",
        )
        for i in range(BLOCKS)
    ]


def test_bert_with_that_gelu_agrees(tmp_path: Path) -> None:
    """The converse: with the activation that the port has, nothing is left to say."""
    report = judged("bert", tmp_path, hidden_act="gelu_pytorch_tanh")
    assert report.verdict == "agree", str(report)


def test_vit_forgets_the_epsilon_of_its_norms(tmp_path: Path) -> None:
    """The converter does not read layer_norm_eps: 1e-6 whatever the config says (1e-12)."""
    report = judged("vit", tmp_path)
    norms = [
        (f"layers.{i}.layernorm_{which}", f"vit_encoder/transformer_block_{i + 1}/ln_{k}")
        for i in range(BLOCKS)
        for k, which in ((1, "before"), (2, "after"))
    ]
    assert forward(report) == [*norms, ("layernorm", "vit_encoder/ln")]
    report = judged("vit", tmp_path / "told", layer_norm_eps=1e-6)
    assert report.verdict == "agree", str(report)


def test_qwen3_forgets_the_epsilon_inside_attention(tmp_path: Path) -> None:
    """The norms of queries and keys keep their default, 1e-5, in a model of 1e-6."""
    report = judged("qwen3", tmp_path)
    expected = [
        (f"layers.{i}.self_attn.{k}_norm", f"transformer_layer_{i}/self_attention/{name}")
        for i in range(BLOCKS)
        for k, name in (("q", "query_dense_layernorm"), ("k", "key_dense_layernorm"))
    ]
    assert forward(report) == expected
    report = judged("qwen3", tmp_path / "told", rms_norm_eps=1e-5)
    inside = {(r, c) for r, c in forward(report)}
    assert inside.isdisjoint(expected), str(report)


def test_mistral_loads_its_weights_through_float16(tmp_path: Path) -> None:
    """The converter casts every tensor; what is first seen is the first weight."""
    report = judged("mistral", tmp_path)
    first = report.first_divergence
    assert first is not None and first.phase == "weights"
    wrong = {s.reference for s in report.sites if s.phase == "weights" and s.verdict != "agree"}
    assert wrong == {s.reference for s in report.sites if s.phase == "weights"}


def test_roberta_drops_the_token_types(tmp_path: Path) -> None:
    """No token-type table, and 1e-5 in the norms where the config says 1e-12."""
    report = judged("roberta", tmp_path)
    assert "embeddings.token_type_embeddings.weight" in (
        report.coverage.unmatched_reference_parameters
    )
    first = report.first_divergence
    assert first is not None and first.site == "embeddings.LayerNorm"
    assert {r for r, _ in forward(report)[1:]} == {
        "embeddings.LayerNorm",
        *(f"encoder.layer.{i}.attention.output.LayerNorm" for i in range(BLOCKS)),
        *(f"encoder.layer.{i}.output.LayerNorm" for i in range(BLOCKS)),
    }
