"""Heavier tails for a fitted guide, chosen by its importance weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.gaussians.tails import CHOICES

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

LARGEST_TAIL = 1_000  # latents up to which k-hat can say something of the tails
TAIL_SEED = 1  # not that of the figures, which judge the choice
GOOD_TAIL = 0.45
PRICE_OF_TAIL = 0.02


def fit_tail(posterior: Posterior) -> None:
    """Widen a guide's tails as far as usable importance weights ask for, at no price worth speaking of.

    The smallest h of `tails.CHOICES` with a good k-hat, or else that of the smallest k-hat; never
    one that lowers the ELBO by more than a few hundredths of a nat. Nothing for a guide without such a parameter.
    """
    names = [name for name in posterior.params if name.endswith("_tail")]
    if len(names) != 1 or sum(s.size for s in posterior.scorer.sites.latents.values()) > LARGEST_TAIL:
        return
    name, value = names[0], posterior.params[names[0]]

    def at(h: float) -> Any:
        return value * 0.0 + h  # where the parameter lies

    tried: list[tuple[float, float, float]] = []
    for h in CHOICES:
        posterior.set_param(name, at(h))
        weights = posterior.weights(posterior.default_num_weights, TAIL_SEED)
        if not np.isfinite(weights.log).all():
            continue
        tried.append((h, weights.khat, float(weights.log.mean())))
        if weights.khat < GOOD_TAIL or tried[-1][2] < tried[0][2] - PRICE_OF_TAIL:  # a heavier one costs more
            break
    fair = [t for t in tried if t[2] > tried[0][2] - PRICE_OF_TAIL]
    posterior.set_param(name, at(min(fair, key=lambda t: max(t[1], GOOD_TAIL))[0] if fair else 0.0))
    posterior.record["tail"] = float(posterior.params[name])
