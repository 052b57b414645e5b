"""What an importance-weighted bound asks of a guide: no term of its gradient may be lost or counted twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vi_reparam.checks import check_choice, check_integer
from vi_reparam.errors import GradientError

DOUBLY = "doubly_reparameterized"
GRADIENTS = (DOUBLY, "reparameterization")


def check_options(num_particles: Any, gradient: Any) -> None:
    """Refuse options that cannot be used.

    Raises:
        ArgumentError: naming the option.
    """
    check_integer("num_particles", num_particles, "IWELBO")
    check_choice("gradient", gradient, GRADIENTS, "IWELBO")


def check_run(draws: Mapping[str, Any], frozen: Mapping[str, bool], subsampled: Any, gradient: str) -> None:
    """Refuse a program whose gradient would be wrong.

    Args:
        draws: the estimated draws of the guide, by site.
        frozen: whether a joint guide's log q leaves its own parameters out, by site.
        subsampled: names of the plates that see minibatches.

    Raises:
        GradientError: naming the site or the plate, and IWELBO.
    """
    for name in sorted(subsampled):
        raise GradientError(
            f"plate {name!r} is subsampled, and IWELBO takes a logarithm of a mean, which a minibatch biases; "
            "use vr.ELBO(), or all of the data"
        )
    for name, sampled in draws.items():
        if not sampled.draw.is_pathwise:
            raise GradientError(
                f"site {name!r}: {sampled.estimator!r} leaves a score term, which IWELBO would drop; use Implicit() or "
                "Pathwise(), or vr.ELBO()"
            )
    for name, is_frozen in frozen.items():
        if is_frozen != (gradient == DOUBLY):
            given, fit = ("path", DOUBLY) if is_frozen else ("reparameterization", "reparameterization")
            raise GradientError(
                f"site {name!r}: this guide's gradient={given!r} is biased under IWELBO(gradient={gradient!r}); use "
                f"IWELBO(gradient={fit!r}), or the guide's other gradient"
            )
