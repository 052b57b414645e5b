"""The posterior of a NumPyro model."""

from vi_reparam.posterior import posterior
from vi_reparam_numpyro.backend import backend


class Posterior(posterior.Posterior):
    """A fitted posterior of a NumPyro model."""

    backend = backend
