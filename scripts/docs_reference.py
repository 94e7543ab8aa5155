"""What the documentation says of the code, from the code.

    python scripts/docs_reference.py    writes the table of hypotheses into docs/hypotheses.md

As a hook of MkDocs it puts the commands' help into the page of the command line.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HYPOTHESES = ROOT / "docs" / "hypotheses.md"
MARKS = "<!-- table: made by scripts/docs_reference.py -->", "<!-- end of the table -->"
COMMANDS = "<!-- commands -->"


def on_startup(**_: Any) -> None:
    """MkDocs: it has put back the path by now."""
    sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs: called with the source of every page."""
    return markdown.replace(COMMANDS, command_line()) if COMMANDS in markdown else markdown


# -- the command line ------------------------------------------------------------------------------


def command_line() -> str:
    """A section for each command: what its ``--help`` says."""
    from crosscheck.cli import main

    sections = [_section("crosscheck", main)]
    sections += [_section(f"crosscheck {name}", main.commands[name]) for name in main.commands]
    return "\n".join(sections)


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name, max_content_width=96, terminal_width=96)
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


# -- hypotheses ------------------------------------------------------------------------------------


def hypotheses_table() -> str:
    """Every registered hypothesis: where it is, for which phases, what it looks for; and below, the
    names that its module's causes have."""
    from crosscheck.explain.registry import hypotheses
    from crosscheck.results import Phase

    phases: dict[Any, list[str]] = {}
    for phase in get_args(Phase):
        for hypothesis in hypotheses(phase):
            phases.setdefault(hypothesis, []).append(phase)
    modules: dict[str, list[Any]] = {}
    for hypothesis in phases:
        modules.setdefault(hypothesis.__module__, []).append(hypothesis)
    lines = ["| module | hypothesis | phases | looks for |", "|-|-|-|-|"]
    for module, found in sorted(modules.items()):
        short = f"`{module.rpartition('.')[2]}`"
        for hypothesis in found:
            of, looks_for = ", ".join(phases[hypothesis]), _first_line(hypothesis)
            lines.append(f"| {short} | `{hypothesis.__name__}` | {of} | {looks_for} |")
            short = ""
        names = ", ".join(f"`{name}`" for name in cause_names(module))
        if names:
            lines.append(f"| | | | *causes:* {names} |")
    return "\n".join(lines)


def cause_names(module: str) -> list[str]:
    """The names of causes that stand in a module's source."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    return sorted(set(_literal_names(tree)))


def _literal_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Proposal":
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant):
                yield name.value


def _first_line(hypothesis: Any) -> str:
    text = " ".join((inspect.getdoc(hypothesis) or "").partition("\n\n")[0].split())
    return text.replace("|", "\\|")


def with_table(page: str) -> str:
    """The page with the present table between its two marks."""
    start, end = (re.escape(mark) for mark in MARKS)
    table = f"{MARKS[0]}\n\n{hypotheses_table()}\n\n{MARKS[1]}"
    changed, count = re.subn(f"{start}.*?{end}", lambda _: table, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{HYPOTHESES}: needs both of {MARKS}, once")
    return changed


if __name__ == "__main__":
    HYPOTHESES.write_text(with_table(HYPOTHESES.read_text("utf-8")), "utf-8")
