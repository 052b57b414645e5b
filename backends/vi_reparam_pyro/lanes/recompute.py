"""A function computed again for its derivative instead of kept: also in lanes, where torch's own way cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch.utils import _pytree as pytree

from vi_reparam.errors import GradientError
from vi_reparam_pyro.lanes import vmap as lanes

Array = Any
Flat = Callable[..., tuple[Array, ...]]


class Recomputed:
    """A function of trees of tensors that keeps its arguments alone until its derivative is taken.

    It is computed again under the Pyro handlers that are on now, for they give parameters their values and
    are gone when derivatives are taken. What it closes over is found at the first call and differentiated.
    It must draw no noise.

    Args:
        fn: the function.

    Raises:
        GradientError: when differentiated, if a call closes over a tensor that the first one did not.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.handlers = list(_PYRO_STACK)
        self.closed: list[Array] | None = None

    def __call__(self, *trees: Any) -> Any:
        if not torch.is_grad_enabled() or not lanes.alone():  # beneath other transforms autograd sees nothing
            return self.fn(*trees)
        leaves, form = pytree.tree_flatten(trees)
        made: list[Any] = []

        def flat(*tensors: Array) -> tuple[Array, ...]:
            with _handlers(self.handlers):
                outputs, spec = pytree.tree_flatten(self.fn(*pytree.tree_unflatten(list(tensors), form)))
            made[:] = [spec]
            return tuple(outputs)

        outputs = lanes.beneath(lanes.at_home(flat), self._apply, *leaves)
        return pytree.tree_unflatten(list(outputs), made[0])

    def _apply(self, flat: Flat, *tensors: Array) -> tuple[Array, ...]:
        if self.closed is None:
            self.closed = _leaves(flat(*(t.detach() for t in tensors)))
        return _Again.apply(flat, len(tensors), *tensors, *self.closed)


class _Again(torch.autograd.Function):
    """`flat` of the first `count` tensors; the others are what it closes over."""

    @staticmethod
    def forward(ctx: Any, flat: Flat, count: int, *tensors: Array) -> tuple[Array, ...]:
        ctx.flat, ctx.count, ctx.closed = flat, count, tensors[count:]
        ctx.save_for_backward(*tensors)  # those closed over too: torch tells if one was written to since
        return flat(*tensors[:count])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Array) -> Any:
        tensors, closed = ctx.saved_tensors, ctx.closed
        arguments = [t.detach().requires_grad_(t.requires_grad) for t in tensors[: ctx.count]]
        with torch.enable_grad():
            outputs = ctx.flat(*arguments)
        of = [argument for argument in arguments if argument.requires_grad]
        known = {id(t) for t in (*of, *closed)}
        if any(id(leaf) not in known for leaf in _leaves(outputs)):
            raise GradientError(
                "a step of the path depends on a parameter that its first step did not depend on, so it cannot be "
                "computed again; use SDE(checkpoint=False)"
            )
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], [*of, *closed], [g for _, g in pairs], allow_unused=True, retain_graph=True
            )
        )
        return None, None, *(next(found) if t.requires_grad else None for t in tensors)


def _leaves(outputs: tuple[Array, ...]) -> list[Array]:
    """The tensors that outputs can be differentiated by, as autograd knows them."""
    todo = [out.grad_fn for out in outputs if out.grad_fn is not None]
    seen, found = set(todo), []
    while todo:
        node = todo.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        fresh = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= fresh
        todo.extend(fresh)
    return found


@contextlib.contextmanager
def _handlers(stack: list[Any]) -> Iterator[None]:
    held, _PYRO_STACK[:] = list(_PYRO_STACK), stack
    try:
        yield
    finally:
        _PYRO_STACK[:] = held
