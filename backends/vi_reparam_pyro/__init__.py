"""vi-reparam for Pyro: give a model a guide, fit it, and see whether to trust it.

import vi_reparam_pyro as vr

posterior = vr.guide(model).fit(x, y=y)
"""

from vi_reparam import api
from vi_reparam.api import *  # noqa: F403  (the names that all backends share)
from vi_reparam_pyro.backend import backend as _backend
from vi_reparam_pyro.host.distributions import FromSampler, TruncatedNormal, VonMisesFisher, annotate
from vi_reparam_pyro.host.handlers import estimate
from vi_reparam_pyro.objectives import ELBO, IWELBO
from vi_reparam_pyro.sampling import random

host, ops = _backend.host, _backend.ops


class Posterior(api.Posterior):  # noqa: D101
    __doc__ = api.Posterior.__doc__
    backend = _backend


class Guided(api.Guided):  # noqa: D101  (the docstring is inherited)
    __doc__ = api.Guided.__doc__
    backend, elbo, posterior_type = _backend, ELBO, Posterior
    estimate = staticmethod(estimate)


guide, compare_estimators, compare_guides, compare_sde, compare_fits, calibrate, cache = api.functions_of(Guided)
load = Posterior.load

__all__ = ["ELBO", "IWELBO", "FromSampler", "Guided", "Posterior", "TruncatedNormal", "VonMisesFisher", "annotate"]
__all__ += ["cache", "compare_estimators", "compare_guides", "compare_sde", "estimate", "guide", "host", "load"]
__all__ += ["calibrate", "compare_fits", "ops", "random"]
__all__ += api.__all__
