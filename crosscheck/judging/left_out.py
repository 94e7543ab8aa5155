"""Which layer calls a forced run may leave out, for the comparisons that it is made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from crosscheck.adapters.base import Parameter
from crosscheck.comparisons import Item
from crosscheck.observers import Key
from crosscheck.run import Runner
from crosscheck.trace import Trace, owner

__all__ = ["lies_in", "needless", "parameters_of", "spared"]


def spared(
    runner: Runner, free: Trace, items: Iterable[Item], forced: Mapping[Key, object]
) -> frozenset[str]:
    """What the adapter of the reference shall leave out. In train mode nothing: random numbers
    would be drawn in another order, and statistics left as they are.

    Args:
        free: the reference's free run.
        items: what the run is made for.
    """
    if runner.train or not runner.adapter.capabilities.leaves_out:
        return frozenset()
    return needless(free, items, forced, runner.adapter.parameters())


def needless(
    reference: Trace,
    wanted: Iterable[Item],
    forced: Mapping[Key, object],
    parameters: Iterable[Parameter] = (),
) -> frozenset[str]:
    """The layer calls that need not be computed: all that leaves them, forward and backward, is
    forced, and nothing inside is wanted.

    A parameter may be used in a layer that does not own it, which nobody can see. Then the oracle
    is far from the reference there, and `crosscheck.judging.sparing.judged` asks the whole one.
    """
    parents = reference.info.parents
    running: set[str] = set()
    for item in wanted:
        for _, site in item.reference_keys if item.phase in ("forward", "backward") else ():
            # What goes into a call was made by the code in front of it, in the call around it;
            # the cotangent at its output by the code behind it.
            around = item.kind in ("input", "cotangent")
            call = parents.get(owner(site)) if around else owner(site)
            while call is not None and call not in running:
                running.add(call)
                call = parents.get(call)
    layers = _layers_of(wanted, parameters)
    found = frozenset(
        call
        for call in parents
        if call not in running
        and reference.outputs_of.get(call) == [call]
        and ("activation", call) in forced
        and not _holds(call, layers)
        and all(
            ("input_cotangent", slot) in forced
            for slot in reference.inputs_of(call)
            if ("input_cotangent", slot) in reference.values
        )
    )
    several = {call.partition("#")[0] for call in parents if call not in found}
    return frozenset(call for call in found if call.partition("#")[0] not in several)


def _layers_of(wanted: Iterable[Item], parameters: Iterable[Parameter]) -> set[str]:
    """Paths of the layers that use a wanted parameter."""
    names = set(parameters_of(wanted))
    owners = [one for p in parameters if p.name in names for one in (p, *p.also)]
    return {one.layer for one in owners}


def parameters_of(wanted: Iterable[Item]) -> Iterator[str]:
    """Names of the reference's parameters whose gradients are wanted."""
    for item in wanted:
        if item.kind == "parameter":
            yield from item.pullback.references if item.pullback else (item.reference,)


def _holds(call: str, layers: set[str]) -> bool:
    """Whether one of the layers is the called one, or lies inside it."""
    return any(lies_in(layer, call) for layer in layers)


def lies_in(layer: str, call: str) -> bool:
    """Whether a layer is the called one, or lies inside it."""
    path = call.partition("#")[0]
    return f"{layer}.".startswith((f"{path}.", f"{path}/"))
