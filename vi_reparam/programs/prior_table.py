"""How a distribution is read as a normal prior: as it is, or as the nearest normal at its mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array
from vi_reparam.gaussians.bases import lift
from vi_reparam.programs.latents import bijection
from vi_reparam.programs.layout import Part
from vi_reparam.programs.priors import Dense, Flat, Independent, Prior, Walk

Nearest = Callable[..., tuple[Any, Any]]
"""Mean and standard deviation on the unconstrained scale, from array functions and the family's parameters."""

FAMILIES: dict[str, Nearest] = {
    "normal": lambda xp, loc, scale: (loc, scale),
    "student_t": lambda xp, df, loc, scale: (loc, scale * xp.sqrt(df / (df + 1.0))),
    "gamma": lambda xp, a, rate: (xp.log(a / rate), a**-0.5),
    "chi2": lambda xp, df: (xp.log(df), (0.5 * df) ** -0.5),
    "inverse_gamma": lambda xp, a, rate: (xp.log(rate / a), a**-0.5),
    "beta": lambda xp, a, b: (xp.log(a / b), xp.sqrt(1.0 / a + 1.0 / b)),
    "von_mises": lambda xp, loc, concentration: (loc, concentration**-0.5),
}
"""One row a family of the core: the normal with its mode and its curvature there."""

CLASSES: dict[str, tuple[tuple[str, ...], Nearest]] = {
    "Cauchy": (("loc", "scale"), lambda xp, loc, scale: (loc, scale * 0.5**0.5)),
    "Laplace": (("loc", "scale"), lambda xp, loc, scale: (loc, scale * 2.0**0.5)),
    "Logistic": (("loc", "scale"), lambda xp, loc, scale: (loc, scale * 2.0**0.5)),
    "HalfNormal": (("scale",), lambda xp, scale: (xp.log(scale), 0.5**0.5)),
    "HalfCauchy": (("scale",), lambda xp, scale: (xp.log(scale), 2.0**0.5)),
    "Exponential": (("rate",), lambda xp, rate: (-xp.log(rate), 1.0)),
}
"""The same for classes of the frameworks, by name: the attributes that are read."""


def prior_of(backend: Backend, distribution: Any, part: Part) -> Prior:
    """The prior of a site, at the values drawn before it.

    Args:
        part: where the site lies.
    """
    ops, host = backend.ops, backend.host
    xp, transforms = ops.xp, []
    while (wrapping := host.unwrap(distribution)) is not None:
        if wrapping.kind == "transformed":
            transforms = [*wrapping.detail, *transforms]
        distribution = wrapping.inner
    if type(distribution).__name__ == "MultivariateNormal" and not transforms:
        size = part.shape[-1]
        root = xp.broadcast_to(lift(ops, distribution.scale_tril, len(part.shape) + 1), (*part.shape, size))
        return Dense(xp.broadcast_to(lift(ops, distribution.loc, len(part.shape)), part.shape), root)
    zeros = xp.zeros(part.shape, dtype=ops.float_dtype())
    if type(distribution).__name__ == "GaussianRandomWalk" and not transforms:
        scale = ops.asarray(distribution.scale)[..., None]
        return Walk(xp.broadcast_to(lift(ops, scale, len(part.shape)), (*part.shape[:-1], 1)), zeros)
    found = _nearest(backend, distribution)
    if found is None:
        return Flat(zeros)
    shape = part.site.shape if transforms else part.shape
    mean, scale = (xp.broadcast_to(lift(ops, ops.asarray(x), len(shape)), shape) for x in found)
    if transforms:
        moved = _moved(backend, mean, transforms, part)
        if moved is None:
            return Flat(zeros)
        mean, scale = moved[0], scale * xp.exp(moved[1])
    return Independent(mean, scale)


def _nearest(backend: Backend, distribution: Any) -> tuple[Any, Any] | None:
    xp, reading = backend.ops.xp, backend.host.read(distribution)
    if reading is not None:
        family, params = reading
        row = FAMILIES.get(family.name)
        return None if row is None else row(xp, *params)
    name = type(distribution).__name__
    if name not in CLASSES:
        return None
    attributes, row = CLASSES[name]
    return row(xp, *(backend.ops.asarray(getattr(distribution, a)) for a in attributes))


def _moved(backend: Backend, mean: Array, transforms: list[Any], part: Part) -> tuple[Array, Array] | None:
    """The mean behind transforms, unconstrained, and the logarithm of the slope there; exact where that is constant."""
    back = _plain(bijection(backend.host, part.site.support))
    if part.shape != part.site.shape or any(_mixes(t) for t in (back, *map(_plain, transforms))):
        return None
    value, log_slope = mean, 0.0
    for transform in map(_plain, transforms):
        before, value = value, transform(value)
        log_slope = log_slope + transform.log_abs_det_jacobian(before, value)
    free = back.inv(value)
    return free, log_slope - back.log_abs_det_jacobian(free, value)


def _plain(transform: Any) -> Any:
    """A transform without the mark that its dimensions are events."""
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return transform


def _mixes(transform: Any) -> bool:
    """Whether coordinates of its value depend on several of its argument."""
    return bool(transform.domain.event_dim or transform.codomain.event_dim)
