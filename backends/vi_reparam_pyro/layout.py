"""All continuous latents as one unconstrained vector, and back, with the change of volume."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from pyro.distributions.util import sum_rightmost

from vi_reparam.errors import SiteError
from vi_reparam_pyro.prototype import Site, bijection

Array = Any


@dataclasses.dataclass(frozen=True)
class Part:
    """Where a site lies in the vector.

    Attributes:
        site: the site.
        shape: of its value in unconstrained coordinates.
        offset: of its first coordinate.
    """

    site: Site
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Coordinates it takes."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The latents of a model end to end, subsampled plates at their full size.

    Attributes:
        parts: one a site, in the model's order.
        start: the prototype's starting values, unconstrained, shape ``[size]``.
        subsampled: a plate of the model that is subsampled; None for none.
    """

    parts: tuple[Part, ...]
    start: np.ndarray
    subsampled: str | None = None

    @classmethod
    def of(cls, sites: dict[str, Site], what: str, *, subsampled: str | None = None) -> Layout:
        """Lay out these sites.

        Args:
            what: the family, for messages.

        Raises:
            SiteError: for a discrete latent, a support without a bijection, or no latent at all.
        """
        parts, starts, offset = [], [], 0
        for site in sites.values():
            if site.support.is_discrete:
                raise SiteError(
                    f"site {site.name!r} is discrete, and {what} covers continuous latents: marginalize it in the "
                    "model, or use vr.MeanField with estimators={'" + site.name + "': vr.ScoreFunction()}"
                )
            transform = bijection(site.support)
            value = transform.inv(torch.as_tensor(site.start, dtype=torch.get_default_dtype())).cpu().numpy()
            starts.append(np.where(np.isfinite(value), value, 0.0).reshape(-1))
            shape = tuple(transform.inverse_shape(torch.Size(site.shape)))
            parts.append(Part(site, shape, offset))
            offset += math.prod(shape)
        if not offset:
            raise SiteError(f"the model has no latent site for {what} to draw")
        return cls(tuple(parts), np.concatenate(starts), subsampled)

    @property
    def size(self) -> int:
        """Coordinates in all."""
        return self.parts[-1].offset + self.parts[-1].size

    def unpack(self, vector: Array) -> dict[str, tuple[Array, Array]]:
        """By site: its value on its support, and log|det| of the way there, of its batch shape."""
        out = {}
        for part in self.parts:
            flat = vector[part.offset : part.offset + part.size].reshape(part.shape)
            transform = bijection(part.site.support)
            value = transform(flat)
            batch_rank = len(part.site.shape) - part.site.event_dim
            log_det = transform.log_abs_det_jacobian(flat, value)
            out[part.site.name] = value, sum_rightmost(log_det, log_det.ndim - batch_rank)
        return out
