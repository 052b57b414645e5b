"""Rejection samplers as data."""

from vi_reparam.samplers.base import RejectionSampler, accepted_noise
from vi_reparam.samplers.gamma import LogGamma

__all__ = ["LogGamma", "RejectionSampler", "accepted_noise"]
