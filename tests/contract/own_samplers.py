"""Rejection samplers as a user would write them."""

import math

from vi_reparam import RejectionSampler, ops_of
from vi_reparam.numerics.identities import attach


class SkewNormal(RejectionSampler):
    """2 phi(z) Phi(alpha z), by thinning a normal: the noise is the draw up to its scale."""

    def transform(self, noise, alpha, scale):
        return scale * noise

    def log_proposal(self, value, alpha, scale):
        return -0.5 * (value / scale) ** 2 - ops_of(scale).xp.log(scale) - 0.5 * math.log(2 * math.pi)

    def log_target(self, value, alpha, scale):
        ops = ops_of(scale)
        return self.log_proposal(value, alpha, scale) + math.log(2.0) + ops.log_ndtr(alpha * value / scale)

    def log_bound(self, alpha, scale):
        return 0.0 * alpha + math.log(2.0)


class SlowExponential(RejectionSampler):
    """An exponential out of one of half its rate, with its implicit gradient."""

    noise = "uniform"

    def transform(self, noise, rate):
        return -2.0 * ops_of(rate).xp.log(noise) / rate

    def inverse(self, value, rate):
        return ops_of(rate).xp.exp(-0.5 * rate * value)

    def log_proposal(self, value, rate):
        return ops_of(rate).xp.log(0.5 * rate) - 0.5 * rate * value

    def log_target(self, value, rate):
        return ops_of(rate).xp.log(rate) - rate * value

    def log_bound(self, rate):
        return 0.0 * rate + math.log(2.0)

    def attach(self, value, rate):
        stop = ops_of(rate).stop_gradient
        return attach(stop(value), rate, -stop(value) / stop(rate))
