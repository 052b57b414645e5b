"""From a guided model and its data to a posterior."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from vi_reparam.backend.cache import Cache
from vi_reparam.backend.data import Data
from vi_reparam.backend.engine import Task
from vi_reparam.backend.ops import Args, Array, Key
from vi_reparam.checks import check_memory
from vi_reparam.errors import ArgumentError, ViReparamError, could_not_run, first_line
from vi_reparam.fit import checkpoints, matching
from vi_reparam.fit.checkpoints import FitSignature, form_of
from vi_reparam.fit.convergence import Convergence
from vi_reparam.fit.forgotten import warn_of_forgotten
from vi_reparam.fit.interrupts import interrupts
from vi_reparam.fit.loop import Restart, run_steps
from vi_reparam.fit.masked import refuse_flat
from vi_reparam.fit.matching import as_params
from vi_reparam.fit.optimizers import plan_of
from vi_reparam.fit.options import Options
from vi_reparam.fit.samplers import record_without_steps, run_sampler
from vi_reparam.fit.selection import choose
from vi_reparam.fit.warm import params_of, with_values
from vi_reparam.guides import JointFamily, Sites, Structured
from vi_reparam.guides.joint import COPIES
from vi_reparam.posterior.program import program_of
from vi_reparam.programs.latents import FORMS
from vi_reparam.programs.searcher import Place

PARTICLE = 100
"""Numbers of a step that a particle takes at the least."""

PLAIN = (tuple, list, set, frozenset, range)
"""What people may have for an array."""

Values = Mapping[str, Array]
"""Parameters by name, constrained."""

MAX_STEPS = 10_000
"""Most steps of a hand-written guide's fit that ends by itself."""


class Fitter:
    """Fits one `Guided`.

    Args:
        shown: whose posteriors it gives, where it fits a model in another form.

    Attributes:
        fitted: posteriors of simpler families on the same data, by family.
    """

    def __init__(self, guided: Any, shown: Any = None) -> None:
        self.guided, self.shown = guided, guided if shown is None else shown
        self.ops, self.engine = guided.backend.ops, guided.backend.engine
        self.fitted: dict[Any, Any] = {}
        self._selected: Cache[tuple[Any, dict[str, float]]] = Cache(FORMS)
        self._checked: Cache[bool] = Cache(FORMS)
        self._simpler: dict[Any, Fitter] = {}
        self._rivals: list[float] = []
        self._last: tuple[Data, list[Values]] | None = None
        self._cut_off = self._init = ""

    def fit(self, args: Args, kwargs: dict[str, Any], options: Options) -> Any:
        """As `Guided.fit`."""
        options.check(self.engine)
        family = self.guided.family
        if family is not None and not family.is_fitted:
            raise ArgumentError(f"{family!r} is not fitted: fit another family, and call posterior.refine()")
        data = self.engine.data(args, kwargs, self.guided.model)
        warn_of_forgotten(self.guided.backend, self.guided.model, data)
        return self.run(data, options)

    def run(self, data: Data, options: Options, *, final: bool = True, stream: Any = None) -> Any:
        """As `Guided.fit`, on data that the engine made ready.

        Args:
            final: False for the warm start of another family, which keeps the fitted tail parameters.
            stream: gives each step data of its own, of the same form; None for the same data.
        """
        begun = time.perf_counter()
        family, engine = self.guided.family, self.engine
        if family is not None and not family.takes_steps:
            return run_sampler(self, data, options, begun, stream)
        watched = options.num_steps is None and (family is None or family.converges)
        total: int = options.num_steps or (MAX_STEPS if family is None else family.max_steps)
        seed, optimizer = options.seed, options.optimizer
        start_key, key = self.ops.split(engine.key(seed), 2)
        task = self._task(options.num_particles, options.devices)
        start = self._check(task, data, start_key)
        known: Values | None = None
        if options.init is not None:
            known = params_of(options.init, self.guided, start or self.guided.start_at(data, start_key))
            if known is None:
                return self._run_from(data, options, final=final, stream=stream)
        plan = plan_of(family, None if watched else total) if optimizer is None else optimizer
        signature = None
        if options.checkpoint is not None:
            program, numbers = program_of(self.guided.backend, self.guided.model, data)
            if family is None:
                sites, own = program_of(self.guided.backend, self.guided.base_guide, data)
                program += f"; guide: {sites}"
                numbers |= {f"{name} of the guide": pair for name, pair in own.items()}
            signature = FitSignature(
                model=self.guided.name,
                program=program,
                numbers=numbers,
                data=checkpoints.digest(self.ops, data),
                family=checkpoints.told(family),
                num_steps=total,
                objective=repr(task.objective),
                estimators=checkpoints.told(self.guided.estimators),
                init=self._init or checkpoints.digest_of_init(self.ops, options.init),
                seed=str(int(seed)) if isinstance(seed, Integral) else repr(seed),
                plan=f"{plan if optimizer is None else engine.describe(optimizer)}{', until it converges' * watched}"
                + ("" if stream is None else f", {stream}"),
            )
            checkpoints.load(options.checkpoint, signature)
        task, variances = self._select(task, data, start_key, total)
        runs = []
        pilot = data if stream is None else stream.pilot
        starts = self._warm_starts(pilot, key, total, task.objective.num_particles) if known is None else [known]
        if stream is not None:
            starts, data = [stream.placed(self.guided.base_guide, starts[0])], stream.fed
        program = engine.program(task, data, engine.optimizer(plan), num_steps=total, watched=watched)
        with interrupts() as interrupted:  # also between the steps of one start and the next, and after them
            for near in starts[:1] if options.checkpoint else starts:
                values = self.guided.start_at(data, start_key, near) if start is None else {**start, **near}
                if all(name.startswith("vr.") for name in values):
                    raise ArgumentError("there is nothing to fit: neither model nor guide has a parameter")
                state = program.init(key, values, data)
                by_losses, least = (False, 1.0) if family is None else (family.by_losses, family.least)
                course = Convergence(total, by_losses, least) if watched else None
                if self._cut_off:
                    runs = [Restart(program.params(state), np.zeros(0), course, program.execution, interrupted=True)]
                else:
                    losses = np.full(total, np.nan)
                    call = signature, options, stream, interrupted
                    runs.append(self._restart(program, state, losses, course, *call))
                if runs[-1].interrupted:
                    break
            best, rivals = self._compare(runs)
            record = {
                "num_steps": len(best.losses),
                "converged": None if best.course is None else best.course.converged,
                "rate_falls": [] if best.course is None else best.course.falls,
                "rivals": rivals,
                "num_particles": task.objective.num_particles,
                "gradients": task.objective.num_particles * sum(len(run.losses) for run in runs),
                "objective": repr(task.objective),
                "estimators": {n: repr(d.estimator) for n, d in engine.draws(task, data, best.params).items()},
                "variances": variances,
                "steps": best.execution,
            }
        if runs[-1].interrupted:
            steps = f"{len(runs[-1].losses):,} of {'at most ' * watched}{total:,} steps"
            record["interrupted"] = self._cut_off or f"the fit was interrupted after {steps}"
        elif interrupted():
            record["interrupted"] = "the fit was interrupted after its steps"
        finish = final and family is not None and family.has_tail and "interrupted" not in record
        data = data if stream is None else stream.first
        return self.posterior_of(data, best.params, best.losses, record, options, begun, finish=finish)

    def posterior_of(
        self, data: Data, params: Values, losses: Any, record: dict, options: Options, begun: float, *, finish: bool
    ) -> Any:
        """What a fit gives; `finish`: whether its weights may still decide something of it."""
        record |= {"family": repr(self.guided.family), "versions": self.engine.versions()}
        seed = int(options.seed) if isinstance(options.seed, Integral) else 0
        fields = {"args": data.args, "kwargs": data.kwargs, "losses": losses, "record": record}
        make = functools.partial(self.guided.posterior_type, self.shown, seed=seed, **fields)
        posterior = make(dict(params))
        try:
            if finish:
                posterior.finish()
        except KeyboardInterrupt:  # what was fitted is whole, and a tail that was tried is not
            posterior = make(params)
            posterior.record["interrupted"] = "the fit was interrupted after its steps, before its tails were fitted"
        posterior.record["seconds"] = time.perf_counter() - begun
        return posterior

    def matched(self, data: Data, options: Options, places: Sequence[Place]) -> Any:
        """A posterior without a step: Gaussians whose scores match at these places, or a structured guide's start.

        None where the family has no such start, or several.
        """
        begun, guide, ops = time.perf_counter(), self.guided.base_guide, self.ops
        seed = int(options.seed) if isinstance(options.seed, Integral) else 0
        if isinstance(self.guided.family, Structured):
            start_key, key = ops.split(self.engine.key(options.seed), 2)
            starts = self._searched(data, ops.fold_in(key, 1)) if guide.has_noise_to_match(data) else []
            if len(starts) != 1 or not starts[0]:
                return None
            params = self.guided.start_at(data, start_key, starts[0])
        else:
            found = [as_params(*pair) for pair in matching.matched(guide, data, places, seed)]
            params = guide.of_gaussians(places, [{n: ops.asarray(v) for n, v in own.items()} for own in found])
        num = max(len(places), 1)
        counts = matching.NUM_UPDATES, matching.BATCH * num, matching.NUM_GRADIENTS * num
        record = record_without_steps(*counts, "matched scores", "matched in closed form")
        return self.posterior_of(data, params, np.zeros(0), record, options, begun, finish=True)

    def _run_from(self, data: Data, options: Options, *, final: bool, stream: Any) -> Any:
        """As `run`, from values of latents, which a guide of its own starts at."""
        other = Fitter(with_values(self.guided, options.init, data), self.shown)
        other.fitted, other._init = self.fitted, checkpoints.digest_of_init(self.ops, options.init)
        found = other.run(data, replace(options, init=None), final=final, stream=stream)
        fields = {"args": found.args, "kwargs": found.kwargs, "losses": found.losses, "record": found.record}
        return self.guided.posterior_type(self.shown, found.params, seed=found.seed, **fields)

    def check(self, data: Data, key: Key) -> None:
        """Everything that can be refused before the first step.

        Raises:
            ViReparamError: saying what to do.
        """
        self._check(self._task(None), data, key)

    def _task(self, num_particles: int | None, devices: Any = None) -> Task:
        objective = self.guided.objective
        if num_particles is not None:
            objective = objective.with_particles(num_particles)
            check_memory(
                f"fit(num_particles={num_particles:,})", COPIES * PARTICLE * num_particles, "take fewer particles"
            )
        own = () if devices is None else self.engine.devices(devices)
        if own and objective.num_particles % len(own):
            raise ArgumentError(
                f"fit(devices={len(own)} of them): {objective.num_particles} particles cannot be shared evenly; give "
                f"num_particles={-(-objective.num_particles // len(own)) * len(own)}"
            )
        return Task(self.guided.model, self.guided.guide, objective, self.guided.name, own)

    def _check(self, task: Task, data: Data, key: Key) -> Values | None:
        """As `check`; the first parameters, where they were needed."""
        start = functools.partial(self.guided.start_at, data)
        try:
            self.doubt(data)
            self._begin(data)
            found = self.engine.check(task, data, start, key, known=data.form in self._checked.entries)
        except ViReparamError:
            raise
        except Exception as error:
            raise self.why_not(data, error) from error
        self._checked.get(data.form, lambda: True)
        return found

    def why_not(self, data: Data, error: Exception) -> ArgumentError:
        """The refusal of data on which the model failed."""
        if not data.doubts:
            refusal = could_not_run(self.guided.name, data.shapes(self.ops), error)
            plain = any(isinstance(x, PLAIN) for x in (*data.args, *data.kwargs.values()))
            return ArgumentError(f"{str(refusal)[:230]}; give data as arrays, np.asarray([*x])") if plain else refusal
        said = f"{'; '.join(data.doubts)[:120]}, and {self.guided.name[:40]} refuses them"
        return ArgumentError(f"{said} ({first_line(error)[:70]}): drop them, or mask numbers in their place")

    def _begin(self, data: Data) -> None:
        masked = False
        for part in getattr(self.guided.base_guide, "parts", [self.guided.base_guide]):
            try:
                if hasattr(part, "latents"):
                    part.latents.begin(*data.call)
                    masked |= any(site.is_masked for site in part.latents.sites(*data.call).values())
            except ViReparamError:
                raise
            except Exception:  # the check that follows says what is wrong, or the first step does
                return
        if masked:
            refuse_flat(self.guided.backend, self.guided.model, data, (self.guided.base_guide, refuse_flat))

    def doubt(self, data: Data) -> None:
        """Data that are not finite are right only where the model masks them: its density is finite then."""
        if not data.doubts:
            return
        said, guided = "; ".join(data.doubts)[:150], self.guided
        _, numbers = program_of(guided.backend, guided.model, data)
        numbers = numbers or {"": [0.0, math.nan]}  # it could not run
        bad = [f" of site {name!r}" if name else "" for name, (_, term) in numbers.items() if not math.isfinite(term)]
        if bad:
            raise ArgumentError(
                f"{said}, and the density{bad[0]} is not finite: drop them, or mask numbers in their place"
            )
        text = "the model's density is finite, so it seems to mask them; its gradient needs numbers in their place"
        warnings.warn(f"{said}: {text}", stacklevel=6)

    def _select(self, task: Task, data: Data, key: Key, num_steps: int) -> tuple[Task, dict[str, float]]:
        """The task with `Auto` resolved by measurement, once for every form of the data."""

        def select() -> tuple[Any, dict[str, float]]:
            guided, selected = self.guided, task
            chosen, variances = choose(self.engine, guided, task, data, num_steps)
            if chosen:
                selected = replace(task, guide=guided.with_estimators({**guided.estimators, **chosen}).guide)
                self.engine.check(selected, data, functools.partial(guided.start_at, data), key, known=False)
            return selected.guide, variances

        guide, variances = self._selected.get((repr(task.objective), data.form), select)
        return replace(task, guide=guide), variances

    def _warm_starts(self, data: Data, key: Key, total: int, num_particles: int) -> list[Values]:
        """Values to start some parameters from; several where runs should be kept apart.

        Parts of `Sites` take no more steps and particles than the fit to come.
        """
        self._rivals, self._cut_off = [], ""
        parts = isinstance(self.guided.family, Sites)
        if not parts and not isinstance(self.guided.family, JointFamily):
            return [{}]

        def fit(family: Any, num_steps: int | None, key: Key) -> Any:
            posterior = self.fitted.get(family)
            if posterior is None:
                options = Options(num_steps, seed=key)
                if parts:
                    particles = min(num_particles, family.num_particles)
                    options = Options(min(num_steps or total, total), particles, seed=key)
                posterior = self.fitter_of(family, share=not parts).run(data, options, final=False)
            if "interrupted" in posterior.record:
                self._cut_off = f"{posterior.record['interrupted']} of {family!r}, from which this one starts"
                if parts:  # the others have nothing to start from
                    raise KeyboardInterrupt(self._cut_off)
            self._rivals = list(posterior.record["rivals"])
            return posterior

        key, guide = self.ops.fold_in(key, 1), self.guided.base_guide
        if not parts and guide.has_noise_to_match(data):
            return self._searched(data, key)
        return guide.warm_starts(fit, data, key)

    def _searched(self, data: Data, key: Key) -> list[Values]:
        """The starts of a guide whose noise is matched to the posterior; the last ones are kept."""
        if self._last is None or self._last[0] is not data:
            guide = self.guided.base_guide
            found: list[Values] = guide.warm_starts(None, data, key)
            self._last = data, [*matching.of_starts(guide, data, found)] if found[0] else found
        return self._last[1]

    def fitter_of(self, family: Any, *, share: bool) -> Fitter:
        """Fits a simpler family to the same model; `share`: its guide takes over what this one's knows of the model."""
        if family not in self._simpler:
            estimators = None if share else self.guided.estimators
            simpler = type(self.guided)(self.guided.model, family, estimators=estimators)
            if share:
                simpler.base_guide.share(self.guided.base_guide)
            self._simpler[family] = Fitter(simpler)
        return self._simpler[family]

    def _restart(
        self,
        program: Any,
        state: Any,
        losses: Any,
        course: Convergence | None,
        signature: Any,
        options: Options,
        stream: Any,
        interrupted: Callable[[], bool],
    ) -> Restart:
        """One fit from one start; the losses are to be filled in."""
        checkpoint, progress, done, name = options.checkpoint, options.progress, 0, self.guided.name
        told = set[str]()
        if signature is not None:
            signature = replace(signature, state=form_of(program.arrays(state)))
        stored = None if signature is None else checkpoints.load(checkpoint, signature, course)
        if stored is not None:
            arrays, done, losses = stored
            state = program.restore(state, arrays)

        def save(state: Any, done: int) -> None:
            if signature is None:
                return
            why = checkpoints.taken_by_another(checkpoint, signature)
            try:
                if not why:
                    checkpoints.save(checkpoint, signature, program.arrays(state), done, losses, course)
            except OSError as error:
                why = error.strerror or str(error)
            if why not in told | {""}:
                told.add(why)
                warnings.warn(f"the checkpoint could not be saved, and the fit goes on: {why}", stacklevel=2)

        state, done, cut = run_steps(
            program,
            state,
            losses,
            done,
            name=name,
            course=course,
            progress=progress,
            save=save,
            interrupted=interrupted,
            fed=None if stream is None else stream.steps(done),
        )
        return Restart(program.params(state), losses[:done], course, program.execution, cut)

    def _compare(self, runs: list[Restart]) -> tuple[Restart, list[float]]:
        """The best of several runs, and by how many nats those that ended elsewhere are below it."""
        best = max(runs, key=lambda run: run.bound)
        guide = self.guided.base_guide
        if len(runs) < 2 or guide.location(best.params) is None:
            return best, list(self._rivals)
        apart = (run for run in runs if not matching.are_near(guide, run.params, best.params))
        return best, [float(best.bound - run.bound) for run in apart]
