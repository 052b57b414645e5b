"""Independent sites, each drawn on its own support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vi_reparam.checks import check_positive
from vi_reparam.errors import ArgumentError
from vi_reparam.guides.base import GuideFamily

NATURAL: dict[str, str] = {
    "real": "normal",
    "positive": "gamma",
    "unit_interval": "beta",
    "simplex": "dirichlet",
    "sphere": "von_mises_fisher",
    "circular": "von_mises",
    "boolean": "bernoulli",
    "count": "poisson",
}
"""Support -> the family that lives on it. Any other continuous support gets a transformed normal."""

CHOICES: dict[str, tuple[str, ...]] = {
    "real": ("normal",),
    "positive": ("gamma", "inverse_gamma", "transformed_normal"),
    "unit_interval": ("beta", "transformed_normal"),
    "simplex": ("dirichlet", "transformed_normal"),
    "sphere": ("von_mises_fisher",),
    "circular": ("von_mises",),
    "boolean": ("bernoulli",),
    "count": ("poisson",),
    "other": ("transformed_normal",),
}
"""Support -> the families that a user may name for a site on it."""


@dataclass(frozen=True, repr=False)
class MeanField(GuideFamily):
    """A product of independent families, site by site, each on its site's own support.

    Normal on the reals, gamma on the positives, beta on the unit interval, Dirichlet on the
    simplex, von Mises-Fisher on the sphere, von Mises on the circle; Bernoulli and Poisson where
    a discrete estimator is named for the site; and a normal moved by a bijection wherever
    nothing natural exists.

    Args:
        families: site name -> family name, where the natural one is not wanted.
        init_scale: standard deviation of the unconstrained guides at the start, and relative
            standard deviation of the positive ones.

    Raises:
        ArgumentError: for a family that does not exist or a scale that is not positive.
    """

    families: Mapping[str, str] = field(default_factory=dict)
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        known = sorted({name for names in CHOICES.values() for name in names})
        for site, name in self.families.items():
            if name not in known:
                raise ArgumentError(f"MeanField(families={{{site!r}: {name!r}}}): expected one of {known}")
        check_positive("init_scale", self.init_scale, "MeanField")

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.families.items())), self.init_scale))

    def check_estimators(self, estimators: object) -> None:
        return None  # any may serve; a site's own family refuses the others

    def family_at(self, site: str, support: str) -> str:
        """Name of the family for a site, given the kind of its support.

        Raises:
            ArgumentError: if the named family does not live on that support.
        """
        name = self.families.get(site, NATURAL.get(support, "transformed_normal"))
        allowed = CHOICES.get(support, CHOICES["other"])
        if name not in allowed:
            raise ArgumentError(
                f"site {site!r}: family {name!r} does not live on its support ({support}); use one of {allowed}"
            )
        return name
