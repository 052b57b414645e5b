"""What the package of every backend exports, and what binds the workflow to a backend.

``from vi_reparam.api import *`` gives the names that all backends share. What knows the framework is bound to it: a
subclass of `Guided` with the backend as class attribute, and functions whose first argument is that class.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import vi_reparam
from vi_reparam import *  # noqa: F403  (the core's own names)
from vi_reparam.backend.disk_cache import cache, keep_if_asked
from vi_reparam.fit.batches import Batches, batches
from vi_reparam.fit.guided import Guided as Guided
from vi_reparam.fit.guided import guide
from vi_reparam.gaussians.bases import Blocks, Diagonal
from vi_reparam.guides import (
    SDE,
    AdaptiveMixture,
    Escalate,
    Flow,
    FullRank,
    GuideFamily,
    LowRank,
    MeanField,
    Mixture,
    NestedLaplace,
    Sites,
    Structured,
)
from vi_reparam.posterior.posterior import Posterior as Posterior
from vi_reparam.programs.student_t import StudentT
from vi_reparam.sde import MLP, Adams, Cosine, Linear, Ramp, UniformLogSNR, VarianceExploding, Window
from vi_reparam.study import Study
from vi_reparam.study.calibration import calibrate
from vi_reparam.study.compare import compare_estimators
from vi_reparam.study.comparison import Comparison
from vi_reparam.study.fits import compare_fits
from vi_reparam.study.guides import compare_guides, compare_sde
from vi_reparam.study.models import compare_models

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

__all__ = [
    "MLP",
    "SDE",
    "Adams",
    "AdaptiveMixture",
    "Batches",
    "Blocks",
    "Comparison",
    "Cosine",
    "Diagonal",
    "Escalate",
    "Flow",
    "FullRank",
    "GuideFamily",
    "Linear",
    "LowRank",
    "MeanField",
    "Mixture",
    "NestedLaplace",
    "Ramp",
    "Sites",
    "Structured",
    "StudentT",
    "Study",
    "UniformLogSNR",
    "VarianceExploding",
    "Window",
    "batches",
    "compare_models",
]
__all__ += vi_reparam.__all__
__all__.remove("backends")
__all__.remove("load")  # here the name of what reads a posterior


def bound(fn: Callable[Concatenate[C, P], R], first: C) -> Callable[P, R]:
    """A function with its first argument given; its name, signature and docstring are those of what is left."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return fn(first, *args, **kwargs)

    whole = inspect.signature(fn)
    call.__signature__ = whole.replace(parameters=list(whole.parameters.values())[1:])  # type: ignore[attr-defined]
    return call


def functions_of(guided: type[Guided]):  # the functions' own signatures are inferred
    """``guide``, ``compare_estimators``, ``compare_guides``, ``compare_sde``, ``compare_fits``, ``calibrate`` and
    ``cache`` for a backend's `Guided`.
    """
    keep_if_asked(guided.backend.engine, guided.backend.name)
    return (
        bound(guide, guided),
        bound(compare_estimators, guided),
        bound(compare_guides, guided),
        bound(compare_sde, guided),
        bound(compare_fits, guided),
        bound(calibrate, guided),
        bound(cache, guided),
    )
