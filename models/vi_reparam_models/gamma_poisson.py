"""Gamma prior, Poisson counts: the posterior is a gamma."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vi_reparam.backend.host import Host
from vi_reparam.estimators import Implicit, Rejection, ScoreFunction
from vi_reparam_models.model import Exact, Model, Program, require_positive

# Deaths by horse kick in 200 Prussian corps-years: Bortkiewicz (1898), Das Gesetz der kleinen Zahlen,
# the ten corps of Fisher (1925), table 1: 109 years without a death, 65 with one, 22, 3 and 1.
HORSE_KICKS = np.repeat(np.arange(5.0), [109, 65, 22, 3, 1])


def gamma_poisson(*, concentration: float = 1.0, rate: float = 1.0) -> Model:
    """Poisson counts whose rate has a Gamma(concentration, rate) prior.

    Raises:
        ArgumentError: if an option is not a positive number.
    """
    require_positive("gamma_poisson", "concentration", concentration)
    require_positive("gamma_poisson", "rate", rate)
    total, size = float(HORSE_KICKS.sum()), len(HORSE_KICKS)
    a, b = concentration + total, rate + size
    log_evidence = (
        concentration * math.log(rate)
        - math.lgamma(concentration)
        + math.lgamma(a)
        - a * math.log(b)
        - sum(math.lgamma(count + 1.0) for count in HORSE_KICKS)
    )

    def program(host: Host) -> Program:
        def model(y: Any = None) -> None:
            lam = host.sample("lam", host.dist.Gamma(float(concentration), float(rate)))
            with host.plate("corps_years", size, dim=-1):
                host.sample("y", host.dist.Poisson(lam), obs=None if y is None else host.array(y))

        return model

    return Model(
        name="gamma_poisson",
        description="Poisson counts with a gamma prior, whose posterior is exact",
        source="Bortkiewicz (1898), deaths by horse kick, as in Fisher (1925)",
        model=program,
        data=lambda: ((), {"y": HORSE_KICKS}),
        estimators=(Implicit(), Rejection(), Rejection(baseline=None), ScoreFunction(), ScoreFunction(baseline=None)),
        fit_defaults={},
        reference=Exact({"lam": ("Gamma", {"concentration": a, "rate": b})}, log_evidence),
        options={"concentration": concentration, "rate": rate},
    )
