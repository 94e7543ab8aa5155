"""PyTorch's own losses, and losses written in PyTorch: value and gradient at given outputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from crosscheck.adapters.torch.state import default_float64
from crosscheck.adapters.torch.taps import to_host

__all__ = ["NAMED", "differentiate", "own"]

Tensors = dict[str, Any]


def differentiate(
    function: Callable[[Tensors, Any], Any],
    outputs: Mapping[str, np.ndarray],
    targets: Any,
    *,
    float64: bool,
    device: str,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The scalar ``function(outputs, targets)`` and its gradient by every float output."""
    with ExitStack() as stack:
        if float64:
            stack.enter_context(default_float64())
        stack.enter_context(torch.enable_grad())
        leaves = {site: _tensor(value, device, float64) for site, value in outputs.items()}
        floats = {s: t.requires_grad_() for s, t in leaves.items() if t.is_floating_point()}
        # Copies: a loss may overwrite what it is given, which a leaf would forbid.
        value = function(
            {s: t.clone() for s, t in leaves.items()}, _targets(targets, device, float64)
        )
        if not isinstance(value, torch.Tensor):
            value = torch.as_tensor(value)
        found: tuple[Any, ...] = (None,) * len(floats)
        if value.requires_grad and value.numel() == 1:
            found = torch.autograd.grad(value.reshape(()), list(floats.values()), allow_unused=True)
        gradients = {
            site: np.array(to_host(torch.zeros_like(t) if g is None else g))
            for (site, t), g in zip(floats.items(), found, strict=True)
        }
        return np.array(to_host(value.detach())), gradients


def _tensor(array: np.ndarray, device: str, float64: bool) -> torch.Tensor:
    beyond = array.dtype.kind == "V"  # bfloat16, which torch.tensor does not know
    tensor = torch.tensor(np.array(array, np.float32 if beyond else array.dtype))
    tensor = tensor.to(getattr(torch, array.dtype.name)) if beyond else tensor
    tensor = tensor.double() if float64 and tensor.is_floating_point() else tensor
    return tensor.to(device)


def _targets(targets: Any, device: str, float64: bool) -> Any:
    if isinstance(targets, Mapping):
        return {name: _targets(array, device, float64) for name, array in targets.items()}
    return None if targets is None else _tensor(targets, device, float64)


def own(loss: Callable[..., Any], *, float64: bool) -> Callable[[Any, Any], Any]:
    """The caller's loss; a module's buffers (class weights) in the precision of the run."""
    if isinstance(loss, torch.nn.Module):
        copied = copy.deepcopy(loss)
        return copied.double() if float64 else copied
    return loss


def _vector(values: Any, like: torch.Tensor) -> torch.Tensor | None:
    return None if values is None else torch.as_tensor(values, dtype=like.dtype, device=like.device)


def _reduced(value: torch.Tensor, like: torch.Tensor, reduction: str) -> torch.Tensor:
    """PyTorch has ``batchmean`` for one loss only."""
    return value / like.shape[0] if reduction == "batchmean" else value


def _elementwise(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(
        output: torch.Tensor, target: torch.Tensor, reduction: str = "mean", **options: Any
    ) -> torch.Tensor:
        own_name = "sum" if reduction == "batchmean" else reduction
        return _reduced(loss(output, target, reduction=own_name, **options), output, reduction)

    return call


def _cross_entropy(
    output: torch.Tensor, target: torch.Tensor, *, axis: int, weight: Any = None, **options: Any
) -> torch.Tensor:
    at = min(1, output.ndim - 1)
    if target.is_floating_point():
        target = target.movedim(axis, at)
    else:
        target = target.long()
    logits = output.movedim(axis, at)
    return F.cross_entropy(logits, target, weight=_vector(weight, output), **options)


def _nll(
    output: torch.Tensor, target: torch.Tensor, *, axis: int, weight: Any = None, **options: Any
) -> torch.Tensor:
    logs = output.movedim(axis, min(1, output.ndim - 1))
    return F.nll_loss(logs, target.long(), weight=_vector(weight, output), **options)


def _bce(
    output: torch.Tensor, target: torch.Tensor, pos_weight: Any = None, reduction: str = "mean"
) -> torch.Tensor:
    weight = _vector(pos_weight, output)
    loss = _elementwise(F.binary_cross_entropy_with_logits)
    return loss(output, target, reduction, pos_weight=weight)


def _kl_div(
    output: torch.Tensor,
    target: torch.Tensor,
    reduction: str = "batchmean",
    log_target: bool = False,
) -> torch.Tensor:
    if reduction != "mean":
        return F.kl_div(output, target, reduction=reduction, log_target=log_target)
    with warnings.catch_warnings():  # "mean" is not the divergence; the caller has asked for it
        warnings.simplefilter("ignore", UserWarning)
        return F.kl_div(output, target, reduction="mean", log_target=log_target)


def _ctc(
    output: torch.Tensor,
    target: dict[str, torch.Tensor],
    *,
    batch_axis: int,
    blank: int = 0,
    reduction: str = "mean",
) -> torch.Tensor:
    logits = output.movedim(batch_axis, 1)
    return F.ctc_loss(
        F.log_softmax(logits, -1),
        target["labels"].long(),
        target["steps"].long(),
        target["lengths"].long(),
        blank=blank,
        reduction=reduction,
    )


def _gaussian_kl(
    mean: torch.Tensor, logvar: torch.Tensor, reduction: str = "batchmean"
) -> torch.Tensor:
    """PyTorch has none that takes a log-variance: from its operations."""
    terms = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
    return terms.mean() if reduction == "mean" else _reduced(terms.sum(), terms, reduction)


NAMED: dict[str, Callable[..., torch.Tensor]] = {
    "bce_with_logits": _bce,
    "cross_entropy": _cross_entropy,
    "ctc": _ctc,
    "gaussian_kl": _gaussian_kl,
    "huber": _elementwise(F.huber_loss),
    "kl_div": _kl_div,
    "mae": _elementwise(F.l1_loss),
    "mse": _elementwise(F.mse_loss),
    "nll": _nll,
    "smooth_l1": _elementwise(F.smooth_l1_loss),
}
