"""The core's objectives, as NumPyro's SVI calls them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax, random
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.infer.elbo import ELBO as HostELBO

from vi_reparam.objectives import multisample
from vi_reparam.objectives.elbo import Elbo
from vi_reparam.objectives.iwelbo import Iwelbo
from vi_reparam.objectives.multisample import DOUBLY
from vi_reparam.objectives.run import first_params
from vi_reparam_numpyro.backend import backend


class ELBO(Elbo, HostELBO):  # noqa: D101
    __doc__ = Elbo.__doc__
    backend = backend
    can_infer_discrete = True
    holds_state = True
    place: Any = None
    """Where the keys of the particles go, and with them the work."""

    def __init__(
        self, num_particles: int = 1, *, entropy: str = "monte_carlo", vectorize_particles: bool | Any = True
    ) -> None:
        Elbo.__init__(self, num_particles, entropy)
        HostELBO.__init__(self, num_particles=num_particles, vectorize_particles=vectorize_particles)

    def surroundings(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return backend.ops.compiled(
            functools.partial(first_params, backend, model=model, guide=guide, args=args, kwargs=kwargs)
        )

    def can_share_a_run(self, located: Any, key: Any) -> bool:
        return True  # a program that reads values cannot be traced at all

    def _at_once(self, structure: Any) -> bool:
        return True

    def over(self, devices: tuple[Any, ...]) -> Any:
        """The same objective, its particles shared by these devices."""
        other = copy.copy(self)
        other.place = NamedSharding(Mesh(np.array(devices), ("particles",)), PartitionSpec("particles"))
        return other

    def many(self, particle: Callable[[Any], Any], key: Any) -> Any:
        keys = random.split(key, self.num_particles)
        if self.place is not None:
            keys = lax.with_sharding_constraint(keys, self.place)
        return self.vectorize_particles_fn(particle, keys)

    def loss(self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)["loss"]

    def loss_with_mutable_state(
        self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The negative bound and its surrogate gradient.

        Raises:
            SiteError: if the guide misses a latent of the model.
            GradientError: if a score term would be lost or a baseline cannot be had.
        """
        loss, state = self.surrogate(rng_key, model, guide, args, kwargs, params=param_map)
        return {"loss": loss, "mutable_state": state or None}


class IWELBO(Iwelbo, ELBO):  # noqa: D101
    __doc__ = Iwelbo.__doc__

    def __init__(self, num_particles: int = 8, *, gradient: str = DOUBLY, vectorize_particles: Any = True) -> None:
        multisample.check_options(num_particles, gradient)
        entropy = "path" if gradient == DOUBLY else "monte_carlo"
        ELBO.__init__(self, num_particles, entropy=entropy, vectorize_particles=vectorize_particles)
        self.gradient = gradient
