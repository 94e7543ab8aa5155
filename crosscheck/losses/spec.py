"""From what the caller writes to a `Loss`: ``"cross_entropy(label_smoothing=0.1)"``, a dict of
such texts by output, or `Own`."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscheck.errors import InvalidArgument

__all__ = ["NAMES", "Loss", "Own", "Term", "parse"]


@dataclass(frozen=True)
class Own:
    """A loss of your own, one for each side.

    Attributes:
        reference, candidate: ``f(outputs, targets) -> scalar`` on the side's own arrays: PyTorch,
            TensorFlow, Keras and JAX differentiate it; on a NumPy, CuPy or ONNX side it returns
            ``(value, gradient)``. ``outputs`` is the array where a model has one output, else a
            dict {site: array}; ``targets`` is what ``targets=`` gave. A PyTorch loss module, a
            ``keras.losses.Loss`` and the name of a loss (``"cross_entropy"``) will do, too.
        name: for the report. Where it is the text of a named loss, it says what the two are meant
            to be, and mistakes are looked for among those of that loss.
    """

    reference: Any
    candidate: Any
    name: str = "own"

    def __post_init__(self) -> None:
        for side in ("reference", "candidate"):
            given = getattr(self, side)
            if isinstance(given, str):
                _text(given)
            elif not callable(given):
                raise InvalidArgument(
                    f"losses.Own({side}={given!r}): give a function (outputs, targets) -> scalar, "
                    "a loss module, or the name of a loss"
                )


@dataclass(frozen=True)
class Term:
    """One named loss on one output (or two, for ``gaussian_kl``), with a factor.

    Attributes:
        outputs: sites of the reference's outputs; ``#0`` for the first one.
        target: which of several targets; None: it takes none.
    """

    name: str
    options: Mapping[str, Any]
    factor: float = 1.0
    outputs: tuple[str, ...] = ("#0",)
    target: str | None = ""


@dataclass(frozen=True)
class Loss:
    """A sum of named losses, or the caller's own.

    Attributes:
        name: as it was written.
        several: whether targets come as a dict by output.
    """

    name: str
    terms: tuple[Term, ...] = ()
    own: Own | None = None
    several: bool = False


def parse(loss: Any) -> Loss:
    """What a caller gave as ``loss=``.

    Raises:
        InvalidArgument: an unknown name or option, a value that cannot be.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, Own):
        return Loss(loss.name, own=loss)
    if isinstance(loss, str):
        return Loss(loss.strip(), _text(loss))
    if isinstance(loss, Mapping) and loss:
        terms = []
        for output, text in loss.items():
            if not isinstance(text, str):
                raise InvalidArgument(f"loss={{{output!r}: {text!r}}}: give the text of a loss")
            (term,) = _single(_text(text), text)
            terms.append(Term(term.name, term.options, term.factor, (str(output),), str(output)))
        name = " + ".join(f"{text} at {output}" for output, text in loss.items())
        return Loss(name, tuple(terms), several=True)
    raise InvalidArgument(
        f'loss={loss!r}: give a text such as "cross_entropy(label_smoothing=0.1)", a dict of '
        "such texts by output, or crosscheck.losses.Own(reference=..., candidate=...); "
        f"known: {', '.join(NAMES)}"
    )


def _single(terms: tuple[Term, ...], text: str) -> tuple[Term, ...]:
    if len(terms) > 1 or len(terms[0].outputs) > 1:
        raise InvalidArgument(
            f"loss={text!r}: it reads several outputs itself; give it as the whole loss, not for "
            "one output of a dict"
        )
    return terms


def _text(text: str) -> tuple[Term, ...]:
    """``[factor *] name[(option=value, ...)]``."""
    try:
        tree: ast.expr = ast.parse(text.strip(), mode="eval").body
        factor = 1.0
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
            factor, tree = float(ast.literal_eval(tree.left)), tree.right
        call = tree if isinstance(tree, ast.Call) else None
        function = call.func if call else tree
        if not isinstance(function, ast.Name) or (call and call.args):
            raise ValueError
        options = {str(k.arg): _value(k.value) for k in (call.keywords if call else ())}
    except (SyntaxError, ValueError, TypeError):
        raise InvalidArgument(
            f"loss={text!r} cannot be read: write name(option=value, ...), such as "
            '"cross_entropy(label_smoothing=0.1)" or "0.5 * mse(reduction=sum)"'
        ) from None
    return _terms(function.id, options, factor, text)


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _terms(name: str, options: dict[str, Any], factor: float, text: str) -> tuple[Term, ...]:
    if name not in _OPTIONS:
        near = difflib.get_close_matches(name.lower(), [*NAMES, *_ALIASES], 1, 0.6)
        nearest = _ALIASES.get(near[0], near[0]) if near else None
        hint = f" Did you mean `{nearest}`?" if nearest else ""
        raise InvalidArgument(
            f"loss={text!r}: there is no loss `{name}`.{hint} Known: {', '.join(NAMES)}"
        )
    known = _OPTIONS[name]
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, 1, 0.4)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise InvalidArgument(
                f"loss={text!r}: `{name}` has no option `{option}`.{hint} "
                f"It takes {', '.join(known)}"
            )
        expected = known[option](value)
        if expected:
            raise InvalidArgument(f"loss={text!r}: {option}={value!r} must be {expected}")
    if name == "vae":
        return _vae(options, factor)
    pair = ("#0", "#1") if name == "gaussian_kl" else ("#0",)
    return (Term(name, options, factor, pair, None if name == "gaussian_kl" else ""),)


def _vae(options: dict[str, Any], factor: float) -> tuple[Term, ...]:
    """−ELBO (Kingma & Welling 2014, eq. 10), with β on the KL (Higgins et al. 2017)."""
    kind = options.get("reconstruction", "bce_with_logits")
    over = {"reduction": options.get("reduction", "batchmean")}
    return (
        Term(kind, over, factor, ("#0",), ""),
        Term("gaussian_kl", over, factor * options.get("beta", 1.0), ("#1", "#2"), None),
    )


# -- options: what is wrong with a value, in the words "must be ..."; "" if nothing is -------------

Check = Callable[[Any], str]


def _one_of(*names: str) -> Check:
    return lambda value: "" if value in names else " or ".join(names)


def _number(low: float, high: float, words: str) -> Check:
    def check(value: Any) -> str:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if number and low <= value <= high else words

    return check


def _integer(value: Any) -> str:
    return "" if isinstance(value, int) and not isinstance(value, bool) else "an integer"


def _numbers(value: Any) -> str:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return "numbers"
    return "" if np.isfinite(array).all() and (array >= 0).all() else "finite numbers ≥ 0"


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "True or False"


_MOST = float(np.finfo(np.float32).max)
_POSITIVE = _number(1e-30, _MOST, "a number > 0")
_SIZES = _one_of("mean", "sum", "batchmean")
_CLASSES: dict[str, Check] = {
    "axis": _integer,
    "weight": _numbers,
    "ignore_index": _integer,
    "reduction": _one_of("mean", "sum"),
}
_OPTIONS: dict[str, dict[str, Check]] = {
    "bce_with_logits": {"pos_weight": _numbers, "reduction": _SIZES},
    "cross_entropy": {"label_smoothing": _number(0, 1, "a number from 0 to 1"), **_CLASSES},
    "ctc": {"blank": _integer, "batch_axis": _integer, "reduction": _one_of("mean", "sum")},
    "gaussian_kl": {"reduction": _SIZES},
    "huber": {"delta": _POSITIVE, "reduction": _SIZES},
    "kl_div": {"log_target": _flag, "reduction": _SIZES},
    "mae": {"reduction": _SIZES},
    "mse": {"reduction": _SIZES},
    "nll": _CLASSES,
    "smooth_l1": {"beta": _number(0, _MOST, "a number ≥ 0"), "reduction": _SIZES},
    "vae": {
        "reconstruction": _one_of("bce_with_logits", "mse"),
        "beta": _number(0, _MOST, "a number ≥ 0"),
        "reduction": _one_of("batchmean", "sum"),
    },
}
NAMES = tuple(_OPTIONS)
_ALIASES = {
    "ce": "cross_entropy",
    "crossentropy": "cross_entropy",
    "categorical_crossentropy": "cross_entropy",
    "sparse_categorical_crossentropy": "cross_entropy",
    "softmax_cross_entropy": "cross_entropy",
    "bce": "bce_with_logits",
    "binary_crossentropy": "bce_with_logits",
    "binary_cross_entropy": "bce_with_logits",
    "l1": "mae",
    "l1_loss": "mae",
    "l2": "mse",
    "mse_loss": "mse",
    "mean_squared_error": "mse",
    "mean_absolute_error": "mae",
    "kldiv": "kl_div",
    "kl_divergence": "kl_div",
    "nll_loss": "nll",
    "ctc_loss": "ctc",
    "elbo": "vae",
}
