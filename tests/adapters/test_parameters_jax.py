"""Weights from PyTorch to Flax and Equinox and back, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import crosscheck
from crosscheck.errors import CannotCompare

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
pytest.importorskip("flax")
import jax.numpy as jnp  # noqa: E402
from flax import linen, nnx  # noqa: E402
from torch import nn  # noqa: E402

from tests.adapters.layer_kit import (  # noqa: E402
    First,
    Projections,
    SelfAttention,
    Words,
    agrees,
    scattered,
    spec,
)

RNGS = nnx.Rngs(0)
STEPS = (4, 3)
slow = pytest.mark.slow


class Recurrent(nnx.Module):
    """Cells, one after the other over time."""

    def __init__(self, *cells: Any) -> None:
        self.layers = nnx.List([nnx.RNN(cell) for cell in cells])

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class Attention(nnx.Module):
    def __init__(self) -> None:
        self.attn = nnx.MultiHeadAttention(2, 8, rngs=RNGS, decode=False)

    def __call__(self, x: Any) -> Any:
        return self.attn(x)


class Attend(nnx.Module):
    """A table that is embedding and head."""

    def __init__(self) -> None:
        self.emb = nnx.Embed(11, 6, rngs=RNGS)

    def __call__(self, ids: Any) -> Any:
        return self.emb.attend(jnp.tanh(self.emb(ids)))


def attend(params: Any, x: Any) -> Any:
    """Attention as a function; nothing says which axis of a square kernel is which."""

    def project(name: str) -> Any:
        return (x @ params[f"w{name}"] + params[f"b{name}"]).reshape(*x.shape[:2], 2, 4)

    q, k, v = (project(name).swapaxes(1, 2) for name in "qkv")
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / 2, -1)
    return (weights @ v).swapaxes(1, 2).reshape(x.shape) @ params["wo"] + params["bo"]


def by_function() -> Any:
    kernels = {f"w{name}": 0.1 * jnp.ones((8, 8)) for name in "qkvo"}
    return crosscheck.adapt(attend, params=kernels | {f"b{name}": jnp.ones(8) for name in "qkvo"})


def recurrent(name: str, **options: Any) -> Any:
    return First(getattr(nn, name)(3, 5, batch_first=True, **options))


def of_linen(module: Any, *shape: int) -> Any:
    return crosscheck.adapt(module, variables=module.init(jax.random.key(0), jnp.ones(shape)))


def transposed_port(**options: Any) -> Any:
    return nnx.ConvTranspose(3, 4, (3, 2), strides=2, padding="VALID", rngs=RNGS, **options)


SPATIAL: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "groups": (
        lambda: nn.Conv2d(4, 6, (2, 3), groups=2),
        lambda: nnx.Conv(4, 6, (2, 3), feature_group_count=2, padding="VALID", rngs=RNGS),
        spec(2, 4, 5, 6),
    ),
    "transposed, kernel not turned": (
        lambda: nn.ConvTranspose2d(3, 4, (3, 2), stride=2),
        transposed_port,
        spec(2, 3, 4, 5),
    ),
    "transposed, kernel turned": (
        lambda: nn.ConvTranspose2d(3, 4, (3, 2), stride=2),
        lambda: transposed_port(transpose_kernel=True),
        spec(2, 3, 4, 5),
    ),
    "linen, transposed, kernel turned": (
        lambda: nn.ConvTranspose2d(3, 4, (3, 2), stride=2),
        lambda: of_linen(
            linen.ConvTranspose(4, (3, 2), (2, 2), padding="VALID", transpose_kernel=True),
            *(2, 4, 5, 3),
        ),
        spec(2, 3, 4, 5),
    ),
    **{
        f"linen, transposed, {size} to 4, turned: {turned}": (
            lambda size=size: nn.Sequential(
                nn.Conv2d(3, size, 1), nn.ConvTranspose2d(size, 4, (3, 2), stride=2)
            ),
            lambda size=size, turned=turned: of_linen(
                linen.Sequential(
                    [
                        linen.Conv(size, (1, 1)),
                        linen.ConvTranspose(
                            4, (3, 2), (2, 2), padding="VALID", transpose_kernel=turned
                        ),
                    ]
                ),
                *(2, 4, 5, 3),
            ),
            spec(2, 3, 4, 5),
        )
        for size in (4, 5)
        for turned in (False, True)
    },
    "norms": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4)),
        lambda: nnx.Sequential(
            nnx.BatchNorm(4, use_running_average=True, epsilon=1e-5, rngs=RNGS),
            nnx.GroupNorm(4, 2, epsilon=1e-5, rngs=RNGS),
        ),
        spec(2, 4, 5, 6),
    ),
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=slow if c in ("norms", "groups") else ()) for c in SPATIAL]
)
def test_convolutions_and_norms(case: str) -> None:
    ours, theirs, inputs = SPATIAL[case]
    agrees(scattered(ours()), theirs(), inputs, last=True)


def bidirectional() -> Any:
    one, other = (nnx.RNN(nnx.LSTMCell(3, 5, rngs=RNGS)) for _ in range(2))
    return nnx.Bidirectional(one, other)


PLAIN: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "lstm, a kernel for each gate": (
        lambda: recurrent("LSTM"),
        lambda: Recurrent(nnx.LSTMCell(3, 5, rngs=RNGS)),
        spec(2, *STEPS),
    ),
    "lstm, packed": (
        lambda: recurrent("LSTM"),
        lambda: Recurrent(nnx.OptimizedLSTMCell(3, 5, rngs=RNGS)),
        spec(2, *STEPS),
    ),
    "lstm, both ways": (
        lambda: recurrent("LSTM", bidirectional=True),
        bidirectional,
        spec(2, *STEPS),
    ),
    "simple": (
        lambda: recurrent("RNN"),
        lambda: Recurrent(nnx.SimpleCell(3, 5, rngs=RNGS)),
        spec(2, *STEPS),
    ),
    "linen gru": (
        lambda: recurrent("GRU"),
        lambda: of_linen(linen.RNN(linen.GRUCell(5)), 2, *STEPS),
        spec(2, *STEPS),
    ),
    "linen lstm": (
        lambda: recurrent("LSTM"),
        lambda: of_linen(linen.RNN(linen.OptimizedLSTMCell(5)), 2, *STEPS),
        spec(2, *STEPS),
    ),
    "packed attention": (lambda: SelfAttention(8, 2), Attention, spec(2, 5, 8)),
    "separate projections": (Projections, by_function, spec(2, 5, 8)),
    "tied": (lambda: Words("tied"), Attend, "int64[2,5] 0..11"),
    "three projections for one": (lambda: Projections(fused=True), by_function, spec(2, 5, 8)),
    "one projection for three": (lambda: SelfAttention(8, 2), by_function, spec(2, 5, 8)),
    "general": (
        lambda: nn.Linear(3, 8),
        lambda: nnx.Sequential(
            nnx.LinearGeneral(3, (2, 4), rngs=RNGS), lambda y: y.reshape(*y.shape[:-2], 8)
        ),
        spec(2, *STEPS),
    ),
}
QUICK = ("three projections for one", "one projection for three", "separate projections")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else slow) for c in PLAIN])
def test_recurrent_layers_attention_and_ties(case: str) -> None:
    ours, theirs, inputs = PLAIN[case]
    agrees(scattered(ours()), theirs(), inputs)


@slow
@pytest.mark.parametrize("case", ["lstm, a kernel for each gate"])
def test_from_flax_to_torch(case: str) -> None:
    """One bias on the one side, two on the other: the second is zero."""
    ours, theirs, inputs = PLAIN[case]
    agrees(theirs(), ours().eval(), inputs)


def test_a_gru_without_the_second_bias_cannot_hold_it() -> None:
    port = Recurrent(nnx.GRUCell(3, 5, rngs=RNGS))
    with pytest.raises(CannotCompare, match=r"`inner.bias_hh_l0` \(15,\) has no place"):
        crosscheck.check(scattered(recurrent("GRU")), port, spec(2, *STEPS))


@slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_equinox_cells(kind: str) -> None:
    equinox = pytest.importorskip("equinox")

    class Net(equinox.Module):
        cell: Any

        def __call__(self, x: Any) -> Any:
            def step(state: Any, x: Any) -> Any:
                state = self.cell(x, state)
                return state, state[0] if kind == "LSTM" else state

            zero = jnp.zeros(5)
            return jax.lax.scan(step, (zero, zero) if kind == "LSTM" else zero, x)[1]

    cell = getattr(equinox.nn, f"{kind}Cell")(3, 5, key=jax.random.key(0))
    agrees(scattered(recurrent(kind)), crosscheck.adapt(Net(cell), batched=True), spec(2, *STEPS))


@slow
def test_equinox_transposed_convolution() -> None:
    equinox = pytest.importorskip("equinox")
    layer = equinox.nn.ConvTranspose2d(3, 4, (3, 2), stride=2, key=jax.random.key(0))
    port = crosscheck.adapt(layer, batched=True)
    agrees(scattered(nn.ConvTranspose2d(3, 4, (3, 2), stride=2)), port, spec(2, 3, 4, 5))
