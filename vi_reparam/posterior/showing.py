"""What people see of a posterior: the part of `Posterior` that makes tables, pictures and exports."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.checks import check_choice
from vi_reparam.errors import ArgumentError
from vi_reparam.posterior import page, pictures, plots
from vi_reparam.posterior.inference_data import Coords, Dims, Export, dims_of, export
from vi_reparam.posterior.summary import Summary, first_rows, summarize

if TYPE_CHECKING:
    from arviz import InferenceData
    from matplotlib.figure import Figure

    from vi_reparam.posterior.scorer import Scorer
    from vi_reparam.posterior.weights import Weights


KINDS = {
    "fit": plots.posterior_figure,
    "forest": pictures.forest_figure,
    "pair": pictures.pair_figure,
    "predictive": pictures.predictive_figure,
    "ranks": pictures.rank_figure,
    "tried": pictures.tried_figure,
}
"""What `plot` draws."""


class Showing:
    """Tables, pictures, a report, and ArviZ's groups."""

    scorer: Scorer
    record: dict[str, Any]
    _first: tuple[Weights, dict[str, np.ndarray]]

    def summary(self, *, hdi_prob: float = 0.94) -> Summary:
        """The ArviZ table with the verdict, from the draws of `log_weights`; print it.

        Args:
            hdi_prob: probability of the highest-density interval.

        Returns:
            The summary; long sites have their first rows only, and it says so.
        """
        return summarize(self, hdi_prob)

    @property
    def tried(self) -> list[dict[str, Any]]:
        """What `Escalate` tried, a dict a family: ELBO, k-hat, seconds, or why it was left out."""
        return list(self.record.get("tried") or [])

    @property
    def why(self) -> str:
        """Why `Escalate` ended with this family; empty where one family was asked for."""
        return str(self.record.get("why") or "")

    def rows(self) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The first scalars of each site, for tables and pictures.

        Returns:
            Draws by name (``"theta[3]"``), and by site how many scalars are left out.
        """
        return first_rows(self.scorer.sites, self._first[1])

    @property
    def dims(self) -> dict[str, list[str]]:
        """Names of the dimensions of sites in plates, for ``az.from_pyro(mcmc, dims=posterior.dims)``."""
        sites = self.scorer.sites
        return dims_of({**sites.latents, **sites.deterministics, **sites.observed})

    def to_arviz(
        self,
        num_draws: int = 1_000,
        seed: Any = 0,
        *,
        num_chains: int = 1,
        log_likelihood: bool = True,
        log_prior: bool = False,
        prior: bool | int = False,
        posterior_predictive: bool = False,
        predictions: Any = None,
        resample: bool | None = None,
        dims: Dims | None = None,
        coords: Coords | None = None,
        pred_dims: Dims | None = None,
        pred_coords: Coords | None = None,
    ) -> InferenceData:
        """The posterior as ArviZ's InferenceData (with ArviZ 1.x: xarray's DataTree).

        Dimensions have the names of their plates, as ``az.from_numpyro`` gives them; others are
        ``"theta_dim_0"``. Where the guide is off and importance weights can tell by how much (k-hat below 0.7), the
        draws are resampled by them, so that ``az.loo`` and the rest of ArviZ see the posterior and not the guide.

        Args:
            num_draws: how many draws of each chain.
            seed: int, or what the backend takes for a key.
            num_chains: how many chains to arrange the draws in; they are independent all the same.
            log_likelihood: whether to store it element by element: as large as `num_draws` copies
                of the data.
            log_prior: whether to store the same of the latents' priors.
            prior: whether to add draws of the model alone, `num_draws` or so many.
            posterior_predictive: whether to add predictive draws of the data, as large again.
            predictions: other inputs to predict at: the model's arguments as a dict, or a tuple of positional ones.
                If they have data, their log likelihood is added too.
            resample: whether to resample by Pareto-smoothed importance weights, from four times as many draws; None:
                where the verdict is not good and k-hat is below 0.7; above it a warning says that no weights help.
            dims: names of dimensions by site, as ArviZ takes them; the plates' for those left out.
            coords: labels by dimension; numbers from 0 for those left out.
            pred_dims: as `dims`, of what belongs to `predictions`; `dims` where it is left out.
            pred_coords: as `coords`, of the same.

        Returns:
            posterior, sample_stats (lp, log_q, log_weight, weight), log_likelihood, observed_data, constant_data;
            if asked for, log_prior, prior, prior_predictive, posterior_predictive, predictions,
            predictions_log_likelihood and predictions_constant_data.

        Raises:
            ArgumentError: for dims or coords that fit nothing, or inputs that cannot be used.
        """
        options = Export(
            num_draws,
            seed,
            num_chains,
            log_likelihood,
            log_prior,
            prior,
            posterior_predictive,
            predictions,
            resample,
            dims or {},
            coords or {},
            pred_dims or {},
            pred_coords or {},
        )
        return export(self, options)

    @cached_property
    def prior_beside(self) -> dict[str, np.ndarray]:
        """Draws of the prior by row of `rows`, for pictures; empty where there are none."""
        return plots.prior_rows(self)

    def plot(self, path: str | os.PathLike | None = None, *, kind: str = "fit") -> Figure:
        """A picture: losses, log weights and the first marginals, the prior's beside them.

        Args:
            path: a picture file to write, its kind by its ending.
            kind: ``"fit"``; ``"forest"``: intervals of posterior and prior; ``"pair"``; ``"predictive"``: data beside
                predictions of them; ``"ranks"``: how importance weights lift the draws, flat where the guide is right;
                ``"tried"``: ELBO and k-hat of each family that was fitted.

        Returns:
            The matplotlib figure.

        Raises:
            ArgumentError: for another kind, or one that this posterior has nothing for.
        """
        check_choice("kind", kind, tuple(KINDS), "plot")
        figure = KINDS[kind](self)
        if figure is None:
            raise ArgumentError(f"plot(kind={kind!r}): this posterior has nothing to show in it; see plot()")
        if path is not None:
            plots.write(figure, path)
        return figure

    def report(self, path: str | os.PathLike, *, command: str | None = None) -> Path:
        """Writes a page that holds all there is to show: verdict, table, pictures, what was tried, and how it was made.

        Args:
            path: an .html file, which needs no other; replaced if it is there.
            command: the command that made the posterior, to be shown.

        Returns:
            The path.

        Raises:
            ArgumentError: if the file cannot be written.
        """
        return page.write(self, path, command=command)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()
