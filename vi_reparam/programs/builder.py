"""From a guide family to its guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.errors import SiteError
from vi_reparam.guides import (
    SDE,
    Flow,
    GaussianFamily,
    GuideFamily,
    MeanField,
    Mixture,
    NestedLaplace,
    Sites,
    Structured,
)
from vi_reparam.guides.refined import Refined
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.flow import FlowGuide
from vi_reparam.programs.gaussian import GaussianGuide
from vi_reparam.programs.mean_field import MeanFieldGuide
from vi_reparam.programs.mixture import MixtureGuide
from vi_reparam.programs.nested_laplace import NestedLaplaceGuide
from vi_reparam.programs.refined import RefinedGuide
from vi_reparam.programs.sde import SDEGuide
from vi_reparam.programs.sites import SitesGuide
from vi_reparam.programs.structured import StructuredGuide
from vi_reparam.programs.student_t import StudentT, StudentTGuide

JOINT_GUIDES: dict[type[GuideFamily], Callable[..., Any]] = {
    GaussianFamily: GaussianGuide,
    Flow: FlowGuide,
    Mixture: MixtureGuide,
    NestedLaplace: NestedLaplaceGuide,
    Refined: RefinedGuide,
    SDE: SDEGuide,
    StudentT: StudentTGuide,
    Structured: StructuredGuide,
}
"""One row a family over all latents: what draws it."""


def build_guide(
    backend: Backend, family: GuideFamily, model: Any, estimators: dict[str, Any], selection: SiteSelection = ALL
) -> Any:
    """The guide of a family for a model.

    Args:
        estimators: by site, which discrete sites need.
        selection: which latents it draws.

    Raises:
        SiteError: for a family that has no guide.
    """
    if isinstance(family, MeanField):
        return MeanFieldGuide(backend, model, family, estimators, selection)
    if isinstance(family, Sites):
        return SitesGuide(family, [build_guide(backend, own, model, estimators, part) for part, own in family.parts()])
    for kind, made in JOINT_GUIDES.items():
        if isinstance(family, kind):
            return made(backend, model, family, selection)
    names = ("MeanField", "FullRank", "LowRank", "StudentT", "Mixture", "Structured", "NestedLaplace", "Flow", "SDE")
    known = ", ".join(f"vr.{name}()" for name in names)
    raise SiteError(f"{family!r} is not a guide family that this backend builds: use {known} or vr.Sites({{...}})")
