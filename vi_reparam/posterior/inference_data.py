"""A posterior as ArviZ knows it: groups of named arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.backend.ops import Args, Kwargs
from vi_reparam.errors import ArgumentError
from vi_reparam.posterior.arviz_lines import container
from vi_reparam.posterior.picks import Groups
from vi_reparam.posterior.predict import Prediction, prior_draws
from vi_reparam.posterior.sites import Site, check_count
from vi_reparam.posterior.verdict import KHAT_USABLE
from vi_reparam.posterior.weights import Weights

if TYPE_CHECKING:
    import xarray as xr

Tree = dict[str, dict[str, Any]]
Dims = Mapping[str, Sequence[str]]
Coords = Mapping[str, Any]

POOL = 4
"""Draws that one resampled draw is chosen from."""


@dataclass(frozen=True)
class Export:
    """How to export: as in `vi_reparam.posterior.posterior.Posterior.to_arviz`."""

    num_draws: int
    seed: Any
    num_chains: int = 1
    log_likelihood: bool = True
    log_prior: bool = False
    prior: bool | int = False
    posterior_predictive: bool = False
    predictions: Any = None
    resample: bool | None = None
    dims: Dims = field(default_factory=dict)
    coords: Coords = field(default_factory=dict)
    pred_dims: Dims = field(default_factory=dict)
    pred_coords: Coords = field(default_factory=dict)


def export(posterior: Any, options: Export) -> Any:
    """A `vi_reparam.posterior.posterior.Posterior` in ArviZ's own holder of groups.

    Raises:
        ArgumentError: for options that cannot be used.
    """
    for name in ("num_draws", "num_chains"):
        check_count(name, getattr(options, name))
    call = call_of(options.predictions)
    scorer, sites, ops = posterior.scorer, posterior.scorer.sites, posterior.backend.ops
    resample, num = _resampled(posterior, options), options.num_draws * options.num_chains
    key = posterior.backend.engine.key(options.seed)
    chosen = _chosen(posterior, num, options.seed) if resample else None

    def rows(draw: Callable[[int, int], Tree]) -> Tree:
        """Of what this draws, `num` from number `first` on, those that were chosen; a chain a row."""

        def part(first: int) -> Tree:
            return ops.tree_map(lambda x: np.asarray(ops.to_numpy(x)), draw(num, first))

        if chosen is None:
            found = part(0)
        else:  # the pool lies in memory one part after the other
            places = [np.flatnonzero(chosen // num == i) for i in range(POOL)]
            taken = []
            for i, place in enumerate(places):
                if len(place):
                    taken.append(ops.tree_map(lambda x, at=chosen[place] - i * num: x[at], part(i * num)))
            order = np.argsort(np.concatenate(places))
            found = ops.tree_map(lambda *x: np.concatenate(x)[order], *taken)
        shape = options.num_chains, options.num_draws
        return ops.tree_map(lambda x: x.reshape(*shape, *x.shape[1:]), found)

    pick = Groups(options.log_likelihood, options.log_prior)
    groups = rows(lambda num, first: scorer.run(pick, num, key, first=first))
    stats = groups["sample_stats"]
    if posterior.record.get("batches"):
        del stats["lp"]  # of the first batch
    else:
        _add_weights(stats, num, resample)
    forms: dict[str, Site] = {**sites.latents, **sites.deterministics, **sites.observed}
    if options.prior:
        wanted = options.num_draws if options.prior is True else check_count("prior", options.prior)
        groups |= _prior(posterior, wanted, key)
    if options.posterior_predictive:
        predicted = Prediction(scorer, *scorer.data.call)
        groups["posterior_predictive"] = rows(lambda num, first: {"": predicted.draws(num, key, first)})[""]
    observed = scorer.observed()
    groups["observed_data"] = observed
    groups["constant_data"] = _constant(scorer.named_arrays(), list(observed.values()))
    namer = Namer(forms, options.dims, options.coords)
    made = {group: namer.dataset(group, values) for group, values in groups.items() if values}
    if call is not None:
        made |= _predictions(posterior, call, rows, key, forms, options)
    namer.check(made)
    attrs = {"model": posterior.name, "verdict": posterior.verdict.line, "khat": float(posterior.khat)}
    attrs |= {"resampled": int(resample), "inference_library": "vi-reparam"}
    attrs |= {"inference_library_version": _version()}
    if posterior.record.get("batches"):
        attrs["data"] = "of the first batch alone"
    for dataset in made.values():
        dataset.attrs.update(attrs)
    return container(made)


def _add_weights(stats: dict[str, Any], num: int, resampled: bool) -> None:
    """Log weights and smoothed ones, beside log p and log q."""
    stats["log_weight"] = stats["lp"].astype(np.float64) - stats["log_q"]
    log_p, log_q = (np.asarray(stats[name], dtype=np.float64).reshape(-1) for name in ("lp", "log_q"))
    flat = Weights(log_p, log_q)
    if resampled:
        stats["weight"] = np.full(stats["lp"].shape, 1.0 / num)
    elif flat.are_usable:
        stats["weight"] = flat.normalized().reshape(stats["lp"].shape)


def call_of(given: Any) -> tuple[Args, Kwargs] | None:
    """New inputs, as a tuple of positional arguments or a dict of keyword arguments."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return (), given
    if isinstance(given, tuple):
        return given, {}
    text = f"predictions is of type {type(given).__name__}; give the model's arguments: a tuple, or a dict by name"
    raise ArgumentError(text)


def _resampled(posterior: Any, options: Export) -> bool:
    """Whether to resample; a warning where no weights can mend the draws that are exported."""
    khat, is_asked = posterior.khat, options.resample is not None
    if options.resample and not khat < np.inf:
        raise ArgumentError("resample=True: the log weights are NaN or infinite; see .verdict, or pass resample=False")
    if {"refined", "relabelled"} & set(posterior.record):  # stored draws, which have no weights
        return False
    if not khat < KHAT_USABLE and (options.resample or (options.log_likelihood and not is_asked)):
        warnings.warn(
            f"k-hat is {khat:.2f}, so no weights mend these draws: what ArviZ makes of them (loo, compare, intervals) "
            "takes them for draws of the posterior; refit with a richer guide, or see .verdict",
            stacklevel=4,
        )
    if is_asked:
        return bool(options.resample)
    return khat < KHAT_USABLE and posterior.verdict.grade != "good"


def _chosen(posterior: Any, num: int, seed: Any) -> np.ndarray:
    """Numbers of `num` draws, resampled systematically by smoothed weights, in random order."""
    weights = posterior.weights(POOL * num, seed).normalized()
    rng = np.random.default_rng(0)
    places = (rng.uniform() + np.arange(num)) / num
    chosen = np.minimum(np.searchsorted(np.cumsum(weights), places), len(weights) - 1)
    return rng.permutation(chosen)


def _prior(posterior: Any, num: int, key: Any) -> Tree:
    """Draws of the model alone, in one chain: latents and determined sites, and the data."""
    scorer = posterior.scorer
    found = prior_draws(posterior.backend, scorer.pair.model, scorer.data, num, key, params=scorer.params)
    values = {name: np.asarray(posterior.backend.ops.to_numpy(x))[None] for name, x in found.items()}
    data = {name: value for name, value in values.items() if name in scorer.sites.observed}
    return {"prior": {n: x for n, x in values.items() if n not in data}, "prior_predictive": data}


def _predictions(
    posterior: Any, call: tuple[Args, Kwargs], rows: Any, key: Any, forms: dict[str, Site], options: Export
) -> dict[str, xr.Dataset]:
    """The groups of new inputs, by their own dims and coords."""
    predicted = Prediction(posterior.scorer, *call)
    groups: Tree = {"predictions": rows(lambda num, first: {"": predicted.draws(num, key, first)})[""]}
    scored, forms = Prediction(posterior.scorer, *call, log_likelihood=True), {**forms, **predicted.sites}
    if options.log_likelihood and scored.sites:
        density = rows(lambda num, first: {"": scored.draws(num, key, first)})[""]
        groups["predictions_log_likelihood"] = density
    arrays = posterior.scorer.named_arrays(call)
    groups["predictions_constant_data"] = {n: x for n, x in arrays.items() if n not in scored.sites}
    namer = Namer(forms, {**options.dims, **options.pred_dims}, options.pred_coords)
    made = {group: namer.dataset(group, values) for group, values in groups.items() if values}
    Namer({}, options.pred_dims, options.pred_coords).check(made)
    return made


class Namer:
    """Names the dimensions of arrays, and their coordinates.

    Args:
        forms: of the sites, whose plates name dimensions.
        dims: names that go before those, by variable; `coords`: labels, by dimension.
    """

    def __init__(self, forms: Mapping[str, Site], dims: Dims, coords: Coords) -> None:
        self.forms = {safe_name(name): site for name, site in forms.items()}
        self.dims = {safe_name(name): [dims] if isinstance(dims, str) else list(dims) for name, dims in dims.items()}
        self.coords = dict(coords)

    def dataset(self, group: str, values: Mapping[str, Any]) -> xr.Dataset:
        """One group; all but data begin with chains and draws."""
        import xarray as xr

        begins = () if group.endswith("_data") else ("chain", "draw")
        found, sizes = {}, {}
        for name, value in values.items():
            array = np.asarray(value)
            names = (*begins, *self._names(name, array.shape[len(begins) :]))
            found[safe_name(name)] = names, array
            sizes |= dict(zip(names, array.shape, strict=True))
        coords = {dim: self._labels(dim, size) for dim, size in sizes.items() if dim not in found}
        return xr.Dataset(found, coords=coords)

    def _names(self, name: str, shape: tuple[int, ...]) -> list[str]:
        name, site = safe_name(name), self.forms.get(name)
        plates = {} if site is None else {dim: safe_name(plate) for dim, plate in site.plates.items()}
        own = self.dims.get(name, [])
        if len(own) > len(shape):
            raise ArgumentError(f"dims[{name!r}] names {len(own)} dimensions, and it has {len(shape)}; name those")
        given = {dim: label for dim, label in enumerate(own) if label is not None}
        return [(plates | given).get(dim, f"{name}_dim_{dim}") for dim in range(len(shape))]

    def _labels(self, dim: str, size: int) -> np.ndarray:
        labels = np.asarray(self.coords.get(dim, np.arange(size)))
        if labels.shape != (size,):
            raise ArgumentError(f"coords[{dim!r}] has shape {labels.shape}; dimension {dim!r} has {size} elements")
        return labels

    def check(self, made: Mapping[str, xr.Dataset]) -> None:
        """Refuse names that nothing has.

        Raises:
            ArgumentError: with the names that there are.
        """
        variables = {str(name) for dataset in made.values() for name in dataset.data_vars}
        dimensions = {str(dim) for dataset in made.values() for dim in dataset.dims}
        for option, given, known in (("dims", self.dims, variables), ("coords", self.coords, dimensions)):
            if unknown := sorted(set(given) - known):
                raise ArgumentError(f"{option} names {', '.join(unknown)}; there are: {', '.join(sorted(known))}"[:300])


def dims_of(sites: Mapping[str, Site]) -> dict[str, list[str]]:
    """Names of the dimensions of sites that plates name, for converters that do not look for plates."""
    namer = Namer(sites, {}, {})
    return {safe_name(name): namer._names(name, site.shape) for name, site in sites.items() if site.plates}


def safe_name(name: str) -> str:
    """A site's name without slashes, which netCDF takes for groups."""
    return name.replace("/", ".")


def _constant(arrays: dict[str, np.ndarray], observed: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {n: x for n, x in arrays.items() if not any(np.array_equal(x, other) for other in observed)}


def _version() -> str:
    try:
        return version("vi-reparam")
    except ImportError:  # run from its source
        return "unknown"
