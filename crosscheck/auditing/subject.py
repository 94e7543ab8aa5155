"""What is audited: a model, a batch, a loss, and the runs that the checks share.

Every run goes through the adapter, which leaves the model, its buffers and all random states as
they were; other weights are given to a run as overrides and never written.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from crosscheck.adapters.base import Adapter, Parameter
from crosscheck.arrays import is_float
from crosscheck.auditing.arrays import alike
from crosscheck.auditing.evaluating import ByRuns, Evaluator, Gradients, agree, compiled
from crosscheck.auditing.random_states import random_states_kept
from crosscheck.cotangents import ReferenceCotangents
from crosscheck.errors import CrosscheckError, InvalidArgument
from crosscheck.losses.evaluate import LossValue, evaluate
from crosscheck.losses.sides import SideLoss
from crosscheck.losses.spec import Loss
from crosscheck.losses.targets import Resolved, Targets, resolve
from crosscheck.run import Runner
from crosscheck.trace import Trace

__all__ = ["EXAMPLES", "Arrays", "Evaluated", "Step", "Stepped", "Subject", "matches"]

T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]
Stepped = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # before, after
CLASSES_AT = {"torch": 1}
EXAMPLES = 4  # that are learnt by heart


@dataclass(frozen=True)
class Step:
    """One run, forward and backward.

    Attributes:
        loss: its value; None without a loss.
        gradients: name -> gradient of every trainable parameter.
    """

    trace: Trace
    loss: float | None
    gradients: Arrays

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        return self.trace.outputs()


@dataclass(frozen=True)
class Evaluated:
    """The loss somewhere, with what it is made of.

    Attributes:
        loss: None without one; then the cotangents are seeded numbers.
        gradients: by parameter.
        inputs: gradients by floating-point input.
    """

    loss: float | None
    outputs: Arrays
    gradients: Arrays
    inputs: Arrays


@dataclass
class Subject:
    """A model with everything that its checks may need.

    Attributes:
        loss, targets: None without; then the cotangents are seeded numbers, and checks of the loss
            are skipped.
        step: the caller's own training step, which changes the model; None: one is imagined from
            the gradients.
        optimizer: spec of the optimizer that is used in training, for the size of an update.
        frozen: patterns of parameters that shall not train.
        trains: of the only ones that shall.
        options: of single checks: ``causal``, ``output_range``, ``parameters``, ``trained``.
        stepped: what the caller's step made of the parameters, once it has been looked at.
        apart: whether the model takes a part of the batch, once that has been tried.
    """

    adapter: Adapter
    inputs: dict[str, np.ndarray]
    loss: Loss | None = None
    targets: Targets = None
    seed: int = 0
    step: Callable[[], Any] | None = None
    optimizer: str | None = None
    frozen: Sequence[str] = ()
    trains: Sequence[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    stepped: Stepped | None = None
    apart: bool | None = None
    _kept: dict[tuple[Any, ...], Step] = field(default_factory=dict)
    _evaluators: dict[tuple[Any, ...], Evaluator] = field(default_factory=dict)
    _compiles: bool | None = None

    # -- runs --------------------------------------------------------------------------------------

    def run(
        self,
        *,
        train: bool = False,
        inputs: Arrays | None = None,
        targets: Targets = None,
        overrides: Arrays | None = None,
        float64: bool = False,
        seed: int | None = None,
        backward: bool = True,
    ) -> Step:
        """Run once. The plain run of each mode is made once and kept.

        Args:
            inputs, targets: others than the subject's.
            overrides: parameter name -> value, for this run only.
            seed: of what is random inside the model.
        """
        can = self.adapter.capabilities
        backward, train = backward and can.cotangents, train and can.train
        plain = inputs is None and overrides is None and not float64 and seed is None and backward
        if plain and (train,) in self._kept:
            return self._kept[train,]
        given = self.inputs if inputs is None else dict(inputs)
        wanted = self.targets if targets is None else targets
        source = (
            _LossCotangents(self, wanted, float64) if self.loss else ReferenceCotangents(self.seed)
        )
        runner = Runner(
            "model",
            self.adapter,
            given,
            source if backward else None,
            train,
            self.seed if seed is None else seed,
        )
        trace = runner.record(passive=not float64, float64=float64, overrides=overrides)
        value = source.value if isinstance(source, _LossCotangents) and backward else None
        made = Step(trace, value, trace.info.parameter_gradients)
        if plain:
            self._kept[train,] = made
        return made

    # -- many evaluations --------------------------------------------------------------------------

    def evaluate(
        self,
        values: Arrays,
        *,
        inputs: Arrays | None = None,
        targets: Targets = None,
        float64: bool = False,
        eager: bool = False,
    ) -> Evaluated:
        """Loss and gradients in eval mode, at other values of some parameters.

        Args:
            eager: by a run of the adapter in any case.
        """
        given = self.inputs if inputs is None else inputs
        found: LossValue | None = None

        def cotangents(outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            nonlocal found
            if self.loss is None:
                return ReferenceCotangents(self.seed)(outputs)
            found = self.loss_of(outputs, targets, defined=True, float64=float64)
            return found.gradients

        def made(evaluator: Evaluator) -> Gradients:
            return evaluator.gradients(values, given, cotangents)

        at = self._by(given, float64, made, eager)
        loss = None if found is None else float(found.value)
        return Evaluated(loss, at.outputs, at.parameters, at.inputs)

    def outputs_at(
        self,
        values: Arrays,
        *,
        inputs: Arrays | None = None,
        float64: bool = False,
        eager: bool = False,
    ) -> Arrays:
        """Outputs by site in eval mode, at other values of some parameters."""
        given = self.inputs if inputs is None else inputs
        return self._by(given, float64, lambda evaluator: evaluator.outputs(values, given), eager)

    @property
    def compiles(self) -> bool:
        """Whether evaluations have come from a compiled function."""
        return bool(self._compiles)

    def _by(self, inputs: Arrays, float64: bool, ask: Callable[[Evaluator], T], eager: bool) -> T:
        """What an evaluator answers: a compiled one, or by runs where that cannot."""
        shapes = tuple((k, v.shape, _kind(v, float64)) for k, v in inputs.items())
        known = self._evaluators.get((float64, shapes))
        by_runs = ByRuns(self.adapter, self.seed, float64)
        if eager:
            return ask(by_runs)
        if known is None:
            known = self._evaluator(inputs, float64) or by_runs
            self._evaluators[float64, shapes] = known
        if isinstance(known, ByRuns):
            return ask(known)
        try:
            return ask(known)
        except CrosscheckError:
            raise
        except Exception:  # noqa: BLE001  (a shape that only a run can refuse properly)
            self._evaluators[float64, shapes] = by_runs
            return ask(by_runs)

    def _evaluator(self, inputs: Arrays, float64: bool) -> Evaluator | None:
        """A compiled one that gives what the eager model does."""
        if self._compiles is False or not self.adapter.capabilities.cotangents:
            return None
        sites = self.run().trace.info.outputs
        try:
            with random_states_kept():
                made = compiled(self.adapter, inputs, sites, float64=float64, seed=self.seed)
                if self._compiles is None:
                    self._compiles = made is not None and self._faithful(made, inputs)
        except Exception:  # noqa: BLE001  (what a compiler cannot do; a run will say what is wrong)
            return None
        return made if self._compiles else None

    def _faithful(self, evaluator: Evaluator, inputs: Arrays) -> bool:
        """Whether it gives the eager model's outputs, and the same each time."""
        first, second = (evaluator.outputs({}, inputs) for _ in range(2))
        eager = self.run() if inputs is self.inputs else self.run(inputs=inputs, backward=False)
        return all(alike(v, second[k]) for k, v in first.items()) and agree(first, eager.outputs)

    # -- the loss ----------------------------------------------------------------------------------

    def loss_of(
        self,
        outputs: Arrays,
        targets: Targets = None,
        *,
        defined: bool = False,
        float64: bool = False,
    ) -> LossValue:
        """The loss and its gradients at given outputs.

        Args:
            defined: a named loss by its definition, in the outputs' precision.
            float64: what the caller's own loss computes in.
        """
        assert self.loss is not None
        own = None if self.loss.own is None else self.loss.own.reference
        terms = self.terms(outputs, targets)
        if defined and own is None:
            return evaluate(terms, outputs)
        wanted = self.targets if targets is None else targets
        side = SideLoss("reference", self.adapter, own)
        return side.value(terms, outputs, wanted, float64=float64)

    def terms(self, outputs: Arrays, targets: Targets = None) -> Sequence[Resolved]:
        """The named losses that the loss is the sum of; none of the caller's own."""
        assert self.loss is not None
        if self.loss.own is not None:
            return ()
        wanted = self.targets if targets is None else targets
        at = CLASSES_AT.get(self.adapter.framework, -1)
        return resolve(self.loss, outputs, wanted, classes_at=at)

    def separable(self) -> str:
        """Why the batch cannot be taken apart into examples; empty where it can."""
        if self.options.get("one_example"):
            return "one_example=True: the first axis does not run over examples"
        n = self.batch
        if n < 2:
            return "the batch holds a single example"
        graph = next((k for k, v in self.inputs.items() if v.shape[:2] == (n, n)), None)
        if self.apart is None:
            inputs, targets = self.part(slice(0, min(EXAMPLES, n - 1)))
            try:
                self.evaluate({}, inputs=inputs, targets=targets)
            except CrosscheckError:
                self.apart = False
            else:
                self.apart = True
        if self.apart:
            return ""
        of_graph = f" (`{graph}` relates all of it)" if graph else ""
        return f"the model or its loss does not take a part of the batch{of_graph}"

    def part(self, rows: slice | Sequence[int]) -> tuple[dict[str, np.ndarray], Targets]:
        """Some examples of the batch, with their targets."""
        n = self.batch
        inputs = {k: v[rows] if v.ndim and v.shape[0] == n else v for k, v in self.inputs.items()}

        def some(value: Any) -> Any:
            return value[rows] if value.ndim and value.shape[0] == n else value

        targets: Any = self.targets
        if isinstance(targets, Mapping):
            return inputs, {k: some(v) for k, v in targets.items()}
        return inputs, None if targets is None else some(targets)

    @property
    def batch(self) -> int:
        """Number of examples: the first axis of the first input that has one."""
        return next((v.shape[0] for v in self.inputs.values() if v.ndim), 1)

    # -- parameters --------------------------------------------------------------------------------

    def parameters(self) -> tuple[Parameter, ...]:
        return self.adapter.parameters()

    def trainable(self) -> list[Parameter]:
        """Those that shall train: not buffers, not frozen, neither in the model nor by name."""
        found = [p for p in self.parameters() if p.trainable and not p.buffer]
        if self.trains is not None:
            found = [p for p in found if matches(p.name, self.trains)]
        return [p for p in found if not matches(p.name, self.frozen)]

    def still(self) -> list[Parameter]:
        """Those that shall not: the rest, without buffers."""
        training = {p.name for p in self.trainable()}
        return [p for p in self.parameters() if not p.buffer and p.name not in training]

    def check_patterns(self) -> None:
        """Raise `InvalidArgument` for a pattern that names nothing."""
        names = [p.name for p in self.parameters()]
        for argument, patterns in (("frozen", self.frozen), ("trains", self.trains or ())):
            for pattern in patterns:
                if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                    raise InvalidArgument(
                        f"{argument}: {pattern!r} names no parameter; there are "
                        + ", ".join(f"`{n}`" for n in names[:6])
                        + (f" and {len(names) - 6} more" if len(names) > 6 else "")
                    )

    def noise(self, seed: int, scale: float = 0.3) -> dict[str, np.ndarray]:
        """Every float parameter moved by seeded noise: of ``scale`` times its deviation, at least
        of 0.02; what decides nothing at its initial value may show."""
        rng = np.random.default_rng(seed)
        made = {}
        for p in self.parameters():
            if p.buffer or not is_float(p.value):
                continue
            size = max(scale * float(np.std(p.value.astype(np.float64))), 0.02)
            moved = p.value.astype(np.float64) + size * rng.standard_normal(p.value.shape)
            made[p.name] = moved.astype(p.value.dtype)
        return made


class _LossCotangents:
    """The loss' gradients as the cotangents of the model's outputs."""

    def __init__(self, subject: Subject, targets: Targets, float64: bool) -> None:
        self._subject, self._targets, self.value = subject, targets, 0.0
        self._float64 = float64

    def __call__(self, outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        wide = self._float64
        found = self._subject.loss_of(outputs, self._targets, defined=wide, float64=wide)
        self.value = float(found.value)
        return found.gradients


def _kind(value: np.ndarray, float64: bool) -> str:
    """What an input is to a compiled function, which casts floats to float64 if asked to."""
    return "float64" if float64 and is_float(value) else value.dtype.str


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the shell patterns fits."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
