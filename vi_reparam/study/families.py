"""Families side by side: their bounds, and the variance of their gradients where the fit ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vi_reparam.errors import ArgumentError
from vi_reparam.guides import Flow, FullRank, GaussianFamily, LowRank
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.study.bench import Bench, check_replicates
from vi_reparam.study.table import Study

FAMILIES = (FullRank(), LowRank(rank=2), Flow(), Flow(kind="coupling"))
"""What is compared unless told."""

OWN = ("gaussian_", "flow_")
"""How the names of these families' parameters begin."""


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
    bench: Bench,
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    families: Sequence[Any],
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
    for family in families:
        if not isinstance(family, GaussianFamily | Flow):
            raise ArgumentError(f"compare_guides: {family!r} has no choice of gradient; use Gaussians and flows")
    for gradient in gradients:
        if gradient not in GRADIENTS:
            raise ArgumentError(f"compare_guides: gradient {gradient!r}: expected one of {GRADIENTS}")
    if not families or not gradients:
        raise ArgumentError("compare_guides: name at least one family and one gradient")
    rows = []
    with tqdm(families, disable=not progress, desc="compare") as bar:
        for family in bar:
            bar.set_postfix_str(repr(family))
            guided = bench.guided(model, replace(family, gradient="path"))
            options = {"num_steps": num_steps, "num_particles": num_particles, "seed": seed, "progress": False}
            begun = time.perf_counter()
            posterior = guided.fit(*args, **options, **kwargs)
            seconds = time.perf_counter() - begun
            elbo, error = posterior.elbo()
            for gradient in gradients:
                other = bench.guided(model, replace(family, gradient=gradient), num_particles)
                spread = bench.gradient_variance(other, OWN, posterior, num_replicates, seed)
                rows.append(FamilyRow(repr(family), gradient, elbo, error, posterior.khat, spread, seconds))
    return Study(FamilyRow, rows, num_replicates=num_replicates, seed=seed)
