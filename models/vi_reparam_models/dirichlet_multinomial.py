"""Dirichlet prior, categorical counts: the synthetic problem of the rejection-sampling paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vi_reparam.backend.host import Host
from vi_reparam.estimators import Implicit, Rejection, ScoreFunction
from vi_reparam_models.model import Exact, Model, Program, require_positive

# 100 draws among 100 categories with seed 0, as the authors' code makes them
# (blei-lab/ars-reparameterization, MIT licence).
# fmt: off
COUNTS = np.array([
    1, 1, 2, 3, 0, 1, 1, 2, 2, 2, 1, 2, 1, 2, 0, 0, 0, 2, 3, 3, 5, 1, 2, 2, 0,
    1, 0, 2, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 4, 1, 1, 0, 1, 0, 2, 2, 0, 1, 1, 3,
    0, 1, 2, 0, 0, 1, 2, 0, 0, 0, 0, 0, 2, 1, 1, 1, 0, 0, 2, 0, 4, 0, 2, 0, 2,
    0, 0, 1, 1, 0, 0, 1, 0, 0, 2, 0, 1, 0, 1, 2, 0, 0, 0, 4, 1, 0, 0, 0, 2, 0,
], dtype=np.float64)
# fmt: on
PRIOR = np.ones_like(COUNTS)


def _log_beta(a: np.ndarray) -> float:
    return math.fsum(map(math.lgamma, a)) - math.lgamma(float(a.sum()))


def dirichlet_multinomial(*, shape: float = 2.0) -> Model:
    """100 probabilities with a flat Dirichlet prior, and a Dirichlet guide that starts at `shape`.

    The log joint holds the prior's normalizer and no multinomial coefficient, as the authors'
    does: without a baseline the gradient's variance depends on such constants.

    Raises:
        ArgumentError: if `shape` is not a positive number.
    """
    require_positive("dirichlet_multinomial", "shape", shape)

    def program(host: Host) -> Program:
        def model(prior: Any, counts: Any = None) -> None:
            p = host.sample("p", host.dist.Dirichlet(host.array(prior)))
            if counts is not None:
                host.factor("counts", (host.array(counts) * host.xp.log(p)).sum(-1))

        return model

    def guide_program(host: Host) -> Program:
        def guide(prior: Any, counts: Any = None) -> None:
            start = host.array(np.full(len(COUNTS), float(shape)))
            concentration = host.param("shape", start, constraint=host.dist.constraints.positive)
            host.sample("p", host.dist.Dirichlet(concentration))

        return guide

    posterior = PRIOR + COUNTS
    unbased = tuple(Rejection(boost=boost, baseline=None) for boost in (1, 3, 10))
    based = tuple(Rejection(boost=boost, baseline="leave_one_out") for boost in (1, 3))
    return Model(
        name="dirichlet_multinomial",
        description="100 counts among 100 categories, whose posterior is exact",
        source="Naesseth et al. (2017), section 5.1; blei-lab/ars-reparameterization, seed 0",
        model=program,
        data=lambda: ((PRIOR,), {"counts": COUNTS}),
        guide=guide_program,
        entropy="analytic",
        estimators=(
            ScoreFunction(baseline=None),
            Rejection(boost=0, baseline=None, min_concentration=1.0),
            *unbased,
            Rejection(boost=0, baseline="leave_one_out", min_concentration=1.0),
            *based,
            Implicit(),
        ),
        fit_defaults={"num_steps": 2_000, "num_particles": 16, "learning_rate": 0.02},
        reference=Exact({"p": ("Dirichlet", {"concentration": posterior})}, _log_beta(posterior) - _log_beta(PRIOR)),
        focus="shape[0]",
        options={"shape": shape},
    )
