"""Draws of a model for new inputs, given what a fit has learned, and their log likelihood."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Args, Array, Kwargs
from vi_reparam.backend.tracer import Record, Statement
from vi_reparam.checks import check_memory
from vi_reparam.errors import ArgumentError, SiteError, ViReparamError, could_not_run, first_line, short
from vi_reparam.posterior.scorer import Pair, Scorer, probed
from vi_reparam.posterior.sites import Site, Sites, form
from vi_reparam.sites.totals import masked
from vi_reparam.sites.wrappers import innermost

Names = Collection[str]
Rows = dict[str, Array]


class Predictor(NamedTuple):
    """Runs the model for new inputs, with the guide's draws of what the fit has learned.

    Attributes:
        sites: of the fit; `fresh`: latents that the model draws.
        resample: whether observed sites are drawn afresh; else they keep the values that the inputs give.
    """

    pair: Pair
    sites: Sites
    fresh: frozenset[str]
    resample: bool = True

    def run(self, key: Any, args: Any, kwargs: Any, params: Any, new_args: Any, new_kwargs: Any) -> dict[str, Record]:
        """All that is drawn, observed or determined, as records."""
        guide_key, model_key = self.pair.backend.ops.split(key, 2)
        drawn = self.pair.run_guide(guide_key, args, kwargs, params)
        values = {name: r.value for name, r in drawn.items() if r.is_latent and name in self.sites.latents}
        given = functools.partial(self._value, values)
        records = self.pair.run_model(model_key, new_args, new_kwargs, params, values=given, resample=self.resample)
        return {n: r for n, r in records.items() if r.is_latent or r.is_data or r.kind == "deterministic"}

    def _value(self, values: Mapping[str, Array], statement: Statement) -> Array | None:
        """The guide's draw of a latent; None for one that belongs to other data."""
        name, distribution, plates, repeated = statement
        if name in values and name not in self.fresh:
            shape, fitted = tuple(distribution.shape()), self.sites.latents[name].shape
            if shape == fitted or (repeated and shape == fitted[1:]):  # steps beyond the fit's draw their own
                return values[name]
            if all(self.sites.plate_sizes.get(plate.name) == plate.subsample_size for plate in plates):
                raise SiteError(
                    f"site {name!r} has shape {shape} for these inputs and {fitted} in the fit, and no plate of it "
                    "changed its size; give inputs of the form of the fit's"
                )
        return proper(self.pair.backend.host, statement)


def proper(reader: Reader, statement: Statement) -> None:
    """Refuse a latent that cannot be drawn.

    Raises:
        SiteError: for an improper prior.
    """
    if type(innermost(reader, statement.distribution)).__name__ == "ImproperUniform":
        raise SiteError(f"site {statement.name!r} has an improper prior, which cannot be drawn; give it a proper one")


class Prediction:
    """What a fitted model says of some inputs, ready to be drawn.

    Args:
        scorer: of the posterior.
        args: the inputs; `kwargs`: keyword arguments.
        return_sites: what is drawn; the data unless given.
        fresh_sites: latents that the model draws though their shape fits.
        log_likelihood: give the log density of the data in the inputs in place of draws, element by element.

    Attributes:
        sites: the form of what is returned, by name.

    Raises:
        ArgumentError: an option names an unknown site.
        SiteError: a latent has another shape for these inputs, and no plate explains it.
    """

    def __init__(
        self,
        scorer: Scorer,
        args: Args,
        kwargs: Kwargs,
        return_sites: Names | None = None,
        fresh_sites: Names = (),
        *,
        log_likelihood: bool = False,
    ) -> None:
        sites, fit = scorer.sites, scorer.data
        fresh = _known(fresh_sites, sites.latents, "fresh_sites", "a latent site of the model")
        wanted = None if return_sites is None else _names(return_sites, "return_sites")
        self.scorer = scorer
        self._predictor = Predictor(scorer.pair, sites, fresh, resample=not log_likelihood)
        found: list[dict[str, Record]] = []

        def look(key: Any, params: Any, arrays: Any, *args: Any, **kwargs: Any) -> None:
            found.append(self._predictor.run(key, *fit.join(arrays), params, args, kwargs))

        inputs = (scorer.backend.ops.key(0), scorer.params, fit.arrays)
        _check_call(scorer, args, kwargs)
        try:
            self._new = probed(scorer.backend, look, args, kwargs, inputs, found)
        except ViReparamError:
            raise
        except Exception as error:  # of the model, on arguments that are not of the fit's kind
            raise _failed(scorer, args, kwargs, error) from error
        _check_dimensions(sites, found[-1])
        if wanted is not None:
            _known(wanted, found[-1], "return_sites", "a site that the model draws")
        elif log_likelihood:
            wanted = frozenset(name for name, r in found[-1].items() if r.is_data)
        else:
            wanted = frozenset(name for name, r in found[-1].items() if r.is_latent and name not in sites.latents)
        self.sites: dict[str, Site] = {name: form(found[-1][name]) for name in sorted(wanted)}
        self._take = _density if log_likelihood else _value
        self._name = ("predict", log_likelihood, self._new.form, wanted, fresh)

    def draws(self, num: int, key: Any, first: int = 0) -> Rows:
        """`num` draws from the one numbered `first` on; each depends on the key and its number alone."""
        if not self.sites:
            return {}
        join, run, take, names = self._new.join, self._predictor.run, self._take, tuple(self.sites)

        def one(key: Any, args: Any, kwargs: Any, params: Any, arrays: Any) -> Rows:
            records = run(key, args, kwargs, params, *join(arrays))
            return {name: take(records[name]) for name in names}

        size = sum(math.prod(site.shape) for site in self.sites.values())
        check_memory(f"predict(num_draws={num:,})", num * size, "take fewer draws, or posterior.predict_in_chunks")
        try:
            drawn = self.scorer.many(one, num, key, self._new.arrays, name=self._name, size=size, first=first)
        except (TypeError, ValueError, RuntimeError) as error:  # the density is first computed here
            if isinstance(error, ViReparamError) or self._take is not _density:
                raise
            ops = self.scorer.backend.ops
            raise could_not_run("log_likelihood: the density", self._new.shapes(ops), error) from error
        if self._new.doubts:
            to_numpy = self.scorer.backend.ops.to_numpy
            bad = [name for name, value in drawn.items() if not np.isfinite(to_numpy(value)).all()]
            if bad:
                what = "so is the log likelihood" if self._take is _density else "so are the draws"
                raise _not_finite(self._new.doubts, f"{what} of {bad[0]!r}")
        return drawn

    def chunks(self, num: int, key: Any, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The same draws, `size` at a time, as NumPy's arrays on the host."""
        for first in range(0, num, size):
            rows = self.draws(min(size, num - first), key, first)
            yield {name: np.asarray(self.scorer.backend.ops.to_numpy(value)) for name, value in rows.items()}


def _value(record: Record) -> Array:
    return record.value


def _density(record: Record) -> Array:
    return masked(record, record.log_prob())


def prior_draws(
    backend: Any, model: Callable[..., Any], data: Any, num: int, key: Any, *, params: Mapping | None = None
) -> Rows:
    """Draws of a model alone, its data drawn afresh: every latent, determined and observed site, stacked by name.

    Args:
        data: the model's arguments, as the engine made them ready; observed values give no more than their shape.
        params: of the model, constrained; their initial values unless given.

    Raises:
        SiteError: for a latent whose prior is improper.
    """

    def values(key: Any, args: Any, kwargs: Any, params: Any) -> Rows:
        given = functools.partial(proper, backend.host)
        options = {"params": params or None, "partial": True, "full_data": True, "alone": True, "resample": True}
        found = backend.tracer.run(model, args, kwargs, key, values=given, **options)
        return {n: r.value for n, r in found.items() if r.is_latent or r.kind == "deterministic"}

    engine, given = backend.engine, dict(params or {})
    sizes: list[int] = []
    backend.tracer.shapes(lambda key: sizes.append(_count(values(key, data.args, data.kwargs, given))))
    at_once = engine.runs_at_once(values, data, given)
    return engine.many(values, data, key, num, given, size=sizes[-1], name="prior", at_once=at_once)


def _count(rows: Rows) -> int:
    return sum(math.prod(np.shape(value)) for value in rows.values())


def _check_call(scorer: Scorer, args: Args, kwargs: Kwargs) -> None:
    try:
        signature = inspect.signature(scorer.pair.model)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"predict: {error}; it takes the model's own arguments, {signature}"[:300]) from None


def _check_dimensions(sites: Sites, found: Mapping[str, Record]) -> None:
    for name, record in found.items():
        fitted = sites.observed.get(name)
        if fitted is not None and 0 < len(fitted.shape) < len(shape := tuple(np.shape(record.value))):
            raise ArgumentError(
                f"predict: site {name!r} has shape {shape} for these inputs, and {fitted.shape} in the fit: give "
                "inputs with as many dimensions as the fit's, such as x.ravel() in place of a column"
            )


def _failed(scorer: Scorer, args: Args, kwargs: Kwargs, error: Exception) -> ArgumentError:
    data = scorer.backend.engine.data(tuple(args), dict(kwargs))
    if data.doubts:
        return _not_finite(data.doubts, f"the model refuses them ({first_line(error)[:60]})")
    return could_not_run("predict: the model", data.shapes(scorer.backend.ops), error)


def _not_finite(doubts: Collection[str], what: str) -> ArgumentError:
    text = "; ".join(doubts)[:120]
    return ArgumentError(f"predict: {text}, and {what}: drop those rows, or fill in what is missing")


def _known(names: Collection[str], sites: Collection[str], option: str, what: str) -> frozenset[str]:
    names = _names(names, option)
    unknown = sorted(names - set(sites))
    if unknown:
        raise ArgumentError(f"{option} names {', '.join(unknown)}, not {what}; there are: {', '.join(sorted(sites))}")
    return names


def _names(names: Collection[str], option: str) -> frozenset[str]:
    found = frozenset([names] if isinstance(names, str) or not isinstance(names, Collection) else names)
    if not all(isinstance(name, str) for name in found):
        raise ArgumentError(f"{option}={short(names)}: expected names of sites, as ['mu']")
    return found
