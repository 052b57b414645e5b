"""The posterior of a NumPyro model."""

from vi_reparam.posterior import posterior
from vi_reparam_numpyro.backend import backend


class Posterior(posterior.Posterior):
    __doc__ = posterior.Posterior.__doc__
    backend = backend
