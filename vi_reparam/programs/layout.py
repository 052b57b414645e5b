"""All continuous latents as one unconstrained vector, and back, with the change of volume."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array
from vi_reparam.errors import SiteError
from vi_reparam.guides.elements import elements_of
from vi_reparam.programs.latents import Plate, Site, bijection, refuse_discrete


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Layout:
    """The latents of a model end to end, subsampled plates at their full size.

    Attributes:
        parts: one a site, in the model's order.
        plate: None; or the plate each of whose elements has such a vector of its own. In the parts' shapes it has size
            one.
    """

    backend: Backend = field(repr=False, compare=False)
    parts: tuple[Part, ...]
    plate: Plate | None = None

    @classmethod
    def of(cls, backend: Backend, sites: dict[str, Site], what: str, *, plate: Plate | None = None) -> Layout:
        """Lay out these sites.

        Args:
            what: the family, for messages.

        Raises:
            SiteError: for a discrete latent, a support without a bijection, or no latent at all.
        """
        parts, offset = [], 0
        with backend.tracer.constants():
            for site in sites.values():
                if site.support.is_discrete:
                    raise refuse_discrete(
                        backend.host,
                        site,
                        f" is discrete, and {what} covers continuous latents: marginalize it in the model, or use "
                        f"vr.MeanField with estimators={{{site.name!r}: vr.ScoreFunction()}}",
                    )
                shape = list(bijection(backend.host, site.support).inverse_shape(site.shape))
                if plate is not None:
                    shape[_axis(site, plate)] = 1
                parts.append(Part(site, tuple(shape), offset))
                offset += math.prod(shape)
        if not offset:
            raise SiteError(f"the model has no latent site for {what} to draw")
        return cls(backend, tuple(parts), plate)

    @property
    def size(self) -> int:
        """Coordinates in all."""
        return self.parts[-1].offset + self.parts[-1].size

    def positive(self) -> tuple[bool, ...]:
        """Which coordinates are a positive site's."""
        return tuple(part.site.kind == "positive" for part in self.parts for _ in range(part.size))

    def elements(self, plate: str) -> tuple[tuple[int, ...], ...]:
        """As `elements_of`."""
        return elements_of(self.parts, plate)

    def at(self, sites: dict[str, Site]) -> Layout:
        """The same with these supports."""
        parts = tuple(dataclasses.replace(part, site=sites[part.site.name]) for part in self.parts)
        return dataclasses.replace(self, parts=parts)

    def pack(self, values: dict[str, Array]) -> Array:
        """The vector of these values by site; coordinates at infinity become zero. Shape ``[size]``."""
        flat = [self.backend.ops.xp.reshape(self.unconstrained(part, values), (-1,)) for part in self.parts]
        return self.backend.ops.xp.concat(flat)

    def unpack(self, vector: Array) -> dict[str, tuple[Array, Array]]:
        """By site: its value on its support, and log|det| of the way there, of its batch shape."""
        return {part.site.name: self.place(part, self.cut(part, vector)) for part in self.parts}

    def cut(self, part: Part, vector: Array) -> Array:
        """A part's own coordinates of the vector, shape ``part.shape``."""
        return self.backend.ops.xp.reshape(vector[part.offset : part.offset + part.size], part.shape)

    def pack_each(self, values: dict[str, Array]) -> Array:
        """The vectors of the plate's elements, of values over all of it. Shape ``[elements, size]``."""
        assert self.plate is not None
        xp, rows = self.backend.ops.xp, []
        for part in self.parts:
            flat = _moved(xp, self.unconstrained(part, values), _axis(part.site, self.plate), 0)
            rows.append(xp.reshape(flat, (flat.shape[0], -1)))
        return xp.concat(rows, axis=1)

    def unpack_each(self, vectors: Array) -> dict[str, tuple[Array, Array]]:
        """As `unpack`, of a vector for each element; values and log|det| have the plate's axis again."""
        assert self.plate is not None
        xp, found = self.backend.ops.xp, {}
        for part in self.parts:
            axis = _axis(part.site, self.plate)
            rows = xp.reshape(vectors[:, part.offset : part.offset + part.size], (vectors.shape[0], *part.shape))
            found[part.site.name] = self.place(part, _moved(xp, xp.squeeze(rows, axis=axis + 1), 0, axis))
        return found

    def unconstrained(self, part: Part, values: Mapping[str, Array]) -> Array:
        """A part's coordinates of these values by site; those at infinity become zero."""
        ops, site = self.backend.ops, part.site
        flat = bijection(self.backend.host, site.support).inv(ops.asarray(values[site.name], ops.float_dtype()))
        return ops.xp.where(ops.xp.isfinite(flat), flat, ops.xp.zeros_like(flat))

    def place(self, part: Part, flat: Array) -> tuple[Array, Array]:
        """A site's value on its support from its unconstrained coordinates, and log|det|, of its batch shape."""
        xp, site = self.backend.ops.xp, part.site
        transform = bijection(self.backend.host, site.support)
        value = transform(flat)
        if site.kind == "positive":  # neither rounded to zero, where densities may be infinite, nor to infinity
            info = xp.finfo(value.dtype)
            value = xp.clip(value, info.tiny if hasattr(info, "tiny") else info.smallest_normal, info.max)
        log_det = transform.log_abs_det_jacobian(flat, value)
        events = tuple(range(len(site.shape) - site.event_dim, log_det.ndim))
        return value, xp.sum(log_det, axis=events) if events else log_det


def _moved(xp: Any, x: Array, source: int, target: int) -> Array:
    axes = list(range(x.ndim))
    axes.insert(target, axes.pop(source))
    return xp.permute_dims(x, tuple(axes))  # moveaxis has no rule for vmap in torch


def _axis(site: Site, plate: Plate) -> int:
    """Of the plate in the site's value."""
    assert plate.dim is not None
    return len(site.shape) - site.event_dim + plate.dim
