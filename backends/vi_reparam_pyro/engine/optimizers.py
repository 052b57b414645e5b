"""The default optimizer, and optimizers as a user names them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from vi_reparam.errors import ArgumentError
from vi_reparam.guides import GuideFamily, Sites

Factory = Callable[[list[Any]], Any]


def default_optimizer(
    num_steps: int | None, learning_rate: float = 0.05, *, clip: float | None = None, warmup: float = 0.0
) -> Factory:
    """Adam with a cosine schedule from `learning_rate` down to a hundredth of it.

    Args:
        num_steps: of the schedule; None for a constant rate.
        clip: largest norm of a gradient; None for any.
        warmup: part of the steps over which the rate rises from zero first.
    """
    return lambda params: _adam(num_steps, [(params, learning_rate, clip, warmup)])


def _adam(num_steps: int | None, groups: list[tuple[list[Any], float, float | None, float]]) -> Any:
    """Adam and its schedule, or None at constant rates; each group with its own rate, clip and warmup."""
    adam = torch.optim.Adam([{"params": own, "lr": rate} for own, rate, _, _ in groups], betas=(0.9, 0.99))

    def clipped(*call: Any) -> None:
        for own, _, largest, _ in groups:
            if largest is not None:
                clip_by_norm(own, largest)

    adam.register_step_pre_hook(clipped)
    if num_steps is None:
        return adam, None
    parts: Any = []
    for _, _, _, warmup in groups:
        parts.append(functools.partial(_cosine, rising=int(warmup * num_steps), num_steps=num_steps))
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, parts)


class ByName:
    """The default optimizer of `Sites`: each part's parameters have their own rate, clip and schedule.

    Args:
        family: the specification.
        num_steps: as in `default_optimizer`.
    """

    def __init__(self, family: Sites, num_steps: int | None) -> None:
        self.family, self.num_steps = family, num_steps

    def of(self, params: dict[str, Any]) -> tuple[Any, Any]:
        """The optimizer of these leaves by name, and its schedule or None."""
        groups = []
        for index, part in enumerate(self.family.learning_rate_groups):
            own = [leaf for name, leaf in params.items() if self.family.learning_rate_group(name) == index]
            if own:
                groups.append((own, part.learning_rate, part.clip, part.warmup))
        return _adam(self.num_steps, groups)


def family_optimizer(num_steps: int | None, family: GuideFamily | None) -> Any:
    """The default optimizer as the family sets it."""
    if family is None:
        return default_optimizer(num_steps)
    if isinstance(family, Sites):
        return ByName(family, num_steps)
    return default_optimizer(num_steps, family.learning_rate, clip=family.clip, warmup=family.warmup)


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
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * part))


def built(factory: Any, params: list[Any]) -> tuple[Any, Any]:
    """The optimizer of a factory, and its schedule or None.

    Raises:
        ArgumentError: if the factory does not give an optimizer that steps by gradients alone.
    """
    try:
        made = factory(params)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"fit(optimizer={factory!r}) could not be made: {error}; {_ADVICE}") from error
    optimizer, schedule = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise ArgumentError(f"fit(optimizer={factory!r}) gave {optimizer!r}: {_ADVICE}")
    return optimizer, schedule


_ADVICE = "expected a torch.optim factory, such as lambda params: torch.optim.Adam(params, lr=0.01)"
