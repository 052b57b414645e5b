"""Bayesian logistic regression on the breast cancer data."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.host import Host
from vi_reparam.estimators import Pathwise, ScoreFunction
from vi_reparam_models import data
from vi_reparam_models.model import Model, Program, require_positive


def breast_cancer(*, prior_scale: float = 1.0) -> Model:
    """Logistic regression with normal priors of scale `prior_scale` on standardized predictors.

    Raises:
        ArgumentError: if `prior_scale` is not a positive number.
    """
    require_positive("breast_cancer", "prior_scale", prior_scale)

    def program(host: Host) -> Program:
        def model(x: Any, y: Any = None) -> None:
            x = host.array(x)
            prior = host.dist.Normal(0.0, float(prior_scale))
            intercept = host.sample("intercept", prior)
            weights = host.sample("weights", prior.expand([x.shape[1]]).to_event(1))
            with host.plate("patients", x.shape[0], dim=-1):
                logits = intercept + x @ weights
                host.sample("y", host.dist.Bernoulli(logits=logits), obs=None if y is None else host.array(y))

        return model

    def load() -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, y = data.breast_cancer()
        return (x,), {"y": y}

    return Model(
        name="breast_cancer",
        description="logistic regression, 569 patients and 30 standardized predictors",
        source="Street et al. (1993), from scikit-learn",
        model=program,
        data=load,
        estimators=(Pathwise(), ScoreFunction()),
        fit_defaults={},
        options={"prior_scale": prior_scale},
    )
