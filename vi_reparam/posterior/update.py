"""A fitted guide as the prior of new data."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vi_reparam.backend.ops import Args, Array
from vi_reparam.errors import ArgumentError
from vi_reparam.guides import GaussianFamily, MeanField
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.programs.latents import Latents
from vi_reparam.programs.layout import Layout
from vi_reparam.sites.totals import mask_of, scaled, total_log_prob

LogQ = Callable[[Mapping[str, Array]], Array]

LARGEST = 2_000
"""Most coordinates of a Gaussian, whose covariance is written out."""

FACTOR = "vr_update"


class Updated:
    """A model whose latents' prior is a fitted guide: a program of the framework.

    It states what the model states, and a factor: log q of the guide less the log prior, of the latents that the two
    sets of data share.

    Args:
        model: as it was given, without such a factor.
        posterior: whose guide it is.
        fresh: latents that belong to the new data, whose prior stays.

    Raises:
        ArgumentError: for a guide without a density, or a masked latent that is not fresh.
    """

    def __init__(self, model: Callable[..., Any], posterior: Any, fresh: frozenset[str]) -> None:
        self.model, self.backend, self.posterior = model, posterior.backend, posterior
        self.sites = posterior.scorer.sites
        self.fresh = fresh
        self.__name__ = posterior.name
        self._refuse_masked()
        self.log_q = log_density(posterior)

    def __reduce__(self) -> Any:
        return Updated, (self.model, self.posterior, self.fresh)

    def _refuse_masked(self) -> None:
        """A masked part has no density in the first data, and would get the guide's."""
        tracer, call = self.backend.tracer, self.posterior.scorer.data.call
        for name, record in tracer.shapes(lambda key: tracer.run(self.model, *call, key, alone=True)).items():
            if record.is_latent and name not in self.fresh and mask_of(self.backend.host, record) is not None:
                raise ArgumentError(
                    f"update: site {name!r} is masked in the first data, and its parts there have no density: name it, "
                    f"fresh_sites=[{name!r}], if the new data bring their own"
                )

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        backend = self.backend
        found = backend.tracer.within(self.model, args, kwargs)
        kept = {name: r for name, r in found.items() if r.is_latent and self.is_kept(name, r)}
        prior = sum(backend.ops.xp.sum(scaled(r, r.log_prob())) for r in kept.values())
        backend.host.factor(FACTOR, self.log_q({name: r.value for name, r in kept.items()}) - prior)

    def is_kept(self, name: str, record: Any) -> bool:
        """Whether a latent is one that the first data told of."""
        if name in self.fresh or name not in self.sites.latents:
            return False
        return tuple(record.distribution.shape()) == self.sites.latents[name].shape


def updated(posterior: Any, args: Args, kwargs: Mapping[str, Any], fresh: set[str]) -> Any:
    """As `Posterior.update`."""
    unknown = sorted(fresh - {*posterior.scorer.sites.latents})
    if unknown:
        raise ArgumentError(f"fresh_sites names {', '.join(unknown)}, not a latent site of the model")
    model = Updated(original(posterior.guided.model), posterior, frozenset(fresh))
    _refuse_moved(model, args, kwargs)
    return posterior.guided.with_model(model).fit(*args, init=posterior, **kwargs)


def _refuse_moved(model: Updated, args: Args, kwargs: Mapping[str, Any]) -> None:
    """Refuse a latent whose bounds follow the arguments: the guide has no density beyond the first data's."""
    posterior, backend = model.posterior, model.backend
    options = inspect.signature(posterior.guided.fit).parameters
    own = {name: value for name, value in kwargs.items() if name not in options}
    try:
        data = backend.engine.data(args, own, model.model)
        calls = posterior.scorer.data.call, data.call
        before, now = (Latents(backend, model.model).sites(*call) for call in calls)
    except Exception:  # the fit says what is wrong
        return
    for name, site in now.items():
        if name in model.fresh or name not in before or before[name].shape != site.shape:
            continue
        bounds = [list(map(backend.ops.to_numpy, backend.tracer.arrays_of(s.support))) for s in (before[name], site)]
        told = repr(before[name].support) != repr(site.support)  # of numbers that Python read
        if told or any(not np.array_equal(*pair) for pair in zip(*bounds, strict=True)):
            raise ArgumentError(
                f"update: site {name!r} has other bounds in the new data, and what was fitted has no density beyond "
                f"its own: give it fixed bounds, name it, fresh_sites=[{name!r}], or fit all data together"
            )


def original(model: Any) -> Any:
    """A model as it was given."""
    return model.model if isinstance(model, Updated) else model


def log_density(posterior: Any) -> LogQ:
    """The guide's log density at values of some of its latents, the others integrated out.

    Raises:
        ArgumentError: for a guide that has none that can be evaluated.
    """
    guided = posterior.guided
    family = getattr(guided, "family", None)
    if isinstance(family, MeanField):
        return _of_sites(posterior)
    if isinstance(family, GaussianFamily) and not getattr(family.gaussian, "num_components", 1) > 1:
        return _of_gaussian(posterior)
    raise ArgumentError(
        f"update: a guide of {family!r} has no density that can be evaluated at given values: fit vr.FullRank(), "
        "vr.LowRank() or vr.MeanField(), or fit all data again"
    )


def _of_sites(posterior: Any) -> LogQ:
    """Of independent sites: their own log densities."""
    backend, guide = posterior.backend, posterior.guided.base_guide
    args, kwargs = posterior.scorer.data.call

    def log_q(values: Mapping[str, Array]) -> Array:
        options = {"params": posterior.scorer.params, "full_data": True, "alone": True, "frozen": True}
        found = backend.tracer.run(guide, args, kwargs, backend.ops.key(0), values=dict(values), **options)
        return total_log_prob(backend, {name: found[name] for name in values})

    return log_q


def _of_gaussian(posterior: Any) -> LogQ:
    """Of a Gaussian over all latents: that of the coordinates at hand, in the latents' own coordinates.

    A tail that was widened for the importance weights counts as the Gaussian's own.
    """
    ops, guide = posterior.backend.ops, posterior.guided.base_guide
    layout: Layout = guide.layout(*posterior.scorer.data.call)
    center, root = _affine(posterior, layout)
    covariance = root @ root.T

    @functools.cache
    def marginal(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, float]:
        """Center, inverse root and log normalizer of these latents together."""
        parts = [part for part in layout.parts if part.site.name in names]
        places = np.concatenate([np.arange(part.offset, part.offset + part.size) for part in parts])
        lower = np.linalg.cholesky(covariance[np.ix_(places, places)])
        norm = 0.5 * len(places) * LOG_2PI + float(np.log(np.diagonal(lower)).sum())
        return center[places], np.linalg.inv(lower), norm

    def log_q(values: Mapping[str, Array]) -> Array:
        xp = ops.xp
        parts = [part for part in layout.parts if part.site.name in values]
        if not parts:
            return xp.zeros((), dtype=ops.float_dtype())
        middle, inverse, norm = marginal(tuple(part.site.name for part in parts))
        flat, log_det = [], xp.zeros((), dtype=ops.float_dtype())
        for part in parts:
            own = layout.unconstrained(part, values)
            flat.append(xp.reshape(own, (-1,)))
            log_det = log_det + xp.sum(layout.place(part, own)[1])
        moved = xp.concat(flat) - ops.asarray(middle, ops.float_dtype())
        whitened = ops.asarray(inverse, ops.float_dtype()) @ moved
        return -0.5 * xp.sum(whitened * whitened) - norm - log_det

    return log_q


def _affine(posterior: Any, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Center and linear part of a Gaussian guide, in the coordinates of all latents, as NumPy's arrays."""
    backend, guide = posterior.backend, posterior.guided.base_guide
    ops, size, base = backend.ops, layout.size, guide.family.gaussian.resolve(layout)
    if size > LARGEST:
        raise ArgumentError(f"update: a Gaussian over {size:,} coordinates; at most {LARGEST:,} can be a prior")
    own = {name: posterior.scorer.params[f"{guide.prefix}_{name}"] for name in base.names}
    noise = np.concatenate([np.zeros((1, size)), np.eye(size)])
    rows = ops.to_numpy(base.to_latent(ops, own, ops.asarray(noise, ops.float_dtype())))
    start, scale = (ops.to_numpy(posterior.scorer.params[f"{guide.prefix}_{name}"]) for name in ("center", "root"))
    placed = np.asarray(rows, np.float64)
    placed = start + (placed * scale if scale.ndim == 1 else placed @ scale.T)
    assert math.isfinite(placed.sum())
    return placed[0], (placed[1:] - placed[0]).T
