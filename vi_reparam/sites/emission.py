"""Where a draw goes: to the recorder of a running objective of ours, or guarded where none listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.draw import Draw
from vi_reparam.estimators import Estimator, ScoreFunction
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import current

if TYPE_CHECKING:
    from vi_reparam.programs.vector import Vector

Names = tuple[str, ...]

ALONE = "this computation"
"""What a refusal names where no objective of the framework runs."""


def emit(site: str, sampled: Sampled, guard: Callable[[Sampled], Array]) -> tuple[Array, bool]:
    """Report a draw to the running objective; `guard` it where none listens and nobody would honour its score term.

    Gives the value that the program goes on with, and whether it is what was drawn.
    """
    recorder = current()
    if recorder is not None:
        return recorder.report(site, sampled), site not in recorder.altered
    return (sampled.draw.value if sampled.draw.is_pathwise else guard(sampled)), True


def drawer(estimator: Estimator, site: str) -> str:
    """How messages name who draws."""
    return f"site {site!r}: {estimator!r}" if site else repr(estimator)


def dropped(estimator: Estimator, site: str, objective: str) -> str:
    """The refusal of a draw whose score term an objective would drop."""
    return (
        f"{drawer(estimator, site)} leaves a score term that {objective} would drop, and the gradient would be wrong; "
        "use vr.ELBO(), or Implicit() / Pathwise() where they apply"
    )


class VectorFamily:
    """The family of a draw of a joint guide's vector."""

    name: ClassVar[str] = "joint"
    kinds: ClassVar[frozenset[str]] = frozenset({"score_function"})


def emit_vector(
    ops: Ops, site: str, vector: Vector, objective: Callable[[], str], *, linear: Names, drop_deltas: Names = ()
) -> tuple[Array, Array]:
    """Report a draw of a joint guide's vector, or guard it where none listens.

    Args:
        objective: the name of the framework's objective that runs, `ALONE` for none; asked only where it matters.
        linear: names of objectives that are linear in log q, so that its parameters may be constants there.
        drop_deltas: names of those that drop the density that a Delta carries.

    Returns:
        The value that the program goes on with, and its log q.
    """
    recorder, value, log_q = current(), vector.value, vector.log_q
    if recorder is not None:
        recorder.frozen[site] = vector.frozen
    if vector.score_term is not None:
        if recorder is None:
            message = (
                f"site {site!r}: this guide's gradient='log_variance' leaves a score term that {objective()} "
                "would drop, and the gradient would be wrong; use vr.ELBO(), or gradient='path'"
            )
            return ops.refuse_gradient(message, value, vector.score_term), log_q
        draw = Draw(value=value, log_prob=log_q, score_term=vector.score_term)
        kind: Any = VectorFamily()
        value = recorder.report(site, Sampled(draw, kind, ScoreFunction(baseline="leave_one_out"), ()))
        recorder.consume(site)
        if site in recorder.altered:  # whoever shifts the draw asks what depends on it
            log_q = log_q + 0.0 * value.sum()
    elif recorder is None and (name := objective()) != ALONE:
        if vector.frozen and name not in linear:
            message = (
                f"this guide's path gradient takes its parameters inside log q as constants, which is right for an "
                f"ELBO and biased under {name}; use vr.ELBO(), or gradient='reparameterization'"
            )
            value = ops.refuse_gradient(message, value, log_q)
        elif name in drop_deltas:
            message = (
                f"{name} drops the density that a Delta carries, and with it the change of volume of this guide's "
                "latents; use vr.ELBO() or Trace_ELBO()"
            )
            value = ops.refuse_gradient(message, value, log_q)
    return value, log_q
