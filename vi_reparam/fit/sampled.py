"""What fits without steps share: which models they are for, and what they find."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.guides.base import GuideFamily


class Fit(NamedTuple):
    """What is found.

    Attributes:
        family: as it was asked for, or with what was chosen.
        params: of its guide, NumPy arrays by name.
        gradients: of log p that it took, or runs of the model, which cost no more.
        rounds: of sampling; `num_draws`: in each.
        evidence: what the weights of all rounds say of it, as `verdict.Surest`; None where the guide's own say it.
    """

    family: GuideFamily
    params: dict[str, np.ndarray]
    gradients: int
    rounds: int
    num_draws: int
    evidence: dict[str, Any] | None = None


def why_not_of(guide: Any, data: Data, name: str, most: int) -> str:
    """Why a family cannot be fitted to a model so; empty where it can. Nothing is computed.

    Args:
        guide: knows how the model's latents are laid out.
        name: of the family; `most`: coordinates that it covers.
    """
    structure, size = guide.latents.structure(*data.call), guide.layout(*data.call).size
    if structure.params or structure.mutable:
        return f"the model has parameters of its own, which {name}() does not learn"
    if structure.subsampled:
        return f"the model sees minibatches, and {name}() all data at each draw"
    return "" if size <= most else f"{size:,} latents are too many for {name}()"
