"""``crosscheck weights``: the map between two models' parameters, as text to read and edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from crosscheck.commands.common import failures, parse_inputs, progress
from crosscheck.errors import InvalidArgument

if TYPE_CHECKING:
    from crosscheck.adapters.base import Adapter
    from crosscheck.weights import Match

__all__ = ["weights"]

COMPLETE, INCOMPLETE = 0, 1


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="REF CAND | PAIR")
@click.option("--candidate", metavar="NAME", help="Which candidate of the PAIR.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SPEC",
    help="An input: what names and shapes leave open is then decided by running, as in a check.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def weights(
    models: tuple[str, ...],
    candidate: str | None,
    inputs: tuple[str, ...],
    seed: int,
    quiet: bool,
) -> None:
    """Print which parameters of the candidate are made of which of the reference's, and how.

    REF and CAND are FILE.py:NAME or the path of an .onnx file. The text is a Python dict; edit it
    and give it to `crosscheck run --weights-map FILE`, or to check as weights=.

    \b
    Exit status:
      0  every parameter of both sides has a counterpart
      1  some have none, or several layouts fit and no --input decides
      2  could not tell (one line on stderr says why)

    \b
    Examples:
      crosscheck weights net.py:Net port.py:build > map.txt
      crosscheck weights models/cnn --candidate keras
    """
    from crosscheck.weights.listing import map_text

    with failures(), progress(quiet) as say:
        match = _matched(models, candidate, inputs, seed, say)
    click.echo(map_text(match))
    left = [*match.unmatched_candidate, *match.unmatched_reference]
    open_ = len(match.ambiguous())
    summary = f"{len(match.pairs)} matched, {len(left)} without a counterpart, {open_} open"
    click.echo(f"crosscheck: {summary}", err=True)
    raise SystemExit(COMPLETE if match.complete and not open_ else INCOMPLETE)


def _matched(
    models: tuple[str, ...],
    candidate: str | None,
    texts: tuple[str, ...],
    seed: int,
    say: Callable[[str], None],
) -> Match:
    from crosscheck.adapters import adapt
    from crosscheck.candidate_inputs import inputs_of_candidate
    from crosscheck.inputs import make_inputs
    from crosscheck.weights import match_parameters

    say("load both models")
    reference, port, inputs, candidate_inputs, given = _sides(models, candidate, texts, seed)
    sides = adapt(reference), adapt(port)
    if inputs is None:
        say("match")
        return match_parameters(sides[0].parameters(), sides[1].parameters(), given=given)
    ours = make_inputs(inputs, seed=seed)
    theirs, _ = inputs_of_candidate(candidate_inputs, ours, seed, sides[1])
    say("match in the order of execution, and decide what is open by running")
    return _by_running(sides, ours, theirs, given, seed)


def _by_running(
    sides: tuple[Adapter, Adapter], ours: Any, theirs: Any, given: Mapping[str, Any], seed: int
) -> Match:
    """As `crosscheck.check` finds it."""
    from crosscheck.pipeline import calls_of, match_in_order
    from crosscheck.run import Runner
    from crosscheck.trial import by_running
    from crosscheck.weights import settle

    reference = Runner("reference", sides[0], ours, None, False, seed).record(passive=True)
    port = Runner("candidate", sides[1], theirs, None, False, seed)
    match = match_in_order(*sides, (reference.info.layers, calls_of(port)), given=given)
    return settle(match, by_running(port, reference, {}, ())) if match.complete else match


def _sides(
    models: tuple[str, ...], candidate: str | None, texts: tuple[str, ...], seed: int
) -> tuple[Any, Any, Any, Any, Mapping[str, Any]]:
    """(reference, candidate, inputs, candidate's inputs, what the pair's own map says)."""
    from crosscheck.pair import load_model, load_pair, loading, make

    if len(models) == 2:
        if candidate:
            raise InvalidArgument("--candidate belongs to a PAIR; give REF CAND without it")
        inputs = parse_inputs(texts) if texts else None
        return load_model(models[0]), load_model(models[1]), inputs, None, {}
    if len(models) != 1:
        raise InvalidArgument(f"give REF and CAND, or one PAIR; got {len(models)} arguments")
    if texts:
        raise InvalidArgument("a PAIR has its own inputs; leave --input out")
    pair = load_pair(models[0])
    names = pair.candidates()
    name = candidate or names[0]
    if name not in names:
        raise InvalidArgument(
            f"pair `{pair.name}` has no candidate `{name}`; it has {', '.join(names)}"
        )
    ports = isinstance(pair.candidate, Mapping)
    chosen = pair.candidate[name] if ports else pair.candidate
    theirs = pair.candidate_inputs
    if isinstance(theirs, Mapping) and ports:
        theirs = theirs.get(name)
    given = pair.options.get("weights")
    with loading(f"pair `{pair.name}`, candidate `{name}`"):
        inputs = pair.inputs(seed) if callable(pair.inputs) else pair.inputs
        own_map = given if isinstance(given, Mapping) else {}
        return make(pair.reference), make(chosen), inputs, theirs, own_map
