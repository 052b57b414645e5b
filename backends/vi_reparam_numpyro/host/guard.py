"""Who is asking: what of NumPyro's runs on the call stack."""

from __future__ import annotations

import sys

from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO as HostELBO

from vi_reparam.sites.emission import ALONE


def running_objective() -> str:
    """Name of the NumPyro objective on the call stack, for the error that must name it; `ALONE` if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, HostELBO):
            return type(owner).__name__
        frame = frame.f_back
    return ALONE


def initializing_a_host() -> bool:
    """Whether an `SVI` that knows no state of ours is on the call stack: half of NumPyro's objectives refuse any."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, SVI):
            return not getattr(owner.loss, "holds_state", False)
        frame = frame.f_back
    return False
