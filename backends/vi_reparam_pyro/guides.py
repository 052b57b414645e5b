"""Guide families as Pyro guides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vi_reparam.backend.data import Data
from vi_reparam.errors import SiteError
from vi_reparam.estimators import Estimator
from vi_reparam.guides import SDE, Flow, GaussianFamily, GuideFamily, MeanField, Sites
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.guides.sites import start_from
from vi_reparam.programs.mean_field import MeanFieldGuide
from vi_reparam_pyro.backend import backend
from vi_reparam_pyro.flow import FlowGuide
from vi_reparam_pyro.host.params import new_scope
from vi_reparam_pyro.joint import GaussianGuide
from vi_reparam_pyro.sde import SDEGuide

Array = Any


def build_guide(family: GuideFamily, model: Any, estimators: dict[str, Estimator], cover: SiteSelection = ALL) -> Any:
    """The guide of a family for a model.

    Args:
        cover: which latents it draws.

    Raises:
        SiteError: if the family is not one that this backend builds.
    """
    if isinstance(family, MeanField):
        return MeanFieldGuide(backend, model, family, estimators, cover)
    if isinstance(family, Sites):
        return SitesGuide(family, [build_guide(own, model, estimators, part) for part, own in family.parts()])
    for kind, made in _JOINT.items():
        if isinstance(family, kind):
            return made(model, family, cover)
    known = "vr.MeanField(), vr.FullRank(), vr.LowRank(), vr.Flow(), vr.SDE() or vr.Sites({...})"
    raise SiteError(f"{family!r} is not a guide family that this backend builds: use {known}")


_JOINT: dict[type, Callable[..., Any]] = {GaussianFamily: GaussianGuide, Flow: FlowGuide, SDE: SDEGuide}
"""One row a family over all latents: what draws it."""


class SitesGuide:
    """Several guides, one after the other, in the same plates. A plain Pyro guide.

    Args:
        family: the specification.
        parts: the guides.

    Attributes:
        scope: before their parameters' names in Pyro's store.
    """

    def __init__(self, family: Sites, parts: list[Any]) -> None:
        self.family, self.parts = family, parts
        self.scope = new_scope()
        for part in parts:
            part.scope = self.scope

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        plates: dict[str, Any] = {}
        values = {}
        for part in self.parts:
            values.update(part.draw(args, kwargs, plates))
        return values

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: int) -> list[dict[str, Array]]:
        """As `JointGuide.warm_starts`, by a fit in which these parts are mean fields."""
        found = self.family.simpler()
        if found is None:
            return [{}]
        simpler, steps = found
        pairs = zip(self.parts, simpler.families, strict=True)
        new = [(part, part.layout(*data.call)) for part, (_, family) in pairs if family != part.family]
        return [start_from(fit(simpler, steps, key), new, key)]
