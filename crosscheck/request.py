"""What a check is asked, beside the two sides and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crosscheck.candidate_inputs import understood
from crosscheck.errors import CannotSplit, InvalidArgument
from crosscheck.judging.noise import Tolerance
from crosscheck.memory import parse_bytes
from crosscheck.optimizers.sides import both
from crosscheck.weights import WeightMap

__all__ = ["EFFORTS", "Request"]

EFFORTS = ("quick", "thorough")


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `crosscheck.check`, whose docstring says what they mean; validated.

    Raises:
        InvalidArgument: on construction, naming the argument, what it was and what it may be.
    """

    candidate_inputs: Mapping[str, Any] | Callable[..., Any] | str | None = None
    weights: str | WeightMap = "copy"
    gradients: bool = True
    loss: Any = None
    targets: Any = None
    optimizer: Any = None
    steps: int = 1
    train: bool = False
    sites: Mapping[str, str] = field(default_factory=dict)
    skip: Sequence[str] = ()
    device: str = "cpu"
    seed: int = 0
    tolerance: Tolerance | None = None
    explain: bool = True
    zoom: bool = False
    effort: str = "thorough"
    max_memory: int | str | None = None
    part: tuple[int, int] | None = None
    name: str = ""
    told: tuple[str, ...] = ()  # what the report shall say of how these were understood
    say: Callable[[str], None] = _silent

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidate_inputs", understood(self.candidate_inputs))
        if not isinstance(self.weights, Mapping) and self.weights not in ("copy", "keep"):
            raise InvalidArgument(
                f'weights={self.weights!r}: must be "copy", "keep" or a map '
                "{candidate parameter: reference parameter}"
            )
        if self.effort not in EFFORTS:
            raise InvalidArgument(
                f'effort={self.effort!r}: must be "quick" or "thorough" (docs/effort.md)'
            )
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        seed = self.seed
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise InvalidArgument(f"seed={seed!r}: must be an integer ≥ 0")
        object.__setattr__(self, "seed", int(seed))  # frameworks and JSON take no np.int64
        self._check_steps()
        self._check_part()
        if not isinstance(self.sites, Mapping):
            raise InvalidArgument(
                f"sites={self.sites!r}: must be {{reference site: candidate site}}"
            )
        if isinstance(self.skip, str):
            raise InvalidArgument(
                f"skip={self.skip!r}: must be a list of sites; write skip=[{self.skip!r}]"
            )
        if self.tolerance is not None and not isinstance(self.tolerance, Tolerance):
            raise InvalidArgument(
                f"tolerance={self.tolerance!r}: must be crosscheck.Tolerance(rtol=..., atol=...)"
            )
        for name in ("gradients", "train", "explain", "zoom"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: must be True or False")

    def _check_part(self) -> None:
        part = self.part
        if part is None:
            return
        numbers = isinstance(part, Sequence) and [type(n) for n in part] == [int, int]
        if not numbers or not 1 <= part[0] <= part[1]:
            raise InvalidArgument(
                f"part={part!r}: give the number of a part, from 1, and how many there are: (2, 4)"
            )
        given = {
            'effort="quick"': self.effort == "quick",
            "tolerance=": self.tolerance is not None,
            "optimizer=": self.optimizer is not None,
            "zoom=": self.zoom,
        }
        for name in (name for name, is_given in given.items() if is_given):
            raise CannotSplit(part, f"a check with {name}", fix="leave one out")

    def _check_steps(self) -> None:
        steps = self.steps
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
            raise InvalidArgument(f"steps={steps!r}: must be an integer ≥ 1")
        if self.optimizer is None:
            if steps > 1:
                raise InvalidArgument(
                    f'steps={steps}: say which steps, with optimizer="sgd(lr=0.1)" or one of your '
                    "own"
                )
            return
        if self.effort == "quick":
            raise InvalidArgument(
                'optimizer= needs effort="thorough": a step is judged on forced gradients'
            )
        both(self.optimizer)
        if not self.gradients:
            raise InvalidArgument(
                "optimizer= needs gradients, which gradients=False leaves out: drop one of the two"
            )
