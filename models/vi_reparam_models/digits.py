"""Poisson-gamma factorization of handwritten digits."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.host import Host
from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Implicit, Rejection, ScoreFunction
from vi_reparam_models import data
from vi_reparam_models.model import Model, Program, require_positive

NUM_IMAGES, NUM_PIXELS = 1_797, 64


def digits(*, num_factors: int = 16, batch_size: int | None = None) -> Model:
    """Counts of ink as Poisson(z w), with sparse gamma scores z and loadings w.

    Args:
        num_factors: columns of z.
        batch_size: images a step sees; all of them if None.

    Raises:
        ArgumentError: if an option is not a positive integer, or the batch is larger than the data.
    """
    require_positive("digits", "num_factors", num_factors, integer=True)
    if batch_size is not None:
        require_positive("digits", "batch_size", batch_size, integer=True)
        if batch_size > NUM_IMAGES:
            raise ArgumentError(f"model 'digits': batch_size={batch_size} given, there are {NUM_IMAGES} images")

    def program(host: Host) -> Program:
        def model(counts: Any = None) -> None:
            # Two plates a matrix: given the other matrix, its rows and its columns are independent.
            images = host.plate("images", NUM_IMAGES, dim=-2, subsample_size=batch_size)
            pixels = host.plate("pixels", NUM_PIXELS, dim=-1)
            with host.plate("loadings", num_factors, dim=-2), pixels:
                w = host.sample("w", host.dist.Gamma(0.3, 1.0))
            with images as rows, host.plate("factors", num_factors, dim=-1):
                z = host.sample("z", host.dist.Gamma(0.3, 0.3))
            with images, pixels:
                seen = None if counts is None else host.array(counts)[rows]
                host.sample("counts", host.dist.Poisson(z @ w), obs=seen)

        return model

    return Model(
        name="digits",
        description=f"Poisson-gamma factorization of {NUM_IMAGES:,} images with {NUM_PIXELS} pixels",
        source="Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, from scikit-learn",
        model=program,
        data=lambda: ((), {"counts": data.digits()}),
        estimators=(Implicit(), Rejection(), Rejection(baseline=None), ScoreFunction()),
        fit_defaults={"num_steps": 1_500, "num_particles": 1, "learning_rate": 0.05},
        options={"num_factors": num_factors, "batch_size": batch_size},
    )
