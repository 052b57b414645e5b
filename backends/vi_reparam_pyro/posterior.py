"""The posterior of a Pyro model."""

from vi_reparam.posterior import posterior
from vi_reparam_pyro.backend import backend


class Posterior(posterior.Posterior):
    """A fitted posterior of a Pyro model."""

    backend = backend
