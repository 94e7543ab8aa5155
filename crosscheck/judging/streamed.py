"""Stage 6, compare, with ``effort="quick"``: two free runs, the backward pass while it runs.

At the end of the candidate's forward pass everything is known that alignment needs. So it is made
there, and each cotangent and each parameter's gradient is compared the moment it arrives, while it
is in the cache, and let go: its memory serves the next one, and a run leaves half as much behind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from crosscheck.adapters.base import CotangentSource, input_site
from crosscheck.aligning.alignment import Alignment
from crosscheck.arrays import is_inexact
from crosscheck.compare import Difference, compare, compare_two
from crosscheck.comparisons import Item, site_items, value_of
from crosscheck.judging.fill import FILL
from crosscheck.judging.fill import without_fill as without_fill_of_three
from crosscheck.judging.judge import BYTES, exact, in_reference_layout, site_result
from crosscheck.judging.noise import Judgement, Tolerance, within
from crosscheck.kernels.on_device import address_of
from crosscheck.memory import portions
from crosscheck.observers import Key, Recorder
from crosscheck.results import SiteResult
from crosscheck.taps import Kind, Session, active_session
from crosscheck.trace import RunInfo, Trace

__all__ = ["Looked", "Streamed", "look"]

SMALL = 1 << 15
"""Elements of a cotangent or gradient up to which it is kept, and compared with many others in one
call."""
LARGE = 1 << 26
"""Bytes of a forward pass from which on its values are let go where nothing stands out: they come
back (`Recalled`) if the backward pass is not clear."""
CLOSE = 1e-3
"""Relative error from which on something stands out."""


@dataclass(frozen=True)
class Looked:
    """The values of one item, compared; the candidate's may be gone.

    Attributes:
        result: all but the judgement.
        judgement: where it takes no floor; else None.
        found: the candidate's error; None where there is a judgement, or no common layout.
        dtypes: of the candidate's and the reference's value.
        shape: the reference's.
    """

    item: Item
    result: SiteResult
    judgement: Judgement | None = None
    found: Difference | None = None
    dtypes: tuple[np.dtype, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.result.shape


Values = tuple[np.ndarray, "np.ndarray | None", "np.ndarray | None"]
"""The reference's, the candidate's, and that in the reference's layout, if there is one."""


def look(
    items: Iterable[Item], reference: Trace, candidate: Trace, tolerance: Tolerance | None
) -> Iterator[Looked]:
    """Compare items of two runs, in their order; many small values in one call."""
    values = (
        (item, _values(item, reference, value_of(item, candidate, side="candidate")))
        for item in items
    )
    for some in portions(values, lambda one: one[1][0].size, BYTES):
        yield from _looked(some, tolerance)


def _values(item: Item, reference: Trace, raw: np.ndarray | None) -> Values:
    truth = value_of(item, reference, side="reference")
    assert truth is not None, item
    return truth, raw, in_reference_layout(item, raw, truth)


def _looked(some: list[tuple[Item, Values]], tolerance: Tolerance | None) -> list[Looked]:
    pairs = {
        item: (value, truth)
        for item, (truth, _, value) in some
        if value is not None and is_inexact(value) and is_inexact(truth)
    }
    seen = dict(zip(pairs, compare_two(list(pairs.values())), strict=True))
    found = []
    for item, (truth, raw, value) in some:
        if item in seen:
            two = seen[item]
            result = site_result(item, truth, raw, value, None, two.metrics)
            judgement = None if tolerance is None else within(tolerance, *pairs[item])
            error = _without_fill(two.between, *pairs[item]) if tolerance is None else None
            dtypes = (pairs[item][0].dtype, truth.dtype)
            found.append(Looked(item, result, judgement, error, dtypes))
        else:
            judgement = None if value is None else exact(value, truth)
            found.append(Looked(item, site_result(item, truth, raw, value, None), judgement))
    return found


def _without_fill(between: Difference, value: np.ndarray, truth: np.ndarray) -> Difference:
    if between.truth_max < FILL:
        return between
    kept, left, _ = without_fill_of_three(value, truth, truth)
    return between if kept is value else compare(kept, left)


class Streamed(Recorder):
    """Records the candidate's forward pass, aligns, and compares cotangents as they arrive.

    Args:
        truth: the reference's run.
        aligned: what pairs the sites of the two runs.
        cotangents: what the candidate's outputs receive.
        gradients: the comparisons of parameter gradients.
        inputs: names of the model's inputs.
        tolerance: instead of a floor.
        borrows: as for `Recorder`.

    Attributes:
        alignment: None before the end of the forward pass.
        looked: what has been compared.
        dropped: the shapes of forward values in their order, once some have been let go.
        gradients: the shapes of parameter gradients that have been let go.
    """

    def __init__(
        self,
        truth: Trace,
        aligned: Callable[[Trace], Alignment],
        cotangents: CotangentSource,
        gradients: Iterable[Item],
        inputs: Iterable[str],
        *,
        tolerance: Tolerance | None,
        borrows: bool,
    ) -> None:
        super().__init__(borrows=borrows)
        self._tolerance = tolerance
        self._truth, self._aligned, self._cotangents = truth, aligned, cotangents
        self._inputs = tuple(map(input_site, inputs))
        self._of_gradients = {i.candidate: i for i in gradients if i.pullback is None}
        self.restart()

    def restart(self) -> None:
        super().restart()
        self.alignment: Alignment | None = None
        self.looked: dict[Item, Looked] = {}
        self.dropped: dict[Key, tuple[int, ...]] = {}
        self.gradients: dict[str, tuple[int, ...]] = {}
        self._partners: dict[str, Item] = {}

    def keeps(self, kind: Kind, value: np.ndarray) -> bool:
        """Whether it holds on to a value that it is shown."""
        return self.alignment is None or kind != "cotangent" or value.size <= SMALL

    def __call__(self, site: str, kind: Kind, value: np.ndarray) -> None:
        if self.keeps(kind, value):
            super().__call__(site, kind, value)
        elif site in self._partners:
            self._look(self._partners[site], value)

    def takes_gradient(self, name: str, value: np.ndarray) -> bool:
        """Whether the gradient of a parameter has been compared, and nobody needs it any more."""
        item = self._of_gradients.get(name)
        if item is None or value.size <= SMALL:
            return False
        self._look(item, value)
        self.gradients[name] = value.shape
        return True

    def _look(self, item: Item, value: np.ndarray) -> None:
        seen = [(item, _values(item, self._truth, value))]
        self.looked[item] = _looked(seen, self._tolerance)[0]

    def sent(self, outputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The cotangents of the outputs, as from a `CotangentSource`: the forward pass is over."""
        given = self._cotangents(outputs)
        session = active_session()
        if session is not None:
            info = RunInfo.of(session, inputs=self._inputs, outputs=tuple(outputs))
            forward = Trace(self.values, info, "")
            self.alignment = self._aligned(forward)
            items, _ = site_items(self.alignment, self._truth, forward, backward=True)
            self._partners = {i.candidate: i for i in items if i.kind == "cotangent"}
            if isinstance(self.values, dict) and _bytes(self.values.values()) > LARGE:
                ahead = look(
                    [i for i in items if i.phase == "forward"],
                    self._truth,
                    forward,
                    self._tolerance,
                )
                self.looked = {one.item: one for one in ahead}
                if not any(map(_stands_out, self.looked.values())):
                    self._drop(session, {*info.inputs, *info.outputs})
        return given

    def _drop(self, session: Session, kept: Collection[str]) -> None:
        """Let go of all values but those of some sites."""
        self.dropped = {key: value.shape for key, value in self.values.items()}
        gone = frozenset(key for key in self.values if key[0] != "activation" or key[1] not in kept)
        session.let_go(gone)
        for key in gone:
            del self.values[key]


def _bytes(values: Iterable[np.ndarray]) -> int:
    """Of memory; a value that is another one's memory counts once."""
    return sum({address_of(v): v.nbytes for v in values}.values())


def _stands_out(looked: Looked) -> bool:
    """Whether the values may be looked at again."""
    if looked.found is None or looked.result.metrics is None:
        return looked.judgement is None or looked.judgement.verdict != "agree"
    error = looked.found.l2 > CLOSE * looked.found.truth_l2
    return error or looked.found.mismatch > 0 or looked.result.metrics.nonfinite > 0
