"""Families side by side: their bounds, and the variance of their gradients where the fit ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.guides import Flow, FullRank, GaussianFamily, GuideFamily, LowRank, MeanField
from vi_reparam.guides.escalate import LARGEST_FLOW
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.study.backend import StudyBackend, check_replicates
from vi_reparam.study.table import Study

OWN = ("gaussian_", "flow_")
"""How the names of the joint families' parameters begin."""


def families_for(size: int | None) -> tuple[GuideFamily, ...]:
    """What is compared unless told.

    Args:
        size: coordinates of the model's latents; None where no joint family covers them.
    """
    if size is None:
        return (MeanField(),)
    if size <= LARGEST:
        return MeanField(), FullRank(), LowRank(rank=2), Flow(), Flow(kind="coupling")
    return MeanField(), LowRank(rank=2), *([Flow(kind="coupling")] if size <= LARGEST_FLOW else [])


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


def study_families(
    bench: StudyBackend,
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    families: Sequence[Any] | None,
    gradients: Sequence[str],
    num_steps: int | None,
    num_particles: int | None,
    num_replicates: int,
    seed: int,
    progress: bool,
) -> Study[FamilyRow]:
    """As the backends' `compare_guides`.

    Raises:
        ArgumentError: for options that cannot be used, before anything is fitted.
    """
    from tqdm.auto import tqdm

    check_replicates(num_replicates)
    if families is None:
        families = families_for(bench.size(model, args, kwargs))
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
            guided = _with_gradient(bench, model, family, "path", None)
            options = {"num_steps": num_steps, "num_particles": num_particles, "seed": seed, "progress": False}
            begun = time.perf_counter()
            posterior = guided.fit(*args, **options, **kwargs)
            seconds = time.perf_counter() - begun
            elbo, error = posterior.elbo()
            for gradient in gradients:
                other = _with_gradient(bench, model, family, gradient, num_particles)
                own = tuple(f"{site}_" for site in posterior.draws(1)) if isinstance(family, MeanField) else OWN
                spread = bench.gradient_variance(other, own, posterior, num_replicates, seed)
                rows.append(FamilyRow(repr(family), gradient, elbo, error, posterior.khat, spread, seconds))
    return Study(FamilyRow, rows, num_replicates=num_replicates, seed=seed)


def _with_gradient(bench: StudyBackend, model: Any, family: Any, gradient: str, num_particles: int | None) -> Any:
    """The model with this family under this gradient; the mean field's is a matter of its objective."""
    if isinstance(family, MeanField):
        return bench.guided(model, family, num_particles, entropy="path" if gradient == "path" else "monte_carlo")
    return bench.guided(model, replace(family, gradient=gradient), num_particles)
