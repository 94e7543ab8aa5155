"""The batch as it arrives right before the net: inputs and labels."""

from __future__ import annotations

import numpy as np

from crosscheck.arrays import is_float
from crosscheck.auditing.arrays import is_mask
from crosscheck.auditing.registry import Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.subject import Subject

__all__: list[str] = []


@check("suspicious")
def inputs_are_normalised(subject: Subject) -> Outcome:
    """What goes into the net is of the order of one, as it arrives there."""
    seen = {}
    for name, value in subject.inputs.items():
        if not is_float(value) or value.size < 2 or is_mask(value):
            continue
        x = value.astype(np.float64)
        mean, deviation = float(x.mean()), float(x.std())
        seen[name] = {"mean": mean, "std": deviation, "min": float(x.min()), "max": float(x.max())}
        if deviation == 0:
            return Failure(f"input `{name}` is constant ({mean:.4g})", name, 0.0)
        if abs(mean) > 10 or deviation > 10 or deviation < 1e-3:
            return Failure(
                f"input `{name}` has mean {mean:.4g} and deviation {deviation:.4g}: is it "
                "normalised?",
                name,
                deviation,
            )
        if (
            len(x) > 1
            and len(x) == subject.batch
            and all(np.array_equal(x[0], row) for row in x[1:])
        ):
            return Failure(f"input `{name}`: all {len(x)} examples are the same", name)
    if not seen:
        return Skip("no floating-point input")
    text = ", ".join(
        f"{n}: mean {s['mean']:.3g}, deviation {s['std']:.3g}" for n, s in seen.items()
    )
    return Looked(text, details=seen)


@check("note")
def shapes_are_asymmetric(subject: Subject) -> Outcome:
    """No two axes of an input have the same size: a swapped one cannot hide (4×3, not 4×4)."""
    for name, value in subject.inputs.items():
        sizes = [s for s in value.shape if s > 1]
        twice = next((s for s in sizes if sizes.count(s) > 1), None)
        if twice is not None:
            return Failure(
                f"input `{name}` {list(value.shape)} has two axes of {twice}: if they were "
                "swapped, nobody would see it",
                name,
                twice,
            )
    return Looked("no two axes of an input have the same size")


@check("note")
def labels_look_right(subject: Subject) -> Outcome:
    """The targets vary, and no class holds nearly all of them."""
    targets = subject.targets
    if targets is None:
        return Skip("no targets")
    arrays = targets if isinstance(targets, dict) else {"targets": targets}
    seen = {}
    for name, value in arrays.items():
        kinds, counts = np.unique(value, return_counts=True)
        if value.size > 1 and len(kinds) == 1:
            # Right for a discriminator's real ones and fakes.
            of_classes = value.dtype.kind in "iu" and len(arrays) == 1
            return Failure(
                f"{name}: every target is {kinds[0]}",
                name,
                float(kinds[0]),
                severity="suspicious" if of_classes else "note",
            )
        if value.dtype.kind in "iu":
            seen[name] = {str(k): int(c) for k, c in zip(kinds, counts, strict=True)}
            if value.size >= 8 and name != "lengths" and counts.max() > 0.9 * value.size:
                return Failure(
                    f"{name}: {counts.max() / value.size:.0%} of the targets are "
                    f"{kinds[counts.argmax()]}",
                    name,
                )
    return Looked(f"{', '.join(arrays)}: values vary", details=seen)
