"""Guides over all latents side by side: their bounds, and the variance of their gradients where the fit ended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from vi_reparam.backend.engine import Task
from vi_reparam.backend.ops import Args
from vi_reparam.errors import ArgumentError
from vi_reparam.fit.escalation import shape_of
from vi_reparam.fit.measure import coordinates, measure
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.guides import SDE, Flow, FullRank, GaussianFamily, GuideFamily, LowRank, MeanField
from vi_reparam.guides.escalate import LARGEST_FLOW
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.study.ended import ended
from vi_reparam.study.table import Study

if TYPE_CHECKING:
    from vi_reparam.fit.guided import Guided

OWN = ("gaussian_", "flow_", "sde_")
"""How the names of the joint families' parameters begin."""


@dataclass(frozen=True)
class FormRow:
    """One `SDE` guide, fitted.

    Attributes:
        elbo: with its standard `error`, in nats.
        gradient_variance: total, over the guide's parameters, of one step's gradient at the end.
        seconds: of the fit, compilation included.
    """

    CHOICES: ClassVar[tuple[str, ...]] = ("parameterization", "variance", "gradient")
    TITLE: ClassVar[str] = "Forms of the SDE guide"
    HEADER: ClassVar[tuple[str, ...]] = ("predicts", "variance", "gradient", "ELBO", "gradient variance", "seconds")

    parameterization: str
    variance: str
    gradient: str
    elbo: float
    error: float
    gradient_variance: float
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """As in the header."""
        bound, spread = f"{self.elbo:.3f} ± {self.error:.3f}", f"{self.gradient_variance:.3g}"
        return self.parameterization, self.variance, self.gradient, bound, spread, f"{self.seconds:.0f}"


@dataclass(frozen=True)
class FamilyRow:
    """One family, fitted, under one gradient.

    Attributes:
        family: as it is written.
        gradient: whose variance this is, at the fitted parameters.
        elbo: with its standard `error`, in nats.
        khat: Pareto shape of the importance weights' tail.
        gradient_variance: total, over the guide's parameters, of one step's gradient.
        seconds: of the fit, compilation included.
    """

    CHOICES: ClassVar[tuple[str, ...]] = ("family", "gradient")
    TITLE: ClassVar[str] = "Guides over all latents"
    HEADER: ClassVar[tuple[str, ...]] = ("guide", "gradient", "ELBO", "k-hat", "gradient variance", "seconds")

    family: str
    gradient: str
    elbo: float
    error: float
    khat: float
    gradient_variance: float
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """As in the header."""
        bound, spread = f"{self.elbo:.3f} ± {self.error:.3f}", f"{self.gradient_variance:.3g}"
        return self.family, self.gradient, bound, f"{self.khat:.2f}", spread, f"{self.seconds:.0f}"


def compare_sde(
    bound: type[Guided],
    model: Any,
    *args: Any,
    family: SDE | None = None,
    parameterizations: Sequence[str] = ("data", "noise"),
    variances: Sequence[str] = ("learned", "data", "noise"),
    gradients: Sequence[str] = ("path", "reparameterization", "log_variance"),
    num_steps: int = 1_000,
    num_particles: int = 64,
    num_replicates: int = 200,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Study[FormRow]:
    """Fit an `SDE` guide in every combination of what it predicts, its kernels' variance and its gradient.

    Args:
        model: a model of the framework, or a guided one, whose guide is left aside.
        args: the model's arguments; `kwargs`: its keyword arguments.
        family: what else the guides have in common; `SDE()` unless given.
        num_steps: of each fit; `num_particles`: a step's.
        num_replicates: gradients at the fitted parameters from which the variance is taken.
        progress: whether to show a progress bar.

    Returns:
        A row a combination; its `dataset` has dimensions parameterization x variance x gradient.

    Raises:
        ArgumentError: for options that cannot be used, before anything is fitted.
    """
    _check_replicates(num_replicates)
    if family is not None and not isinstance(family, SDE):
        raise ArgumentError(f"compare_sde(family={family!r}): expected one such as SDE(num_steps=64)")
    common = SDE() if family is None else family
    chosen = itertools.product(parameterizations, variances, gradients)
    specs = [replace(common, parameterization=p, variance=v, gradient=g) for p, v, g in chosen]
    if not specs:
        raise ArgumentError("compare_sde: name at least one parameterization, variance and gradient")
    rows = []
    with tqdm(specs, disable=not progress, desc="compare") as bar:
        for spec in bar:
            form = spec.parameterization, spec.variance, spec.gradient
            bar.set_postfix_str(", ".join(form))
            guided = _guided(bound, model, spec, num_particles)
            posterior, seconds = _timed_fit(guided, args, kwargs, num_steps=num_steps, seed=seed)
            spread = gradient_variance(guided, OWN, posterior, num_replicates, seed)
            elbo, error = posterior.elbo()
            rows.append(FormRow(*form, elbo, error, spread, seconds))
    about = {"num_steps": num_steps, "num_particles": num_particles}
    return Study(FormRow, rows, **about, num_replicates=num_replicates, seed=seed)


def compare_guides(
    bound: type[Guided],
    model: Any,
    *args: Any,
    families: Sequence[Any] | None = None,
    gradients: Sequence[str] = GRADIENTS,
    num_steps: int | None = None,
    num_particles: int | None = None,
    num_replicates: int = 200,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Study[FamilyRow]:
    """Fit each family by path gradients, and measure its gradients' variance at the end.

    Args:
        model: a model of the framework, or a guided one, whose guide is left aside.
        args: the model's arguments; `kwargs`: its keyword arguments.
        families: the mean field, Gaussians and flows; unless given, those that suit the model's size.
        gradients: whose variance is measured, at the same parameters.
        num_steps: of each fit; unless given, until it has converged.
        num_particles: a step's; the family's unless given.
        num_replicates: gradients from which a variance is taken, each of `num_particles` draws.
        progress: whether to show a progress bar.

    Returns:
        A row a family and gradient; its `dataset` has dimensions family x gradient.

    Raises:
        ArgumentError: for options that cannot be used, before anything is fitted.
    """
    _check_replicates(num_replicates)
    if families is None:
        plain = bound(_model_of(bound, model), MeanField())
        families = families_for(shape_of(plain, bound.backend.engine.data(args, kwargs, plain.model)).size)
    for family in families:
        if not isinstance(family, MeanField | GaussianFamily | Flow):
            known = "MeanField, Gaussians and flows"
            raise ArgumentError(f"compare_guides: {family!r} has no choice of gradient; use {known}")
    for gradient in gradients:
        if gradient not in GRADIENTS:
            raise ArgumentError(f"compare_guides: gradient {gradient!r}: expected one of {GRADIENTS}")
    if not families or not gradients:
        raise ArgumentError("compare_guides: name at least one family and one gradient")
    rows = []
    with tqdm(families, disable=not progress, desc="compare") as bar:
        for family in bar:
            bar.set_postfix_str(repr(family))
            guided = _with_gradient(bound, model, family, "path", None)
            options = {"num_steps": num_steps, "num_particles": num_particles, "seed": seed}
            posterior, seconds = _timed_fit(guided, args, kwargs, **options)
            elbo, error = posterior.elbo()
            own = tuple(f"{site}_" for site in posterior.draws(1)) if isinstance(family, MeanField) else OWN
            for gradient in gradients:
                other = _with_gradient(bound, model, family, gradient, num_particles)
                spread = gradient_variance(other, own, posterior, num_replicates, seed)
                rows.append(FamilyRow(repr(family), gradient, elbo, error, posterior.khat, spread, seconds))
    return Study(FamilyRow, rows, num_replicates=num_replicates, seed=seed)


def _timed_fit(guided: Guided, args: Args, kwargs: dict, **options: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    posterior = ended(guided.fit(*args, **options, progress=False, **kwargs))
    return posterior, time.perf_counter() - begun


def families_for(size: int | None) -> tuple[GuideFamily, ...]:
    """What is compared unless told, for a model of so many coordinates (None: no joint family covers them)."""
    if size is None:
        return (MeanField(),)
    if size <= LARGEST:
        return MeanField(), FullRank(), LowRank(rank=2), Flow(), Flow(kind="coupling")
    return MeanField(), LowRank(rank=2), *([Flow(kind="coupling")] if size <= LARGEST_FLOW else [])


def gradient_variance(guided: Guided, own: tuple[str, ...], posterior: Any, num: int, seed: int) -> float:
    """Total variance of the gradient by the guide's own parameters, where a posterior's fit ended.

    Args:
        guided: whose objective and guide are differentiated; `own`: how the parameters' names begin.
        num: replicates.
    """
    engine = guided.backend.engine
    data = engine.data(posterior.args, posterior.kwargs, guided.model)
    task = Task(guided.model, guided.guide, guided.objective, guided.name)
    moments, _ = measure(engine, task, data, posterior.params, engine.key(seed + 1), num)
    mine = np.array([name.startswith(own) for name in coordinates(posterior.params)])
    return float(moments.variance[mine].sum())


def _model_of(bound: type[Guided], model: Any) -> Any:
    return model.model if isinstance(model, bound) else model


def _guided(
    bound: type[Guided], model: Any, family: Any, num_particles: int | None, *, entropy: str = "monte_carlo"
) -> Guided:
    """A model (or that of a guided one) with this family; the family's number of particles unless given."""
    objective = bound.elbo(num_particles or family.num_particles, entropy=entropy)
    return bound(_model_of(bound, model), family, objective=objective)


def _with_gradient(bound: type[Guided], model: Any, family: Any, gradient: str, num_particles: int | None) -> Guided:
    """The model with this family under this gradient; the mean field's is a matter of its objective."""
    if isinstance(family, MeanField):
        return _guided(bound, model, family, num_particles, entropy="path" if gradient == "path" else "monte_carlo")
    return _guided(bound, model, replace(family, gradient=gradient), num_particles)


def _check_replicates(num_replicates: Any) -> None:
    if not isinstance(num_replicates, int) or isinstance(num_replicates, bool) or num_replicates < 2:
        raise ArgumentError(f"num_replicates={num_replicates!r}: expected 2 or more")
