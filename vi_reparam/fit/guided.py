"""A model with a guide: what the decorator makes."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vi_reparam.backend.blas import one_thread
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.errors import ArgumentError, ViReparamError, short
from vi_reparam.estimators import Auto
from vi_reparam.fit.escalation import escalate
from vi_reparam.fit.fitter import Fitter
from vi_reparam.fit.options import Options
from vi_reparam.fit.streaming import batches_of, fit_batches
from vi_reparam.guides import Escalate, GuideFamily, JointFamily, MeanField, NestedLaplace
from vi_reparam.guides.refined import Refined
from vi_reparam.posterior.predict import prior_draws
from vi_reparam.posterior.sites import check_count
from vi_reparam.programs.builder import build_guide
from vi_reparam.sites.choice import as_mapping

if TYPE_CHECKING:
    from vi_reparam.backend.backend import Backend


def guide(bound: type[Guided], family: Any = None, *, estimators: Any = None, objective: Any = None) -> Any:
    """Give a model a guide. A decorator, also bare: ``@vr.guide``.

    Args:
        family: a guide family; `Escalate` unless given.
        estimators: one estimator for every site it applies to, or a mapping from site names and
            ``"*"``. Sites without one get `Auto`.
        objective: one of ours; `ELBO` with the family's number of particles (8; `Flow`: 32; `SDE`: 128) unless
            given. Of `Escalate` it is the mean field's.

    Returns:
        For a model, a `Guided`: it is still called as the model.

    Raises:
        ArgumentError: if the objective is not one of ours, or the model has an argument named
            like one of fit's.
    """
    if isinstance(family, type) and issubclass(family, GuideFamily):
        family = family()
    if callable(family) and not isinstance(family, GuideFamily):
        return bound(family, Escalate(), estimators=estimators, objective=objective)
    chosen = Escalate() if family is None else family
    if not isinstance(chosen, GuideFamily):
        raise ArgumentError(f"vr.guide({family!r}): expected a guide family such as vr.MeanField()")
    return functools.partial(bound, guide=chosen, estimators=estimators, objective=objective)


class Guided:
    """A model and its guide, ready to fit; called, it is the model.

    Args:
        model: a model of the framework.
        guide: a guide family (`Escalate` unless given), or a guide of the framework written by hand.
        estimators: as in `guide`; for a hand-written guide, as in `estimate`.
        objective: as in `guide`.

    Attributes:
        model: the model itself.
        guide: a plain guide of the framework, for ``SVI(m.model, m.guide, optim, m.objective)``; of `Escalate` the
            first family's, `MeanField`.
        base_guide: the guide before estimators act on it.
        objective: the objective.
        family: the guide family; None for a guide written by hand.
        name: of the model.

    Raises:
        ArgumentError: as `guide`.
    """

    backend: ClassVar[Backend]
    """The framework; set by the subclass that a backend's package exports."""

    posterior_type: ClassVar[Any]
    """The class of what a fit gives."""

    elbo: ClassVar[Any]
    """The class of objectives that honour score terms."""

    estimate: ClassVar[Any]
    """The handler that draws a guide's sites by estimators."""

    name: str

    def __init__(
        self, model: Callable[..., Any], guide: Any = None, *, estimators: Any = None, objective: Any = None
    ) -> None:
        self._given_objective = objective
        if objective is None:
            objective = self.elbo(num_particles=guide.num_particles if isinstance(guide, GuideFamily) else 8)
        if not isinstance(objective, self.elbo):
            raise ArgumentError(
                f"objective={objective!r} would drop the score terms of this guide's estimators: use vr.ELBO()"
            )
        _refuse_names(model)
        mapping = as_mapping(estimators)
        if guide is None or isinstance(guide, GuideFamily):
            self.family = Escalate() if guide is None else guide
            self.family.check_estimators(mapping)
            first = MeanField() if isinstance(self.family, Escalate) else self.family
            self.base_guide = build_guide(self.backend, first, model, mapping)
            if not isinstance(self.family, JointFamily):
                mapping = {"*": Auto(), **mapping}
        else:
            self.family, self.base_guide = None, guide
        self.estimators = mapping
        self.model = model
        self.guide = self.estimate(self.base_guide, mapping)
        self.objective = objective
        self._families: dict[Any, Self] = {}
        self._fitting = threading.RLock()
        # of an object, its attributes are its own
        functools.update_wrapper(self, model, updated=("__dict__",) if inspect.isroutine(model) else ())
        self.name = _name_of(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        made = instance.__dict__.setdefault("_vr_guided", {})
        if self.name not in made:
            made[self.name] = self._with(model=self.model.__get__(instance, owner))
        return made[self.name]

    def __repr__(self) -> str:
        return f"Guided({self.name}, {self.family or 'hand-written guide'!r}, {self.objective!r})"

    def __reduce__(self) -> Any:
        module, path = getattr(self, "__module__", None), getattr(self, "__qualname__", None)
        if module and path and _named(module, path) is self:
            return _named, (module, path)
        remake = functools.partial(type(self), estimators=self.estimators, objective=self.objective)
        return remake, (self.model, self.family or self.base_guide)

    def _with(self, **changes: Any) -> Self:
        """Another of the same parts but for these."""
        parts = {"guide": self.family or self.base_guide, "estimators": self.estimators, "objective": self.objective}
        return type(self)(**{"model": self.model, **parts, **changes})

    @classmethod
    def of(cls, thing: Any) -> Self:
        """`thing` itself, checked.

        Raises:
            ArgumentError: if it is no `Guided`.
        """
        if isinstance(thing, cls):
            return thing
        raise ArgumentError(
            f"{thing!r} has no guide: decorate the model with vr.guide, or give vr.Guided(model, guide)"
        )

    def start(self, *args: Any, seed: Any = 0, **kwargs: Any) -> dict[str, Any]:
        """The initial values at the param and mutable sites, constrained, by name."""
        engine = self.backend.engine
        return self.start_at(engine.data(args, kwargs, self.model), engine.key(seed))

    def start_at(self, data: Data, key: Any, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As `start`, compiled once for every form of the data.

        Args:
            known: values of some of them, returned as they are.
        """
        return self.backend.engine.first_params(self.model, self.guide, data, key, dict(known or {}))

    def with_estimators(self, estimators: Any) -> Self:
        """The same model and guide with other estimators."""
        return self._with(estimators=estimators)

    def with_model(self, model: Callable[..., Any]) -> Self:
        """The same guide family for another model."""
        return self._with(model=model)

    def fit(
        self,
        *args: Any,
        num_steps: int | None = None,
        num_particles: int | None = None,
        optimizer: Any = None,
        seed: Any = 0,
        progress: bool = True,
        checkpoint: Any = None,
        init: Any = None,
        devices: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Fit the guide to the model's posterior given these arguments.

        Every fit starts anew, with parameters of its own: Pyro's store is left as it is. Pyro's networks
        in the model are the exception: they are trained in place, from the weights they have.

        Args:
            args: the model's arguments, of which `vr.batches(...)` may be the first; `kwargs`: its keyword arguments.
            num_steps: optimization steps; unless given, until the fit has converged or its family's `max_steps`
                are done (`SDE`: always these).
            num_particles: draws a step; the objective's unless given.
            optimizer: in NumPyro an optax transformation; in Pyro a torch.optim factory, such as
                ``lambda params: torch.optim.Adam(params, lr=0.01)``, which may also give a pair of an optimizer and
                its schedule. Adam unless given, with a cosine schedule over `num_steps`, or at falling rates until
                it has converged.
            seed: an int (in NumPyro also a `jax.random.key`), which governs the whole fit.
            progress: whether to show a progress bar.
            checkpoint: a file to save the state to, and to go on from if it exists; `Escalate` adds the family's
                name to it.
            init: where to start: a posterior of this model, or a dict of values by latent site. Of a posterior by the
                same family and for data of the same form the parameters are taken over, of any other the means;
                `Escalate` goes on from its family. A family that searches for its place also looks elsewhere.
            devices: in NumPyro the devices over which the particles of each step go, or how many of `jax.devices()`;
                the same numbers as on one, to rounding.

        Returns:
            A `Posterior`.

        Raises:
            ArgumentError: for arguments that cannot be used, before anything is computed.
            SiteError: for a latent that the guide misses or cannot cover.
            GradientError: for a gradient that would be wrong.
            NonFiniteError: for a NaN or an infinity, with its step and site.
            KeyboardInterrupt: for Ctrl-C before anything is fitted, or pressed twice. Else what was fitted is given.
        """
        options = Options(num_steps, num_particles, optimizer, seed, progress, checkpoint, init, devices)
        with self._fitting, one_thread():  # fits of one model share what is known of it, and go one after the other
            if batches_of(args, kwargs):
                return fit_batches(self, args, kwargs, options)
            if isinstance(self.family, Escalate):
                return escalate(self, args, kwargs, options)
            return self.fitter.fit(args, kwargs, options)

    def prior(self, num_draws: int, /, *args: Any, seed: Any = 0, **kwargs: Any) -> dict[str, Array]:
        """Draws of the model alone, before any fit: of its latents, and of the data that they lead to.

        The subsampling of plates is switched off, and parameters of the model have their initial values.

        Args:
            num_draws: how many.
            args: the model's arguments; data among them give no more than their shape.
            seed: int, or what the backend takes for a key.
            kwargs: its keyword arguments.

        Returns:
            Arrays of shape ``[num_draws, ...]`` by site: latent, deterministic and observed ones.

        Raises:
            SiteError: for a latent whose prior is improper, and cannot be drawn.
        """
        num_draws, engine = check_count("num_draws", num_draws), self.backend.engine
        data, key = engine.data(args, kwargs, self.model), engine.key(seed)
        try:
            return prior_draws(self.backend, self.model, data, num_draws, key)
        except ViReparamError:
            raise
        except Exception as error:
            raise self.fitter.why_not(data, error) from error

    @functools.cached_property
    def fitter(self) -> Fitter:
        """Fits this guide, and keeps what it measured."""
        return Fitter(self)

    @property
    def _fitter(self) -> Fitter:
        """Its name in scripts that look at what is kept."""
        return self.fitter

    def for_family(self, family: GuideFamily) -> Self:
        """The same model with one family of the ladder."""
        if family not in self._families:
            joint = isinstance(family, JointFamily)  # no site's own estimator, particles as it needs
            mapping, objective = ({}, None) if joint else (self.estimators, self._given_objective)
            made = type(self)(self.model, family, estimators=mapping, objective=objective)
            made.name = self.name
            known = [(self.family, self), *self._families.items()]
            others = [g.base_guide for f, g in known if isinstance(f, JointFamily)]
            if joint and others:  # traced and searched once
                made.base_guide.share(others[0])
            self._families[family] = made
        return self._families[family]

    def for_family_named(self, family: str | None) -> Self:
        """The same model with the family that is written so, where this one is a ladder or chooses; else itself."""
        if family == repr(Refined()):
            return self.for_family(Refined())
        own, named = self.family, None
        if family and isinstance(own, Escalate | NestedLaplace):
            named = NestedLaplace.named(family) or (own.named(family) if isinstance(own, Escalate) else None)
        return self if named is None else self.for_family(named)


def _refuse_names(model: Callable[..., Any]) -> None:
    if not callable(model):
        raise ArgumentError(f"vr.guide decorates a model, and {model!r} is not callable")
    if inspect.isgeneratorfunction(model) or inspect.iscoroutinefunction(model):
        raise ArgumentError(
            f"vr.guide: {short(model)} has yield or async in it, so that a call runs none of it: take it out"
        )
    try:
        names = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return
    for option in dataclasses.fields(Options):
        if option.name in names:
            raise ArgumentError(
                f"the model's argument {option.name!r} has the name of an option of fit: rename it in the model"
            )


def _name_of(model: Any) -> str:
    """A model's own name, also where something is bound to it or a handler is around it."""
    inner = getattr(model, "func", getattr(model, "fn", None))
    return str(getattr(model, "__name__", _name_of(inner) if callable(inner) else type(model).__name__))


def _named(module: str, path: str) -> Any:
    thing: Any = importlib.import_module(module)
    for part in path.split("."):
        thing = getattr(thing, part, None)
    return thing
