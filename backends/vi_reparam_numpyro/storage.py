"""Posteriors in files."""

from vi_reparam_numpyro.posterior import Posterior

load = Posterior.load
