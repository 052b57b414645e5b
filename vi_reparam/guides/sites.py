"""Different families for different latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.skew import NUM_MATCHED
from vi_reparam.guides.base import GuideFamily
from vi_reparam.guides.escalate import Escalate
from vi_reparam.guides.joint import JointFamily
from vi_reparam.guides.mean_field import MeanField
from vi_reparam.guides.nested_laplace import NestedLaplace
from vi_reparam.guides.sde import SDE
from vi_reparam.guides.selection import SiteSelection
from vi_reparam.guides.structured import Structured

REST = "*"

BASE = ("loc", "log_scale", "factor", "lower", "blocks", "skew")
"""Parameters of an SDE's base."""

WARM_START = 2_000
"""Steps of the fit that parts start from, where their family does not say."""


@dataclass(frozen=True, repr=False)
class Sites(GuideFamily):
    """A product of guides, each over the latents that are named for it.

    ``vr.Sites({"z": vr.Flow(condition="images"), "*": vr.MeanField()})`` draws ``z`` by a flow and
    all other latents by the mean field. Parts are independent of each other given the data, and
    each has its own family's learning rate. Parts that draw their latents together start from a fit
    in which each of them is a mean field; a conditioned part goes without, and so does an `SDE` with
    ``warm_start=0``. An `SDE` on a part cannot use the gradient of log p: it would need the other parts' draws.

    Args:
        families: site name, tuple of names, or ``"*"`` for all that are not named -> family.

    Attributes:
        num_particles: the most that a part over global latents wants.

    Raises:
        ArgumentError: for an entry that is not a family, or a name that occurs twice.
    """

    families: Any

    def __post_init__(self) -> None:
        given = dict(self.families) if isinstance(self.families, Mapping | tuple) else self.families
        if not isinstance(given, dict) or not given:
            raise ArgumentError(f"Sites({self.families!r}): expected a mapping from site names to guide families")
        seen: set[str] = set()
        for key, family in given.items():
            if not isinstance(family, GuideFamily) or isinstance(family, Escalate | Sites):
                raise ArgumentError(f"Sites({{{key!r}: {family!r}}}): expected a family such as vr.MeanField()")
            if isinstance(family, Structured | NestedLaplace):
                raise ArgumentError(
                    f"Sites({{{key!r}: {family!r}}}): it follows all latents of a model, so it is no "
                    "part; give it to vr.guide alone"
                )
            if isinstance(family, SDE) and getattr(family.network, "target", "off") == "full":
                raise ArgumentError(
                    f"Sites({{{key!r}: {family!r}}}): the drift of a part goes without the gradient of log p, since "
                    "the other parts' draws would have to be known; leave out target='full'"
                )
            names = (key,) if isinstance(key, str) else key
            if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
                raise ArgumentError(f"Sites({{{key!r}: ...}}): expected a site's name, a tuple of names, or '*'")
            for name in names:
                if name in seen:
                    raise ArgumentError(f"Sites: site {name!r} is given to two families")
                seen.add(name)
        parts = list(given.values())
        whole = [f.num_particles for f in parts if not (isinstance(f, JointFamily) and f.is_local)]
        own = {
            "families": tuple(given.items()),
            "num_particles": max(whole, default=MeanField.num_particles),
            "max_steps": max(f.max_steps for f in parts),
            "converges": all(f.converges for f in parts),
            "by_losses": any(f.by_losses for f in parts),
        }
        for name, value in own.items():  # frozen
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Sites({{{', '.join(f'{key!r}: {family!r}' for key, family in self.families)}}})"

    def parts(self) -> list[tuple[SiteSelection, GuideFamily]]:
        """What each family covers."""
        keys = [(key,) if isinstance(key, str) else key for key, _ in self.families]
        named = frozenset(name for names in keys for name in names if names != (REST,))
        rest = SiteSelection(None, named, "rest")
        covers = [rest if names == (REST,) else SiteSelection(names, label="_".join(names)) for names in keys]
        return [(cover, family) for cover, (_, family) in zip(covers, self.families, strict=True)]

    def simpler(self) -> tuple[Sites, int] | None:
        """What a fit starts from and its steps: mean fields for parts that want a warm start; None for none."""
        wanted = [_warm_steps(family) for _, family in self.families]
        if not any(wanted):
            return None
        held = zip(self.families, wanted, strict=True)
        return Sites({key: MeanField() if steps else family for (key, family), steps in held}), max(wanted)

    @property
    def learning_rate_groups(self) -> tuple[GuideFamily, ...]:
        """One family per learning-rate group: each part's, and a mean field."""
        return *(family for _, family in self.families), MeanField()

    def learning_rate_group(self, param: str) -> int:
        """Index into `learning_rate_groups` of a parameter, by its name.

        The model's own go with the first mean field, or part 0; an SDE's base with the mean field at the end.
        """
        covers = self.parts()
        for i, (cover, family) in enumerate(covers):
            if isinstance(family, JointFamily) and param.startswith(f"{cover.label}_"):
                base = isinstance(family, SDE) and param.removeprefix(f"{cover.label}_sde_") in BASE
                return len(covers) if base else i
        return next((i for i, (_, family) in enumerate(covers) if isinstance(family, MeanField)), 0)

    def check_estimators(self, estimators: Any) -> None:
        if estimators and not any(isinstance(family, MeanField) for _, family in self.families):
            raise ArgumentError(
                f"{self!r} holds no vr.MeanField, so estimators={estimators!r} have no site to act on: leave them out"
            )
        for site in estimators:
            drawn_by = next((f for cover, f in self.parts() if site in (cover.names or (REST,))), None)
            if isinstance(drawn_by, JointFamily) and site != REST:
                raise ArgumentError(
                    f"estimators name {site!r}, which {drawn_by!r} draws by a gradient of its own: leave it out"
                )


def start_from(posterior: Any, new: list[tuple[Any, Any]], key: Any) -> dict[str, Any]:
    """The parameters of a simpler fit, with what its draws say of those that it lacks.

    Args:
        new: guides that drew nothing there, each with its layout.
    """
    names = [part.site.name for _, layout in new for part in layout.parts]
    draws = posterior.scorer.run(lambda scored: {name: scored.latents[name] for name in names}, NUM_MATCHED, key)
    replaced = tuple(f"{name}_" for name in names)
    values = {name: value for name, value in posterior.params.items() if not name.startswith(replaced)}
    for guide, layout in new:
        values.update(guide.matched(layout, draws))
    return values


def _warm_steps(family: GuideFamily) -> int:
    if not isinstance(family, JointFamily) or family.is_local:
        return 0
    return getattr(family, "warm_start", WARM_START)
