"""The list of porting mistakes by number, and where each is planted to be found again.

A row names defects of this folder, or a pair of its own (`models.defects.singles`); or it says why
it cannot occur here. Rows of losses and optimizers come from the modules named in `PLUGS`, each
with ``ROWS: tuple[Planted, ...]``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from crosscheck.results import Report

__all__ = ["PLUGS", "ROWS", "Planted", "Row", "planted"]

Per = Literal["row", "adapter", "defect"]
PLUGS = ("models.defects.losses", "models.defects.optimizers")


@dataclass(frozen=True)
class Planted:
    """A mistake of a row in some pair.

    Attributes:
        number: of the row.
        adapter: of the candidate.
        where: for the reader: the defect's name, or what the pair is made of.
        check: seed -> report.
        located: whether the report's first divergence is where the mistake was made.
        names: what a verified cause may be called (`crosscheck.results.Cause`).
    """

    number: int
    adapter: str
    where: str
    check: Callable[[int], Report]
    located: Callable[[Report], bool]
    names: frozenset[str]


@dataclass(frozen=True)
class Row:
    """One mistake.

    Attributes:
        number, layer, mistake: mistake in our own words.
        defects: beginnings, without family and candidate, of the names of defects that make it.
        single: key of a pair in `SINGLES`, if it has one of its own.
        cannot: why it cannot occur in what is compared.
    """

    number: int
    layer: str
    mistake: str
    defects: tuple[str, ...] = ()
    cannot: str = ""


ROWS = (
    Row(1, "BatchNorm", "the other framework's default eps", ("batchnorm-eps",)),
    Row(2, "BatchNorm", "old and new statistics weighed the other way", ("batchnorm-momentum",)),
    Row(3, "BatchNorm", "statistics left at 0 and 1", ("statistics-not-loaded",)),
    Row(4, "BatchNorm", "mean in the place of the variance", ("statistics-swapped",)),
    Row(5, "BatchNorm", "running variance without Bessel's correction", ("batchnorm-biased",)),
    Row(6, "BatchNorm", "gamma fixed at one", ("gamma-forced",)),
    Row(7, "BatchNorm", "frozen statistics while it trains", ("batchnorm-frozen",)),
    Row(8, "LayerNorm", "another eps", ("layernorm-eps-1e", "layernorm-epsilon")),
    Row(9, "GroupNorm", "another eps"),
    Row(10, "RMSNorm", "the weight without its one", ("layernorm-one-plus", "rmsnorm-one-plus")),
    Row(11, "RMSNorm", "eps added to the root", ("layernorm-eps-outside", "rmsnorm-eps-beside")),
    Row(12, "RMSNorm", "rounded before the weight", ("layernorm-cast-early", "rmsnorm-cast")),
    Row(13, "RMSNorm", "the residual overwritten in place", ("residual-overwritten",)),
    Row(14, "GELU", "tanh form", ("gelu-tanh", "gelu-backward")),
    Row(15, "GELU", "logistic form", ("gelu-quick", "gelu-sigmoid")),
    Row(
        16, "HardSigmoid", "slope of the other framework", ("hardsigmoid-slope", "hardswish-slope")
    ),
    Row(17, "HardSwish", "gate alone, its input left out", ("hardswish-without",)),
    Row(18, "LeakyReLU", "another slope", ("leaky-",)),
    Row(19, "Conv", "stride 2: border behind alone", ("strided-same", "conv-pads")),
    Row(20, "MaxPool", "border of zeros", ("maxpool-zero",)),
    Row(21, "MaxPool", "one window more, half outside"),
    Row(22, "AvgPool", "border counted", ("avgpool-counts", "pool-counts", "avgpool-backward")),
    Row(23, "AvgPool", "divisor of the windows at the end", ("avgpool-last",)),
    Row(24, "ConvTranspose", "output moved by a pixel", ("transposed-same", "transposed-shifted")),
    Row(
        25,
        "ConvTranspose",
        "kernel flipped; channels exchanged",
        ("transposed-kernel", "kernel-not-turned", "kernel-flipped"),
    ),
    Row(26, "Depthwise", "kernel in the other layout, not transposed", ("depthwise-channels",)),
    Row(27, "Flatten", "channels first for channels last", ("flatten-channels-last",)),
    Row(28, "Dense", "square matrix not transposed", ("square-not", "projection-tr")),
    Row(29, "PixelShuffle", "depth before the position in a block"),
    Row(30, "PatchMerging", "rows of quarters for columns"),
    Row(31, "PatchMerging", "the odd border along the wrong axis"),
    Row(
        32,
        "Resize",
        "another map of coordinates",
        ("resize-align", "resize-asymmetric", "resize-tensorflow"),
    ),
    Row(33, "Resize", "another cubic"),
    Row(34, "Resize", "antialiasing on one side only"),
    Row(35, "GRU", "reset applied at the other side of the product", ("reset-before",)),
    Row(36, "GRU", "two gates exchanged", ("gates-zrn", "gates-rzh")),
    Row(37, "LSTM", "two gates exchanged", ("gates-iofg",)),
    Row(38, "BiRNN", "backward outputs in the order of their making", ("not-flipped-back",)),
    Row(
        39,
        "RNN",
        "recurrent bias left out, or twice",
        ("second-bias-m", "second-bias-t", "bias-twice"),
    ),
    Row(40, "Attention", "softmax over queries", ("softmax-axis",)),
    Row(
        41,
        "Attention",
        "a mask of minus infinity: NaN where a row has nothing left",
        ("masked-by-infinity",),
    ),
    Row(
        42, "Attention", "the future is visible", ("future-leaks", "mask-missing", "mask-inverted")
    ),
    Row(43, "Attention", "scale or soft cap left out", ("scale-missing", "scale")),
    Row(44, "Grouped-query attention", "groups tiled, not repeated", ("heads-tiled",)),
    Row(45, "Packed q, k, v", "split by head first", ("qkv-per-head",)),
    Row(46, "RoPE", "interleaved pairs for halves", ("rotary-neighbours",)),
    Row(
        47,
        "RoPE",
        "table of angles in the other layout than the pairs",
        ("rotary-angles", "rotary-other-way"),
    ),
    Row(
        48,
        "Position embedding",
        "counted from another start",
        ("position-offset", "gather-sh", "positions-after", "positions-from"),
    ),
    Row(49, "Embedding", "one row is never trained", ("padding-row",)),
    Row(50, "Embedding", "factor rounded to half precision"),
    Row(51, "Head", "tied table, gradient from one use only", ("head-stale",)),
    Row(52, "Matmul", "operands in a lower precision", ("reduced-precision",)),
    Row(53, "ReLU", "half a gradient at zero"),
    Row(54, "Max", "ties share the gradient", ("maxpool-shares",)),
    Row(55, "where", "NaN from the branch not taken", ("nan-gradient",)),
    Row(56, "Loss", "a target that should be constant sends a gradient"),
    Row(57, "Loss", "the graph is cut", ("bias-gradient-missing", "positions-det", "key-detached")),
    Row(58, "Softmax", "hand-written backward without its sum", ("softmax-backward",)),
    Row(59, "Cross-entropy", "masked tokens in the divisor"),
    Row(60, "Cross-entropy", "mean over parts of a batch", ("weight-gradient-mean",)),
    Row(61, "Cross-entropy", "smoothing spread over one class more"),
    Row(62, "KL", "mean over elements for examples"),
    Row(63, "Smooth L1", "not divided by beta"),
    Row(64, "Adam", "eps at the other side of the correction"),
    Row(65, "Adam", "no bias correction"),
    Row(66, "RMSprop", "eps under the root; another start"),
    Row(67, "AdamW", "decay without the learning rate"),
    Row(68, "Weight decay", "norms and biases decay too"),
    Row(69, "SGD momentum", "learning rate inside the velocity; dampening"),
    Row(70, "Gradient clipping", "by tensor for all together; its constant"),
    Row(71, "Dropout", "on in evaluation"),
    Row(72, "Input", "colours in the other order"),
    Row(73, "Weights", "kept in half precision on the way", ("weight-float16",)),
    Row(
        74,
        "Structure",
        "a term left out",
        ("types-left-out", "shortcut-missing", "residual-left", "residual-missing"),
    ),
    Row(75, "Config", "a value of the configuration not read", ("rmsnorm-eps-1e", "scale-of-all")),
)


def planted(numbers: set[int], *, per: Per = "adapter") -> Iterator[Planted]:
    """What is planted for the chosen rows.

    Args:
        numbers: of the rows; empty: all.
        per: of the defects of models, the first of each row, or of each row and adapter, or all;
            what is planted elsewhere is taken whole.
    """
    from models.defects.single_rows import single_rows

    for row in ROWS:
        if not numbers or row.number in numbers:
            yield from _of_models(row, per)
    for module in PLUGS:
        yield from (p for p in importlib.import_module(module).ROWS if _wanted(p, numbers))
    yield from (p for p in single_rows() if _wanted(p, numbers))


def _wanted(one: Planted, numbers: set[int]) -> bool:
    return not numbers or one.number in numbers


def _of_models(row: Row, per: Per) -> Iterator[Planted]:
    """The defects of the model families that make a row's mistake."""
    from scripts.explain_corpus import expected
    from scripts.planted_defects import installed, outcome

    seen = set()
    for defect in _defects(row):
        group = {"row": "", "adapter": defect.candidate, "defect": defect.name}[per]
        if not installed(defect.candidate) or group in seen:
            continue
        seen.add(group)
        yield Planted(
            row.number,
            defect.candidate,
            defect.name,
            lambda seed, d=defect: _checked(d, seed),
            lambda report, d=defect: outcome(report, 0, d).located,
            frozenset(expected(defect)),
        )


def _defects(row: Row) -> list[Any]:
    """Those of a row, in the order in which it names them."""
    from models.defects import DEFECTS, GRAPH_DEFECTS, SEQUENCE_DEFECTS, VISION_DEFECTS
    from scripts.explain_corpus import mistake_of

    every = (*DEFECTS, *GRAPH_DEFECTS, *VISION_DEFECTS, *SEQUENCE_DEFECTS)
    known = {defect.name: defect for defect in every}
    found = [
        defect
        for start in row.defects
        for defect in known.values()
        if mistake_of(defect).startswith(start)
    ]
    return list(dict.fromkeys(found))


def _checked(defect: Any, seed: int) -> Report:
    from crosscheck.pair import load_pair
    from scripts.planted_defects import MODELS, check_defect

    return check_defect(load_pair(MODELS / defect.family), defect, seed)
