"""SavedModels: a graph and its variables, without the code that made them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import tensorflow as tf

from crosscheck.adapters.base import call_arguments
from crosscheck.adapters.tensorflow.parameters import Found, discover
from crosscheck.adapters.tensorflow.program import Program
from crosscheck.errors import InvalidArgument, capped

__all__ = ["SavedProgram", "is_loaded", "is_saved"]

DEFAULT = "serving_default"


def is_saved(model: Any) -> bool:
    """The path of a SavedModel's folder."""
    return isinstance(model, (str, os.PathLike)) and os.path.isfile(
        os.path.join(model, "saved_model.pb")
    )


def is_loaded(model: Any) -> bool:
    """What ``tf.saved_model.load`` gives."""
    return isinstance(model, tf.__internal__.tracking.AutoTrackable) and hasattr(
        model, "tensorflow_git_version"
    )


class SavedProgram(Program):
    """A signature of a SavedModel, or the call that it was saved with."""

    def __init__(self, model: Any, signature: str | None) -> None:
        loaded = tf.saved_model.load(os.fspath(model)) if is_saved(model) else model
        super().__init__(_entry(loaded, signature), loaded, eager=False)
        self.layer = "SavedModel"

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            "a SavedModel is a graph: it is seen at its inputs and outputs and in its variables, "
            "not inside. To see inside, check the tf.Module or Keras model it was saved from",
        )

    def found(self) -> Found:
        """What the object holds, less what the signature does not use (an export of Keras has
        every variable twice)."""
        held = discover(self._holds)
        used = {id(v): v for v in getattr(self.function, "variables", ())}
        if not used:
            return held
        found = Found(modules=held.modules)
        for slot in held.slots:
            own = slot.variable.name.partition(":")[0]
            if id(slot.variable) not in used:
                continue
            if (
                slot.name.rpartition("/")[2].isdigit() and "/" in own
            ):  # in a bare list: its own name says more
                found.add(own, own.rpartition("/")[0], slot.variable, None)
            else:
                found.add(slot.name, slot.layer, slot.variable, slot.owner)
        for variable in used.values():  # captured, and no attribute leads to it
            name = variable.name.partition(":")[0]
            found.add(name, name.rpartition("/")[0], variable, None)
        return found

    def declared(self, inputs: Collection[str]) -> dict[str, tuple[int | None, ...]]:
        """The caller's name -> the shape in the signature, None for any size."""
        specs: Mapping[str, Any] = getattr(self.function, "structured_input_signature", ((), {}))[1]
        if len(specs) != len(inputs):
            return {}
        names = _paired(specs, inputs)
        return {
            names[name]: tuple(spec.shape)
            for name, spec in specs.items()
            if spec.shape.rank is not None
        }

    def call(self, inputs: Mapping[str, Any], *, train: bool) -> Any:
        """Run it; a signature takes its inputs by name."""
        names = [*getattr(self.function, "structured_input_signature", ((), {}))[1]]
        if not names:
            args, kwargs = call_arguments(self.function, inputs)
            return self.function(*args, **kwargs)
        if len(names) != len(inputs):
            raise InvalidArgument(
                f"the signature of the SavedModel takes {len(names)} inputs ({capped(names)}), "
                f"not {len(inputs)} ({capped(inputs)})"
            )
        return self.function(**{n: inputs[mine] for n, mine in _paired(names, inputs).items()})


def _paired(names: Iterable[str], given: Iterable[str]) -> dict[str, str]:
    """Name in the signature -> the caller's: by name if all are known, else in order."""
    names, given = [*names], [*given]
    return dict(zip(names, names if set(names) == set(given) else given, strict=True))


def _entry(loaded: Any, signature: str | None) -> Any:
    """What to call."""
    signatures = dict(getattr(loaded, "signatures", {}))
    if signature is None:
        only = next(iter(signatures)) if len(signatures) == 1 else None
        signature = DEFAULT if DEFAULT in signatures else only
        if signature is None and callable(loaded):
            return loaded.__call__
    if signature not in signatures:
        wanted = "" if signature is None else f" `{signature}`"
        known = f"it has {capped(signatures)}" if signatures else "it has none"
        raise InvalidArgument(
            f"the SavedModel has no signature{wanted} to run: {known}.\n"
            '  Fix: adapt(path, signature="...") names one; tf.saved_model.save(module, path, '
            "signatures=module.__call__.get_concrete_function(...)) writes one"
        )
    return signatures[signature]
