"""The `crosscheck` fixture at work."""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from crosscheck.api import check
from crosscheck.errors import CrosscheckError, DeviceUnavailable, Diverged, InvalidArgument, capped
from crosscheck.pair import Pair, load_pair
from crosscheck.report.write import write_atomically
from crosscheck.results import Report
from crosscheck.testing.marks import AXES, OF_THE_PLUGIN, axis, marked
from crosscheck.testing.pages import page_path

__all__ = ["Checking", "Fixture"]


class Fixture:
    """What both fixtures do: options of marker and command line, devices, pages, the failure.

    Args:
        node: the test.
        axes: what the test is parametrised over: seed, device, candidate; None where it is not.
    """

    def __init__(self, node: pytest.Item, axes: Mapping[str, Any]) -> None:
        self.node, self.config = node, node.config
        self.marker = marked(node)
        axis_keys = {k for k in AXES if axis(self.marker, k, seed=None) is not None}
        given = {k: v for k, v in self.marker.items() if k not in axis_keys}
        self.options = given | {name: v for name, v in axes.items() if v is not None}
        self.count = 0

    def arguments(
        self, options: Mapping[str, Any], of: Any, but: tuple[str, ...]
    ) -> dict[str, Any]:
        """The marker's options under those of a call; the seed of the command line above both.

        Raises:
            InvalidArgument: an option that neither ``of`` nor the plugin knows.
        """
        given = {"seed": 0, **self.options, **options}
        seed = self.config.getoption("--crosscheck-seed")
        if seed is not None:
            given["seed"] = seed
        known = {*inspect.signature(of).parameters, *OF_THE_PLUGIN, *but}
        unknown = sorted(set(given) - known)
        if unknown:
            raise InvalidArgument(
                f"crosscheck: unknown option {capped(unknown)}; known are "
                f"{', '.join(sorted(known - {'reference', 'inputs', 'progress'}))}"
            )
        return given

    def skip_refused(self, error: DeviceUnavailable) -> None:
        """Skip, with the reason, where one of several ``devices=`` is not to be had.

        Only what is refused before it runs: a side that was to run on a GPU and did not has failed.
        No context manager: pytest would show the line in `contextlib`, not the test's.
        """
        __tracebackhide__ = True
        if isinstance(error.__cause__, DeviceUnavailable) and "devices" in self.marker:
            pytest.skip(" ".join(str(error).split()))

    @contextlib.contextmanager
    def paged(self, *, again: str) -> Iterator[None]:
        """Write the page of an error that ends the check, if pages were asked for; what keeps it
        from being written hides nothing."""
        __tracebackhide__ = True
        try:
            yield
        except Exception as error:
            self.count += 1
            if self.config.getoption("--crosscheck-html"):
                error.add_note(self._page_of(error, again))
            raise

    def judged(self, report: Report, *, again: str) -> Report:
        """Write the page that was asked for; raise `Diverged` unless the verdict is ``agree``."""
        __tracebackhide__ = True
        self.count += 1
        agrees = report.verdict == "agree"
        directory = self.config.getoption("--crosscheck-html")
        report = report.with_command(self._again(again))
        lines = [str(report), ""]
        if directory and (not agrees or self.config.getoption("--crosscheck-html-all")):
            from crosscheck.report.html import render

            lines.append(self._page(render(report)))
        if not agrees:
            lines.append(f"again: {self._again(again)}")
            raise Diverged("\n".join(lines), report)
        return report

    def _page_of(self, error: Exception, again: str) -> str:
        from crosscheck.report.html import render_failure

        text = render_failure(error, name=self.node.name, command=self._again(again))
        try:
            return self._page(text)
        except (CrosscheckError, OSError) as refused:
            return f"no page: {refused}"

    def _page(self, text: str) -> str:
        """Write the page of this check; gives the line that says where it is."""
        page = page_path(self.config.getoption("--crosscheck-html"), self.node.nodeid, self.count)
        write_atomically(self.config.invocation_params.dir / page, text)
        self.node.user_properties.append(("crosscheck_html", page))
        return f"page: {page}"

    def _again(self, options: str) -> str:
        return f"pytest {shlex.quote(self.node.nodeid)} {options}".rstrip()


class Checking(Fixture):
    """`crosscheck.check` with the options of the marker and of the command line."""

    def __call__(
        self, reference: Any = None, candidate: Any = None, inputs: Any = None, **options: Any
    ) -> Report:
        """Check and assert.

        Args:
            reference: as for `crosscheck.check`; or a pair: a `crosscheck.Pair`, or the path of
                its file or folder; default: the marker's ``pair=``.
            candidate: of a pair, the name of one of its candidates.
            inputs: as for `crosscheck.check`; a pair has its own.
            options: of `crosscheck.check`; they override the marker's.

        Raises:
            Diverged: the verdict is not ``agree``.
        """
        __tracebackhide__ = True
        given = self.arguments(options, check, but=("pair", "candidate"))
        pair = self._pair(reference, inputs, given.pop("pair", None))
        chosen = given.pop("candidate", None)
        again = f"--crosscheck-seed={given['seed']}"
        with self.paged(again=again):
            if pair is None and chosen is not None:
                raise InvalidArgument(f"candidate {chosen!r}: only a pair has named candidates")
            try:
                if pair is None:
                    report = check(reference, candidate, inputs, **given)
                else:
                    report = pair.check(candidate or chosen, **given)
            except DeviceUnavailable as error:
                self.skip_refused(error)
                raise
        return self.judged(report, again=again)

    def _pair(self, reference: Any, inputs: Any, marked_pair: Any) -> Pair | None:
        given = marked_pair if reference is None else reference
        if isinstance(given, Pair):
            return given
        if not isinstance(given, (str, os.PathLike)):
            return None
        path = self._found(Path(given))
        if not path.is_dir() and path.suffix != ".py":
            return None  # a trace or an ONNX file: a side
        if inputs is not None:
            raise InvalidArgument(f"crosscheck({str(given)!r}, ...): a pair has its own inputs")
        return load_pair(path)

    def _found(self, path: Path) -> Path:
        """As given, or from the root of the tests, or beside the test."""
        places = (path, self.config.rootpath / path, self.node.path.parent / path)
        return next((place for place in places if place.exists()), path)
