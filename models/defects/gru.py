"""Defects of the bidirectional GRU.

A defect without a source was made up.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change
from models.defects.recurrent import columns, keras_gates, numpy_gates
from models.scratch import GRU, Array
from models.scratch.recurrent import sigmoid


def reset_before(self: GRU, projected: Array, recurrent: Array, state: Any) -> Any:
    """The reset gate scales the state, not its product with the weights."""
    (h,), width = state, self.hidden
    r = sigmoid(projected[:, :width] + recurrent[:, :width])
    weight, bias = self.params["weight_hh"], self.params["bias_hh"]
    product = (r * h) @ weight[:, 2 * width :] + bias[2 * width :]
    gates = recurrent[:, : 2 * width]
    return GRU.step(self, projected, np.concatenate([gates, product / r], axis=-1), state)


def second_bias_outside(self: GRU, projected: Array, recurrent: Array, state: Any) -> Any:
    new = np.zeros_like(recurrent)
    new[:, 2 * self.hidden :] = self.params["bias_hh"][2 * self.hidden :]
    return GRU.step(self, projected + new, recurrent - new, state)


def update_gate_reversed(self: GRU, projected: Array, recurrent: Array, state: Any) -> Any:
    (h_new,), kept = GRU.step(self, projected, recurrent, state)
    n, h = kept[2], kept[4]
    return (n + h - h_new,), kept


def reset_gate_forgotten_backward(self: GRU, dstate: Any, kept: Any) -> Any:
    dprojected, _, rest = GRU.step_backward(self, dstate, kept)
    return dprojected, dprojected, rest


def keras_reset_before(layer: Any) -> None:
    from keras import ops

    cell = layer.cell

    def call(x: Any, states: Any, training: bool = False) -> Any:
        h, width = states[0], cell.units
        kernel, weight = (ops.convert_to_tensor(v) for v in (cell.kernel, cell.recurrent_kernel))
        bias = ops.convert_to_tensor(cell.bias)
        given = ops.matmul(x, kernel) + bias[0]
        gates = ops.matmul(h, weight[:, : 2 * width]) + bias[1, : 2 * width]
        z = ops.sigmoid(given[:, :width] + gates[:, :width])
        r = ops.sigmoid(given[:, width : 2 * width] + gates[:, width:])
        product = ops.matmul(r * h, weight[:, 2 * width :]) + bias[1, 2 * width :]
        h = z * h + (1 - z) * ops.tanh(given[:, 2 * width :] + product)
        return h, [h]

    cell.call = call


def jax_reset_before(self: Any, h: Any, projected: Any, recurrent: Any) -> Any:
    import jax
    import jax.numpy as jnp

    width = h.shape[-1]
    gates = jax.nn.sigmoid(projected[:, : 2 * width] + recurrent[:, : 2 * width])
    r, z = jnp.split(gates, 2, axis=-1)
    weight, bias = self.weight_hh[...][:, 2 * width :], self.bias_hh[...][2 * width :]
    n = jnp.tanh(projected[:, 2 * width :] + (r * h) @ weight + bias)
    return (1 - z) * n + z * h


def jax_gates_swapped(self: Any, h: Any, projected: Any, recurrent: Any) -> Any:
    take = columns("rzn", "zrn", 7)
    return type(self).__base__.update(self, h, projected[:, take], recurrent[:, take])


def jax_state_detached(self: Any, h: Any, projected: Any, recurrent: Any) -> Any:
    import jax

    return type(self).__base__.update(self, h, projected, jax.lax.stop_gradient(recurrent))


def jax_order_of_reading(self: Any, x: Any) -> Any:
    """What a scan that reads backwards gives, in the order in which it was read."""
    return type(self).__base__.__call__(self, x)[:, ::-1]


gru = functools.partial(Defect, family="gru")

DEFECTS: tuple[Defect, ...] = (
    gru(
        name="gru-numpy-reset-before",
        candidate="numpy",
        mistake="the reset gate acts before the matrix product",
        source="apple/coremltools#1124",
        phase="forward",
        site="gru",
        inject=change("gru.forwards", step=reset_before),
    ),
    gru(
        name="gru-numpy-gates-zrn",
        candidate="numpy",
        mistake="gates loaded in the order z, r, n for r, z, n",
        source="keras-team/keras#8720",
        phase="weights",
        site="gru.backwards.weight_ih",
        inject=alter("gru.backwards", numpy_gates("zrn")),
        keep_weights=True,
    ),
    gru(
        name="gru-numpy-second-bias-outside",
        candidate="numpy",
        mistake="the reset gate leaves out the second bias",
        source="onnx/keras-onnx#103",
        phase="forward",
        site="gru",
        inject=change("gru.backwards", step=second_bias_outside),
    ),
    gru(
        name="gru-numpy-update-gate-reversed",
        candidate="numpy",
        mistake="z · n + (1 - z) · h for (1 - z) · n + z · h",
        source="",
        phase="forward",
        site="gru",
        inject=change("gru.forwards", step=update_gate_reversed),
    ),
    gru(
        name="gru-numpy-reset-gate-backward",
        candidate="numpy",
        mistake="backward forgets the reset gate in front of the recurrent product",
        source="",
        phase="backward",
        site="gru",
        inject=change("gru.forwards", step_backward=reset_gate_forgotten_backward),
    ),
    gru(
        name="gru-keras-gates-rzh",
        candidate="keras",
        mistake="gates loaded in the order r, z, h for z, r, h",
        source="keras-team/keras#8720",
        phase="weights",
        site="gru/forward_gru/gru_cell/kernel",
        inject=alter("gru/forward_layer", keras_gates("zrn", "rzn")),
        keep_weights=True,
    ),
    gru(
        name="gru-keras-reset-before",
        candidate="keras",
        mistake="the reset gate acts before the matrix product",
        source="apple/coremltools#1124",
        phase="forward",
        site="gru",
        inject=alter("gru/backward_layer", keras_reset_before),
    ),
    gru(
        name="gru-jax-reset-before",
        candidate="jax",
        mistake="the reset gate acts before the matrix product",
        source="apple/coremltools#1124",
        phase="forward",
        site="gru",
        inject=change("gru.backward", update=jax_reset_before),
    ),
    gru(
        name="gru-jax-gates-zrn",
        candidate="jax",
        mistake="gates read in the order z, r, n for r, z, n",
        source="keras-team/keras#8720",
        phase="forward",
        site="gru",
        inject=change("gru.forward", update=jax_gates_swapped),
    ),
    gru(
        name="gru-jax-not-flipped-back",
        candidate="jax",
        mistake="what reads backwards gives its states in that order",
        source="keras-team/keras#3163",
        phase="forward",
        site="gru",
        inject=change("gru.backward", __call__=jax_order_of_reading),
    ),
    gru(
        name="gru-jax-state-detached",
        candidate="jax",
        mistake="no gradient passes through the recurrent product",
        source="paiml/aprender#3034",
        phase="backward",
        site="gru",
        inject=change("gru.forward", update=jax_state_detached),
    ),
)
