"""Rejection samplers as data."""

from vi_reparam.samplers.base import RejectionSampler, accepted_noise
from vi_reparam.samplers.gamma import LogGamma
from vi_reparam.samplers.primitive import Primitive
from vi_reparam.samplers.truncated_normal import TruncatedNormalOffset
from vi_reparam.samplers.von_mises import VonMisesDeviation
from vi_reparam.samplers.von_mises_fisher import PolarLogit

__all__ = [
    "LogGamma",
    "PolarLogit",
    "Primitive",
    "RejectionSampler",
    "TruncatedNormalOffset",
    "VonMisesDeviation",
    "accepted_noise",
]
