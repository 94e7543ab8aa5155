"""The reference pages name everything that there is: names, options, hypotheses, adapters."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import get_args

import pytest

import crosscheck
from crosscheck.cli import main
from crosscheck.explain.registry import hypotheses, register, unregister
from crosscheck.results import Phase
from scripts import docs_reference

from .markdown import ROOT, pages

DOCS = ROOT / "docs"
HOME = ROOT / "crosscheck" / "adapters"
ADAPTERS = {  # module with a `find` -> its page
    "cupy": "gpu.md",
    "jax": "adapters/jax.md",
    "keras": "adapters/keras.md",
    "numpy": "adapters/numpy.md",
    "onnx": "adapters/onnx.md",
    "tensorflow": "adapters/tensorflow.md",
    "torch": "adapters/torch.md",
    "trace": "adapters/trace.md",
}


def test_every_public_name_is_on_the_api_page() -> None:
    named = re.findall(r"^::: crosscheck\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert set(crosscheck.__all__) | set(crosscheck._MODULES) == set(named)


def test_what_the_api_page_names_exists() -> None:
    for name in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, attribute) or importlib.import_module(name)


def test_every_command_and_option_is_on_the_page_of_the_command_line() -> None:
    page = docs_reference.on_page_markdown((DOCS / "cli.md").read_text())
    for name, command in main.commands.items():
        section = page.partition(f"\n## crosscheck {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            for option in parameter.opts:
                assert option in section or parameter.param_type_name == "argument", (name, option)


def test_the_table_of_hypotheses_is_that_of_the_code() -> None:
    page = docs_reference.HYPOTHESES.read_text("utf-8")
    assert page == docs_reference.with_table(page), "run scripts/docs_reference.py"


def test_every_hypothesis_and_the_names_of_causes_are_on_the_page() -> None:
    page = docs_reference.HYPOTHESES.read_text("utf-8")
    for phase in get_args(Phase):
        for hypothesis in hypotheses(phase):
            assert f"`{hypothesis.__name__}`" in page
            for name in docs_reference.cause_names(hypothesis.__module__):
                assert f"`{name}`" in page


def test_a_missing_hypothesis_is_found() -> None:
    @register("forward")
    def never_documented(evidence: object) -> list:
        return []

    try:
        assert "`never_documented`" in docs_reference.hypotheses_table()
        test = test_the_table_of_hypotheses_is_that_of_the_code
        with pytest.raises(AssertionError):
            test()
    finally:
        unregister(never_documented)


def find_of(adapter: str) -> Path:
    """The module with its ``find``."""
    package = HOME / adapter / "adapter.py"
    return package if package.exists() else HOME / f"{adapter}.py"


@pytest.mark.parametrize("module", sorted(ADAPTERS))
def test_every_option_of_an_adapter_is_on_its_page(module: str) -> None:
    tree = ast.parse(find_of(module).read_text())
    find = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "find")
    page = (DOCS / ADAPTERS[module]).read_text()
    for argument in find.args.kwonlyargs:
        assert f"{argument.arg}=" in page, argument.arg


def test_every_adapter_has_a_page() -> None:
    finds = [p for p in HOME.rglob("*.py") if "\ndef find(" in p.read_text()]
    assert {p.parent.name if p.stem == "adapter" else p.stem for p in finds} == set(ADAPTERS)


def test_every_check_of_an_audit_is_on_its_page() -> None:
    from crosscheck.auditing.registry import CHECKS

    page = (DOCS / "audit.md").read_text()
    assert not [name for name in CHECKS if f"| `{name}` |" not in page]


def test_pictures_are_small_and_fetch_nothing() -> None:
    for picture in (DOCS / "pictures").iterdir():
        assert picture.stat().st_size < 200_000
    drawn = (DOCS / "pictures" / "terminal.svg").read_text("utf-8")
    assert not re.search(r"url\((?!#)|href=|@font-face|@import", drawn)


def test_every_page_is_in_the_navigation() -> None:
    configured = (ROOT / "mkdocs.yml").read_text("utf-8")
    missing = [
        p for page in DOCS.rglob("*.md") if f": {(p := page.relative_to(DOCS))}" not in configured
    ]
    assert not missing, "add them under nav: in mkdocs.yml"


def test_pages_link_to_pages_that_exist() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page}: {target}"
