"""The fit: one compiled loop, watched for anything that is not finite."""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from jax.flatten_util import ravel_pytree
from numpyro.handlers import substitute
from numpyro.infer import SVI
from tqdm.auto import tqdm

from vi_reparam.errors import ArgumentError, NonFiniteError, ViReparamError
from vi_reparam.fit.convergence import BLOCK, Convergence
from vi_reparam.gaussians.pathfinder import FAR, MOST_RUNS, distance
from vi_reparam.guides import JointFamily, Sites
from vi_reparam.objectives.subsampling import check_subsampling
from vi_reparam_numpyro import checkpoint as checkpoints
from vi_reparam_numpyro.arguments import Arguments, check_data
from vi_reparam_numpyro.backend import backend, data_of
from vi_reparam_numpyro.engine.optimizers import family_optimizer, fingerprint
from vi_reparam_numpyro.host.objectives import ELBO
from vi_reparam_numpyro.run import run
from vi_reparam_numpyro.select import choose

Array = Any

CHUNK = 1024
"""Most steps between two looks at the clock; the loop's trip count is data, so it compiles once."""

SAVE_EVERY = 10.0
"""Seconds between two checkpoints."""

MAX_STEPS = 10_000
"""Most steps of a hand-written guide's fit that ends by itself."""

_READS_DATA = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


@dataclasses.dataclass
class Program:
    """A compiled fit: for one model, guide, objective, optimizer and shape of the data."""

    init: Any
    advance: Any
    constrain: Any
    flat: Any
    unflat: Any


@dataclasses.dataclass(frozen=True)
class Course:
    """One fit from one start."""

    params: dict[str, Array]
    state: Any
    losses: np.ndarray
    course: Convergence | None

    @property
    def bound(self) -> float:
        """The ELBO at its end, in nats."""
        return -float(np.mean(self.losses[-max(1, len(self.losses) // 10) :]))


class Fitter:
    """Fits one `Guided`, and keeps what it compiled.

    Args:
        guided: the model with its guide.

    Attributes:
        fitted: posteriors of simpler families on the same data, by family.
        reads_data: whether the model is known to read its data in Python, so that a program must close over them.
    """

    def __init__(self, guided: Any) -> None:
        self.guided = guided
        self._programs: dict[Any, Program] = {}
        self._selected: dict[Any, tuple[Any, dict[str, float]]] = {}
        self._checked: set[Any] = set()
        self._simpler: dict[Any, Any] = {}
        self._rivals: list[float] = []
        self.fitted: dict[Any, Any] = {}
        self.reads_data = False

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
        from vi_reparam_numpyro.posterior import Posterior

        begun = time.perf_counter()
        check_options(num_steps, num_particles, optimizer, progress)
        family = self.guided.family
        watched = num_steps is None and (family is None or family.converges)
        total: int = num_steps or (MAX_STEPS if family is None else family.max_steps)
        key = as_key(seed)
        args, kwargs = self.prepare(args, kwargs)
        objective = self.guided.objective
        if num_particles is not None:
            objective = objective.with_particles(num_particles)
        optimizer = self._default_optimizer(None if watched else total) if optimizer is None else optimizer
        arguments = self.arguments(args, kwargs)
        self._check(objective, arguments, args, kwargs)
        active, prices = self._select(objective, arguments, args, kwargs)
        start_key, key = random.split(key)
        runs = []
        most = MOST_RUNS if checkpoint is None else 1
        for values in self._warm_starts(key, arguments, total, objective.num_particles)[:most]:
            held = self.guided.start_at(arguments, start_key, values)
            program = self._program(active, objective, optimizer, arguments, held, watched)
            state = program.init(key, held, arguments.arrays)
            losses = np.full(total, np.nan)
            done, course = 0, Convergence(total, self._by_losses) if watched else None
            if checkpoint is not None:
                mark = checkpoints.mark_of(self.guided, state, total, repr(objective))
                state, done, losses = checkpoints.load(checkpoint, mark, state, losses, course)
            state, losses = self._loop(
                active, program, arguments, state, losses, done, course, progress, checkpoint, objective, args, kwargs
            )
            runs.append(Course(program.constrain(state["params"]), state, losses, course))
        best, rivals = self._compare(runs)
        params, state, losses, course = best.params, best.state, best.losses, best.course
        record = {
            "num_steps": len(losses),
            "converged": None if course is None else course.converged,
            "rivals": rivals,
            "num_particles": objective.num_particles,
            "objective": repr(objective),
            "family": repr(self.guided.family),
            "estimators": _chosen(active, params, args, kwargs),
            "variance_x_time": prices,
            "versions": _versions(),
        }
        posterior = Posterior(
            self.guided,
            {**params, **(state["mutable"] or {})},
            args=args,
            kwargs=kwargs,
            losses=losses,
            seed=seed if isinstance(seed, int) else 0,
            record=record,
        )
        if final and family is not None and family.has_tail:
            posterior.fit_tail()
        posterior.record["seconds"] = time.perf_counter() - begun
        return posterior

    def prepare(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments as arrays that can be traced, unless the model reads them in Python.

        Raises:
            ArgumentError: for data that are not finite.
        """
        check_data(args, kwargs)
        args, kwargs = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, (args, kwargs))
        if not self.reads_data:
            self._note_reading(args, kwargs)
        if self.reads_data:  # NumPy arrays keep their values under tracing
            args, kwargs = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, (args, kwargs))
        return args, kwargs

    @property
    def _by_losses(self) -> bool:
        return self.guided.family is not None and self.guided.family.by_losses

    def _default_optimizer(self, num_steps: int | None) -> Any:
        """The family's own; at a constant rate where the fit watches itself."""
        return family_optimizer(num_steps, self.guided.family)

    def _warm_starts(self, key: Any, arguments: Arguments, total: int, num_particles: int) -> list[dict[str, Array]]:
        """Values to start some parameters from; several where runs should be kept apart.

        Args:
            total: steps of the fit to come, and `num_particles` its particles: the most for parts of `Sites`.
        """
        self._rivals = []
        parts = isinstance(self.guided.family, Sites)
        if not parts and not isinstance(self.guided.family, JointFamily):
            return [{}]
        args, kwargs = arguments.join(arguments.arrays)

        def fit(family: Any, num_steps: int | None, key: Any) -> Any:
            if family in self.fitted:
                self._rivals = self.fitted[family].record["rivals"]
                return self.fitted[family]
            if family not in self._simpler:
                estimators = self.guided.estimators if parts else None
                simpler = type(self.guided)(self.guided.model, family, estimators=estimators)
                if not parts:
                    simpler.written.share(self.guided.written)
                self._simpler[family] = Fitter(simpler)
            particles = None
            if parts:
                num_steps, particles = min(num_steps or total, total), min(num_particles, family.num_particles)
            options = {
                "num_particles": particles,
                "optimizer": None,
                "progress": False,
                "checkpoint": None,
                "final": False,
            }
            posterior = self._simpler[family].fit(args, kwargs, num_steps=num_steps, seed=key, **options)
            self._rivals = posterior.record["rivals"]
            return posterior

        return self.guided.written.warm_starts(fit, data_of(arguments), random.fold_in(key, 1))

    def _compare(self, runs: list[Course]) -> tuple[Course, list[float]]:
        """The best of several runs, and by how many nats those that ended elsewhere are below it."""
        best = max(runs, key=lambda course: course.bound)
        there = self.guided.written.location(best.params) if len(runs) > 1 else None
        if there is None:
            return best, list(self._rivals)
        root = np.asarray(there.root)
        rivals = []
        for other in runs:
            move = np.asarray(self.guided.written.location(other.params).center - there.center)
            if distance(move, root, np.linalg.solve) > FAR:
                rivals.append(float(best.bound - other.bound))
        return best, rivals

    def arguments(self, args: Any, kwargs: Any) -> Arguments:
        """Prepared arguments, taken apart as this model allows."""
        return Arguments.of(args, kwargs, closed=self.reads_data)

    def check(self, args: Any, kwargs: Any) -> None:
        """Everything that can be refused before compiling, for prepared arguments."""
        self._check(self.guided.objective, self.arguments(args, kwargs), args, kwargs)

    def _check(self, objective: ELBO, arguments: Arguments, args: Any, kwargs: Any) -> None:
        """Everything that can be refused before compiling."""
        if arguments.key in self._checked:
            return
        start = functools.partial(self.guided.start_at, arguments)
        try:
            check_subsampling(backend, self.guided.model, data_of(arguments))
            objective.check_at(start, self.guided.model, self.guided.guide, args, kwargs)
        except ViReparamError:
            raise
        except Exception as error:
            shapes = jax.tree.map(lambda x: getattr(x, "shape", x), (args, kwargs))
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ArgumentError(
                f"{self.guided.name} could not run on arguments of shapes {shapes[0]} {shapes[1]}: {first}"
            ) from error
        self._checked.add(arguments.key)

    def _note_reading(self, args: Any, kwargs: Any) -> None:
        """Find out, once, whether the model reads its data in Python, which a compiled step cannot do."""
        arguments = Arguments.of(args, kwargs)

        def traced(arrays: Any) -> None:
            args, kwargs = arguments.join(arrays)
            backend.tracer.run(self.guided.model, args, kwargs, random.key(0), alone=True)

        try:
            jax.eval_shape(traced, arguments.arrays)
        except _READS_DATA as error:
            self.reads_data = True
            reason = str(error).strip().splitlines()[0]
            warnings.warn(
                f"{self.guided.name} reads its data in Python ({reason}), so the data are compiled into the step, and "
                "every new data set compiles again; use jnp.where or shapes instead of values to avoid it",
                stacklevel=4,
            )
        except Exception:  # whatever else is wrong with the arguments is reported by the check that follows
            return

    def _select(self, objective: ELBO, arguments: Arguments, args: Any, kwargs: Any) -> tuple[Any, dict[str, float]]:
        """The guided model with `Auto` resolved by measurement, once for every shape of the data."""
        key = repr(objective), arguments.key
        if key not in self._selected:
            chosen, prices = choose(self.guided, objective, arguments, args, kwargs)
            estimators = {**self.guided.estimators, **chosen}
            self._selected[key] = (self.guided.with_estimators(estimators) if chosen else self.guided), prices
            if chosen:
                active = self._selected[key][0]
                start = functools.partial(self.guided.start_at, arguments)
                objective.check_at(start, active.model, active.guide, args, kwargs)
        return self._selected[key]

    def _program(
        self, active: Any, objective: ELBO, optimizer: Any, arguments: Arguments, held: Any, watched: bool
    ) -> Program:
        x64 = jax.config.read("jax_enable_x64")
        key = (id(active), repr(objective), fingerprint(optimizer), arguments.key, watched, x64)
        if key not in self._programs:
            self._programs[key] = self._build(active, objective, optimizer, arguments, held, watched)
        return self._programs[key]

    def _build(
        self, guided: Any, objective: ELBO, optimizer: Any, arguments: Arguments, held: Any, watched: bool
    ) -> Program:
        svi = SVI(guided.model, guided.guide, optax.identity(), objective)

        @jax.jit
        def init(key: Any, held: Any, arrays: Any) -> dict[str, Any]:
            args, kwargs = arguments.join(arrays)
            init_key, key = random.split(key)
            svi.model, svi.guide = substitute(guided.model, data=held), substitute(guided.guide, data=held)
            start = svi.init(init_key, *args, **kwargs)
            params = svi.optim.get_params(start.optim_state)
            state = {"params": params, "opt": optimizer.init(params), "mutable": start.mutable_state, "key": key}
            return {**state, "watch": watch(params)} if watched else state

        def watch(params: Any) -> dict[str, Any]:
            zeros = jax.tree.map(jnp.zeros_like, params)
            return {"rate": jnp.ones(()), "sum": zeros, "square": zeros}

        like: Any = jax.eval_shape(init, random.key(0), held, arguments.arrays)["params"]
        constrain: Any = svi.constrain_fn  # known since

        def loss(params: Any, mutable: Any, key: Any, arrays: Any) -> Any:
            args, kwargs = arguments.join(arrays)
            held = {**constrain(params), **(mutable or {})}
            out = objective.loss_with_mutable_state(key, held, guided.model, guided.guide, *args, **kwargs)
            kept = mutable if out["mutable_state"] is None else {**(mutable or {}), **out["mutable_state"]}
            return out["loss"], kept

        def step(carry: Any) -> Any:
            i, limit, state, losses, _, arrays = carry
            key, step_key = random.split(state["key"])
            (value, mutable), grads = jax.value_and_grad(loss, has_aux=True)(
                state["params"], state["mutable"], step_key, arrays
            )
            finite = jnp.isfinite(value)
            for g in jax.tree.leaves(grads):
                finite = finite & jnp.all(jnp.isfinite(g))
            updates, opt = optimizer.update(grads, state["opt"], state["params"])
            if watched:
                updates = jax.tree.map(lambda u: state["watch"]["rate"].astype(u.dtype) * u, updates)
            moved = {
                "params": optax.apply_updates(state["params"], updates),
                "opt": opt,
                "mutable": mutable,
                "key": key,
            }
            if watched:
                moved["watch"] = {
                    "rate": state["watch"]["rate"],
                    "sum": jax.tree.map(jnp.add, state["watch"]["sum"], moved["params"]),
                    "square": jax.tree.map(lambda s, p: s + p * p, state["watch"]["square"], moved["params"]),
                }
            # A step that is not finite is undone, so that the report can look at what led to it.
            state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
            return i + 1, limit, state, losses.at[i].set(value), finite, arrays

        @jax.jit
        def advance(state: Any, limit: Any, arrays: Any) -> Any:
            carry = (0, limit, state, jnp.zeros(CHUNK), jnp.array(True), arrays)
            i, _, state, losses, finite, _ = lax.while_loop(lambda c: (c[0] < c[1]) & c[4], step, carry)
            return state, losses, i, finite

        @jax.jit
        def unflat(vector: Array) -> Any:  # traced whole, or every zero and its reshaping would be compiled alone
            return ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))[1](vector)

        return Program(init, advance, constrain, jax.jit(lambda tree: ravel_pytree(tree)[0]), unflat)

    def _loop(
        self,
        active: Any,
        program: Program,
        arguments: Arguments,
        state: Any,
        losses: np.ndarray,
        done: int,
        course: Convergence | None,
        progress: bool,
        checkpoint: Any,
        objective: ELBO,
        args: Any,
        kwargs: Any,
    ) -> Any:
        total = len(losses)
        if course is not None and course.finished:
            return state, losses[np.isfinite(losses)]
        chunk, saved = min(32, max(1, total - done)), time.perf_counter()
        with tqdm(total=total, initial=done, disable=not progress, desc=f"fit {self.guided.name}") as bar:
            while done < total:
                begun = time.perf_counter()
                limit = min(chunk, total - done, CHUNK)
                if course is not None:
                    limit = min(limit, BLOCK - done % BLOCK)
                state, values, count, finite = program.advance(state, limit, arguments.arrays)
                count = int(count)
                losses[done : done + count] = np.asarray(values)[:count]
                done += count
                if not bool(finite):
                    self._report(active, program, state, losses, done - 1, objective, args, kwargs)
                bar.update(count)
                if course is not None and (done % BLOCK == 0 or done == total):
                    state = self._look(program, course, state, losses[done - ((done - 1) % BLOCK + 1) : done])
                note = "" if course is None else f", {course}"
                bar.set_postfix_str(f"ELBO {-np.mean(losses[max(0, done - 100) : done]):.4g}{note}")
                seconds = time.perf_counter() - begun
                chunk = int(np.clip(count * 0.5 / max(seconds, 1e-4), 1, CHUNK))
                over = done == total or (course is not None and course.finished)
                if checkpoint is not None and (over or time.perf_counter() - saved > SAVE_EVERY):
                    mark = checkpoints.mark_of(self.guided, state, total, repr(objective))
                    checkpoints.save(checkpoint, mark, state, done, losses, course)
                    saved = time.perf_counter()
                if over:
                    break
        return state, losses[:done]

    @staticmethod
    def _look(program: Program, course: Convergence, state: Any, losses: np.ndarray) -> Any:
        """Take note of a block of steps, and go on from the mean of the iterates where a rate is left."""
        watch, count = state["watch"], len(losses)
        mean = np.asarray(program.flat(watch["sum"])) / count
        found = course.add(losses.tolist(), mean, np.asarray(program.flat(watch["square"])) / count)
        watch = jax.tree.map(jnp.zeros_like, watch)
        if found is not None:
            state = {**state, "params": program.unflat(jnp.asarray(found))}
        rate = jnp.asarray(0.0 if course.finished else course.rate, watch["rate"].dtype)
        return {**state, "watch": {**watch, "rate": rate}}

    def _report(
        self,
        active: Any,
        program: Program,
        state: Any,
        losses: np.ndarray,
        step: int,
        objective: ELBO,
        args: Any,
        kwargs: Any,
    ) -> None:
        """Name what is not finite, at the parameters before the step that failed.

        Raises:
            NonFiniteError: always.
        """
        params = program.constrain(state["params"])
        held = {**params, **(state["mutable"] or {})}
        _, step_key = random.split(state["key"])
        sites: dict[str, str] = {}
        for key in random.split(step_key, objective.num_particles):
            result = run(key, held, active.model, active.guide, args, kwargs, entropy=objective.entropy)
            for name, sampled in result.draws.items():
                if not bool(jnp.all(jnp.isfinite(sampled.draw.value))):
                    sites[name] = "its draw is not finite"
            for (side, name), cost in result.costs.items():
                bad = int(jnp.sum(~jnp.isfinite(cost)))
                if bad and name not in sites:
                    sites[name] = f"log density in the {side} is not finite for {bad} of {cost.size} elements"
        if not sites:

            def loss(p: Any) -> Any:
                constrained = {**program.constrain(p), **(state["mutable"] or {})}
                return objective.loss(step_key, constrained, active.model, active.guide, *args, **kwargs)

            for name, g in jax.grad(loss)(state["params"]).items():
                if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(g)):
                    sites[name] = "its gradient is not finite"
        listed = "; ".join(f"site {name!r}: {what}" for name, what in sites.items()) or "the cause did not recur"
        raise NonFiniteError(
            f"fit of {self.guided.name} stopped at step {step}: {listed}. The last finite parameters are in "
            "error.params; try a smaller learning rate, float64, or look at that site's density",
            step=step,
            sites=sites,
            params=params,
            losses=losses[: step + 1],
        )


def _chosen(guided: Any, params: Any, args: Any, kwargs: Any) -> dict[str, str]:
    """The estimator of each site, after `Auto` chose."""
    chosen: dict[str, str] = {}

    def look() -> Array:
        result = run(random.key(0), params, guided.model, guided.guide, args, kwargs)
        chosen.update({name: repr(s.estimator) for name, s in result.draws.items()})
        return jnp.zeros(())

    jax.eval_shape(look)
    return chosen


def as_key(seed: Any) -> Any:
    """A key from an int or a key.

    Raises:
        ArgumentError: if it is neither.
    """
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return random.key(int(seed))
    if isinstance(seed, jax.Array) and (jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) or seed.shape == (2,)):
        return seed if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) else random.wrap_key_data(seed)
    raise ArgumentError(f"seed={seed!r}: expected an int or a jax.random.key")


def check_options(num_steps: Any, num_particles: Any, optimizer: Any, progress: Any) -> None:
    """Refuse options of a fit that cannot be used.

    Raises:
        ArgumentError: naming the option.
    """
    for name, value in (("num_steps", num_steps), ("num_particles", num_particles)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ArgumentError(f"fit({name}={value!r}): expected an integer of at least 1")
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise ArgumentError(f"fit(optimizer={optimizer!r}): expected an optax transformation, such as optax.adam(1e-2)")
    if not isinstance(progress, bool):
        raise ArgumentError(f"fit(progress={progress!r}): expected True or False")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("vi-reparam", "numpyro", "jax", "optax")}
