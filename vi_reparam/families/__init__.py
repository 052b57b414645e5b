"""Distribution families: one table, from which tests, guides and backends read."""

from vi_reparam.families.base import Family, WeakDerivative
from vi_reparam.families.dirichlet import BETA, DIRICHLET
from vi_reparam.families.discrete import BERNOULLI, POISSON
from vi_reparam.families.gamma import CHI2, GAMMA, INVERSE_GAMMA
from vi_reparam.families.normal import NORMAL
from vi_reparam.families.own import SamplerFamily
from vi_reparam.families.student_t import STUDENT_T
from vi_reparam.families.truncated_normal import TRUNCATED_NORMAL
from vi_reparam.families.von_mises import VON_MISES
from vi_reparam.families.von_mises_fisher import VON_MISES_FISHER

_BY_GAMMAS = (GAMMA, INVERSE_GAMMA, CHI2, BETA, DIRICHLET, STUDENT_T)
_OTHERS = (VON_MISES, VON_MISES_FISHER, TRUNCATED_NORMAL, BERNOULLI, POISSON)
FAMILIES: dict[str, Family] = {family.name: family for family in (NORMAL, *_BY_GAMMAS, *_OTHERS)}

__all__ = ["FAMILIES", "Family", "SamplerFamily", "WeakDerivative"]
