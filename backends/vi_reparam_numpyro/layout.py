"""All continuous latents as one unconstrained vector, and back, with the change of volume."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from numpyro.distributions.util import sum_rightmost

from vi_reparam.errors import SiteError
from vi_reparam_numpyro.prototype import Site, bijection

Array = jax.Array


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
    """

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, sites: dict[str, Site], what: str) -> Layout:
        """Lay out these sites.

        Args:
            what: the family, for messages.

        Raises:
            SiteError: for a discrete latent, a support without a bijection, or no latent at all.
        """
        parts, offset = [], 0
        for site in sites.values():
            if site.support.is_discrete:
                raise SiteError(
                    f"site {site.name!r} is discrete, and {what} covers continuous latents: marginalize it in the "
                    "model, or use vr.MeanField with estimators={'" + site.name + "': vr.ScoreFunction()}"
                )
            transform = bijection(site.support)
            shape = tuple(transform.inverse_shape(site.shape))
            parts.append(Part(site, shape, offset))
            offset += math.prod(shape)
        if not offset:
            raise SiteError(f"the model has no latent site for {what} to draw")
        return cls(tuple(parts))

    @property
    def size(self) -> int:
        """Coordinates in all."""
        return self.parts[-1].offset + self.parts[-1].size

    def pack(self, values: dict[str, Array]) -> Array:
        """The vector of these values by site; coordinates at infinity become zero. Shape ``[size]``."""
        flat = [jnp.ravel(bijection(p.site.support).inv(_float(values[p.site.name]))) for p in self.parts]
        vector = jnp.concatenate(flat)
        return jnp.where(jnp.isfinite(vector), vector, 0.0)

    def unpack(self, vector: Array) -> dict[str, tuple[Array, Array]]:
        """By site: its value on its support, and log|det| of the way there, of its batch shape."""
        out = {}
        for part in self.parts:
            flat = vector[part.offset : part.offset + part.size].reshape(part.shape)
            transform = bijection(part.site.support)
            value = transform(flat)
            batch_rank = len(part.site.shape) - part.site.event_dim
            log_det = transform.log_abs_det_jacobian(flat, value)
            out[part.site.name] = value, sum_rightmost(log_det, jnp.ndim(log_det) - batch_rank)
        return out


def _float(x: Array) -> Array:
    return jnp.asarray(x, jnp.result_type(float))
