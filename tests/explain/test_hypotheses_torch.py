"""Hypotheses on layers whose right and wrong forms PyTorch has both: it is the judge of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from crosscheck.adapters.torch.adapter import TorchAdapter  # noqa: E402
from crosscheck.explain import causes  # noqa: E402

from .kit import backward, evidence, normal, told  # noqa: E402
from .layers import Array  # noqa: E402

Tensor = Any


def of(
    reference: Callable[[Tensor], Tensor],
    candidate: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    layer: Any = None,
    **more: Any,
) -> list[str]:
    """The verified statements for functions of a float64 tensor."""
    parameters = () if layer is None else TorchAdapter(layer).parameters()

    def at(seed: int) -> Any:
        x = normal(shape, seed)
        with torch.no_grad():
            right, wrong = (f(torch.tensor(x)).numpy() for f in (reference, candidate))
        return evidence("forward", right, wrong, inputs=(x,), parameters=parameters, **more)

    return told(causes(at(0), lambda: at(1)))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("name", ["softmax", "log-softmax"])
def test_softmax_of_an_output(name: str, axis: int) -> None:
    """Probabilities where the reference returns what the softmax is taken of."""
    weight = torch.tensor(normal((7, 5), 3))
    function = F.softmax if name == "softmax" else F.log_softmax
    found = of(lambda x: x @ weight, lambda x: function(x @ weight, axis), (3, 4, 7))
    assert found == [f"{name} over axis {axis} is applied to the output"]


# -- resize ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 9), (11, 8), (3, 4)])
@pytest.mark.parametrize(
    ("right", "wrong", "statement"),
    [
        ("bilinear", {"align_corners": True}, "linear, align-corners coordinates"),
        ("bicubic", {"align_corners": True}, "cubic (a = -0.75), align-corners coordinates"),
        ("bilinear", {"antialias": True}, "linear, half-pixel coordinates, antialiased"),
        ("bilinear", {"mode": "nearest"}, "nearest neighbour, asymmetric coordinates"),
        ("nearest", {"mode": "nearest-exact"}, "nearest neighbour, half-pixel"),
        ("bilinear", {"mode": "area"}, "the mean of adaptive bins"),
    ],
)
def test_resize(size: tuple[int, int], right: str, wrong: Any, statement: str) -> None:
    def made(mode: str, **options: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: F.interpolate(x, size, mode=mode, **options)

    if "antialias" in wrong and size != (3, 4):
        pytest.skip("only where it shrinks")
    found = of(made(right), made(**{"mode": right, **wrong}), (2, 3, 5, 6))
    assert any(text.startswith(statement) for text in found)


def test_a_cubic_with_another_parameter() -> None:
    """torchvision's antialiased cubic has -0.5; without antialiasing PyTorch has -0.75."""

    def right(x: Tensor) -> Tensor:
        return F.interpolate(x, (8, 9), mode="bicubic")

    def wrong(x: Tensor) -> Tensor:  # enlarging, antialiasing does nothing else
        return F.interpolate(x, (8, 9), mode="bicubic", antialias=True)

    found = of(right, wrong, (2, 3, 5, 6))
    assert found and all("a = -0.5" in text for text in found)


# -- transposed and depthwise convolution ----------------------------------------------------------


def transposed(stride: int = 2, channels: int = 3) -> Any:
    torch.manual_seed(0)
    return torch.nn.ConvTranspose2d(channels, channels, 3, stride, padding=1, output_padding=1)


def again(layer: Any, **changes: Any) -> Callable[[Tensor], Tensor]:
    """The layer in float64, with another weight or other arguments."""
    weight = changes.pop("weight", lambda w: w)
    arguments = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    call = F.conv2d
    if isinstance(layer, torch.nn.ConvTranspose2d):
        call, arguments["output_padding"] = F.conv_transpose2d, layer.output_padding
    crop = changes.pop("crop", lambda y: y)
    options = arguments | changes
    return lambda x: crop(call(x, weight(layer.weight.double()), layer.bias.double(), **options))


@pytest.mark.parametrize(
    ("changes", "statement"),
    [
        ({"padding": 0, "crop": lambda y: y[:, :, :10, :12]}, "the output is shifted by 1, 1"),
        ({"weight": lambda w: w.flip(2, 3)}, "the kernel is flipped"),
        ({"weight": lambda w: w.transpose(0, 1)}, "input and output channels of the kernel"),
        ({"weight": lambda w: w.transpose(2, 3)}, "height and width of the kernel"),
    ],
)
def test_transposed_convolution(changes: Any, statement: str) -> None:
    layer = transposed()
    found = of(again(layer), again(layer, **changes), (2, 3, 5, 6), layer)
    assert found[0].startswith(statement)


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_and_depthwise_convolution(groups: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    wrong = again(layer, padding=0)
    found = of(again(layer), lambda x: wrong(F.pad(x, (0, 2, 0, 2))), (2, 4, 7, 6), layer)
    assert found[0].startswith("stride 2 with a border of 0, 0 in front")
    found = of(again(layer), again(layer, weight=lambda w: w.flip(2, 3)), (2, 4, 7, 6), layer)
    assert found == ["the kernel is flipped"]


def test_a_depthwise_kernel_read_in_another_order() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, (2, 3), padding=1, groups=3)

    def read(w: Tensor) -> Tensor:  # (C, 1, h, w) for (h, w, C, 1)
        return w.reshape(2, 3, 3, 1).permute(2, 3, 0, 1)

    found = of(again(layer), again(layer, weight=read), (2, 3, 6, 7), layer)
    assert found[0].startswith("the kernel is read as (h, w, out);")


# -- recurrent layers ------------------------------------------------------------------------------


def recurrent(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(torch.nn, kind)(5, 4, batch_first=True, **options)


def outputs(layer: Any, which: int = 0) -> Callable[[Tensor], Tensor]:
    wide = layer.double()

    def run(x: Tensor) -> Tensor:
        y, state = wide(x)
        states = state if isinstance(state, tuple) else (state,)
        return (y, *states)[which]

    return run


def altered(layer: Any, **changes: Callable[[Tensor], Tensor]) -> Any:
    """A copy with some parameters changed; names without their ``_l0``."""
    import copy

    other = copy.deepcopy(layer)
    with torch.no_grad():
        for name, change in changes.items():
            for full, parameter in other.named_parameters():
                if full.startswith(name):
                    parameter.copy_(change(parameter.clone()))
    return other


def gates(*order: int) -> Callable[[Tensor], Tensor]:
    def permuted(w: Tensor) -> Tensor:
        parts = w.chunk(len(order))
        return torch.cat([parts[i] for i in order])

    return permuted


def both(change: Callable[[Tensor], Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    return {"weight": change, "bias": change}


@pytest.mark.parametrize(
    ("kind", "changes", "statement"),
    [
        ("LSTM", both(gates(0, 1, 3, 2)), "for the gates i, f, g, o those of i, f, o, g are taken"),
        ("LSTM", {"bias_hh": torch.zeros_like}, "the recurrent bias is missing"),
        ("LSTM", {"bias_ih": lambda b: 2 * b}, "the bias is counted twice"),
        (
            "LSTM",
            {"bias_ih": lambda b: b + torch.tensor([0.0, 1, 0, 0]).repeat_interleave(4)},
            "+1 is added to the forget gate",
        ),
        ("GRU", both(gates(1, 0, 2)), "for the gates r, z, n those of z, r, n are taken"),
        ("GRU", {"bias_hh": torch.zeros_like}, "the recurrent bias is missing"),
        ("RNN", {"bias_hh": lambda b: 2 * b}, "the recurrent bias is counted twice"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent(kind: str, changes: Any, statement: str, options: Any) -> None:
    right = recurrent(kind, **options)
    wrong = altered(right, **changes)
    assert of(outputs(right), outputs(wrong), (3, 6, 5), right)[0] == statement


def test_the_reset_gate_before_the_product() -> None:
    right = recurrent("GRU")

    def before(x: Tensor) -> Tensor:
        w, u = right.weight_ih_l0.double(), right.weight_hh_l0.double()
        b, c = right.bias_ih_l0.double(), right.bias_hh_l0.double()
        h, out = torch.zeros(len(x), 4).double(), []
        for step in x.unbind(1):
            fed, back = (step @ w.T + b).chunk(3, 1), (h @ u.T + c).chunk(3, 1)
            r, z = torch.sigmoid(fed[0] + back[0]), torch.sigmoid(fed[1] + back[1])
            n = torch.tanh(fed[2] + ((r * h) @ u.T + c).chunk(3, 1)[2])
            h = (1 - z) * n + z * h
            out.append(h)
        return torch.stack(out, 1)

    found = of(outputs(right), before, (3, 6, 5), right)
    assert found == ["the reset gate is applied before the matrix product, not after it"]


def test_one_direction_alone() -> None:
    right = recurrent("GRU", bidirectional=True)
    wrong = altered(right, bias_hh_l0_reverse=torch.zeros_like)
    found = of(outputs(right), outputs(wrong), (3, 6, 5), right)
    assert found == ["the recurrent bias is missing, in the backward direction alone"]


def test_directions() -> None:
    right = recurrent("GRU", bidirectional=True)
    run = outputs(right)

    def unflipped(x: Tensor) -> Tensor:
        there, back = run(x).chunk(2, -1)
        return torch.cat([there, back.flip(1)], -1)

    found = of(run, unflipped, (3, 6, 5), right)
    assert found == ["the outputs of the backward direction are not turned back"]
    found = of(run, lambda x: run(x.flip(1)), (3, 6, 5), right)
    assert found == ["the sequence is run from its end"]
    last = of(lambda x: run(x)[:, -1], lambda x: run(x)[:, 0], (3, 6, 5), right)
    assert "the outputs at the first step, for the outputs at the last step" in last


def test_the_step_that_is_taken() -> None:
    def ends(x: Tensor) -> Tensor:
        return torch.cat([x[:, -1, :4], x[:, 0, 4:]], 1)

    found = of(ends, lambda x: x[:, -1], (3, 6, 8))
    assert found == [
        "the halves of the features are those of the last step, for the last and first"
    ]


def test_a_reset_gate_that_leaves_its_bias_out() -> None:
    right = recurrent("GRU")
    last = right.bias_hh_l0.detach()[8:].double()

    def outside(x: Tensor) -> Tensor:
        """The bias of n, on the other side of the reset gate, is one of the input's."""
        other = altered(
            right,
            bias_hh_l0=lambda b: torch.cat([b[:8], 0 * b[8:]]),
            bias_ih_l0=lambda b: torch.cat([b[:8], b[8:] + last]),
        )
        return outputs(other)(x)

    found = of(outputs(right), outside, (3, 6, 5), right)
    assert found == ["the reset gate leaves the recurrent bias out"]


def test_states() -> None:
    right = recurrent("LSTM", num_layers=2)
    found = of(outputs(right, 1), outputs(right, 2), (3, 6, 5), right, which=1)
    assert found == ["the final memories, for the final states"]


# -- layers that move numbers ----------------------------------------------------------------------


def test_pixel_shuffle() -> None:
    def other(x: Tensor) -> Tensor:  # (B, r, r, C, H, W) for (B, C, r, r, H, W)
        b, c, h, w = x.shape
        cut = x.reshape(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
        return cut.reshape(b, c // 4, 2 * h, 2 * w)

    found = of(lambda x: F.pixel_shuffle(x, 2), other, (2, 12, 3, 5))
    assert found[0].startswith("packed channels have the channel innermost (depth-column-row, DCR)")


def test_flattening_in_the_other_layout() -> None:
    found = of(lambda x: x.flatten(1), lambda x: x.permute(0, 2, 3, 1).flatten(1), (2, 3, 4, 5))
    assert found[0] == "axes 2, 3, 1 are put together in this order, for 1, 2, 3"


def merged(x: Tensor, order: tuple[int, ...], pad: tuple[int, int] = (0, 0)) -> Tensor:
    x = F.pad(x, (0, 0, 0, pad[1], 0, pad[0]))
    quarters = [(0, 0), (0, 1), (1, 0), (1, 1)]
    parts = [x[:, r::2, c::2] for r, c in (quarters[i] for i in order)]
    return torch.cat(parts, -1)


def test_patch_merging() -> None:
    found = of(lambda x: merged(x, (0, 2, 1, 3)), lambda x: merged(x, (0, 1, 2, 3)), (2, 4, 6, 3))
    assert found[0].startswith("the quarters stand in the order (0, 0), (0, 1)")

    def front(x: Tensor) -> Tensor:
        return merged(F.pad(x, (0, 0, 0, 0, 1, 0)), (0, 2, 1, 3))

    found = of(lambda x: merged(x, (0, 2, 1, 3), (1, 0)), front, (2, 5, 6, 3))
    assert found == ["the odd row or column of zeros is put in front, not behind"]


# -- attention in one layer, and two ways back -----------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_in_one_layer(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(12, 3, batch_first=batch_first)
    with torch.no_grad():
        layer.in_proj_bias.normal_()
    wide = layer.double()

    def right(x: Tensor) -> Tensor:
        return wide(x, x, x, need_weights=False)[0]

    def causal(x: Tensor) -> Tensor:
        length = x.shape[1 if batch_first else 0]
        hidden = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        return wide(x, x, x, attn_mask=hidden, need_weights=False)[0]

    def unscaled(x: Tensor) -> Tensor:
        other = altered(wide, in_proj=lambda p: torch.cat([p[:12] * 2.0, p[12:]]))
        return other(x, x, x, need_weights=False)[0]  # 2 = the root of the head size

    shape = (2, 5, 12)
    assert of(right, causal, shape, layer) == ["a position sees itself and the past alone"]
    text = "scores are scaled by 1 (no scale); in the reference by 1/√(head size)"
    assert of(right, unscaled, shape, layer) == [text]


def test_a_resize_whose_way_back_is_anothers() -> None:
    def resize(x: Tensor, corners: bool) -> Tensor:
        return F.interpolate(x, (7, 9), mode="bilinear", align_corners=corners)

    def back(x: Array, dy: Array, corners: bool) -> Array:
        leaf = torch.tensor(x, requires_grad=True)
        (dx,) = torch.autograd.grad(resize(leaf, corners), leaf, torch.tensor(dy))
        return np.asarray(dx)

    found = backward(
        lambda x: resize(torch.tensor(x), False).numpy(),
        lambda x, dy: back(x, dy, False),
        lambda x, dy: back(x, dy, True),
        (2, 3, 5, 6),
    )
    assert told(found) == [
        "the way back is that of linear, align-corners coordinates; "
        "forward is linear, half-pixel coordinates"
    ]
