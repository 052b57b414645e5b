"""A rejection sampler as data, and the masked loop that runs it."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

from vi_reparam.backend.ops import Array, Ops, Shape
from vi_reparam.errors import GradientError


class RejectionSampler(abc.ABC):
    """How to propose a value, and what the target density is. Subclass it for a sampler of your own.

    Every method works on batches: parameters arrive broadcast to the lanes' shape, noise with that shape followed by
    `noise_shape`. With the array functions of ``vi_reparam.ops_of(noise).xp`` it works in every backend.

    The acceptance-rejection gradient is right (Naesseth et al. 2017, section 3) if the support of the noise does not
    move with the parameters, and the density of the accepted noise vanishes at its edges.

    Attributes:
        noise: law of the raw noise, ``"normal"`` or ``"uniform"`` (on (0, 1]).
        noise_shape: trailing dimensions of the noise of one lane.
        event_dim: number of trailing dimensions of one value.
        max_rounds: proposals a lane may make; a lane that is never accepted becomes NaN.
        rounds: proposals of which a lane misses all less than once in 10^14, whatever the parameters: a GPU makes so
            many and asks no more. None where no such number is known: the loop then asks after each.
    """

    noise: ClassVar[str] = "normal"
    noise_shape: Shape = ()
    event_dim: int = 0
    max_rounds: int = 2_000
    rounds: int | None = None

    def propose(self, noise: Array, *params: Array) -> Array:
        """Raw noise -> the noise of the proposal, epsilon; the identity unless overridden."""
        return noise

    @abc.abstractmethod
    def transform(self, noise: Array, *params: Array) -> Array:
        """The proposal h(epsilon; theta), differentiable in the parameters."""

    def inverse(self, value: Array, *params: Array) -> Array:
        """The noise that `transform` takes to `value`.

        Raises:
            GradientError: if the transform is not one-to-one, or its inverse was not written.
        """
        raise GradientError(
            f"{type(self).__name__} has no inverse: a value that arrives without its noise cannot be given "
            "an acceptance-rejection gradient; define inverse(), or let the guide draw the value itself"
        )

    @abc.abstractmethod
    def log_proposal(self, value: Array, *params: Array) -> Array:
        """log r(value; theta), the density of the proposal."""

    @abc.abstractmethod
    def log_target(self, value: Array, *params: Array) -> Array:
        """log q(value; theta), normalized."""

    @abc.abstractmethod
    def log_bound(self, *params: Array) -> Array:
        """An upper bound of log q - log r over all values."""

    def log_noise_density(self, noise: Array, *params: Array) -> Array:
        """log pi(epsilon; theta) up to terms without theta: log q - log r at h(epsilon; theta)."""
        value = self.transform(noise, *params)
        return self.log_target(value, *params) - self.log_proposal(value, *params)

    def log_accept(self, noise: Array, *params: Array) -> Array:
        """Logarithm of the probability of accepting this noise."""
        return self.log_noise_density(noise, *params) - self.log_bound(*params)

    def squeeze(self, noise: Array, u: Array, *params: Array) -> Array | None:
        """Lanes accepted by a cheap bound, so that `log_accept` is asked only of the others; None if there is none."""
        return None

    def auxiliary(self, ops: Ops, key: Any, shape: Shape, dtype: Any) -> Any:
        """Further noise that is not subject to rejection; None if there is none."""
        return None

    def join(self, noise: Array, auxiliary: Any) -> Any:
        """Accepted and further noise as `transform` and `log_noise_density` take them."""
        return noise

    def attach(self, value: Array, *params: Array) -> Array:
        """The value with its implicit gradient, if the sampler has one.

        Raises:
            GradientError: if there is no derivative of the distribution function here.
        """
        raise GradientError(f"{type(self).__name__} has no implicit gradient: use Rejection() or ScoreFunction()")

    @property
    def has_implicit(self) -> bool:
        """Whether `attach` is defined."""
        return type(self).attach is not RejectionSampler.attach

    def raw_noise(self, ops: Ops, key: Any, shape: Shape, dtype: Any) -> Array:
        draw = {"normal": ops.normal, "uniform": ops.uniform}[self.noise]
        return draw(key, (*shape, *self.noise_shape), dtype)


@dataclass(frozen=True)
class Attempt:
    """One proposal a lane, as `Ops.rejection_loop` takes it: ``attempt(key, lanes, *params)``, or its two halves."""

    ops: Ops
    sampler: RejectionSampler
    dtype: Any

    def __call__(self, key: Any, lanes: Shape, *params: Array) -> tuple[Array, Array]:
        """The noise of a proposal, and whether it is accepted."""
        noise, u = self.propose(key, lanes, *params)
        return noise, self.accepts(noise, u, *params)

    def propose(self, key: Any, lanes: Shape, *params: Array) -> tuple[Array, Array]:
        """The noise of a proposal, and the uniform that decides on it."""
        proposal, coin = self.ops.split(key, 2)
        noise = self.sampler.propose(self.sampler.raw_noise(self.ops, proposal, lanes, self.dtype), *params)
        return noise, self.ops.uniform(coin, lanes, self.dtype)

    def accepts(self, noise: Array, u: Array, *params: Array) -> Array:
        """Whether a proposal is accepted."""
        return self.ops.xp.log(u) < self.sampler.log_accept(noise, *params)


def accepted_noise(ops: Ops, key: Any, sampler: RejectionSampler, shape: Shape, *params: Array) -> Any:
    """Noise of accepted proposals, as constants: batch first, masked, bounded.

    Args:
        shape: the lanes; every parameter broadcasts to it.

    Returns:
        What `sampler.join` makes of the accepted noise, of shape ``shape + sampler.noise_shape``.
        A lane not accepted within `sampler.max_rounds` is NaN.
    """
    xp, stop = ops.xp, ops.stop_gradient
    params = tuple(stop(xp.broadcast_to(p, shape)) for p in params)
    dtype = params[0].dtype
    noise = ops.rejection_loop(Attempt(ops, sampler, dtype), key, shape, params, sampler.max_rounds)
    return sampler.join(stop(noise), sampler.auxiliary(ops, ops.aux_key(key), shape, dtype))
