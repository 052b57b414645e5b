"""A draw of all latents of a guide as one vector: its parts, and what it tells the objective that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from vi_reparam.backend.ops import Ops
from vi_reparam.draw import Draw
from vi_reparam.errors import SiteError
from vi_reparam.estimators import ScoreFunction

Array = Any
Key = Any
Noise = Callable[[Key, tuple[int, ...]], Any]
"""Noise of draws with some leading dimensions, from a key: a tree of arrays."""

SITE = "vr_joint"
"""The auxiliary site of the vector that latents are cut from; `SiteSelection.label` goes before it."""


@dataclass(frozen=True)
class Vector:
    """A draw of the vector, or of one for each element of a plate.

    Attributes:
        value: shape ``[D]``, or ``[*plate, D]``.
        log_q: such that log p - log_q is the log weight, shape ``[]`` or ``[*plate]``.
        score_term: as in `vi_reparam.Draw`.
        frozen: whether log_q leaves out the gradient by the guide's parameters.
    """

    value: Array
    log_q: Array
    score_term: Array | None = None
    frozen: bool = False


@dataclass(frozen=True)
class _Whole:
    """The family of a draw of the vector."""

    name: ClassVar[str] = "joint"
    kinds: ClassVar[frozenset[str]] = frozenset({"score_function"})


@dataclass(frozen=True)
class HostObjectives:
    """What a framework's own objectives do with a draw, by their class names.

    Attributes:
        single_sample: they are linear in log q, so that its parameters may be constants there.
        drop_deltas: they drop the density that a Delta carries.
    """

    single_sample: tuple[str, ...]
    drop_deltas: tuple[str, ...] = ()


def drawer(
    ops: Ops,
    size: int,
    noise: Noise,
    draw: Callable[[Any, Array | None], Vector],
    features: Array | None,
    batch_shape: tuple[int, ...],
) -> Callable[[Key], Vector]:
    """What makes a draw from a key; arguments as of `vi_reparam.backend.host.Host.vector`."""
    if features is None:
        return lambda key: draw(noise(key, ()), None)

    def rows(key: Key) -> Vector:
        frozen: list[bool] = []

        def one(own: Any, row: Array) -> tuple[Array, Array]:
            made = draw(own, row)
            frozen.append(made.frozen)
            return made.value, made.log_q

        value, log_q = ops.vmap(one)(noise(key, (features.shape[0],)), features)
        value = ops.xp.reshape(value, (*batch_shape, size))
        return Vector(value, ops.xp.reshape(log_q, batch_shape), frozen=frozen[0])

    return rows


def emit(
    site: str,
    made: Vector,
    *,
    recorder: Any,
    objective: str | None,
    known: HostObjectives,
    refuse: Callable[..., Array],
    sampled: Callable[..., Any],
) -> tuple[Array, Array]:
    """Tell of a draw, or refuse a gradient that would be wrong.

    Args:
        recorder: the running `vi_reparam.sites.recorder.Recorder`; None for none.
        objective: the class of the framework's own objective that runs; None for none.
        refuse: ``refuse(message, value, *operands)`` is the value, and raises if it is differentiated.
        sampled: makes what the recorder is told.

    Returns:
        (the value that the program goes on with, log q).
    """
    value, log_q = made.value, made.log_q
    if recorder is not None:
        recorder.frozen[site] = made.frozen
        if made.score_term is None:
            return value, log_q
        draw = Draw(value=value, log_prob=log_q, score_term=made.score_term)
        value = recorder.report(site, sampled(draw, _Whole(), ScoreFunction(baseline="leave_one_out"), ()))
        recorder.consume(site)
        if site in recorder.altered:  # log q goes with the draw, for those who ask what depends on it
            log_q = log_q + 0.0 * value.sum()
        return value, log_q
    if made.score_term is not None:
        message = (
            f"site {site!r}: this guide's gradient='log_variance' leaves a score term that "
            f"{objective or 'this computation'} would drop, and the gradient would be wrong; use vr.ELBO(), or "
            "gradient='path'"
        )
        return refuse(message, value, made.score_term), log_q
    if objective is None or objective in known.single_sample:
        return value, log_q
    if made.frozen:
        message = (
            f"this guide's path gradient takes its parameters inside log q as constants, which is right for an "
            f"ELBO and biased under {objective}; use vr.ELBO(), or gradient='reparameterization'"
        )
        return refuse(message, value, log_q), log_q
    if objective in known.drop_deltas:
        message = (
            f"{objective} drops the density that a Delta carries, and with it the change of volume of this guide's "
            "latents; use vr.ELBO() or Trace_ELBO()"
        )
        return refuse(message, value, log_q), log_q
    return value, log_q


def lost_path(site: str) -> SiteError:
    """What is raised where a value is to be scored that is no draw of the guide itself."""
    return SiteError(
        f"site {site!r}: only a draw of this guide can be scored, together with the path behind it; a value "
        "that was replayed or substituted has lost its path"
    )
