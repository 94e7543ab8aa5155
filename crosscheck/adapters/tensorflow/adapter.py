"""Plain TensorFlow: ``tf.Module`` objects, functions of tensors, SavedModels.

The calls of a module's submodules are sites, and whatever the code taps itself. No value can leave
a graph while it runs, so for the time of a run every ``tf.function`` is executed eagerly. It is the
compiled function that is to be judged, though: a passive run evaluates that as well, and a model
whose outputs or gradients are others when it is compiled is refused. (With ``eager=False``, and for
a SavedModel, which has no Python code to execute, the graph itself runs and its ends are seen.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from crosscheck.errors import CannotCompare, InvalidArgument, MissingFramework, capped

try:
    import tensorflow as tf
except ModuleNotFoundError as missing:
    raise MissingFramework("tensorflow", needed_for="running a SavedModel") from missing

from crosscheck.adapters.base import (
    Adapter,
    Capabilities,
    CotangentSource,
    Parameter,
    guarded,
    input_site,
)
from crosscheck.adapters.tensorflow.device import on_device, place_of, require_device
from crosscheck.adapters.tensorflow.parameters import Found, Slot
from crosscheck.adapters.tensorflow.program import (
    Program,
    is_function,
    owner_of,
    patched_modules,
    require_variables,
    used_by,
)
from crosscheck.adapters.tensorflow.saved import SavedProgram, is_loaded, is_saved
from crosscheck.adapters.tensorflow.state import (
    calls_of_functions,
    exact_and_eager,
    in_float64,
    kept,
    random_states,
    with_values,
)
from crosscheck.adapters.tensorflow.taps import (
    TensorFlowSession,
    cotangents_on,
    dense_gradient,
    feed,
    gradients,
    is_tensor,
    observe_outputs,
    show_watched,
    tap_model_input,
)
from crosscheck.structure import leaves
from crosscheck.taps import Observer
from crosscheck.trace import RunInfo

__all__ = ["TensorFlowAdapter", "find"]

SAME = 512  # unit roundoffs that a compiled function may lie from its eager run


@dataclass
class _Forward:
    """One evaluation.

    Attributes:
        inputs: the floating-point ones.
        output: what the model returned.
        gradients: by parameter, after the backward pass.
    """

    inputs: list[Any]
    output: Any
    tape: Any
    buffers: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray] = field(default_factory=dict)


class TensorFlowAdapter(Adapter):
    """A plain TensorFlow model, on the CPU or on a CUDA device."""

    framework = "tensorflow"
    separator = "/"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.version = tf.__version__
        # A Keras layer casts its inputs to its own precision.
        wide = not program.graph and not program.found().keras
        self.capabilities = Capabilities(float64=wide, cuda=True, train=not program.graph)
        self._functions: list[str] = []
        self._apart: float | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        if not self._functions:
            return self.program.notes
        note = f"{capped(self._functions)} (tf.function) ran eagerly to be seen inside; "
        if self._apart is None:
            note += "not compared with the compiled function in train mode"
        else:
            note += f"the compiled function gives the same within {self._apart:.2g} (relative)"
        return (*self.program.notes, note)

    def declared(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int | None, ...]]:
        return self.program.declared(inputs)

    def use(self, device: str) -> None:
        place_of(device)
        self.device = device

    def parameters(self) -> tuple[Parameter, ...]:
        return self.program.found().parameters()

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        known = {slot.name: slot.variable for slot in self.program.found().floating()}
        for name, array in values.items():
            expected = tuple(known[name].shape)
            if expected != array.shape:
                raise ValueError(f"{name}: shape {array.shape}, expected {expected}")
            known[name].assign(np.asarray(array).astype(known[name].dtype.as_numpy_dtype))

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
        found = self.program.found()
        taken = any(path.partition("/")[0] == "output" for path in found.modules)
        root = "model_output" if taken else "output"
        session = TensorFlowSession(observer, separator=self.separator, root=root, passive=passive)
        run = _Run(self.program, found, session, train, seed)
        with ExitStack() as stack:
            stack.enter_context(on_device(self.device))
            values = [(s.variable, v) for s, v in _named(found, overrides or {})]
            if float64:
                wide = {id(variable): value for variable, value in values}
                variables = [slot.variable for slot in found.slots]
                stack.enter_context(in_float64(variables, wide, found.modules.values()))
            else:
                stack.enter_context(with_values(values))
            fed = {name: feed(array, float64=float64) for name, array in inputs.items()}
            forward = run.forward(fed, recording=cotangents is not None)
            outputs = observe_outputs(session, forward.tape, forward.output)
            require_device(outputs, self.device)
            sent: list[Any] = [None] * len(outputs)
            if cotangents is not None:
                wanted = cotangents({site: t.numpy() for site, t in outputs})
                sent = cotangents_on(session, outputs, wanted)
                run.backward(forward, sent)
            if passive and run.functions and not float64:
                self._functions = run.functions
                self._apart = None if train else run.distance(forward, run.compiled(fed, sent))
        return RunInfo.of(
            session,
            inputs=tuple(input_site(name) for name in inputs),
            outputs=tuple(site for site, _ in outputs),
            parameter_gradients=forward.gradients if cotangents is not None else None,
            buffers=forward.buffers if train else None,
        )


def _named(found: Found, overrides: Mapping[str, np.ndarray]) -> list[tuple[Slot, np.ndarray]]:
    known = {slot.name: slot for slot in found.floating()}
    return [(known[name], value) for name, value in overrides.items()]


@dataclass
class _Run:
    """One run in progress."""

    program: Program
    found: Found
    session: TensorFlowSession
    train: bool
    seed: int

    def __post_init__(self) -> None:
        self.functions: list[str] = []
        self._trainable = [slot for slot in self.found.floating() if slot.variable.trainable]

    def forward(self, fed: Mapping[str, Any], *, recording: bool) -> _Forward:
        """Evaluate with taps. An eager run is recorded in any case, to see what it uses; some
        graphs (XLA loops) run only where nobody records."""
        session, tape, inputs = self.session, tf.GradientTape(), _floating(fed)
        with ExitStack() as stack:
            stack.enter_context(self._anew(eager=not self.program.graph))
            stack.enter_context(calls_of_functions(self.functions))
            stack.enter_context(self._tapping())
            if recording or not self.program.graph:
                stack.enter_context(tape)
                tape.watch(inputs)
            tapped = {n: tap_model_input(session, input_site(n), t) for n, t in fed.items()}
            session.begin(session.root, self.program.layer)
            with guarded(session, "forward"):
                output = self.program.call(tapped, train=self.train)
            while session.current is not None:
                session.end()
            buffers = self._buffers()
        self._require_known(tape)
        return _Forward(inputs, output, tape, buffers)

    def compiled(self, fed: Mapping[str, Any], sent: list[Any]) -> _Forward:
        """Evaluate as the user has it, forward and backward, from the same state."""
        tape, inputs = tf.GradientTape(), _floating(fed)
        with self._anew(eager=False), guarded(self.session, "forward"):
            with ExitStack() as stack:
                if any(cotangent is not None for cotangent in sent):
                    stack.enter_context(tape)
                    tape.watch(inputs)
                output = self.program.call(fed, train=self.train)
            result = _Forward(inputs, output, tape, {})
            variables = [slot.variable for slot in self._trainable]
            self._keep(result, gradients(tape, _tensors(output), sent, variables))
        self._require_known(tape)
        return result

    def distance(self, eager: _Forward, compiled: _Forward) -> float:
        """How far, relatively, the two lie apart: the worst output, or all gradients together.

        Raises:
            CannotCompare: further than rounding explains.
        """
        ours, theirs = (
            [t.numpy() for t in _tensors(forward.output)] for forward in (compiled, eager)
        )
        pairs = list(zip(ours, theirs, strict=True))
        flat = [
            np.concatenate([np.ravel(forward.gradients[name]) for name in eager.gradients])
            if eager.gradients
            else np.zeros(0)
            for forward in (compiled, eager)
        ]
        apart = max((_apart(a, b) for a, b in [*pairs, (flat[0], flat[1])]), default=0.0)
        units = [_unit(b) for b in theirs]
        if not apart <= SAME * max(units, default=0.0):
            raise CannotCompare(
                f"{capped(self.functions)} (tf.function) gives something else compiled than run "
                f"eagerly: {apart:.2g} apart (relative), and only an eager run can be seen inside."
                "\n  Fix: adapt(model, eager=False) judges the compiled function at its ends; or "
                "look for what depends on tracing (Python values, print-like effects, random "
                "numbers without a seed)"
            )
        return apart

    @contextmanager
    def _tapping(self) -> Iterator[None]:
        root = self.found.modules.get("")
        with patched_modules(self.session, self.found, root), self.session.active():
            yield

    @contextmanager
    def _anew(self, *, eager: bool) -> Iterator[None]:
        """Every evaluation begins with the same values and seeds, and leaves none behind."""
        with (
            exact_and_eager(eager=eager),
            random_states(self.seed),
            kept(slot.variable for slot in self.found.slots),
        ):
            yield

    def _buffers(self) -> dict[str, np.ndarray]:
        return {p.name: np.array(p.value) for p in self.found.parameters() if p.buffer}

    def _require_known(self, tape: Any) -> None:
        """Refuse a model that uses variables which nobody told us of: they would be neither
        transferred nor compared."""
        known = {id(slot.variable) for slot in self.found.slots}
        unknown = [v.name for v in tape.watched_variables() if id(v) not in known]
        if unknown:
            raise InvalidArgument(
                f"the TensorFlow {self.program.layer} uses variables that it does not hold, or "
                f"made just now: {capped(unknown)}.\n  Fix: call the model once before the check "
                "if it makes its variables then; else adapt(function, variables=[...])"
            )

    def backward(self, forward: _Forward, sent: list[Any]) -> None:
        """Send the cotangents back."""
        session = self.session
        session.turned = True
        variables = [slot.variable for slot in self._trainable]
        sources = [*variables, *forward.inputs, *(t for _, t in session.watched)]
        with (
            guarded(session, "backward"),
            self._tapping(),
            exact_and_eager(eager=not self.program.graph),
        ):
            found = gradients(forward.tape, _tensors(forward.output), sent, sources)
        show_watched(session, found[len(variables) + len(forward.inputs) :])
        session.flush()
        self._keep(forward, found)

    def _keep(self, forward: _Forward, found: list[Any]) -> None:
        forward.gradients = {
            slot.name: dense_gradient(slot.variable, gradient)
            for slot, gradient in zip(self._trainable, found, strict=False)
        }


def _floating(fed: Mapping[str, Any]) -> list[Any]:
    return [tensor for tensor in fed.values() if tensor.dtype.is_floating]


def _tensors(output: Any) -> list[Any]:
    return [tensor for _, tensor in leaves(output, is_tensor)]


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The relative distance in the norm; NaN where one is NaN and the other is not."""
    a, b = (np.asarray(array, np.float64).ravel() for array in (ours, theirs))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    scale = float(np.linalg.norm(b[np.isfinite(b)])) or 1.0
    return float(np.linalg.norm(np.where(same, 0.0, a - b)) / scale)


def _unit(array: np.ndarray) -> float:
    """Unit roundoff of its dtype; none for integers, which must be equal."""
    floating = array.dtype.kind in "fV"
    return float(ml_dtypes.finfo(array.dtype).eps) / 2 if floating else 0.0


def find(
    model: Any, *, variables: Any = None, signature: str | None = None, eager: bool = True
) -> Adapter | None:
    """An adapter if ``model`` is a plain TensorFlow model, else None.

    Args:
        model: a ``tf.Module`` with ``__call__`` or a method of one; a ``tf.function``; a Python
            function of tensors, with ``variables``; what ``tf.saved_model.load`` gives, or the
            path of a SavedModel.
        variables: the ``tf.Variable`` and ``tf.Module`` objects that a function uses: a list, or a
            dict of names. Left out, those are taken that its code refers to by name.
        signature: which one of a SavedModel to run.
        eager: False: run every ``tf.function`` as compiled, and see only what lies outside of it.

    Raises:
        InvalidArgument: a module that cannot be called; ``variables`` that are none.
    """
    if is_saved(model) or is_loaded(model):
        return TensorFlowAdapter(SavedProgram(model, signature))
    if signature is not None or isinstance(model, type):
        return None
    if isinstance(model, tf.Module):
        if not callable(model):
            raise InvalidArgument(
                f"the tf.Module {type(model).__name__} has no __call__.\n"
                "  Fix: give the method that computes it, adapt(module.method)"
            )
        return TensorFlowAdapter(Program(model.__call__, model, eager=eager))
    if not callable(model):
        return None
    given = _held_by(model, variables)
    return None if given is None else TensorFlowAdapter(Program(model, given, eager=eager))


def _held_by(function: Any, variables: Any) -> Any:
    """What a function computes with; None where it is none of ours."""
    ours = is_function(function)
    if variables is not None:
        values = variables.values() if isinstance(variables, Mapping) else variables
        several = isinstance(variables, (list, tuple, Mapping))
        claims = ours or (several and all(isinstance(v, (tf.Variable, tf.Module)) for v in values))
        if claims:
            require_variables(variables)
        return variables if claims else None
    owner = owner_of(function)
    if owner is not None:
        return owner
    used = used_by(function)
    return used if used or ours else None
