"""The page in a browser: rendered, clicked, on a phone, without scripts, with hostile names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crosscheck.report import html
from crosscheck.suite import overview
from tests.report import samples
from tests.report.detailed import looked_into
from tests.report.test_html import EVIL, failed, hostile
from tests.suite.test_overview import many

SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, PHONE = 1280, 390
PAGES = {
    "agree": lambda: html.render(looked_into(samples.agree())),
    "forward": lambda: html.render(looked_into(samples.forward_divergence())),
    "backward": lambda: html.render(looked_into(samples.backward_divergence())),
    "infinite": lambda: html.render(samples.infinite()),
    "unmatched": lambda: html.render(samples.unmatched()),
    "hostile": lambda: html.render(hostile(EVIL)),
    "long": lambda: html.render(hostile("x" * 2000)),
    "suite": lambda: overview.render(many(40)),
    "failed": lambda: html.render_failure(failed(samples.forward()[:4]), command="c" * 300),
}


def chromium() -> str:
    """The path of a Chromium.

    Skips the test where there is none.
    """
    given = os.environ.get("CROSSCHECK_CHROMIUM")
    names = (given,) if given else ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium: {' or '.join(names)} is not on PATH (or CROSSCHECK_CHROMIUM)")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=SWITCHES)
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in PAGES}


class Visit:
    """One page, opened; what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: self.complaints.append(f"dialog: {d.message}"))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def width(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth"))


def size(width: int) -> dict[str, Any]:
    return {"viewport": {"width": width, "height": 900}}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_nothing_is_loaded_nothing_complains_and_nothing_sticks_out(
    browser: Any, files: dict[str, Path], name: str, width: int
) -> None:
    with Visit(browser, files[name], **size(width)) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert visit.requests == [files[name].as_uri()]
        assert visit.complaints == []
        assert visit.width() <= width
        assert visit.page.evaluate("document.images.length + document.scripts.length") == 1


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_a_click_on_a_mark_opens_its_site(
    browser: Any, files: dict[str, Path], scripts: bool
) -> None:
    report = samples.forward_divergence()
    for number in (
        next(i for i, s in enumerate(report.sites) if s.phase == "backward" and s.ratio > 100),
        2,  # has no section: a row of a table that is closed
    ):
        options = {"java_script_enabled": scripts, **size(WIDE)}
        with Visit(browser, files["forward"], **options) as visit:
            target = visit.page.locator(f"#s{number}")
            mark = visit.page.locator(f'a.m[href="#s{number}"]')
            assert visit.page.locator(f"details:has(#s{number})").count() == 1
            mark.click()
            target.wait_for(state="visible")
            box = target.bounding_box()
            assert 0 <= box["y"] < 900 and visit.page.url.endswith(f"#s{number}")
            assert visit.complaints == []


def test_hovering_tells_the_site_and_its_ratio(browser: Any, files: dict[str, Path]) -> None:
    with Visit(browser, files["forward"], java_script_enabled=False, **size(WIDE)) as visit:
        mark = visit.page.locator('a.m[href="#s7"] title')
        assert mark.text_content() == ("block2.gelu -> block_2/activation: ratio 3168 (introduced)")


def test_essentials_are_there_without_scripts(browser: Any, files: dict[str, Path]) -> None:
    with Visit(browser, files["forward"], java_script_enabled=False, **size(PHONE)) as visit:
        for text in ("introduced there", "reference uses erf GELU", "Elements that differ most"):
            assert visit.page.get_by_text(text).first.is_visible()
        assert visit.page.locator("svg.heat").first.is_visible()
        assert not visit.page.locator("details.group").nth(1).get_attribute("open")
        visit.page.locator("details.group > summary").nth(1).click()
        assert visit.page.locator("details.group").nth(1).get_attribute("open") is not None


def test_the_keyboard_reaches_marks_sites_and_tables(browser: Any, files: dict[str, Path]) -> None:
    with Visit(browser, files["forward"], **size(WIDE)) as visit:
        reached = []
        for _ in range(60):
            visit.page.keyboard.press("Tab")
            reached.append(
                visit.page.evaluate(
                    "(e => e.getAttribute('href') || e.tagName)(document.activeElement)"
                )
            )
            if reached[-1] == "BODY":  # once round
                break
            outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", reached[-1]
        assert reached[0] == "#main" and "#figure" in reached
        assert "#s7" in reached and "#s0" not in reached  # what agrees is reached by its table
        assert reached.count("SUMMARY") >= 4


def test_dark_is_dark(browser: Any, files: dict[str, Path]) -> None:
    def colours(scheme: str) -> list[str]:
        with Visit(browser, files["forward"], color_scheme=scheme, **size(WIDE)) as visit:
            return list(
                visit.page.evaluate(
                    "[getComputedStyle(document.body).backgroundColor,"
                    " getComputedStyle(document.body).color,"
                    " getComputedStyle(document.querySelector('.lane text')).fill]"
                )
            )

    light, dark = colours("light"), colours("dark")
    assert light[0] == "rgb(255, 255, 255)"
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_sites_are_found_by_name(browser: Any, files: dict[str, Path]) -> None:
    with Visit(browser, files["forward"], **size(WIDE)) as visit:
        visit.page.get_by_label("find a site").fill("gelu")
        visible = visit.page.locator("table.sites tbody tr:visible")
        names = visible.locator("code").all_text_contents()
        assert names and all("gelu" in name for name in names)


def test_jobs_of_a_suite_are_found_by_name(browser: Any, files: dict[str, Path]) -> None:
    with Visit(browser, files["suite"], **size(WIDE)) as visit:
        assert visit.page.locator("details.group[open]").count() == 1
        visit.page.get_by_label("find a job").fill("net7::")
        visible = visit.page.locator("table.sites tbody tr:visible")
        assert visible.locator("td:first-child").all_text_contents() == ["ports/net7::torch::seed0"]
        visit.page.get_by_label("find a job").fill("")
        assert visit.page.locator("table.sites tbody tr:not([hidden])").count() == 40


def test_a_large_report_opens(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "large.html"
    report = replace(samples.long_model(600), name="large")
    file.write_text(html.render(report), encoding="utf-8")
    with Visit(browser, file, **size(PHONE)) as visit:
        assert visit.width() <= PHONE and visit.complaints == []
        visit.page.goto(file.as_uri() + "#s599")
        visit.page.locator("#s599").wait_for(state="visible")


def test_a_sentence_begins_with_a_large_letter_but_a_name_is_left_as_it_is(
    browser: Any, tmp_path: Path
) -> None:
    """Whoever copies a name from the page looks for it in the code."""
    report = samples.forward_divergence()
    assert report.first_divergence is not None
    first = replace(report.first_divergence, statement="`fc1` is wrong", between=("scale",))
    rest = report.divergences[1:]
    page = tmp_path / "page.html"
    page.write_text(html.render(replace(report, divergences=(first, *rest))), encoding="utf-8")
    with Visit(browser, page, **size(WIDE)) as visit:
        shown = visit.page.inner_text(".summary")
        assert "fc1 is wrong" in shown
        assert "scale lies " in shown
        assert "Agreeing before it" in shown
