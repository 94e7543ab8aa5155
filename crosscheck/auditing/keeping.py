"""What a caller's training step may change, saved before it and put back after.

Found are the objects that the step's function holds: in its closure, among the globals that it
names, its defaults, its ``__self__``, the arguments of a ``functools.partial``, and in functions,
lists and dicts that those hold.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from crosscheck.auditing.random_states import random_states_kept

__all__ = ["held_by", "state_kept"]

Undo = Callable[[], None]
_LIMIT = 2000  # objects looked at


@contextmanager
def state_kept(model: Any, step: Any) -> Iterator[None]:
    """Everything that the step holds, the model and all random states are put back at the end.

    Args:
        model: of the subject, None where its adapter does not tell.
        step: the caller's training step.
    """
    undo: list[Undo] = []
    for thing in [model, *held_by(step)]:
        for kept in (_torch_module, _torch_state, _keras_thing, _flax_module, _numpy_net):
            if found := kept(thing):
                undo += found
                break
    with random_states_kept():
        try:
            yield
        finally:
            for put_back in undo:
                put_back()


def held_by(step: Any) -> list[Any]:
    """The objects that a function reaches, each once, nearest first."""
    found: list[Any] = []
    seen: set[int] = set()
    queue = [step]
    while queue and len(seen) < _LIMIT:
        thing = queue.pop(0)
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, np.ndarray, type(sys))):
            continue
        seen.add(id(thing))
        inside = _inside(thing)
        if inside is None:
            found.append(thing)
        else:
            queue += inside
    return found


def _inside(thing: Any) -> list[Any] | None:
    """What a function, container or bound method holds; None for any other object."""
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, Mapping) and type(thing).__module__ in ("builtins", "collections"):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set)) and type(thing).__module__ == "builtins":
        return list(thing)
    if hasattr(thing, "__func__") and hasattr(thing, "__self__"):
        return [thing.__func__, thing.__self__, *_attributes(thing.__self__)]
    python = getattr(thing, "python_function", None) or getattr(thing, "__wrapped__", None)
    code = getattr(thing, "__code__", None)
    if code is None:
        if callable(python):  # a tf.function or a jitted one
            return [python]
        return None if not _is_plain_callable(thing) else [_Kept(thing), *_attributes(thing)]
    found = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    for cell in thing.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            continue
    known = thing.__globals__
    found += [known[name] for name in _names(code) if name in known]
    return [*found, python] if callable(python) else found


class _Kept:
    """An instance whose class defines ``__call__``, as an end of the search."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing


def _is_plain_callable(thing: Any) -> bool:
    """An object of the caller's own class that can be called: a trainer."""
    module = type(thing).__module__.partition(".")[0]
    frameworks = ("torch", "keras", "tensorflow", "jax", "jaxlib", "flax", "builtins", "equinox")
    return (
        callable(thing)
        and not isinstance(thing, type)
        and module not in frameworks
        and not hasattr(thing, "forward")
        and not _is_framework_object(thing)
    )


def _is_framework_object(thing: Any) -> bool:
    roots = {cls.__module__.partition(".")[0] for cls in type(thing).__mro__}
    return bool(roots & {"torch", "keras", "tensorflow", "flax", "equinox"})


def _attributes(owner: Any) -> list[Any]:
    if _is_framework_object(owner):
        optimizer = getattr(owner, "optimizer", None)  # of a compiled Keras model
        return [] if optimizer is None else [optimizer]
    return list(getattr(owner, "__dict__", {}).values())


def _names(code: Any) -> list[str]:
    """The globals that a function names, itself or in a function written inside it."""
    found = list(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            found += _names(constant)
    return found


# -- PyTorch ---------------------------------------------------------------------------------------


def _torch_module(thing: Any) -> list[Undo]:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(thing, torch.nn.Module) or _is_keras(thing):
        return []
    tensors = {id(t): t for t in [*thing.parameters(), *thing.buffers()]}
    undo = [_of_tensor(torch, t) for t in tensors.values()]
    return undo + [_attributes_back(module) for module in thing.modules()]


def _attributes_back(module: Any) -> Undo:
    """Mode, hooks, parameters and buffers of one module, and whatever else it holds by name."""
    own = dict(module.__dict__)
    inner = {name: copy.copy(v) for name, v in own.items() if isinstance(v, dict)}

    def put_back() -> None:
        module.__dict__.clear()
        module.__dict__.update(own)
        for name, contents in inner.items():
            own[name].clear()
            own[name].update(contents)

    return put_back


def _of_tensor(torch: Any, tensor: Any) -> Undo:
    value, storage = tensor.detach().clone(), tensor.data
    gradient = tensor.grad
    of_gradient = None if gradient is None else gradient.detach().clone()
    requires = tensor.requires_grad

    def put_back() -> None:
        with torch.no_grad():
            tensor.data = storage
            if not torch.equal(storage, value):  # writing would count as a change in place
                storage.copy_(value)
            tensor.grad = gradient
            if gradient is not None:
                gradient.detach().copy_(of_gradient)
            tensor.requires_grad_(requires)

    return put_back


def _torch_state(thing: Any) -> list[Undo]:
    """Optimizers, schedulers, gradient scalers: what has a state_dict and loads it."""
    if "torch" not in sys.modules or not callable(getattr(thing, "load_state_dict", None)):
        return []
    if isinstance(thing, type) or not callable(getattr(thing, "state_dict", None)):
        return []
    state = copy.deepcopy(thing.state_dict())
    undo: list[Undo] = [lambda: thing.load_state_dict(state)]
    torch = sys.modules["torch"]
    for group in getattr(thing, "param_groups", None) or ():  # parameters of no module
        undo += [_of_tensor(torch, p) for p in group["params"]]
    return undo


# -- Keras and TensorFlow --------------------------------------------------------------------------


def _is_keras(thing: Any) -> bool:
    return any(cls.__module__.startswith("keras.") for cls in type(thing).__mro__)


def _keras_thing(thing: Any) -> list[Undo]:
    """The variables of a Keras model, layer, metric or optimizer, or of a tf.Module; a variable."""
    if isinstance(thing, type):
        return []
    if _is_keras(thing):
        if hasattr(thing, "apply_gradients"):
            return [_of_optimizer(thing)]
        found = list(getattr(thing, "variables", None) or ())
        found += list(getattr(thing, "metrics_variables", None) or ())
        own = getattr(thing, "optimizer", None)
        undo = [_of_variables(found), *([] if own is None else [_of_optimizer(own)])]
        return undo + [_flags_back(thing)] if hasattr(thing, "_flatten_layers") else undo
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return []
    if isinstance(thing, tensorflow.Variable):
        return [_of_variables([thing])]
    if isinstance(thing, tensorflow.Module):
        return [_of_variables(list(thing.variables))]
    return []


def _of_variables(variables: list[Any]) -> Undo:
    values = [(v, np.array(v)) for v in variables]

    def put_back() -> None:
        for variable, value in values:
            if not np.array_equal(np.array(variable), value, equal_nan=value.dtype.kind == "f"):
                variable.assign(value)

    return put_back


def _flags_back(layer: Any) -> Undo:
    flags = [(v, v.trainable) for v in layer.variables]
    own = [(each, each.trainable) for each in layer._flatten_layers()]

    def put_back() -> None:
        for each, flag in own:
            if each.trainable != flag:
                each.trainable = flag
        for variable, flag in flags:
            if variable.trainable != flag:
                variable.trainable = flag

    return put_back


def _of_optimizer(optimizer: Any) -> Undo:
    """A Keras optimizer. What it made in the step is as it was made: it stays built."""
    before = list(optimizer.variables)
    values = _of_variables(before)

    def put_back() -> None:
        values()
        made = optimizer.variables[len(before) :]
        if made:
            fresh = type(optimizer).from_config(optimizer.get_config())
            fresh.build(optimizer._trainable_variables)
            for variable, new in zip(made, fresh.variables[len(before) :], strict=True):
                variable.assign(np.array(new))

    return put_back


# -- Flax NNX --------------------------------------------------------------------------------------


def _flax_module(thing: Any) -> list[Undo]:
    """An NNX module or optimizer: its variables, and its flags (``deterministic`` and the like)."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(thing, (nnx.Module, nnx.Pytree)):
        return []
    variables, attributes = [], []
    for _, node in nnx.iter_graph(thing):
        if isinstance(node, nnx.Variable):
            variables.append((node, node.get_value()))
        elif isinstance(node, (nnx.Module, nnx.Pytree)):
            attributes.append((node, dict(vars(node))))

    def put_back() -> None:
        for node, own in attributes:
            vars(node).clear()
            vars(node).update(own)
        for variable, value in variables:
            variable.set_value(value)

    return [put_back]


# -- NumPy -----------------------------------------------------------------------------------------


def _numpy_net(thing: Any) -> list[Undo]:
    """Objects of the caller's own: a net, an optimizer written by hand, a trainer."""
    thing = thing.thing if isinstance(thing, _Kept) else thing
    if isinstance(thing, type) or _is_framework_object(thing) or not hasattr(thing, "__dict__"):
        return []
    if type(thing).__module__.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return []
    undo: list[Undo] = []
    _own_state(thing, undo, set())
    return undo


def _own_state(thing: Any, undo: list[Undo], seen: set[int]) -> None:
    """Attributes, lists and dicts keep their identity and get their contents back, arrays too."""
    if id(thing) in seen or len(seen) > _LIMIT or isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        if thing.flags.writeable and thing.dtype.kind != "O":
            undo.append(functools.partial(np.copyto, thing, thing.copy()))
        return
    if isinstance(thing, np.random.Generator):
        state = thing.bit_generator.state
        undo.append(lambda: setattr(thing.bit_generator, "state", state))
        return
    if isinstance(thing, (list, dict)):
        contents = copy.copy(thing)
        undo.append(functools.partial(_refill, thing, contents))
        inner = list(contents.values() if isinstance(contents, dict) else contents)
    elif hasattr(thing, "__dict__") and not callable(getattr(thing, "__code__", None)):
        if _is_framework_object(thing) or hasattr(thing, "__code__"):
            return
        undo.append(functools.partial(_refill, vars(thing), dict(vars(thing))))
        inner = list(vars(thing).values())
    else:
        inner = list(thing) if isinstance(thing, tuple) else []
    for value in inner:
        if not isinstance(value, (str, bytes, int, float, type(sys))):
            _own_state(value, undo, seen)


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    (container.update if isinstance(container, dict) else container.extend)(contents)
