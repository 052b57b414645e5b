"""All continuous latents as one unconstrained vector, and back, with the change of volume."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.util import sum_rightmost

from vi_reparam.errors import SiteError
from vi_reparam.guides.elements import elements_of
from vi_reparam_numpyro.prototype import Plate, Site, bijection

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
        plate: None; or the plate each of whose elements has such a vector of its own. In the parts it has size one.
    """

    parts: tuple[Part, ...]
    plate: Plate | None = None

    @classmethod
    def of(cls, sites: dict[str, Site], what: str, *, plate: Plate | None = None) -> Layout:
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
            if plate is not None:
                lengths = list(site.shape)
                lengths[_axis(site, plate)] = 1
                site = dataclasses.replace(site, shape=tuple(lengths))
            shape = tuple(transform.inverse_shape(site.shape))
            parts.append(Part(site, shape, offset))
            offset += math.prod(shape)
        if not offset:
            raise SiteError(f"the model has no latent site for {what} to draw")
        return cls(tuple(parts), plate)

    @property
    def size(self) -> int:
        """Coordinates in all."""
        return self.parts[-1].offset + self.parts[-1].size

    def positive(self) -> np.ndarray:
        """Which coordinates are a positive site's. Shape ``[size]``."""
        return np.concatenate([np.full(part.size, part.site.kind == "positive") for part in self.parts])

    def elements(self, plate: str) -> tuple[tuple[int, ...], ...]:
        """As `elements_of`."""
        return elements_of(self.parts, plate)

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
            value = _kept(part.site, transform(flat))
            batch_rank = len(part.site.shape) - part.site.event_dim
            log_det = transform.log_abs_det_jacobian(flat, value)
            out[part.site.name] = value, sum_rightmost(log_det, jnp.ndim(log_det) - batch_rank)
        return out

    def pack_each(self, values: dict[str, Array]) -> Array:
        """The vectors of the plate's elements, of values over all of it. Shape ``[elements, size]``."""
        assert self.plate is not None
        rows = {}
        for part in self.parts:
            axis = _axis(part.site, self.plate)
            rows[part.site.name] = jnp.expand_dims(jnp.moveaxis(values[part.site.name], axis, 0), axis + 1)
        return jax.vmap(self.pack)(rows)

    def unpack_each(self, vectors: Array) -> dict[str, tuple[Array, Array]]:
        """As `unpack`, of a vector for each element; values and log|det| have the plate's axis again."""
        assert self.plate is not None
        out = {}
        for part in self.parts:
            axis = _axis(part.site, self.plate)
            found = jax.vmap(lambda v, name=part.site.name: self.unpack(v)[name])(vectors)
            out[part.site.name] = tuple(jnp.moveaxis(jnp.squeeze(x, axis + 1), 0, axis) for x in found)
        return out


def _kept(site: Site, value: Array) -> Array:
    """A positive value that is neither rounded to zero, where densities may be infinite, nor to infinity."""
    info = jnp.finfo(value.dtype)
    return jnp.clip(value, info.tiny, info.max) if site.kind == "positive" else value


def _axis(site: Site, plate: Plate) -> int:
    """Of the plate in the site's value."""
    return len(site.shape) - site.event_dim + plate.dim


def _float(x: Array) -> Array:
    return jnp.asarray(x, jnp.result_type(float))
