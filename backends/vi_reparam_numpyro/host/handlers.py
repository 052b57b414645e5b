"""`vr.estimate`: choose the gradient estimator of every site of a guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from numpyro.distributions import Delta
from numpyro.primitives import Messenger, mutable

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam_numpyro.host.distributions import Estimated, annotate, resolve
from vi_reparam_numpyro.host.guard import initializing_a_host

BASELINE = "vr.baseline"
"""The mutable site that holds the decaying averages."""


class estimate(Messenger):  # noqa: N801  (handlers are lower case in NumPyro)
    """Draw the sites of a guide through estimators.

    Precedence at a site: a named entry, the site's own ``infer={"estimator": ...}`` or annotation,
    then ``"*"``. A site with none of these is left alone. Use the result as the guide of an
    `SVI` whose loss is `ELBO`; a site with a score term raises when it is differentiated under an
    objective that would drop it.

    Args:
        fn: the guide.
        estimators: one estimator for all sites, or a mapping from site names and ``"*"``.

    Raises:
        ArgumentError: if a value is not an estimator, or (when run) a name is no site of the guide.
        SiteError: if an estimator does not serve its site, or ``"*"`` serves none.
    """

    def __init__(self, fn: Any = None, estimators: Any = None) -> None:
        super().__init__(fn)
        self.estimators = as_mapping(estimators)
        self._scored: dict[str, tuple[int, ...]] = {}
        self._seen: set[str] = set()
        self._unserved: list[SiteError] = []
        self._served = False

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            raise SiteError(
                "vr.estimate: the guide uses NumPyro's control flow (scan or cond), inside which a draw cannot report "
                "its score term; write the loop as a plate or unroll it"
            )
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        name, fn = msg["name"], msg["fn"]
        self._seen.add(name)
        own = fn.estimator if isinstance(fn, Estimated) else msg["infer"].get("estimator")
        chosen = self.estimators.get(name) or own or self._wildcard(name, fn)
        if chosen is None:
            return
        if not isinstance(chosen, Estimator):
            raise ArgumentError(
                f"site {name!r}: infer['estimator'] is {chosen!r}, expected an estimator such as vr.Implicit()"
            )
        msg["fn"] = annotate(fn, chosen, name)
        if getattr(msg["fn"].estimator, "baseline", None) in ("auto", "decaying_average"):
            plates = {frame.dim for frame in msg["cond_indep_stack"]}
            batch = msg["fn"].batch_shape
            self._scored[name] = tuple(n if axis - len(batch) in plates else 1 for axis, n in enumerate(batch))

    def _wildcard(self, name: str, fn: Any) -> Estimator | None:
        chosen = self.estimators.get("*")
        if chosen is None or isinstance(fn, Delta) or getattr(fn, "known_by_draws", False):
            return None
        try:
            resolve(chosen, fn, name)
        except SiteError as error:
            self._unserved.append(error)
            return Auto()
        self._served = True
        return chosen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.fn is None:
            return super().__call__(*args, **kwargs)
        self._scored, self._seen, self._unserved, self._served = {}, set(), [], False
        result = super().__call__(*args, **kwargs)
        unknown = set(self.estimators) - self._seen - {"*"}
        if unknown:
            raise ArgumentError(
                f"estimators name {sorted(unknown)}, which the guide does not draw: it draws {sorted(self._seen)}"
            )
        if self._unserved and not self._served:
            raise self._unserved[0]
        if self._scored and not initializing_a_host():
            averages: Any = {n: {"mean": jnp.zeros(s), "count": jnp.zeros(())} for n, s in self._scored.items()}
            mutable(BASELINE, averages)
        return result


def as_mapping(estimators: Any) -> dict[str, Estimator]:
    """One estimator or a mapping of them, as a mapping.

    Raises:
        ArgumentError: if a value is not an estimator.
    """
    if estimators is None:
        return {}
    if not isinstance(estimators, Estimator | Mapping):
        raise ArgumentError(
            f"estimators={estimators!r}: expected an estimator such as vr.Implicit(), or a mapping from site names"
        )
    mapping = {"*": estimators} if isinstance(estimators, Estimator) else dict(estimators)
    for name, value in mapping.items():
        if not isinstance(value, Estimator):
            raise ArgumentError(f"estimators[{name!r}] is {value!r}: expected an estimator such as vr.Implicit()")
    return mapping
