"""The core's objectives, as Pyro's SVI calls them."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.elbo import ELBO as HostELBO

from vi_reparam.errors import GradientError
from vi_reparam.objectives import multisample
from vi_reparam.objectives.elbo import Elbo
from vi_reparam.objectives.iwelbo import Iwelbo
from vi_reparam.objectives.multisample import DOUBLY
from vi_reparam.objectives.run import Run
from vi_reparam_pyro.backend import backend

Array = Any


class ELBO(Elbo, HostELBO):  # noqa: D101
    __doc__ = Elbo.__doc__
    backend = backend

    def __init__(
        self, num_particles: int = 1, *, entropy: str = "monte_carlo", vectorize_particles: bool | None = None
    ) -> None:
        Elbo.__init__(self, num_particles, entropy, vectorize_particles)
        HostELBO.__init__(self, num_particles=num_particles)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("vr.ELBO runs guide and model itself")

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs).detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Array:
        """The negative bound, with the gradient of its surrogate.

        Raises:
            SiteError: if the guide misses a latent of the model.
            GradientError: if a score term would be lost or a baseline cannot be had.
        """
        return self.surrogate(backend.ops.root_key(), model, guide, args, kwargs)[0]


class IWELBO(Iwelbo, ELBO):  # noqa: D101
    __doc__ = Iwelbo.__doc__

    def __init__(
        self, num_particles: int = 8, *, gradient: str = DOUBLY, vectorize_particles: bool | None = None
    ) -> None:
        multisample.check_options(num_particles, gradient)
        entropy = "path" if gradient == DOUBLY else "monte_carlo"
        ELBO.__init__(self, num_particles, entropy=entropy, vectorize_particles=vectorize_particles)
        self.gradient = gradient

    def require(self, result: Run) -> None:
        Iwelbo.require(self, result)
        if self.gradient != DOUBLY:
            return
        # torch tells the two sides' gradients apart by the parameters themselves
        names = {side: {name for s, name in result.params if s == side} for side in ("guide", "model")}
        for name in sorted(names["guide"] & names["model"]):
            raise GradientError(
                f"parameter {name!r} is in the guide and in the model, and IWELBO(gradient={DOUBLY!r}) weighs the two "
                "apart; use gradient='reparameterization'"
            )
        network = [n for (side, n), p in result.params.items() if side == "guide" and isinstance(p, torch.nn.Parameter)]
        if network and not result.frozen:
            raise GradientError(
                f"the guide's network weights {network[0]!r} cannot be held inside log q, as "
                f"IWELBO(gradient={DOUBLY!r}) needs; use gradient='reparameterization'"
            )
