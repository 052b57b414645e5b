"""The evidence lower bound that honours score terms."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Args, Array, Key, Kwargs
from vi_reparam.checks import check_choice, check_integer
from vi_reparam.errors import ArgumentError
from vi_reparam.objectives import score
from vi_reparam.objectives.particles import Particles, stacked, total
from vi_reparam.objectives.run import ENTROPIES, Params, Run, Runner
from vi_reparam.objectives.structure import CHECK_SEED, Structure, check_plates, dependents, form_of, reads_values
from vi_reparam.objectives.weak import weak_derivative
from vi_reparam.sites.recorder import Recorder

Start = Callable[[Key], Params]
FindStructure = Callable[[], Structure]
Averages = dict[str, Any] | None
Surrogate = tuple[Array, dict[str, Any]]


class Elbo:
    """-E_q[log p - log q], with the gradient that each site's estimator owes.

    Some estimators owe a score term: an extra term of the gradient. It multiplies only the costs that depend on its
    draw, summed over every dimension that is not a plate of its site (Rao-Blackwellization), less a baseline. Costs
    are scaled by subsampled plates, score terms never. Plates are checked once, at the start. The objective goes
    wherever the framework's own ``Trace_ELBO`` goes, its ``SVI`` included.

    Args:
        num_particles: draws of the guide a step, one minibatch each.
        entropy: ``"monte_carlo"``; ``"path"``, the same with log q's own parameters as constants
            (sticking the landing; Roeder, Wu and Duvenaud 2017), of less variance near the optimum; or
            ``"analytic"`` for guides all of whose sites have an entropy in closed form.
        vectorize_particles: in NumPyro as in its own objectives; in Pyro whether all particles run as one, by
            `torch.func.vmap`, which needs no plate for them: None where the program reads no drawn value in Python.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    backend: ClassVar[Backend]
    num_particles: int

    def __init__(self, num_particles: int, entropy: str, lanes: bool | None = None) -> None:
        check_integer("num_particles", num_particles, type(self).__name__)
        check_choice("entropy", entropy, ENTROPIES, "ELBO")
        self.entropy = entropy
        self.lanes = lanes
        self._known: dict[Any, Structure] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": {}}  # what was learned of programs is learned again

    def __repr__(self) -> str:
        return f"ELBO(num_particles={self.num_particles}, entropy={self.entropy!r})"

    def with_particles(self, num_particles: int) -> Self:
        """The same objective with another number of particles; its checks are kept."""
        check_integer("num_particles", num_particles, type(self).__name__)
        other = copy.copy(self)
        other.num_particles = num_particles
        return other

    def require(self, result: Run) -> None:
        """Refuse a program whose gradient this objective would get wrong."""

    def surroundings(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Start | None:
        """Computes concrete parameters to check a program at; None where the surroundings of a call give them."""
        return None

    def can_share_a_run(self, located: Callable[[], Runner], key: Key) -> bool:
        """Whether many particles can run as one; `located` gives the program at concrete parameters."""
        return not reads_values(located(), key)

    def many(self, particle: Callable[[Key], Any], key: Key) -> Any:
        """All particles as one run; results have a leading dimension of particles."""
        return self.backend.ops.many(particle, key, self.num_particles)

    def check(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Structure:
        """Check guide against model, and every plate, at concrete values.

        Raises:
            SiteError: if the guide misses a latent.
            GradientError: if a plate is false or a score term would be lost.
            ArgumentError: if the particles were to run as one, and cannot.
        """
        return self.check_at(self.surroundings(model, guide, args, kwargs), model, guide, args, kwargs)

    def check_at(
        self, start: Start | None, model: Any, guide: Any, args: Any, kwargs: Any, *, traced: bool = False
    ) -> Structure:
        """As `check`, at the parameters that ``start(key)`` gives; without a score term none is computed.

        Args:
            start: None for the parameters that the surroundings give.
            traced: whether the data are not known yet, so that no plate can be checked.
        """
        ops, tracer = self.backend.ops, self.backend.tracer
        runner = self._runner(model, guide, args, kwargs)
        key = ops.key(CHECK_SEED)
        now = contextlib.nullcontext if traced else ops.at_once

        @functools.cache
        def located() -> Runner:
            with now():
                return runner.at(None if start is None else start(ops.key(CHECK_SEED)))

        first = runner(key) if start is None else tracer.shapes(lambda own_key: runner.at(start(own_key))(own_key))
        self.require(first)
        in_lanes = self.lanes is not False and self.can_share_a_run(located, key)
        if self.lanes and not in_lanes:
            raise ArgumentError("ELBO(vectorize_particles=True): the program reads a drawn value in Python; use None")
        scored, plates, places = first.scored, first.plates_of_scored(), frozenset(first.costs)
        if traced and plates:
            warnings.warn(
                f"the data are traced, so the plates {sorted(plates)} could not be checked: score terms take the "
                "sum over all elements, which is right but noisier; call objective.check(model, guide, *args) "
                "with concrete data before jit",
                stacklevel=2,
            )
            plates = frozenset()
        elif plates:
            held = located()
            with now():
                plates -= check_plates(held, first)
        # what Python reads leaves no trace: then every cost may depend on every draw
        found = dependents(located(), key, scored) if scored and in_lanes else dict.fromkeys(scored, places)
        made = Structure(places, found, plates, in_lanes, first.described())
        self._known[self._program(model, guide, args, kwargs)] = made
        return made

    def structure(self, model: Any, guide: Any, args: Any, kwargs: Any, params: Params | None = None) -> Structure:
        """What `check` found, checked now if it was not, at the parameters of both sides or of the surroundings."""
        known = self._known.get(self._program(model, guide, args, kwargs))
        if known is not None:
            return known
        ops = self.backend.ops
        given = None if params is None else lambda key: params
        if any(ops.concrete(leaf) is None for leaf in ops.tree_leaves((args, dict(kwargs)))):
            return self.check_at(given, model, guide, args, kwargs, traced=True)
        args, kwargs = ops.tree_map(ops.concrete, (tuple(args), dict(kwargs)))
        return self.check_at(self.surroundings(model, guide, args, kwargs) or given, model, guide, args, kwargs)

    def surrogate(
        self,
        key: Key,
        model: Any,
        guide: Any,
        args: Args,
        kwargs: Kwargs,
        *,
        params: Params | None = None,
        averages: Averages = None,
    ) -> Surrogate:
        """The negative bound, with the gradient that is owed.

        Args:
            key: from which all noise follows.
            params: constrained values of both sides' parameters, and of mutable sites; None for those that the
                surroundings give.
            averages: the decaying averages, moved on in place; None for those that the guide holds.

        Returns:
            (the loss, the new values of mutable sites).

        Raises:
            SiteError: if the guide misses a latent of the model.
            GradientError: if a score term would be lost or a baseline cannot be had.
        """
        structure = functools.cache(lambda: self.structure(model, guide, args, kwargs, params))
        return self._surrogate(key, self._runner(model, guide, args, kwargs, params), structure, averages)

    def _surrogate(self, key: Key, runner: Runner, structure: FindStructure, averages: Averages) -> Surrogate:
        """As `surrogate`; `structure` is computed once it is asked for."""
        ops = self.backend.ops
        found = self.particles(key, runner, structure, averages)
        costs, state, places = found.costs, found.state, frozenset(found.costs)
        value = ops.xp.mean(total(ops, [*costs.values(), *found.weak.values()]))
        averages = dict(state[score.BASELINE]) if score.BASELINE in state else found.averages
        if found.scores:
            known, plates = structure().dependents, structure().plates
            if not places <= structure().places:  # the program took another path: nothing is known of it
                known, plates = {}, frozenset()
            for name, term in found.scores.items():
                target, sampled = found.plate_dims["guide", name], found.draws[name]
                own, dependent = found.own.get(name, ()), known.get(name, places) & places
                cost = score.downstream(ops, costs, found.plate_dims, dependent, target, plates)
                value = value + score.score_gradient(self, name, sampled.estimator, term, own, cost, averages)
        if score.BASELINE in state:
            state = {**state, score.BASELINE: averages}
        return -value, state

    def particles(self, key: Key, runner: Runner, structure: FindStructure, averages: Averages = None) -> Particles:
        """Run all particles, at once where the program allows it."""
        ops = self.backend.ops
        runs: list[Run] = []

        def particle(own_key: Key) -> Any:
            recorder = Recorder()
            recorder.averages = averages
            result = runner(own_key, recorder=recorder)
            self.require(result)
            runs.append(result)
            scores = {n: s.draw.score_term for n, s in result.draws.items() if s.draw.score_term is not None}
            own = {n: s.scores for n, s in result.draws.items() if s.scores}
            values = {n: s.draw.value for n, s in result.draws.items()}
            branched = [n for n, s in result.draws.items() if s.draw.branches]
            weak = {n: weak_derivative(runner, own_key, result, n, structure()) for n in branched}
            return result.costs, scores, own, weak, values

        if self.num_particles > 1 and self._at_once(structure):
            found = self.many(particle, key)
        else:
            found = stacked(ops, [particle(own_key) for own_key in ops.split(key, self.num_particles)])
        state = runs[-1].state
        if self.num_particles > 1:
            given = runner.params or {}
            state = {n: given[n] for n in state if n in given}
        return Particles(
            *found,
            plate_dims={place: where for result in runs for place, where in result.plate_dims.items()},
            draws={name: drawn for result in runs for name, drawn in result.draws.items()},
            state=state,
            averages=runs[-1].averages,
            params=[result.params for result in runs],
        )

    def _at_once(self, structure: Callable[[], Structure]) -> bool:
        return structure().in_lanes

    def _runner(self, model: Any, guide: Any, args: Any, kwargs: Any, params: Params | None = None) -> Runner:
        return Runner(self.backend, model, guide, args, kwargs, self.entropy, params)

    def _program(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        # the callables themselves, so that no other can take their id
        return model, guide, form_of(self.backend.ops, args, kwargs)
