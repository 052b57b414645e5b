"""A model with a guide: what the decorator makes."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Auto
from vi_reparam.guides import Escalate, GuideFamily, JointFamily, MeanField
from vi_reparam.programs.builder import build_guide
from vi_reparam.sites.choice import as_mapping
from vi_reparam_numpyro.arguments import Arguments, jit_once
from vi_reparam_numpyro.backend import backend
from vi_reparam_numpyro.dependence import first_params
from vi_reparam_numpyro.backend import backend
from vi_reparam_numpyro.escalate import climb
from vi_reparam_numpyro.fit import Fitter, as_key
from vi_reparam_numpyro.host.handlers import estimate
from vi_reparam_numpyro.host.objectives import ELBO

_OWN = ("num_steps", "num_particles", "optimizer", "seed", "progress", "checkpoint")


def guide(family: Any = None, *, estimators: Any = None, objective: Any = None) -> Any:
    """Give a model a guide. A decorator, also bare: ``@vr.guide``.

    Args:
        family: a guide family; `Escalate` unless given.
        estimators: one estimator for every site it applies to, or a mapping from site names and
            ``"*"``. Sites without one get `Auto`.
        objective: one of ours; `ELBO` with the family's number of particles (8; `Flow`, `SDE`: 128) unless
            given. Of `Escalate` it is the mean field's.

    Returns:
        For a model, a `Guided`: it is still called as the model.

    Raises:
        ArgumentError: if the objective is not one of ours, or the model has an argument named
            like one of fit's.
    """
    if callable(family) and not isinstance(family, GuideFamily):
        return Guided(family, Escalate(), estimators=estimators, objective=objective)
    chosen = Escalate() if family is None else family
    if not isinstance(chosen, GuideFamily):
        raise ArgumentError(f"vr.guide({family!r}): expected a guide family such as vr.MeanField()")
    return functools.partial(_decorate, chosen, estimators, objective)


def _decorate(family: GuideFamily, estimators: Any, objective: Any, model: Callable[..., Any]) -> Guided:
    return Guided(model, family, estimators=estimators, objective=objective)


class Guided:
    """A model and its guide, ready to fit; called, it is the model.

    Args:
        model: a NumPyro model.
        guide: a guide family (`Escalate` unless given), or a NumPyro guide written by hand.
        estimators: as in `guide`; for a hand-written guide, as in `estimate`.
        objective: as in `guide`.

    Attributes:
        model: the model itself.
        guide: a plain NumPyro guide, for ``SVI(m.model, m.guide, optim, m.objective)``; of `Escalate` the first
            family's, `MeanField`.
        written: the guide before estimators act on it.
        objective: the objective.
        family: the guide family; None for a guide written by hand.
        name: of the model.

    Raises:
        ArgumentError: as `guide`.
    """

    def __init__(
        self, model: Callable[..., Any], guide: Any = None, *, estimators: Any = None, objective: Any = None
    ) -> None:
        given = objective is not None
        if objective is None:
            objective = ELBO(num_particles=guide.num_particles if isinstance(guide, GuideFamily) else 8)
        if not isinstance(objective, ELBO):
            raise ArgumentError(
                f"objective={objective!r} would drop the score terms of this guide's estimators: use vr.ELBO()"
            )
        _refuse_names(model)
        mapping = as_mapping(estimators)
        if guide is None or isinstance(guide, GuideFamily):
            self.family = Escalate() if guide is None else guide
            self.family.check_estimators(mapping)
            first = MeanField() if isinstance(self.family, Escalate) else self.family
            written = build_guide(backend, first, model, mapping)
            if not isinstance(self.family, JointFamily):
                mapping = {"*": Auto(), **mapping}
        else:
            self.family, written = None, guide
        self.written = written
        self.estimators = mapping
        self.model = model
        self.guide = estimate(written, mapping)
        self.objective = objective
        self._given_objective = objective if given else None
        self._fitter: Fitter | None = None
        self._rungs: dict[Any, Guided] = {}
        self._starts: dict[Any, Any] = {}
        functools.update_wrapper(self, model)
        self.name = getattr(model, "__name__", type(model).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        made = instance.__dict__.setdefault("_vr_guided", {})
        if self.name not in made:
            bound = self.model.__get__(instance, owner)
            made[self.name] = Guided(
                bound, self.family or self.written, estimators=self.estimators, objective=self.objective
            )
        return made[self.name]

    def __repr__(self) -> str:
        return f"Guided({self.name}, {self.family or 'hand-written guide'!r}, {self.objective!r})"

    def __reduce__(self) -> Any:
        module, path = getattr(self, "__module__", None), getattr(self, "__qualname__", None)
        if module and path and _resolve(module, path) is self:
            return _resolve, (module, path)
        return Guided._remake, (self.model, self.family or self.written, self.estimators, self.objective)

    @staticmethod
    def _remake(model: Any, guide: Any, estimators: Any, objective: Any) -> Guided:
        return Guided(model, guide, estimators=estimators, objective=objective)

    @staticmethod
    def of(thing: Any) -> Guided:
        """`thing` itself, checked.

        Raises:
            ArgumentError: if it is no `Guided`.
        """
        if isinstance(thing, Guided):
            return thing
        raise ArgumentError(
            f"{thing!r} has no guide: decorate the model with vr.guide, or give vr.Guided(model, guide)"
        )

    def start(self, *args: Any, seed: Any = 0, **kwargs: Any) -> dict[str, Any]:
        """The initial values at the param and mutable sites, constrained, by name."""
        return self.start_at(Arguments.of(args, kwargs), as_key(seed))

    def start_at(self, arguments: Arguments, key: Any, known: dict[str, Any] | None = None) -> dict[str, Any]:
        """As `start`, compiled once for every shape of the arguments.

        Args:
            known: values of some of them, returned as they are.
        """
        known = known or {}
        case = arguments.key, jax.config.read("jax_enable_x64"), tuple(sorted(known))
        if case not in self._starts:

            def values(key: Any, known: Any, arrays: Any) -> dict[str, Any]:
                args, kwargs = arguments.join(arrays)
                return first_params(self.model, self.guide, args, kwargs, key=key, known=known)

            traced = jax.jit(values)
            self._starts[case] = traced, jit_once(traced, (arguments.arrays, arguments.rest))
        traced, compiled = self._starts[case]
        return (traced if isinstance(key, Tracer) else compiled)(key, known, arguments.arrays)

    def with_estimators(self, estimators: Any) -> Guided:
        """The same model and guide with other estimators."""
        return Guided(self.model, self.family or self.written, estimators=estimators, objective=self.objective)

    def fit(
        self,
        *args: Any,
        num_steps: int | None = None,
        num_particles: int | None = None,
        optimizer: Any = None,
        seed: Any = 0,
        progress: bool = True,
        checkpoint: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Fit the guide to the model's posterior given these arguments.

        Args:
            args: the model's arguments; `kwargs`: its keyword arguments.
            num_steps: optimization steps; unless given, until the fit has converged or its family's `max_steps`
                are done (`SDE`: always these).
            num_particles: draws a step; the objective's unless given.
            optimizer: an optax transformation; Adam unless given, with a cosine schedule over `num_steps`, or at
                falling rates until it has converged.
            seed: an int or a `jax.random.key`.
            progress: whether to show a progress bar.
            checkpoint: a file to save the state to, and to go on from if it exists; `Escalate` adds the family's
                name to it.

        Returns:
            A `Posterior`.

        Raises:
            ArgumentError: for arguments that cannot be used, before anything is computed.
            SiteError: for a latent that the guide misses or cannot cover.
            GradientError: for a gradient that would be wrong.
            NonFiniteError: for a NaN or an infinity, with its step and site.
        """
        options = {
            "num_steps": num_steps,
            "num_particles": num_particles,
            "optimizer": optimizer,
            "seed": seed,
            "progress": progress,
            "checkpoint": checkpoint,
        }
        if isinstance(self.family, Escalate):
            return climb(self, args, kwargs, options)
        return self.fitter.fit(args, kwargs, **options)

    @property
    def fitter(self) -> Fitter:
        """Fits this guide, and keeps what it compiled."""
        if self._fitter is None:
            self._fitter = Fitter(self)
        return self._fitter

    def rung(self, family: GuideFamily) -> Guided:
        """The same model with one family of the ladder."""
        if family not in self._rungs:
            joint = isinstance(family, JointFamily)  # no site's own estimator, particles as it needs
            mapping, objective = ({}, None) if joint else (self.estimators, self._given_objective)
            made = Guided(self.model, family, estimators=mapping, objective=objective)
            made.name = self.name
            self._rungs[family] = made
        return self._rungs[family]

    def keeping(self, family: str | None) -> Guided:
        """The same model with the family that is written so, where this one is a ladder; else itself."""
        found = self.family.named(family) if isinstance(self.family, Escalate) and family else None
        return self if found is None else self.rung(found)


def _refuse_names(model: Callable[..., Any]) -> None:
    if not callable(model):
        raise ArgumentError(f"vr.guide decorates a model, and {model!r} is not callable")
    try:
        names = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return
    clash = [name for name in _OWN if name in names]
    if clash:
        raise ArgumentError(
            f"the model's argument {clash[0]!r} has the name of an option of fit: rename it in the model"
        )


def _resolve(module: str, path: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            return None
    return found
