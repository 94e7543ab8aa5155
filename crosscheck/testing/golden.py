"""The `crosscheck_golden` fixture: a model's run against a recorded one, kept beside the test."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from crosscheck.api import check
from crosscheck.errors import CannotCompare, DeviceUnavailable, InvalidArgument, TraceFormatError
from crosscheck.results import Report
from crosscheck.testing.checking import Fixture
from crosscheck.traces.record import record

__all__ = ["Golden"]

FOLDER = "__crosscheck__"
# What `crosscheck.record` is told beside the seed; the first two, the comparison as well.
RECORDED = ("gradients", "train", "parameters", "sketch", "local_rounding")
NOT_COMPARED = ("parameters", "sketch", "local_rounding", "seed", "pair", "candidate")


class Golden(Fixture):
    """Compare a model with the trace of an earlier run, or (``--crosscheck-update``) write it."""

    def __init__(self, node: pytest.Item, axes: Mapping[str, Any]) -> None:
        super().__init__(node, axes)
        self._axes = axes
        self._written: set[Path] = set()

    def __call__(
        self, model: Any, inputs: Any = None, *, name: str | None = None, **options: Any
    ) -> Report:
        """Compare and assert.

        Args:
            model: as for `crosscheck.check`; its weights have to be the same in every run, unless
                they are kept in the trace with ``parameters=True``.
            inputs: as for `crosscheck.record`; may be left out where the trace exists.
            name: of the file; default: the test's, with its parameters but the device.
            options: of `crosscheck.record` (``gradients``, ``train``, ``parameters``, ``sketch``)
                and of `crosscheck.check` (``tolerance``, ``skip``, ...).

        Raises:
            Diverged: the model no longer computes what was recorded.
        """
        __tracebackhide__ = True
        given = self.arguments(options, check, but=RECORDED)
        path = self.path(name)
        if self.config.getoption("--crosscheck-update"):
            self._record(model, inputs, path, given)
        elif not path.is_file():
            pytest.fail(f"no golden trace: `{path}`\n{self._fix('Fix')}", pytrace=False)
        compared = {k: v for k, v in given.items() if k not in NOT_COMPARED}
        try:
            with self.paged(again=""):
                try:
                    report = check(path, model, inputs, seed=given["seed"], **compared)
                except DeviceUnavailable as error:
                    self.skip_refused(error)
                    raise
        except (CannotCompare, TraceFormatError) as error:
            lines = [
                f"{type(error).__name__}: {error}",
                self._fix("Or, if the trace is out of date"),
            ]
            lines += getattr(error, "__notes__", [])  # where its page is
            pytest.fail("\n".join(lines), pytrace=False)
        return self.judged(report, again="")

    def path(self, name: str | None) -> Path:
        """``__crosscheck__/NAME.safetensors`` beside the test file.

        Runs on all devices share one: that they compute the same is what is asked.
        """
        given = self._default_name() if name is None else name
        if not given or re.search(r"[/\\\0]", given) or given.startswith("."):
            raise InvalidArgument(
                f"name={given!r}: give a file name without folders, as `gpt-small`"
            )
        return self.node.path.parent / FOLDER / f"{given}.safetensors"

    def _default_name(self) -> str:
        own = getattr(self.node, "originalname", None) or self.node.name
        owner = getattr(self.node, "cls", None)
        parameters = self.node.name.removeprefix(own).strip("[]").split("-")
        device = self._axes.get("device")
        parts = [owner.__name__] if owner is not None else []
        parts += [own, *(p for p in parameters if p and p != device)]
        return re.sub(r"[^\w.=+-]+", "_", "-".join(parts))

    def _record(self, model: Any, inputs: Any, path: Path, given: Mapping[str, Any]) -> None:
        """Write the trace. It is compared with the model right after: a run that does not repeat
        is no golden trace."""
        fed = inputs(given["seed"]) if callable(inputs) else inputs
        if fed is None:
            raise InvalidArgument("crosscheck_golden: give inputs to record a trace of")
        if path in self._written:
            raise InvalidArgument(
                f"crosscheck_golden: this test records `{path.name}` twice; give each a name="
            )
        self._written.add(path)
        options = {k: given[k] for k in RECORDED if k in given}
        devices = self.marker.get("devices") or [given.get("device", "cpu")]
        trace = record(model, fed, seed=given["seed"], device=devices[0], **options)
        trace.save(path)

    def _fix(self, when: str) -> str:
        again = f"pytest {shlex.quote(self.node.nodeid)} --crosscheck-update"
        return f"  {when}: {again}\n  writes it; commit the file with the test"
