"""The steps of a fit in torch, in place: by the handlers, or as a graph that was captured."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vi_reparam.backend.data import Data
from vi_reparam.backend.engine import Task
from vi_reparam.backend.lock import one_at_a_time
from vi_reparam.objectives.run import Runner
from vi_reparam_pyro.engine.arguments import to_numpy
from vi_reparam_pyro.engine.gradient import PROGRAM_KEY, Gradient, salt
from vi_reparam_pyro.engine.optimizers import Maker
from vi_reparam_pyro.host.params import Parameters, first_parameters, isolated, using
from vi_reparam_pyro.lanes.seeding import salted
from vi_reparam_pyro.lanes.vmap import without_validation
from vi_reparam_pyro.ops.home import brought_home, with_data
from vi_reparam_pyro.ops.ops import mix

Array = Any


class State:
    """What a step changes.

    Attributes:
        params: the parameters; `optimizer` and `schedule` (or None) move them.
        key: from which the noise of all steps follows; `step`: the next one.
        rate: part of the optimizer's own learning rate.
        averages: the decaying averages, by site.
        sums: of the watched leaves and of their squares over `seen` steps; None before the first.
    """

    def __init__(self, params: Parameters, make: Maker, key: int) -> None:
        self.params, self.key = params, key
        self.optimizer, self.schedule = make(params.free)
        self.averages: dict[str, Any] = {}
        self.step, self.rate = 0, 1.0
        self.sums: tuple[Array, Array] | None = None
        self.seen = 0
        self._moving: list[Array] = []

    def snapshot(self) -> Any:
        """A copy, for `restore`."""
        schedule = None if self.schedule is None else copy.deepcopy(self.schedule.state_dict())
        leaves = {name: leaf.detach().clone() for name, leaf in self.params.free.items()}
        sums = None if self.sums is None else tuple(x.clone() for x in self.sums)
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        return leaves, optimizer, schedule, dict(self.averages), self.step, sums, self.seen

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        leaves, optimizer, schedule, averages, self.step, self.sums, self.seen = snapshot
        with torch.no_grad():
            for name, value in leaves.items():
                self.params.free[name].copy_(value)
        self.optimizer.load_state_dict(optimizer)
        if self.schedule is not None:
            self.schedule.load_state_dict(schedule)
        self.averages = dict(averages)

    def mark(self, loss: Array) -> Array:
        """0, or NaN where the loss or a gradient is not finite: few operations, for they come at every step."""
        grads = (leaf.grad for leaf in self.params.free.values() if leaf.grad is not None)
        return torch.cat([x.reshape(-1) for x in (loss, *grads)]).mul_(0.0).sum()

    def move(self, *, watched: bool) -> None:
        """One step of the optimizer, at the present rate."""
        if self.rate == 1.0:
            self.optimizer.step()
        else:
            groups = self.optimizer.param_groups
            whole = [group["lr"] for group in groups]
            for group in groups:
                group["lr"] = self.rate * group["lr"]
            self.optimizer.step()
            for group, own in zip(groups, whole, strict=True):
                group["lr"] = own
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1
        if watched:
            self._watch()

    @property
    def moving(self) -> list[Array]:
        """The leaves that have a gradient."""
        if not self._moving:
            self._moving = [leaf for leaf in self.params.free.values() if leaf.grad is not None]
        return self._moving

    def _watch(self) -> None:
        with torch.no_grad():
            x = torch.cat([leaf.detach().reshape(-1) for leaf in self.moving])
            self.seen += 1
            if self.sums is None:
                self.sums = x, x * x
            else:
                self.sums[0].add_(x)
                self.sums[1].addcmul_(x, x)


@one_at_a_time
class Program:
    """`vi_reparam.backend.engine.Program` in torch: for these data, and no others of their form.

    Args:
        task: what is fitted; `data`: to what.
        make: the optimizer of leaves.
        num_steps: of the whole fit, at the most.
        watched: whether the iterates are summed up.
    """

    def __init__(self, task: Task, data: Data, make: Maker, num_steps: int, watched: bool) -> None:
        self.task, self.make, self.watched = task, make, watched
        self.gradient = Gradient(task, data, num_steps)

    @property
    def execution(self) -> str:  # it is known after a few steps
        return self.gradient.how

    @with_data
    def init(self, key: int, values: Mapping[str, Array], data: Data) -> State:
        values = brought_home(values)
        with isolated(), without_validation():
            params = first_parameters(self.task.model, self.task.guide, *data.call, key=mix(key), known=values)
        networks = {name for name, leaf in params.free.items() if isinstance(leaf, torch.nn.Parameter)}
        params.start_from({name: values[name] for name in networks & set(values)})
        return State(params, self.make, key)

    @with_data
    def advance(self, state: State, steps: int) -> tuple[State, np.ndarray, bool]:
        with isolated(), without_validation():  # done; it reads values, and would not name a step
            before, losses, marks = state.snapshot(), [], []
            try:
                for _ in range(steps):
                    loss = self.gradient(state.params, state.key, state.step, state.averages)
                    losses.append(loss)
                    marks.append(state.mark(loss))
                    state.move(watched=self.watched)
            except KeyboardInterrupt:
                state.restore(before)
                raise
            if bool(torch.stack(marks).sum() == 0.0):
                return state, to_numpy(torch.stack(losses)), True
            state.restore(before)
            return state, self._up_to_the_bad_one(state, steps), False

    def _up_to_the_bad_one(self, state: State, steps: int) -> np.ndarray:
        """The same steps again, one by one, up to the one that is not finite; the losses."""
        losses = []
        for _ in range(steps):
            averages = dict(state.averages)
            loss = self.gradient(state.params, state.key, state.step, state.averages)
            losses.append(float(loss))
            if not bool(state.mark(loss) == 0.0):
                state.averages = averages
                return np.array(losses)
            state.move(watched=self.watched)
        raise RuntimeError("a step that was not finite did not come again")  # noise follows from the key: it must

    def feed(self, state: State, data: Data) -> State:
        self.gradient.feed(data)
        return state

    @with_data
    def params(self, state: State) -> dict[str, Array]:
        # Detached: a value of Pyro's keeps a weak reference to its leaf, which cannot be pickled.
        return {name: value.detach() for name, value in state.params.values().items()}

    @with_data
    def moments(self, state: State) -> tuple[State, np.ndarray, np.ndarray]:
        assert state.sums is not None
        mean, square = (to_numpy(x) / state.seen for x in state.sums)
        state.sums, state.seen = None, 0
        return state, mean, square

    @with_data
    def move(self, state: State, vector: np.ndarray | None, rate: float) -> State:
        state.rate = rate
        if vector is not None:
            with torch.no_grad():
                sizes = [leaf.numel() for leaf in state.moving]
                for leaf, part in zip(state.moving, torch.as_tensor(vector, device="cpu").split(sizes), strict=True):
                    leaf.copy_(part.reshape(leaf.shape))
        return state

    def arrays(self, state: State) -> dict[str, np.ndarray]:
        arrays = {f"param/{name}": to_numpy(leaf) for name, leaf in state.params.free.items()}
        for index, slots in state.optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer/{index}/{slot}": to_numpy(x) for slot, x in slots.items() if x is not None}
        for site, average in state.averages.items():
            arrays |= {f"average/{site}/{part}": to_numpy(value) for part, value in average.items()}
        if state.sums is not None:
            arrays |= {f"sums/{i}": to_numpy(x).copy() for i, x in enumerate(state.sums)}
        arrays[f"kind/{type(state.optimizer).__name__}"] = np.zeros(0)
        return arrays | {"counts": np.array([state.step, state.seen]), "rate": np.array(state.rate)}

    @with_data
    def restore(self, state: State, arrays: Mapping[str, np.ndarray]) -> State:
        slots: dict[int, dict[str, Any]] = {}
        sums = []
        for name, array in arrays.items():
            kind, _, rest = name.partition("/")
            if kind == "param":
                with torch.no_grad():
                    state.params.free[rest].copy_(torch.as_tensor(array, device="cpu"))
            elif kind == "optimizer":
                index, _, slot = rest.partition("/")
                slots.setdefault(int(index), {})[slot] = torch.as_tensor(array, device="cpu")
            elif kind == "average":
                site, _, part = rest.rpartition("/")
                state.averages.setdefault(site, {})[part] = torch.as_tensor(array)
            elif kind == "sums":
                sums.append(torch.as_tensor(array))
        state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": slots})
        state.step, state.seen = (int(n) for n in arrays["counts"])
        state.sums, state.rate = (sums[0], sums[1]) if sums else None, float(arrays["rate"])
        if state.schedule is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it wants the optimizer to step first
                for _ in range(state.step):
                    state.schedule.step()
        return state

    @with_data
    def non_finite(self, state: State) -> dict[str, str]:
        task, call = self.task, self.gradient.data.call
        objective, sites = task.objective, {}
        runner = Runner(objective.backend, task.model, task.guide, *call, objective.entropy)
        with isolated(), without_validation(), torch.no_grad(), using(state.params.values()):
            structure = objective.structure(task.model, task.guide, *call)
            with salted(salt(state.key, state.step)):
                result = objective.particles(PROGRAM_KEY, runner, lambda: structure, dict(state.averages))
        for name, value in result.values.items():
            if not bool(torch.isfinite(value).all()):
                sites[name] = "its draw is not finite"
        for (side, name), cost in result.costs.items():
            bad = int((~torch.isfinite(cost)).sum())
            if bad and name not in sites:
                sites[name] = f"log density in the {side} is not finite for {bad} of {cost.numel()} elements"
        if not sites:
            for name, leaf in state.params.free.items():
                if leaf.grad is not None and not bool(torch.isfinite(leaf.grad).all()):
                    sites[name] = "its gradient is not finite"
        return sites
