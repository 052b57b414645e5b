"""Pyro's distribution of a vector that is known by its draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.ops.provenance import extract_provenance, get_provenance, track_provenance

from vi_reparam.programs.vector import Vector, lost_path
from vi_reparam.sites.emission import ALONE, emit_vector
from vi_reparam_pyro.host.guard import running_objective
from vi_reparam_pyro.ops.ops import ops

Array = Any

LINEAR = ("ELBO", "Trace_ELBO")
"""Pyro's objectives that are linear in log q."""

DROP_DELTAS = ("TraceMeanField_ELBO",)


class JointVector(TorchDistribution):
    """The distribution that `Host.vector` makes.

    Args:
        size: D.
        make: a draw from a key.
        site: its name.
        batch_shape: of the plate whose elements have a vector each.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True
    known_by_draws = True

    def __init__(
        self, size: int, make: Callable[[int], Vector], *, site: str, batch_shape: tuple[int, ...] = ()
    ) -> None:
        self.make, self.site = make, site
        self._last: tuple[Array, Array] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size((size,)), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Itself where nothing is to be expanded: plates ask even then."""
        same = torch.Size(batch_shape) == self.batch_shape
        return self if same else super().expand(batch_shape, _instance)

    def rsample(self, sample_shape: Any = ()) -> Array:
        if tuple(sample_shape):
            flat = [self.make(ops.root_key()).value for _ in range(torch.Size(sample_shape).numel())]
            return torch.stack(flat).reshape((*sample_shape, *self.batch_shape, *self.event_shape))
        self._last = emit_vector(
            ops, self.site, self.make(ops.root_key()), _objective, linear=LINEAR, drop_deltas=DROP_DELTAS
        )
        return self._last[0]

    def log_prob(self, value: Array) -> Array:
        if self._last is None or extract_provenance(value)[0] is not extract_provenance(self._last[0])[0]:
            raise lost_path(self.site)
        return track_provenance(self._last[1], get_provenance(value))


def _objective() -> str:
    running = running_objective()
    return ALONE if running is None else type(running).__name__


def differentiating() -> bool:
    """Whether a gradient can be asked for."""
    return torch.is_grad_enabled()
