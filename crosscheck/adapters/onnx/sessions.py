"""ONNX Runtime sessions over variants of one model: as it is, with values shown, and forced.

In a forced variant a site's value becomes a graph output (what was produced), and what lies behind
the site reads a new graph input (what is forced), so that one session judges every layer.

Sessions borrow the weights (`crosscheck.adapters.onnx.weights`): another variant costs a graph and
what the kernels rearrange, not the model. Options that the caller made cannot be added to, so there
the weights go along: in the message, or in files where they are too large for one.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from crosscheck.adapters.base import ModelRaised
from crosscheck.adapters.onnx.feeds import numpy_type
from crosscheck.adapters.onnx.fetching import computed
from crosscheck.adapters.onnx.options import Options, runtime
from crosscheck.adapters.onnx.structure import Structure, reads, subgraphs
from crosscheck.adapters.onnx.versions import refusal
from crosscheck.adapters.onnx.weights import Weights, embedded
from crosscheck.adapters.onnx.wide import widen
from crosscheck.errors import DeviceUnavailable, InvalidArgument
from crosscheck.kernels.on_device import DeviceArray, held
from crosscheck.observers import Key

__all__ = ["LIMIT", "Sessions"]

LIMIT = 2**31 - 2**24
"""Bytes of weights above which those that go along go in files: a protobuf ends at 2 GB."""
KEPT = 2
HELD = 2**26
"""Bytes of weights up to which sessions are kept. Kernels hold a copy of them in an order of their
own, and making it takes a fraction of one run of a large model."""


@dataclass(eq=False)
class Variant:
    """A session, what it borrows, and where its weights are if they did not fit elsewhere."""

    session: Any
    weights: Weights
    folder: tempfile.TemporaryDirectory[str] | None


class Sessions:
    """The variants of one model, made when they are needed; the latest few are kept.

    Args:
        weights: the model; `forget` must be called when they change.
        limit: see `LIMIT`.

    Attributes:
        options: how they are made; `use` changes it.
    """

    def __init__(
        self, weights: Weights, structure: Structure, options: Options, limit: int
    ) -> None:
        self.weights, self.structure = weights, structure
        self.options = options
        self._limit = limit
        self._kept: OrderedDict[Any, Variant] = OrderedDict()
        self.types: dict[str, str] = {}
        self._all: list[str] = []  # the values to show
        self._too_wide: Exception | None = None  # why the whole graph has no session in float64

    def use(self, options: Options) -> None:
        """Make sessions that way from now on."""
        if options != self.options:
            self.options, self._too_wide = options, None
            self.forget()

    def forget(self) -> None:
        """The weights have changed."""
        self._kept.clear()

    def learn_types(self, values: Sequence[str]) -> None:
        """Make `types` known: value -> ``tensor(float)``. It does not depend on the weights.

        Raises:
            ModelRaised: ONNX Runtime does not take the model.
        """
        if not self.types:
            self._all = list(dict.fromkeys(values))
            self._kept["showing"] = variant = self._showing({})  # the run to come takes it
            self.types = {o.name: o.type for o in variant.session.get_outputs()}

    def run_bare(
        self,
        names: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        overridden: Mapping[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """The model's outputs, with nothing shown or forced."""
        variant = self._get("bare", overridden, lambda graph: None)
        return self._run(variant, names, feeds)

    def run(
        self,
        names: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        forced: Mapping[Key, np.ndarray],
        overridden: Mapping[str, np.ndarray],
        *,
        alone: bool = False,
        wide: bool = False,
    ) -> dict[str, np.ndarray]:
        """Values by name.

        Args:
            forced: replacements; what lies behind these sites reads them.
            overridden: initializers to use instead of the model's own, this once.
            alone: the graph is cut down to what these values take, for this run.
            wide: in float64, for this run; what is fed and forced is.

        Raises:
            ModelRaised: what ONNX Runtime raised, with the site of the node that it names.
        """
        if not names:
            return {}
        if not forced and not alone:
            return self._run(self._showing(overridden, wide), names, feeds)
        types = {k: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in forced.items()}

        def change(graph: onnx.GraphProto) -> None:
            for key, dtype in types.items():
                graph.input.append(onnx.helper.make_tensor_value_info(feed_name(key), dtype, None))
            self._redirect(graph, forced.keys())
            if alone:
                _cut_down(graph, names)
            _show(graph, names)

        name = "alone" if alone else "forced", frozenset(types.items()), tuple(names)
        fed = {feed_name(key): value for key, value in forced.items()}
        return self._run(self._get(name, overridden, change, wide), names, {**feeds, **fed})

    def _showing(self, overridden: Mapping[str, np.ndarray], wide: bool = False) -> Variant:
        return self._get("showing", overridden, lambda graph: _show(graph, self._all), wide)

    def _run(
        self, variant: Variant, names: Sequence[str], feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        if not names:
            return {}
        try:
            found = computed(
                variant.session, names, feeds, device=self.options.device, floating=self._floating
            )
        except Exception as error:  # ONNX Runtime has a class of its own for every status
            raise ModelRaised(self.site_in(str(error)), "forward") from error
        if not self.options.lends:  # the caller's options: what it made may lie in one arena
            found = [held(value, borrowed=isinstance(value, DeviceArray)) for value in found]
        return dict(zip(names, found, strict=True))

    @property
    def _floating(self) -> set[str]:
        """The values that are floating point numbers of NumPy's."""
        kinds = {name: numpy_type(kind) for name, kind in self.types.items()}
        return {name for name, dtype in kinds.items() if dtype is not None and dtype.kind == "f"}

    def site_in(self, message: str) -> str | None:
        """The site of the node that an error message of ONNX Runtime names."""
        nodes = self.structure.graph.node
        quoted = re.findall(r"""['"]([^'"]+)['"]|Name:\s*(\S+)|[(]([^()\s]+)[)]""", message)
        words = {word for groups in quoted for word in groups if word}
        for i, node in enumerate(nodes):
            if node.name in words:
                return self.structure.site_of(i)
        for i, node in enumerate(nodes):  # an operator that it has no kernel or schema for
            if re.search(rf"\b{re.escape(node.op_type)}[(:]", message):
                return self.structure.site_of(i)
        return None

    # -- details -----------------------------------------------------------------------------------

    def _get(
        self,
        name: Any,
        overridden: Mapping[str, np.ndarray],
        change: Callable[[onnx.GraphProto], None],
        wide: bool = False,
    ) -> Variant:
        if overridden or wide:
            return self._make(self.weights.with_values(overridden), change, wide)
        made = self._kept.pop(name, None) or self._make(self.weights.with_values({}), change)
        if name != "bare" and self.weights.nbytes <= HELD:
            self._kept[name] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    def _make(
        self, weights: Weights, change: Callable[[onnx.GraphProto], None], wide: bool = False
    ) -> Variant:
        """Args: ``weights``: a copy of the graph, to be changed."""
        change(weights.proto.graph)
        whole = len(weights.proto.graph.node) == len(self.structure.graph.node)
        if wide:
            weights = self._widened(weights, whole)
        folder = None
        source: bytes | str
        if self.options.lends:
            used = _leave_out_unused(weights.proto.graph)  # they cannot be lent
            lent = {name: array for name, array in weights.lent.items() if name in used}
            source = weights.proto.SerializeToString()
        else:
            source, folder = self._with_weights(weights)
            lent = {}
        try:
            session = self.options.session(source, weights.proto.graph, lent)
        except Exception as error:  # as above: unknown operators, types that do not fit
            with contextlib.suppress(AttributeError):
                folder.cleanup()  # type: ignore[union-attr]
            if not wide:
                _blame_the_installation(error, weights.proto)
            elif whole:
                self._too_wide = error
            raise ModelRaised(self.site_in(str(error)), "forward") from error
        return Variant(session, weights, folder)

    def _widened(self, weights: Weights, whole: bool) -> Weights:
        """In float64; not tried again where it is known that there is no such session."""
        if whole and self._too_wide is not None:
            raise ModelRaised(self.site_in(str(self._too_wide)), "forward") from self._too_wide
        _leave_out_unused(weights.proto.graph)
        return widen(weights)

    def _with_weights(
        self, weights: Weights
    ) -> tuple[bytes | str, tempfile.TemporaryDirectory[str] | None]:
        whole = embedded(weights)
        if weights.nbytes < self._limit:
            return whole.SerializeToString(), None
        folder = tempfile.TemporaryDirectory(prefix="crosscheck-")
        path = str(Path(folder.name) / "model.onnx")
        onnx.save_model(
            whole, path, save_as_external_data=True, location="weights", size_threshold=0
        )
        return path, folder

    def _redirect(self, graph: onnx.GraphProto, forced: Collection[Key]) -> None:
        for node, stack in zip(graph.node, self.structure.stacks, strict=True):
            _rename(node, lambda value, stack=stack: self._reads(value, stack, forced))  # type: ignore[misc]

    def reached(self, initializers: Collection[str], forced: Collection[Key]) -> set[str]:
        """The values that depend on any of these initializers, what is forced in between."""
        found = set(initializers)
        for node, stack in zip(self.structure.graph.node, self.structure.stacks, strict=True):
            if any(self._reads(value, stack, forced) in found for value in reads(node)):
                found.update(node.output)
        return found

    def taken_by(
        self, wanted: Collection[Key], forced: Collection[Key]
    ) -> tuple[set[Key], set[str]]:
        """What is needed to show values: forced sites in front of them, and all other values."""
        needed, replaced = set[str](), set[Key]()
        for event in self.structure.events:
            if event.key in wanted:
                passed = [key for key in self.structure.before(event) if key in forced]
                replaced.update(passed[-1:])
                needed.update([] if passed else [event.value])
        nodes = zip(self.structure.graph.node, self.structure.stacks, strict=True)
        for node, stack in reversed([*nodes]):
            if needed.isdisjoint(node.output):
                continue
            for value in reads(node):
                passed = [key for key in self.structure.way(value, stack) if key in forced]
                replaced.update(passed[-1:])
                needed.update([] if passed else [value])
        return replaced, needed

    def _reads(self, value: str, stack: tuple[int, ...], forced: Collection[Key]) -> str:
        if not value:
            return value
        passed = [key for key in self.structure.way(value, stack) if key in forced]
        return feed_name(passed[-1]) if passed else value


def _blame_the_installation(error: Exception, proto: onnx.ModelProto) -> None:
    """Raise what is no fault of the model's: a device or a version that there is not."""
    if isinstance(error, DeviceUnavailable):
        raise error
    reason = refusal(str(error), proto, runtime().__version__)
    if reason is not None:
        raise InvalidArgument(reason) from error


def feed_name(key: Key) -> str:
    """The graph input that carries what is forced at a site."""
    return f"crosscheck.forced.{key[0]}.{key[1]}"


def _show(graph: onnx.GraphProto, values: Sequence[str]) -> None:
    shown = {o.name for o in graph.output}
    for value in values:
        if value not in shown:
            graph.output.append(onnx.ValueInfoProto(name=value))  # the type is inferred


def _cut_down(graph: onnx.GraphProto, values: Sequence[str]) -> None:
    """Leave only what the values take."""
    needed = set(values)
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if needed.intersection(node.output):
            needed.update(reads(node))
        else:
            del graph.node[i]
    del graph.output[:]


def _leave_out_unused(graph: onnx.GraphProto) -> set[str]:
    """Take out initializers that nothing reads. Returns all that is read."""
    used = {value for node in graph.node for value in reads(node)}
    used |= {output.name for output in graph.output}
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in used:
            del graph.initializer[i]
    return used


def _rename(node: onnx.NodeProto, name: Callable[[str], str]) -> None:
    """Change what a node reads, in its bodies too (names are unique over all of them)."""
    for i, value in enumerate(node.input):
        node.input[i] = name(value)
    for body in subgraphs(node):
        own = {v.name for v in body.input} | {t.name for t in body.initializer}
        own |= {o for inner in body.node for o in inner.output}

        def outer(value: str, own: set[str] = own) -> str:
            return value if value in own else name(value)

        for inner in body.node:
            _rename(inner, outer)
        for output in body.output:
            output.name = outer(output.name)
