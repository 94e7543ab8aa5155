"""Which variables train, and which do not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from crosscheck.adapters.base import Parameter
from crosscheck.auditing.arrays import same
from crosscheck.auditing.registry import Failure, Looked, Outcome, Skip, check
from crosscheck.auditing.stepping import snapshot
from crosscheck.auditing.subject import Arrays, Subject

__all__: list[str] = []

NEGLIGIBLE = 1e-5  # of the largest gradient: a bias in front of a norm has rounding alone


@check("wrong")
def variables_train(subject: Subject) -> Outcome:
    """After one training step every variable that shall train has changed, by its gradient."""
    if not subject.adapter.capabilities.cotangents:
        return Skip("the model has no backward pass")
    trainable = subject.trainable()
    if not trainable:
        return Failure("no parameter trains: all are frozen", number=0)
    gradients = subject.run(train=True).gradients
    broken = [n for n, g in gradients.items() if not np.isfinite(g.astype(np.float64)).all()]
    if broken:
        return Failure(
            f"the gradient of `{broken[0]}` holds NaN or Inf{_more(broken)}: a step would change "
            "it, and not train it",
            broken[0],
        )
    nothing = [p.name for p in trainable if not _moves(gradients.get(p.name))]
    never = _never(subject, nothing)
    if never:
        decays = subject.step is not None and _changed_by_step(subject, never[0])
        return Failure(
            f"no gradient arrives at `{never[0]}`{_more(never)}: it is not connected to the loss, "
            "or detached from it" + ("; the step moves it by weight decay alone" if decays else ""),
            never[0],
            len(never),
        )
    training = [p for p in trainable if p.name not in nothing]
    if subject.step is not None:
        failure = _of_step(subject, training, gradients)
        if failure is not None:
            return failure
    if nothing:
        return Failure(
            f"`{nothing[0]}` does not train in the first step{_more(nothing)} of {len(trainable)}: "
            "what it feeds starts at zero",
            nothing[0],
            len(nothing),
            severity="note",
        )
    if subject.step is None:
        return Looked(f"a gradient arrives at each of {len(trainable)} parameters", len(trainable))
    return Looked(f"the step changed all of {len(trainable)} parameters", len(trainable))


def _never(subject: Subject, names: list[str]) -> list[str]:
    """Those without a gradient in eval mode and behind other values as well: it is no zero-valued
    layer in front, no expert that the batch did not choose, no norm that cancels a bias."""
    left = list(names)
    for gradients in _elsewhere(subject) if names else ():
        left = [name for name in left if not _moves(gradients.get(name))]
        if not left:
            break
    return left


def _elsewhere(subject: Subject) -> Iterator[Arrays]:
    yield subject.run().gradients
    for seed in range(3):
        yield subject.run(train=seed != 1, overrides=subject.noise(subject.seed + seed)).gradients


def _of_step(subject: Subject, training: list[Parameter], gradients: Arrays) -> Failure | None:
    """What the caller's own step did not change, or broke."""
    before, after = snapshot(subject)
    lost = [p.name for p in training if not np.isfinite(after[p.name].astype(float)).all()]
    if lost:
        return Failure(f"`{lost[0]}` holds NaN or Inf after the training step", lost[0])
    still = [p.name for p in training if np.array_equal(before[p.name], after[p.name])]
    if len(still) == len(training) and still:
        return Failure(
            f"the training step changed nothing{_more(still)}: was another model given to the "
            "optimizer, or is its learning rate zero?",
            still[0],
            len(still),
        )
    largest = max(float(np.abs(gradients[p.name]).max(initial=0.0)) for p in training)
    real = [n for n in still if np.abs(gradients[n]).max(initial=0.0) > NEGLIGIBLE * largest]
    if real:
        return Failure(
            f"`{real[0]}` has a gradient, but the training step did not change it{_more(real)}: "
            "was it given to the optimizer?",
            real[0],
            len(real),
        )
    return None


def _changed_by_step(subject: Subject, name: str) -> bool:
    before, after = snapshot(subject)
    return not np.array_equal(before[name], after[name])


@check("wrong")
def only_these_train(subject: Subject) -> Outcome:
    """Variables that shall not train (frozen ones, the other network's) stay as they are."""
    still = subject.still()
    if subject.step is not None:
        if not still:
            return Skip("all parameters shall train")
        before, after = snapshot(subject)
        moved = [p.name for p in still if not same(before[p.name], after[p.name])]
        if moved:
            return Failure(
                f"`{moved[0]}` shall not train, but the training step changed it{_more(moved)}",
                moved[0],
                len(moved),
            )
        return Looked(f"the step left {len(still)} parameters as they were", len(still))
    if subject.trains is None and not subject.frozen:
        return Skip("neither trains= nor frozen= says which shall not train, and there is no step=")
    gradients = subject.run(train=True).gradients
    open_ = [p.name for p in still if p.trainable and _moves(gradients.get(p.name))]
    if open_:
        return Failure(
            f"`{open_[0]}` shall not train, but the model lets a gradient through to it"
            f"{_more(open_)}: an optimizer over all parameters would change it (step= shows yours)",
            open_[0],
            len(open_),
            severity="suspicious",
        )
    return Looked(f"no gradient at {len(still)} parameters that shall not train", len(still))


def _moves(gradient: np.ndarray | None) -> bool:
    return gradient is not None and bool(np.any(gradient))


def _more(names: list[str]) -> str:
    return "" if len(names) == 1 else f" (and {len(names) - 1} more)"
