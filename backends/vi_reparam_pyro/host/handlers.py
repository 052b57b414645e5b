"""`vr.estimate`: choose the gradient estimator of every site of a guide."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam_pyro import listener
from vi_reparam_pyro.host.distributions import Estimated, annotate, resolve


class estimate:  # noqa: N801  (handlers are lower case in Pyro)
    """Draw the sites of a guide through estimators.

    Precedence at a site: a named entry, the site's own ``infer={"estimator": ...}`` or annotation,
    then ``"*"``. A site with none of these is left alone. Use the result as the guide of a
    `pyro.infer.SVI` whose loss is `ELBO`; a site with a score term raises when it is
    differentiated under an objective that would drop it.

    Args:
        fn: the guide.
        estimators: one estimator for all sites, or a mapping from site names and ``"*"``.

    Attributes:
        averages: the decaying averages of the sites that want one, by site.

    Raises:
        ArgumentError: if a value is not an estimator, or (when run) a name is no site of the guide.
        SiteError: if an estimator does not serve its site, or ``"*"`` serves none.
    """

    def __init__(self, fn: Any, estimators: Any = None) -> None:
        self.fn = fn
        self.estimators = as_mapping(estimators)
        self.averages: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        chooser = _Choose(self.estimators)
        with chooser:
            result = self.fn(*args, **kwargs)
        unknown = set(self.estimators) - chooser.seen - {"*"}
        if unknown:
            drawn = sorted(chooser.seen)
            raise ArgumentError(f"estimators name {sorted(unknown)}, which the guide does not draw: it draws {drawn}")
        if chooser.unserved and not chooser.served:
            raise chooser.unserved[0]
        hearing = listener.current()
        if hearing is not None:
            if hearing.averages is None:
                hearing.averages = self.averages
            for name, shape in chooser.scored.items():
                start = {"mean": torch.zeros(shape), "count": torch.zeros(())}
                hearing.averages.setdefault(name, start)
        return result


class _Choose(Messenger):
    """Swaps the sites' distributions, after the guide's own plates acted."""

    def __init__(self, estimators: dict[str, Estimator]) -> None:
        super().__init__()
        self.estimators = estimators
        self.scored: dict[str, tuple[int, ...]] = {}
        self.seen: set[str] = set()
        self.unserved: list[SiteError] = []
        self.served = False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg["fn"]):
            return
        name, fn = msg["name"], msg["fn"]
        self.seen.add(name)
        own = fn.estimator if isinstance(fn, Estimated) else msg["infer"].get("estimator")
        chosen = self.estimators.get(name) or own or self._wildcard(name, fn)
        if chosen is None:
            return
        if not isinstance(chosen, Estimator):
            raise ArgumentError(
                f"site {name!r}: infer['estimator'] is {chosen!r}, expected an estimator such as vr.Implicit()"
            )
        made = annotate(fn, chosen).at(name)
        msg["fn"] = made
        if getattr(made.estimator, "baseline", None) in ("auto", "decaying_average"):
            plates = {frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized}
            batch = tuple(made.batch_shape)
            self.scored[name] = tuple(n if axis - len(batch) in plates else 1 for axis, n in enumerate(batch))

    def _wildcard(self, name: str, fn: Any) -> Estimator | None:
        chosen = self.estimators.get("*")
        if chosen is None or isinstance(fn, Delta) or getattr(fn, "known_by_draws", False):
            return None
        try:
            resolve(chosen, fn, name)
        except SiteError as error:
            self.unserved.append(error)
            return Auto()
        self.served = True
        return chosen


def is_subsample(fn: Any) -> bool:
    """Whether this is the draw of a plate's indices."""
    return type(fn).__name__ == "_Subsample"


def as_mapping(estimators: Any) -> dict[str, Estimator]:
    """One estimator or a mapping of them, as a mapping.

    Raises:
        ArgumentError: if a value is not an estimator.
    """
    if estimators is None:
        return {}
    mapping = {"*": estimators} if isinstance(estimators, Estimator) else dict(estimators)
    for name, value in mapping.items():
        if not isinstance(value, Estimator):
            raise ArgumentError(f"estimators[{name!r}] is {value!r}: expected an estimator such as vr.Implicit()")
    return mapping
