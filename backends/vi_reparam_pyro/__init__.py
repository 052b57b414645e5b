"""vi-reparam for Pyro: give a model a guide, fit it, and see whether to trust it.

import vi_reparam_pyro as vr

@vr.guide
def model(x, y=None): ...

posterior = model.fit(x, y=y)
print(posterior.summary())
"""

from vi_reparam import (
    ArgumentError,
    Auto,
    BackendError,
    Branch,
    Draw,
    Estimator,
    GradientError,
    Implicit,
    MeasureValued,
    NonFiniteError,
    Ops,
    Pathwise,
    Rejection,
    RejectionSampler,
    ScoreFunction,
    SiteError,
    ViReparamError,
    implicit,
    ops_of,
    surrogate,
)
from vi_reparam.guides import SDE, Escalate, Flow, FullRank, GuideFamily, LowRank, MeanField, Sites
from vi_reparam.sde import (
    MLP,
    Adams,
    Blocks,
    Cosine,
    Diagonal,
    Linear,
    Mixture,
    Ramp,
    UniformLogSNR,
    VarianceExploding,
    Window,
)
from vi_reparam.study import Study
from vi_reparam.study.comparison import Comparison
from vi_reparam_pyro.compare import compare_estimators
from vi_reparam_pyro.guided import Guided, guide
from vi_reparam_pyro.host.distributions import FromSampler, TruncatedNormal, VonMisesFisher, annotate
from vi_reparam_pyro.host.handlers import estimate
from vi_reparam_pyro.host.objectives import ELBO, IWELBO
from vi_reparam_pyro.host.statements import host
from vi_reparam_pyro.ops.ops import ops
from vi_reparam_pyro.posterior import Posterior
from vi_reparam_pyro.sampling import random
from vi_reparam_pyro.storage import load
from vi_reparam_pyro.study import compare_guides, compare_sde

__all__ = [
    "ELBO",
    "IWELBO",
    "MLP",
    "SDE",
    "Adams",
    "ArgumentError",
    "Auto",
    "BackendError",
    "Blocks",
    "Branch",
    "Comparison",
    "Cosine",
    "Diagonal",
    "Draw",
    "Escalate",
    "Estimator",
    "Flow",
    "FromSampler",
    "FullRank",
    "GradientError",
    "GuideFamily",
    "Guided",
    "Implicit",
    "Linear",
    "LowRank",
    "MeanField",
    "MeasureValued",
    "Mixture",
    "NonFiniteError",
    "Ops",
    "Pathwise",
    "Posterior",
    "Ramp",
    "Rejection",
    "RejectionSampler",
    "ScoreFunction",
    "SiteError",
    "Sites",
    "Study",
    "TruncatedNormal",
    "UniformLogSNR",
    "VarianceExploding",
    "ViReparamError",
    "VonMisesFisher",
    "Window",
    "annotate",
    "compare_estimators",
    "compare_guides",
    "compare_sde",
    "estimate",
    "guide",
    "host",
    "implicit",
    "load",
    "ops",
    "ops_of",
    "random",
    "surrogate",
]
