"""Torch's optimizers, of a plan or of a user's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from vi_reparam.errors import ArgumentError, first_line, short
from vi_reparam.fit.optimizers import BETAS, LAST_RATE, OptimizerPlan

Maker = Callable[[dict[str, Any]], tuple[Any, Any]]
"""From leaves by name to their optimizer, and its schedule or None."""


def maker(plan: OptimizerPlan | Any) -> Maker:
    """What makes the optimizer of a plan, or a user's own.

    Raises:
        ArgumentError: for what is no factory of optimizers.
    """
    if isinstance(plan, OptimizerPlan):
        return functools.partial(_adam, plan)
    if not callable(plan):
        raise ArgumentError(f"fit(optimizer={short(plan)}): {_ADVICE}")
    return lambda leaves: _of_factory(plan, list(leaves.values()))


def _adam(plan: OptimizerPlan, leaves: dict[str, Any]) -> tuple[Any, Any]:
    """Adam and its schedule, or None at constant rates; each group with its own rate, clip and warmup."""
    own = {i: [leaf for name, leaf in leaves.items() if plan.group_of(name) == i] for i in range(len(plan.groups))}
    groups = [(own[i], group) for i, group in enumerate(plan.groups) if own[i]]
    adam = torch.optim.Adam([{"params": own, "lr": group.learning_rate} for own, group in groups], betas=BETAS)

    def clipped(*call: Any) -> None:
        for own, group in groups:
            if group.clip is not None:
                clip_by_norm(own, group.clip)

    adam.register_step_pre_hook(clipped)
    num_steps = plan.num_steps
    if num_steps is None:
        return adam, None
    parts: Any = []
    for _, group in groups:
        parts.append(functools.partial(_cosine, rising=int(group.warmup * num_steps), num_steps=num_steps))
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, parts)


def clip_by_norm(params: list[Any], largest: float) -> None:
    """Scale gradients down to this norm.

    Unlike `torch.nn.utils.clip_grad_norm_` it squares nothing large: there a gradient of 1e20 in float32 has an
    infinite norm and becomes zero, so that the step that most needs a correction gets none.
    """
    grads = [p.grad for p in params if p.grad is not None and p.grad.numel()]
    if not grads:
        return
    top = torch.stack([g.abs().max() for g in grads]).max()
    unit = torch.where(top > 0.0, top, torch.ones_like(top))
    norm = unit * torch.stack([(g / unit).square().sum() for g in grads]).sum().sqrt()
    factor = torch.where(norm > largest, largest / norm, torch.ones_like(norm))
    for g in grads:
        g.mul_(factor)


def _cosine(step: int, rising: int, num_steps: int) -> float:
    """Part of the rate at a step."""
    if step < rising:
        return step / rising
    part = (min(step, num_steps) - rising) / (num_steps - rising)
    return LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * part))


def _of_factory(factory: Any, params: list[Any]) -> tuple[Any, Any]:
    """The optimizer of a factory, and its schedule or None.

    Raises:
        ArgumentError: if the factory does not give an optimizer that steps by gradients alone.
    """
    try:
        made = factory(params)
    except Exception as error:  # of a factory of another kind
        raise ArgumentError(f"fit(optimizer={short(factory)}): {first_line(error)[:70]}; {_ADVICE}") from error
    optimizer, schedule = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise ArgumentError(f"fit(optimizer={short(factory)}) gave {short(optimizer)}: {_ADVICE}")
    return optimizer, schedule


_ADVICE = (
    "expected a torch.optim factory, such as lambda params: torch.optim.Adam(params, lr=0.01), also in place of one of "
    "pyro.optim"
)
