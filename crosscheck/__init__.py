"""crosscheck: does the port compute the same function, where does it first depart, and why?

    report = crosscheck.check(reference, candidate, {"x": "float32[2,3,33,47]"})
    print(report)

Importing this loads no framework; what is needed is loaded when it is needed.
"""

from __future__ import annotations

import gc
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "CannotCompare": "errors",
    "CrosscheckError": "errors",
    "DeviceUnavailable": "errors",
    "Diverged": "errors",
    "InvalidArgument": "errors",
    "MissingFramework": "errors",
    "SideFailed": "errors",
    "TraceFormatError": "errors",
    "Divergence": "results",
    "Report": "results",
    "Tolerance": "judging.noise",
    "Pair": "pair",
    "adapt": "adapters",
    "audit": "auditing.run",
    "check": "api",
    "RecordedTrace": "traces.recorded",
    "load_trace": "traces.load",
    "record": "traces.record",
    "save_inputs": "traces.feed",
    "shrink": "shrink",
    "tap": "taps",
    "tap_cotangent": "taps",
}

_MODULES = ("checks", "losses", "optimizers")

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from crosscheck.adapters import adapt as adapt
    from crosscheck.api import check as check
    from crosscheck.auditing.run import audit as audit
    from crosscheck.errors import CannotCompare as CannotCompare
    from crosscheck.errors import CrosscheckError as CrosscheckError
    from crosscheck.errors import DeviceUnavailable as DeviceUnavailable
    from crosscheck.errors import Diverged as Diverged
    from crosscheck.errors import InvalidArgument as InvalidArgument
    from crosscheck.errors import MissingFramework as MissingFramework
    from crosscheck.errors import SideFailed as SideFailed
    from crosscheck.errors import TraceFormatError as TraceFormatError
    from crosscheck.judging.noise import Tolerance as Tolerance
    from crosscheck.pair import Pair as Pair
    from crosscheck.results import Divergence as Divergence
    from crosscheck.results import Report as Report
    from crosscheck.shrink import shrink as shrink
    from crosscheck.taps import tap as tap
    from crosscheck.taps import tap_cotangent as tap_cotangent
    from crosscheck.traces.feed import save_inputs as save_inputs
    from crosscheck.traces.load import load_trace as load_trace
    from crosscheck.traces.record import record as record
    from crosscheck.traces.recorded import RecordedTrace as RecordedTrace


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _imported(f"crosscheck.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'crosscheck' has no attribute {name!r}")
    # A function and its module may share a name (`tap`): the attribute is the function.
    value = getattr(_imported(f"crosscheck.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def _imported(module: str) -> ModuleType:
    """Nothing that an import makes is garbage; to look for some, through every object of the
    frameworks that are loaded, would take a third of its time."""
    looks = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if looks:
            gc.enable()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
