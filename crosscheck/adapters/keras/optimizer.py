"""Keras' own optimizers, on any backend, on copies of the variables."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from crosscheck.adapters.keras.parameters import variables
from crosscheck.errors import InvalidArgument
from crosscheck.optimizers.rules import Adagrad, Adam, RmsProp, Rule, Sgd

__all__ = ["KerasStepper", "given", "is_native", "made", "named", "originals"]

Arrays = Mapping[str, np.ndarray]
Variables = dict[str, Any]
Make = Callable[[Variables], Any]

_NOTES = {
    "eps": "Keras' Adam adds eps before the bias correction; its epsilon is set at every step so "
    "that it computes the definition. A port that does not do so differs: give it as "
    "optimizer=(reference, keras.optimizers.Adam(...))",
    "lr": "Keras keeps the learning rate inside the velocity; when the rate changes the velocity "
    "is scaled so that it computes the definition. A port that does not do so differs",
}


def is_native(given: Any) -> bool:
    """Whether ``given`` is an optimizer of Keras."""
    return isinstance(given, keras.optimizers.Optimizer)


class KerasStepper:
    """Steps of a Keras optimizer.

    Args:
        make: copies of the variables -> the optimizer.
        originals: the model's own variables, by name, for their constraints.
        rule: of a named optimizer, for what its own does otherwise.
        wide: in float64.
    """

    def __init__(
        self,
        make: Make,
        *,
        originals: Mapping[str, Any],
        device: str,
        wide: bool,
        rule: Rule | None = None,
        exempt: Collection[str] = (),
    ) -> None:
        self._make, self._rule, self._wide = make, rule, wide
        self._originals, self._device, self._exempt = originals, device, exempt
        self._variables: Variables = {}
        self._t = 0
        self.notes: tuple[str, ...] = ()

    def step(self, values: Arrays, gradients: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """See `crosscheck.optimizers.definition.Definition.step`."""
        self._t += 1
        with _computing(wide=self._wide, device=self._device):
            if not self._variables:
                self._begin(values)
            for name, value in values.items():
                self._variables[name].assign(value)
            self._as_defined()
            for micro in gradients:
                sent = [self._gradient(name, micro[name]) for name in values]
                self._optimizer.apply(sent, [self._variables[name] for name in values])
            return {name: np.array(_to_host(self._variables[name])) for name in values}

    def _begin(self, values: Arrays) -> None:
        for name, value in values.items():
            dtype = "float64" if self._wide else value.dtype.name
            leaf = name.rpartition("/")[2] or name
            own = keras.Variable(value, dtype=dtype, name=leaf.replace("/", "_"))
            own.constraint = getattr(self._originals.get(name), "constraint", None)
            self._variables[name] = own
        self._optimizer = self._make(self._variables)

    def _gradient(self, name: str, g: np.ndarray) -> Any:
        variable = self._variables[name]
        sent = keras.ops.convert_to_tensor(g, dtype=variable.dtype)
        rule = self._rule
        couples = rule is not None and rule.weight_decay and not rule.decoupled
        if couples and name not in self._exempt:
            assert rule is not None
            sent = sent + rule.weight_decay * keras.ops.convert_to_tensor(variable)
        # What `fit` asks of an optimizer before the gradient is taken, and what its step undoes.
        return self._optimizer.scale_loss(sent)

    def _as_defined(self) -> None:
        """Make Keras' own compute the named definition at this step."""
        rule, own = self._rule, self._optimizer if self._variables else None
        if rule is None or own is None:
            return
        if isinstance(rule, Adam) and not rule.eps_hat:
            own.epsilon = rule.eps * self._correction(rule.betas[1])
            self.notes = (_NOTES["eps"],)
        if rule.lr.is_constant:
            return
        before, now = rule.lr.at(max(self._t - 1, 1)), rule.lr.at(self._t)
        own.learning_rate = now
        kept = getattr(own, "momentums" if isinstance(rule, Sgd) else "_momentums", [])
        if isinstance(rule, (Sgd, RmsProp)) and rule.momentum and before and now != before:
            self.notes = (_NOTES["lr"],)
            for velocity in kept:
                velocity.assign(keras.ops.convert_to_tensor(velocity) * (now / before))

    def _correction(self, beta: float) -> float:
        """√(1 − β₂ᵗ) as Keras has it: TensorFlow makes a float32 of β₂ even in float64, and only
        with the same number on both sides does eps come out right where it outweighs √v̂."""
        dtype = next(iter(self._variables.values())).dtype
        power = keras.ops.power(keras.ops.cast(beta, dtype), keras.ops.cast(self._t, dtype))
        return math.sqrt(float(keras.ops.convert_to_numpy(1 - power)))


def _to_host(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))


@contextmanager
def _computing(*, wide: bool, device: str) -> Iterator[None]:
    backend = keras.config.backend()
    if backend == "jax":
        from crosscheck.adapters.jax.state import computing

        with computing(float64=wide, device=device):
            yield
    elif backend == "tensorflow":
        from crosscheck.adapters.tensorflow.device import on_device
        from crosscheck.adapters.tensorflow.state import exact_and_eager

        with exact_and_eager(), on_device(device):
            yield
    else:
        with keras.device("gpu:0" if device == "cuda" else "cpu"), contextlib.nullcontext():
            yield


# -- where the optimizer comes from ----------------------------------------------------------------


def named(rule: Rule, exempt: Collection[str]) -> Make:
    """Keras' own for a named optimizer.

    Raises:
        InvalidArgument: Keras' own computes something else.
    """
    cls, options = _own(rule)
    if rule.accumulate > 1:
        options["gradient_accumulation_steps"] = rule.accumulate
    clipping = rule.clip_norm is not None or rule.clip_value is not None
    if rule.weight_decay and not rule.decoupled and (clipping or rule.accumulate > 1):
        raise _other(rule, "a decay that is added to the gradient is clipped and accumulated too")
    if rule.clip_norm is not None and rule.clip_value is not None:
        raise _other(rule, "it takes clip_norm or clip_value, not both")
    if rule.weight_decay and rule.decoupled:
        options["weight_decay"] = rule.weight_decay

    def make(own: Variables) -> Any:
        optimizer = cls(
            learning_rate=rule.lr.at(1),
            global_clipnorm=rule.clip_norm,
            clipvalue=rule.clip_value,
            **options,
        )
        if exempt and rule.decoupled:
            optimizer.exclude_from_weight_decay([v for n, v in own.items() if n in exempt])
        return optimizer

    return make


def _own(rule: Rule) -> tuple[Any, dict[str, Any]]:
    if isinstance(rule, Adam):
        first, second = rule.betas
        options = {"beta_1": first, "beta_2": second, "epsilon": rule.eps}
        return (keras.optimizers.AdamW if rule.decoupled else keras.optimizers.Adam), options
    if isinstance(rule, Sgd):
        if rule.dampening:
            raise _other(rule, "it has no dampening")
        return keras.optimizers.SGD, {"momentum": rule.momentum, "nesterov": rule.nesterov}
    assert isinstance(rule, (RmsProp, Adagrad))
    if not rule.eps_inside and rule.eps:
        raise _other(rule, "eps is added inside the root (eps_inside=True)")
    if isinstance(rule, Adagrad):
        options = {"initial_accumulator_value": rule.initial, "epsilon": rule.eps}
        return keras.optimizers.Adagrad, options
    if rule.initial:
        raise _other(rule, "its average of squares starts at zero (initial=0)")
    options = {"rho": rule.rho, "momentum": rule.momentum, "epsilon": rule.eps}
    return keras.optimizers.RMSprop, {**options, "centered": rule.centered}


def _other(rule: Rule, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"optimizer={rule.name}: Keras' own is another definition: {why}.\n"
        "  Fix: name what Keras computes, or give each side its own: "
        "optimizer=(reference, candidate)"
    )


def originals(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own variables by name."""
    return {name: variable for name, _, _, variable in variables(layers)}


def given(own: Any, known: Mapping[str, Any]) -> Make:
    """A copy of an optimizer of the user's, with its state, for other variables."""

    def make(shadows: Variables) -> Any:
        copied = type(own).from_config(own.get_config())
        spared = [
            s for n, s in shadows.items() if n in known and not own._use_weight_decay(known[n])
        ]
        if spared:
            copied.exclude_from_weight_decay(spared)
        if own.built and int(own.iterations) > 0:
            names = {id(variable): name for name, variable in known.items()}
            order = [shadows.get(names.get(id(v), "")) for v in own._trainable_variables]
            if any(shadow is None for shadow in order):
                raise InvalidArgument(
                    "optimizer=: this Keras optimizer has made steps with other variables than "
                    "the model's trainable ones; give a new one"
                )
            copied.build(order)
            for new, old in zip(copied.variables, own.variables, strict=True):
                new.assign(keras.ops.cast(keras.ops.convert_to_tensor(old), new.dtype))
        return copied

    return make


def made(factory: Callable[[], Any]) -> Make:
    """An optimizer from a function without arguments."""

    def make(shadows: Variables) -> Any:
        found = factory()
        if not is_native(found):
            raise InvalidArgument(
                f"optimizer=: the function gave a {type(found).__name__}, not a Keras optimizer"
            )
        return found

    return make
