"""`vr.estimate`: choose the gradient estimator of every site of a guide."""

from __future__ import annotations

from typing import Any

from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger

from vi_reparam.sites.choice import Chooser, as_mapping
from vi_reparam.sites.recorder import current
from vi_reparam_pyro.host.distributions import annotate
from vi_reparam_pyro.host.families import reader
from vi_reparam_pyro.ops.ops import ops


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
        chooser = Chooser(reader, self.estimators)
        with _Choose(chooser):
            result = self.fn(*args, **kwargs)
        chooser.finish()
        recorder = current()
        if recorder is not None:
            if recorder.averages is None:
                recorder.averages = self.averages
            for name, start in chooser.averages(ops).items():
                recorder.averages.setdefault(name, start)
        return result


class _Choose(Messenger):
    """Swaps the sites' distributions, after the guide's own plates acted."""

    def __init__(self, chooser: Chooser) -> None:
        super().__init__()
        self.chooser = chooser

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg["fn"]):
            return
        name, fn = msg["name"], msg["fn"]
        chosen = self.chooser.choose(name, fn, msg["infer"], is_point=isinstance(fn, Delta))
        if chosen is not None:
            msg["fn"] = made = annotate(fn, chosen, name)
            plates = {frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized}
            self.chooser.note(name, made.estimator, tuple(made.batch_shape), plates)


def is_subsample(fn: Any) -> bool:
    """Whether this is the draw of a plate's indices."""
    return type(fn).__name__ == "_Subsample"
