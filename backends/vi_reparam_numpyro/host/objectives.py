"""The evidence lower bound that honours score terms."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.infer.elbo import ELBO as HostELBO

from vi_reparam.errors import ArgumentError
from vi_reparam.objectives import multisample, score
from vi_reparam.objectives.multisample import DOUBLY
from vi_reparam.objectives.plates import PlateDims, plates_of
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import Recorder as Listener
from vi_reparam_numpyro import dependence
from vi_reparam_numpyro.host.handlers import BASELINE
from vi_reparam_numpyro.ops.ops import ops
from vi_reparam_numpyro.run import Place, Run, run, stopped

Array = Any

ENTROPIES = ("monte_carlo", "path", "analytic")


class ELBO(HostELBO):
    """-E_q[log p - log q], with the gradient that each site's estimator owes.

    A score term multiplies only the costs that depend on its draw, summed over every dimension
    that is not a plate of its site (Rao-Blackwellization; costs are scaled by subsampled plates,
    score terms never), less a baseline. Plates are checked once, at the start. It goes wherever
    `numpyro.infer.Trace_ELBO` goes, `numpyro.infer.SVI` included.

    Args:
        num_particles: draws of the guide a step, one minibatch each.
        entropy: ``"monte_carlo"``; ``"path"``, the same with log q's own parameters as constants
            (sticking the landing; Roeder, Wu and Duvenaud 2017), of less variance near the optimum; or
            ``"analytic"`` for guides all of whose sites have an entropy in closed form.
        vectorize_particles: as in NumPyro.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    can_infer_discrete = True
    holds_state = True

    def __init__(
        self, num_particles: int = 1, *, entropy: str = "monte_carlo", vectorize_particles: bool | Any = True
    ) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ArgumentError(f"ELBO(num_particles={num_particles!r}): expected an integer of at least 1")
        if entropy not in ENTROPIES:
            raise ArgumentError(f"ELBO(entropy={entropy!r}): expected one of {ENTROPIES}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.entropy = entropy
        self._doubtful: dict[Any, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"ELBO(num_particles={self.num_particles}, entropy={self.entropy!r})"

    def with_particles(self, num_particles: int) -> ELBO:
        """The same objective with another number of particles; its checks are kept."""
        other = ELBO(num_particles, entropy=self.entropy, vectorize_particles=self.vectorize_particles)
        other._doubtful = self._doubtful
        return other

    def check(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> None:
        """Check guide against model, and every plate, at concrete values.

        Raises:
            SiteError: if the guide misses a latent.
            GradientError: if a plate is false or a score term would be lost.
        """

        def start(key: Any) -> Any:
            return dependence.first_params(model, guide, args, kwargs, key=key)

        self.check_at(jax.jit(start), model, guide, args, kwargs)

    def check_at(self, start: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """As `check`, at the params that ``start(key)`` gives; it is called only if there is a plate to check."""
        runner = self._runner(model, guide, args, kwargs)
        scored: list[str] = []

        def look(key: Any, held: Any) -> Any:
            result = runner(key, held)
            self._require(result)
            frames = {n: result.frames["guide", n] for n, s in result.draws.items() if not s.draw.is_pathwise}
            scored[:] = [n for n in frames if plates_of(frames[n])]
            return result.costs

        key = random.key(0)  # an argument: with constants alone, a trace under compile-time evaluation computes
        jax.eval_shape(look, key, jax.eval_shape(start, key))
        doubtful: frozenset[str] = frozenset()
        if scored:
            doubtful = dependence.check_plates(runner, start(key))
        self._doubtful[self._program(model, guide, args, kwargs)] = doubtful

    def loss(self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)["loss"]

    def loss_with_mutable_state(
        self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The negative bound and its surrogate gradient.

        Raises:
            SiteError: if the guide misses a latent of the model.
            GradientError: if a score term would be lost or a baseline cannot be had.
        """
        runner = self._runner(model, guide, args, kwargs)
        frames: dict[Place, PlateDims] = {}
        static: dict[str, Sampled] = {}

        def particle(key: Any) -> Any:
            result = runner(key, param_map)
            frames.update(result.frames)
            static.update(result.draws)
            scores = {n: s.draw.score_term for n, s in result.draws.items() if s.draw.score_term is not None}
            own = {n: s.scores for n, s in result.draws.items() if s.scores}
            plates = self._plates(model, guide, args, kwargs, result)
            weak = self._weak(runner, key, param_map, result, plates)
            return result.costs, scores, own, weak, result.state

        keys = random.split(rng_key, self.num_particles)
        if self.num_particles == 1:
            one = particle(keys[0])
            costs, scores, own, weak = jax.tree.map(lambda x: x[None], one[:4])
            state = one[4]
        else:
            costs, scores, own, weak, state = self.vectorize_particles_fn(particle, keys)
            state = {n: param_map[n] for n in state if n in param_map}
        bound = sum(jnp.sum(c, axis=tuple(range(1, c.ndim))) for c in costs.values()) + weak
        value = jnp.mean(bound)
        averages = dict(state.get(BASELINE, {}))
        if scores:
            plates = self._plates(model, guide, args, kwargs, Run({}, frames, static, {}, []))
            deps = dependence.dependents(runner, keys[0], param_map, {n: static[n].draw.value for n in scores})
            for name, term in scores.items():
                target = frames["guide", name]
                cost = score.downstream(ops, costs, frames, deps[name], target, plates)
                estimator, own_scores = static[name].estimator, own.get(name, ())
                value = value + score.score_gradient(
                    ops, name, estimator, term, own_scores, cost, averages, objective=self
                )
        if BASELINE in state:
            state = {**state, BASELINE: averages}
        return {"loss": -value, "mutable_state": state or None}

    def _require(self, result: Run) -> None:
        """Refuse a program whose gradient this objective would get wrong."""

    def _runner(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return functools.partial(_run, model=model, guide=guide, args=args, kwargs=kwargs, entropy=self.entropy)

    @staticmethod
    def _program(model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        shapes = tuple(str(getattr(leaf, "shape", leaf)) for leaf in jax.tree.leaves((args, kwargs)))
        return model, guide, shapes  # the callables themselves, so that no other can take their id

    def _plates(self, model: Any, guide: Any, args: Any, kwargs: Any, result: Run) -> frozenset[str]:
        """The plates by which costs may stay apart: those that were checked."""
        scored = [n for n, s in result.draws.items() if not s.draw.is_pathwise]
        wanted = frozenset(p for n in scored for p in plates_of(result.frames["guide", n]))
        if not wanted:
            return wanted
        program = self._program(model, guide, args, kwargs)
        if program not in self._doubtful:
            if dependence.is_concrete((args, kwargs)):
                with jax.ensure_compile_time_eval():
                    self.check(model, guide, *args, **kwargs)
            else:
                warnings.warn(
                    f"the data are traced, so the plates {sorted(wanted)} could not be checked: score terms take the "
                    "sum over all elements, which is right but noisier; call objective.check(model, guide, *args) "
                    "with concrete data before jit",
                    stacklevel=2,
                )
                self._doubtful[program] = wanted
        return wanted - self._doubtful[program]

    def _weak(self, runner: Any, key: Any, params: Any, result: Run, plates: frozenset[str]) -> Array:
        """The weak derivatives: each branch's weight times the downstream cost at its value."""
        total = jnp.zeros(())
        branched = {n: s for n, s in result.draws.items() if s.draw.branches}
        if not branched:
            return total
        constants = stopped(params)
        deps = dependence.dependents(runner, key, constants, {n: s.draw.value for n, s in branched.items()})
        for name, sampled in branched.items():
            target = result.frames["guide", name]
            # Lanes that share a cost outside a plate, as a sum over it, may not move at once.
            apart = frozenset(p for p in plates if all(p in plates_of(result.frames[place]) for place in deps[name]))
            masks = _separate_lanes(sampled, target, apart)
            for branch in sampled.draw.branches:

                def downstream_of(
                    mask: Array, name: str = name, sampled: Sampled = sampled, branch: Any = branch
                ) -> Array:
                    z = sampled.draw.value
                    inside = jnp.reshape(mask, mask.shape + (1,) * (z.ndim - mask.ndim))
                    held = {name: lax.stop_gradient(jnp.where(inside, branch.value, z))}
                    moved = runner(key, constants, listener=Listener(held=held))
                    costs = {p: c[None] for p, c in moved.costs.items()}
                    frames = moved.frames
                    return score.downstream(ops, costs, frames, deps[name], frames["guide", name], plates)[0]

                found = lax.map(downstream_of, masks) if masks.shape[0] > 1 else downstream_of(masks[0])[None]
                found = jnp.reshape(found, found.shape + (1,) * (masks.ndim - found.ndim))
                total = total + jnp.sum(branch.weight[None] * masks * lax.stop_gradient(found))
        return total


class IWELBO(ELBO):
    """-E[log mean_k w_k] with w_k = p/q of each of K particles, the importance-weighted bound (Burda et al. 2016).

    It lies between the ELBO and the log evidence. A guide fitted by it is a proposal: broader than
    the posterior where the family cannot follow it.

    Args:
        num_particles: K.
        gradient: ``"doubly_reparameterized"`` (Tucker et al. 2019, eq. 8: the guide's parameters get
            sum_k (w_k / sum w)^2 of each path's gradient of log w_k, with none of their noise from log q), or
            ``"reparameterization"``, whose signal in the guide's parameters falls with K.
        vectorize_particles: as in NumPyro.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    def __init__(self, num_particles: int = 8, *, gradient: str = DOUBLY, vectorize_particles: Any = True) -> None:
        multisample.check_options(num_particles, gradient)
        entropy = "path" if gradient == DOUBLY else "monte_carlo"
        super().__init__(num_particles, entropy=entropy, vectorize_particles=vectorize_particles)
        self.gradient = gradient

    def __repr__(self) -> str:
        return f"IWELBO(num_particles={self.num_particles}, gradient={self.gradient!r})"

    def with_particles(self, num_particles: int) -> IWELBO:
        return IWELBO(num_particles, gradient=self.gradient, vectorize_particles=self.vectorize_particles)

    def _require(self, result: Run) -> None:
        multisample.check_run(result.draws, result.frozen, result.subsampled, self.gradient)

    def loss_with_mutable_state(
        self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The negative bound and its gradient.

        Raises:
            SiteError: if the guide misses a latent of the model.
            GradientError: for a score term, a minibatch, or a guide whose gradient does not fit.
        """

        def log_weights(guide_params: Any, model_params: Any) -> Any:
            def particle(key: Any) -> Any:
                result = run(
                    key, guide_params, model, guide, args, kwargs, entropy=self.entropy, model_params=model_params
                )
                self._require(result)
                return sum(jnp.sum(cost) for cost in result.costs.values()), result.state

            keys = random.split(rng_key, self.num_particles)
            if self.num_particles == 1:
                return jax.tree.map(lambda x: x[None], particle(keys[0]))
            return self.vectorize_particles_fn(particle, keys)

        held = stopped(param_map)
        log_w, pull, state = jax.vjp(log_weights, held, held, has_aux=True)
        weights = jax.nn.softmax(log_w)
        by_guide = pull(weights**2 if self.gradient == DOUBLY else weights)[0]
        by_model = pull(weights)[1]
        value = jax.nn.logsumexp(log_w) - jnp.log(self.num_particles)
        for slopes in (by_guide, by_model):
            moves = jax.tree.map(_move, lax.stop_gradient(slopes), param_map, held)
            value = value + sum(jax.tree.leaves(moves))
        state = {n: param_map[n] for n in state if n in param_map} if self.num_particles > 1 else state
        return {"loss": -value, "mutable_state": state or None}


def _move(slope: Array, param: Array, held: Array) -> Array:
    """Zero, with this slope in the parameter; nothing for what has none (keys, counts)."""
    if slope.dtype == jax.dtypes.float0:
        return jnp.zeros(())
    return jnp.sum(slope * (param - held))


def _separate_lanes(sampled: Sampled, target: PlateDims, plates: frozenset[str]) -> Array:
    """Masks of the lanes that may move together, shape ``(groups,) + lanes``.

    Elements of a plate do not share costs, so they move at once; all others move one by one.
    """
    shape = sampled.draw.branches[0].weight.shape
    groups, sizes = score.separate_lanes(shape, target, plates)
    masks = jnp.reshape(jnp.eye(groups, dtype=bool), (groups, *sizes))
    return jnp.broadcast_to(masks, (groups, *shape))


def _run(key: Any, params: Any, *, listener: Listener | None = None, **program: Any) -> Run:
    return run(
        key,
        params,
        program["model"],
        program["guide"],
        program["args"],
        program["kwargs"],
        entropy=program["entropy"],
        listener=listener,
    )
