"""The fit: a loop of steps, watched for anything that is not finite."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from vi_reparam.errors import ArgumentError, NonFiniteError, ViReparamError
from vi_reparam.fit import convergence
from vi_reparam.fit.convergence import Convergence
from vi_reparam.gaussians.pathfinder import FAR, distance
from vi_reparam.guides import JointFamily, Sites
from vi_reparam.objectives.subsampling import check_subsampling
from vi_reparam_pyro import checkpoint as checkpoints
from vi_reparam_pyro.arguments import as_tensors, check_data, signature, to_numpy
from vi_reparam_pyro.backend import backend, data_of
from vi_reparam_pyro.engine.gradient import PROGRAM_KEY, Gradient
from vi_reparam_pyro.engine.optimizers import ByName, built, family_optimizer
from vi_reparam_pyro.host.objectives import ELBO
from vi_reparam_pyro.host.params import Parameters, first_parameters, isolated, using
from vi_reparam_pyro.lanes.seeding import salted
from vi_reparam_pyro.lanes.vmap import without_validation
from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.run import runner_of
from vi_reparam_pyro.select import choose

Array = Any

BLOCK = 32
"""Steps between two looks at whether all was finite: a look makes a GPU wait."""

MAX_STEPS = 10_000
"""Most steps of a hand-written guide's fit that ends by itself."""


class State:
    """What a step changes.

    Attributes:
        params: the parameters; `optimizer` and `schedule` (or None) move them.
        averages: the decaying averages, by site.
    """

    def __init__(self, params: Parameters, factory: Any) -> None:
        self.params = params
        leaves = list(params.free.values())
        if not leaves:
            raise ArgumentError("there is nothing to fit: neither model nor guide has a parameter")
        by_name = isinstance(factory, ByName)
        self.optimizer, self.schedule = factory.of(params.free) if by_name else built(factory, leaves)
        self.averages: dict[str, Any] = {}

    def snapshot(self) -> Any:
        """A copy, for `restore`."""
        schedule = None if self.schedule is None else copy.deepcopy(self.schedule.state_dict())
        leaves = {name: leaf.detach().clone() for name, leaf in self.params.free.items()}
        return leaves, copy.deepcopy(self.optimizer.state_dict()), schedule, dict(self.averages)

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        leaves, optimizer, schedule, averages = snapshot
        with torch.no_grad():
            for name, value in leaves.items():
                self.params.free[name].copy_(value)
        self.optimizer.load_state_dict(optimizer)
        if self.schedule is not None:
            self.schedule.load_state_dict(schedule)
        self.averages = dict(averages)


@dataclasses.dataclass(frozen=True)
class Course:
    """One fit from one start.

    Attributes:
        values: the parameters at its end, constrained; `losses`: of its steps.
        course: when it ended by itself; None for one with a number of steps.
        gradient: how its steps were taken.
    """

    values: dict[str, Array]
    losses: np.ndarray
    course: Convergence | None
    gradient: Gradient

    @property
    def bound(self) -> float:
        """The ELBO at its end, in nats."""
        return -float(np.mean(self.losses[-max(1, len(self.losses) // 10) :]))


class Fitter:
    """Fits one `Guided`.

    Args:
        guided: the model with its guide.

    Attributes:
        fitted: posteriors of simpler families on the same data, by family.
        networks: weights that the last fit trained in place, by name.
    """

    def __init__(self, guided: Any) -> None:
        self.guided = guided
        self.fitted: dict[Any, Any] = {}
        self.networks: dict[str, Array] = {}
        self._selected: dict[Any, tuple[Any, dict[str, float]]] = {}
        self._simpler: dict[Any, Fitter] = {}
        self._rivals: list[float] = []

    def fit(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        num_steps: int | None,
        num_particles: int | None,
        optimizer: Any,
        seed: Any,
        progress: bool,
        checkpoint: Any,
        final: bool = True,
    ) -> Any:
        """As `Guided.fit`; a fit that is not final serves another one as its start, and keeps its tails."""
        from vi_reparam_pyro.posterior import Posterior

        begun = time.perf_counter()
        check_options(num_steps, num_particles, optimizer, progress)
        family = self.guided.family
        watched = num_steps is None and (family is None or family.converges)
        most: int = num_steps or (MAX_STEPS if family is None else family.max_steps)
        key = as_key(seed)
        check_data(args, kwargs)
        args, kwargs = as_tensors(args, kwargs)
        objective = self.guided.objective
        if num_particles is not None:
            objective = objective.with_particles(num_particles)
        factory = self._default_optimizer(None if watched else most) if optimizer is None else optimizer
        with isolated():
            params = self._checked(objective, key, args, kwargs)
            self.networks = {n: leaf for n, leaf in params.free.items() if isinstance(leaf, torch.nn.Parameter)}
            starts = self._warm_starts(key, args, kwargs, most, objective.num_particles)
            with without_validation():  # done; it reads values, and would not name a step
                active, prices = self._select(objective, params, args, kwargs)
                about = f"{objective!r}, seed {seed}{', until it has converged' if watched else ''}"
                runs: list[Course] = []
                for values in starts[: 1 if checkpoint is not None else None]:
                    own = params.copy() if len(starts) > 1 else params
                    own.start_from(values)
                    course = Convergence(most, family is not None and family.by_losses) if watched else None
                    loop = _Loop(
                        active, objective, State(own, factory), np.full(most, np.nan), key, args, kwargs, course
                    )
                    if runs:
                        loop.gradient.share(runs[0].gradient)
                    runs.append(self._run(loop, about, progress, checkpoint))
                best, rivals = self._compare(runs)
                chosen = _chosen(active, objective, best.values, args, kwargs)
        record = {
            "num_steps": len(best.losses),
            "converged": None if best.course is None else best.course.converged,
            "rivals": rivals,
            "num_particles": objective.num_particles,
            "objective": repr(objective),
            "family": repr(self.guided.family),
            "estimators": chosen,
            "variance_x_time": prices,
            "steps": best.gradient.how,
            "versions": _versions(),
        }
        posterior = Posterior(
            self.guided, best.values, args=args, kwargs=kwargs, losses=best.losses, seed=int(seed), record=record
        )
        if final and family is not None and family.has_tail:
            posterior.fit_tail()
        posterior.record["seconds"] = time.perf_counter() - begun
        return posterior

    def _run(self, loop: _Loop, about: str, progress: bool, checkpoint: Any) -> Course:
        """One fit from one start.

        Args:
            about: what tells its checkpoints from others'.
        """
        state, course, done = loop.state, loop.course, 0
        mark = checkpoints.mark_of(self.guided, state, len(loop.losses), about)
        if checkpoint is not None:
            done, loop.losses = checkpoints.load(checkpoint, mark, state, loop.losses, course)

        def save(n: int) -> None:
            checkpoints.save(checkpoint, mark, state, n, loop.losses, course)

        done = loop.run(done, progress, None if checkpoint is None else save)
        return Course(state.params.values(), loop.losses[:done], course, loop.gradient)

    def check(self, key: int, args: Any, kwargs: Any) -> None:
        """Everything that can be refused before the first step.

        Raises:
            ViReparamError: saying what to do.
        """
        with isolated():
            self._checked(self.guided.objective, key, args, kwargs)

    def _default_optimizer(self, num_steps: int | None) -> Any:
        """The family's own; at a constant rate where the fit watches itself."""
        return family_optimizer(num_steps, self.guided.family)

    def _warm_starts(self, key: int, args: Any, kwargs: Any, total: int, num_particles: int) -> list[dict[str, Array]]:
        """Values to start some parameters from; several where runs should be kept apart.

        Args:
            total: steps of the fit to come, and `num_particles` its particles: the most for parts of `Sites`.
        """
        self._rivals = []
        parts = isinstance(self.guided.family, Sites)
        if not parts and not isinstance(self.guided.family, JointFamily):
            return [{}]

        def fit(family: Any, num_steps: int | None, key: int) -> Any:
            posterior = self.fitted.get(family)
            if posterior is None:
                if family not in self._simpler:
                    estimators = self.guided.estimators if parts else None
                    simpler = type(self.guided)(self.guided.model, family, estimators=estimators)
                    if not parts:
                        simpler.written.share(self.guided.written)
                    self._simpler[family] = Fitter(simpler)
                particles = None
                if parts:
                    num_steps, particles = min(num_steps or total, total), min(num_particles, family.num_particles)
                plain = {"num_particles": particles, "optimizer": None, "progress": False, "checkpoint": None}
                posterior = self._simpler[family].fit(args, kwargs, num_steps=num_steps, seed=key, final=False, **plain)
            self._rivals = list(posterior.record["rivals"])
            return posterior

        return self.guided.written.warm_starts(fit, data_of(args, kwargs), mix(key) >> 32)

    def _compare(self, runs: list[Course]) -> tuple[Course, list[float]]:
        """The best of several runs, and by how many nats those that ended elsewhere are below it."""
        best = max(runs, key=lambda course: course.bound)
        place = getattr(self.guided.written, "location", lambda values: None)
        there = place(best.values) if len(runs) > 1 else None
        if there is None:
            return best, list(self._rivals)
        center, root = to_numpy(there.center), to_numpy(there.root)
        rivals = []
        for other in runs:
            move = to_numpy(place(other.values).center) - center  # type: ignore[union-attr]
            if distance(move, root, np.linalg.solve) > FAR:
                rivals.append(float(best.bound - other.bound))
        return best, rivals

    def _checked(self, objective: ELBO, key: int, args: Any, kwargs: Any) -> Parameters:
        """The first parameters, after everything that can be refused before the first step."""
        guided = self.guided
        try:
            try:
                return self._first(objective, key, args, kwargs)
            except ValueError as error:
                if "Expected parameter" not in str(error):
                    raise
                with without_validation():  # a NaN on the way: the first step will name its site
                    return self._first(objective, key, args, kwargs)
        except ViReparamError:
            raise
        except Exception as error:
            shapes = pytree.tree_map(lambda x: tuple(x.shape) if hasattr(x, "shape") else x, (args, kwargs))
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ArgumentError(
                f"{guided.name} could not run on arguments of shapes {shapes[0]} {shapes[1]}: {first}"
            ) from error

    def _first(self, objective: ELBO, key: int, args: Any, kwargs: Any) -> Parameters:
        guided = self.guided
        check_subsampling(backend, guided.model, data_of(args, kwargs))
        params = first_parameters(guided.model, guided.guide, args, kwargs, key=mix(key))
        with using(params.values()):
            objective.structure(guided.model, guided.guide, args, kwargs)
            with torch.no_grad():  # known or not, these values must lie in the supports
                runner_of(guided.model, guided.guide, args, kwargs, objective.entropy)(mix(0))
        return params

    def _select(self, objective: ELBO, params: Parameters, args: Any, kwargs: Any) -> tuple[Any, dict[str, float]]:
        """The guided model with `Auto` resolved by measurement, once for every shape of the data."""
        key = repr(objective), signature(args, kwargs)
        if key not in self._selected:
            chosen, prices = choose(self.guided, objective, args, kwargs)
            active = self.guided.with_estimators({**self.guided.estimators, **chosen}) if chosen else self.guided
            self._selected[key] = active, prices
        active, prices = self._selected[key]
        with using(params.values()):
            objective.structure(active.model, active.guide, args, kwargs)
        return active, prices


def _chosen(guided: Any, objective: ELBO, values: dict[str, Array], args: Any, kwargs: Any) -> dict[str, str]:
    """The estimator of each site, after `Auto` chose."""
    with using(values), torch.no_grad():
        result = runner_of(guided.model, guided.guide, args, kwargs, objective.entropy)(mix(0))
    return {name: repr(s.estimator) for name, s in result.draws.items()}


class _Watch:
    """The iterates of a block: their mean and that of their squares.

    Args:
        params: of which the leaves that have a gradient are watched.
    """

    def __init__(self, params: Parameters) -> None:
        self.params = params
        self._moving: list[Array] = []
        self._sums: tuple[Array, Array] | None = None

    def add(self) -> None:
        """Take note of where the leaves are now."""
        if not self._moving:
            self._moving = [leaf for leaf in self.params.free.values() if leaf.grad is not None]
        with torch.no_grad():
            x = torch.cat([leaf.detach().reshape(-1) for leaf in self._moving])
            if self._sums is None:
                self._sums = x, x * x
            else:
                self._sums[0].add_(x)
                self._sums[1].addcmul_(x, x)

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The means over `count` iterates; the next block begins."""
        assert self._sums is not None
        sums, self._sums = self._sums, None
        return to_numpy(sums[0]) / count, to_numpy(sums[1]) / count

    def put(self, vector: np.ndarray) -> None:
        """Move the leaves there, in place."""
        with torch.no_grad():
            sizes = [leaf.numel() for leaf in self._moving]
            for leaf, part in zip(self._moving, torch.as_tensor(vector).split(sizes), strict=True):
                leaf.copy_(part.reshape(leaf.shape))


class _Loop:
    """The steps of one fit."""

    def __init__(
        self,
        guided: Any,
        objective: ELBO,
        state: State,
        losses: np.ndarray,
        key: int,
        args: Any,
        kwargs: Any,
        course: Convergence | None = None,
    ) -> None:
        self.guided, self.objective, self.state, self.losses = guided, objective, state, losses
        self.args, self.kwargs = args, kwargs
        self.course, self.watch = course, _Watch(state.params)
        self.gradient = Gradient(guided, objective, state.params, key, args, kwargs, len(losses))

    def run(self, done: int, progress: bool, save: Callable[[int], None] | None) -> int:
        """Go on from step `done` to the end; the number of steps done then.

        Raises:
            NonFiniteError: for a NaN or an infinity, with its step and site.
        """
        total, saved, course = len(self.losses), time.perf_counter(), self.course
        size = BLOCK if course is None else convergence.BLOCK
        with tqdm(total=total, initial=done, disable=not progress, desc=f"fit {self.guided.name}") as bar:
            while done < total and not (course is not None and course.finished):
                count = min(size, total - done)
                before = self.state.snapshot()
                values, finite = self._block(done, count)
                if not finite:
                    self.state.restore(before)
                    self._find(done, count)
                self.losses[done : done + count] = values
                done += count
                if course is not None:
                    found = course.add(list(values), *self.watch.take(count))
                    if found is not None:
                        self.watch.put(found)
                bar.update(count)
                note = "" if course is None else f", {course}"
                elbo = f"ELBO {-np.mean(self.losses[max(0, done - 100) : done]):.4g}{note}"
                bar.set_postfix_str(elbo, refresh=False)
                ended = done == total or (course is not None and course.finished)
                if save is not None and (ended or time.perf_counter() - saved > 10.0):
                    save(done)
                    saved = time.perf_counter()
        return done

    def _move(self) -> None:
        state, rate = self.state, 1.0 if self.course is None else self.course.rate
        groups = state.optimizer.param_groups
        held = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = rate * group["lr"]
        state.optimizer.step()
        for group, own in zip(groups, held, strict=True):
            group["lr"] = own
        if state.schedule is not None:
            state.schedule.step()
        if self.course is not None:
            self.watch.add()

    def _mark(self, loss: Array) -> Array:
        """0, or NaN where the loss or a gradient is not finite: few operations, for they come at every step."""
        grads = (leaf.grad for leaf in self.state.params.free.values() if leaf.grad is not None)
        return torch.cat([x.reshape(-1) for x in (loss, *grads)]).mul_(0.0).sum()

    def _block(self, first: int, count: int) -> tuple[np.ndarray, bool]:
        losses, marks = [], []
        for step in range(first, first + count):
            loss = self.gradient(step, self.state.averages)
            losses.append(loss)
            marks.append(self._mark(loss))
            self._move()
        return to_numpy(torch.stack(losses)), bool(torch.stack(marks).sum() == 0.0)

    def _find(self, first: int, count: int) -> None:
        """The same steps again, one by one, up to the one that is not finite.

        Raises:
            NonFiniteError: always.
        """
        for step in range(first, first + count):
            loss = self.gradient(step, self.state.averages)
            self.losses[step] = float(loss)
            if not bool(self._mark(loss) == 0.0):
                self._report(step)
            self._move()
        raise RuntimeError("a step that was not finite did not come again")  # noise follows from the key: it must

    def _report(self, step: int) -> None:
        params = self.state.params.values()
        objective, sites = self.objective, {}
        runner = runner_of(self.guided.model, self.guided.guide, self.args, self.kwargs, objective.entropy)
        with using(params), torch.no_grad(), salted(self.gradient.salt(step)):
            structure = objective.structure(self.guided.model, self.guided.guide, self.args, self.kwargs)
            found = objective.particles(PROGRAM_KEY, runner, structure, dict(self.state.averages))
        for name, value in found.values.items():
            if not bool(torch.isfinite(value).all()):
                sites[name] = "its draw is not finite"
        for (side, name), cost in found.costs.items():
            bad = int((~torch.isfinite(cost)).sum())
            if bad and name not in sites:
                sites[name] = f"log density in the {side} is not finite for {bad} of {cost.numel()} elements"
        if not sites:
            for name, leaf in self.state.params.free.items():
                if leaf.grad is not None and not bool(torch.isfinite(leaf.grad).all()):
                    sites[name] = "its gradient is not finite"
        listed = "; ".join(f"site {name!r}: {what}" for name, what in sites.items()) or "the cause did not recur"
        raise NonFiniteError(
            f"fit of {self.guided.name} stopped at step {step}: {listed}. The last finite parameters are in "
            "error.params; try a smaller learning rate, float64, or look at that site's density",
            step=step,
            sites=sites,
            params=params,
            losses=self.losses[: step + 1],
        )


def as_key(seed: Any) -> int:
    """A key from an int.

    Raises:
        ArgumentError: if it is none.
    """
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return mix(int(seed) & ((1 << 63) - 1))
    raise ArgumentError(f"seed={seed!r}: expected an int")


def check_options(num_steps: Any, num_particles: Any, optimizer: Any, progress: Any) -> None:
    """Refuse options of a fit that cannot be used.

    Raises:
        ArgumentError: naming the option.
    """
    for name, value in (("num_steps", num_steps), ("num_particles", num_particles)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ArgumentError(f"fit({name}={value!r}): expected an integer of at least 1")
    if optimizer is not None and not callable(optimizer):
        raise ArgumentError(
            f"fit(optimizer={optimizer!r}): expected a torch.optim factory, such as lambda params: "
            "torch.optim.Adam(params, lr=0.01)"
        )
    if not isinstance(progress, bool):
        raise ArgumentError(f"fit(progress={progress!r}): expected True or False")


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("vi-reparam", "pyro-ppl", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source
            found[name] = "unknown"
    return found
