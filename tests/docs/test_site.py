"""The site builds without a warning, and its pages fetch nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .markdown import ROOT

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.slow
_FETCHED = re.compile(
    r'<(?:script|img|iframe|source)[^>]* src="(?:https?:)?//'
    r'|<link rel="[^"]*(?:stylesheet|preconnect|icon|preload)[^"]*" href="(?:https?:)?//'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_fetches_nothing(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in ROOT.glob("docs/**/*.md")}
    assert pages <= {p.relative_to(site) for p in site.rglob("*.html")}
    for page in site.rglob("*.html"):
        assert not _FETCHED.search(page.read_text("utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\((?:https?:)?//", sheet.read_text("utf-8")), sheet


def test_the_pages_made_from_code_are_full(site: Path) -> None:
    api = (site / "api.html").read_text("utf-8")
    assert "measured rounding floor" in api and "candidate_inputs" in api
    assert "--weights-map" in (site / "cli.html").read_text("utf-8")
