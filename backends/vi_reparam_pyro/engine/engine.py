"""Torch as the core's compiler."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from vi_reparam.backend.data import Data
from vi_reparam.backend.engine import DrawInfo, Task
from vi_reparam.backend.lock import one_at_a_time
from vi_reparam.errors import ArgumentError
from vi_reparam.objectives.run import Runner
from vi_reparam.objectives.subsampling import check_subsampling
from vi_reparam_pyro.engine import optimizers
from vi_reparam_pyro.engine.arguments import as_arrays, data_of, doubts_of, refuse_tracing, to_numpy
from vi_reparam_pyro.engine.codec import TorchCodec
from vi_reparam_pyro.engine.program import Program
from vi_reparam_pyro.engine.reading import refuse_reading
from vi_reparam_pyro.host.params import first_parameters, isolated, using
from vi_reparam_pyro.lanes.seeding import MASK
from vi_reparam_pyro.lanes.vmap import keyed, vectorized, without_validation
from vi_reparam_pyro.ops.home import at_home, brought_home, with_data
from vi_reparam_pyro.ops.ops import mix

Array = Any
Params = Mapping[str, Array]

BUDGET = 2_000_000
"""Numbers held at once by one batch of gradients (draws, costs and gradients)."""

LANES, PARTICLES = 256, 1024
"""Most gradients of a batch, and most particles."""

CHUNK_BUDGET, MOST_RUNS = 2**22, 500
"""Numbers held at once by one chunk of runs, and the most runs of it."""


if hasattr(os, "register_at_fork"):  # threads do not survive a fork, and OpenMP would wait for them
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class ReadsValuesError(Exception):
    """A function or program reads a draw's value in Python."""


@one_at_a_time
class TorchEngine:
    """`vi_reparam.backend.engine.Engine` for torch."""

    reads_values: tuple[type[Exception], ...] = (ReadsValuesError,)
    array_functions = "torch"
    codec: Any = TorchCodec()

    def key(self, seed: Any) -> int:
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool) and -(2**63) <= seed < 2**63:
            return mix(int(seed) & MASK)
        raise ArgumentError(f"seed={seed!r}: expected an int of at most 64 bits")

    def data(self, args: tuple, kwargs: Mapping, model: Any = None, *, inputs: tuple = (), finite: bool = True) -> Data:
        args, kwargs = as_arrays(args, dict(kwargs))
        if model is not None and finite:
            refuse_tracing(args, kwargs)
        return dataclasses.replace(data_of(args, kwargs), doubts=doubts_of(args, kwargs))

    @with_data
    def call(self, fn: Callable[..., Any], data: Data, *inputs: Any, name: Hashable = None) -> Any:
        with torch.no_grad(), without_validation():
            return fn(*data.call, *brought_home(inputs))

    @with_data
    def runs_at_once(self, fn: Callable[..., Any], data: Data, *inputs: Any) -> bool:
        inputs = brought_home(inputs)
        try:
            _at_once(lambda key: fn(key, *data.call, *inputs), 2, mix(0))
        except (ReadsValuesError, RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
            return False
        return True

    @with_data
    def many(
        self,
        fn: Any,
        data: Data,
        key: Any,
        num: int,
        *inputs: Any,
        size: int,
        first: int = 0,
        name: Any = None,
        at_once: bool = True,
    ) -> Any:
        inputs = brought_home(inputs)

        def one(key: int) -> Any:
            return fn(key, *data.call, *inputs)

        if not at_once:
            with torch.no_grad():
                runs = [pytree.tree_map(torch.as_tensor, one(mix(key ^ mix(i + 1)))) for i in range(first, first + num)]
            return pytree.tree_map(lambda *xs: torch.stack(xs), runs[0], *runs[1:])
        # chunks of one size, so that the noise of a run does not depend on how many there are
        chunk = int(np.clip(CHUNK_BUDGET // max(size, 1), 1, MOST_RUNS))
        begin, end = first // chunk, -(-(first + num) // chunk)
        chunks = [_at_once(one, chunk, mix(key ^ mix(i + 1))) for i in range(begin, end)]
        skip = first - begin * chunk
        return pytree.tree_map(lambda *xs: torch.cat(xs)[skip : skip + num], chunks[0], *chunks[1:])

    @with_data
    def first_params(self, model: Any, guide: Any, data: Data, key: int, known: Params) -> dict[str, Array]:
        known = brought_home(known)
        with isolated(), without_validation():
            found = first_parameters(model, guide, *data.call, key=mix(key), known=known).values()
        return {**found, **known}

    @with_data
    def check(self, task: Task, data: Data, start: Callable[[int], Params], key: int, *, known: bool) -> Params | None:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise ArgumentError("a fit cannot run inside torch.no_grad() or inference_mode(): call fit outside of them")
        if not known:
            with isolated(), without_validation():
                refuse_reading(task.model, data, mix(key))
        try:
            return self._checked(task, data, start, key)
        except ValueError as error:
            if "Expected parameter" not in str(error):
                raise
            with without_validation():  # a NaN on the way: the first step will name its site
                params = self._checked(task, data, start, key)
                with isolated(), using(dict(params)):
                    costs = self._run(task, data).costs.values()
            if all(bool(torch.isfinite(cost).all()) for cost in costs):
                raise  # no step would
            return params

    def _checked(self, task: Task, data: Data, start: Callable[[int], Params], key: int) -> Params:
        with isolated():
            check_subsampling(task.objective.backend, task.model, data)
            params = start(key)
            with using(dict(params)):
                task.objective.structure(task.model, task.guide, *data.call)
                self._run(task, data)  # known or not, these values must lie in the supports
        return params

    def _run(self, task: Task, data: Data) -> Any:
        objective = task.objective
        with torch.no_grad():
            return Runner(objective.backend, task.model, task.guide, *data.call, objective.entropy)(mix(0))

    @with_data
    def draws(self, task: Task, data: Data, params: Params | None) -> dict[str, DrawInfo]:
        known = brought_home(self.first_params(task.model, task.guide, data, 0, {}) if params is None else dict(params))
        with isolated(), without_validation(), using(known):
            return self._run(task, data).described()

    def devices(self, given: Any) -> tuple[Any, ...]:
        raise ArgumentError(
            f"fit(devices={given!r}): Pyro fits on the one device where the data are; start a process for each device"
        )

    def optimizer(self, plan: Any) -> Any:
        return optimizers.maker(plan)

    def describe(self, optimizer: Any) -> str:
        made, schedule = optimizers.maker(optimizer)({"": torch.zeros(1, requires_grad=True)})
        told = {} if schedule is None else {type(schedule).__name__: schedule.state_dict()}
        return f"{type(made).__name__} {made.state_dict()['param_groups']} {told}"

    @with_data
    def program(self, task: Task, data: Data, optimizer: Any, *, num_steps: int, watched: bool) -> Program:
        return Program(task, data, optimizer, num_steps, watched)

    def gradients(
        self, task: Task, data: Data, params: Params, key: int, num: int
    ) -> Iterator[tuple[np.ndarray, float]]:
        with at_home(*data.arrays):
            known: dict[str, Array] = brought_home({name: params[name] for name in sorted(params)})
        particles, length = task.objective.num_particles, sum(value.numel() for value in known.values())
        with at_home(*data.arrays), isolated():
            with using(known), without_validation():
                structure = task.objective.structure(task.model, task.guide, *data.call)
                run = self._run(task, data)
            with using(known) as given, torch.no_grad(), keyed(mix(0)):
                task.guide(*data.call[0], **data.call[1])
                networks = bool(given.modules)  # whose weights are no arguments of lanes
        size = sum(s.draw.value.numel() for s in run.draws.values()) + sum(c.numel() for c in run.costs.values())
        batch = 1
        if structure.in_lanes and not networks:
            most = min(LANES, max(1, PARTICLES // particles))
            batch = min(int(np.clip(BUDGET // max(particles * size, length, 1), 1, most)), max(1, num // 2))
        for number in range(-(-num // batch)):
            begun = time.perf_counter()
            with at_home(*data.arrays), isolated(), without_validation():
                found = _gradients(task, data, known, batch, mix(key ^ mix(number + 1)))
            yield found, time.perf_counter() - begun

    def settle(self, posterior: Any) -> None:
        guided, data = posterior.guided, data_of(posterior.args, posterior.kwargs)
        with at_home(*data.arrays), isolated(), without_validation():
            found = first_parameters(guided.model, guided.guide, *data.call, key=mix(0), known=posterior.params)
        networks = {name for name, leaf in found.free.items() if isinstance(leaf, torch.nn.Parameter)}
        found.start_from({name: posterior.params[name] for name in networks})

    def keep_programs(self, folder: str, size: int) -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # where torch bounds nothing

    def versions(self) -> dict[str, str]:
        found = {}
        for name in ("vi-reparam", "pyro-ppl", "torch"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:  # run from its source
                found[name] = "unknown"
        return found


def _at_once(one: Callable[[int], Any], num: int, key: int) -> Any:
    """Runs at once, each with noise of its own.

    Raises:
        ReadsValuesError: if `one` reads a value in Python.
    """
    try:
        with torch.no_grad():
            return vectorized(lambda: pytree.tree_map(torch.as_tensor, one(key)), num, key)
    except RuntimeError as error:
        if any(said in str(error) for said in ("vmap", ".item()", "data pointer")):
            raise ReadsValuesError(str(error)) from error
        raise


def _gradients(task: Task, data: Data, params: Params, batch: int, key: int) -> np.ndarray:
    """`batch` independent gradients of the loss, flattened, shape ``[batch, parameters]``."""
    names, weights = list(params), {}

    def loss(*values: Array) -> Array:
        with using(dict(zip(names, values, strict=True))) as given:
            value = task.objective.surrogate(key, task.model, task.guide, *data.call)[0]
            weights.update({name: leaf for name, (leaf, _) in given.modules.items()})
        return value

    if batch == 1:
        leaves = [params[n].detach().clone().requires_grad_() for n in names]
        total = loss(*leaves)
    else:
        leaves = [params[n].detach().expand((batch, *params[n].shape)).clone().requires_grad_() for n in names]
        total = vectorized(loss, batch, key, *leaves).sum()
    moved = [weights.get(n, leaf) for n, leaf in zip(names, leaves, strict=True)]
    found = torch.autograd.grad(total, moved, allow_unused=True)
    flat = [
        np.zeros((batch, leaf.numel() // batch)) if g is None else to_numpy(g).reshape(batch, -1)
        for g, leaf in zip(found, leaves, strict=True)
    ]
    return np.concatenate(flat, axis=1)


engine = TorchEngine()
