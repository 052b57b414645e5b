"""The backend-neutral core of vi-reparam: noise goes in, a draw comes out.

Import `vi_reparam_numpyro` or `vi_reparam_pyro` to use it; each re-exports what is here.
"""

from vi_reparam.backend.ops import Ops
from vi_reparam.backend.registry import backends, load, ops_of
from vi_reparam.draw import Branch, Draw
from vi_reparam.errors import ArgumentError, BackendError, GradientError, NonFiniteError, SiteError, ViReparamError
from vi_reparam.estimators import Auto, Estimator, Implicit, MeasureValued, Pathwise, Rejection, ScoreFunction
from vi_reparam.numerics.identities import implicit, surrogate
from vi_reparam.samplers import RejectionSampler

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Auto",
    "BackendError",
    "Branch",
    "Draw",
    "Estimator",
    "GradientError",
    "Implicit",
    "MeasureValued",
    "NonFiniteError",
    "Ops",
    "Pathwise",
    "Rejection",
    "RejectionSampler",
    "ScoreFunction",
    "SiteError",
    "ViReparamError",
    "backends",
    "implicit",
    "load",
    "ops_of",
    "surrogate",
]
