"""Sixty posteriors whose means and sds are known: what `verdict.py` fits. Each is written once, for both backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import logsumexp

Model = Callable[..., Any]


@dataclass(frozen=True)
class Target:
    """A posterior.

    Attributes:
        kind: of what can go wrong.
        model: from a host to a model without arguments.
        mean: of the latents' first values, by site; `sd`: likewise.
        family: from a backend's package to the guide family; None for the default.
        options: of the fit.
        log_evidence: where it is known.
    """

    name: str
    kind: str
    model: Callable[[Any], Model]
    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    family: Callable[[Any], Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    log_evidence: float | None = None


def by_grid(log_density: Callable[..., np.ndarray], axes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of each coordinate, on a grid."""
    mesh = np.meshgrid(*axes, indexing="ij")
    log_p = log_density(*mesh)
    weights = np.exp(log_p - logsumexp(log_p))
    mean = np.array([(weights * x).sum() for x in mesh])
    sd = np.array([math.sqrt((weights * (x - m) ** 2).sum()) for x, m in zip(mesh, mean, strict=True)])
    return mean, sd


def whole(mean: Any, sd: Any, name: str = "x") -> dict[str, Any]:
    """The truth of a model with one site."""
    return {"mean": {name: np.atleast_1d(mean)}, "sd": {name: np.atleast_1d(sd)}}


def log_sum_exp(h: Any, terms: Any) -> Any:
    top = h.xp.max(terms, axis=0)
    return top + h.xp.log(h.xp.sum(h.xp.exp(terms - top[None]), axis=0))


def mixture(name: str, kind: str, weights: Any, centers: Any, scales: Any, wide: float) -> Target:
    """Normals with a scale each; the start is drawn from a normal as wide as is said."""
    weights, scales = np.asarray(weights) / np.sum(weights), np.asarray(scales, dtype=float)
    centers = np.asarray(centers, dtype=float).reshape(len(weights), -1)
    size = centers.shape[1]
    mean = weights @ centers
    sd = np.sqrt(weights @ (centers**2 + scales[:, None] ** 2) - mean**2)
    norm = np.log(weights) - size * np.log(scales) - 0.5 * size * math.log(2.0 * math.pi)

    def build(h: Any) -> Model:
        c, s, n = h.array(centers), h.array(scales), h.array(norm)

        def model() -> None:
            x = h.sample("x", h.dist.Normal(h.array(np.zeros(size)), wide).to_event(1))
            each = n - 0.5 * h.xp.sum((x[None] - c) ** 2, axis=-1) / s**2
            h.factor("target", log_sum_exp(h, each) + 0.5 * h.xp.sum((x / wide) ** 2))

        return model

    return Target(name, kind, build, **whole(mean, sd))


def modes() -> list[Target]:
    rows = [
        mixture(f"two modes {gap} apart, {w}", "separate modes", [w, 1 - w], [[-gap / 2], [gap / 2]], [1, 1], 10)
        for gap, w in ((6, 0.5), (20, 0.5), (8, 0.55), (8, 0.8), (12, 0.9), (7, 0.97))
    ]
    ten = np.zeros((2, 10))
    ten[1] = 3.0
    rows += [
        mixture("two modes in 10 dimensions", "separate modes", [0.4, 0.6], ten, [1, 1], 5),
        mixture("narrow beside wide", "narrow beside wide", [0.5, 0.5], [[0, 0], [4, 0]], [1.0, 0.1], 5),
        mixture("narrow inside wide", "narrow beside wide", [0.5, 0.5], [[0, 0], [0.5, 0]], [2.0, 0.1], 5),
        mixture("narrow and rare", "narrow beside wide", [0.85, 0.15], [[0, 0], [5, 5]], [1.0, 0.2], 5),
        mixture(
            "nine modes", "many modes", [1] * 9, [[5 * i, 5 * j] for i in (-1, 0, 1) for j in (-1, 0, 1)], [0.5] * 9, 6
        ),
        mixture(
            "six modes on a circle",
            "many modes",
            [1] * 6,
            [[6 * math.cos(t), 6 * math.sin(t)] for t in range(6)],
            [1] * 6,
            6,
        ),
    ]
    return rows


def switching(num: int, gap: float, points: int) -> Target:
    """Means of a mixture of normals, without an order."""
    rng = np.random.default_rng(num)
    y = np.concatenate([rng.normal(gap * (k - (num - 1) / 2), 1.0, points) for k in range(num)])

    def log_density(*mu: np.ndarray) -> np.ndarray:
        total = -0.5 * sum((m / 5.0) ** 2 for m in mu)
        for row in y:
            total = total + logsumexp([-0.5 * (row - m) ** 2 for m in mu], axis=0)
        return total

    mean, sd = by_grid(log_density, [np.linspace(-gap * num / 2 - 2, gap * num / 2 + 2, 121 if num > 2 else 301)] * num)

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            mu = h.sample("x", h.dist.Normal(h.array(np.zeros(num)), 5.0).to_event(1))
            each = -0.5 * (data[None] - mu[:, None]) ** 2
            h.factor("y", h.xp.sum(log_sum_exp(h, each)))

        return model

    return Target(f"{num} components, {gap} apart", "label switching", build, **whole(mean, sd))


def signs() -> list[Target]:
    def absolute(h: Any) -> Model:
        def model() -> None:
            x = h.sample("x", h.dist.Normal(h.array(np.zeros(1)), 3.0).to_event(1))
            h.sample("y", h.dist.Normal(h.xp.abs(x[0]), 0.3), obs=h.array(2.0))

        return model

    grid = np.linspace(-6, 6, 2_001)
    first = by_grid(lambda x: -0.5 * (x / 3) ** 2 - 0.5 * ((2 - np.abs(x)) / 0.3) ** 2, [grid])

    def product(h: Any) -> Model:
        def model() -> None:
            x = h.sample("x", h.dist.Normal(h.array(np.zeros(2)), 2.0).to_event(1))
            h.sample("y", h.dist.Normal(x[0] * x[1], 0.5), obs=h.array(4.0))

        return model

    axis = np.linspace(-9, 9, 801)
    second = by_grid(lambda a, b: -0.125 * (a**2 + b**2) - 2.0 * (4 - a * b) ** 2, [axis, axis])
    loadings = np.array([1.5, -1.0, 0.8])
    rng = np.random.default_rng(5)
    y = rng.normal(size=(60, 1)) * loadings + 0.7 * rng.normal(size=(60, 3))
    scatter = y.T @ y

    def factor_log_density(*w: np.ndarray) -> np.ndarray:  # y ~ N(0, w w^T + 0.49 I)
        s2, norm = 0.49, sum(v**2 for v in w)
        quadratic = sum(scatter[i, j] * w[i] * w[j] for i in range(3) for j in range(3))
        return 0.5 * quadratic / (s2 * (s2 + norm)) - 30.0 * np.log(1.0 + norm / s2) - 0.125 * norm

    def factors(h: Any) -> Model:
        s = h.array(scatter)

        def model() -> None:
            w = h.sample("x", h.dist.Normal(h.array(np.zeros(3)), 2.0).to_event(1))
            norm = h.xp.sum(w * w)
            fit = 0.5 * h.xp.sum(w * (s @ w)) / (0.49 * (0.49 + norm))
            h.factor("y", fit - 30.0 * h.xp.log(1.0 + norm / 0.49))

        return model

    third = by_grid(factor_log_density, [np.linspace(-2.6, 2.6, 131)] * 3)
    return [
        Target("absolute value", "sign symmetry", absolute, **whole(*first)),
        Target("product", "sign symmetry", product, **whole(*second)),
        Target("factor loadings", "sign symmetry", factors, **whole(*third)),
    ]


def heavy_tails(df: float, size: int) -> Target:
    def build(h: Any) -> Model:
        def model() -> None:
            loc = h.array(np.arange(size, dtype=float))
            h.sample("x", h.dist.StudentT(df, loc, 1.5).to_event(1))

        return model

    sd = 1.5 * math.sqrt(df / (df - 2.0))
    return Target(
        f"Student t, df {df}, {size} of them", "heavy tails", build, **whole(np.arange(size), np.full(size, sd))
    )


def single(name: str, kind: str, make: Callable[[Any], Any], law: Any) -> Target:
    """One latent with a prior that is the posterior."""

    def build(h: Any) -> Model:
        def model() -> None:
            h.sample("x", make(h))

        return model

    return Target(name, kind, build, **whole(law.mean(), law.std()))


def boundaries() -> list[Target]:
    def beta_binomial(h: Any) -> Model:
        def model() -> None:
            p = h.sample("x", h.dist.Beta(h.array(1.0), h.array(1.0)))
            h.sample("y", h.dist.Binomial(1_000, p), obs=h.array(0.0))

        return model

    def at_the_bound(h: Any) -> Model:
        def model() -> None:
            x = h.sample("x", h.dist.Uniform(h.array(0.0), h.array(1.0)))
            h.sample("y", h.dist.Normal(x, 0.2), obs=h.array(-0.4))

        return model

    def logit_rare(h: Any) -> Model:
        def model() -> None:
            a = h.sample("x", h.dist.Normal(h.array(0.0), 5.0))
            h.sample("y", h.dist.Binomial(1_000, logits=a), obs=h.array(0.0))

        return model

    truncated = stats.truncnorm((0 + 0.4) / 0.2, (1 + 0.4) / 0.2, loc=-0.4, scale=0.2)
    rare = by_grid(lambda a: -0.02 * a**2 - 1_000.0 * np.logaddexp(0.0, a), [np.linspace(-35, 0, 20_001)])
    rare_event = stats.beta(1, 1_001)
    return [
        Target("0 of 1,000", "boundary", beta_binomial, **whole(rare_event.mean(), rare_event.std())),
        Target("0 of 1,000, logit", "boundary", logit_rare, **whole(*rare)),
        Target("uniform at its bound", "boundary", at_the_bound, **whole(truncated.mean(), truncated.std())),
        single("gamma 0.3", "boundary", lambda h: h.dist.Gamma(h.array(0.3), h.array(1.0)), stats.gamma(0.3)),
        single("beta 0.5, 0.5", "boundary", lambda h: h.dist.Beta(h.array(0.5), h.array(0.5)), stats.beta(0.5, 0.5)),
        single("half normal", "boundary", lambda h: h.dist.HalfNormal(h.array(2.0)), stats.halfnorm(scale=2.0)),
        single("gamma 2", "skewed", lambda h: h.dist.Gamma(h.array(2.0), h.array(3.0)), stats.gamma(2.0, scale=1 / 3)),
        single("log-normal", "skewed", lambda h: h.dist.LogNormal(h.array(0.0), h.array(1.0)), stats.lognorm(1.0)),
        single("Gumbel", "skewed", lambda h: h.dist.Gumbel(h.array(1.0), h.array(2.0)), stats.gumbel_r(1.0, 2.0)),
    ]


def normal(name: str, kind: str, covariance: np.ndarray, **more: Any) -> Target:
    """A multivariate normal by its precision, over a wide start."""
    size = len(covariance)
    lower = np.linalg.cholesky(covariance)

    def build(h: Any) -> Model:
        scale = h.array(lower)

        def model() -> None:
            h.sample("x", h.dist.MultivariateNormal(h.array(np.ones(size)), scale_tril=scale))

        return model

    return Target(name, kind, build, **whole(np.ones(size), np.sqrt(np.diag(covariance))), **more)


def equal_correlation(size: int, rho: float) -> np.ndarray:
    return (1.0 - rho) * np.eye(size) + rho * np.ones((size, size))


def optimizer(rate: float) -> Callable[[Any], Any]:
    return lambda vr: vr.host.adam(rate)


def correlated() -> list[Target]:
    steep = equal_correlation(10, 0.95)
    rows = [
        normal(f"correlation {rho} in {size}", "correlation", equal_correlation(size, rho))
        for size, rho in ((2, 0.9), (2, 0.999), (10, 0.99), (40, 0.9))
    ]
    return [
        *rows,
        normal("stopped at 10", "stopped early", steep, family=lambda vr: vr.LowRank(), options={"num_steps": 10}),
        normal("stopped at 60", "stopped early", steep, family=lambda vr: vr.LowRank(), options={"num_steps": 60}),
        normal(
            "mean field stopped at 20",
            "stopped early",
            9 * np.eye(5),
            family=lambda vr: vr.MeanField(),
            options={"num_steps": 20},
        ),
        normal(
            "rate 1",
            "too large steps",
            steep,
            family=lambda vr: vr.FullRank(),
            options={"num_steps": 500, "optimizer": optimizer(1.0)},
        ),
        normal(
            "rate 3",
            "too large steps",
            np.eye(3),
            family=lambda vr: vr.MeanField(),
            options={"num_steps": 500, "optimizer": optimizer(3.0)},
        ),
        normal("mean field, 0.95 in 10", "too simple a family", steep, family=lambda vr: vr.MeanField()),
        normal(
            "mean field, 0.8 in 2", "too simple a family", equal_correlation(2, 0.8), family=lambda vr: vr.MeanField()
        ),
    ]


def hierarchy(groups: int, tau: float, *, centred: bool) -> Target:
    """Normal groups with known noise; mean and spread of the groups by quadrature over log tau."""
    rng = np.random.default_rng(groups)
    y = rng.normal(1.0, math.hypot(tau, 1.0), groups)

    # given tau, mu is normal: prior N(0, 5), y ~ N(mu, tau^2 + 1); tau ~ LogNormal(0, 1)
    s = np.exp(np.linspace(-7.0, 3.0, 4_001))
    v = s**2 + 1.0
    precision = groups / v + 1.0 / 25.0
    center = y.sum() / v / precision
    log_p = -0.5 * groups * np.log(v) - 0.5 * (y**2).sum() / v + 0.5 * precision * center**2 - 0.5 * np.log(precision)
    log_p = log_p - 0.5 * np.log(s) ** 2
    w = np.exp(log_p - logsumexp(log_p))
    mean = np.array([w @ center, w @ s])
    sd = np.sqrt([w @ (1.0 / precision + center**2) - mean[0] ** 2, w @ s**2 - mean[1] ** 2])

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            mu = h.sample("mu", h.dist.Normal(h.array(0.0), h.array(5.0)))
            s = h.sample("tau", h.dist.LogNormal(h.array(0.0), h.array(1.0)))
            with h.plate("groups", groups):
                if centred:
                    theta = h.sample("theta", h.dist.Normal(mu, s))
                else:
                    theta = mu + s * h.sample("z", h.dist.Normal(h.array(0.0), h.array(1.0)))
                h.sample("y", h.dist.Normal(theta, 1.0), obs=data)

        return model

    name = f"{groups} groups, tau {tau}, {'centred' if centred else 'not centred'}"
    truth = [{"mu": np.atleast_1d(x[0]), "tau": np.atleast_1d(x[1])} for x in (mean, sd)]
    return Target(name, "hierarchy", build, *truth)


def regression(scales: Any) -> Target:
    """A linear regression with known noise, its columns in these units."""
    rng = np.random.default_rng(9)
    scales = np.asarray(scales, dtype=float)
    x = rng.normal(size=(50, len(scales))) * scales
    y = x @ (1.0 / scales) + rng.normal(size=50)
    covariance = np.linalg.inv(x.T @ x + np.diag(scales**2 / 100.0))
    mean = covariance @ x.T @ y

    def build(h: Any) -> Model:
        rows, data, prior = h.array(x), h.array(y), h.array(10.0 / scales)

        def model() -> None:
            b = h.sample("x", h.dist.Normal(h.array(np.zeros(len(scales))), prior).to_event(1))
            with h.plate("rows", 50):
                h.sample("y", h.dist.Normal(rows @ b, 1.0), obs=data)

        return model

    return Target(f"units {scales.tolist()}", "scale", build, **whole(mean, np.sqrt(np.diag(covariance))))


def bent() -> list[Target]:
    def banana(bend: float) -> Target:
        def build(h: Any) -> Model:
            def model() -> None:
                a = h.sample("a", h.dist.Normal(h.array(0.0), h.array(2.0)))
                h.sample("b", h.dist.Normal(bend * a**2, h.array(1.0)))

            return model

        mean = {"a": np.zeros(1), "b": np.array([4.0 * bend])}
        sd = {"a": np.array([2.0]), "b": np.array([math.sqrt(1.0 + bend**2 * 32.0)])}
        return Target(f"banana {bend}", "bent", build, mean, sd)

    def funnel(size: int, width: float) -> Target:
        def build(h: Any) -> Model:
            def model() -> None:
                v = h.sample("v", h.dist.Normal(h.array(0.0), h.array(width)))
                with h.plate("rows", size):
                    h.sample("x", h.dist.Normal(h.array(0.0), h.xp.exp(0.5 * v)))

            return model

        spread = math.exp(0.25 * width**2)
        mean, sd = {"v": np.zeros(1), "x": np.zeros(size)}, {"v": np.array([width]), "x": np.full(size, spread)}
        return Target(f"funnel {size}, {width}", "bent", build, mean, sd)

    def ring(h: Any) -> Model:
        def model() -> None:
            x = h.sample("x", h.dist.Normal(h.array(np.zeros(2)), 10.0).to_event(1))
            r = h.xp.sqrt(h.xp.sum(x * x) + 1e-12)
            h.factor("ring", -0.5 * ((r - 5.0) / 0.7) ** 2 + 0.5 * h.xp.sum((x / 10.0) ** 2))

        return model

    axis = np.linspace(-10, 10, 801)
    truth = by_grid(lambda a, b: -0.5 * ((np.hypot(a, b) - 5.0) / 0.7) ** 2, [axis, axis])
    return [banana(0.3), banana(1.0), funnel(3, 1.0), funnel(9, 1.5), Target("ring", "bent", ring, **whole(*truth))]


def generalized() -> list[Target]:
    def glm(name: str, x: np.ndarray, y: np.ndarray, kind: str, prior: tuple[float, float], axes: list) -> Target:
        def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            total = -0.5 * (a / prior[0]) ** 2 - 0.5 * (b / prior[1]) ** 2
            for row, count in zip(x, y, strict=True):
                eta = a + b * row
                total = total + count * eta - (np.logaddexp(0.0, eta) if kind == "logistic" else np.exp(eta))
            return total

        mean, sd = by_grid(log_density, axes)

        def build(h: Any) -> Model:
            rows, data = h.array(x), h.array(y)

            def model() -> None:
                a = h.sample("a", h.dist.Normal(h.array(0.0), h.array(prior[0])))
                b = h.sample("b", h.dist.Normal(h.array(0.0), h.array(prior[1])))
                eta = a + b * rows
                law = h.dist.Bernoulli(logits=eta) if kind == "logistic" else h.dist.Poisson(h.xp.exp(eta))
                with h.plate("rows", len(x)):
                    h.sample("y", law, obs=data)

            return model

        pair = [{"a": v[:1], "b": v[1:]} for v in (mean, sd)]
        return Target(name, "regression", build, *pair)

    rng = np.random.default_rng(2)
    x = np.linspace(-1, 1, 10)
    many = rng.normal(size=60)
    flips = (rng.uniform(size=60) < 1 / (1 + np.exp(-0.5 - many))).astype(float)
    counts = rng.poisson(np.exp(0.3 + 0.5 * many)).astype(float)
    wide = [np.linspace(-60, 60, 601), np.linspace(-60, 320, 761)]
    near = [np.linspace(-3, 3, 401)] * 2
    return [
        glm("separated logistic", x, (x > 0).astype(float), "logistic", (10.0, 50.0), wide),
        glm("logistic", many, flips, "logistic", (5.0, 5.0), near),
        glm("Poisson", many, counts, "poisson", (5.0, 5.0), near),
        glm(
            "Poisson, few counts",
            x,
            np.eye(10)[0],
            "poisson",
            (5.0, 5.0),
            [np.linspace(-16, 8, 601), np.linspace(-20, 16, 601)],
        ),
    ]


def targets() -> list[Target]:
    """All of them."""
    return [
        *modes(),
        *(switching(*row) for row in ((2, 4.0, 20), (2, 2.0, 20), (3, 4.0, 15))),
        *signs(),
        *(heavy_tails(*row) for row in ((3.0, 1), (4.0, 5), (6.0, 10), (20.0, 30))),
        *boundaries(),
        *correlated(),
        *(hierarchy(*row, centred=c) for row in ((8, 0.5), (40, 1.0), (200, 0.3)) for c in (True, False)),
        *(regression(s) for s in ((1, 1, 1), (1e-3, 1, 1e3), (1e-4, 1e4, 1, 10))),
        *bent(),
        *generalized(),
    ]
