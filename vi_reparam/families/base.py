"""A distribution as this library sees it: its parameters, its density, and how a draw is built."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.errors import SiteError
from vi_reparam.samplers.primitive import Primitive


class WeakDerivative(NamedTuple):
    """d/dtheta E[f(z)] = coefficient * (E[f(plus)] - E[f(minus)]), the two draws coupled.

    Attributes:
        parameter: index of theta among the family's parameters.
        coefficient: shape of the batch.
        plus: draws of the positive part; `minus`: of the negative part.
    """

    parameter: int
    coefficient: Array
    plus: Array
    minus: Array


class Family(abc.ABC):
    """A parametric family. One object a family; parameters are always arguments.

    Attributes:
        name: the field's name for it.
        parameters: names of its parameters, in order.
        parameter_event_dims: trailing event dimensions of each parameter.
        event_dim: trailing event dimensions of a value.
        kinds: the estimator kinds that serve it (`Estimator.kind`).
        weak_parameters: the parameters that a weak derivative serves.
        shape_parameters: ``(index, factor)`` of each parameter that sets a gamma concentration,
            as factor times the parameter.
        edge_parameters: indices of the parameters that bound the support; a score function has
            no gradient in them.
    """

    name: str
    parameters: tuple[str, ...]
    parameter_event_dims: tuple[int, ...]
    event_dim: int = 0
    kinds: frozenset[str]
    weak_parameters: ClassVar[tuple[str, ...]] = ()
    shape_parameters: ClassVar[tuple[tuple[int, float], ...]] = ()
    edge_parameters: ClassVar[tuple[int, ...]] = ()

    @abc.abstractmethod
    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        """A draw whose rejection samplers are drawn by `primitive`.

        Args:
            shape: the batch shape, to which the parameters broadcast.
            value: hold the draw at this value, and recover its noise.
        """

    @abc.abstractmethod
    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        """Log density at `value`, shape ``batch``; `logs` as in `Draw`, used where more precise."""

    def entropy(self, *params: Array) -> Array:
        """Differential entropy in closed form, shape ``batch``.

        Raises:
            SiteError: if the family has none.
        """
        raise SiteError(f"{self.name} has no entropy in closed form: use entropy='monte_carlo'")

    def weak_derivatives(
        self, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, list[WeakDerivative]]:
        """A draw, and one coupled pair for each of `weak_parameters`, all constants.

        Raises:
            SiteError: if the family has no weak derivative here.
        """
        raise SiteError(f"{self.name} has no measure-valued derivative")

    def batch_shape(self, *params: Array) -> Shape:
        """The shape to which the parameters' batch dimensions broadcast."""
        shapes = [p.shape[: p.ndim - dim] for p, dim in zip(params, self.parameter_event_dims, strict=True)]
        return broadcast_shapes(*shapes)

    def ranked(self, value: Array, *params: Array) -> tuple[Array, ...]:
        """Value and parameters with leading dimensions of 1, so that all have one number of batch dimensions."""
        return same_rank((value, *params), (self.event_dim, *self.parameter_event_dims))

    def __repr__(self) -> str:
        return self.name


def same_rank(arrays: tuple[Array, ...], event_dims: tuple[int, ...]) -> tuple[Array, ...]:
    """The arrays with leading dimensions of 1: they then broadcast without rank promotion."""
    batch_dims = [len(a.shape) - dim for a, dim in zip(arrays, event_dims, strict=True)]
    rank = max(batch_dims)
    pairs = zip(arrays, batch_dims, strict=True)
    xp = ops_of(*arrays).xp
    return tuple(a if dims == rank else xp.reshape(a, (*(1,) * (rank - dims), *a.shape)) for a, dims in pairs)


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The shape to which these broadcast (they are taken to be compatible)."""
    length = max((len(s) for s in shapes), default=0)
    padded = [(1,) * (length - len(s)) + tuple(s) for s in shapes]
    return tuple(max(column) if 0 not in column else 0 for column in zip(*padded, strict=True))
