"""The backward pass of a PyTorch module as an ONNX graph.

The module runs once, eagerly, to see which cotangents there are, and once more under a tracer,
hooks and autograd included. What is left are the operations of its derivatives, which are exported
like any model. Every value that the forward pass shows is an input of this graph, so that the
derivatives are taken at the values of the model that runs, and not at PyTorch's; every cotangent is
an output, and may be replaced behind the place where it is seen.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from crosscheck.adapters.base import ModelRaised, call_arguments, input_site
from crosscheck.adapters.onnx.backward import Argument, VjpGraph
from crosscheck.adapters.onnx.decompositions import table
from crosscheck.adapters.torch.hooks import Hooks
from crosscheck.adapters.torch.state import left_as_found
from crosscheck.adapters.torch.taps import Replace, TorchSession, to_host
from crosscheck.aligning.layout import relative_error
from crosscheck.arrays import is_float
from crosscheck.kernels.two_llvms import without_triton
from crosscheck.observers import Key
from crosscheck.taps import COTANGENT_OF, Kind
from crosscheck.trace import owner

__all__ = ["exporting", "pair_keys", "trace"]

SAME = 1e-3
"""Relative difference up to which the two forward passes' values are taken for the same one."""


def trace(
    model: torch.nn.Module,
    root: str,
    inputs: Mapping[str, np.ndarray],
    forward: Mapping[Key, np.ndarray],
) -> VjpGraph:
    """Trace and export the backward pass.

    Args:
        root: name of the model's own site.
        inputs: the model's, in order, of the shapes that the graph is for.
        forward: what the ONNX model's forward pass shows for them.

    Raises:
        ModelRaised: the module cannot be traced, or a derivative has no ONNX operator.
    """
    arguments: dict[Argument, Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        arguments["parameter", name] = tensor.detach()
    arguments |= {("input", n): _tensor(a) for n, a in inputs.items()}
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    passes = _Passes(model, root, trainable)
    with left_as_found(model, train=False, seed=0), _plain_kernels():
        try:
            seen = passes.run(arguments, lambda _, t: torch.ones_like(t))
            twins = pair_keys({k: to_host(t) for k, t in seen.values.items()}, forward)
            arguments |= {("forward", k): _tensor(forward[twins[k]]) for k in twins}
            arguments |= {("given", site): torch.ones_like(t) for site, t in seen.given.items()}
            arguments |= {("forced", k): torch.ones_like(t) for k, t in seen.arrived.items()}
            arguments |= {("is_forced", k): torch.tensor(False) for k in seen.arrived}
            proto, branches = _export(passes, arguments, list(seen.arrived))
        except Exception as error:  # a foreign model, two tracers and an exporter
            raise ModelRaised(None, "exported backward") from error
    names = [output.name for output in proto.graph.output]
    made = {_twin(k, twins): n for k, n in zip(seen.arrived, names, strict=False)}
    absent = {_twin(k, twins): like for k, like in seen.absent.items()}
    shown = {**made, **absent}
    floats = [k for k, v in forward.items() if is_float(v)]
    return VjpGraph(
        proto=proto,
        arguments={
            _renamed(argument, twins): i.name
            for argument, i in zip(arguments, proto.graph.input, strict=True)
        },
        cotangents={k: n for k, n in made.items() if k is not None},
        gradients=dict(zip(trainable, names[len(seen.arrived) :], strict=True)),
        absent={k: like for k, like in absent.items() if k is not None},
        unobservable=frozenset((COTANGENT_OF[kind], s) for kind, s in floats) - shown.keys(),
        branches=branches,
    )


def pair_keys(ours: Mapping[Key, np.ndarray], theirs: Mapping[Key, np.ndarray]) -> dict[Key, Key]:
    """PyTorch's names of forward values -> the ONNX model's.

    The calls have the same names on both sides. Where a call has several inputs or outputs the
    file may have them in another order, or lack some: then the values decide.
    """
    groups: defaultdict[tuple[Kind, str], list[Key]] = defaultdict(list)
    for kind, site in theirs:
        groups[kind, owner(site)].append((kind, site))
    found: dict[Key, Key] = {}
    for key, value in ours.items():
        kind, site = key
        ranked = []
        for twin in groups[kind, owner(site)]:
            other = theirs[twin]
            if other.shape == value.shape and other.dtype == value.dtype:
                error = relative_error(other, value) if is_float(value) else 0.0
                if error <= SAME or not np.isfinite(value.astype(np.float64)).all():
                    ranked.append((twin != key, error, twin))
        if ranked:
            found[key] = min(ranked)[2]
            groups[kind, owner(site)].remove(found[key])
    return found


def _twin(key: Key, twins: Mapping[Key, Key]) -> Key | None:
    """The ONNX model's name of a cotangent."""
    forward: Kind = "activation" if key[0] == "cotangent" else "input"
    twin = twins.get((forward, key[1]))
    return None if twin is None else (key[0], twin[1])


def _renamed(argument: Argument, twins: Mapping[Key, Key]) -> Argument:
    part, name = argument
    if part == "forward":
        return part, twins[name]
    if part == "given":
        return part, twins.get(("activation", name), ("activation", name))[1]
    if part in ("forced", "is_forced"):
        return part, _twin(name, twins) or name
    return argument


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(array).reshape(array.shape))


def _export(
    passes: _Passes, arguments: Mapping[Argument, Tensor], order: Sequence[Key]
) -> tuple[onnx.ModelProto, bool]:
    """The graph, and whether values have decided what is in it."""

    def flat(*tensors: Tensor) -> list[Tensor]:
        named = dict(zip(arguments, tensors, strict=True))
        seen = passes.run(named, lambda site, _: named.get(("given", site)))
        return [*(seen.arrived[key] for key in order), *seen.gradients]

    example = tuple(arguments.values())
    branches = False
    try:
        graph = make_fx(flat, decomposition_table=table())(*example)
    except RuntimeError as error:
        if "_local_scalar_dense" not in str(error):
            raise
        branches = True
        lenient = make_fx(flat, decomposition_table=table(), _error_on_data_dependent_ops=False)
        graph = lenient(*example)
    with exporting():
        program = torch.onnx.export(graph, example, dynamo=True, optimize=False, verbose=False)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto, branches


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Fused kernels (attention, LSTM) have fused derivatives, which ONNX has not."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def exporting() -> Iterator[None]:
    """Without the exporter's warnings and progress, and without what would abort."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with torch.no_grad(), without_triton(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


# -- one pass --------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What one forward and backward pass of the module gave."""

    values: dict[Key, Tensor]
    given: dict[str, Tensor]
    arrived: dict[Key, Tensor]
    gradients: list[Tensor]
    absent: dict[Key, tuple[tuple[int, ...], np.dtype]]


@dataclass
class _Passes:
    """Passes of one module, on tensors that may be traced."""

    model: torch.nn.Module
    root: str
    trainable: Sequence[str]

    def run(
        self,
        arguments: Mapping[Argument, Tensor],
        cotangent: Callable[[str, Tensor], Tensor | None],
    ) -> _Seen:
        """``cotangent(site, output)`` is what an output receives."""
        parts: dict[str, dict[Any, Tensor]] = {"parameter": {}, "input": {}}
        for (part, name), tensor in arguments.items():
            parts.setdefault(part, {})[name] = tensor
        session = _Tracing(self.root, arguments)
        hooks = Hooks(session, self.model)
        own = {
            n: t.detach().requires_grad_(n in self.trainable) for n, t in parts["parameter"].items()
        }
        fed = {
            n: t.detach().requires_grad_(t.is_floating_point()) for n, t in parts["input"].items()
        }
        with torch.enable_grad(), hooks.installed(), session.active():
            tapped = {
                n: session.tap_value(input_site(n), "activation", t.clone()) for n, t in fed.items()
            }
            args, kwargs = call_arguments(self.model.forward, tapped)
            torch.func.functional_call(self.model, own, tuple(args), kwargs)
            roots = [
                (site, t, dy)
                for site, t in hooks.outputs
                if t.requires_grad and (dy := cotangent(site, t)) is not None
            ]
            gradients = self._gradients(roots, own, fed)
        absent = {
            key: (tuple(t.shape), np.dtype(str(t.dtype).removeprefix("torch.")))
            for key, t in session.expected.items()
            if key not in session.arrived and key not in session.unobservable
        }
        hidden = session.unobservable
        arrived = {k: t for k, t in session.arrived.items() if k not in hidden}
        given = {site: t for site, t, _ in roots}
        return _Seen(session.values, given, arrived, gradients, absent)

    def _gradients(
        self,
        roots: Sequence[tuple[str, Tensor, Tensor]],
        own: Mapping[str, Tensor],
        fed: Mapping[str, Tensor],
    ) -> list[Tensor]:
        leaves = [own[name] for name in self.trainable]
        if not roots:
            return []
        found = torch.autograd.grad(
            [t for _, t, _ in roots],
            [*leaves, *(t for t in fed.values() if t.requires_grad)],
            [dy for _, _, dy in roots],
            allow_unused=True,
        )[: len(leaves)]
        return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]


class _Tracing(TorchSession):
    """Taps that pass tensors on as they are: under the tracer a value is no array yet."""

    def __init__(self, root: str, arguments: Mapping[Argument, Tensor]) -> None:
        super().__init__(_see_nothing, separator=".", root=root)
        self._arguments = arguments
        self.values: dict[Key, Tensor] = {}
        self._inputs: dict[str, tuple[Tensor, Tensor]] = {}
        self.expected: dict[Key, Tensor] = {}
        self.arrived: dict[Key, Tensor] = {}

    def tap_value(self, site: str, kind: Kind, value: Tensor) -> Tensor:
        if kind == "input":
            known = self._known_input(site, value)
            if known is not None:
                return known
        self.values[kind, site] = value.detach().clone()  # it may be overwritten in place
        original, given = value, self._arguments.get(("forward", (kind, site)))
        if given is not None:
            value = Replace.apply(value, [given])  # type: ignore[no-untyped-call]
        if value.requires_grad:
            # Each site has a node of its own. Not a view: overwriting one in place has derivatives
            # that ONNX has no operators for.
            value = value.clone()
            key = COTANGENT_OF[kind], site
            self.expected[key] = value
            value.register_hook(lambda g: self._on_cotangent(key, g))  # type: ignore[no-untyped-call]
        if kind == "input":
            self._inputs[site] = original, value
        return value

    def _known_input(self, site: str, value: Tensor) -> Tensor | None:
        """A tensor that one call is given several times is one input in the file."""
        given = (pair for other, pair in self._inputs.items() if owner(other) == owner(site))
        return next((tapped for original, tapped in given if original is value), None)

    def forget_cotangent(self, site: str, kind: Kind) -> None:
        """Called for an input that the layer has overwritten in place: others may read it too."""
        super().forget_cotangent(site, kind)
        if kind == "input" and site in self._inputs:
            original, tapped = self._inputs.pop(site)
            if original is not tapped:
                original.copy_(tapped)

    def _on_cotangent(self, key: Key, cotangent: Tensor) -> Tensor | None:
        self.arrived[key] = cotangent
        wanted = self._arguments.get(("is_forced", key))
        if wanted is None:
            return None
        return torch.where(wanted, self._arguments["forced", key], cotangent)


def _see_nothing(site: str, kind: Kind, value: np.ndarray) -> None:
    return None
