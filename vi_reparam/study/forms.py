"""Forms of the learned diffusion: which parameterization, variance and gradient serve a model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vi_reparam.errors import ArgumentError
from vi_reparam.guides import SDE
from vi_reparam.study.backend import StudyBackend, check_replicates
from vi_reparam.study.table import Study


@dataclass(frozen=True)
class FormRow:
    """One fitted guide.

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


def study_forms(
    bench: StudyBackend,
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    family: SDE | None,
    parameterizations: Sequence[str],
    variances: Sequence[str],
    gradients: Sequence[str],
    num_steps: int,
    num_particles: int,
    num_replicates: int,
    seed: int,
    progress: bool,
) -> Study[FormRow]:
    """As the backends' `compare_sde`.

    Raises:
        ArgumentError: for options that cannot be used, before anything is fitted.
    """
    from tqdm.auto import tqdm

    check_replicates(num_replicates)
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
            bar.set_postfix_str(f"{spec.parameterization}, {spec.variance}, {spec.gradient}")
            guided = bench.guided(model, spec, num_particles)
            begun = time.perf_counter()
            posterior = guided.fit(*args, num_steps=num_steps, seed=seed, progress=False, **kwargs)
            seconds = time.perf_counter() - begun
            elbo, error = posterior.elbo()
            spread = bench.gradient_variance(guided, ("sde_",), posterior, num_replicates, seed)
            rows.append(
                FormRow(spec.parameterization, spec.variance, spec.gradient, elbo, error, spread, seconds),
            )
    return Study(
        FormRow,
        rows,
        num_steps=num_steps,
        num_particles=num_particles,
        num_replicates=num_replicates,
        seed=seed,
    )
