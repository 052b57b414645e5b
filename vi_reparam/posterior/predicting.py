"""What a posterior says of other data: the part of `Posterior` that predicts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vi_reparam.backend.ops import Array
from vi_reparam.errors import ArgumentError
from vi_reparam.posterior import streams
from vi_reparam.posterior.predict import Prediction
from vi_reparam.posterior.sites import check_count

if TYPE_CHECKING:
    import numpy as np

    from vi_reparam.posterior.scorer import Scorer

CHUNK = 100


class Predicting:
    """Predictions of new data, and their log likelihood."""

    backend: Any
    scorer: Scorer
    args: tuple
    kwargs: dict[str, Any]

    def _prediction(self, args: tuple, kwargs: dict, *options: Any, log_likelihood: bool = False) -> Prediction:
        """With no inputs at all, those of the fit."""
        if not args and not kwargs:
            args, kwargs = self.args, self.kwargs
        return Prediction(self.scorer, args, kwargs, *options, log_likelihood=log_likelihood)

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
        num_draws, key = check_count("num_draws", num_draws), self.backend.engine.key(seed)
        return self._prediction(args, kwargs, return_sites, fresh_sites).draws(num_draws, key)

    def predict_in_chunks(
        self,
        *args: Any,
        num_draws: int = 1_000,
        chunk_size: int = CHUNK,
        seed: Any = 0,
        return_sites: Collection[str] | None = None,
        fresh_sites: Collection[str] = (),
        **kwargs: Any,
    ) -> Iterator[dict[str, np.ndarray]]:
        """The draws of `predict`, a few at a time, where all of them would not fit into memory.

        Args:
            *args: as in `predict`, like all that is not named here.
            chunk_size: how many draws at a time; a compiled program is made for each size.
            **kwargs: as in `predict`.

        Returns:
            An iterator of dicts of NumPy arrays by site, shape ``[chunk_size, ...]``; the last may be shorter.
        """
        num_draws, chunk_size = check_count("num_draws", num_draws), check_count("chunk_size", chunk_size)
        prediction = self._prediction(args, kwargs, return_sites, fresh_sites)
        return prediction.chunks(num_draws, self.backend.engine.key(seed), chunk_size)

    def predict_to(
        self,
        path: str | os.PathLike,
        *args: Any,
        num_draws: int = 1_000,
        chunk_size: int = CHUNK,
        seed: Any = 0,
        return_sites: Collection[str] | None = None,
        fresh_sites: Collection[str] = (),
        **kwargs: Any,
    ) -> Path:
        """Writes the draws of `predict` to a file as they are made, so that memory holds a few of them.

        Args:
            path: a netCDF file, or a zarr store where it ends in ``.zarr`` (which needs zarr); replaced if it is there.
                ``xarray.open_dataset(path, group="predictions")`` reads the one, ``xarray.open_zarr(path,
                group="predictions", consolidated=False)`` the other.
            *args: as in `predict_in_chunks`, like all that is not named here.
            **kwargs: as in `predict`.

        Returns:
            The path.

        Raises:
            ArgumentError: the file cannot be written, or zarr is missing.
        """
        num_draws, chunk_size = check_count("num_draws", num_draws), check_count("chunk_size", chunk_size)
        prediction = self._prediction(args, kwargs, return_sites, fresh_sites)
        chunks = prediction.chunks(num_draws, self.backend.engine.key(seed), chunk_size)
        return streams.write(Path(path), prediction.sites, chunks, num_draws, chunk_size)

    def log_likelihood(self, *args: Any, num_draws: int = 1_000, seed: Any = 0, **kwargs: Any) -> dict[str, Array]:
        """The log likelihood of data, element by element, under draws of the posterior.

        Args:
            *args: positional arguments of the model, with the data, old or new; with none at all, those of the fit.
            num_draws: how many; the i-th is of the same latents as the i-th of `draws` and `predict`.
            seed: int, or what the backend takes for a key.
            **kwargs: keyword arguments of the model.

        Returns:
            Arrays of shape ``[num_draws, ...]`` by observed site, in nats.

        Raises:
            ArgumentError: none of these arguments is observed.
            SiteError: a latent has another shape for these inputs, and no plate explains it.
        """
        num_draws, key = check_count("num_draws", num_draws), self.backend.engine.key(seed)
        scored = self._prediction(args, kwargs, log_likelihood=True)
        if not scored.sites:
            raise ArgumentError("log_likelihood: nothing is observed in these arguments: give the outcome too")
        return scored.draws(num_draws, key)
