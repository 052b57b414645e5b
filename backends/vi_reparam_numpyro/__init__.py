"""vi-reparam for NumPyro: give a model a guide, fit it, and see whether to trust it.

import vi_reparam_numpyro as vr

@vr.guide
def model(x, y=None): ...

posterior = model.fit(x, y=y)
print(posterior.summary())
"""

from vi_reparam import api
from vi_reparam.api import *  # noqa: F403  (the names that all backends share)
from vi_reparam_numpyro.backend import backend as _backend
from vi_reparam_numpyro.guides import build_guide
from vi_reparam_numpyro.host.distributions import FromSampler, VonMisesFisher, annotate
from vi_reparam_numpyro.host.handlers import estimate
from vi_reparam_numpyro.host.objectives import ELBO, IWELBO
from vi_reparam_numpyro.posterior import Posterior
from vi_reparam_numpyro.sampling import random
from vi_reparam_numpyro.sampling.fast_samplers import fast_samplers
from vi_reparam_numpyro.storage import load

host, ops = _backend.host, _backend.ops


class Guided(api.Guided):  # noqa: D101  (the docstring is inherited)
    __doc__ = api.Guided.__doc__
    backend, elbo, posterior_type = _backend, ELBO, Posterior
    estimate, build_guide = staticmethod(estimate), staticmethod(build_guide)


guide = api.bound(api.guide, Guided)
compare_estimators = api.bound(api.compare_estimators, Guided)
compare_guides = api.bound(api.compare_guides, Guided)
compare_sde = api.bound(api.compare_sde, Guided)

__all__ = [
    "ELBO",
    "IWELBO",
    "FromSampler",
    "Guided",
    "Posterior",
    "VonMisesFisher",
    "annotate",
    "compare_estimators",
    "compare_guides",
    "compare_sde",
    "estimate",
    "fast_samplers",
    "guide",
    "host",
    "load",
    "ops",
    "random",
]
__all__ += api.__all__
