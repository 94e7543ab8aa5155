"""``crosscheck record``: run one model once and keep what was seen, as a golden trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crosscheck.commands.common import failures, parse_inputs, progress
from crosscheck.errors import InvalidArgument, capped

if TYPE_CHECKING:
    from crosscheck.traces.recorded import RecordedTrace

__all__ = ["record"]


@click.command()
@click.argument("model", metavar="FILE.py:NAME")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SPEC",
    help='An input, for example x="float32[2,3,33,47]" or ids="int64[2,13] 0..200" (half-open).',
)
@click.option(
    "--inputs",
    "inputs_path",
    type=click.Path(path_type=Path),
    metavar="F",
    help="Take the inputs from a trace or a file of crosscheck.save_inputs.",
)
@click.option("--output", "-o", required=True, metavar="F", help="Where to write the trace.")
@click.option("--parameters", is_flag=True, help="Keep the parameters' values as well.")
@click.option(
    "--sketch",
    is_flag=False,
    flag_value="300kB",
    metavar="[BYTES]",
    help="Write a sketch instead, fit for a repository; at most so large (300kB).",
)
@click.option("--forward-only", is_flag=True, help="Leave out cotangents and gradients.")
@click.option("--train", is_flag=True, help="Train mode: batch statistics, buffers kept.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def record(
    model: str,
    inputs: tuple[str, ...],
    inputs_path: Path | None,
    output: str,
    sketch: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Record one run of a model: a golden trace to compare with later, or elsewhere.

    The model is FILE.py:NAME, the path of an .onnx file, or a PAIR, whose reference is recorded.

    \b
    Examples:
      crosscheck record net.py:Net --input x=float32[2,3,33,47] -o ref.safetensors --parameters
      crosscheck record model.onnx --input ids="int64[2,13] 0..200" -o port.safetensors
      crosscheck record models/cnn --seed 7 -o cnn.safetensors
      crosscheck record net.py:Net --input x=float32[2,3,33,47] --sketch 300kB -o golden.safetensors
    """
    with failures(), progress(quiet) as say:
        if not output.lower().endswith(".safetensors") and not Path(output).is_dir():
            raise InvalidArgument(f"-o {output}: a trace's name ends in .safetensors")
        most = None if sketch is None else size_of(sketch)
        options["parameters"] |= most is not None
        options["local_rounding"] = most is None  # nothing can be forced onto a sketch
        trace = _record(model, inputs, inputs_path, options, say)
        say(f"write {output}")
        trace.save(output, sketch=most)
    click.echo(summary(trace, output))
    if most is not None:
        click.echo(f"  a sketch, of at most {most:,} bytes")


def size_of(text: str) -> int:
    """``300kB`` -> bytes."""
    from crosscheck.sketches.make import parse_bytes

    return parse_bytes(text)


def _record(
    model: str,
    texts: tuple[str, ...],
    inputs_path: Path | None,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> RecordedTrace:
    import crosscheck
    from crosscheck.traces.load import load_inputs

    if texts and inputs_path is not None:
        raise InvalidArgument("give --input NAME=SPEC or --inputs F, not both")
    given: Any = parse_inputs(texts) or None
    if inputs_path is not None:
        given = load_inputs(inputs_path)
    say(f"load {model}")
    loaded, own = _loaded(model, options["seed"])
    inputs = own if given is None else given
    if inputs is None:
        raise InvalidArgument("give --input NAME=SPEC, once for each input, or --inputs F")
    return crosscheck.record(
        loaded,
        inputs,
        gradients=not options["forward_only"],
        train=options["train"],
        parameters=options["parameters"],
        seed=options["seed"],
        device=options["device"],
        local_rounding=options["local_rounding"],
        progress=say,
    )


def _loaded(model: str, seed: int) -> tuple[Any, Any]:
    """What MODEL names, and the inputs that it brings: those of a pair, or None."""
    from crosscheck.pair import load_model, load_pair, make, names_model

    if names_model(model):
        return load_model(model), None
    pair = load_pair(model)
    return make(pair.reference), pair.inputs(seed) if callable(pair.inputs) else pair.inputs


def summary(trace: RecordedTrace, path: str) -> str:
    """What a trace holds, in a few lines."""
    kinds = [kind for kind, _ in trace.values]
    sites = kinds.count("activation")
    parts = [f"{sites} sites"]
    if trace.has_cotangents:
        back = kinds.count("cotangent") + kinds.count("input_cotangent")
        parts += [f"{back} cotangents", f"{len(trace.info.parameter_gradients)} gradients"]
    else:
        parts.append("no backward pass")
    held = f"{len(trace.held)} parameters" if trace.held else "parameters left out"
    floor = "measured in float64" if trace.rounding else "not measured (no float64 run)"
    fed = ", ".join(
        f"{name} {value.dtype.name}{list(value.shape)}" for name, value in trace.inputs.items()
    )
    lines = [
        f"{path}: {trace.framework} {trace.version}, {'train' if trace.train else 'eval'} mode",
        f"  {', '.join(parts)}, {held}; {os.path.getsize(path):,} bytes",
        f"  inputs: {fed}; seed {trace.seed}",
        f"  inputs_sha256: {trace.inputs_sha256}",
        f"  rounding: {floor}",
    ]
    return "\n".join([*lines, *_warnings(trace)])


def _warnings(trace: RecordedTrace) -> list[str]:
    """What would make every later comparison with the trace worth less."""
    from crosscheck.arrays import holds_not_finite

    values = trace.activations()
    broken = [*trace.not_finite, *(s for s in trace.info.outputs if holds_not_finite(values[s]))]
    if not broken:
        return []
    return [
        f"  warning: {capped(broken)} {'hold' if broken[1:] else 'holds'} NaN or Inf; a mistake in "
        "what they reach will not be seen.\n  Look at the weights and the inputs before you keep it"
    ]
