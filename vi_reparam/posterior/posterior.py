"""A fitted posterior: draws, figures, predictions, and a verdict on whether to trust it."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.fit.escalation import Attempt
from vi_reparam.gaussians.tails import CHOICES
from vi_reparam.guides import SDE
from vi_reparam.posterior import inference_data, plots, storage
from vi_reparam.posterior.sites import Scored, check_count
from vi_reparam.posterior.verdict import FAR, KHAT_USABLE, Figures, Verdict, judge, loss_drift
from vi_reparam.sde.latent import Steps
from vi_reparam.sde.solver import Adams

if TYPE_CHECKING:
    import pandas as pd
    from arviz import InferenceData
    from matplotlib.figure import Figure

Array = Any

NUM_WEIGHTS = 20_000
NUM_EXPECTATION = 4_000
MIN_WEIGHTS = 1_000
WEIGHT_BUDGET = 1e8  # scalars drawn and scored for the default number of weights
ROWS_PER_SITE = 12
LARGEST_TAIL = 1_000  # latents up to which k-hat can say something of the tails
TAIL_SEED = 1  # not that of the figures, which judge the choice
GOOD_TAIL = 0.45
PRICE_OF_TAIL = 0.02
MAX_ROWS = 60
NUM_LOOKED_AT = 20


@dataclass(frozen=True)
class Summary:
    """A posterior's table and verdict.

    Attributes:
        table: a row a scalar: mean, sd and highest-density interval.
        verdict: whether to trust it.
        num_hidden: by site, how many scalars have no row.
        tried: what `Escalate` tried, a line a family; empty where one family was asked for.
    """

    table: pd.DataFrame
    verdict: Verdict
    num_hidden: dict[str, int]
    tried: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [self.table.to_string()]
        if self.num_hidden:
            sites = ", ".join(f"{name} {count:,}" for name, count in self.num_hidden.items())
            parts.append(f"... {sum(self.num_hidden.values()):,} more rows not shown ({sites})")
        return "\n".join([*parts, *self.tried, str(self.verdict)])


@dataclass(frozen=True)
class _Expect:
    """Applies a function to a draw; equal for equal functions, so that it compiles once."""

    fn: Callable

    def __call__(self, scored: Scored) -> tuple[Any, Array]:
        return self.fn({**scored.latents, **scored.deterministics}), scored.log_p - scored.log_q


def _values(scored: Scored) -> dict[str, Array]:
    return {**scored.latents, **scored.deterministics}


def _weighted(scored: Scored) -> tuple[dict[str, Array], Array]:
    return _values(scored), scored.log_p - scored.log_q


def _densities(scored: Scored) -> tuple[Array, Array, dict[str, Array]]:
    # the table's and the picture's values come along: one compilation serves all
    heads = {}
    for name, value in _values(scored).items():
        flat = value.reshape(-1)
        heads[name] = flat if flat.shape[0] <= ROWS_PER_SITE else flat[: ROWS_PER_SITE - 2]
    return scored.log_p, scored.log_q, heads


class PosteriorBase(abc.ABC):
    """What a fit gives: the guide with its fitted parameters, and the data they were fitted to.

    Everything runs on all of the data: the subsampling of plates is switched off. The i-th draw
    depends on the seed and on i only.

    Args:
        guided: has `.model` and `.guide` (programs of the backend) and `.name`.
        params: constrained values of the param sites of both.
        args: positional arguments of the fit.
        kwargs: keyword arguments of the fit.
        losses: estimates of the negative ELBO, shape ``[num_steps]``, in nats.
        seed: the fit's seed, an int or a key.
        record: plain facts about the fit that JSON can hold.

    Raises:
        ArgumentError: a parameter is missing.
        SiteError: guide and model do not have the same latent sites, in the same shapes.
    """

    def __init__(
        self, guided: Any, params: dict, *, args: tuple, kwargs: dict, losses: Any, seed: Any, record: dict
    ) -> None:
        self.guided = guided
        self.params = dict(params)
        self.args, self.kwargs = tuple(args), dict(kwargs)
        self.losses = np.asarray(losses)
        self.seed = seed
        self.record = dict(record)
        self.scorer = self.make_scorer()
        self._scorers: dict[Any, Any] = {}

    # what a backend adds

    array_functions: str
    """Where a backend's array functions are, for advice."""

    needs_values: tuple[type[Exception], ...]
    """What is raised where a program reads a draw's value in Python."""

    @abc.abstractmethod
    def make_scorer(self, guide: Any = None) -> Any:
        """The scorer of model and guide: `run`, `sites`, `observed`, `named_arrays`.

        Args:
            guide: another guide that takes the same parameters; the fitted one unless given.
        """

    @abc.abstractmethod
    def predictive(self, args: tuple, kwargs: dict, **options: Any) -> dict[str, Array]:
        """As `predict`, with checked options."""

    @staticmethod
    @abc.abstractmethod
    def key_of(seed: Any) -> Any:
        """A key of a seed.

        Raises:
            ArgumentError: if it is none.
        """

    @staticmethod
    @abc.abstractmethod
    def epsilon() -> float:
        """The default precision."""

    @staticmethod
    @abc.abstractmethod
    def tree_map(fn: Callable, tree: Any) -> Any:
        """`fn` at every leaf of a tree."""

    @staticmethod
    @abc.abstractmethod
    def codec() -> storage.Codec:
        """How the backend's own values are stored."""

    # what is the same in all

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
        num_draws, scorer = check_count("num_draws", num_draws), self.scorer
        options = {"solver": solver, "order": order, "num_steps": num_steps, "tau": tau}
        if any(value is not None for value in options.values()):
            scorer = self._scorer_of(options, with_weights)
        if not with_weights:
            return scorer.run(_values, num_draws, self.key_of(seed))
        values, log_weights = scorer.run(_weighted, num_draws, self.key_of(seed))
        return values, np.asarray(log_weights, dtype=np.float64)

    def _scorer_of(self, options: dict[str, Any], with_weights: bool) -> Any:
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
        if steps not in self._scorers:
            self._scorers[steps] = self.make_scorer(self.guided.base_guide.with_steps(steps))
        return self._scorers[steps]

    @property
    def default_num_weights(self) -> int:
        """How many log weights the figures rest on: 20,000, fewer where a draw is very large."""
        return int(np.clip(WEIGHT_BUDGET / max(self.scorer.sites.scalars, 1), MIN_WEIGHTS, NUM_WEIGHTS))

    @cached_property
    def _first(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        return self._score(self.default_num_weights, 0)

    def fit_tail(self) -> None:
        """Widen the guide's tails as far as usable importance weights ask for, at no price worth speaking of.

        The smallest h of `tails.CHOICES` with a good k-hat, or else that of the smallest k-hat; never
        one that lowers the ELBO by more than a few hundredths of a nat.
        """
        names = [name for name in self.params if name.endswith("_tail")]
        if len(names) != 1 or sum(s.size for s in self.scorer.sites.latents.values()) > LARGEST_TAIL:
            return
        tried: list[tuple[float, float, float]] = []
        for h in CHOICES:
            self._set_tail(names[0], h)
            weights = np.subtract(*self._score(self.default_num_weights, TAIL_SEED)[:2])
            if not np.isfinite(weights).all():
                continue
            khat = inference_data.pareto_smooth(weights, 0.0)[1]
            tried.append((h, khat, float(weights.mean())))
            if khat < GOOD_TAIL:
                break
        fair = [t for t in tried if t[2] > tried[0][2] - PRICE_OF_TAIL]
        self._set_tail(names[0], min(fair, key=lambda t: max(t[1], GOOD_TAIL))[0] if fair else 0.0)
        self.record["tail"] = float(np.asarray(self.params[names[0]]))

    def _set_tail(self, name: str, h: float) -> None:
        value = self.params[name] * 0.0 + h
        self.params[name] = self.scorer.params[name] = value

    def _score(self, num_draws: int, seed: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        log_p, log_q, heads = self.scorer.run(_densities, num_draws, self.key_of(seed))
        heads = {name: np.asarray(value) for name, value in heads.items()}
        return np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64), heads

    @property
    def log_weights(self) -> np.ndarray:
        """log p - log q of the first draws of seed 0, in nats, shape ``[default_num_weights]``."""
        log_p, log_q, _ = self._first
        with np.errstate(invalid="ignore"):
            return log_p - log_q

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
        num_particles = check_count("num_particles", num_particles)
        if num_particles == self.default_num_weights and isinstance(seed, int) and seed == 0:
            return _mean_and_error(self.log_weights)
        log_p, log_q, _ = self._score(num_particles, seed)
        with np.errstate(invalid="ignore"):
            return _mean_and_error(log_p - log_q)

    @cached_property
    def _smoothed(self) -> tuple[np.ndarray, float]:
        log_p, log_q, _ = self._first
        largest = max(np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in (log_p, log_q))
        rounding = 16 * self.epsilon() * float(largest)
        return inference_data.pareto_smooth(self.log_weights, rounding)

    @property
    def khat(self) -> float:
        """Pareto shape of the log weights' tail: below 0.5 good, from 0.7 on not to be trusted.

        0 where the weights are all equal up to rounding; NaN where a log weight is NaN.
        """
        return self._smoothed[1]

    def log_evidence(self) -> tuple[float, float]:
        """Log of the model's evidence by Pareto-smoothed importance sampling from the guide.

        Returns:
            (value, standard error), in nats; the error by the delta method, and too small where
            `khat` is 0.7 or above. NaN where a log weight is NaN.
        """
        smoothed, khat = self._smoothed
        if np.isnan(khat) or not np.isfinite(smoothed).any():
            value = float("nan") if np.isnan(khat) else float("-inf")
            return value, float("nan")
        largest = smoothed.max()
        mean, error = _mean_and_error(np.exp(smoothed - largest))
        return float(largest + np.log(mean)), error / mean

    def expectation(
        self, fn: Callable[[dict], Any], num_draws: int = NUM_EXPECTATION, seed: Any = 0, *, weighted: bool = False
    ) -> tuple[Any, Any]:
        """The posterior mean of a function of one draw.

        Args:
            fn: function of the backend's arrays, of a dict with one value a site; returns an array or a tree of them.
                The same function object compiles once.
            num_draws: how many.
            seed: int, or what the backend takes for a key.
            weighted: whether to correct the guide by Pareto-smoothed importance weights.

        Returns:
            (mean, Monte Carlo standard error), each in the form of what `fn` returns.

        Raises:
            ArgumentError: `fn` reads values in Python, or the weights of a weighted mean are not finite.
        """
        num_draws = check_count("num_draws", num_draws)
        try:
            values, log_weights = self.scorer.run(_Expect(fn), num_draws, self.key_of(seed))
        except self.needs_values as error:
            raise ArgumentError(
                f"fn reads values in Python; write it with {self.array_functions}, for one draw at a time"
            ) from error
        values = self.tree_map(lambda x: np.asarray(x, dtype=np.float64), values)
        if weighted:
            smoothed, khat = inference_data.pareto_smooth(np.asarray(log_weights))
            if np.isnan(khat) or not np.isfinite(smoothed).any():
                raise ArgumentError("log weights are NaN or infinite; see .verdict, or pass weighted=False")
            weights = np.exp(smoothed - smoothed.max())
            pairs = self.tree_map(lambda x: _weighted_mean_and_error(x, weights / weights.sum()), values)
        else:
            pairs = self.tree_map(_mean_and_error_of_rows, values)
        return self.tree_map(lambda pair: pair.mean, pairs), self.tree_map(lambda pair: pair.error, pairs)

    def predict(
        self,
        *args: Any,
        num_draws: int = 1_000,
        seed: Any = 0,
        return_sites: Collection[str] | None = None,
        fresh_sites: Collection[str] = (),
        **kwargs: Any,
    ) -> dict[str, Array]:
        """Posterior predictive draws of the observed sites.

        A site that is observed in the given arguments is drawn afresh. Latents come from the guide;
        those in a plate that has another size than in the fit (new groups) are drawn from the
        model given the others.

        Args:
            *args: positional arguments of the model; with none at all, those of the fit.
            num_draws: how many.
            seed: int, or what the backend takes for a key.
            return_sites: names of sites to return instead, deterministic and latent ones included.
            fresh_sites: latents to draw from the model though their shape fits (new groups, as
                many as before).
            **kwargs: keyword arguments of the model.

        Returns:
            Arrays of shape ``[num_draws, ...]`` by site.

        Raises:
            ArgumentError: an option names an unknown site.
            SiteError: a latent has another shape for these inputs, and no plate explains it.
        """
        if not args and not kwargs:
            args, kwargs = self.args, self.kwargs
        return self.predictive(
            args,
            kwargs,
            num_draws=check_count("num_draws", num_draws),
            key=self.key_of(seed),
            return_sites=return_sites,
            fresh_sites=fresh_sites,
        )

    @cached_property
    def verdict(self) -> Verdict:
        """Whether to trust the posterior, with the figures and the reasons; `.grade` is the short form."""
        log_weights, sites = self.log_weights, self.scorer.sites
        elbo, elbo_error = self.elbo()
        log_evidence, log_evidence_error = self.log_evidence()
        outside = int(np.isneginf(log_weights).sum())
        figures = Figures(
            khat=self.khat,
            elbo=elbo,
            elbo_error=elbo_error,
            log_evidence=log_evidence,
            log_evidence_error=log_evidence_error,
            num_weights=len(log_weights),
            num_nan=int((~np.isfinite(log_weights)).sum()) - outside,
            num_outside=outside,
            num_latents=sum(site.size for site in sites.latents.values()),
            drift=loss_drift(self.losses.tolist()),
            num_nan_losses=int((~np.isfinite(self.losses)).sum()),
            is_point=sites.is_point,
            rivals=tuple(self.record.get("rivals") or ()),
            runaway=self._runaway(),
        )
        return judge(figures)

    def _runaway(self) -> tuple[str, ...]:
        """Latents with draws beyond `FAR`; looked for where the weights are no good."""
        if self.khat < KHAT_USABLE:
            return ()
        draws = self.draws(NUM_LOOKED_AT)
        near = {n: (np.abs(np.asarray(draws[n], dtype=np.float64)) < FAR).all() for n in self.scorer.sites.latents}
        return tuple(name for name, is_near in near.items() if not is_near)

    def summary(self, *, hdi_prob: float = 0.94) -> Summary:
        """The ArviZ table with the verdict, from the draws of `log_weights`; print it.

        Args:
            hdi_prob: probability of the highest-density interval.

        Returns:
            The summary; long sites have their first rows only, and it says so.
        """
        values, hidden = self.rows()
        arviz = inference_data.import_arviz()
        data = arviz.from_dict(posterior={str(i): value[None] for i, value in enumerate(values.values())})
        table = arviz.summary(data, kind="stats", hdi_prob=hdi_prob, round_to="none")
        table = table.loc[[str(i) for i in range(len(values))]]
        table.index = list(values)
        return Summary(table=_rounded(table), verdict=self.verdict, num_hidden=hidden, tried=self._tried_lines())

    @property
    def tried(self) -> list[dict[str, Any]]:
        """What `Escalate` tried, a dict a family: ELBO, k-hat, seconds, or why it was left out."""
        return list(self.record.get("tried") or [])

    @property
    def why(self) -> str:
        """Why `Escalate` ended with this family; empty where one family was asked for."""
        return str(self.record.get("why") or "")

    def _tried_lines(self) -> tuple[str, ...]:
        lines = []
        for a in self.tried:
            figures = a["note"]
            if not figures:
                bound = f"ELBO {a['elbo']:,.3f} ± {a['error']:.3f}"
                figures = f"{bound}, k-hat {a['khat']:.2f}, {a['steps']:,} steps, {a['seconds']:.1f} s"
            chosen = "*" if a["family"] == self.record["family"] else " "
            lines.append(f"{chosen} {a['family']}: {figures}")
        return (*lines, f"  {self.why}") if lines else ()

    def attempt(self, *, seconds: float) -> Attempt:
        """This fit's figures, for `Escalate`."""
        elbo, error = self.elbo()
        smoothed, khat = self._smoothed
        shift = float("nan")
        if np.isfinite(smoothed).any() and not np.isnan(khat):
            weights = np.exp(smoothed - smoothed.max())
            weights /= weights.sum()
            heads = np.concatenate(list(self._first[2].values()), axis=1)
            shift = _shift(heads[:, heads.std(axis=0) > 0.0], weights)
        gap = self.log_evidence()[0] - elbo
        steps = int(self.record["num_steps"])
        return Attempt(str(self.record["family"]), elbo, error, khat, gap, shift, steps, seconds)

    def rows(self) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The first scalars of each site, for tables and pictures.

        Returns:
            Draws by name (``"theta[3]"``), and by site how many scalars are left out.
        """
        sites, heads = self.scorer.sites, self._first[2]
        values, hidden = {}, {}
        for name, site in {**sites.latents, **sites.deterministics}.items():
            shown = min(heads[name].shape[1], MAX_ROWS - len(values))
            for i in range(shown):
                index = ", ".join(str(int(j)) for j in np.unravel_index(i, site.shape))
                values[f"{name}[{index}]" if site.shape else name] = heads[name][:, i]
            if site.size > shown:
                hidden[name] = site.size - shown
        return values, hidden

    def to_arviz(
        self,
        num_draws: int = 1_000,
        seed: Any = 0,
        *,
        log_likelihood: bool = True,
        posterior_predictive: bool = False,
    ) -> InferenceData:
        """The posterior as ArviZ's InferenceData: one chain, plates as dimensions.

        Args:
            num_draws: how many draws.
            seed: int, or what the backend takes for a key.
            log_likelihood: whether to store it element by element: as large as `num_draws` copies
                of the data.
            posterior_predictive: whether to add predictive draws of the data, as large again.

        Returns:
            posterior, sample_stats (lp, log_q, log_weight), log_likelihood, observed_data,
            constant_data and, if asked for, posterior_predictive.
        """
        num_draws = check_count("num_draws", num_draws)
        pick = inference_data.everything if log_likelihood else inference_data.without_likelihood
        scored = self.scorer.run(pick, num_draws, self.key_of(seed))
        predictive = self.predict(num_draws=num_draws, seed=seed) if posterior_predictive else None
        attrs = {"model": self.name, "verdict": self.verdict.line}
        return inference_data.to_inference_data(self.scorer, scored, predictive=predictive, attrs=attrs)

    def plot(self, path: str | os.PathLike | None = None) -> Figure:
        """Losses, log weights and the first marginals.

        Args:
            path: a picture file to write, its kind by its ending.

        Returns:
            The matplotlib figure.
        """
        figure = plots.posterior_figure(self)
        if path is not None:
            plots.write(figure, path)
        return figure

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the posterior with its data to one file, without pickle; `vr.load` reads it.

        Args:
            path: the file, replaced if it is there.

        Returns:
            The path.

        Raises:
            ArgumentError: an argument of the fit is neither array, number, text nor a container of these.
        """
        return storage.save(self, path)


@dataclass(frozen=True)
class _Pair:  # a leaf to tree_map
    mean: Any
    error: Any


def _mean_and_error(x: np.ndarray) -> tuple[float, float]:
    pair = _mean_and_error_of_rows(x)
    return float(pair.mean), float(pair.error)


def _mean_and_error_of_rows(x: np.ndarray) -> _Pair:
    with np.errstate(all="ignore"):
        if len(x) < 2:
            return _Pair(x.mean(axis=0), np.full(x.shape[1:], np.nan))
        return _Pair(x.mean(axis=0), x.std(axis=0, ddof=1) / np.sqrt(len(x)))


def _shift(x: np.ndarray, weights: np.ndarray) -> float:
    """The most that weights move a column's mean or log standard deviation, in its standard deviations."""
    mean = weights @ x
    spread = np.sqrt(weights @ (x - mean) ** 2)
    with np.errstate(all="ignore"):
        moved = np.abs(x.mean(axis=0) - mean) / spread, np.abs(np.log(x.std(axis=0) / spread))
    return float(np.max(moved, initial=0.0))


def _weighted_mean_and_error(x: np.ndarray, weights: np.ndarray) -> _Pair:
    weights = weights.reshape(-1, *[1] * (x.ndim - 1))
    mean = (weights * x).sum(axis=0)
    return _Pair(mean, np.sqrt((weights**2 * (x - mean) ** 2).sum(axis=0)))


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda x: float(f"{x:.3g}") if abs(x) < 100 else round(x, 1))
