"""``crosscheck audit``: training sanity checks of one implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crosscheck.commands.common import failures, parse_inputs, progress
from crosscheck.errors import InvalidArgument

__all__ = ["audit"]


@click.command()
@click.argument("model", metavar="FILE.py:NAME|PAIR", required=False)
@click.option("--candidate", metavar="NAME", help="Audit this candidate of the PAIR.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SPEC",
    help='An input, for example x="float32[8,3,33,47]"; without a PAIR.',
)
@click.option("--loss", metavar="TEXT", help='For example "cross_entropy(label_smoothing=0.1)".')
@click.option("--targets", metavar="SPEC", help='For example "int64[8] 0..10" (half-open).')
@click.option("--optimizer", metavar="TEXT", help='For example "adamw(lr=1e-3)".')
@click.option(
    "--step",
    metavar="NAME",
    help="A function in the same file: model -> a function that makes one training step.",
)
@click.option("--frozen", multiple=True, metavar="PATTERN", help="Parameters that shall not train.")
@click.option("--trains", multiple=True, metavar="PATTERN", help="The only ones that shall.")
@click.option("--causal", is_flag=True, help="Position t may see positions up to t only.")
@click.option(
    "--one-example", is_flag=True, help="The first axis is no batch: the nodes of a graph."
)
@click.option("--trained", is_flag=True, help="The model is not at its initialisation.")
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave a check out.")
@click.option("--only", multiple=True, metavar="CHECK", help="Make this check only.")
@click.option("--strict", is_flag=True, help="Suspicious findings fail, too.")
@click.option("--list", "list_", is_flag=True, help="List the checks and what they look for.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "json_path", metavar="F", help="Write JSON; `-`: print it alone.")
@click.option("--html", "html_path", metavar="F", help="Write a page with histograms.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def audit(model: str | None, list_: bool, **options: Any) -> None:
    """Look for what usually goes wrong in training, in one implementation.

    The model is left as it was found. Exit status: 0 nothing wrong, 1 something is (with --strict:
    or suspicious), 2 it could not be looked at, or a check raised.

    \b
    Examples:
      crosscheck audit net.py:Net --input 'x=float32[8,12]' --loss cross_entropy \\
          --targets 'int64[8] 0..10' --optimizer 'sgd(lr=0.1)'
      crosscheck audit models/cnn --candidate keras
      crosscheck audit --list
    """
    with failures():
        if list_:
            _list()
            return
        if model is None:
            raise InvalidArgument("give FILE.py:NAME or a PAIR (--list: the checks)")
        report = _audited(model, options)
        if options["json_path"] not in (None, "-"):
            report.save_json(options["json_path"])
        if options["html_path"] is not None:
            report.save_html(options["html_path"])
    click.echo(report.to_json() if options["json_path"] == "-" else str(report))
    if report.errors:
        _say_errors(report)
        raise SystemExit(2)
    bad = report.wrong or (options["strict"] and report.suspicious)
    raise SystemExit(1 if bad else 0)


def _say_errors(report: Any) -> None:
    """One line on stderr, like whatever else keeps the command from looking."""
    first, more = report.errors[0], len(report.errors) - 1
    text = f"crosscheck: {first.check}: {first.statement}" + (f" (and {more} more)" if more else "")
    click.echo(text, err=True)


def _list() -> None:
    import crosscheck.auditing.run  # noqa: F401  (registers the checks)
    from crosscheck.auditing.registry import CHECKS

    for check in CHECKS.values():
        click.echo(f"{check.name:38} {check.severity:10} {check.statement}")


def _audited(model: str, options: dict[str, Any]) -> Any:
    import crosscheck

    given: dict[str, Any] = {
        "optimizer": options["optimizer"],
        "frozen": options["frozen"],
        "trains": list(options["trains"]) or None,
        "skip": options["skip"],
        "only": options["only"],
        "seed": options["seed"],
        **{k: True for k in ("causal", "one_example", "trained") if options[k]},
    }
    with progress(options["quiet"]) as say:
        built, inputs, loss, targets = _subject(model, options)
        given["loss"] = options["loss"] or loss
        given["targets"] = options["targets"] if options["targets"] is not None else targets
        if options["step"]:
            given["step"] = _step(model, options["step"], built)
        return crosscheck.audit(built, inputs, name=model, progress=say, **given)


def _subject(model: str, options: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """(model, inputs, loss, targets), from a pair or from a file."""
    from crosscheck.auditing.pairs import of_pair
    from crosscheck.pair import load_model, load_pair, make, names_model

    if names_model(model):
        if options["candidate"]:
            raise InvalidArgument("--candidate names one of a PAIR; give a PAIR, or leave it out")
        if not options["inputs"]:
            raise InvalidArgument("give the inputs: --input NAME=SPEC")
        return make(load_model(model)), parse_inputs(options["inputs"]), None, None
    if options["inputs"]:
        raise InvalidArgument("a PAIR has its inputs: leave --input out")
    chosen = of_pair(load_pair(Path(model)), options["candidate"], seed=options["seed"])
    return chosen.model, chosen.inputs, chosen.loss, chosen.targets


def _step(model: str, name: str, built: Any) -> Any:
    from crosscheck.pair import load_model

    if ".py:" not in model:
        raise InvalidArgument("--step names a function of the model's file; a PAIR has none")
    path, _, _ = model.rpartition(":")
    return load_model(f"{path}:{name}")(built)
