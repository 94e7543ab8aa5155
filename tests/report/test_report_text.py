"""What a person reads, character by character."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from crosscheck.report import figures, words
from crosscheck.report.oneline import summary
from crosscheck.report.terminal import print_report, to_text
from crosscheck.report.words import Page, Unit
from crosscheck.results import Coverage, Divergence
from tests.report import samples

SAMPLES = ["agree", "forward_divergence", "backward_divergence", "suspect", "infinite"]
SAMPLES += ["unmatched", "hostile", "long_model"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def text(name: str, width: int = 100, **options: bool) -> str:
    return to_text(getattr(samples, name)(), width=width, **{"ascii": False, **options})


@pytest.mark.parametrize("name, width", samples.TEXTS)
def test_text_is_exactly_this(name: str, width: int) -> None:
    expected = (samples.EXPECTED / f"{name}-{width}.txt").read_text(encoding="utf-8")
    assert text(name, width) + "\n" == expected


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
@pytest.mark.parametrize("ascii", [False, True])
def test_no_line_is_wider_than_the_page(name: str, width: int, ascii: bool) -> None:
    shown = text(name, width, ascii=ascii)
    assert max(map(len, shown.splitlines())) <= width
    assert "\x1b" not in shown
    if ascii:
        assert shown.isascii()


def test_first_line_of_every_verdict() -> None:
    first = {name: text(name, 120).splitlines()[0] for name in SAMPLES[:5]}
    assert first == {
        "agree": "agree: torch 2.13.0 and keras 3.15.0 compute the same function",
        "forward_divergence": "diverge: first at `block2.gelu` (activation 8 of 10; 7 agree), "
        "introduced there",
        "backward_divergence": "diverge: first in the VJP of `block1.norm` (cotangent 18 of 20; "
        "17 agree)",
        "suspect": "suspect: first at `block1.norm` (activation 2 of 10; 1 agree), "
        "introduced there",
        "infinite": "diverge: first at `block1.fc1` (activation 3 of 10; 2 agree), "
        "introduced there",
    }


def test_a_cause_is_named_only_when_it_was_reproduced() -> None:
    assert "cause (reproduced, 1.1 x the rounding floor): reference uses" in text(
        "forward_divergence"
    )
    shown = text("backward_divergence")
    assert "cause" not in shown.replace("because", "")
    assert "consistent with (not reproduced, 71 x the rounding floor remains): the VJP" in shown


def test_the_first_certain_divergence_leads_and_the_suspect_before_it_follows() -> None:
    base = samples.forward_divergence()
    earlier = replace(base.divergences[0], site="embed", reference="embed", verdict="suspect")
    shown = to_text(replace(base, divergences=(earlier, *base.divergences)), ascii=False)
    assert shown.startswith("diverge: first at `block2.gelu`")
    assert "further, by layer: 1 divergence and 1 suspect\n  `embed`\n    ?" in shown


def test_an_unstable_finding_is_not_called_a_matter_of_size() -> None:
    base = samples.suspect()
    first = replace(base.divergences[0], ratio=5000.0)
    shown = to_text(replace(base, divergences=(first,)), ascii=False)
    assert shown.startswith("suspect: first at `block1.norm`") and "neither" not in shown


def test_sites_without_a_partner_in_the_interval_are_named() -> None:
    base = samples.forward_divergence()
    first = replace(base.divergences[0], between=("drop", "cast"))
    shown = to_text(replace(base, divergences=(first,)), width=120, ascii=False)
    assert "introduced there or just before" in shown
    assert "`drop`, `cast` lie after `block2.fc1` and before it, without a partner" in shown


def test_difference_in_what_a_layer_is_given() -> None:
    glue = samples.site("head", 99.0, kind="input")
    first = Divergence("forward", None, None, "head", "block2.fc2", 99.0, glue.metrics)
    shown = to_text(samples.report([*samples.forward(), glue], [first]), ascii=False)
    assert "diverge: first in the input of `head` (layer input 1 of 1; 0 agree), intro" in shown
    assert "> into head" in shown


@pytest.mark.parametrize(
    ("scope", "place"),
    [("output", "by the code behind it"), ("block2", "by the code of `block2` behind it")],
)
def test_difference_in_what_arrives_at_a_layer(scope: str, place: str) -> None:
    """No layer's own VJP: neither the model's output is at fault, nor the container as a whole."""
    row = samples.site("block2.fc1", 99.0, phase="backward", kind="cotangent")
    first = Divergence("backward", scope, scope, "block2.fc1", "head", 99.0, row.metrics)
    report = samples.report([*samples.forward(), row], [first])
    shown = " ".join(to_text(report, ascii=False).split())
    assert "diverge: first in the cotangent of `block2.fc1` (cotangent 1 of 1; 0 agree)" in shown
    assert f"introduced {place}" in shown and "VJP" not in shown and "seen at" not in shown
    assert "in the cotangent of `block2.fc1`" in summary(report)
    first = Divergence("forward", "embed", "embed", "embed", None, 99.0, row.metrics)
    shown = to_text(replace(report, divergences=(first, *report.divergences)), ascii=False)
    assert "  `block2.fc1`\n    !      99 x  the cotangent that arrives there" in shown


def test_parameter_gradients_are_grouped_by_their_layer() -> None:
    rows = samples.gradients(head_weight=90.0, embed_weight=70.0)
    bad = [r for r in rows if r.verdict != "agree"]
    found = [
        Divergence(r.phase, r.reference, r.candidate, r.reference, None, r.ratio, r.metrics)
        for r in bad
    ]
    shown = to_text(samples.report(samples.forward() + rows, found), ascii=False)
    assert "diverge: first in the gradient of `embed.weight` (parameter gradient 1 of 8;" in shown
    assert "  `head`\n    !      90 x  the gradient of `head.weight`" in shown


def test_many_divergences_are_capped_with_the_number_hidden() -> None:
    rows = [samples.site(f"l{i}", 100.0 + i) for i in range(40)]
    found = [
        Divergence("forward", r.reference, r.candidate, r.reference, None, r.ratio, r.metrics)
        for r in rows
    ]
    shown = to_text(samples.report(rows, found), ascii=False)
    assert "further, by layer: 39 divergences" in shown
    assert "and 27 more (all are in report.json)" in shown


@pytest.mark.parametrize(
    "phase", ["weights", "loss", "backward", "parameter_gradient", "update", "buffer"]
)
def test_every_phase_can_be_the_first_and_the_only_one(phase: words.Phase) -> None:
    row = samples.site("fc", 50.0, phase=phase, kind="parameter")
    first = Divergence(phase, "fc", "fc", "fc", None, 50.0, row.metrics)
    shown = to_text(samples.report([row], [first]), ascii=False)
    assert shown.startswith(("diverge: first in the ", "diverge: first in `fc`"))
    assert "> fc" in shown


def test_nothing_compared_is_said() -> None:
    shown = to_text(samples.report([], coverage=Coverage()), ascii=False)
    assert shown.startswith("agree: nothing was compared\n  no activation")


def test_forward_only_is_said() -> None:
    shown = to_text(samples.report(samples.forward()), ascii=False)
    assert "compute the same function (gradients not compared)" in shown
    assert "  backward: nothing compared\n" in shown


def test_a_divergence_without_its_row_or_metrics() -> None:
    first = Divergence("forward", "a", None, "a", None, math.inf, None)
    shown = to_text(samples.report(samples.forward(), [first], verdict="diverge"), ascii=False)
    assert "diverge: first at `a`, introduced there\n  ratio inf\n" in shown


def test_with_a_tolerance_the_ratio_is_of_the_tolerance() -> None:
    rows = [samples.site("a", 0.2), replace(samples.site("b", 1.5), verdict="diverge")]
    first = Divergence("forward", "b", "b", "b", "a", 1.5, rows[1].metrics)
    environment = {"tolerance": "rtol 1e-05, atol 1e-08"}
    report = samples.report(rows, [first], environment=environment)
    shown = to_text(report, width=120, ascii=False)
    assert "1.5 x the tolerance; worst at" in shown
    assert "! above 1: diverges" in shown and "above 8" not in shown
    assert "tolerance rtol 1e-05, atol 1e-08" in shown


def test_error_in_one_element_is_called_that() -> None:
    row = samples.site("a", 300.0, metrics=samples.metrics(1.2))
    first = Divergence("forward", "a", "a", "a", None, 300.0, row.metrics)
    shown = to_text(samples.report([row], [first]), ascii=False)
    assert "relative error 7.6e-08, 300 x the rounding floor in the worst element" in shown


def test_notes_of_sites_are_gathered() -> None:
    rows = [replace(s, notes=("no float64: float32 floor",)) for s in samples.forward()]
    shown = to_text(samples.report(rows), width=100, ascii=False)
    assert "note: no float64: float32 floor: `embed`, `block1.norm`, `block1.fc1` and 7" in shown


def test_a_long_model_is_binned_by_its_maximum() -> None:
    assert figures.binned([0.0] * 4999 + [7.0], 96) == [0.0] * 95 + [7.0]
    assert figures.binned([1.0, 2.0], 96) == [1.0, 2.0]
    page = Page(width=60, unit=Unit())
    drawn = figures.columns([1.0] * 2500 + [math.nan] + [1.0] * 2499, page)
    assert len(drawn) == 56 and [c.mark for c in drawn].count("!") == 1


def test_the_height_of_a_bar_tells_the_verdict() -> None:
    ratios = [0.0, 0.5, 2.0, 8.0, 8.1, 32.0, 32.1, math.inf]
    drawn = figures.columns(ratios, Page())
    assert [c.level for c in drawn] == [0, 0, 1, 2, 3, 3, 4, 7]
    assert "".join(c.mark for c in drawn) == "    ??!!"


def test_what_agrees_in_spite_of_its_ratio_bears_no_mark() -> None:
    rows = [replace(s, ratio=24.0, verdict="agree") for s in samples.forward()]
    marked = [
        line for line in to_text(samples.report(rows)).splitlines() if set(line) <= set(" ?!")
    ]
    assert not any(line.strip() for line in marked)


@pytest.mark.parametrize(
    "ratio, shown",
    [(0, "0"), (0.001, "<0.01"), (0.42, "0.42"), (0.996, "1.0"), (9.96, "10"), (3168.2, "3168")]
    + [(1.2e7, "1.2e+07"), (math.inf, "inf"), (math.nan, "nan")],
)
def test_ratio_text(ratio: float, shown: str) -> None:
    assert words.ratio_text(ratio) == shown


def test_values_have_as_many_digits_as_tell_them_apart() -> None:
    assert words.values_text(0.84121, 0.84129) == ("0.8412", "0.8413")
    assert words.values_text(1.0, 1.0000001) == ("1", "1.0000001")
    assert words.values_text(math.nan, 0.5) == ("nan", "0.5")


def test_long_names_keep_both_ends() -> None:
    page = Page()
    assert page.short("encoder.layer.0.attention", 12) == "encod…ention"
    assert Page(ascii=True).short("encoder.layer.0.attention", 12) == "encod..ntion"
    both = words.short_label(samples.site("a" * 50, 1.0, candidate="b" * 20 + "/end"), page, 40)
    assert len(both) <= 40 and both.startswith("aaa") and both.endswith("/end")


def test_a_terminal_gets_colour_and_a_file_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal, file = Terminal(), io.StringIO()
    print_report(samples.forward_divergence(), terminal)
    print_report(samples.forward_divergence(), file)
    assert terminal.getvalue().startswith("\x1b[1;31mdiverge\x1b[0m: first at ")
    assert "\x1b" not in file.getvalue()


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = Terminal()
    print_report(samples.forward_divergence(), terminal)
    assert "\x1b" not in terminal.getvalue()


def test_colour_changes_nothing_but_colour() -> None:
    import re

    for name in SAMPLES:
        coloured = re.sub(r"\x1b\[[0-9;]*m", "", text(name, color=True))
        assert [s.rstrip() for s in coloured.splitlines()] == text(name).splitlines()


def test_an_ascii_stream_is_not_crashed() -> None:
    code = (
        "from tests.report import samples\n"
        "from crosscheck.report.terminal import print_report\n"
        "print(samples.hostile())\n"
        "print_report(samples.forward_divergence())"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, check=True, text=True
    )
    assert done.stdout.isascii() and "\n    _......@..\n           !\n" in done.stdout


def test_print_and_raise_show_the_same_text() -> None:
    report = samples.forward_divergence()
    with pytest.raises(AssertionError) as raised:
        report.raise_if_diverged()
    assert str(raised.value) == str(report)


def test_a_further_divergence_says_where_in_the_layer_it_was_seen() -> None:
    """Several inputs of the layers in one container look alike otherwise."""
    report = samples.infinite()
    first, *rest = report.divergences
    inside = replace(rest[0], reference="block1", candidate="block1")
    shown = to_text(replace(report, divergences=(first, inside)), width=100)
    assert "activation of `block1.fc2`" in shown


def test_where_a_layers_input_is_the_last_that_agrees_it_is_not_called_the_layer() -> None:
    """Nor is a layer said to agree whose output is the first that does not."""
    report = samples.forward_divergence()
    assert report.first_divergence is not None
    place = next(s for s in report.sites if s.reference == report.first_divergence.site)
    at = report.sites.index(place)
    given = replace(report.sites[at - 1], kind="input", reference=place.reference)
    sites = (*report.sites[:at], given, *report.sites[at:])
    first = replace(report.first_divergence, after=place.reference)
    rest = report.divergences[1:]
    shown = to_text(replace(report, sites=sites, divergences=(first, *rest)), width=160)
    assert f"the last is the input of `{place.reference}`" in shown
