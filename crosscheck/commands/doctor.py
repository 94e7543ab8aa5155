"""``crosscheck doctor``: frameworks, devices and precision flags, as a table or as JSON."""

from __future__ import annotations

from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one framework may take to import.",
)
def doctor(as_json: bool, limit: float) -> None:
    """Show which frameworks work here, on which devices and how precisely, and what is missing.

    Exit status 0, whatever is found.
    """
    from crosscheck.doctor import examine, to_json

    found = examine(limit=limit)
    if as_json:
        click.echo(to_json(found))
        return
    console = Console(highlight=False)
    _facts(console, "machine", found["machine"])
    _facts(console, "driver", found["driver"])
    for framework in found["frameworks"]:
        _framework(console, framework)
    console.print(_capabilities())
    console.print(
        "onnx: for a PyTorch module exported here, cotangents too: "
        'adapt(module, export="onnx", gradients=True)',
        markup=False,
        soft_wrap=True,
    )


def _facts(console: Console, title: str, facts: dict[str, Any]) -> None:
    console.print(f"[bold]{title}[/]")
    for name, value in facts.items():
        console.print(f"  {name}: {value}", markup=False, soft_wrap=True)


def _framework(console: Console, framework: Any) -> None:
    style = {"ok": "green", "missing": "yellow"}.get(framework.status, "red")
    console.print(f"[bold]{framework.name}[/]  [{style}]{framework.status}[/]")
    if framework.problem:
        console.print(f"  {framework.problem}", markup=False, soft_wrap=True)
        return
    versions = ", ".join(f"{name} {value}" for name, value in framework.versions.items())
    devices = ", ".join(framework.devices) or "CPU only"
    flags = ", ".join(f"{name}={value}" for name, value in framework.precision.items())
    for name, text in (("versions", versions), ("devices", devices), ("flags", flags)):
        console.print(f"  {name}: {text}", markup=False, soft_wrap=True)


def _capabilities() -> Table:
    from crosscheck.doctor import ADAPTERS, capabilities_of

    rows = {name: capabilities_of(c) for name, c in ADAPTERS.items()}
    table = Table(
        "adapter",
        *next(iter(rows.values())),
        title="what each adapter can do",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for name, row in rows.items():
        table.add_row(name, *("yes" if able else "-" for able in row.values()))
    return table
