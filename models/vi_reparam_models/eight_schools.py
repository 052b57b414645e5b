"""Eight schools: partial pooling of the effects of coaching."""

from __future__ import annotations

from typing import Any

import numpy as np

from vi_reparam.backend.host import Host
from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Implicit, MeasureValued, Rejection, ScoreFunction
from vi_reparam_models.model import Model, Program

# Rubin (1981), "Estimation in parallel randomized experiments", table 1.
EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STANDARD_ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(*, centered: bool = False) -> Model:
    """Eight schools, non-centred unless asked otherwise.

    Raises:
        ArgumentError: if `centered` is not a bool.
    """
    if not isinstance(centered, bool):
        raise ArgumentError(f"model 'eight_schools': centered={centered!r} given, expected true or false")

    def program(host: Host) -> Program:
        def model(sigma: Any, y: Any = None) -> None:
            sigma = host.array(sigma)
            mu = host.sample("mu", host.dist.Normal(0.0, 5.0))
            tau = host.sample("tau", host.dist.HalfCauchy(5.0))
            with host.plate("schools", sigma.shape[0], dim=-1):
                if centered:
                    theta = host.sample("theta", host.dist.Normal(mu, tau))
                else:
                    theta = host.deterministic("theta", mu + tau * host.sample("eta", host.dist.Normal(0.0, 1.0)))
                host.sample("y", host.dist.Normal(theta, sigma), obs=None if y is None else host.array(y))

        return model

    return Model(
        name="eight_schools",
        description="partial pooling of eight coaching experiments",
        source="Rubin (1981), Estimation in parallel randomized experiments; priors of posteriordb",
        model=program,
        data=lambda: ((STANDARD_ERROR,), {"y": EFFECT}),
        estimators=(Implicit(), Rejection(), MeasureValued(), ScoreFunction()),
        fit_defaults={},
        options={"centered": centered},
    )
