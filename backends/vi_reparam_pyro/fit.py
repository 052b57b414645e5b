"""The fit: a loop of steps, watched for anything that is not finite."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from vi_reparam.errors import ArgumentError, NonFiniteError, ViReparamError
from vi_reparam.guides import JointFamily
from vi_reparam_pyro import checkpoint as checkpoints
from vi_reparam_pyro.arguments import as_tensors, check_data, signature, to_numpy
from vi_reparam_pyro.lanes import without_validation
from vi_reparam_pyro.objectives import ELBO
from vi_reparam_pyro.ops import mix
from vi_reparam_pyro.optimizers import built, default_optimizer
from vi_reparam_pyro.params import Parameters, first_parameters, isolated, using
from vi_reparam_pyro.run import runner_of
from vi_reparam_pyro.seeding import salted
from vi_reparam_pyro.select import choose
from vi_reparam_pyro.step import PROGRAM_KEY, Gradient
from vi_reparam_pyro.subsampling import check_subsampling

Array = Any

BLOCK = 32
"""Steps between two looks at whether all was finite: a look makes a GPU wait."""


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
        self.optimizer, self.schedule = built(factory, leaves)
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


class Fitter:
    """Fits one `Guided`.

    Args:
        guided: the model with its guide.
    """

    def __init__(self, guided: Any) -> None:
        self.guided = guided
        self._selected: dict[Any, tuple[Any, dict[str, float]]] = {}

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
    ) -> Any:
        """As `Guided.fit`."""
        from vi_reparam_pyro.posterior import Posterior

        begun = time.perf_counter()
        num_steps = 3_000 if num_steps is None else num_steps
        _check_options(num_steps, num_particles, optimizer, progress)
        key = as_key(seed)
        check_data(args, kwargs)
        args, kwargs = as_tensors(args, kwargs)
        objective = self.guided.objective
        if num_particles is not None:
            objective = objective.with_particles(num_particles)
        factory = self._default_optimizer(num_steps) if optimizer is None else optimizer
        with isolated():
            params = self._checked(objective, key, args, kwargs)
            params.start_from(self._warm_start(key, args, kwargs))
            with without_validation():  # done; it reads values, and would not name a step
                active, prices = self._select(objective, params, args, kwargs)
                state = State(params, factory)
                losses, done = np.full(num_steps, np.nan), 0
                mark = checkpoints.mark_of(self.guided, state, num_steps, f"{objective!r}, seed {seed}")
                if checkpoint is not None:
                    done, losses = checkpoints.load(checkpoint, mark, state, losses)
                loop = _Loop(active, objective, state, losses, key, args, kwargs)
                loop.run(
                    done,
                    progress,
                    None if checkpoint is None else lambda n: checkpoints.save(checkpoint, mark, state, n, losses),
                )
                values = state.params.values()
                chosen = _chosen(active, objective, values, args, kwargs)
        record = {
            "num_steps": num_steps,
            "num_particles": objective.num_particles,
            "objective": repr(objective),
            "family": repr(self.guided.family),
            "estimators": chosen,
            "variance_x_time": prices,
            "steps": loop.gradient.how,
            "seconds": time.perf_counter() - begun,
            "versions": _versions(),
        }
        return Posterior(self.guided, values, args=args, kwargs=kwargs, losses=losses, seed=int(seed), record=record)

    def _default_optimizer(self, num_steps: int) -> Any:
        family = self.guided.family
        if family is None:
            return default_optimizer(num_steps)
        return default_optimizer(num_steps, family.learning_rate, clip=family.clip, warmup=family.warmup)

    def _warm_start(self, key: int, args: Any, kwargs: Any) -> dict[str, Array]:
        """Values to start some parameters from: those of a simpler family's own fit."""
        if not isinstance(self.guided.family, JointFamily):
            return {}

        def fit(family: Any, num_steps: int, key: int) -> dict[str, Array]:
            simpler = type(self.guided)(self.guided.model, family)
            simpler.written.share(self.guided.written)
            return dict(simpler.fit(*args, num_steps=num_steps, seed=key, progress=False, **kwargs).params)

        return self.guided.written.warm_start(fit, args, kwargs, mix(key) >> 32)

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
        check_subsampling(guided.model, args, kwargs)
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


class _Loop:
    """The steps of one fit."""

    def __init__(
        self, guided: Any, objective: ELBO, state: State, losses: np.ndarray, key: int, args: Any, kwargs: Any
    ) -> None:
        self.guided, self.objective, self.state, self.losses = guided, objective, state, losses
        self.args, self.kwargs = args, kwargs
        self.gradient = Gradient(guided, objective, state.params, key, args, kwargs, len(losses))

    def run(self, done: int, progress: bool, save: Callable[[int], None] | None) -> None:
        """Go on from step `done` to the end.

        Raises:
            NonFiniteError: for a NaN or an infinity, with its step and site.
        """
        total, saved = len(self.losses), time.perf_counter()
        with tqdm(total=total, initial=done, disable=not progress, desc=f"fit {self.guided.name}") as bar:
            while done < total:
                count = min(BLOCK, total - done)
                before = self.state.snapshot()
                values, finite = self._block(done, count)
                if not finite:
                    self.state.restore(before)
                    self._find(done, count)
                self.losses[done : done + count] = values
                done += count
                bar.update(count)
                bar.set_postfix_str(f"ELBO {-np.mean(self.losses[max(0, done - 100) : done]):.4g}", refresh=False)
                if save is not None and (done == total or time.perf_counter() - saved > 10.0):
                    save(done)
                    saved = time.perf_counter()

    def _move(self) -> None:
        self.state.optimizer.step()
        if self.state.schedule is not None:
            self.state.schedule.step()

    def _finite(self, loss: Array) -> Array:
        grads = (leaf.grad for leaf in self.state.params.free.values() if leaf.grad is not None)
        return torch.stack([torch.isfinite(x).all() for x in (loss, *grads)]).all()

    def _block(self, first: int, count: int) -> tuple[np.ndarray, bool]:
        losses, flags = [], []
        for step in range(first, first + count):
            loss = self.gradient(step, self.state.averages)
            losses.append(loss)
            flags.append(self._finite(loss))
            self._move()
        return to_numpy(torch.stack(losses)), bool(torch.stack(flags).all())

    def _find(self, first: int, count: int) -> None:
        """The same steps again, one by one, up to the one that is not finite.

        Raises:
            NonFiniteError: always.
        """
        for step in range(first, first + count):
            loss = self.gradient(step, self.state.averages)
            self.losses[step] = float(loss)
            if not bool(self._finite(loss)):
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


def _check_options(num_steps: Any, num_particles: Any, optimizer: Any, progress: Any) -> None:
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
