"""Taps on eager TensorFlow tensors, and the gradients that flow back through them.

A tap is a ``tf.custom_gradient``: forward the identity (or the replacement), backward it shows the
cotangent. A passive run has no nodes: there the tape is asked for the cotangents of the activations
as such. Keras models and ``tf.Module`` objects both use this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from crosscheck.errors import CannotCompare
from crosscheck.structure import leaves, replace_leaves
from crosscheck.taps import COTANGENT_OF, Kind, Observer, Session

__all__ = [
    "TensorFlowSession",
    "cotangents_on",
    "dense_gradient",
    "feed",
    "gradients",
    "is_symbolic",
    "is_tensor",
    "observe_outputs",
    "show_watched",
    "tap_model_input",
    "tapped_call",
    "to_host",
    "to_tensor",
]


def is_tensor(value: Any) -> bool:
    """A tensor with a value that has a NumPy dtype (not symbolic, not strings)."""
    return (
        tf.is_tensor(value)
        and isinstance(value, tf.Tensor)
        and hasattr(value, "numpy")
        and (value.dtype.is_floating or value.dtype.is_integer or value.dtype.is_bool)
    )


def is_symbolic(value: Any) -> bool:
    """A tensor inside a graph that is being traced: it has no value."""
    return isinstance(value, tf.Tensor) and not hasattr(value, "numpy")


def to_host(value: Any) -> np.ndarray:
    """``value`` on the host; IndexedSlices (of a gather) become the array they stand for."""
    array: np.ndarray = tf.convert_to_tensor(value).numpy()
    return array


def to_tensor(array: np.ndarray) -> Any:
    """A tensor of its own memory: TensorFlow may use that of a NumPy array as its own."""
    return tf.convert_to_tensor(np.array(array, order="C"))


def feed(array: np.ndarray, *, float64: bool) -> Any:
    """An input of the model; floating-point ones in float64 if that is asked for."""
    tensor = to_tensor(array)
    return tf.cast(tensor, tf.float64) if float64 and tensor.dtype.is_floating else tensor


def _is_watched(value: Any) -> bool:
    """Whether a tape that is recording now follows ``value``, so that a cotangent can come."""
    return value.dtype.is_floating and bool(record.should_record_backprop([value]))


class TensorFlowSession(Session):
    """Taps on eager tensors. Nodes hold site names and this session, never an activation; a
    passive run keeps the activations until its backward pass has asked the tape about them.

    Attributes:
        watched: (site, activation) of a passive run.
        turned: the backward pass has begun.
    """

    def __init__(
        self, observer: Observer, *, separator: str, root: str, passive: bool = False
    ) -> None:
        super().__init__(observer, separator=separator, root=root, passive=passive)
        self.watched: list[tuple[str, Any]] = []
        self.turned = False

    def tap(self, name: str, value: Any) -> Any:
        if not is_tensor(value):  # symbolic: a layer works out its shapes
            return value
        self.require_forward(name)
        return super().tap(name, value)

    def require_forward(self, name: str) -> None:
        """Refuse a value that is computed a second time, for the backward pass.

        Raises:
            CannotCompare: it would not be forced as it was the first time.
        """
        if self.turned:
            raise CannotCompare(
                f"`{name}` is computed once more in the backward pass (tf.recompute_grad), where "
                "it would not be forced as before.\n"
                "  Fix: switch recomputing off for the check; it changes no value"
            )

    def tap_value(self, site: str, kind: Kind, value: Any) -> Any:
        host = value.numpy()
        replacement = self.observe(site, kind, host)
        if replacement is not None and kind == "input" and np.array_equal(replacement, host):
            replacement = None
        if _is_watched(value):
            if self.passive and kind == "input":
                return value
            self.expect_cotangent(site, kind, host)
            # A tensor that is a site already gets a node even so: the cotangents differ.
            if self.passive and self.producer(value) is None:
                self.watched.append((site, value))
                return value
            return self._node(site, kind, value, replacement)
        return value if replacement is None else to_tensor(replacement)

    def _node(self, site: str, kind: Kind, value: Any, replacement: np.ndarray | None) -> Any:
        """Forward: the replacement, or the identity. Backward: shows, and may replace."""

        def gradient(cotangent: Any) -> Any:
            answer = self.observe(site, COTANGENT_OF[kind], to_host(cotangent))
            return cotangent if answer is None else to_tensor(answer)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def node(x: Any) -> Any:
            return (x if replacement is None else to_tensor(replacement)), gradient

        return node(value)


def tapped_call(
    session: TensorFlowSession,
    path: str,
    layer: str,
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the layer at ``path`` with its inputs and outputs tapped. The model itself
    (``session.root``) has none: its inputs and outputs are sites of the run."""
    session.require_forward(path)
    site = session.begin(path, layer)

    def tap_input(suffix: str, tensor: Any) -> Any:
        source = session.producer(tensor)
        tapped = session.tap_value(site + suffix, "input", tensor)
        if source is not None:
            session.sources[site + suffix] = source
            session.produced(tapped, source)  # the same value behind a node
        return tapped

    def tap_output(suffix: str, tensor: Any) -> Any:
        tapped = session.tap_value(site + suffix, "activation", tensor)
        session.produced(tapped, site + suffix)
        return tapped

    is_root = path == session.root
    if not is_root:
        args, kwargs = replace_leaves((args, kwargs), is_tensor, tap_input)
    output = function(*args, **kwargs)
    while session.current != site:  # the model caught what one of its layers raised
        session.end()
    session.end()
    return output if is_root else replace_leaves(output, is_tensor, tap_output)


# -- the model's own ends --------------------------------------------------------------------------


def tap_model_input(session: TensorFlowSession, site: str, tensor: Any) -> Any:
    """Show an input of the model; gives what it is called with."""
    session.layers[site] = "input"
    tapped = session.tap_value(site, "activation", tensor)
    session.produced(tapped, site)
    return tapped


def observe_outputs(session: TensorFlowSession, tape: Any, output: Any) -> list[tuple[str, Any]]:
    """Show what the model returned, as [(site, tensor)]. It takes no nodes: nobody consumes it."""
    found = [(session.root + suffix, tensor) for suffix, tensor in leaves(output, is_tensor)]
    shown = []
    with tape:  # once more, to ask it
        for site, tensor in found:
            host = tensor.numpy()
            answer = session.observe(site, "activation", host)
            if _is_watched(tensor):
                session.expect_cotangent(site, "activation", host)
            shown.append((site, tensor if answer is None else to_tensor(answer)))
    return shown


def cotangents_on(
    session: TensorFlowSession, outputs: Sequence[tuple[str, Any]], wanted: Mapping[str, np.ndarray]
) -> list[Any]:
    """For every output the cotangent that is sent back from it, shown and perhaps replaced; None
    where there is none."""
    sent: list[Any] = []
    for site, tensor in outputs:
        if site not in wanted or not tensor.dtype.is_floating:
            sent.append(None)
            continue
        host = np.asarray(wanted[site], tensor.dtype.as_numpy_dtype)
        answer = session.observe(site, "cotangent", host)
        sent.append(to_tensor(host if answer is None else answer))
    return sent


def gradients(
    tape: Any, outputs: Sequence[Any], sent: Sequence[Any], sources: Sequence[Any]
) -> list[Any]:
    """The gradient of every source; None where none arrives."""
    roots = [(t, c) for t, c in zip(outputs, sent, strict=True) if c is not None]
    if not roots or not sources:
        return [None] * len(sources)
    targets, cotangents = map(list, zip(*roots, strict=True))
    found: list[Any] = tape.gradient(targets, list(sources), output_gradients=cotangents)
    return found


def show_watched(session: TensorFlowSession, cotangents: Sequence[Any]) -> None:
    """Show the cotangents of a passive run's activations, the last activation first."""
    for (site, _), cotangent in reversed(list(zip(session.watched, cotangents, strict=True))):
        if cotangent is not None:
            session.observe(site, "cotangent", to_host(cotangent))


def dense_gradient(variable: Any, gradient: Any) -> np.ndarray:
    """The gradient of a variable as an array; zeros where none has arrived."""
    if gradient is None:
        return np.zeros(tuple(variable.shape), variable.dtype.as_numpy_dtype)
    return to_host(gradient)
