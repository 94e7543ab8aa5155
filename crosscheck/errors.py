"""Every error that crosscheck raises.

    CrosscheckError
    ├── InvalidArgument      the caller's mistake: an argument that cannot be used as given
    │   └── CannotSplit      a check that cannot be made in parts
    ├── CannotCompare        both sides work, but something cannot be put side by side
    ├── MissingFramework     a framework is needed and not installed; says which extra brings it
    ├── DeviceUnavailable    a device was asked for that a side cannot run on
    ├── TraceFormatError     a trace file that is not one
    └── SideFailed           one side raised while it ran; the original exception is chained
    Diverged                 an AssertionError: what ``Report.raise_if_diverged`` raises

A crash is never reported as a divergence, and a divergence is never a crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosscheck.results import Report, SiteResult

__all__ = [
    "CannotCompare",
    "CannotSplit",
    "CrosscheckError",
    "DeviceUnavailable",
    "Diverged",
    "InvalidArgument",
    "MissingFramework",
    "SideFailed",
    "TraceFormatError",
    "capped",
]

# Framework module -> the extra of this package that installs it.
EXTRAS = {
    "torch": "torch",
    "tensorflow": "keras",
    "keras": "keras",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "jax",
    "optax": "jax",
    "cupy": "cupy",
    "ray": "ray",
    "sklearn": "dev",
}


class CrosscheckError(Exception):
    """Base class of everything that crosscheck raises on purpose."""


class InvalidArgument(CrosscheckError, ValueError):
    """The caller passed something that cannot be used; the message says what would do."""


class CannotSplit(InvalidArgument):
    """A part was asked for of a check that can only be made as a whole."""

    def __init__(self, part: object, check: str, *, fix: str) -> None:
        super().__init__(f"part={part!r}: {check} cannot be split; {fix}")


class CannotCompare(CrosscheckError):
    """The two sides cannot be put side by side; nothing was passed silently."""


class MissingFramework(CrosscheckError, ImportError):
    """A framework is needed that is not installed."""

    def __init__(self, module: str, *, needed_for: str) -> None:
        root = module.partition(".")[0]
        extra = EXTRAS.get(root, root)
        super().__init__(
            f"{needed_for} needs the module `{root}`, which is not installed here.\n"
            f"  Fix: pip install 'crosscheck[{extra}]'"
        )
        self.module = root
        self.extra = extra


class DeviceUnavailable(CrosscheckError, RuntimeError):
    """A side cannot run on the device that was asked for."""


class TraceFormatError(CrosscheckError, ValueError):
    """A file that was given as a trace is not a readable one."""


class SideFailed(CrosscheckError, RuntimeError):
    """One side raised while it ran. The original exception is ``__cause__``.

    Attributes:
        side: ``"reference"`` or ``"candidate"``.
        site: the innermost site that was being computed, or None where none had begun.
        stage: ``"forward"``, ``"backward"`` or ``"optimizer"``.
        compared: what had been compared when the side failed (values of the free run), in
            execution order; empty for the reference.
    """

    def __init__(
        self,
        side: str,
        site: str | None,
        *,
        stage: str,
        framework: str,
        cause: BaseException,
        compared: Sequence[SiteResult] = (),
        advice: str = "",
    ) -> None:
        self.side = side
        self.site = site
        self.stage = stage
        self.framework = framework
        self.compared = tuple(compared)
        where = f"at `{site}`" if site else "before its first site"
        text = str(cause).strip() or repr(cause)
        is_optimizer = stage == "optimizer"
        what = f"in its {stage} pass {where}" if not is_optimizer else "in its optimizer's step"
        message = f"the {side} ({framework}) raised {what}: {type(cause).__name__}: {text}"
        if side == "candidate" and not is_optimizer:
            end = "" if message.endswith((".", "!", "?")) else "."  # a reader may join the lines
            message += f"{end}\n  {_progress_line(self.compared)}"
        if advice:
            message += f"\n  Fix: {advice}"
        super().__init__(message)

    def with_comparisons(self, compared: Sequence[SiteResult], advice: str = "") -> SideFailed:
        """The same failure, carrying what had been compared before it, and what may help."""
        assert self.__cause__ is not None
        failure = SideFailed(
            self.side,
            self.site,
            stage=self.stage,
            framework=self.framework,
            cause=self.__cause__,
            compared=compared,
            advice=advice,
        )
        failure.__cause__ = self.__cause__
        return failure


def _progress_line(compared: Sequence[SiteResult]) -> str:
    if not compared:
        return "Nothing had been compared before that."
    bad = [s for s in compared if s.verdict != "agree"]
    line = f"{len(compared) - len(bad)} of {len(compared)} sites compared before that agree"
    if bad:
        return f"{line}; the first that does not is `{bad[0].candidate}`."
    return f"{line}; the last is `{compared[-1].candidate}`."


class Diverged(AssertionError):
    """Raised by ``Report.raise_if_diverged``; the report is in ``.report``."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def capped(names: Iterable[Any], limit: int = 5) -> str:
    """``a, b, c and 4 more``: names in backquotes, at most ``limit`` of them."""
    items = list(names)
    text = ", ".join(f"`{name}`" for name in items[:limit])
    hidden = len(items) - limit
    return f"{text} and {hidden} more" if hidden > 0 else text
