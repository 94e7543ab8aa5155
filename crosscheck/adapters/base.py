"""The contract of an adapter: how crosscheck sees a model, whatever framework it is written in.

An adapter installs taps at layer boundaries, runs the model with an observer, and reads and writes
its parameters. Everything else in the project works on what it returns. The contract test suite
(`tests/adapters/contract.py`) runs over every adapter.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crosscheck.errors import CrosscheckError, DeviceUnavailable
from crosscheck.judging.quantised import Steps
from crosscheck.taps import Observer, Session
from crosscheck.trace import RunInfo

if TYPE_CHECKING:
    from crosscheck.observers import Key

__all__ = [
    "Adapter",
    "Capabilities",
    "CotangentSource",
    "ModelRaised",
    "Operation",
    "Parameter",
    "call_arguments",
    "guarded",
    "input_site",
]

CotangentSource = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Given the model's outputs {site: array}, the cotangent of each that shall receive one."""


@dataclass(frozen=True)
class Operation:
    """One operation of a layer call.

    Attributes:
        name: as the framework's users know it (``torch.nn.functional.gelu``).
        where: the line of the model that asked for it (``net.py:12``), "" where unknown.
        site: the layer call that it was part of.
        value: its first result, on the host.
        inputs: indices, in the same list, of the operations whose results it was given.
        literals: its other arguments, as text.
        hidden: not the model's own: a tap, through which a value passes unchanged.
    """

    name: str
    where: str
    site: str
    value: np.ndarray
    inputs: tuple[int, ...] = ()
    literals: tuple[str, ...] = ()
    hidden: bool = False

    def __str__(self) -> str:
        return f"`{self.name}` in `{self.site}`" + (f" ({self.where})" if self.where else "")


@dataclass(frozen=True)
class Capabilities:
    """What an adapter can do for its model. What it cannot is reported as not compared."""

    cotangents: bool = True
    parameters: bool = True
    float64: bool = True
    train: bool = True
    cuda: bool = False
    forcing: bool = True  # False: a recorded run, which can be looked at and not be run again
    # Where nothing is replaced, a run that is not passive is bit for bit a passive one, but for the
    # order in which cotangents of several consumers are added up; and there is no other program
    # (a compiled function) that only passive runs look at.
    transparent: bool = False
    # An observer with ``borrows`` is shown the model's own memory, and `RunInfo.overwritten` says
    # what of it was written to.
    lends: bool = False
    # Leaves out the calls in an observer's ``needless``, and gives what it plans for them instead.
    leaves_out: bool = False


@dataclass(frozen=True)
class Parameter:
    """One parameter or buffer of a model, as transfer needs to know it.

    Attributes:
        name: the framework's own name, with the model's root left out (``blocks.0.fc.weight``).
        value: the array; a view where the framework allows one, never written to by the stages.
        layer: path of the layer that owns it (``blocks.0.fc``), ``""`` for the model itself.
        role: ``"weight" | "bias" | "mean" | "variance" | "other"``: what it does in its layer.
            A norm's gamma is its weight, its beta the bias.
        kind: ``"dense" | "conv" | "norm" | "embedding" | "lstm" | "gru" | "rnn" | "other"``: kind
            of the layer.
        axes: the names of its axes, None where the adapter cannot know them. Known names: ``out``,
            ``in``, ``d``, ``h``, ``w``, ``mult``, ``channel``, ``row``, ``dim``; ``out/0, out/1``
            for an axis split in two (heads); ``-h`` for one that is read backwards; ``gates:ifgo``
            for the output axis of a recurrent kernel, with the order of its gates.
        trainable: False for buffers and frozen parameters: no gradient is compared.
        buffer: True for state that a forward pass in train mode changes.
        also: what other layers know the same parameter as (tied weights): the same value under
            their names, roles, kinds and axes.
        named: the path of ``layer`` as names tell it, where its sites are called otherwise (a node
            of an ONNX graph); ``""``: the same.
    """

    name: str
    value: np.ndarray
    layer: str
    role: str
    kind: str
    axes: tuple[str, ...] | None
    trainable: bool = True
    buffer: bool = False
    also: tuple[Parameter, ...] = ()
    named: str = ""

    @property
    def home(self) -> str:
        """The path by which its layer is told from others, and matched."""
        return self.named or self.layer


class Adapter(abc.ABC):
    """A model, ready to be run with taps.

    Attributes:
        framework: ``"torch"``, ``"numpy"``, ``"keras"``, ...
        version: of the framework, for the report.
        device: where it runs, ``"cpu"`` unless `use` says otherwise.
        separator: between the parts of a path (``.`` or ``/``).
        capabilities: what `run` supports for this model.
    """

    framework: str
    version: str
    separator: str = "."
    capabilities: Capabilities = Capabilities()
    device: str = "cpu"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of a report should know about this model; complete after a run."""
        return ()

    @property
    def steps(self) -> Steps:
        """Quantisation steps of a quantised model; complete after a run."""
        return Steps()

    @property
    def in_place(self) -> bool:
        """Whether the model overwrites values that it has shown; complete after a run. Forced, it
        overwrites what stands in their place, so that its own backward pass is not seen to fail."""
        return False

    @property
    def environment(self) -> Mapping[str, Any]:
        """Precision and determinism as the latest run had them, for the report."""
        return {}

    def use(self, device: str) -> None:
        """Run on ``"cpu"`` or ``"cuda"`` from now on.

        Raises:
            DeviceUnavailable: says what is missing and what to do.
        """
        if device != self.device:
            raise DeviceUnavailable(
                f"the {self.framework} adapter of this version runs on the {self.device} only.\n"
                f'  Fix: device="{self.device}"'
            )

    @abc.abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters and buffers in definition order; a shared one once, under its first name."""

    def declared(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int | None, ...]]:
        """The shape that the model declares for each of these inputs, None for any size; those
        that it says nothing of are missing. What is no input for it at all, `run` refuses."""
        return {}

    def overlooked(self) -> Mapping[str, tuple[int, ...]]:
        """path -> shape of arrays that the model holds, but that are not taken for parameters."""
        return {}

    def unnamed(self) -> tuple[str, ...]:
        """Names of weights that a tool made of one parameter each, and called otherwise."""
        return ()

    def merged(self) -> tuple[str, ...]:
        """Names of weights that a tool made of several parameters, which are gone."""
        return ()

    def held(self, values: Mapping[str, np.ndarray]) -> frozenset[str]:
        """Those whose numbers this model holds exactly, in any order, alone or among others, under
        a parameter's name or none. Nothing, of a model that is no file which a tool may have made
        of another model."""
        return frozenset()

    @abc.abstractmethod
    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Write parameters by name, in place, cast to their own dtypes.

        Raises:
            KeyError: an unknown name.
            ValueError: a shape that is not the parameter's.
        """

    @abc.abstractmethod
    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        cotangents: CotangentSource | None = None,
        float64: bool = False,
        overrides: Mapping[str, np.ndarray] | None = None,
        train: bool = False,
        seed: int = 0,
        passive: bool = False,
    ) -> RunInfo:
        """Run the model once, forward and, where ``cotangents`` is given, backward.

        What the observer is shown, in this order: every input (kind ``activation``, site
        ``input:NAME``); per layer call its inputs (``input``) and outputs (``activation``); the
        model's own outputs (``output``, ``output:1``, ...); then backward the cotangent of each
        of those that can have one, the ones that never arrived last, as zeros.

        Args:
            inputs: name -> array. A single one is passed by position; several by name where the
                model knows all the names, else in order.
            observer: see `crosscheck.taps`.
            cotangents: called once with the outputs, as produced.
            float64: cast inputs and parameters to float64 for this run.
            overrides: parameter name -> value to use instead, for this run only.
            train: train mode (batch statistics); eval mode otherwise.
            seed: of the framework's global generators, for this run only.
            passive: insert nothing into the graph, so that outputs and gradients are bit for bit
                those of a run without taps. To see the cotangent of one *input* of a layer takes a
                node there, which sums what the layer sends back before it joins the rest; so a
                passive run shows no ``input_cotangent``, and its observer may not replace.

        The model is left as it was found: parameters, buffers, modes, hooks, gradients, and the
        framework's random state and precision flags.

        Raises:
            ModelRaised: whatever the model raised, chained, with the site.
            crosscheck.CrosscheckError: raised by ``observer`` or ``cotangents``, as it is.
        """

    def taken_by(
        self, wanted: Collection[Key], forced: Collection[Key]
    ) -> tuple[frozenset[Key], frozenset[str]] | None:
        """What values hang on in a forced run, where the adapter can compute them alone: a run does
        if its observer has ``only``, the values that it is made for.

        Args:
            wanted: the values.
            forced: where values are replaced.

        Returns:
            Those of ``forced``, and the names of parameters; None where it computes everything.
        """
        return None

    def operations(
        self,
        site: str,
        inputs: Mapping[str, np.ndarray],
        observer: Observer,
        *,
        train: bool = False,
        seed: int = 0,
    ) -> tuple[Operation, ...]:
        """What is computed during the layer call at ``site``, in order, in a forward run like
        `run`; empty where the framework cannot show it."""
        return ()


def input_site(name: str) -> str:
    """The site of a model's input."""
    return f"input:{name}"


class ModelRaised(Exception):
    """The model raised while it ran. `crosscheck.run` adds the side and makes it a SideFailed."""

    def __init__(self, site: str | None, stage: str) -> None:
        super().__init__(site, stage)
        self.site = site
        self.stage = stage


@contextmanager
def guarded(session: Session, stage: str) -> Iterator[None]:
    """Turn whatever the model raises into `ModelRaised`; our own errors pass as they are."""
    try:
        yield
    except CrosscheckError:
        raise
    except Exception as error:  # the model is foreign code: anything may come out of it
        raise ModelRaised(session.current, stage) from error


def call_arguments(
    function: Callable[..., Any], inputs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """How to pass named inputs: one by position; several by name if all are known, else in order.

    Returns:
        (positional arguments, keyword arguments)
    """
    if len(inputs) == 1:
        return list(inputs.values()), {}
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins and extension types have no signature
        return list(inputs.values()), {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    by_name = {
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    if all(name in by_name for name in inputs) or (takes_any and not by_name):
        return [], dict(inputs)
    return list(inputs.values()), {}
