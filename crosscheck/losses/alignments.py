"""The sum over alignments behind the CTC loss, forward and backward, in logarithms."""

from __future__ import annotations

import numpy as np

__all__ = ["negative_log_likelihood"]

_NEVER = -np.inf


def negative_log_likelihood(
    logits: np.ndarray, labels: np.ndarray, blank: int
) -> tuple[np.floating, np.ndarray]:
    """−log p(labels | logits) and its gradient with respect to the logits.

    Args:
        logits: (T, K).
        labels: (S,), without blanks.

    Graves et al. 2006, equations 5 to 16, with log-softmax inside: the gradient is
    softmax(logits) − posterior of the classes.
    """
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    extended = np.full(2 * len(labels) + 1, blank, np.intp)  # a blank around every label
    extended[1::2] = labels
    skips = np.zeros(len(extended), bool)  # whether two states back may be left for this one
    skips[2:] = (extended[2:] != blank) & (extended[2:] != extended[:-2])
    emitted = logs[:, extended]  # (T, states)
    with np.errstate(all="ignore"):
        ahead = _passes(emitted, skips)
        onward = np.zeros_like(skips)
        onward[: len(skips) - 2] = skips[2:]
        behind = _passes(emitted[::-1, ::-1], onward[::-1])[::-1, ::-1]
        total = np.logaddexp.reduce(ahead[-1, -2:])
        joint = np.exp(ahead + behind - emitted - total)
    posterior = np.zeros_like(logs)
    np.add.at(posterior.T, extended, np.nan_to_num(joint.T))
    return -total, np.exp(logs) - posterior


def _passes(emitted: np.ndarray, skips: np.ndarray) -> np.ndarray:
    """log of the total probability of all ways into each state at each step."""
    ways = np.full_like(emitted, _NEVER)
    ways[0, :2] = emitted[0, :2]
    for t in range(1, len(emitted)):
        stay = ways[t - 1]
        step = np.concatenate([[_NEVER], stay[:-1]]).astype(stay.dtype)
        skip = np.concatenate([[_NEVER, _NEVER], stay])[: len(stay)].astype(stay.dtype)
        into = np.logaddexp(stay, step)
        ways[t] = emitted[t] + np.where(skips, np.logaddexp(into, skip), into)
    return ways
