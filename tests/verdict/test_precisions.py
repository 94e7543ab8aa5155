"""Every precision: both sides in one, or a port in a coarser one than the reference's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crosscheck
from crosscheck import Report

T = torch.Tensor
WIDTH = 32


class Block(nn.Module):
    """A transformer's block; ``own`` chooses how its formulas are written."""

    def __init__(self, *, own: bool = False, slip: str = "") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.norm2 = Norm() if own else nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, 2 * WIDTH)
        self.act = Gelu(slip) if own or slip else nn.GELU()
        self.out = nn.Linear(2 * WIDTH, WIDTH)
        self.own, self.slip = own, slip

    def forward(self, x: T) -> T:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.proj(self.attend(q, k, v))
        return x + self.out(self.act(self.fc(self.norm2(x))))

    def attend(self, q: T, k: T, v: T) -> T:
        scale = WIDTH**-0.5 * (3 if self.slip == "attention" else 1)
        if not self.own:
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
        return torch.softmax(q @ k.mT * scale, -1) @ v


class Norm(nn.LayerNorm):
    def __init__(self) -> None:
        super().__init__(WIDTH)

    def forward(self, x: T) -> T:
        wide = x if x.dtype == torch.float64 else x.float()  # as ports do
        d = wide - wide.mean(-1, keepdim=True)
        d = d * torch.rsqrt(d.square().mean(-1, keepdim=True) + self.eps)
        return d.to(x.dtype) * self.weight + self.bias


class Gelu(nn.Module):
    def __init__(self, slip: str) -> None:
        super().__init__()
        self.factor = 1.2 if slip == "activation" else 1.0

    def forward(self, x: T) -> T:
        return 0.5 * x * (1 + torch.erf(x * 0.7071067811865476)) * self.factor


class Net(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(**options)])
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: T) -> T:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Autocast(nn.Module):
    def __init__(self, net: Net, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: T) -> T:
        with torch.autocast("cpu", self.dtype):
            return self.net(x)


def seeded(**options: Any) -> Net:
    torch.manual_seed(0)
    return Net(**options)


HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
SLIPS = {"attention": "blocks.1", "activation": "blocks.1.act"}


def check(reference: Any, candidate: Any, dtype: str = "float32", **options: Any) -> Report:
    return crosscheck.check(reference, candidate, f"{dtype}[2,7,{WIDTH}]", explain=False, **options)


def assert_agrees(report: Report) -> None:
    assert report.verdict == "agree", str(report)
    assert report.coverage.aligned >= 15


def assert_located(report: Report, site: str) -> None:
    assert report.verdict == "diverge", str(report)
    first = report.first_divergence
    assert first is not None and str(first.reference).endswith(site), str(report)
    assert len({d.reference for d in report.divergences if d.phase == "forward"}) == 1, str(report)


@pytest.mark.parametrize("dtype", HALVES)
def test_both_sides_in_one_precision_agree(dtype: str) -> None:
    kind = HALVES[dtype]
    report = check(seeded().to(kind), seeded(own=True).to(kind), dtype)
    assert_agrees(report)
    assert {s.dtype for s in report.sites} == {dtype}


@pytest.mark.parametrize(
    ("dtype", "slip"),
    [("float16", "attention"), ("bfloat16", "activation"), ("float64", "attention")],
)
def test_a_mistake_in_that_precision_is_located(dtype: str, slip: str) -> None:
    kind = HALVES[dtype]
    report = check(seeded().to(kind), seeded(own=True, slip=slip).to(kind), dtype)
    assert_located(report, SLIPS[slip])


@pytest.mark.parametrize(
    ("dtype", "slip"),
    [("float16", ""), ("float16", "activation"), ("bfloat16", ""), ("bfloat16", "attention")],
)
def test_a_port_in_half_the_precision_is_judged_by_it(dtype: str, slip: str) -> None:
    """A fact first (the types differ), then values, by the rounding of the coarser one."""
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    candidate = seeded(own=True, slip=slip).to(HALVES[dtype])
    report = check(seeded(), candidate, candidate_inputs=lambda x: {"x": x["x"].astype(kind)})
    assert f"the candidate holds {dtype} where the reference holds float32" in report.notes[0]
    if slip:
        assert_located(report, SLIPS[slip])
    else:
        assert_agrees(report)


@pytest.mark.parametrize(
    ("dtype", "both", "slip"),
    [
        ("bfloat16", True, ""),
        ("bfloat16", True, "attention"),
        ("bfloat16", False, ""),
        ("bfloat16", False, "activation"),
        ("float16", True, ""),
        ("float16", False, "attention"),
    ],
)
def test_autocast(dtype: str, both: bool, slip: str) -> None:
    kind = HALVES[dtype]
    reference = Autocast(seeded(), kind) if both else nn.Sequential(seeded())
    report = check(reference, Autocast(seeded(own=True, slip=slip), kind))
    if slip:
        assert_located(report, SLIPS[slip])
    else:
        assert_agrees(report)


def tf32(x: T) -> T:
    """What a tensor core reads of a float32: ten bits behind the point, to nearest."""
    if x.dtype != torch.float32:
        return x
    bits = x.detach().view(torch.int32)
    rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
    return x + (rounded - x).detach()


class Secret(nn.Linear):
    """Shows float32 and computes in less."""

    cast: Any = staticmethod(tf32)

    def forward(self, x: T) -> T:
        return F.linear(self.cast(x), self.cast(self.weight), self.bias)


def through(dtype: torch.dtype) -> Any:
    return lambda x: x.to(dtype).to(x.dtype)


SECRETS = {
    "TF32": tf32,
    "float16": through(torch.float16),
    "bfloat16": through(torch.bfloat16),
    "float8": through(torch.float8_e4m3fn),
}


@pytest.mark.parametrize(
    ("kind", "width"),
    [*((kind, WIDTH) for kind in SECRETS), *(("TF32", w) for w in (4096, 65536))],
)
def test_float32_that_computes_in_less_is_found(kind: str, width: int) -> None:
    def net(layer: type[nn.Linear]) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Tanh(), layer(width, 4), nn.Tanh())

    lower = net(Secret)
    lower[1].cast = SECRETS[kind]  # type: ignore[index, assignment]
    report = crosscheck.check(net(nn.Linear), lower, f"float32[3,{width}]", explain=False)
    assert report.verdict != "agree", str(report)
    assert {d.reference for d in report.divergences if d.phase == "forward"} == {"1"}


@pytest.mark.parametrize("width", [4096, 65536])
def test_float32_that_sums_in_another_order_is_not(width: int) -> None:
    class Other(nn.Linear):
        def forward(self, x: T) -> T:
            parts = [
                a @ w.mT for a, w in zip(x.split(64, -1), self.weight.split(64, -1), strict=True)
            ]
            return sum(parts[1:], parts[0]) + self.bias

    def net(layer: type[nn.Linear]) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Tanh(), layer(width, 4), nn.Tanh())

    report = crosscheck.check(net(nn.Linear), net(Other), f"float32[3,{width}]", explain=False)
    assert report.verdict == "agree", str(report)


def test_float8_values_themselves_are_judged_by_their_rounding() -> None:
    class Cast(nn.Module):
        def __init__(self, scale: float = 1.0) -> None:
            super().__init__()
            self.fc, self.scale = nn.Linear(WIDTH, 64), scale

        def forward(self, x: T) -> T:
            q = crosscheck.tap("cast", (self.fc(x) * self.scale).to(torch.float8_e4m3fn))
            return q.to(x.dtype) * 2

    def check(scale: float) -> Report:
        torch.manual_seed(0)
        ours = Cast()
        torch.manual_seed(0)
        return crosscheck.check(
            ours, Cast(scale), f"float32[40,{WIDTH}]", explain=False, gradients=False
        )

    assert check(1.0).verdict == "agree"
    wrong = check(4.0)
    assert wrong.verdict == "diverge"
    assert [d.reference for d in wrong.divergences] == ["cast"]


class Packed(nn.Module):
    """A block whose attention is PyTorch's; ``slip``: what it is added to is the norm."""

    def __init__(self, *, slip: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.feed = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.slip = slip

    def attend(self, y: T) -> T:
        return self.attention(y, y, y, need_weights=False)[0]

    def forward(self, x: T) -> T:
        y = self.norm(x)
        x = (y if self.slip else x) + self.attend(y)
        return x + self.feed(x)


class Apart(Packed):
    """The same block, of layers of its own."""

    def __init__(self, *, slip: bool = False) -> None:
        super().__init__(slip=slip)
        del self.attention
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)

    def attend(self, y: T) -> T:
        q, k, v = (f(y).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def stacked(*blocks: nn.Module) -> nn.Module:
    net = nn.Sequential(nn.Linear(12, WIDTH), *blocks, nn.Linear(WIDTH, 5))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


def in_half(net: nn.Module) -> nn.Module:
    return Autocast(net, torch.bfloat16)  # type: ignore[arg-type]


@pytest.mark.parametrize("autocast", [False, True])
def test_values_in_bfloat16_are_recognised_by_what_rounding_leaves(autocast: bool) -> None:
    """Nothing else says that a packed attention and the last of four layers return the same."""
    sides = stacked(*(Packed() for _ in range(3))), stacked(*(Apart() for _ in range(3)))
    sides = tuple(in_half(s) if autocast else s.to(torch.bfloat16) for s in sides)
    report = crosscheck.check(*sides, f"{'float32' if autocast else 'bfloat16'}[3,7,12]")
    assert report.verdict == "agree", str(report)
    assert not report.coverage.unmatched_reference


def test_behind_a_mistake_in_bfloat16_all_layers_are_compared_again() -> None:
    reference = stacked(*(Apart() for _ in range(4)))
    candidate = stacked(Apart(), Apart(slip=True), Apart(), Apart())
    report = crosscheck.check(reference, in_half(candidate), "float32[3,7,12]")
    assert report.verdict == "diverge"
    assert {d.reference for d in report.divergences} == {"2"}, str(report)
    assert not report.coverage.unmatched_reference


class Fused(nn.Linear):
    def forward(self, x: T) -> T:
        return F.gelu(super().forward(x))


def test_an_activation_inside_a_layer_in_bfloat16() -> None:
    """What the layer behind hands on is the activation's value, though rounding shows in it: its
    input is another quantity."""
    wide = 2 * WIDTH
    reference = stacked(
        *(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, wide), nn.GELU(), nn.Linear(wide, WIDTH)
            )
            for _ in range(6)
        )
    )
    candidate = stacked(
        *(
            nn.Sequential(
                nn.LayerNorm(WIDTH), Fused(WIDTH, wide), nn.Dropout(), nn.Linear(wide, WIDTH)
            )
            for _ in range(6)
        )
    )
    report = crosscheck.check(reference, in_half(candidate.eval()), "float32[3,7,12]")
    assert report.verdict == "agree", str(report)
