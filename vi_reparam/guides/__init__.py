"""Guide families as plain specifications."""

from vi_reparam.guides.adaptive_mixture import AdaptiveMixture
from vi_reparam.guides.base import GuideFamily
from vi_reparam.guides.escalate import Escalate
from vi_reparam.guides.flow import Flow
from vi_reparam.guides.gaussian import FullRank, Gaussian, GaussianFamily, LowRank
from vi_reparam.guides.joint import JointFamily
from vi_reparam.guides.mean_field import MeanField
from vi_reparam.guides.mixture import Mixture
from vi_reparam.guides.nested_laplace import NestedLaplace
from vi_reparam.guides.sde import SDE
from vi_reparam.guides.sites import Sites
from vi_reparam.guides.structured import Structured

__all__ = [
    "SDE",
    "AdaptiveMixture",
    "Escalate",
    "Flow",
    "FullRank",
    "Gaussian",
    "GaussianFamily",
    "GuideFamily",
    "JointFamily",
    "LowRank",
    "MeanField",
    "Mixture",
    "NestedLaplace",
    "Sites",
    "Structured",
]
