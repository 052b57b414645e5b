"""Posterior predictive draws for new inputs."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.ops import Args, Array, Kwargs
from vi_reparam.backend.tracer import Statement
from vi_reparam.errors import ArgumentError, SiteError, ViReparamError, could_not_run, first_line
from vi_reparam.posterior.scorer import Pair, Scorer, probed
from vi_reparam.posterior.sites import Sites
from vi_reparam.sites.wrappers import innermost

Names = Collection[str]


class Predictor(NamedTuple):
    """Runs the model for new inputs, with the guide's draws of what the fit has learned.

    Attributes:
        sites: of the fit; `fresh`: latents that the model draws.
    """

    pair: Pair
    sites: Sites
    fresh: frozenset[str]

    def run(self, key: Any, args: Any, kwargs: Any, params: Any, new_args: Any, new_kwargs: Any) -> dict[str, Any]:
        """All that is drawn or determined, the data too, as records."""
        guide_key, model_key = self.pair.backend.ops.split(key, 2)
        drawn = self.pair.run_guide(guide_key, args, kwargs, params)
        values = {name: r.value for name, r in drawn.items() if r.is_latent and name in self.sites.latents}
        given = functools.partial(self._value, values)
        records = self.pair.run_model(model_key, new_args, new_kwargs, params, values=given, resample=True)
        return {name: r for name, r in records.items() if r.is_latent or r.kind == "deterministic"}

    def _value(self, values: Mapping[str, Array], statement: Statement) -> Array | None:
        """The guide's draw of a latent; None for one that belongs to other data."""
        name, distribution, plates = statement
        if name in values and name not in self.fresh:
            shape, fitted = tuple(distribution.shape()), self.sites.latents[name].shape
            if shape == fitted:
                return values[name]
            if all(self.sites.plate_sizes.get(plate.name) == plate.subsample_size for plate in plates):
                raise SiteError(
                    f"site {name!r} has shape {shape} for these inputs and {fitted} in the fit, and no plate of it "
                    "changed its size; give inputs of the form of the fit's"
                )
        if type(innermost(self.pair.backend.host, distribution)).__name__ == "ImproperUniform":
            raise SiteError(f"site {name!r} has an improper prior, which cannot be drawn; give it a proper one")
        return None


def predict(
    scorer: Scorer, args: Args, kwargs: Kwargs, num_draws: int, key: Any, return_sites: Names | None, fresh_sites: Names
) -> dict[str, Array]:
    """As `Posterior.predict`; `key` is that from which all draws follow."""
    sites, params, fit = scorer.sites, scorer.params, scorer.data
    fresh = _known(fresh_sites, sites.latents, "fresh_sites", "a latent site of the model")
    wanted = None if return_sites is None else _names(return_sites)
    _check_call(scorer, args, kwargs)
    predictor = Predictor(scorer.pair, sites, fresh)
    found: list[dict[str, Any]] = []

    def look(key: Any, params: Any, arrays: Any, *args: Any, **kwargs: Any) -> None:
        found.append(predictor.run(key, *fit.join(arrays), params, args, kwargs))

    try:
        new = probed(scorer.backend, look, args, kwargs, (key, params, fit.arrays), found)
    except ViReparamError:
        raise
    except Exception as error:  # of the model, on arguments that are not of the fit's kind
        raise _failed(scorer, args, kwargs, error) from error
    for name, record in found[-1].items():
        fitted = sites.observed.get(name)
        if fitted is not None and 0 < len(fitted.shape) < len(shape := tuple(np.shape(record.value))):
            raise ArgumentError(
                f"predict: site {name!r} has shape {shape} for these inputs, and {fitted.shape} in the fit: give "
                "inputs with as many dimensions as the fit's, such as x.ravel() in place of a column"
            )
    if wanted is not None:
        _known(wanted, found[-1], "return_sites", "a site that the model draws")
    if (names := wanted) is None:
        names = frozenset(name for name, r in found[-1].items() if r.is_latent and name not in sites.latents)
    if not names:
        return {}
    join = new.join

    def one(key: Any, args: Any, kwargs: Any, params: Any, arrays: Any) -> dict[str, Array]:
        records = predictor.run(key, args, kwargs, params, *join(arrays))
        return {name: records[name].value for name in sorted(names)}

    size = sum(math.prod(np.shape(found[-1][name].value)) for name in names)
    drawn = scorer.many(one, num_draws, key, new.arrays, name=("predict", new.form, wanted, fresh), size=size)
    if new.doubts:
        to_numpy = scorer.backend.ops.to_numpy
        bad = [name for name, value in drawn.items() if not np.isfinite(to_numpy(value)).all()]
        if bad:
            raise _not_finite(new.doubts, f"so are the draws of {bad[0]!r}")
    return drawn


def _check_call(scorer: Scorer, args: Args, kwargs: Kwargs) -> None:
    try:
        signature = inspect.signature(scorer.pair.model)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"predict: {error}; it takes the model's own arguments, {signature}"[:300]) from None


def _failed(scorer: Scorer, args: Args, kwargs: Kwargs, error: Exception) -> ArgumentError:
    data = scorer.backend.engine.data(tuple(args), dict(kwargs))
    if data.doubts:
        return _not_finite(data.doubts, f"the model refuses them ({first_line(error)[:60]})")
    return could_not_run("predict: the model", data.shapes(scorer.backend.ops), error)


def _not_finite(doubts: Collection[str], what: str) -> ArgumentError:
    text = "; ".join(doubts)[:120]
    return ArgumentError(f"predict: {text}, and {what}: drop those rows, or fill in what is missing")


def _known(names: Collection[str], sites: Collection[str], option: str, what: str) -> frozenset[str]:
    names = _names(names)
    unknown = sorted(names - set(sites))
    if unknown:
        raise ArgumentError(f"{option} names {', '.join(unknown)}, not {what}; there are: {', '.join(sorted(sites))}")
    return names


def _names(names: Collection[str]) -> frozenset[str]:
    return frozenset([names] if isinstance(names, str) else names)
