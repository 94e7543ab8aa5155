"""Defects of the bidirectional LSTM.

A defect without a source was made up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from models.defects.base import Defect, alter, change
from models.scratch import LSTM, Array, Bidirectional, LastStates


def columns(order: str, wanted: str, hidden: int) -> np.ndarray:
    """Which columns to take so that gates that lie in ``order`` lie as ``wanted``."""
    return np.concatenate([order.index(g) * hidden + np.arange(hidden) for g in wanted])


def numpy_gates(wanted: str) -> Callable[[Any], None]:
    def reorder(layer: Any) -> None:
        take = columns(layer.gates, wanted, layer.hidden)
        for name, value in layer.params.items():
            layer.params[name] = value[..., take].copy()

    return reorder


def keras_gates(order: str, wanted: str) -> Callable[[Any], None]:
    def reorder(layer: Any) -> None:
        take = columns(order, wanted, layer.units)
        for variable in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias):
            variable.assign(variable.numpy()[..., take])

    return reorder


def jax_gates(cell: Any) -> None:
    """The gates i, f, g, o in the order i, o, f, g."""
    take = columns("ifgo", "iofg", 7)
    for layer in (cell.dense_i, cell.dense_h):
        layer.kernel[...] = layer.kernel[...][:, take]
    cell.dense_h.bias[...] = cell.dense_h.bias[...][take]


def without_second_bias(layer: Any) -> None:
    layer.params["bias_hh"] = np.zeros_like(layer.params["bias_hh"])


def second_bias_twice(self: LSTM, projected: Array, recurrent: Array, state: Any) -> Any:
    return LSTM.step(self, projected, recurrent + self.params["bias_hh"], state)


def forget_bias_of_one(self: LSTM, projected: Array, recurrent: Array, state: Any) -> Any:
    one = np.zeros_like(recurrent)
    one[:, self.hidden : 2 * self.hidden] = 1
    return LSTM.step(self, projected, recurrent + one, state)


def cell_state_not_passed_on(self: LSTM, dstate: Any, kept: Any) -> Any:
    dprojected, drecurrent, (dh, dc) = LSTM.step_backward(self, dstate, kept)
    return dprojected, drecurrent, (dh, np.zeros_like(dc))


def not_flipped_back(self: Bidirectional, x: Array) -> Array:
    ahead, back = self.forwards.forward(x), self.backwards.forward(x)
    return np.concatenate([ahead, back[:, ::-1]], axis=-1)


def not_flipped_back_backward(self: Bidirectional, dy: Array) -> Array:
    ahead, back = np.split(dy, 2, axis=-1)
    return self.backwards.backward(back[:, ::-1]) + self.forwards.backward(ahead)


def last_step_of_both(self: LastStates, y: Array) -> Array:
    self._shape = y.shape
    return y[:, -1]


def keras_not_flipped_back(self: Any, x: Any, **_: Any) -> Any:
    from keras import ops

    return ops.concatenate([self.forward_layer(x), self.backward_layer(x)], axis=-1)


def keras_hard_sigmoid(layer: Any) -> None:
    """x/5 + 1/2, clipped: the recurrent activation of Keras 2."""
    from keras import ops

    layer.cell.recurrent_activation = lambda x: ops.clip(0.2 * x + 0.5, 0, 1)


def keras_last_step(self: Any, y: Any) -> Any:
    return y[:, -1]


def jax_not_flipped_back(self: Any, x: Any) -> Any:
    """What reads backwards gives its states in the order in which it read."""
    return type(self).__base__.__call__(self, x)[:, ::-1]


def jax_detached(self: Any, y: Any) -> Any:
    import jax

    half = y.shape[-1] // 2
    return type(self).__base__.__call__(
        self, y.at[:, 0, half:].set(jax.lax.stop_gradient(y)[:, 0, half:])
    )


lstm = functools.partial(Defect, family="lstm")

DEFECTS: tuple[Defect, ...] = (
    lstm(
        name="lstm-numpy-gates-iofg",
        candidate="numpy",
        mistake="gates loaded in the order i, o, f, g for i, f, g, o",
        source="CrispASR#106",
        phase="weights",
        site="lstm.forwards.weight_ih",
        inject=alter("lstm.forwards", numpy_gates("iofg")),
        keep_weights=True,
    ),
    lstm(
        name="lstm-numpy-second-bias-missing",
        candidate="numpy",
        mistake="the recurrent bias is not loaded",
        source="onnx/keras-onnx#103",
        phase="weights",
        site="lstm.backwards.bias_hh",
        inject=alter("lstm.backwards", without_second_bias),
        keep_weights=True,
    ),
    lstm(
        name="lstm-numpy-second-bias-twice",
        candidate="numpy",
        mistake="the recurrent bias is added twice",
        source="onnx/keras-onnx#103",
        phase="forward",
        site="lstm",
        inject=change("lstm.forwards", step=second_bias_twice),
    ),
    lstm(
        name="lstm-numpy-forget-bias-of-one",
        candidate="numpy",
        mistake="one is added to the forget gate, as at initialisation in Keras",
        source="",
        phase="forward",
        site="lstm",
        inject=change("lstm.backwards", step=forget_bias_of_one),
    ),
    lstm(
        name="lstm-numpy-not-flipped-back",
        candidate="numpy",
        mistake="what reads backwards gives its states in that order",
        source="keras-team/keras#3163",
        phase="forward",
        site="lstm",
        inject=change("lstm", forward=not_flipped_back, backward=not_flipped_back_backward),
    ),
    lstm(
        name="lstm-numpy-last-step-of-both",
        candidate="numpy",
        mistake="of the backward half, too, the state at the last step is taken",
        source="",
        phase="forward",
        site="last",
        inject=change("last", forward=last_step_of_both),
    ),
    lstm(
        name="lstm-numpy-cell-state-cut",
        candidate="numpy",
        mistake="no gradient passes from a cell state to the one before",
        source="paiml/aprender#3034",
        phase="backward",
        site="lstm",
        inject=change("lstm.forwards", step_backward=cell_state_not_passed_on),
    ),
    lstm(
        name="lstm-keras-gates-iofg",
        candidate="keras",
        mistake="gates loaded in the order i, o, f, c for i, f, c, o",
        source="CrispASR#106",
        phase="weights",
        site="lstm/forward_lstm/lstm_cell/kernel",
        inject=alter("lstm/forward_layer", keras_gates("ifgo", "iofg")),
        keep_weights=True,
    ),
    lstm(
        name="lstm-keras-not-flipped-back",
        candidate="keras",
        mistake="what reads backwards gives its states in that order",
        source="keras-team/keras#3163",
        phase="forward",
        site="lstm",
        inject=change("lstm", call=keras_not_flipped_back),
    ),
    lstm(
        name="lstm-keras-hard-sigmoid",
        candidate="keras",
        mistake="gates by the piecewise linear sigmoid of Keras 2",
        source="pytorch/pytorch#34545",
        phase="forward",
        site="lstm",
        inject=alter("lstm/backward_layer", keras_hard_sigmoid),
    ),
    lstm(
        name="lstm-keras-last-step-of-both",
        candidate="keras",
        mistake="of the backward half, too, the state at the last step is taken",
        source="",
        phase="forward",
        site="last",
        inject=change("last", call=keras_last_step),
    ),
    lstm(
        name="lstm-jax-gates-iofg",
        candidate="jax",
        mistake="gates loaded in the order i, o, f, g for i, f, g, o",
        source="CrispASR#106",
        phase="weights",
        site="lstm.forward.cell.dense_i.kernel",
        inject=alter("lstm.forward.cell", jax_gates),
        keep_weights=True,
    ),
    lstm(
        name="lstm-jax-not-flipped-back",
        candidate="jax",
        mistake="what reads backwards gives its states in that order",
        source="keras-team/keras#3163",
        phase="forward",
        site="lstm",
        inject=change("lstm.backward", __call__=jax_not_flipped_back),
    ),
    lstm(
        name="lstm-jax-backward-half-detached",
        candidate="jax",
        mistake="no gradient reaches the last state of the backward half",
        source="paiml/aprender#3034",
        phase="backward",
        site="last",
        inject=change("last", __call__=jax_detached),
    ),
)
