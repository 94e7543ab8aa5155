"""Keras 3 on TensorFlow: functional, Sequential and subclassed models, tapped at the layer call.

For the time of a run ``keras.layers.Layer.__call__`` is patched; it acts on the layers of this
model and lets all others through. A tap is a ``tf.custom_gradient``: forward the identity (or the
replacement), backward it shows the cotangent. Every layer call taps its inputs through nodes of
their own, so that the cotangent seen there is that layer's own VJP. Everything runs eagerly, or
the values inside a ``tf.function`` would stay out of sight.

A passive run has no nodes: there the tape is asked for the cotangents of the activations as such.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np

from crosscheck.adapters.base import (
    Adapter,
    Capabilities,
    CotangentSource,
    Parameter,
    call_arguments,
    guarded,
    input_site,
)
from crosscheck.adapters.keras_parameters import Layers, describe, discover, variables
from crosscheck.adapters.keras_state import in_float64, left_as_found, with_values
from crosscheck.errors import InvalidArgument, capped
from crosscheck.structure import leaves, replace_leaves
from crosscheck.taps import COTANGENT_OF, Kind, Observer, Session, active_session
from crosscheck.trace import RunInfo

if keras.config.backend() == "tensorflow":  # else `find` says what to do
    import tensorflow as tf
    from tensorflow.python.eager import record

__all__ = ["KerasAdapter", "find"]


def _is_tensor(value: Any) -> bool:
    """A tensor with a value that has a NumPy dtype (not symbolic, not strings)."""
    return (
        tf.is_tensor(value)
        and isinstance(value, tf.Tensor)
        and hasattr(value, "numpy")
        and (value.dtype.is_floating or value.dtype.is_integer or value.dtype.is_bool)
    )


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, keras.KerasTensor):
        return True
    return isinstance(value, tf.Tensor) and not hasattr(value, "numpy")


def _dense(gradient: Any) -> np.ndarray:
    """``gradient`` on the host; IndexedSlices (of a gather) become the array they stand for."""
    array: np.ndarray = tf.convert_to_tensor(gradient).numpy()
    return array


def _tensor(array: np.ndarray) -> Any:
    # A copy: TensorFlow may use the memory of a NumPy array as its own.
    return tf.convert_to_tensor(np.array(array, order="C"))


def _is_watched(value: Any) -> bool:
    """Whether a tape that is recording now follows ``value``, so that a cotangent can come."""
    return value.dtype.is_floating and bool(record.should_record_backprop([value]))


class _KerasSession(Session):
    """Taps on eager tensors. Nodes hold site names and this session, never an activation; a
    passive run keeps the activations until its backward pass has asked the tape about them."""

    def __init__(
        self, observer: Observer, *, separator: str, root: str, passive: bool = False
    ) -> None:
        super().__init__(observer, separator=separator, root=root, passive=passive)
        self.watched: list[tuple[str, Any]] = []  # (site, activation) of a passive run

    def tap(self, name: str, value: Any) -> Any:
        if not _is_tensor(value):  # symbolic: a layer works out its shapes
            return value
        return super().tap(name, value)

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
            tapped = self._node(site, kind, value, replacement)
        elif replacement is not None:
            tapped = _tensor(replacement)
        else:
            return value
        mask = getattr(value, "_keras_mask", None)
        if mask is not None:
            tapped._keras_mask = mask
        return tapped

    def _node(self, site: str, kind: Kind, value: Any, replacement: np.ndarray | None) -> Any:
        """Forward: the replacement, or the identity. Backward: shows, and may replace."""

        def gradient(cotangent: Any) -> Any:
            answer = self.observe(site, COTANGENT_OF[kind], _dense(cotangent))
            return cotangent if answer is None else _tensor(answer)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def node(x: Any) -> Any:
            return (x if replacement is None else _tensor(replacement)), gradient

        return node(value)


class _Calls:
    """The patched layer call of one run."""

    def __init__(self, session: _KerasSession, layers: Layers) -> None:
        self.session = session
        self.outputs: list[tuple[str, Any]] = []
        self._root = layers[""]
        self._paths = {id(layer): path or session.root for path, layer in layers.items()}

    @contextmanager
    def patched(self) -> Iterator[None]:
        original = keras.layers.Layer.__call__

        def call(layer: keras.layers.Layer, /, *args: Any, **kwargs: Any) -> Any:
            # Other threads and layers pass; so does a call that only works out shapes.
            if (
                id(layer) not in self._paths
                or active_session() is not self.session
                or leaves((args, kwargs), _is_symbolic)
            ):
                return original(layer, *args, **kwargs)
            return self._call(original, layer, args, kwargs)

        keras.layers.Layer.__call__ = call
        try:
            yield
        finally:
            keras.layers.Layer.__call__ = original

    def _call(self, original: Any, layer: Any, args: Any, kwargs: Any) -> Any:
        session = self.session
        site = session.begin(self._paths[id(layer)], type(layer).__name__)

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
            if layer is self._root:
                self.outputs.append((site + suffix, tapped))
            return tapped

        if layer is not self._root:  # the model's own inputs are sites already
            args, kwargs = replace_leaves((args, kwargs), _is_tensor, tap_input)
        output = original(layer, *args, **kwargs)
        while session.current != site:  # the model caught what one of its layers raised
            session.end()
        session.end()
        return replace_leaves(output, _is_tensor, tap_output)


class KerasAdapter(Adapter):
    """A Keras 3 layer or model on TensorFlow, on the CPU."""

    framework = "keras"
    separator = "/"

    def __init__(self, model: keras.layers.Layer) -> None:
        self.model = model
        self.version = f"{keras.__version__} (tensorflow {tf.__version__})"
        quantized = any(layer.quantization_mode for layer in discover(model).values())
        self.capabilities = Capabilities(float64=not quantized)

    def parameters(self) -> tuple[Parameter, ...]:
        return describe(self._layers())

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        known = {name: variable for name, _, _, variable in variables(self._layers())}
        for name, array in values.items():
            expected = tuple(known[name].shape)
            if expected != array.shape:
                raise ValueError(f"{name}: shape {array.shape}, expected {expected}")
            known[name].assign(np.asarray(array))

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        cotangents: CotangentSource | None = None,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        train: bool = False,
        seed: int = 0,
        passive: bool = False,
    ) -> RunInfo:
        layers = self._layers()
        taken = any(path.partition("/")[0] == "output" for path in layers)
        root = "model_output" if taken else "output"
        session = _KerasSession(observer, separator=self.separator, root=root, passive=passive)
        calls = _Calls(session, layers)
        with ExitStack() as stack:
            stack.enter_context(left_as_found(layers, seed=seed))
            stack.enter_context(with_values(layers, overrides or {}, float64=float64))
            if float64:
                stack.enter_context(in_float64(layers))
            stack.enter_context(calls.patched())
            stack.enter_context(tf.device("CPU:0"))
            fed = {name: _feed(array, float64=float64) for name, array in inputs.items()}
            tape = self._forward(session, layers, fed, train=train, record=cotangents is not None)
            gradients: dict[str, np.ndarray] = {}
            if cotangents is not None:
                wanted = cotangents({site: t.numpy() for site, t in calls.outputs})
                with guarded(session, "backward"):
                    gradients = _backward(session, tape, calls.outputs, wanted, layers, fed)
                session.flush()
            buffers = {p.name: np.array(p.value) for p in describe(layers) if p.buffer}
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(site for site, _ in calls.outputs),
            parameter_gradients=gradients,
            buffers=buffers if train else None,
        )

    def _layers(self) -> Layers:
        """The model's layers, once it is built: before that it has neither all nor weights."""
        layers = discover(self.model)
        unbuilt = [path for path, layer in layers.items() if path and not layer.built]
        # A model without a `build` of its own calls itself built before it was ever called;
        # one that was called may still own layers that nobody uses.
        called = getattr(self.model, "_called", False)
        if not self.model.built or (unbuilt and not called):
            which = f" (no weights yet in {capped(unbuilt)})" if unbuilt else ""
            raise InvalidArgument(
                f"the keras model `{self.model.name}` is not built{which}.\n"
                "  Fix: call it once on data of the right shape, model(x), before the check."
            )
        return layers

    def _forward(
        self,
        session: _KerasSession,
        layers: Layers,
        fed: Mapping[str, Any],
        *,
        train: bool,
        record: bool,
    ) -> Any:
        """Run forward; gives the tape of it."""
        tape = tf.GradientTape(watch_accessed_variables=False)
        with ExitStack() as stack:
            stack.enter_context(session.active())
            if record:
                stack.enter_context(tape)
                for source in _sources(layers, fed):
                    tape.watch(source)
            tapped = {name: _tap_input(session, name, t) for name, t in fed.items()}
            args, kwargs = _arguments(self.model, tapped)
            with guarded(session, "forward"):
                self.model(*args, training=train, **kwargs)
        return tape


def _tap_input(session: _KerasSession, name: str, tensor: Any) -> Any:
    site = input_site(name)
    session.layers[site] = "input"
    tapped = session.tap_value(site, "activation", tensor)
    session.produced(tapped, site)
    return tapped


def _feed(array: np.ndarray, *, float64: bool) -> Any:
    tensor = _tensor(array)
    return tf.cast(tensor, tf.float64) if float64 and tensor.dtype.is_floating else tensor


def _trainable(layers: Layers) -> dict[str, Any]:
    return {name: v._value for name, _, _, v in variables(layers) if v.trainable}


def _sources(layers: Layers, fed: Mapping[str, Any]) -> list[Any]:
    """What the tape starts from: the trainable variables and the floating-point inputs."""
    return [*_trainable(layers).values(), *(t for t in fed.values() if t.dtype.is_floating)]


def _backward(
    session: _KerasSession,
    tape: Any,
    outputs: list[tuple[str, Any]],
    cotangents: Mapping[str, np.ndarray],
    layers: Layers,
    fed: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    roots = [(t, cotangents[s]) for s, t in outputs if s in cotangents and t.dtype.is_floating]
    own = _sources(layers, fed)
    sources = [*own, *(tensor for _, tensor in session.watched)]
    found: list[Any] = [None] * len(sources)
    if roots and sources:
        found = tape.gradient(
            [t for t, _ in roots],
            sources,
            output_gradients=[_tensor(np.asarray(c, t.dtype.as_numpy_dtype)) for t, c in roots],
        )
    for (site, _), cotangent in reversed(
        list(zip(session.watched, found[len(own) :], strict=True))
    ):
        if cotangent is not None:
            session.observe(site, "cotangent", _dense(cotangent))
    return {
        name: np.zeros(tuple(v.shape), v.dtype.as_numpy_dtype) if g is None else _dense(g)
        for (name, v), g in zip(_trainable(layers).items(), found, strict=False)
    }


def _arguments(
    model: keras.layers.Layer, inputs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """How this model takes its inputs: as its `Input`s are nested, or as its `call` names them."""
    struct = getattr(model, "_inputs_struct", None)
    if struct is not None:
        if isinstance(struct, Mapping) and set(struct) == set(inputs):
            return [{key: inputs[key] for key in struct}], {}
        names = [t.name for t in keras.tree.flatten(struct)]
        if len(names) != len(inputs):
            raise InvalidArgument(
                f"the keras model `{model.name}` takes {len(names)} inputs ({capped(names)}), "
                f"not {len(inputs)} ({capped(inputs)})"
            )
        by_name = set(names) == set(inputs)
        flat = [inputs[n] for n in names] if by_name else list(inputs.values())
        return [keras.tree.pack_sequence_as(struct, flat)], {}
    if len(inputs) > 1 and _takes_one(model.call):
        # `call(self, inputs)` with several inputs: nested as they were when the model was built.
        shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
        if len(shapes) == 1 and isinstance(shapes[0], (list, tuple)):
            return [type(shapes[0])(inputs.values())], {}
        return [dict(inputs)], {}
    return call_arguments(model.call, inputs)


def _takes_one(call: Any) -> bool:
    """Whether ``call`` has one argument for all its inputs."""
    parameters = inspect.signature(call).parameters.values()
    positional = [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in ("training", "mask")
    ]
    return len(positional) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)


def find(model: Any) -> KerasAdapter | None:
    """An adapter if ``model`` is a Keras 3 layer or model, else None."""
    if not isinstance(model, keras.layers.Layer):
        return None
    backend = keras.config.backend()
    if backend != "tensorflow":
        raise InvalidArgument(
            f"the keras model `{model.name}` runs on the {backend} backend; only TensorFlow is "
            "supported.\n  Fix: set KERAS_BACKEND=tensorflow before keras is imported."
        )
    return KerasAdapter(model)
