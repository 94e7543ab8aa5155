"""One side's optimizer: its framework's own, the caller's, or the definition itself."""

from __future__ import annotations

import copy
import inspect
import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from crosscheck.adapters.base import Adapter
from crosscheck.errors import InvalidArgument
from crosscheck.optimizers.definition import Definition, mean_of
from crosscheck.optimizers.parse import parse
from crosscheck.optimizers.rules import Rule

__all__ = ["SideOptimizer", "Stepper", "both", "side_optimizer"]

Arrays = Mapping[str, np.ndarray]

_OWN = {
    "torch": "crosscheck.adapters.torch.optimizer",
    "keras": "crosscheck.adapters.keras.optimizer",
    "tensorflow": "crosscheck.adapters.keras.optimizer",
    "jax": "crosscheck.adapters.jax.optimizer",
}
_NATIVE = {"torch": "torch", "keras": "keras", "optax": "jax"}  # loaded module -> key of `_OWN`


class Stepper(Protocol):
    """An optimizer with its state, fed from outside.

    Attributes:
        notes: what the reader should know; complete after a step.
    """

    notes: tuple[str, ...]

    def step(self, values: Arrays, gradients: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """name -> θ and, for each micro-batch, name -> g; gives name -> θ after the step."""


@dataclass(frozen=True)
class SideOptimizer:
    """How one side makes its steps.

    Attributes:
        rule: what it is meant to compute; None where nobody knows.
        named: whether the rule was named (else it was read off an optimizer of the caller's).
        accumulate: micro-batches of one step.
        start: a new one, without steps made; ``start(True)`` in float64.
        wide: whether that is possible.
        once: a function that may keep a state of its own: it can be run through once only.
        what: for messages.
    """

    rule: Rule | None
    named: bool
    accumulate: int
    start: Callable[[bool], Stepper]
    what: str
    wide: bool = True
    once: bool = False


def both(given: Any) -> tuple[Any, Any]:
    """(reference's, candidate's) of what ``optimizer=`` was given.

    Raises:
        InvalidArgument: a dict or tuple of another form.
    """
    if isinstance(given, Mapping):
        if set(given) != {"reference", "candidate"}:
            raise InvalidArgument(
                f"optimizer={{{', '.join(map(repr, given))}}}: the keys must be 'reference' and "
                "'candidate'"
            )
        return _read(given["reference"]), _read(given["candidate"])
    pair = isinstance(given, (tuple, list)) and not hasattr(given, "_fields")
    if pair and len(given) == 2 and not _is_native(given):
        return _read(given[0]), _read(given[1])
    if pair and not _is_native(given):
        raise InvalidArgument(f"optimizer=: a pair is (reference, candidate), given {len(given)}")
    return _read(given), _read(given)


def _read(given: Any) -> Any:
    if isinstance(given, str):
        return parse(given)
    if isinstance(given, (int, float, bytes, bool)) or given is None:
        raise InvalidArgument(
            f'optimizer={given!r}: give a text such as "sgd(lr=0.1)", an optimizer, a function '
            "that makes one, or (reference, candidate)"
        )
    return given


def _is_native(given: Any) -> str:
    """The key of `_OWN` for an optimizer of a framework; empty for anything else."""
    for module, key in _NATIVE.items():
        if module in sys.modules and import_module(_OWN[key]).is_native(given):
            return key
    return ""


def side_optimizer(given: Any, adapter: Adapter, exempt: Collection[str]) -> SideOptimizer:
    """The optimizer of one side.

    Args:
        given: a `Rule`, or what the caller gave.
        exempt: the side's parameters that a named rule does not let decay.

    Raises:
        InvalidArgument: the framework's own is another definition; nothing that makes steps.
    """
    if isinstance(given, Rule):
        return _named(given, adapter, exempt)
    key = _is_native(given)
    if key:
        return _native(key, given, adapter)
    if not callable(given) and not callable(getattr(given, "step", None)):
        raise InvalidArgument(
            f"optimizer=: a {type(given).__name__} has no step(params, grads) and is no function"
        )
    return _duck(given, adapter)


def _named(rule: Rule, adapter: Adapter, exempt: Collection[str]) -> SideOptimizer:
    recorded = not adapter.capabilities.forcing
    own = None if recorded else _OWN.get(adapter.framework)
    if own is None:
        return SideOptimizer(
            rule,
            True,
            rule.accumulate,
            lambda wide: Definition(rule, exempt),
            f"the definition of {rule.name}",
        )
    module = _loaded(own, rule)
    make = module.named(rule, exempt)
    device = adapter.device

    def start(wide: bool) -> Stepper:
        stepper: Stepper
        if adapter.framework == "torch":
            stepper = module.TorchStepper(make, device=device, wide=wide, rule=rule)
        elif adapter.framework == "jax":
            stepper = module.OptaxStepper(make, tree=None, device=device, wide=wide)
        else:
            stepper = module.KerasStepper(
                make,
                originals=_originals(module, adapter),
                device=device,
                wide=wide,
                rule=rule,
                exempt=exempt,
            )
        return stepper

    what = f"{adapter.framework}'s own {rule.name}"
    return SideOptimizer(rule, True, rule.accumulate, start, what)


def _loaded(module: str, rule: Rule) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidArgument(
            f"optimizer={rule.name}: this side's own optimizers need {error.name}.\n"
            f"  Fix: pip install {error.name}, or give the side an optimizer of your own"
        ) from error


def _originals(module: Any, adapter: Adapter) -> dict[str, Any]:
    model = getattr(adapter, "model", None)
    if adapter.framework != "keras" or model is None:
        return {}
    from crosscheck.adapters.keras.calls import built_layers

    found: dict[str, Any] = module.originals(built_layers(model))
    return found


def _made_for(factory: Callable[[Any], Any], model: Any) -> Any:
    """What the function makes of the model's own parameters, to read its rule; None without."""
    trained = [] if model is None else [p for p in model.parameters() if p.requires_grad]
    try:
        return factory(trained) if trained else None
    except Exception:  # the caller's code: reported where it makes the optimizer that steps
        return None


def _native(key: str, given: Any, adapter: Adapter, factory: bool = False) -> SideOptimizer:
    module = import_module(_OWN[key])
    device = adapter.device
    rule, accumulate = None, 1
    if key == "torch":
        model = getattr(adapter, "model", None) if adapter.framework == "torch" else None
        make = module.made(given) if factory else module.given(given, model)
        rule = module.rule_of(_made_for(given, model) if factory else given, model)

        def start(wide: bool) -> Stepper:
            return module.TorchStepper(make, device=device, wide=wide)  # type: ignore[no-any-return]
    elif key == "keras":
        known = _originals(module, adapter)
        make = module.made(given) if factory else module.given(given, known)
        own = given() if factory else given
        accumulate = getattr(own, "gradient_accumulation_steps", None) or 1

        def start(wide: bool) -> Stepper:
            return module.KerasStepper(make, originals=known, device=device, wide=wide)  # type: ignore[no-any-return]
    else:
        program = getattr(adapter, "program", None)
        tree = None if program is None else module.Tree(program)
        make = module.given(given() if factory else given)

        def start(wide: bool) -> Stepper:
            return module.OptaxStepper(make, tree=tree, device=device, wide=wide)  # type: ignore[no-any-return]

    return SideOptimizer(rule, False, accumulate, start, f"the given {type(given).__name__}")


# -- optimizers of hand-written code ---------------------------------------------------------------


def _duck(given: Any, adapter: Adapter) -> SideOptimizer:
    what = f"the given {getattr(given, '__name__', type(given).__name__)}"
    if not callable(getattr(given, "step", None)) or isinstance(given, type):
        key = _factory_of(given, adapter)
        if key:
            return _native(key, given, adapter, factory=True)
        if _required(given) == 0:
            return _duck_made(given, adapter, what)
        if _required(given) == 1 and adapter.framework == "numpy":
            return _duck(given(adapter.model), adapter)  # type: ignore[attr-defined]
        bare = isinstance(given, types.FunctionType) and given.__closure__ is None
        return SideOptimizer(
            None, False, 1, lambda wide: _Called(given, wide), what, wide=bare, once=not bare
        )
    if _required(given.step) == 0:
        model = getattr(adapter, "model", None)
        if adapter.framework != "numpy" or model is None:
            raise InvalidArgument(
                f"optimizer=: {what} has a step() without arguments, which works for NumPy nets "
                "only; give one with step(params, grads)"
            )
        from crosscheck.adapters.numpy.optimizer import BoundStepper

        return SideOptimizer(
            None, False, 1, lambda wide: BoundStepper(given, model, wide=wide), what
        )
    return SideOptimizer(
        None, False, 1, lambda wide: _Called(copy.deepcopy(given).step, wide), what
    )


def _duck_made(factory: Callable[[], Any], adapter: Adapter, what: str) -> SideOptimizer:
    first = factory()
    key = _is_native(first)
    if key:
        return _native(key, factory, adapter, factory=True)
    if not callable(getattr(first, "step", None)):
        raise InvalidArgument(f"optimizer=: {what} made something without step(params, grads)")
    return SideOptimizer(None, False, 1, lambda wide: _Called(factory().step, wide), what)


def _factory_of(given: Any, adapter: Adapter) -> str:
    """A function of one argument makes a PyTorch optimizer from the list of parameters."""
    return "torch" if adapter.framework == "torch" and _required(given) == 1 else ""


def _required(function: Any) -> int:
    """How many arguments must be given by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins have no signature
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


class _Called:
    """``function(params, grads)``, which returns new parameters or changes them in place."""

    notes: tuple[str, ...] = ()

    def __init__(self, function: Callable[..., Any], wide: bool) -> None:
        self._function, self._wide = function, wide

    def step(self, values: Arrays, gradients: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """See `Stepper.step`."""
        params = {name: self._own(value, value.dtype) for name, value in values.items()}
        grads = {n: self._own(g, values[n].dtype) for n, g in mean_of(gradients).items()}
        made = self._function(params, grads)
        found = {**params, **(made if isinstance(made, Mapping) else {})}
        return {name: np.array(found[name]) for name in values}

    def _own(self, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return np.array(value, dtype=np.float64 if self._wide else dtype)
