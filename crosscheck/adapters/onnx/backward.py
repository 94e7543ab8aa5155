"""Running the backward pass of a PyTorch module in ONNX Runtime (the graph: `vjp`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from crosscheck.adapters.base import ModelRaised
from crosscheck.adapters.onnx.feeds import numpy_type
from crosscheck.adapters.onnx.options import Options
from crosscheck.observers import Key

__all__ = ["FORMULAS", "Argument", "BackwardRun", "BackwardSession", "VjpGraph"]

Argument = tuple[str, Any]
"""What an input of the graph carries: ``("parameter", name)``, ``("input", name)``, ``("forward",
key)``, ``("given", output site)``, ``("forced", key)`` or ``("is_forced", key)``, a boolean."""

FORMULAS = (
    "the backward pass is PyTorch's derivative formulas in ONNX Runtime's kernels, taken at this "
    "model's own values: it checks the kernels, not the formulas, nor any graph but this export's"
)


@dataclass(frozen=True)
class VjpGraph:
    """A module's backward pass at given shapes. Keys and sites are the ONNX model's.

    Attributes:
        proto: the graph.
        arguments: what is passed -> input of the graph.
        cotangents: key -> output of the graph, in the order in which the backward pass makes them.
        gradients: parameter -> output of the graph.
        absent: key -> (shape, dtype) of the cotangents that never arrive.
        unobservable: forward values whose cotangent cannot be shown.
        branches: the module asks for values to decide what to compute (is there any padding?), so
            that the graph holds for these inputs only.
    """

    proto: onnx.ModelProto
    arguments: Mapping[Argument, str]
    cotangents: Mapping[Key, str]
    gradients: Mapping[str, str]
    absent: Mapping[Key, tuple[tuple[int, ...], np.dtype]]
    unobservable: frozenset[Key]
    branches: bool = False


class BackwardSession:
    """A session of the graph."""

    def __init__(self, graph: VjpGraph, options: Options) -> None:
        self.graph = graph
        self._session = options.session(graph.proto.SerializeToString(), graph.proto.graph)
        self._inputs = {
            i.name: (tuple(i.shape), numpy_type(i.type)) for i in self._session.get_inputs()
        }

    def run(self, arguments: Mapping[Argument, np.ndarray]) -> dict[str, np.ndarray]:
        """Output of the graph -> value. What is not passed is zero, or False.

        Raises:
            ModelRaised: ONNX Runtime raised.
        """
        feeds = {}
        for argument, name in self.graph.arguments.items():
            if name in self._inputs:
                shape, dtype = self._inputs[name]
                value = arguments.get(argument)
                feeds[name] = (
                    np.zeros(shape, dtype) if value is None else np.asarray(value, dtype, order="C")
                )
        names = [output.name for output in self._session.get_outputs()]
        try:
            found = self._session.run(names, feeds)
        except Exception as error:  # ONNX Runtime has a class of its own for every status
            raise ModelRaised(None, "backward") from error
        return dict(zip(names, found, strict=True))


class BackwardRun:
    """One backward pass: its arguments are known, what is forced may change.

    Attributes:
        keys: the cotangents that can be shown and replaced, in order.
        gradients: parameter -> gradient, of the latest `values`.
    """

    def __init__(
        self, session: BackwardSession, arguments: Mapping[Argument, np.ndarray], *, passive: bool
    ) -> None:
        self._session, self._arguments = session, arguments
        graph = session.graph
        shown = (*graph.cotangents, *graph.absent)
        self.keys = [k for k in shown if not (passive and k[0] == "input_cotangent")]
        self.gradients: dict[str, np.ndarray] = {}

    def values(self, plan: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
        """Key -> cotangent as produced, with the replacements of ``plan`` in effect behind it."""
        graph = self._session.graph
        forced: dict[Argument, np.ndarray] = {("forced", key): value for key, value in plan.items()}
        forced |= {("is_forced", key): np.array(True) for key in plan}
        found = self._session.run({**self._arguments, **forced})
        self.gradients = {name: found[output] for name, output in graph.gradients.items()}
        shown = {}
        for key in self.keys:
            if key in graph.cotangents:
                shown[key] = found[graph.cotangents[key]]
            else:
                shown[key] = np.zeros(*graph.absent[key])
        return shown
