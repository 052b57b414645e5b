"""Draws from a fitted guide, scored under the guide and the model, on all of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data, bound_arguments
from vi_reparam.backend.ops import Args, Array, Kwargs
from vi_reparam.backend.tracer import Record
from vi_reparam.posterior.sites import Scored, Sites, describe
from vi_reparam.sites.totals import masked, masked_as, total_log_prob

Records = dict[str, Record]


class Pair(NamedTuple):
    """A model and its guide, run on all of the data: the subsampling of plates is switched off."""

    backend: Backend
    model: Callable[..., Any]
    guide: Callable[..., Any]

    def run_guide(self, key: Any, args: Any, kwargs: Any, params: Any) -> Records:
        """The guide's sites, drawn."""
        return self.backend.tracer.run(self.guide, args, kwargs, key, params=params, full_data=True, alone=True)

    def run_model(self, key: Any, args: Any, kwargs: Any, params: Any, **options: Any) -> Records:
        """The model's sites."""
        run = self.backend.tracer.run
        return run(self.model, args, kwargs, key, params=params, full_data=True, alone=True, **options)

    def run(self, key: Any, args: Any, kwargs: Any, params: Any) -> tuple[Records, Records]:
        """The model's sites at the guide's draws, and the guide's."""
        guide_key, model_key = self.backend.ops.split(key, 2)
        drawn = self.run_guide(guide_key, args, kwargs, params)
        values = {name: r.value for name, r in drawn.items() if r.is_latent}
        return self.run_model(model_key, args, kwargs, params, values=values), drawn

    def score(self, key: Any, args: Any, kwargs: Any, params: Any) -> Scored:
        """One draw with its log densities."""
        records, drawn = self.run(key, args, kwargs, params)
        return Scored(
            latents={name: r.value for name, r in records.items() if r.is_latent},
            deterministics={name: r.value for name, r in records.items() if r.kind == "deterministic"},
            log_likelihood={name: masked(r, r.log_prob()) for name, r in records.items() if r.is_data},
            log_prior=lambda: {name: masked(r, r.log_prob()) for name, r in records.items() if r.is_latent},
            log_p=total_log_prob(self.backend, records, drawn),
            log_q=total_log_prob(self.backend, masked_as(self.backend.host, drawn, records)),
        )


class Scorer:
    """Draws from the guide and scores, many draws at once where the programs allow it.

    Args:
        params: constrained values of the parameters of model and guide.
        args: positional arguments of the fit; `kwargs`: keyword arguments.
        copies: how many runs of the model a draw of the guide holds; one unless given.

    Attributes:
        sites: the form of both's sites.
        data: the fit's arguments.
        numbers: that a draw with its score holds, about.
        at_once: whether many draws are made at once; else the programs read values in Python.

    Raises:
        ArgumentError: if a parameter is missing.
        SiteError: if guide and model do not have the same latent sites, in the same shapes.
    """

    def __init__(
        self,
        backend: Backend,
        model: Callable,
        guide: Callable,
        params: Mapping,
        args: Args,
        kwargs: Kwargs,
        copies: Callable[[Mapping], int] | None = None,
    ) -> None:
        self.backend = backend
        self.pair = Pair(backend, model, guide)
        self.params = backend.ops.tree_map(self._array, dict(params))
        self._first = args, kwargs, dict(self.params)
        self.data, self.sites, self._mark = self._look()
        self.copies = 1 if copies is None else copies(self.params)
        self.numbers = self.sites.scalars * self.copies

        def arrays(*inputs: Any) -> tuple:
            scored = self.pair.score(*inputs)
            return tuple(scored._replace(log_prior=scored.log_prior()))

        self.at_once = backend.engine.runs_at_once(arrays, self.data, self.params)

    def _look(self) -> tuple[Data, Sites, Any]:
        """The arguments, the sites, and what tells these programs from others: their form, or their density."""
        (args, kwargs, params), backend = self._first, self.backend
        found: list[tuple[Sites, Any]] = []

        def look(params: Any, *args: Any, **kwargs: Any) -> Any:
            both = self.pair.run(backend.ops.key(0), args, kwargs, params)
            total = total_log_prob(backend, *both)
            known = backend.ops.concrete(total)
            density = None if known is None else backend.ops.to_numpy(known).tobytes()
            found.append((describe(backend.host, *both), density))
            return total

        data = probed(backend, look, args, kwargs, (params,), found)
        sites, density = found[-1]
        return data, sites, (data.form, density)

    def has_changed(self) -> bool:
        """Whether the programs are others than at the fit, since what they read beside their arguments is."""
        return self._look()[2] != self._mark

    def _array(self, value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic | float | int):
            return self.backend.engine.codec.restore(np.asarray(value), np.asarray(value).dtype.name)
        return value

    def run(self, pick: Callable[[Scored], Any], num_draws: int, key: Any, *, first: int = 0, times: int = 1) -> Any:
        """What `pick` takes from each of `num_draws` scored draws, stacked; equal functions compile once.

        Args:
            key: the i-th draw depends on this key and i alone, not on `num_draws`.
            first: the i of the first draw.
            times: how often so many, one after the other: one program, where more draws would be another one.

        Raises:
            One of the engine's `reads_values`: if `pick` reads a value in Python.
        """
        pair, ops = self.pair, self.backend.ops
        firsts = range(first, first + times * num_draws, num_draws)
        parts = [self.many(lambda *i: pick(pair.score(*i)), num_draws, key, name=pick, first=own) for own in firsts]
        return parts[0] if times == 1 else ops.tree_map(lambda *rows: ops.xp.concat(rows), *parts)

    def many(
        self, fn: Callable[..., Any], num: int, key: Any, *inputs: Any, name: Any, size: int = 0, first: int = 0
    ) -> Any:
        """``fn(key, args, kwargs, params, *inputs)`` of the fit's arguments for many keys, stacked.

        Args:
            name: equal for calls of the same function.
            size: numbers that a run holds beyond model and guide.
            first: which run is the first of these.
        """
        options = {"size": size + self.numbers, "name": name, "at_once": self.at_once, "first": first}
        return self.backend.engine.many(fn, self.data, key, num, self.params, *inputs, **options)

    def observed(self) -> dict[str, np.ndarray]:
        """The observed sites' values."""
        ops, pair = self.backend.ops, self.pair

        def values(args: Any, kwargs: Any, params: Any) -> dict[str, Array]:
            records, _ = pair.run(ops.key(0), args, kwargs, params)
            return {name: r.value for name, r in records.items() if r.is_data}

        found = self.backend.engine.call(values, self.data, self.params)
        return {name: np.asarray(ops.to_numpy(value)) for name, value in found.items()}

    def named_arrays(self, call: tuple[Args, Kwargs] | None = None) -> dict[str, np.ndarray]:
        """The arrays among these arguments, the fit's unless given, named after the model's signature."""
        codec, found = self.backend.engine.codec, {}
        args, kwargs = self.data.call if call is None else call
        for path, leaf in _leaves(bound_arguments(self.pair.model, args, dict(kwargs))):
            array = codec.array(leaf) if codec.pack(leaf) is None else None
            if array is not None and array.dtype.kind in "biufc":
                found["_".join(path)] = array
        return found


def copies_of(guided: Any) -> Callable[[Mapping], int] | None:
    """How many runs of the model a draw of its guide holds, where the guide says so."""
    return getattr(getattr(guided, "base_guide", None), "copies", None)


def probed(backend: Backend, look: Callable[..., Any], args: Args, kwargs: Kwargs, inputs: tuple, found: list) -> Data:
    """Arguments as the framework takes them, after `look`, of inputs and arguments, has once reported to `found`."""
    data = backend.engine.data(tuple(args), dict(kwargs), look, inputs=inputs, finite=False)
    if not found:  # the framework compiles nothing, and asked no one
        backend.tracer.shapes(lambda key: look(*inputs, *data.args, **data.kwargs))
    return data


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """The leaves of a tree of containers, each with its path."""
    if isinstance(tree, Mapping):
        parts = list(tree.items())
    elif hasattr(tree, "_fields"):
        parts = [(name, getattr(tree, name)) for name in tree._fields]
    elif isinstance(tree, list | tuple):
        parts = list(enumerate(tree))
    else:
        return [(path, tree)]
    return [leaf for name, part in parts for leaf in _leaves(part, (*path, str(name)))]
