"""The text of an optimizer -> its rule. Nothing in it is executed."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from crosscheck.errors import InvalidArgument
from crosscheck.optimizers import rules, schedules
from crosscheck.optimizers.definition import BIASES_AND_NORMS
from crosscheck.optimizers.rules import Rule
from crosscheck.optimizers.schedules import Constant, Listed, Schedule

__all__ = ["parse"]

_RULES: Mapping[str, type[Rule]] = {
    cls.name: cls for cls in (rules.Sgd, rules.Adam, rules.AdamW, rules.RmsProp, rules.Adagrad)
}
_SCHEDULES: Mapping[str, type[Schedule]] = {
    "constant": schedules.Constant,
    "cosine": schedules.Cosine,
    "linear": schedules.Linear,
    "step": schedules.Stepwise,
    "exponential": schedules.Exponential,
}
_NEEDED = {"cosine": ("total",), "linear": ("total",), "step": ("every",)}
_ALIASES = {"alpha": "rho", "learning_rate": "lr", "epsilon": "eps", "global_clipnorm": "clip_norm"}
EXAMPLE = '"sgd(lr=0.1, momentum=0.9)"'


def parse(text: str) -> Rule:
    """``"adamw(lr=1e-3, weight_decay=0.01)"`` -> its rule.

    Options of every optimizer: ``lr`` (a number, a list with the rate of every step, or a schedule
    such as ``cosine(1e-3, total=100, warmup=10)``), ``weight_decay``, ``decoupled``, ``exclude`` (a
    list of patterns, or "biases and norms"), ``clip_norm``, ``clip_value``, ``accumulate``. The
    others are in the docstrings of `crosscheck.optimizers.rules`.

    Raises:
        InvalidArgument: says what is wrong with the text and what may stand there.
    """
    name, given = _call(text, text)
    cls = _RULES.get(name)
    if cls is None:
        raise InvalidArgument(f"optimizer={text!r}: {_unknown('optimizer', name, _RULES)}")
    positional, options = given
    if len(positional) > 1:
        raise InvalidArgument(
            f"optimizer={text!r}: only the learning rate may stand without its name; "
            f"write {name}(lr=..., ...)"
        )
    if positional:
        options = {"lr": positional[0], **options}
    options = {_ALIASES.get(key, key): value for key, value in options.items()}
    for key in options:
        if key not in cls.options():
            listed = ", ".join(cls.options())
            near = _nearest(key, cls.options())
            raise InvalidArgument(
                f"optimizer={text!r}: {name} has no option `{key}`{near}; it has {listed}"
            )
    return cls(**{key: _value(cls, key, value, text) for key, value in options.items()})


def _value(cls: type[Rule], key: str, value: Any, text: str) -> Any:
    if key == "lr":
        return _schedule(value, text)
    if key == "exclude":
        patterns = (value,) if isinstance(value, str) else tuple(value)
        if not all(isinstance(p, str) for p in patterns):
            raise InvalidArgument(
                f"optimizer={text!r}: exclude takes names or patterns of reference parameters, "
                f'such as ["*.bias", "*norm*"], or "{BIASES_AND_NORMS}"'
            )
        return patterns
    default = next(f.default for f in fields(cls) if f.name == key)
    if key == "betas":
        good = isinstance(value, (tuple, list)) and len(value) == 2
        if not good or not all(_is_number(b) and 0.0 <= b < 1.0 for b in value):
            raise InvalidArgument(f"optimizer={text!r}: betas must be two numbers in [0, 1)")
        return float(value[0]), float(value[1])
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InvalidArgument(f"optimizer={text!r}: {key} must be True or False")
        return value
    if key == "accumulate":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidArgument(f"optimizer={text!r}: accumulate must be an integer ≥ 1")
        return value
    if not _is_number(value) or value < 0.0:
        raise InvalidArgument(f"optimizer={text!r}: {key} must be a number ≥ 0, not {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# -- learning rates --------------------------------------------------------------------------------


def _schedule(value: Any, text: str) -> Schedule:
    if _is_number(value) and value >= 0.0:
        return Constant(float(value))
    if isinstance(value, (list, tuple)) and all(map(_is_number, value)):
        return Listed.of(value)
    if isinstance(value, str):
        value = ast.parse(value.strip(), mode="eval").body if _is_expression(value) else value
    if not isinstance(value, ast.Call):
        raise InvalidArgument(
            f"optimizer={text!r}: lr must be a number ≥ 0, a list of numbers or a schedule: "
            + ", ".join(f"{name}{_signature(cls)}" for name, cls in _SCHEDULES.items())
        )
    name, (positional, options) = _call_of(value, text)
    cls = _SCHEDULES.get(name)
    if cls is None:
        raise InvalidArgument(f"optimizer={text!r}: {_unknown('schedule', name, _SCHEDULES)}")
    if positional:
        options = {"lr": positional[0], **options}
    known = [f.name for f in fields(cls)]
    wrong = [key for key in options if key not in known]
    missing = [key for key in ("lr", *_NEEDED.get(name, ())) if key not in options]
    if wrong or missing or len(positional) > 1 or not all(map(_is_number, options.values())):
        raise InvalidArgument(f"optimizer={text!r}: write {name}{_signature(cls)}, all numbers")
    return cls(**options)


def _signature(cls: type[Schedule]) -> str:
    parameters = list(inspect.signature(cls).parameters)
    return f"({', '.join(['lr', *(f'{p}=' for p in parameters if p != 'lr')])})"


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        return False
    return True


# -- syntax ----------------------------------------------------------------------------------------


def _call(source: str, text: str) -> tuple[str, tuple[list[Any], dict[str, Any]]]:
    try:
        node = ast.parse(source.strip(), mode="eval").body
    except SyntaxError as error:
        raise InvalidArgument(
            f"optimizer={text!r}: cannot be read ({error.msg}); write it as in {EXAMPLE}"
        ) from None
    if isinstance(node, ast.Name):
        return node.id.lower(), ([], {})
    return _call_of(node, text)


def _call_of(node: ast.AST, text: str) -> tuple[str, tuple[list[Any], dict[str, Any]]]:
    plain = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if not plain or any(k.arg is None for k in node.keywords):  # type: ignore[attr-defined]
        raise InvalidArgument(f"optimizer={text!r}: write it as in {EXAMPLE}")
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    positional = [_literal(a, text) for a in node.args]
    options = {k.arg: _literal(k.value, text) for k in node.keywords if k.arg is not None}
    return node.func.id.lower(), (positional, options)


def _literal(node: ast.expr, text: str) -> Any:
    """A Python literal, or a call (of a schedule) as it stands."""
    if isinstance(node, ast.Call):
        return node
    try:
        return ast.literal_eval(node)
    except ValueError:
        shown = ast.unparse(node)
        raise InvalidArgument(
            f"optimizer={text!r}: `{shown}` is no number, text, list or True/False"
        ) from None


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> str:
    return f"unknown {what} `{name}`{_nearest(name, known)}; known are {', '.join(known)}"


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f", did you mean `{near[0]}`?" if near else ""
