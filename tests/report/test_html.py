"""The HTML page: what it says, that names cannot harm it, and how large it gets."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

import crosscheck
from crosscheck.errors import CannotCompare, InvalidArgument, SideFailed
from crosscheck.report import html
from crosscheck.report.html.pages import coded
from crosscheck.report.json import dumps
from crosscheck.report.load import loads
from crosscheck.results import Cause, Coverage, Divergence, Report, WeightPair
from tests.check.test_imports import imported
from tests.report import samples
from tests.report.detailed import detail, looked_into
from tests.report.test_report_files import Balanced

EVIL = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}"
LARGEST = 2_000_000  # bytes


def parsed(page: str) -> Balanced:
    found = Balanced()
    found.feed(page)
    assert not found.open
    return found


def text_of(page: str) -> str:
    """What a reader sees, without markup."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_a_divergence_is_told_from_the_top() -> None:
    page = html.render(looked_into(samples.forward_divergence()))
    text = text_of(page)
    for part in (
        "first at block2.gelu (activation 8 of 10; 7 agree), introduced there",
        "cause (reproduced, 1.1 x the rounding floor): reference uses erf GELU",
        "Divergences (2)".lower(),
        "backward pass",
        "at index 127, the last, of axis 1 (length 128)",
        "crosscheck run models/gpt --candidate keras --seed 7",
        "weight map (4)",
        "elements that differ most",
        "float64 oracle",
        "torch 2.13.0 on cpu",
    ):
        assert part in text, part


def test_a_mark_leads_to_the_section_of_its_site() -> None:
    report = looked_into(samples.forward_divergence())
    page = parsed(html.render(report))
    number = next(i for i, s in enumerate(report.sites) if s.verdict == "diverge")
    ids = {attrs.get("id"): tag for tag, attrs in page.seen}
    assert ids[f"s{number}"] == "div" and ids[f"r{number}"] == "tr"
    assert ids["s0"] == "tr"
    marks = [a["href"] for tag, a in page.seen if tag == "a" and a.get("class") == "m"]
    assert sorted(marks) == sorted(f"#s{i}" for i in range(len(report.sites)))


def test_introduced_and_inherited_have_shapes_of_their_own() -> None:
    page = parsed(html.render(samples.forward_divergence()))
    uses = [attrs["href"] for tag, attrs in page.seen if tag == "use"]
    assert "#m-suspect" not in uses  # there is none, so the legend has none
    # One in the legend each; then as many as there are such sites.
    assert uses.count("#m-introduced") == 1 + 2
    assert uses.count("#m-inherited") == 1 + 2


def test_every_pass_has_a_lane_and_an_empty_report_none() -> None:
    page = html.render(samples.agree())
    for title in ("forward pass", "backward pass", "parameter gradients"):
        assert f"<b>{title}</b>" in page
    assert "<figure" not in html.render(replace(samples.agree(), sites=()))


def test_infinite_ratios_are_drawn_and_explained() -> None:
    page = html.render(samples.infinite())
    assert "more</text>" in page
    assert "nan" not in re.findall(r' d="([^"]*)"', page)
    assert "shapes differ" in text_of(page)


def test_what_was_not_compared_is_there_to_the_last_name() -> None:
    many = tuple(f"block{i}.dropout" for i in range(60))
    lines = tuple(f"cotangent at `site{i}`: overwritten" for i in range(30))
    spots = tuple(f"`bias{i}`: it is zero" for i in range(20))
    coverage = Coverage(10, many, (), ("head.cache",), 8, (), (), lines, spots)
    text = text_of(html.render(replace(samples.agree(), coverage=coverage)))
    assert all(name in text for name in (*many, "head.cache", "bias19", "site29"))
    assert "blind spots (20)" in text


def test_python_callers_are_told_the_seed() -> None:
    page = html.render(replace(samples.agree(), seed=41))
    assert "seed=41" in text_of(page)


# -- hostile names ---------------------------------------------------------------------------------


def hostile(name: str) -> Report:
    site = samples.site(name, 99.0, candidate=name + "'", dtype=name, notes=(name,))
    cause = Cause(name, name, True, 1.0)
    first = Divergence(
        "forward", name, name, name, name, 99.0, None, (cause,), statement=name, between=(name,)
    )
    report = looked_into(samples.report([site], [first], name=name))
    details = replace(
        report.details,
        weights=(WeightPair(name, name, name),),
        command=name,
        sites=tuple(replace(s, where=(name,)) for s in report.details.sites),
    )
    coverage = Coverage(1, (name,), (name,), (name,), 0, (name,), (name,), (name,), (name,))
    environment = {name: name}
    return replace(
        report, details=details, coverage=coverage, environment=environment, notes=(name,)
    )


@pytest.mark.parametrize(
    "name",
    [EVIL, "a\nb\tc\r", "\u202egnirts\u2066", "x" * 2000, "`", "$\\alpha$", "]]>", "-->", ""],
    ids=["markup", "newlines", "bidi", "long", "backquote", "math", "cdata", "comment", "empty"],
)
def test_names_are_text_and_nothing_else(name: str) -> None:
    page = html.render(hostile(name))
    found = parsed(page)
    tags = [tag for tag, _ in found.seen]
    assert tags.count("script") == 1 and not {"img", "iframe"} & {*tags}
    assert not [a for _, attrs in found.seen for a in attrs if a.startswith("on")]
    assert not {"\u202e", "\u2066", "\r"} & {*page}
    assert page.count("{{7*7}}") == page.count("alert(2)")  # no template of a template
    assert len(page) < LARGEST


def test_messages_of_errors_are_text() -> None:
    page = html.render_failure(CannotCompare(EVIL), name=EVIL, command=EVIL)
    assert [tag for tag, _ in parsed(page).seen].count("script") == 1
    assert "&lt;script&gt;" in page


def test_code_in_backquotes_is_escaped() -> None:
    assert coded("a `<b>` & c") == "a <code>&lt;b&gt;</code> &amp; c"


def test_nothing_but_the_pages_own_script_may_run() -> None:
    page = html.render(samples.agree())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


# -- size ------------------------------------------------------------------------------------------


def test_five_hundred_sites_with_long_names_fit() -> None:
    name = "encoder.layers.{}.attention.self.output.dense.projection"
    rows = []
    for i in range(500):
        rows += [
            samples.site(name.format(i), 40.0 + i),
            samples.site(name.format(i), 1.0, phase="backward", kind="cotangent"),
            samples.site(name.format(i), 1.0, phase="backward", kind="input_cotangent"),
            samples.site(name.format(i) + ".weight", 0.5, phase="parameter_gradient"),
        ]
    report = samples.report(rows)
    noisy = [detail(s, everywhere=True) for s in rows[:120:4]]
    report = replace(report, details=replace(report.details, sites=tuple(noisy)))
    assert len(html.render(report).encode()) < LARGEST


def test_five_hundred_values_can_be_opened_row_by_row() -> None:
    report = samples.report([samples.site(f"layer{i}", 0.1 + i % 7) for i in range(500)])
    page = html.render(report)
    assert page.count('<details class="more">') == 500 and len(page.encode()) < LARGEST


# -- saved and shown again -------------------------------------------------------------------------


def test_details_survive_the_file_and_make_the_same_page() -> None:
    report = looked_into(samples.forward_divergence())
    read = loads(dumps(report))
    assert read == report
    assert html.render(read) == html.render(report)
    assert "details" not in json.loads(dumps(samples.agree()))


def damaged(change) -> str:
    data = json.loads(dumps(looked_into(samples.forward_divergence())))
    change(data["details"]["sites"][0])
    return json.dumps(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["heat"]["cells"][0].append(0.5),
        lambda d: d["heat"].update(cells=[]),
        lambda d: d["heat"]["cells"][0].__setitem__(0, 7.0),
        lambda d: d["heat"]["cells"][0].__setitem__(0, None),
        lambda d: d["profiles"][0].update(shares=[]),
        lambda d: d["profiles"][0].update(length=1),
        lambda d: d["profiles"][0].update(shares=[0.1] * 5000, length=5000),
        lambda d: d["values"].update(low=1e308, high=-1e308),
        lambda d: d["values"].update(high=None),
        lambda d: d["values"]["reference"].append(1),
        lambda d: d["values"]["reference"].__setitem__(0, -3),
        lambda d: d["errors"].update(zeros=[1]),
        lambda d: d["errors"].update(unit="furlong"),
        lambda d: d.update(where=["x"] * 1000),
        lambda d: d.update(heat=[1]),
    ],
)
def test_details_that_cannot_be_drawn_are_refused(change) -> None:
    with pytest.raises(InvalidArgument, match="damaged"):
        loads(damaged(change))


def test_a_detail_without_its_site_is_left_out() -> None:
    report = looked_into(samples.forward_divergence())
    stray = replace(report.details.sites[0], reference="nowhere")
    report = replace(report, details=replace(report.details, sites=(stray,)))
    assert "a closer look" not in text_of(html.render(report))


# -- could not compare -----------------------------------------------------------------------------


def failed(compared=()) -> SideFailed:
    try:
        raise ValueError("cannot broadcast (7, 16) to (7, 15)")
    except ValueError as error:
        found = SideFailed(
            "candidate", "block1.fc2", stage="forward", framework="numpy", cause=error,
            compared=compared,
        )  # fmt: skip
        found.__cause__ = error
        return found


def test_a_side_that_raised_is_shown_with_what_was_compared() -> None:
    page = html.render_failure(failed(samples.forward()[:4]), command="crosscheck run p --seed 0")
    text = text_of(page)
    assert "could not compare one side raised" in text
    assert "ValueError: cannot broadcast (7, 16) to (7, 15)" in text
    assert "compared until then (4)" in text and "block1.gelu" in text
    assert "test_html.py" in text and "crosscheck run p --seed 0" in text
    assert parsed(page).seen


def test_an_error_says_what_to_do() -> None:
    error = CannotCompare("`a` (3, 4) has no counterpart.\n  Nearest: `b`.\n  Fix: weights={...}")
    text = text_of(html.render_failure(error))
    happened, _, advice = text.partition("what to do")
    assert "Nearest: b" in happened and advice.strip().startswith("weights={...}")
    assert "compared until then (0) Nothing." in text


def test_an_error_of_the_users_file_shows_where() -> None:
    try:
        math.sqrt(-1)
    except ValueError as error:
        text = text_of(html.render_failure(error))
    assert "the check ended in an error" in text and "test_html.py" in text


def test_the_calls_of_an_error_are_the_users() -> None:
    def model(x: object) -> object:
        raise ValueError("out of luck")

    with pytest.raises(SideFailed) as failed:
        crosscheck.check(lambda x: x, model, "float32[5,6]")
    text = text_of(html.render_failure(failed.value))
    assert "test_html.py" in text and "in model" in text
    assert "adapters/numpy" not in text


@pytest.mark.parametrize(
    "file", sorted(Path(html.__file__).parent.glob("*.py")), ids=lambda f: f.stem
)
def test_the_page_is_made_of_results_alone(file: Path) -> None:
    """The rule for the modules of the report holds for those of the page."""
    ours = {n for n in imported(file) if n.startswith("crosscheck.")}
    named = ("results", "errors", "frames", "report", "__")
    allowed = tuple(f"crosscheck.{name}" for name in named)
    assert all(n.startswith(allowed) for n in ours)
