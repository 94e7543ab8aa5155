"""The pictures of the README and the documentation: one report, in the terminal and in the browser.

    python scripts/pictures.py [terminal] [report]

The report is that of a NumPy residual network with one BatchNorm eps of 1e-6 for 1e-5. The browser
is a Chromium that is there (``CROSSCHECK_CHROMIUM``, or on the path), driven by Playwright.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from crosscheck.pair import load_pair
from crosscheck.report.terminal import to_text
from crosscheck.results import Report
from scripts.main_job import wrong_eps

PICTURES = ROOT / "docs" / "pictures"
COMMAND = "make run    # its second part: one BatchNorm has an eps of 1e-6"
COLUMNS, SECTIONS = 100, 2  # the statement, and the figure
PAGE = {"width": 1280, "height": 712}
LIMIT = 200_000  # bytes
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def report() -> Report:
    """The check that the pictures show."""
    return load_pair(ROOT / "models" / "cnn").check("numpy", alter=wrong_eps)


def terminal(shown: Report) -> Path:
    """The beginning of the report, as a terminal shows it."""
    text = to_text(shown, color=True, width=COLUMNS, ascii=False)
    beginning = "\n\n".join(text.split("\n\n")[:SECTIONS])
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    console.print(f"$ {COMMAND}", style="bold", markup=False)
    console.print(Text.from_ansi(beginning), soft_wrap=True)
    drawn = console.export_svg(title="crosscheck", theme=MONOKAI, unique_id="crosscheck")
    # The reader's own monospaced font: a picture fetches nothing.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace("Fira Code, monospace", "monospace")
    return _kept("terminal.svg", drawn.encode())


def page(shown: Report) -> Path:
    """The top of the HTML report."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        shown.save_html(file)
        browser = playwright.chromium.launch(
            executable_path=_browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport=PAGE, color_scheme="light")
        tab.goto(file.as_uri())
        tab.wait_for_timeout(500)
        picture = tab.screenshot(type="png")
        browser.close()
    return _kept("report.png", picture)


def _browser() -> str:
    named = os.environ.get("CROSSCHECK_CHROMIUM")
    found = named or next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise SystemExit("pictures: no Chromium on the path; set CROSSCHECK_CHROMIUM")
    return found


def _kept(name: str, content: bytes) -> Path:
    if len(content) > LIMIT:
        raise SystemExit(f"pictures: {name} has {len(content):,} bytes, more than {LIMIT:,}")
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / name
    path.write_bytes(content)
    return path


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["terminal", "report"]
    made = report()
    for name in wanted:
        print({"terminal": terminal, "report": page}[name](made))
