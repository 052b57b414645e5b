"""Draws from distributions of a framework, whatever wraps them, with an estimator's gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Array, Ops, Shape
from vi_reparam.draw import Branch, Draw
from vi_reparam.errors import SiteError
from vi_reparam.estimators import Auto, Estimator, MeasureValued, ScoreFunction
from vi_reparam.families import Family
from vi_reparam.sites.host_family import family_of, require_inverse
from vi_reparam.sites.wrappers import innermost, masked, sum_rightmost


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A draw of a whole (wrapped) distribution.

    Attributes:
        draw: value, and log_prob and score_term of the distribution's batch shape. Branch
            weights keep the lanes' shape, ``batch + reinterpreted``.
        family: of the distribution inside all wrappers; `estimator`: the one that drew it.
        params: its parameters.
        lane_dims: reinterpreted dimensions between the batch and the family's event.
        scores: for an optimal baseline, pairs (theta - stop(theta), dlog q/dtheta) of lanes' shape.
    """

    draw: Draw
    family: Family
    estimator: Estimator
    params: tuple[Array, ...]
    lane_dims: int = 0
    scores: tuple[tuple[Array, Array], ...] = ()

    def with_draw(self, **changes: Any) -> Sampled:
        """The same, with another value, density or score term."""
        return dataclasses.replace(self, draw=dataclasses.replace(self.draw, **changes))


def resolve(reader: Reader, estimator: Estimator, distribution: Any, site: str = "") -> tuple[Estimator, Family]:
    """The estimator that draws from this distribution, `Auto` resolved, and the family inside its wrappers.

    Raises:
        SiteError: if it does not serve the family.
    """
    family, _ = family_of(reader, innermost(reader, distribution))
    if isinstance(estimator, Auto):
        estimator = estimator.choose(family)
    estimator.require(family, site)
    return estimator, family


def sample_with(
    reader: Reader,
    ops: Ops,
    distribution: Any,
    estimator: Estimator,
    key: Any,
    lanes: Shape,
    value: Array | None = None,
) -> Sampled:
    """Draw from a distribution, whatever wraps it, with an estimator's gradient.

    Args:
        lanes: batch shape to draw, to which the distribution's batch shape broadcasts.
        value: hold the draw at this value.

    Raises:
        GradientError: for a given value whose noise cannot be recovered.
        SiteError: for an optimal baseline in a family that is not the core's.
    """
    wrapping = reader.unwrap(distribution)
    if wrapping is None:
        return _sample_leaf(reader, ops, distribution, estimator, key, lanes, value)
    kind, inside, detail = wrapping
    if kind == "transformed":
        return _sample_transformed(reader, ops, distribution, estimator, key, lanes, value)
    if kind == "independent":
        inner = sample_with(
            reader, ops, inside, estimator, key, lanes + tuple(distribution.event_shape[:detail]), value
        )
        score_term = inner.draw.score_term
        summed = inner.with_draw(
            log_prob=sum_rightmost(inner.draw.log_prob, detail),
            score_term=None if score_term is None else sum_rightmost(score_term, detail),
        )
        return dataclasses.replace(summed, lane_dims=inner.lane_dims + detail)
    inner = sample_with(reader, ops, inside, estimator, key, lanes, value)
    if kind == "masked":
        # Only the density is masked: the value is drawn all the same, and its score term stays.
        return inner.with_draw(log_prob=masked(detail, inner.draw.log_prob))
    return inner


def _sample_transformed(
    reader: Reader, ops: Ops, d: Any, estimator: Estimator, key: Any, lanes: Shape, value: Array | None
) -> Sampled:
    for t in reversed(d.transforms) if value is not None else ():
        value = t.inv(value)
    inner = sample_with(reader, ops, d.base_dist, estimator, key, lanes, value)
    steps = [inner.draw.value]
    for t in d.transforms:
        steps.append(t(steps[-1]))
    change: Any = 0.0
    event_dim = len(d.event_shape)
    for t, x, y in reversed(list(zip(d.transforms, steps[:-1], steps[1:], strict=True))):
        outside = event_dim - t.codomain.event_dim
        change = change - sum_rightmost(t.log_abs_det_jacobian(x, y), outside)
        event_dim = t.domain.event_dim + outside
    log_prob = sum_rightmost(inner.draw.log_prob, event_dim - len(d.base_dist.event_shape))
    branches = tuple(Branch(_push(d.transforms, b.value), b.weight) for b in inner.draw.branches)
    return inner.with_draw(value=steps[-1], log_prob=log_prob + change, branches=branches, logs=None)


def _push(transforms: Any, x: Array) -> Array:
    for t in transforms:
        x = t(x)
    return x


def _sample_leaf(
    reader: Reader, ops: Ops, d: Any, estimator: Estimator, key: Any, lanes: Shape, value: Array | None
) -> Sampled:
    family, params = family_of(reader, d)
    if isinstance(estimator, Auto):
        estimator = estimator.choose(family)
    if value is not None:
        require_inverse(family, estimator)
    if isinstance(estimator, MeasureValued):
        params = tuple(
            p if name in family.weak_parameters else ops.refuse_gradient(_unserved(family, name), p)
            for name, p in zip(family.parameters, params, strict=True)
        )
    params = tuple(
        ops.xp.broadcast_to(p, lanes + tuple(p.shape[p.ndim - n :]))
        for p, n in zip(params, family.parameter_event_dims, strict=True)
    )
    draw = estimator.draw(ops, key, family, lanes, *params, value=value)
    scores: tuple[tuple[Array, Array], ...] = ()
    if isinstance(estimator, ScoreFunction) and estimator.baseline == "optimal":
        scores = _own_scores(ops, family, draw, params)
    return Sampled(draw, family, estimator, params, scores=scores)


def _unserved(family: Family, name: str) -> str:
    return (
        f"MeasureValued() serves {', '.join(family.weak_parameters)} of {family.name}, not its {name}, which is being "
        "differentiated here; use Implicit(), Rejection() or ScoreFunction()"
    )


def _own_scores(ops: Ops, family: Family, draw: Draw, params: tuple[Array, ...]) -> tuple[tuple[Array, Array], ...]:
    if not params:
        raise SiteError(f"ScoreFunction(baseline='optimal') needs a family of the core, not {family.name}")
    value = ops.stop_gradient(draw.value)

    def total(held: tuple[Array, ...]) -> Array:
        return family.log_prob(value, *held, logs=draw.logs).sum()

    held = tuple(ops.stop_gradient(p) for p in params)
    slopes = ops.grad(total)(held)
    return tuple((p - h, slope) for p, h, slope in zip(params, held, slopes, strict=True))
