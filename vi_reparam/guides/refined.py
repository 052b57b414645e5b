"""Draws of a Markov chain in place of a guide: what `posterior.refine` gives."""

from __future__ import annotations

from dataclasses import dataclass

from vi_reparam.errors import ArgumentError
from vi_reparam.guides.joint import JointFamily


@dataclass(frozen=True, repr=False)
class Refined(JointFamily):
    """Draws that were moved by Hamiltonian Monte Carlo; made by `posterior.refine`, and not fitted."""

    def check_fit(self) -> None:
        """Refuse a fit.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError("Refined() is not fitted: fit another family, and call posterior.refine()")
