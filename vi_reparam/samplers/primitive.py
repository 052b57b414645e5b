"""How a family asks an estimator for the draw of its rejection sampler."""

from __future__ import annotations

import abc
from typing import Any

from vi_reparam.backend.ops import Array, Ops, Shape
from vi_reparam.samplers.base import RejectionSampler


class Primitive(abc.ABC):
    """How one rejection sampler inside a family is drawn: the part in which estimators differ.

    Attributes:
        boost: shape augmentations of the gamma draws.
        density: whether the draw's log_prob is wanted; where it is not, a family may leave it None.
    """

    boost: int = 1
    density: bool = True

    @abc.abstractmethod
    def __call__(
        self, ops: Ops, key: Any, sampler: RejectionSampler, shape: Shape, *params: Array, value: Array | None = None
    ) -> tuple[Array, Array | None, Any]:
        """A value of the sampler (`value` itself if given), its score term or None, its noise."""
