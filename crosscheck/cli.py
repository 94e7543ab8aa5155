"""The command line. Exit status: 0 agree, 1 suspect or diverge, 2 could not compare."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crosscheck import __version__
from crosscheck.commands.audit import audit
from crosscheck.commands.common import (
    INTERRUPTED,
    deliver,
    failures,
    parse_inputs,
    parse_layouts,
    progress,
    renderings,
)
from crosscheck.commands.compare import compare
from crosscheck.commands.doctor import doctor
from crosscheck.commands.record import record
from crosscheck.commands.show import show
from crosscheck.commands.shrink import shrink_reported
from crosscheck.commands.suite import suite
from crosscheck.commands.weights import weights
from crosscheck.errors import InvalidArgument

if TYPE_CHECKING:
    from crosscheck.pair import Pair

__all__ = ["main"]


class _Interruptible(click.Group):
    """A Ctrl-C has an exit status of its own: click's, 1, reads as a divergence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("crosscheck: interrupted", err=True)
            raise SystemExit(INTERRUPTED) from None


@click.group(
    cls=_Interruptible,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="crosscheck")
def main() -> None:
    """Tell whether a port of a neural network computes the same function as its reference, and if
    not, where it first departs.

    \b
    Exit status:
      0  the two agree, up to rounding
      1  suspect or diverging
      2  could not compare (one line on stderr says why and what to do)
      130  interrupted (Ctrl-C)
    """
    # TensorFlow writes to stderr from C++ while it loads; the report is not helped by it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


main.add_command(audit)
main.add_command(compare)
main.add_command(doctor)
main.add_command(record)
main.add_command(show)
main.add_command(suite)
main.add_command(weights)


@main.command()
@click.argument("pair", required=False, type=click.Path(path_type=Path))
@click.option(
    "--reference",
    metavar="FILE.py:NAME",
    help="The reference model, without a PAIR; FILE.py:NAME or an .onnx file.",
)
@click.option(
    "--candidate",
    metavar="NAME",
    help="Which candidate of the PAIR (default: its first); without a PAIR, FILE.py:NAME or an "
    ".onnx file.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SPEC",
    help='An input, for example x="float32[2,3,33,47]" or ids="int64[2,13] 0..200" (half-open).',
)
@click.option(
    "--candidate-inputs",
    multiple=True,
    metavar="[NAME=]LAYOUT",
    help="channels_last or channels_first: the candidate's inputs are the reference's, turned "
    "(default: where it declares their shapes, as it declares).",
)
@click.option(
    "--weights", type=click.Choice(["copy", "keep"]), help="Copy the reference's, or not."
)
@click.option(
    "--weights-map",
    type=click.Path(path_type=Path),
    metavar="F",
    help="Pairs of parameters, as `crosscheck weights` prints them.",
)
@click.option("--forward-only", is_flag=True, help="Leave out cotangents and gradients.")
@click.option("--train", is_flag=True, help="Train mode: batch statistics, buffers compared.")
@click.option(
    "--loss",
    metavar="TEXT",
    help='A loss that the backward pass begins with: "cross_entropy(label_smoothing=0.1)".',
)
@click.option("--targets", metavar="SPEC", help='Of the loss, for example "int64[8] 0..10".')
@click.option(
    "--optimizer",
    metavar="TEXT",
    help='Compare a training step, for example "adamw(lr=1e-3, weight_decay=0.01)".',
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="So many steps.")
@click.option("--skip", multiple=True, metavar="SITE", help="Leave a site out (reported).")
@click.option("--zoom", is_flag=True, help="Name the first operation that departs (PyTorch).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Check with N seeds.")
@click.option(
    "--probes", metavar="all|NAME,...", help="Check on further inputs: small, large, padded, ..."
)
@click.option("--randomise", is_flag=True, help="Check with other weights, put back afterwards.")
@click.option(
    "--shrink",
    "shrink_to",
    is_flag=False,
    flag_value=".",
    type=click.Path(path_type=Path),
    metavar="[DIR]",
    help="Where it diverges: make it small, and write DIR/reproduce.py.",
)
@click.option(
    "--effort",
    type=click.Choice(["quick", "thorough"]),
    help="quick: one free run of each side; thorough where that does not clear it (default).",
)
@click.option(
    "--max-memory", metavar="SIZE", help='Of the runs, for example "2GiB"; the rest goes to TMPDIR.'
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--json", "json_path", metavar="F", help="Write report.json; `-`: print it alone.")
@click.option("--html", "html_path", metavar="F", help="Write a self-contained HTML report.")
@renderings
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def run(
    pair: Path | None,
    reference: str | None,
    candidate: str | None,
    inputs: tuple[str, ...],
    json_path: str | None,
    html_path: str | None,
    markdown_path: str | None,
    junit_path: str | None,
    shrink_to: Path | None,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Check one port.

    PAIR is a Python file, or a folder with pair.py, that defines pair = crosscheck.Pair(...).

    \b
    Examples:
      crosscheck run models/cnn --candidate keras
      crosscheck run --reference net.py:Net --candidate port.py:build --input x=float32[2,3,33,47]
      crosscheck run --reference net.py:Net --candidate net.onnx --input x=float32[2,3,33,47]
      crosscheck run models/gpt --seed 7 --json report.json --html report.html
    """
    with failures(html_path), progress(quiet) as say:
        arguments = _arguments(options)
        chosen, name = _pair(pair, reference, candidate, inputs, say)
        report = chosen.check(name, progress=say, **arguments)
        if shrink_to is not None and report.first_divergence is not None:
            click.echo(shrink_reported(chosen, name, report, shrink_to, arguments, say), err=True)
    deliver(
        report,
        json_path,
        html_path,
        markdown_path=markdown_path,
        junit_path=junit_path,
        verbose=verbose,
    )


def _pair(
    pair: Path | None,
    reference: str | None,
    candidate: str | None,
    inputs: tuple[str, ...],
    say: Callable[[str], None],
) -> tuple[Pair, str | None]:
    """The pair, and which of its candidates."""
    from crosscheck.pair import Pair, load_model, load_pair

    if pair is not None:
        if reference or inputs:
            raise InvalidArgument("give a PAIR, or --reference, --candidate and --input, not both")
        loaded = load_pair(pair)
        names = loaded.candidates()
        if candidate is None and len(names) > 1:
            say(f"candidates: {', '.join(names)}; checking {names[0]} (--candidate for another)")
        return loaded, candidate
    if not reference or not candidate or not inputs:
        raise InvalidArgument(
            "give a PAIR, or all of --reference FILE.py:NAME, --candidate FILE.py:NAME (or .onnx "
            "files) and --input NAME=SPEC"
        )
    say(f"load {reference} and {candidate}")
    whole = Pair(
        load_model(reference),
        load_model(candidate),
        parse_inputs(inputs),
        name=Path(candidate).name,
    )
    return whole, None


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Of `Pair.check`, from those of the command."""
    arguments: dict[str, Any] = {
        "seed": options["seed"],
        "device": options["device"],
        "gradients": not options["forward_only"],
    }
    given = ["weights", "train", "zoom", "seeds", "randomise", "loss", "targets"]
    given += ["optimizer", "steps", "effort", "max_memory"]
    arguments |= {name: options[name] for name in given if options[name]}
    if options["probes"]:
        arguments["probes"] = [name.strip() for name in options["probes"].split(",")]
    if options["skip"]:
        arguments["skip"] = options["skip"]
    if options["candidate_inputs"]:
        arguments["candidate_inputs"] = parse_layouts(options["candidate_inputs"])
    if options["weights_map"]:
        from crosscheck.weights.spelling import load_map

        if options["weights"]:
            raise InvalidArgument("give --weights or --weights-map, not both")
        arguments["weights"] = load_map(options["weights_map"])
    return arguments


if __name__ == "__main__":
    main()
