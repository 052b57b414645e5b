"""Many latents about their mode: the normal there, moved to their mean and bent to one side.

A skewed density's mean is to one side of its mode. Where many latents lean to the same side, what they have in common
is far off in its own sds, as van Niekerk and Rue (2021) correct it; and what each one lacks of a normal adds up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vi_reparam.gaussians.skew import raw_of_skewness, skew
from vi_reparam.programs.curvature import Array, Curvature, Root


class Leaning(NamedTuple):
    """About normal latents, each with a bend of its own.

    Attributes:
        form: of the precision; `root`: of it, at the mode.
        mean: shape ``[L]``.
        bend: of each latent given all later ones, as `skew` takes it; `scale`: its sd, in those of the normal. Shape
            ``[L]``, or None for the normal itself.
    """

    form: Curvature
    root: Root
    mean: Array
    bend: Array | None = None
    scale: Array | None = None

    def draw(self, ops: Any, noise: Array) -> tuple[Array, Array]:
        """The draw that noise of shape ``[L]`` makes, and its log density."""
        log_q = self.root.log_density(ops, noise)
        if self.scale is not None:
            value, rise, _ = skew(ops, noise, self.bend)
            noise, log_q = self.scale * value, log_q - ops.xp.sum(rise + ops.xp.log(self.scale))
        return self.mean + self.form.ways(ops, self.root, noise), log_q


def lean(
    ops: Any, height: Callable[[Array], Array], x: Array, root: Root, form: Curvature, probes: Array, much: Array
) -> Leaning:
    """What slopes around the mode say of the mean, and of how the latents lean.

    The mean is a Newton step away, by the mean slope. Half of a third derivative times the variance is what the mean
    slope of one latent is, and this gives its skewness; the sd follows as that of a gamma variate's logarithm.

    Args:
        height: the log density.
        x: its mode, shape ``[L]``; `root`: of the precision there.
        probes: noise of plus and minus one, whose negatives are taken too, shape ``[P, L]``; none for the normal.
        much: 1 to bend the latents too, 0 not to, shape ``[]``.
    """
    xp = ops.xp
    if not probes.shape[0]:
        return Leaning(form, root, x)
    ways = ops.vmap(lambda n: form.ways(ops, root, n))(probes)
    slope = _finite(ops, xp.mean(ops.vmap(ops.grad(height))(xp.concat([x[None] + ways, x[None] - ways])), axis=0))
    mean = x + _finite(ops, form.step(ops, root, slope)[0])
    own = form.sds(ops, root)
    skewness = much * _finite(ops, 2.0 * slope / xp.mean(ways * ways, axis=0) * own**3)
    bend = raw_of_skewness(ops, skewness)
    return Leaning(form, root, mean, bend, xp.sqrt(1.0 + 0.5 * xp.minimum(skewness**2, 4.0 * xp.ones_like(bend))))


def _finite(ops: Any, x: Array) -> Array:
    return ops.xp.where(ops.xp.isfinite(x), x, ops.xp.zeros_like(x))
