"""The importance-weighted bound."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Key, Ops, Params
from vi_reparam.objectives import multisample
from vi_reparam.objectives.elbo import Averages, Elbo, FindStructure, Surrogate
from vi_reparam.objectives.multisample import DOUBLY
from vi_reparam.objectives.particles import Particles, total
from vi_reparam.objectives.run import Run, Runner


class Iwelbo(Elbo):
    """-E[log mean_k w_k] with w_k = p/q of each of K particles, the importance-weighted bound (Burda et al. 2016).

    It lies between the ELBO and the log evidence. A guide fitted by it is a proposal: broader than
    the posterior where the family cannot follow it.

    Args:
        num_particles: K.
        gradient: ``"doubly_reparameterized"`` (Tucker et al. 2019, eq. 8: the guide's parameters get
            sum_k (w_k / sum w)^2 of each path's gradient of log w_k, with none of their noise from log q), or
            ``"reparameterization"``, whose signal-to-noise ratio in the guide's parameters falls with K.
        vectorize_particles: as in `ELBO`.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    gradient: str

    def __repr__(self) -> str:
        return f"IWELBO(num_particles={self.num_particles}, gradient={self.gradient!r})"

    def require(self, result: Run) -> None:
        multisample.check_run(result.draws, result.frozen, result.subsampled, self.gradient)

    def _surrogate(self, key: Key, runner: Runner, structure: FindStructure, averages: Averages) -> Surrogate:
        """As `Elbo.surrogate`.

        The doubly reparameterized gradient weighs the two sides' parameters differently: those of the guide by the
        square of a particle's normalized weight, those of the model by the weight.
        """
        ops, params = self.backend.ops, runner.params

        def log_weights(guide_params: Params | None, model_params: Params | None) -> Any:
            found = self.particles(key, runner.at(guide_params, model_params), structure, averages)
            used = () if params is not None else tuple(_used(found, side) for side in ("guide", "model"))
            return total(ops, list(found.costs.values())), (found.state, used)

        if self.gradient != DOUBLY:
            log_w, (state, _) = log_weights(params, params)
            return -_log_mean_exp(ops, log_w), state
        log_w, slopes_of, (state, used) = ops.vjp(log_weights, params, params)
        log_w = ops.stop_gradient(log_w)
        value = _log_mean_exp(ops, log_w)
        weights = ops.xp.exp(log_w - value) / self.num_particles
        for side, weight in enumerate((weights**2, weights)):
            live = ops.tree_leaves(params) if params is not None else used[side]
            for slope, param in zip(slopes_of(side, weight, live), live, strict=True):
                if slope is not None:
                    value = value + ops.xp.sum(ops.stop_gradient(slope) * (param - ops.stop_gradient(param)))
        return -value, state


def _used(found: Particles, side: str) -> list[Array]:
    """The parameters of a side as the particles used them, each array once."""
    return list({id(p): p for held in found.params for (own, _), p in held.items() if own == side}.values())


def _log_mean_exp(ops: Ops, x: Array) -> Array:
    xp = ops.xp
    largest = ops.stop_gradient(xp.max(x))
    largest = xp.where(xp.isfinite(largest), largest, xp.zeros_like(largest))
    return xp.log(xp.mean(xp.exp(x - largest))) + largest
