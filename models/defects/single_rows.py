"""The rows of `models.defects.rows` that have a pair of their own: one layer, one mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import crosscheck
from crosscheck.results import Report
from models.defects import singles as s
from models.defects.rows import Planted

__all__ = ["SINGLES", "Single", "single_rows"]

IMAGE, SEQUENCE, FEATURES = "float32[2,3,5,6]", "float32[3,6,5]", "float32[4,12]"


@dataclass(frozen=True)
class Single:
    """A pair of one layer.

    Attributes:
        number: of the row.
        what: for the table.
        make: the reference and the candidate.
        inputs: see `crosscheck.check`.
        names: what a verified cause may be called.
        site, phase: where the mistake is, in the candidate's names.
        options: further arguments of the check.
    """

    number: int
    what: str
    make: Callable[[], tuple[Any, Any]]
    inputs: Any
    names: set[str]
    site: str = "layer"
    phase: str = "forward"
    options: dict[str, Any] = field(default_factory=dict)

    def check(self, seed: int) -> Report:
        reference, candidate = self.make()
        inputs = self.inputs(seed) if callable(self.inputs) else self.inputs
        return crosscheck.check(reference, candidate, inputs, seed=seed, **self.options)

    def located(self, report: Report) -> bool:
        first = report.first_divergence
        if first is None:
            return False
        return (first.phase, first.candidate or first.reference) == (self.phase, self.site)


def single_rows() -> Iterator[Planted]:
    """All of them."""
    for one in SINGLES:
        names = frozenset(one.names)
        yield Planted(one.number, "torch", one.what, one.check, one.located, names)


def _with_zeros(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(4, 12)).astype(np.float32)
    x[:, ::3] = 0.0
    return x


def _large(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 12)).astype(np.float32) * 3


KEEP = {"weights": "keep"}
BY = "layer."

SINGLES = (
    Single(
        9,
        "a GroupNorm",
        lambda: s.pair(nn.GroupNorm(2, 4, eps=1e-6), s.other_groups),
        "float32[2,4,3,5]",
        {"norm_eps"},
    ),
    Single(
        10,
        "an RMSNorm",
        lambda: s.pair(s.RMSNorm(12), s.weight_alone),
        FEATURES,
        {"norm_one_plus_weight"},
    ),
    Single(
        11,
        "an RMSNorm",
        lambda: s.pair(s.RMSNorm(12, 1e-2), s.eps_outside),
        FEATURES,
        {"norm_eps_outside"},
    ),
    Single(
        12, "an RMSNorm", lambda: s.pair(s.RMSNorm(12), s.cast_early), FEATURES, {"norm_cast_early"}
    ),
    Single(
        16,
        "a hard sigmoid",
        lambda: s.functions(F.hardsigmoid, lambda x: (0.2 * x + 0.5).clamp(0, 1)),
        _large,
        {"activation"},
    ),
    Single(
        17, "a hard swish", lambda: s.functions(F.hardswish, F.hardsigmoid), _large, {"activation"}
    ),
    Single(
        18,
        "a leaky ReLU",
        lambda: s.functions(F.leaky_relu, lambda x: F.leaky_relu(x, 0.2)),
        FEATURES,
        {"leaky_slope"},
    ),
    Single(
        21,
        "a pooling layer",
        lambda: s.pair(nn.MaxPool2d(2), s.ceiling),
        "float32[2,3,5,7]",
        {"pool_windows"},
    ),
    Single(
        24,
        "a transposed convolution",
        lambda: s.pair(s.transposed(), s.by_a_pixel),
        IMAGE,
        {"transposed_shift"},
    ),
    Single(
        25,
        "a transposed convolution, kernel flipped",
        lambda: s.reweighted(s.transposed(), weight=lambda w: w.flip(2, 3)),
        IMAGE,
        {"flipped"},
        site="layer.weight",
        phase="weights",
        options=KEEP,
    ),
    Single(
        25,
        "a transposed convolution, channels exchanged",
        lambda: s.reweighted(s.transposed(), weight=lambda w: w.transpose(0, 1)),
        IMAGE,
        {"permuted_axes"},
        site="layer.weight",
        phase="weights",
        options=KEEP,
    ),
    Single(
        26,
        "a depthwise convolution",
        lambda: s.reweighted(
            nn.Conv2d(3, 3, (4, 5), padding=2, groups=3),
            weight=lambda w: w.reshape(4, 5, 3, 1).permute(2, 3, 0, 1),
        ),
        IMAGE,
        {"misread"},
        site="layer.weight",
        phase="weights",
        options=KEEP,
    ),
    Single(
        27,
        "a flatten layer",
        lambda: s.pair(nn.Flatten(), lambda self, x: x.permute(0, 2, 3, 1).flatten(1)),
        IMAGE,
        {"flatten_order", "interleaved"},
    ),
    Single(
        29,
        "a pixel shuffle",
        lambda: s.pair(nn.PixelShuffle(2), lambda self, x: s.depth_first(x)),
        "float32[2,12,3,5]",
        {"pixel_shuffle"},
    ),
    Single(
        30,
        "a patch merging layer",
        lambda: s.pair(s.Merging(), s.rows_first),
        "float32[2,4,6,3]",
        {"patch_order", "exchanged_parts"},
    ),
    Single(
        31,
        "a patch merging layer",
        lambda: s.pair(s.Merging(), s.height_for_width),
        "float32[2,5,6,3]",
        {"patch_pad"},
        site="layer.reduction",
    ),
    Single(
        32,
        "an upsampling layer",
        lambda: s.functions(
            s.resized((8, 11), "bilinear"), s.resized((8, 11), "bilinear", align_corners=True)
        ),
        IMAGE,
        {"resize"},
    ),
    Single(
        33,
        "an upsampling layer",
        lambda: s.functions(
            s.resized((8, 11), "bicubic"), s.resized((8, 11), "bicubic", antialias=True)
        ),
        IMAGE,
        {"resize"},
    ),
    Single(
        34,
        "a downsampling layer",
        lambda: s.functions(
            s.resized((3, 4), "bilinear"), s.resized((3, 4), "bilinear", antialias=True)
        ),
        IMAGE,
        {"resize"},
    ),
    Single(
        35,
        "a GRU",
        lambda: s.pair(nn.GRU(5, 4, batch_first=True), s.reset_before),
        SEQUENCE,
        {"reset_gate"},
    ),
    Single(
        36,
        "a GRU",
        lambda: s.reweighted(
            nn.GRU(5, 4, batch_first=True), weight=s.gates(1, 0, 2), bias=s.gates(1, 0, 2)
        ),
        SEQUENCE,
        {"permuted_blocks"},
        site="layer.weight_ih_l0",
        phase="weights",
        options=KEEP,
    ),
    Single(
        37,
        "an LSTM",
        lambda: s.reweighted(
            nn.LSTM(5, 4, batch_first=True), weight=s.gates(0, 1, 3, 2), bias=s.gates(0, 1, 3, 2)
        ),
        SEQUENCE,
        {"permuted_blocks"},
        site="layer.weight_ih_l0",
        phase="weights",
        options=KEEP,
    ),
    Single(
        38,
        "a bidirectional LSTM",
        lambda: s.pair(nn.LSTM(5, 4, batch_first=True, bidirectional=True), s.not_turned_back),
        SEQUENCE,
        {"direction_flipped"},
    ),
    Single(
        39,
        "a GRU",
        lambda: s.reweighted(nn.GRU(5, 4, batch_first=True), bias_hh=torch.zeros_like),
        SEQUENCE,
        {"not_loaded"},
        site="layer.bias_hh_l0",
        phase="weights",
        options=KEEP,
    ),
    Single(
        41,
        "an attention mask",
        lambda: (s.padded_rows(-1e9), s.padded_rows(-np.inf)),
        "float32[2,3,4,5]",
        {"mask_value"},
        site="layer.0",
    ),
    Single(
        43,
        "attention with a soft cap",
        lambda: s.attentions(s.Uncapped),
        "float32[2,5,16]",
        {"soft_cap"},
    ),
    Single(
        44,
        "grouped-query attention",
        lambda: s.attentions(s.Tiled),
        "float32[2,5,16]",
        {"head_sharing"},
    ),
    Single(
        46,
        "a rotary embedding",
        lambda: s.functions(s.turned("half", "half"), s.turned("interleaved", "interleaved")),
        "float32[2,3,5,8]",
        {"rotary_layout"},
    ),
    Single(
        47,
        "a rotary embedding",
        lambda: s.functions(s.turned("half", "half"), s.turned("half", "interleaved")),
        "float32[2,3,5,8]",
        {"rotary_layout"},
    ),
    Single(
        50,
        "a scaled embedding",
        s.low_precision_scale,
        "int64[2,7] 0..11",
        {"scale_rounded", "scaled"},
    ),
    Single(
        53,
        "a ReLU",
        lambda: s.functions(F.relu, s.HalfAtZero.apply),
        _with_zeros,
        {"derivative_at_zero"},
        phase="backward",
    ),
    Single(
        71,
        "a dropout layer",
        lambda: s.pair(nn.Dropout(0.3), lambda self, x: F.dropout(x, 0.3)),
        "float32[8,24]",
        {"dropout"},
    ),
    Single(
        72,
        "images in the other order of colours",
        s.coloured,
        "float32[2,3,6,5]",
        {"flipped"},
        site="input:x",
        options={"candidate_inputs": s.other_colours},
    ),
    Single(
        74,
        "embeddings without token types",
        s.without_token_types,
        "int64[3,7] 0..20",
        {"absent_term", "other_terms"},
        site="layer.token_type",
        options=KEEP,
    ),
)
