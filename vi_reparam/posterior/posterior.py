"""A fitted posterior: draws, figures, predictions, and a verdict on whether to trust it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from vi_reparam.backend.ops import Args
from vi_reparam.errors import ArgumentError, short
from vi_reparam.guides import SDE
from vi_reparam.posterior import bridge, evidence, modes, passes, storage, tail
from vi_reparam.posterior.attempt import Attempt
from vi_reparam.posterior.controls import controlled_mean_and_error, controls_of
from vi_reparam.posterior.passes import require_all_rows
from vi_reparam.posterior.picks import Expect, densities, values_of, with_densities, with_log_weight
from vi_reparam.posterior.predicting import Predicting
from vi_reparam.posterior.relabel import verdict_of
from vi_reparam.posterior.scorer import Scorer, copies_of
from vi_reparam.posterior.showing import Showing
from vi_reparam.posterior.sites import check_count
from vi_reparam.posterior.trusting import NUM_CHAIN_DRAWS, Trusting
from vi_reparam.posterior.update import updated
from vi_reparam.posterior.verdict import (
    KHAT_USABLE,
    RUNAWAY,
    Figures,
    Refinement,
    Surest,
    Verdict,
    judge,
    loss_drift,
    missed_share,
)
from vi_reparam.posterior.weights import Estimate, Weights, mean_and_error_of_rows, shifts, weighted_mean_and_error
from vi_reparam.sde.latent import Steps
from vi_reparam.sde.solver import Adams

NUM_WEIGHTS, MIN_WEIGHTS, NUM_COSTLY, NUM_ONE_BY_ONE, MORE = 20_000, 1_000, 4_000, 2_000, 4
NUM_EXPECTATION, NUM_LOOKED_AT, KEPT_NUMBERS = 4_000, 20, 20_000_000
WEIGHT_BUDGET, COSTLY_BUDGET = 1e8, 1e9  # scalars drawn and scored for the default number of weights


class Posterior(Predicting, Showing, Trusting):
    """What a fit gives: the guide with its fitted parameters, and the data they were fitted to.

    Everything runs on all of the data: the subsampling of plates is switched off. The i-th draw
    depends on the seed and on i only. Where programs are compiled, calls with the same number of draws compile once;
    networks that train in place get this posterior's weights for the while of a call.

    Args:
        guided: has `.model` and `.guide` (programs of the framework) and `.name`; its `.backend`, if it has one, is
            the posterior's.
        params: constrained values of the param sites of both.
        args: positional arguments of the fit.
        kwargs: keyword arguments of the fit.
        losses: estimates of the negative ELBO, shape ``[num_steps]``, in nats.
        seed: the fit's seed, an int or a key.
        record: plain facts about the fit that JSON can hold.

    Raises:
        ArgumentError: if a parameter is missing.
        SiteError: if guide and model do not have the same latent sites, in the same shapes.
    """

    backend: Any = None  # the guided model's, or the framework's where it has none
    _drawn: Any = ()  # one dict: whole latents of draws behind `_first`; none where these are many numbers
    stream: Any = None  # of a fit to batches, what reads them, as long as the process lives

    def __init__(
        self, guided: Any, params: dict, *, args: Args, kwargs: dict, losses: Any, seed: Any, record: dict
    ) -> None:
        self.guided = guided
        self.backend = getattr(guided, "backend", None) or type(self).backend
        self.params = dict(params)
        self.args, self.kwargs = tuple(args), dict(kwargs)
        self.losses = np.asarray(losses)
        self.seed, self.record = seed, dict(record)
        self.scorer = self._scorer(guided.guide)
        self._other_scorers: dict[Any, Scorer] = {}

    def __reduce__(self) -> Any:
        fields = {name: getattr(self, name) for name in (*storage.STORED, "losses")}
        if self.record.get("batches"):
            fields["first"] = self._first
        return storage.remade, (type(self), self.guided, fields)

    def _scorer(self, guide: Any) -> Scorer:
        given = self.params, self.args, self.kwargs, copies_of(self.guided)
        return Scorer(self.backend, self.guided.model, guide, *given)

    @classmethod
    def load(cls, path: str | os.PathLike, model: Any, *args: Any, **kwargs: Any) -> Self:
        """Reads a posterior that `save` wrote.

        Args:
            path: the file.
            model: the guided model that it was fitted with.
            args: the arguments of the fit, of a file without its data; `kwargs`: its keyword arguments.

        Returns:
            The posterior.

        Raises:
            ArgumentError: if there is no such file, it is not one of ours, or it is of another model.
        """
        return storage.load(path, model, cls, args, kwargs)

    @property
    def name(self) -> str:
        """The model's name."""
        return storage.name_of(self.guided)

    def __repr__(self) -> str:
        latents = ", ".join(f"{name}{list(site.shape)}" for name, site in self.scorer.sites.latents.items())
        return f"Posterior({self.name}: {latents})"

    def draws(
        self,
        num_draws: int = 1_000,
        seed: Any = 0,
        *,
        solver: Adams | None = None,
        order: int | None = None,
        num_steps: int | None = None,
        tau: Any = None,
        with_weights: bool = False,
    ) -> Any:
        """Independent draws of the latent and the deterministic sites.

        An `SDE` guide can be sampled with other steps than it was trained with; the ELBO stays that
        of the trained kernels.

        Args:
            num_draws: how many.
            seed: int, or what the backend takes for a key.
            solver: of an `SDE` guide: the steps, as in ``Adams(order=2, corrector=3)``.
            order: of the solver's predictor.
            num_steps: of a path: more or fewer than in training.
            tau: noise of the steps: 0 for none.
            with_weights: whether to return log weights too, which exist without a corrector and
                with noise at every step.

        Returns:
            Arrays of shape ``[num_draws, ...]`` by site; with weights a pair of these and an array of
            shape ``[num_draws]``.

        Raises:
            ArgumentError: for steps of a guide that takes none, or weights that do not exist.
        """
        num_draws, scorer = check_count("num_draws", num_draws, self.scorer.sites.scalars), self.scorer
        options = {"solver": solver, "order": order, "num_steps": num_steps, "tau": tau}
        if any(value is not None for value in options.values()):
            scorer = self._scorer_with(options, with_weights)
        if with_weights:
            require_all_rows(self, "draws(with_weights=True)")
        if not with_weights:
            return scorer.run(values_of, num_draws, self.backend.engine.key(seed))
        values, log_weights = scorer.run(with_log_weight, num_draws, self.backend.engine.key(seed))
        return values, self._float64(log_weights)

    def _scorer_with(self, options: dict[str, Any], with_weights: bool) -> Scorer:
        """A scorer that takes other steps; the same options compile once."""
        family = getattr(self.guided, "family", None)
        if not isinstance(family, SDE):
            given = ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)
            raise ArgumentError(f"draws({given}): only a guide of vr.SDE takes steps, and this is {family!r}")
        steps = Steps.of(family, **options)
        if with_weights and not steps.have_kernel(family.schedule):
            raise ArgumentError(
                f"draws(with_weights=True) with {steps!r}: a corrected step, and one without noise, has no density; "
                "use corrector=0 and tau above 0"
            )
        if steps not in self._other_scorers:
            self._other_scorers[steps] = self._scorer(self.guided.base_guide.with_steps(steps))
        return self._other_scorers[steps]

    @property
    def default_num_weights(self) -> int:
        """How many log weights the figures rest on: 20,000, fewer where a draw is very large or runs by itself."""
        rows = (self.record.get("batches") or {}).get("num_rows", 1)
        costly = self.scorer.copies > 1
        most = (NUM_COSTLY if costly else NUM_WEIGHTS) if self.scorer.at_once else NUM_ONE_BY_ONE
        budget = COSTLY_BUDGET if costly else WEIGHT_BUDGET
        return int(np.clip(budget / max(self.scorer.numbers, rows), MIN_WEIGHTS, most))

    @cached_property
    def _first(self) -> tuple[Weights, dict[str, np.ndarray]]:
        ops, num = self.backend.ops, self.default_num_weights
        found = self._score(num, 0, epsilon := float(ops.xp.finfo(ops.float_dtype()).eps))
        if found[0].are_few and self.scorer.copies > 1 and self.scorer.at_once:
            found = self._score(num, 0, epsilon, times=MORE)
        weights, heads, drawn = found
        self._drawn = [{name: value[: modes.NUM_PLACED] for name, value in part.items()} for part in drawn]
        return weights, heads

    def _score(self, num: int, seed: Any, epsilon: float = 0.0, times: int = 1) -> tuple[Weights, dict, list]:
        if self.record.get("batches"):
            return *passes.score(self, num, seed, epsilon), []
        pick = with_densities if num * self.scorer.sites.num_latents <= KEPT_NUMBERS else densities
        *drawn, log_p, log_q, heads = self.scorer.run(pick, num, self.backend.engine.key(seed), times=times)
        weights = Weights(self._float64(log_p), self._float64(log_q), epsilon)
        return weights, {name: self.backend.ops.to_numpy(value) for name, value in heads.items()}, drawn

    def _float64(self, x: Any) -> np.ndarray:
        return np.asarray(self.backend.ops.to_numpy(x), dtype=np.float64)

    def weights(self, num_draws: int, seed: Any) -> Weights:
        """Importance weights of so many draws of this seed."""
        return self._score(num_draws, seed)[0]

    def finish(self) -> None:
        """Set what importance weights decide: a mixture's weights (`modes.fit_weights`), tails (`tail.fit_tail`)."""
        modes.fit_weights(self)
        tail.fit_tail(self)

    def set_param(self, name: str, value: Any) -> None:
        """Give one parameter another value, before anything was computed with it."""
        self.params[name] = self.scorer.params[name] = value

    @property
    def log_weights(self) -> np.ndarray:
        """log p - log q of the first draws of seed 0, in nats, shape ``[default_num_weights]``."""
        return self._first[0].log

    def elbo(self, num_particles: int | None = None, seed: Any = 0) -> tuple[float, float]:
        """The evidence lower bound: the mean of the log weights.

        Args:
            num_particles: how many draws; None for those of `log_weights`.
            seed: int, or what the backend takes for a key.

        Returns:
            (value, standard error), in nats. A log weight of NaN makes both NaN.
        """
        if num_particles is None:
            num_particles = self.default_num_weights
        num_particles = check_count("num_particles", num_particles, 4)
        if not self.record.get("batches") and self.scorer.has_changed():
            warnings.warn(
                f"{self.name[:60]} is another model than at the fit: what it reads beside its arguments has changed, "
                "or it draws numbers of its own; this figure is of the model as it is now",
                stacklevel=2,
            )
        if num_particles == self.default_num_weights and isinstance(seed, int) and seed == 0:
            return self._first[0].elbo()
        return self.weights(num_particles, seed).elbo()

    @property
    def khat(self) -> float:
        """Pareto shape of the log weights' tail: below 0.5 good, from 0.7 on not to be trusted.

        0 where the weights are all equal up to rounding; NaN where a log weight is NaN.
        """
        return self._first[0].khat

    def log_evidence(
        self, method: str = "importance", *, num_draws: int = NUM_CHAIN_DRAWS, seed: Any = 0, progress: bool = False
    ) -> tuple[float, float]:
        """Log of the model's evidence, the integral of its joint density over all latents.

        Args:
            method: ``"importance"``: Pareto-smoothed importance sampling from the guide, by `log_weights`, at no
                further price. ``"bridge"``: bridge sampling between draws as `refine` makes them and a reference
                fitted to them; right also where k-hat is 0.7 or above, as far as the chains mix. ``"harmonic"``: the
                learned harmonic mean of the same draws.
            num_draws: for the last two, how many of the posterior to compare with as many of the reference.
            seed: int, or what the backend takes for a key; of the chains.
            progress: whether to show a bar for them.

        Returns:
            (value, standard error), in nats. Of importance sampling the error is by the delta method, and too small
            where `khat` is 0.7 or above. NaN where a log weight is NaN.

        Raises:
            ArgumentError: for an unknown method.
            SiteError: of the last two, for discrete or masked latents.
        """
        if method == "importance":
            return self._first[0].log_evidence()
        require_all_rows(self, f"log_evidence({method!r})")
        return bridge.by_chains(self, method, num_draws, seed, progress=progress)

    def expectation(
        self,
        fn: Callable[[dict], Any],
        num_draws: int = NUM_EXPECTATION,
        seed: Any = 0,
        *,
        weighted: bool = False,
        control: bool = False,
    ) -> tuple[Any, Any]:
        """The posterior mean of a function of one draw.

        Args:
            fn: function of the backend's arrays, of a dict with one value a site; returns an array or a tree of them.
                The same function object compiles once.
            num_draws: how many.
            seed: int, or what the backend takes for a key.
            weighted: whether to correct the guide by Pareto-smoothed importance weights.
            control: whether to take control variates too: functions whose posterior mean is 0, made of the gradient of
                log p, are fitted to `fn` and taken off. Where the posterior is about normal and `fn` smooth, the error
                is a tenth, or less, of that of weights alone. Implies `weighted`. Of each number the mean with the
                smaller error is given, with or without them.

        Returns:
            (mean, Monte Carlo standard error), each in the form of what `fn` returns.

        Raises:
            ArgumentError: `fn` reads values in Python, or the weights of a weighted mean are not finite.
            SiteError: of control variates, for discrete or masked latents.
        """
        if weighted or control:
            require_all_rows(self, "expectation(weighted=True)")
        if not callable(fn):
            raise ArgumentError(f"expectation({short(fn)}): expected a function of draws by site, as lambda z: z['mu']")
        num_draws = check_count("num_draws", num_draws)
        engine, tree_map = self.backend.engine, self.backend.ops.tree_map
        try:
            values, log_weights, latents = self.scorer.run(
                Expect(fn, with_latents=control), num_draws, engine.key(seed)
            )
        except engine.reads_values as error:
            raise ArgumentError(
                f"fn reads values in Python; write it with {engine.array_functions}, for one draw at a time"
            ) from error
        values = tree_map(self._float64, values)
        mean: Callable[[np.ndarray], Estimate] = mean_and_error_of_rows
        if weighted or control:
            log_weights = self._float64(log_weights)
            if "refined" in self.record:  # draws of the posterior itself
                log_weights = np.zeros(num_draws)
            weights = Weights(log_weights, np.zeros_like(log_weights))
            if not weights.are_usable:
                raise ArgumentError("log weights are NaN or infinite; see .verdict, or pass weighted=False")
            normalized = weights.normalized()
            mean = partial(weighted_mean_and_error, weights=normalized)
            if control:
                mean = partial(controlled_mean_and_error, weights=normalized, controls=controls_of(self, latents))
        pairs = tree_map(mean, values)
        return tree_map(lambda pair: pair.mean, pairs), tree_map(lambda pair: pair.error, pairs)

    @cached_property
    def verdict(self) -> Verdict:
        """Whether to trust the posterior, with the figures and the reasons; `.grade` is the short form."""
        if "relabelled" in self.record:
            return verdict_of(self.record["relabelled"])
        log_weights, sites = self.log_weights, self.scorer.sites
        outside = int(np.isneginf(log_weights).sum())
        figures = Figures(
            self.khat,
            *self._first[0].elbo(),
            *self.log_evidence(),
            *self._shifts,
            num_weights=len(log_weights),
            num_nan=int((~np.isfinite(log_weights)).sum()) - outside,
            num_outside=outside,
            num_latents=sites.num_latents,
            drift=loss_drift(self.losses.tolist()),
            num_nan_losses=int((~np.isfinite(self.losses)).sum()),
            points=self._points(),
            **modes.figures_of(self.record),
            runaway=self._runaway(),
            interrupted=str(self.record.get("interrupted") or ""),
            refined=Refinement.of(self.record),
            raw_evidence=self._first[0].raw_evidence,
            beyond=self._first[0].beyond,
            surest=Surest(**self.record["surest"]) if self.record.get("surest") else None,
        )
        return judge(figures)

    def _points(self) -> tuple[str, ...]:
        """Latents that the guide puts at one place; a Delta that depends on what is auxiliary has many."""
        heads = {name: self._first[1][name] for name in self.scorer.sites.deltas}
        return tuple(name for name, head in heads.items() if (head == head[:1]).all())

    def _runaway(self) -> tuple[str, ...]:
        """Latents with draws beyond `RUNAWAY`; looked for where the weights are no good."""
        known = self.record.get("surest")
        if self.khat < KHAT_USABLE or (known and known["khat"] < KHAT_USABLE):
            return ()
        draws = self.draws(NUM_LOOKED_AT)
        near = {n: (np.abs(self._float64(draws[n])) < RUNAWAY).all() for n in self.scorer.sites.latents}
        return tuple(name for name, is_near in near.items() if not is_near)

    @cached_property
    def _shifts(self) -> tuple[float, float]:
        """The most that the weights move a mean, in sds, and the logarithm of an sd, of the values that tables show."""
        pairs = [self.shifts_of(name) for name in self._first[1]]
        return float(np.max([m for m, _ in pairs], initial=0.0)), float(np.max([s for _, s in pairs], initial=0.0))

    def shifts_of(self, name: str) -> tuple[float, float]:
        """The same of one site; NaN where there are no weights."""
        weights, heads = self._first
        if not weights.are_usable:
            return float("nan"), float("nan")
        columns = heads[name]
        moved = shifts(columns[:, columns.std(axis=0) > 0.0], weights.normalized())
        return float(np.max(moved[0], initial=0.0)), float(np.max(moved[1], initial=0.0))

    def attempt(self, *, seconds: float) -> Attempt:
        """This fit's figures, for `Escalate`."""
        weights, moved = self._first[0], max(*self._shifts, *self.record.get("far", ()))
        elbo, error = weights.elbo()
        khat, gap = evidence.from_further_out(self.record, elbo) or (weights.khat, weights.log_evidence()[0] - elbo)
        steps, missed = int(self.record["num_steps"]), missed_share(self.record["rivals"])
        figures = (elbo, error, khat, gap, moved, missed, steps, seconds)
        more = {"gradients": int(self.record.get("gradients", 0)), "beyond": weights.beyond}
        size, sampled = self.scorer.sites.num_latents, self.record["objective"] == "importance sampling"
        return Attempt(str(self.record["family"]), *figures, num_latents=size, sampled=sampled, **more)

    def update(self, *args: Any, fresh_sites: Collection[str] = (), **kwargs: Any) -> Self:
        """The posterior given new data too: this guide is the prior of a new fit to them alone.

        Latents that new data bring along (in a plate of another size, or named) keep the model's prior. The guide must
        have a density: `MeanField`, `FullRank` or `LowRank`. What it misses of the first data is missed from then on.

        Args:
            *args: positional arguments of the model: the new data.
            fresh_sites: latents that belong to the new data though their shape is that of the old ones.
            **kwargs: keyword arguments of the model, and options of `fit` (``num_steps=``, ``seed=``, ...).

        Returns:
            A posterior by the same family. Its log evidence is that of the new data given the old ones.

        Raises:
            ArgumentError: for a guide without a density, an unknown site, or a support that new data move.
        """
        return updated(self, args, kwargs, {fresh_sites} if isinstance(fresh_sites, str) else set(fresh_sites))

    def save(self, path: str | os.PathLike, *, data: bool = True) -> Path:
        """Writes the posterior to one file, without pickle; `vr.load` reads it.

        Args:
            path: the file, replaced if it is there.
            data: whether to write the fit's arguments too; without them, `vr.load` is to be given them.

        Returns:
            The path.

        Raises:
            ArgumentError: an argument of the fit is neither array, number, text nor a container of these.
        """
        return storage.save(self, path, data=data)
