"""`vr.estimate`: choose the gradient estimator of every site of a guide."""

from __future__ import annotations

from typing import Any

from numpyro.distributions import Delta
from numpyro.primitives import Messenger, mutable

from vi_reparam.errors import SiteError
from vi_reparam.objectives.score import BASELINE
from vi_reparam.sites.choice import Chooser, as_mapping
from vi_reparam_numpyro.host.distributions import annotate
from vi_reparam_numpyro.host.families import reader
from vi_reparam_numpyro.host.guard import initializing_a_host
from vi_reparam_numpyro.ops.ops import ops


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
        self._chooser = Chooser(reader, self.estimators)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            raise SiteError(
                "vr.estimate: the guide uses NumPyro's control flow (scan or cond), inside which a draw cannot report "
                "its score term; write the loop as a plate or unroll it"
            )
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        name, fn = msg["name"], msg["fn"]
        chosen = self._chooser.choose(name, fn, msg["infer"], is_point=isinstance(fn, Delta))
        if chosen is not None:
            msg["fn"] = made = annotate(fn, chosen, name)
            plates = {frame.dim for frame in msg["cond_indep_stack"]}
            self._chooser.note(name, made.estimator, made.batch_shape, plates)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.fn is None:
            return super().__call__(*args, **kwargs)
        self._chooser = Chooser(reader, self.estimators)
        result = super().__call__(*args, **kwargs)
        self._chooser.finish()
        averages: Any = self._chooser.averages(ops)
        if averages and not initializing_a_host():
            mutable(BASELINE, averages)
        return result
