"""``crosscheck compare``: two recorded runs, or a recorded run and a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from crosscheck.commands.common import deliver, failures, parse_inputs, progress, renderings
from crosscheck.errors import InvalidArgument

if TYPE_CHECKING:
    from crosscheck.judging.noise import Tolerance

__all__ = ["compare"]


@click.command()
@click.argument("reference", metavar="REFERENCE")
@click.argument("candidate", metavar="CANDIDATE")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SPEC",
    help="An input, where a trace or sketch is too small to hold it.",
)
@click.option("--forward-only", is_flag=True, help="Leave out cotangents and gradients.")
@click.option("--skip", multiple=True, metavar="SITE", help="Leave a site out (reported).")
@click.option(
    "--tolerance",
    metavar="RTOL,ATOL",
    help="|candidate - reference| <= ATOL + RTOL |reference| instead of the rounding floor.",
)
@click.option("--json", "json_path", metavar="F", help="Write report.json; `-`: print it alone.")
@click.option("--html", "html_path", metavar="F", help="Write a self-contained HTML report.")
@renderings
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def compare(
    reference: str,
    candidate: str,
    inputs: tuple[str, ...],
    forward_only: bool,
    skip: tuple[str, ...],
    tolerance: str | None,
    json_path: str | None,
    html_path: str | None,
    quiet: bool,
    **shown: Any,
) -> None:
    """Compare recorded runs of the same inputs.

    Traces (.safetensors) are made by `crosscheck record`, or by any program that writes one
    (docs/traces.md). Of two recordings, neither can be forced onto the other's values: the first
    departure is blamed, and what differs behind it may be inherited. One side may be a model,
    FILE.py:NAME or an .onnx file; a candidate that is one is run on the trace's inputs, with the
    trace's weights if it holds them, and forced onto its values. A reference may be a sketch
    (`crosscheck record --sketch`): it has no weights to give and forces nothing. Two sketches can
    be compared if they have as many projections.

    \b
    Examples:
      crosscheck compare ref.safetensors port.safetensors --json report.json
      crosscheck compare ref.safetensors port.py:build
      crosscheck compare golden.safetensors net.py:Net --input x=float32[300,6]
    """
    import crosscheck

    with failures(html_path):
        sides = side(reference), side(candidate)
        if not any(isinstance(one, str) and is_trace(one) for one in sides):
            raise InvalidArgument(
                "neither side is a trace (.safetensors); `crosscheck run` compares two models"
            )
        options: dict[str, Any] = {"gradients": not forward_only, "skip": skip}
        if tolerance is not None:
            options["tolerance"] = parse_tolerance(tolerance)
        with progress(quiet) as say:
            report = crosscheck.check(*sides, parse_inputs(inputs) or None, progress=say, **options)
    deliver(report, json_path, html_path, **shown)


def side(text: str) -> Any:
    """What an argument stands for: the path of a trace or an .onnx file, or a model in a file.

    Raises:
        InvalidArgument: none of these.
    """
    from crosscheck.pair import load_model, names_model

    if is_trace(text):
        return text
    if names_model(text):
        return load_model(text)
    raise InvalidArgument(
        f"{text}: give a trace (.safetensors, as `crosscheck record` writes), FILE.py:NAME or an "
        ".onnx file"
    )


def is_trace(text: str) -> bool:
    """Whether a path names a trace."""
    return text.lower().endswith(".safetensors")


def parse_tolerance(text: str) -> Tolerance:
    """``RTOL,ATOL`` -> Tolerance.

    Raises:
        InvalidArgument: another form.
    """
    from crosscheck.judging.noise import Tolerance

    try:
        rtol, atol = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgument(
            f"--tolerance {text!r}: write RTOL,ATOL, for example 1e-4,1e-6"
        ) from None
    return Tolerance(rtol, atol)
