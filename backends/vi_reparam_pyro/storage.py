"""Posteriors in files."""

from vi_reparam_pyro.posterior import Posterior

load = Posterior.load
