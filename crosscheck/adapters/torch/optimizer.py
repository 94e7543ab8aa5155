"""PyTorch's own optimizers on copies of the parameters: named, given as they are, or made anew."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from crosscheck.adapters.torch.taps import from_host, to_host
from crosscheck.arrays import widest
from crosscheck.errors import InvalidArgument
from crosscheck.optimizers.rules import Adagrad, Adam, RmsProp, Rule, Sgd
from crosscheck.optimizers.schedules import Constant

__all__ = ["TorchStepper", "given", "is_native", "made", "named", "rule_of"]

Arrays = Mapping[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


def is_native(given: Any) -> bool:
    """Whether ``given`` is an optimizer of PyTorch, or one with its scheduler."""
    if isinstance(given, (tuple, list)) and given:
        given, *others = given
        if not all(isinstance(one, torch.optim.lr_scheduler.LRScheduler) for one in others):
            return False
    return isinstance(given, torch.optim.Optimizer)


class TorchStepper:
    """Steps of a `torch.optim.Optimizer`.

    Args:
        make: copies of the parameters -> the optimizer, and what is called with the number of the
            step before it and after it (a scheduler).
        rule: of a named optimizer, for what PyTorch leaves to the training loop (clipping).
        wide: in float64.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        make: Callable[[Tensors], tuple[torch.optim.Optimizer, Sequence[Any]]],
        *,
        device: str,
        wide: bool,
        rule: Rule | None = None,
    ) -> None:
        self._make, self._device, self._wide, self._rule = make, device, wide, rule
        self._tensors: Tensors = {}
        self._t = 0

    def step(self, values: Arrays, gradients: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """See `crosscheck.optimizers.definition.Definition.step`."""
        self._t += 1
        if not self._tensors:
            self._begin(values)
        for name, value in values.items():
            tensor = self._tensors[name]
            with torch.no_grad():
                tensor.copy_(from_host(value, tensor))
            tensor.grad = None
            for micro in gradients:
                share = from_host(micro[name], tensor) / len(gradients)
                tensor.grad = share if tensor.grad is None else tensor.grad + share
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # a copied scheduler complains of the order of calls
            self._clip()
            self._set_rates()
            self._optimizer.step()
            for scheduler in self._schedulers:
                scheduler.step()
        return {name: np.array(to_host(self._tensors[name])) for name in values}

    def _begin(self, values: Arrays) -> None:
        for name, value in values.items():
            own = getattr(torch, (widest(value) if self._wide else value.dtype).name)
            like = torch.empty(0, dtype=own, device=self._device)
            self._tensors[name] = from_host(value, like).requires_grad_(True)
        self._optimizer, self._schedulers = self._make(self._tensors)

    def _clip(self) -> None:
        rule, tensors = self._rule, list(self._tensors.values())
        if rule is None:
            return
        if rule.clip_value is not None:
            torch.nn.utils.clip_grad_value_(tensors, rule.clip_value)
        if rule.clip_norm is not None:
            norms = [torch.linalg.vector_norm(t.grad) for t in tensors]  # type: ignore[arg-type]
            norm = float(torch.linalg.vector_norm(torch.stack(norms)))
            # PyTorch divides by ‖g‖ + 1e-6: asked for so much more, it clips to clip_norm.
            if norm > rule.clip_norm:
                torch.nn.utils.clip_grad_norm_(tensors, rule.clip_norm * (1.0 + 1e-6 / norm))

    def _set_rates(self) -> None:
        rule = self._rule
        if rule is None:
            return
        for group in self._optimizer.param_groups:
            if not rule.lr.is_constant:
                group["lr"] = rule.lr.at(self._t)
            if isinstance(rule, Adam) and rule.eps_hat:
                group["eps"] = rule.eps / (1.0 - rule.betas[1] ** self._t) ** 0.5


# -- where the optimizer comes from ----------------------------------------------------------------


def named(
    rule: Rule, exempt: Collection[str]
) -> Callable[[Tensors], tuple[torch.optim.Optimizer, Sequence[Any]]]:
    """PyTorch's own for a named optimizer.

    Raises:
        InvalidArgument: PyTorch's own computes something else.
    """
    cls, options = _own(rule)

    def make(tensors: Tensors) -> tuple[torch.optim.Optimizer, Sequence[Any]]:
        decaying = [t for name, t in tensors.items() if name not in exempt]
        others = [t for name, t in tensors.items() if name in exempt]
        groups: list[dict[str, Any]] = [{"params": decaying}] if decaying else []
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        return cls(groups, lr=rule.lr.at(1), weight_decay=rule.weight_decay, **options), ()

    return make


def _own(rule: Rule) -> tuple[Any, dict[str, Any]]:
    if isinstance(rule, Adam):
        decoupled = rule.decoupled
        return (torch.optim.AdamW if decoupled else torch.optim.Adam), {
            "betas": rule.betas,
            "eps": rule.eps,
        }
    if rule.decoupled and rule.weight_decay:
        raise _other(rule, "its weight decay is added to the gradient (decoupled=False)")
    if isinstance(rule, Sgd):
        if rule.nesterov and (rule.dampening or not rule.momentum):
            raise _other(rule, "nesterov=True needs a momentum and no dampening")
        options = {"momentum": rule.momentum, "dampening": rule.dampening}
        return torch.optim.SGD, {**options, "nesterov": rule.nesterov}
    if isinstance(rule, (RmsProp, Adagrad)) and rule.eps_inside and rule.eps:
        raise _other(rule, "eps is added to the root, not inside it (eps_inside=False)")
    if isinstance(rule, RmsProp):
        if rule.initial:
            raise _other(rule, "its average of squares starts at zero (initial=0)")
        options = {"alpha": rule.rho, "eps": rule.eps, "momentum": rule.momentum}
        return torch.optim.RMSprop, {**options, "centered": rule.centered}
    assert isinstance(rule, Adagrad)
    return torch.optim.Adagrad, {"eps": rule.eps, "initial_accumulator_value": rule.initial}


def _other(rule: Rule, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"optimizer={rule.name}: PyTorch's own is another definition: {why}.\n"
        "  Fix: name what PyTorch computes, or give each side its own: "
        "optimizer=(reference, candidate)"
    )


def given(
    own: Any, model: torch.nn.Module | None
) -> Callable[[Tensors], tuple[torch.optim.Optimizer, Sequence[Any]]]:
    """A copy of an optimizer (and its schedulers) of the user's, bound to other tensors."""
    parts = list(own) if isinstance(own, (tuple, list)) else [own]

    def make(tensors: Tensors) -> tuple[torch.optim.Optimizer, Sequence[Any]]:
        held = {id(t) for group in parts[0].param_groups for t in group["params"]}
        known = dict(model.named_parameters()) if model is not None else {}
        memo = {id(p): tensors[n] for n, p in known.items() if n in tensors and id(p) in held}
        if not memo:
            raise InvalidArgument(
                "optimizer=: this PyTorch optimizer holds no parameter of the model; "
                "give a function that makes one: lambda params: torch.optim.SGD(params, lr=0.1)"
            )
        optimizer, *schedulers = copy.deepcopy(parts, memo)
        for state in optimizer.state.values():
            for key, value in state.items():
                if torch.is_tensor(value) and value.is_floating_point():
                    state[key] = value.to(next(iter(tensors.values())).dtype)
        return optimizer, schedulers

    return make


def made(
    factory: Callable[..., Any],
) -> Callable[[Tensors], tuple[torch.optim.Optimizer, Sequence[Any]]]:
    """An optimizer (or it and its schedulers) from a function of the list of parameters."""

    def make(tensors: Tensors) -> tuple[torch.optim.Optimizer, Sequence[Any]]:
        found = factory(list(tensors.values()))
        if not is_native(found):
            raise InvalidArgument(
                f"optimizer=: the function gave a {type(found).__name__}, not a PyTorch optimizer; "
                "it is called with the list of parameters"
            )
        first, *rest = found if isinstance(found, (tuple, list)) else [found]
        return first, rest

    return make


def rule_of(own: Any, model: torch.nn.Module | None) -> Rule | None:
    """The definition of an optimizer of PyTorch's; None for other classes, for one whose rate a
    scheduler changes, and where its groups differ in more than whether they decay."""
    if not isinstance(own, torch.optim.Optimizer):
        return None
    groups = own.param_groups
    decays = {float(g["weight_decay"]) for g in groups if g.get("weight_decay")}
    rest = [{k: v for k, v in g.items() if k not in ("params", "weight_decay")} for g in groups]
    options = rest[0]
    strange = ("maximize", "amsgrad", "lr_decay")
    if len(decays) > 1 or any(g != options for g in rest) or any(map(options.get, strange)):
        return None
    spared = {id(t) for g in groups if not g.get("weight_decay") for t in g["params"]}
    names = (
        () if model is None else tuple(n for n, p in model.named_parameters() if id(p) in spared)
    )
    common: dict[str, Any] = {
        "lr": Constant(float(options["lr"])),
        "weight_decay": max(decays, default=0.0),
        "exclude": names if decays else (),
    }
    return _rule(type(own), options, common)


def _rule(kind: type, options: Mapping[str, Any], common: dict[str, Any]) -> Rule | None:
    def given(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names}

    if kind is torch.optim.SGD:
        return Sgd(**common, **given("momentum", "dampening", "nesterov"))
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = kind is torch.optim.AdamW or bool(options.get("decoupled_weight_decay"))
        return Adam(**common, **given("betas", "eps"), decoupled=decoupled)
    if kind is torch.optim.RMSprop:
        return RmsProp(**common, **given("eps", "momentum", "centered"), rho=options["alpha"])
    if kind is torch.optim.Adagrad:
        start = options["initial_accumulator_value"]
        return Adagrad(**common, **given("eps"), initial=start)
    return None
