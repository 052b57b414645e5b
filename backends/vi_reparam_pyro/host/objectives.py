"""The evidence lower bound that honours score terms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from pyro.infer.elbo import ELBO as HOST_ELBO
from torch.utils import _pytree as pytree

from vi_reparam.errors import ArgumentError, GradientError
from vi_reparam.objectives import multisample, score
from vi_reparam.objectives.multisample import DOUBLY
from vi_reparam.objectives.plates import PlateDims, plates_of
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import Recorder as Listener
from vi_reparam_pyro import dependence
from vi_reparam_pyro.engine.arguments import signature
from vi_reparam_pyro.lanes.vmap import vectorized
from vi_reparam_pyro.ops.ops import mix, ops
from vi_reparam_pyro.run import Place, Run, Runner, runner_of

Array = Any


@dataclasses.dataclass
class Structure:
    """What is the same in every run of one program.

    Attributes:
        places: of all costs.
        deps: for each draw that is not pathwise, the costs that depend on it.
        plates: those that were checked, by which costs stay apart.
        in_lanes: whether many particles can run as one.
    """

    places: frozenset[Place]
    deps: dict[str, frozenset[Place]]
    plates: frozenset[str]
    in_lanes: bool


@dataclasses.dataclass(frozen=True)
class Particles:
    """What all particles leave behind; arrays have a leading dimension of particles.

    Attributes:
        costs: by place.
        scores: the score terms, by site.
        own: for optimal baselines, by site.
        weak: the weak derivatives' terms.
        values: the estimated draws, by site.
        frames: the plates of every cost and draw.
        draws: of one particle, for what all have in common.
        averages: the decaying averages that the guide holds.
        params: of every particle run, by side and name.
    """

    costs: dict[Place, Array]
    scores: dict[str, Array]
    own: dict[str, Any]
    weak: Array
    values: dict[str, Array]
    frames: dict[Place, PlateDims]
    draws: dict[str, Sampled]
    averages: dict[str, Any]
    params: list[dict[Place, Array]]


ENTROPIES = ("monte_carlo", "path", "analytic")


class ELBO(HOST_ELBO):
    """-E_q[log p - log q], with the gradient that each site's estimator owes.

    A score term multiplies only the costs that depend on its draw, summed over every dimension
    that is not a plate of its site (Rao-Blackwellization; costs are scaled by subsampled plates,
    score terms never), less a baseline. Plates are checked once, at the start. It goes wherever
    `pyro.infer.Trace_ELBO` goes, `pyro.infer.SVI` included.

    Args:
        num_particles: draws of the guide a step, one minibatch each.
        entropy: ``"monte_carlo"``; ``"path"``, the same with log q's own parameters as constants
            (sticking the landing; Roeder, Wu and Duvenaud 2017), of less variance near the optimum; or
            ``"analytic"`` for guides all of whose sites have an entropy in closed form.
        vectorize_particles: run all particles as one, by `torch.func.vmap`, which needs no plate
            for them; None where the program allows it (it reads no drawn value in Python).

    Raises:
        ArgumentError: for options that cannot be used.
    """

    def __init__(
        self, num_particles: int = 1, *, entropy: str = "monte_carlo", vectorize_particles: bool | None = None
    ) -> None:
        if not isinstance(num_particles, int) or isinstance(num_particles, bool) or num_particles < 1:
            raise ArgumentError(f"ELBO(num_particles={num_particles!r}): expected an integer of at least 1")
        if entropy not in ENTROPIES:
            raise ArgumentError(f"ELBO(entropy={entropy!r}): expected one of {ENTROPIES}")
        super().__init__(num_particles=num_particles)
        self.entropy = entropy
        self.lanes = vectorize_particles
        self._known: dict[Any, Structure] = {}

    def __repr__(self) -> str:
        return f"ELBO(num_particles={self.num_particles}, entropy={self.entropy!r})"

    def with_particles(self, num_particles: int) -> ELBO:
        """The same objective with another number of particles; its checks are kept."""
        other = ELBO(num_particles, entropy=self.entropy, vectorize_particles=self.lanes)
        other._known = self._known
        return other

    def check(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Structure:
        """Check guide against model, and every plate.

        Raises:
            SiteError: if the guide misses a latent.
            GradientError: if a plate is false or a score term would be lost.
        """
        runner = runner_of(model, guide, args, kwargs, self.entropy)
        key = mix(dependence.CHECK_KEY)
        averages: dict[str, Any] = {}
        first = runner(key, listener=_fresh(averages))
        self._require(first)
        scored = frozenset(n for n, s in first.draws.items() if not s.draw.is_pathwise)
        plates = frozenset(p for n in scored for p in plates_of(first.frames["guide", n]))
        places = frozenset(first.costs)
        in_lanes = self.lanes is not False and not dependence.reads_values(runner, key)
        if self.lanes and not in_lanes:
            raise ArgumentError("ELBO(vectorize_particles=True): the program reads a drawn value in Python; use None")
        # what Python reads leaves no trace: then every cost may depend on every draw
        deps = dependence.dependents(runner, key, scored) if scored and in_lanes else dict.fromkeys(scored, places)
        if scored:
            plates -= dependence.check_plates(runner)
        made = Structure(places, deps, plates, in_lanes)
        self._known[_program(model, guide, args, kwargs)] = made
        return made

    def _require(self, result: Run) -> None:
        """Refuse a program whose gradient this objective would get wrong."""

    def structure(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Structure:
        """What `check` found, checked now if it was not."""
        known = self._known.get(_program(model, guide, args, kwargs))
        return known or self.check(model, guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("vr.ELBO runs guide and model itself")

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs).detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Array:
        """The negative bound, with the gradient of its surrogate.

        Raises:
            SiteError: if the guide misses a latent of the model.
            GradientError: if a score term would be lost or a baseline cannot be had.
        """
        return self.surrogate(ops.root_key(), model, guide, args, kwargs)

    def surrogate(
        self, key: int, model: Any, guide: Any, args: Any, kwargs: Any, averages: dict[str, Any] | None = None
    ) -> Array:
        """As `differentiable_loss`, with all noise from a key, and the decaying averages given."""
        structure = self.structure(model, guide, args, kwargs)
        found = self.particles(key, runner_of(model, guide, args, kwargs, self.entropy), structure, averages)
        costs, frames, deps, plates = found.costs, found.frames, structure.deps, structure.plates
        if not frozenset(costs) <= structure.places:  # the program took another path: nothing is known of it
            deps, plates = dict.fromkeys(found.scores, frozenset(costs)), frozenset()
        bound = sum(c.reshape(c.shape[0], -1).sum(1) for c in costs.values()) + found.weak
        value = bound.mean()
        for name, term in found.scores.items():
            cost = score.downstream(ops, costs, frames, deps[name] & frozenset(costs), frames["guide", name], plates)
            estimator, own = found.draws[name].estimator, found.own.get(name, ())
            value = value + score.score_gradient(ops, name, estimator, term, own, cost, found.averages, objective=self)
        return -value

    def particles(
        self, key: int, runner: Runner, structure: Structure, averages: dict[str, Any] | None = None
    ) -> Particles:
        """Run all particles, at once where the program allows it."""
        last: list[Run] = []

        def particle(own_key: int) -> Any:
            result = runner(own_key, listener=_fresh(averages))
            self._require(result)
            last.append(result)
            scores = {n: s.draw.score_term for n, s in result.draws.items() if s.draw.score_term is not None}
            own = {n: s.scores for n, s in result.draws.items() if s.scores}
            values = {n: s.draw.value for n, s in result.draws.items()}
            return result.costs, scores, own, self._weak(runner, own_key, result, structure), values

        if self.num_particles > 1 and structure.in_lanes:
            found = vectorized(lambda: particle(key), self.num_particles, key)
        else:
            found = _stacked([particle(own_key) for own_key in ops.split(key, self.num_particles)])
        frames = {place: where for result in last for place, where in result.frames.items()}
        draws = {name: drawn for result in last for name, drawn in result.draws.items()}
        params = [result.params for result in last]
        return Particles(*found, frames=frames, draws=draws, averages=last[-1].averages, params=params)

    def _weak(self, runner: Runner, key: int, result: Run, structure: Structure) -> Array:
        """The weak derivatives: each branch's weight times the downstream cost at its value."""
        total = torch.zeros(())
        for name, sampled in result.draws.items():
            if not sampled.draw.branches:
                continue
            target, z = result.frames["guide", name], sampled.draw.value
            deps = structure.deps.get(name, frozenset(result.costs)) & frozenset(result.costs)
            # Lanes that share a cost outside a plate, as a sum over it, may not move at once.
            apart = frozenset(p for p in structure.plates if all(p in plates_of(result.frames[q]) for q in deps))
            for branch in sampled.draw.branches:
                for mask in _groups(branch.weight.shape, target, apart):
                    inside = mask.reshape(mask.shape + (1,) * (z.ndim - mask.ndim))
                    other = torch.where(inside, branch.value, z).detach()
                    with torch.no_grad():
                        moved = runner(key, listener=Listener(held={name: other}))
                    costs = {p: c[None] for p, c in moved.costs.items()}
                    cost = score.downstream(ops, costs, moved.frames, deps, target, structure.plates)[0]
                    cost = cost.reshape(cost.shape + (1,) * (mask.ndim - cost.ndim))
                    total = total + (branch.weight * mask * cost).sum()
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
        vectorize_particles: as in `ELBO`.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    def __init__(
        self, num_particles: int = 8, *, gradient: str = DOUBLY, vectorize_particles: bool | None = None
    ) -> None:
        multisample.check_options(num_particles, gradient)
        entropy = "path" if gradient == DOUBLY else "monte_carlo"
        super().__init__(num_particles, entropy=entropy, vectorize_particles=vectorize_particles)
        self.gradient = gradient

    def __repr__(self) -> str:
        return f"IWELBO(num_particles={self.num_particles}, gradient={self.gradient!r})"

    def with_particles(self, num_particles: int) -> IWELBO:
        other = IWELBO(num_particles, gradient=self.gradient, vectorize_particles=self.lanes)
        other._known = self._known
        return other

    def _require(self, result: Run) -> None:
        multisample.check_run(result.draws, result.frozen, result.subsampled, self.gradient)
        if self.gradient != DOUBLY:
            return
        names = {side: {name for s, name in result.params if s == side} for side in ("guide", "model")}
        for name in sorted(names["guide"] & names["model"]):
            raise GradientError(
                f"parameter {name!r} is in the guide and in the model, and IWELBO(gradient={DOUBLY!r}) weighs the two "
                "apart; use gradient='reparameterization'"
            )
        network = [n for (side, n), p in result.params.items() if side == "guide" and isinstance(p, torch.nn.Parameter)]
        if network and not result.frozen:
            raise GradientError(
                f"the guide's network weights {network[0]!r} cannot be held inside log q, as "
                f"IWELBO(gradient={DOUBLY!r}) needs; use gradient='reparameterization'"
            )

    def surrogate(
        self, key: int, model: Any, guide: Any, args: Any, kwargs: Any, averages: dict[str, Any] | None = None
    ) -> Array:
        structure = self.structure(model, guide, args, kwargs)
        found = self.particles(key, runner_of(model, guide, args, kwargs, self.entropy), structure, averages)
        log_w = torch.stack([c.reshape(c.shape[0], -1).sum(1) for c in found.costs.values()]).sum(0)
        bound = torch.logsumexp(log_w, 0) - math.log(self.num_particles)
        if self.gradient != DOUBLY or not torch.is_grad_enabled():
            return -bound
        weights = torch.softmax(log_w.detach(), 0)
        value = bound.detach()
        for side, weight in (("guide", weights**2), ("model", weights)):
            live = {id(p): p for held in found.params for (s, _), p in held.items() if s == side and p.requires_grad}
            params = list(live.values())
            slopes = torch.autograd.grad(log_w, params, weight, retain_graph=True, allow_unused=True) if params else ()
            for slope, param in zip(slopes, params, strict=True):
                if slope is not None:
                    value = value + (slope * (param - param.detach())).sum()
        return -value


def _fresh(averages: dict[str, Any] | None) -> Listener:
    listener = Listener()
    listener.averages = averages
    return listener


def _groups(shape: Any, target: PlateDims, plates: frozenset[str]) -> Any:
    """Masks of the lanes that move together, one after the other."""
    groups, sizes = score.separate_lanes(tuple(shape), target, plates)
    for number in range(groups):
        mask = torch.zeros(groups, dtype=torch.bool)
        mask[number] = True
        yield mask.reshape(sizes).expand(shape)


def _stacked(particles: list[Any]) -> Any:
    """The particles' results, each array with a leading dimension of particles.

    What only some of the particles have, because the program branched, counts as zero in the others.
    """
    if isinstance(particles[0], tuple):
        return tuple(_stacked(list(parts)) for parts in zip(*particles, strict=True))
    if not isinstance(particles[0], dict):
        return pytree.tree_map(lambda *xs: torch.stack(xs), particles[0], *particles[1:])
    names = {name: part for held in particles for name, part in held.items()}
    absent = {name: pytree.tree_map(torch.zeros_like, part) for name, part in names.items()}
    return {
        name: pytree.tree_map(lambda *xs: torch.stack(xs), *(held.get(name, absent[name]) for held in particles))
        for name in names
    }


def _program(model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
    # the callables themselves, so that no other can take their id
    return model, guide, signature(args, kwargs)
