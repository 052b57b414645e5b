"""Learned diffusions: schedules, exact exponential steps, stochastic Adams solvers, and weighted paths."""

from vi_reparam.gaussians.bases import Base, Blocks, Diagonal, DiagonalMixture, Full, LowRank
from vi_reparam.sde.network import MLP
from vi_reparam.sde.parameterizations import from_data, to_data
from vi_reparam.sde.path import Drifts, simulate
from vi_reparam.sde.schedules import Cosine, Linear, Schedule, UniformLogSNR, VarianceExploding, VariancePreserving
from vi_reparam.sde.solver import Adams, sample
from vi_reparam.sde.tau import Constant, Ramp, Tau, Window, as_tau
from vi_reparam.sde.transition import exact_step, noise_variance, noising
from vi_reparam.sde.variances import kernel_variances

__all__ = [
    "MLP",
    "Adams",
    "Base",
    "Blocks",
    "Constant",
    "Cosine",
    "Diagonal",
    "DiagonalMixture",
    "Drifts",
    "Full",
    "Linear",
    "LowRank",
    "Ramp",
    "Schedule",
    "Tau",
    "UniformLogSNR",
    "VarianceExploding",
    "VariancePreserving",
    "Window",
    "as_tau",
    "exact_step",
    "from_data",
    "kernel_variances",
    "noise_variance",
    "noising",
    "sample",
    "simulate",
    "to_data",
]
