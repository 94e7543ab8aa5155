"""How ONNX Runtime's sessions are made: optimisation level, execution providers, device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from crosscheck.adapters.onnx.providers import (
    CPU,
    CUDA,
    OPTIONS,
    RECORD,
    require_assigned,
    require_available,
)
from crosscheck.errors import DeviceUnavailable, InvalidArgument, MissingFramework

__all__ = ["LEVELS", "Options", "Placed", "runtime"]

LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


def runtime() -> Any:
    """The module `onnxruntime`.

    Raises:
        MissingFramework: it is not installed.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingFramework("onnxruntime", needed_for="running an ONNX model") from error
    return onnxruntime


@dataclass(frozen=True)
class Options:
    """How sessions are made.

    Attributes:
        session_options: an ``onnxruntime.SessionOptions``, used as it is.
        optimization: a key of `LEVELS`; None: ONNX Runtime's own default, all.
        providers: execution providers, first choice first.
    """

    session_options: Any = None
    optimization: str | None = None
    providers: tuple[str, ...] = (CPU,)

    @property
    def device(self) -> str:
        """``"cuda"`` or ``"cpu"``: that of the first choice."""
        return "cuda" if self.providers[0] == CUDA else "cpu"

    @property
    def level(self) -> str:
        """How much is optimised."""
        return "session_options" if self.session_options is not None else self.optimization or "all"

    def check(self) -> None:
        """Refuse what cannot be honoured, before anything runs.

        Raises:
            InvalidArgument, DeviceUnavailable.
        """
        if self.optimization is not None and self.optimization not in LEVELS:
            known = ", ".join(f'"{level}"' for level in LEVELS)
            raise InvalidArgument(f"optimization={self.optimization!r}: must be one of {known}")
        if self.session_options is not None and self.optimization is not None:
            raise InvalidArgument(
                "session_options= and optimization= both say how to optimise. Give one: "
                "session_options.graph_optimization_level holds the same setting"
            )
        if self.session_options is not None and not isinstance(
            self.session_options, runtime().SessionOptions
        ):
            kind = type(self.session_options).__name__
            raise InvalidArgument(f"session_options= is a {kind}, not onnxruntime.SessionOptions")
        if not self.providers:
            raise InvalidArgument("providers= is empty: name one at least, or leave it out")
        require_available(runtime(), self.providers)

    def make(self) -> Any:
        """The options of one session."""
        if self.session_options is not None:
            self.session_options.add_session_config_entry(RECORD, "1")  # changes no value
            return self.session_options
        ort = runtime()
        options = ort.SessionOptions()
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # errors come as exceptions
        # Whoever keeps one value of an arena keeps all of it; without, values need not be copied.
        options.enable_cpu_mem_arena = False
        # Several sessions are kept at a time; their idle threads would keep the cores busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry(RECORD, "1")
        level = LEVELS[self.level]
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        return options

    @property
    def lends(self) -> bool:
        """Whether sessions can be lent weights: the caller's own options are left as they are."""
        return self.session_options is None

    def session(
        self,
        source: bytes | str,
        graph: onnx.GraphProto,
        lent: Mapping[str, np.ndarray] | None = None,
    ) -> Any:
        """A session of a serialised model, or of one in a file; ``graph`` is its graph.

        Args:
            lent: initializers that the model marks as external; the session works on this memory,
                which must stay as it is for as long.

        Raises:
            DeviceUnavailable: ONNX Runtime would run any of it elsewhere than asked.
        """
        chosen = [(name, OPTIONS.get(name, {})) for name in self.providers]
        options = self.make()
        if lent:
            values = {name: _borrowed(array) for name, array in lent.items()}
            options.add_external_initializers(list(values), list(values.values()))
            for name, value in values.items() if self.device == "cpu" else ():
                options.add_initializer(name, value)  # not copied either, then
        made = runtime().InferenceSession(source, options, providers=chosen)
        require_assigned(made, self.providers, graph)
        return made


def _borrowed(array: np.ndarray) -> Any:
    """ONNX Runtime's view of an array, which keeps it alive."""
    made = runtime().OrtValue
    if array.dtype.name == "bfloat16":  # no type of NumPy's own
        bits = array.view(np.uint16)
        return made.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
    return made.ortvalue_from_numpy(array)


class Placed:
    """The half of an adapter that knows where ONNX Runtime shall run it.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``; set by `use`, and put back by whoever gives up.
    """

    device: str = "cpu"
    _options: Options
    _pinned: bool

    def pin(self, options: Options) -> None:
        """Start from these; providers other than the CPU's are not changed by `use`."""
        options.check()
        self._options = options
        self._pinned = options.providers != (CPU,)
        self.device = options.device

    def use(self, device: str) -> None:
        """See `crosscheck.adapters.base.Adapter.use`."""
        if self._pinned and device != self._options.device:
            raise DeviceUnavailable(
                f"this ONNX model was given providers={list(self._options.providers)}.\n"
                f'  Fix: device="{self._options.device}", or leave providers= out'
            )
        if device == "cuda":
            require_available(runtime(), [CUDA])
        self.device = device

    @property
    def options(self) -> Options:
        """How sessions are made there."""
        if self._pinned:
            return self._options
        return replace(self._options, providers=(CUDA if self.device == "cuda" else CPU,))

    @property
    def environment(self) -> Mapping[str, Any]:
        """Providers and precision, for the report."""
        found = {"providers": ", ".join(self.options.providers), "optimization": self.options.level}
        return {**found, "tf32": "off"} if self.device == "cuda" else found
