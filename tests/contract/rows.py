"""One table: a family, its parameters, a cost, the exact gradient of the cost's mean, who serves it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from own_samplers import SkewNormal, SlowExponential
from scipy import integrate, stats

from vi_reparam import Implicit, MeasureValued, Pathwise, Rejection, ScoreFunction
from vi_reparam.families import FAMILIES, Family, SamplerFamily

Direction = tuple[str, int, Any]  # name, parameter, tangent


@dataclasses.dataclass(frozen=True)
class Row:
    """A cost under a family.

    Attributes:
        cost: (xp, draw) -> the cost of every draw, or several of them on a leading axis.
        mean: parameters -> its exact mean, differentiated numerically; or None.
        exact: the exact derivatives themselves, in the order of `directions`, where typed in.
        directions: the derivatives to take.
        moving: the parameters that are differentiated, if more than those (to share a program).
    """

    name: str
    family: Family
    params: tuple[Any, ...]
    directions: tuple[Direction, ...]
    cost: Callable[[Any, Any], Any]
    mean: Callable[..., float] | None = None
    exact: tuple[Any, ...] | None = None
    estimators: tuple[Any, ...] = ()
    moving: tuple[int, ...] = ()

    def truth(self) -> Any:
        """Exact derivatives, shape (directions, costs)."""
        exact = self.exact
        if exact is None:
            exact = tuple(derivative(self.mean, self.params, index, tangent) for _, index, tangent in self.directions)
        return np.reshape(np.asarray(exact, float), (len(self.directions), -1))


def derivative(mean: Any, params: tuple[Any, ...], index: int, tangent: Any) -> float:
    """Fourth-order central difference."""
    h = 1e-3

    def at(step: float) -> float:
        moved = [np.asarray(p, float) for p in params]
        moved[index] = moved[index] + step * np.asarray(tangent, float)
        return float(mean(*moved))

    return (8.0 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12.0 * h)


def by_quadrature(distribution: Callable[..., Any], cost: Callable[[Any], Any]) -> Callable[..., float]:
    """E f under a scipy distribution, between quantiles that hold all but 1e-13 of it."""

    def mean(*params: Any) -> float:
        d = distribution(*params)
        low, high = d.support()
        cuts = d.ppf([1e-13, 1e-4, 0.05, 0.5, 0.95]).tolist() + d.isf([1e-4, 1e-13]).tolist()
        cuts = [low if np.isfinite(low) else cuts[0], *cuts[1:-1], high if np.isfinite(high) else cuts[-1]]
        pieces = itertools.pairwise(cuts)
        return sum(
            integrate.quad(lambda z: cost(z) * d.pdf(z), a, b, epsabs=1e-14, epsrel=1e-12, limit=200)[0]
            for a, b in pieces
        )

    return mean


def by_sum(distribution: Callable[..., Any], cost: Callable[[Any], Any]) -> Callable[..., float]:
    def mean(*params: Any) -> float:
        k = np.arange(200)
        return float(np.sum(cost(k) * distribution(*params).pmf(k)))

    return mean


def _all(family: Family) -> tuple[Any, ...]:
    """Every estimator that applies, acceptance-rejection with a small and the default boost."""
    every = (Pathwise(), Implicit(), Rejection(boost=1), Rejection(), ScoreFunction(), MeasureValued())
    chosen = [e for e in every if e.applies_to(family)]
    if not family.shape_parameters and Rejection(boost=1) in chosen:
        chosen.remove(Rejection(boost=1))  # nothing to augment
    return tuple(chosen)


def _each(family: Family, *indices: int) -> tuple[Direction, ...]:
    indices = indices or tuple(range(len(family.parameters)))
    return tuple((family.parameters[i], i, 1.0) for i in indices)


def _log_value(xp: Any, draw: Any) -> Any:
    return xp.log(draw.value) if draw.logs is None else draw.logs[0]


def _three(xp: Any, draw: Any) -> Any:
    """Three costs: log z; log q(z) - log Gamma(z; 3, 1), which depends on the parameters itself; exp(-z)."""
    ratio = draw.log_prob - (2.0 * draw.logs[0] - draw.value - np.log(2.0))
    return xp.stack([draw.logs[0], ratio, xp.exp(-draw.value)])


def _row(name: str, family: str, params: Any, cost: Any, distribution: Any, **options: Any) -> Row:
    found = FAMILIES[family]
    options.setdefault("directions", _each(found))
    options.setdefault("estimators", _all(found))
    if distribution is not None:
        options["mean"] = by_quadrature(distribution, lambda z: cost(np, _Plain(z)))
    return Row(name=name, family=found, params=params, cost=cost, **options)


@dataclasses.dataclass(frozen=True)
class _Plain:
    value: Any
    logs: None = None


def _gamma_rows() -> list[Row]:
    gamma = FAMILIES["gamma"]
    no_weak = tuple(e for e in _all(gamma) if e != MeasureValued())
    plain = Rejection(boost=0, min_concentration=1.0)

    def concentration(a: float, trigamma: float, estimators: Any) -> Row:
        # E[log z] = psi(a), KL(Gamma(a, 1) || Gamma(3, 1)) and E[exp(-z)] = 2^-a, differentiated.
        exact = ((trigamma, (a - 3.0) * trigamma, -np.log(2.0) * 2.0**-a),)
        directions = _each(gamma, 0)
        return Row(f"gamma-{a:g}", gamma, (a, 1.0), directions, _three, exact=exact, estimators=estimators)

    return [
        # So the KL's derivative is -3.28987 at 1 and -1.40220 at 1.5.
        concentration(1.0, 1.644934, (plain, *no_weak)),
        concentration(1.5, 0.934802, (plain, *no_weak)),
        concentration(3.0, 0.394934, (plain, *no_weak)),
        concentration(0.3, 12.245369, no_weak),
        _row(
            "gamma-rate",
            "gamma",
            (1.7, 0.6),
            lambda xp, d: xp.sin(d.value),
            lambda a, b: stats.gamma(a, scale=1.0 / b),
            directions=_each(gamma, 1),
            estimators=(Implicit(), ScoreFunction(), MeasureValued()),
        ),
    ]


def _truncated(loc: Any, scale: Any, low: Any, high: Any) -> Any:
    return stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)


def _truncated_rows() -> list[Row]:
    family = FAMILIES["truncated_normal"]

    def cost(xp: Any, draw: Any) -> Any:
        return xp.sin(draw.value) + 0.3 * draw.value**2

    rows = []
    for name, params, edge in (
        ("around", (0.5, 2.0, -1.0, 3.0), 3),
        ("above", (0.0, 1.0, 8.0, np.inf), 2),
        ("below", (0.0, 1.5, -np.inf, -1.0), 3),
    ):
        both = {
            "directions": _each(family, 0, 1, edge),
            "moving": (0, 1, 2, 3),
            "estimators": (Implicit(), Rejection()),
        }
        rows.append(_row(f"truncated-{name}", "truncated_normal", params, cost, _truncated, **both))
        # The score function serves loc and scale, at edges that stay.
        score = {"directions": _each(family, 0, 1), "estimators": (ScoreFunction(),)}
        rows.append(_row(f"truncated-{name}-fixed", "truncated_normal", params, cost, _truncated, **score))
    return rows


def _sphere_mean(direction: Any, kappa: Any, towards: Any) -> float:
    """E[c x + (c x)^2] under von Mises-Fisher, from the first two moments of w = direction x."""
    p = len(direction)

    def moment(power: int) -> float:
        return integrate.quad(
            lambda t: np.cos(t) ** power * np.exp(kappa * (np.cos(t) - 1.0)) * np.sin(t) ** (p - 2),
            0.0,
            np.pi,
            epsabs=1e-14,
            epsrel=1e-12,
        )[0]

    mass, first, second = moment(0), moment(1), moment(2)
    along = direction @ towards / np.sqrt(direction @ direction)
    spread = (1.0 - second / mass) / (p - 1)
    return first / mass * along + spread * (towards @ towards) + (second / mass - spread) * along**2


def _sphere_rows() -> list[Row]:
    family = FAMILIES["von_mises_fisher"]
    rows = []
    for p, kappa in ((2, 0.7), (5, 6.0)):
        direction = np.cos(np.arange(p) + 0.5)
        direction = direction / np.sqrt(direction @ direction)
        towards = np.sin(np.arange(p) + 1.0)
        tangent = np.eye(p)[0] - direction[0] * direction

        def cost(xp: Any, draw: Any, towards: Any = towards) -> Any:
            along = sum(float(c) * draw.value[..., i] for i, c in enumerate(towards))
            return along + along**2

        rows.append(
            Row(
                f"von-mises-fisher-{p}",
                family,
                (direction, kappa),
                (("direction", 0, tangent), ("concentration", 1, 1.0)),
                cost,
                mean=lambda d, k, towards=towards: _sphere_mean(d, k, towards),
                estimators=_all(family),
            )
        )
    return rows


def _other_rows() -> list[Row]:
    dirichlet = FAMILIES["dirichlet"]
    concentration = np.array([0.8, 1.5, 2.2])
    first, second = np.eye(3)[:2]

    def dirichlet_cost(xp: Any, draw: Any) -> Any:
        return _log_value(xp, draw)[..., 0]

    def dirichlet_mean(a: Any) -> float:
        from scipy.special import digamma

        return float(digamma(a[0]) - digamma(np.sum(a)))

    skew, exponential = SamplerFamily(SkewNormal()), SamplerFamily(SlowExponential())
    poisson, bernoulli = FAMILIES["poisson"], FAMILIES["bernoulli"]
    return [
        _row(
            "inverse-gamma",
            "inverse_gamma",
            (2.5, 1.4),
            lambda xp, d: _log_value(xp, d) + xp.exp(-d.value),
            lambda a, b: stats.invgamma(a, scale=b),
        ),
        _row("chi2", "chi2", (3.0,), lambda xp, d: _log_value(xp, d) + xp.cos(d.value), stats.chi2),
        _row("beta", "beta", (1.4, 2.1), lambda xp, d: _log_value(xp, d) + xp.sin(3.0 * d.value), stats.beta),
        Row(
            "dirichlet",
            dirichlet,
            (concentration,),
            (("own", 0, first), ("other", 0, second)),
            dirichlet_cost,
            mean=dirichlet_mean,
            estimators=_all(dirichlet),
        ),
        _row(
            "student-t",
            "student_t",
            (4.0, 0.3, 0.9),
            lambda xp, d: xp.log1p(d.value**2) + d.value / (1.0 + d.value**2),
            stats.t,
        ),
        _row(
            "von-mises",
            "von_mises",
            (0.5, 1.7),
            lambda xp, d: xp.cos(d.value - 0.3) + 0.3 * xp.cos(2.0 * d.value),
            lambda loc, kappa: _Circle(loc, kappa),
        ),
        _row("normal", "normal", (0.4, 1.2), lambda xp, d: xp.sin(d.value) + 0.2 * d.value**2, stats.norm),
        Row(
            "poisson",
            poisson,
            (2.3,),
            _each(poisson),
            lambda xp, d: xp.log1p(d.value),
            mean=by_sum(stats.poisson, np.log1p),
            estimators=_all(poisson),
        ),
        Row(
            "bernoulli",
            bernoulli,
            (0.7,),
            _each(bernoulli),
            lambda xp, d: xp.exp(d.value),
            exact=((np.e - 1.0) * np.exp(-0.7) / (1.0 + np.exp(-0.7)) ** 2,),
            estimators=_all(bernoulli),
        ),
        Row(
            "own-skew-normal",
            skew,
            (1.3, 0.8),
            _each(skew),
            lambda xp, d: xp.sin(d.value) + d.value,
            mean=by_quadrature(lambda a, s: stats.skewnorm(a, 0.0, s), lambda z: np.sin(z) + z),
            estimators=_all(skew),
        ),
        Row(
            "own-exponential",
            exponential,
            (1.6,),
            _each(exponential),
            lambda xp, d: xp.sin(d.value),
            mean=lambda rate: rate / (1.0 + rate**2),
            estimators=_all(exponential),
        ),
    ]


class _Circle:
    """scipy's von Mises on one turn, whatever its loc."""

    def __init__(self, loc: float, kappa: float) -> None:
        self.loc, self.d = loc, stats.vonmises(kappa)

    def support(self) -> tuple[float, float]:
        return self.loc - np.pi, self.loc + np.pi

    def ppf(self, q: Any) -> Any:
        return self.loc - np.pi + 2.0 * np.pi * np.asarray(q)

    def isf(self, q: Any) -> Any:
        return self.loc + np.pi - 2.0 * np.pi * np.asarray(q)

    def pdf(self, z: Any) -> Any:
        return self.d.pdf(z - self.loc)


ROWS = [*_gamma_rows(), *_truncated_rows(), *_sphere_rows(), *_other_rows()]
