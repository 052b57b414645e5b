"""Draws of a Markov chain in place of a guide: what `posterior.refine` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_reparam.guides.joint import JointFamily


@dataclass(frozen=True, repr=False)
class Refined(JointFamily):
    """Draws that were moved by Hamiltonian Monte Carlo; made by `posterior.refine`, and not fitted."""

    is_fitted: ClassVar[bool] = False
