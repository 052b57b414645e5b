"""vi-reparam for NumPyro: give a model a guide, fit it, and see whether to trust it.

import vi_reparam_numpyro as vr

posterior = vr.guide(model).fit(x, y=y)
"""

from vi_reparam import api
from vi_reparam.api import *  # noqa: F403  (the names that all backends share)
from vi_reparam_numpyro.backend import backend as _backend
from vi_reparam_numpyro.host.distributions import FromSampler, VonMisesFisher, annotate
from vi_reparam_numpyro.host.handlers import estimate
from vi_reparam_numpyro.objectives import ELBO, IWELBO
from vi_reparam_numpyro.sampling import random
from vi_reparam_numpyro.sampling.fast_samplers import fast_samplers

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

__all__ = ["ELBO", "IWELBO", "FromSampler", "Guided", "Posterior", "VonMisesFisher", "annotate", "cache"]
__all__ += ["compare_estimators", "compare_guides", "compare_sde", "estimate", "fast_samplers", "guide", "host", "load"]
__all__ += ["calibrate", "compare_fits", "ops", "random"]
__all__ += api.__all__
