"""Posteriors made to pass though the fit is wrong, beside those of `verdict_targets.py`: more modes, ties and tails.

`python benchmarks/verdict.py --attacks` fits them. Means, sds and most log evidences are by quadrature or closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import gammaln, logsumexp
from verdict_targets import Model, Target, log_sum_exp, mixture, whole

LOG_2PI = math.log(2.0 * math.pi)


def grid(log_density: Callable[..., np.ndarray], *axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and sd of each coordinate, and the log integral, on a grid with even steps."""
    mesh = np.meshgrid(*axes, indexing="ij")
    log_p = log_density(*mesh)
    total = logsumexp(log_p)
    w = np.exp(log_p - total)
    mean = np.array([(w * x).sum() for x in mesh])
    sd = np.array([math.sqrt((w * (x - m) ** 2).sum()) for x, m in zip(mesh, mean, strict=True)])
    return mean, sd, float(total + sum(math.log(a[1] - a[0]) for a in axes))


def normal(x: Any, mean: Any, sd: Any) -> Any:
    """Log density of a normal."""
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * LOG_2PI


def known(name: str, kind: str, build: Any, found: tuple[Any, Any, float | None]) -> Target:
    """A target with one site "x"."""
    return Target(name, kind, build, **whole(found[0], found[1]), log_evidence=found[2])


def with_evidence(target: Target, wide: float) -> Target:
    """Of `mixture`, whose factor lacks the prior's constant."""
    size = len(target.mean["x"])
    known = -size * (math.log(wide) + 0.5 * LOG_2PI)
    return Target(target.name, target.kind, target.model, target.mean, target.sd, log_evidence=known)


def two_components(weight: float, gap: float, points: int) -> Target:
    """Means of two normals with known, unequal weights: the two orders are two modes, of unequal mass."""
    rng = np.random.default_rng(11)
    y = np.where(rng.uniform(size=points) < weight, -gap / 2, gap / 2) + rng.normal(size=points)

    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        total = normal(a, 0.0, 5.0) + normal(b, 0.0, 5.0)
        for row in y:
            total = total + np.logaddexp(
                math.log(weight) + normal(row, a, 1.0), math.log1p(-weight) + normal(row, b, 1.0)
            )
        return total

    axis = np.linspace(-8, 8, 641)

    def build(h: Any) -> Model:
        data, logs = h.array(y), h.array(np.log([weight, 1.0 - weight]))

        def model() -> None:
            mu = h.sample("x", h.dist.Normal(h.array(np.zeros(2)), 5.0).to_event(1))
            each = logs[:, None] - 0.5 * (data[None, :] - mu[:, None]) ** 2
            h.factor("y", h.xp.sum(log_sum_exp(h, each)) - 0.5 * points * LOG_2PI)

        return model

    return known(f"two components, {weight}, {gap} apart", "separate modes", build, grid(log_density, axis, axis))


def free_weight() -> Target:
    """The means of two normals and the part of the first, all unknown."""
    rng = np.random.default_rng(12)
    y = np.concatenate([rng.normal(-2.0, 1.0, 12), rng.normal(2.0, 1.0, 6)])

    def log_density(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
        total = normal(a, 0.0, 4.0) + normal(b, 0.0, 4.0) + np.log(6.0 * w * (1.0 - w))
        for row in y:
            total = total + np.logaddexp(np.log(w) + normal(row, a, 1.0), np.log1p(-w) + normal(row, b, 1.0))
        return total

    axis = np.linspace(-9, 9, 181)
    mean, sd, evidence = grid(log_density, axis, axis, (np.arange(100) + 0.5) / 100)

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            w = h.sample("w", h.dist.Beta(h.array(2.0), h.array(2.0)))
            mu = h.sample("mu", h.dist.Normal(h.array(np.zeros(2)), 4.0).to_event(1))
            first = h.xp.log(w) - 0.5 * (data - mu[0]) ** 2
            second = h.xp.log(1.0 - w) - 0.5 * (data - mu[1]) ** 2
            h.factor("y", h.xp.sum(log_sum_exp(h, h.xp.stack([first, second]))) - 0.5 * len(y) * LOG_2PI)

        return model

    truth = [{"mu": v[:2], "w": v[2:]} for v in (mean, sd)]
    return Target("components with a free weight", "label switching", build, *truth, log_evidence=evidence)


def factor_scores() -> Target:
    """Loadings and scores of one factor: all signs at once may turn."""
    rng = np.random.default_rng(13)
    loadings, rows = np.array([1.2, -0.9, 0.7]), 20
    y = rng.normal(size=(rows, 1)) * loadings + 0.6 * rng.normal(size=(rows, 3))
    scatter, s2 = y.T @ y, 0.36

    def log_density(*w: np.ndarray) -> np.ndarray:  # y ~ N(0, w w^T + s2 I)
        norm = sum(v**2 for v in w)
        along = sum(scatter[i, j] * w[i] * w[j] for i in range(3) for j in range(3))
        square = np.trace(scatter) / s2 - along / (s2 * (s2 + norm))
        log_det = 3 * math.log(s2) + np.log1p(norm / s2)
        return -0.5 * square - 0.5 * rows * (log_det + 3 * LOG_2PI) + sum(normal(v, 0.0, 2.0) for v in w)

    axis = np.linspace(-3, 3, 161)
    found = grid(log_density, axis, axis, axis)

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            w = h.sample("x", h.dist.Normal(h.array(np.zeros(3)), 2.0).to_event(1))
            with h.plate("rows", rows):
                z = h.sample("z", h.dist.Normal(h.array(0.0), 1.0))
                h.sample("y", h.dist.Normal(z[:, None] * w, 0.6).to_event(1), obs=data)

        return model

    return known("factor with scores", "sign symmetry", build, found)


def shell() -> Target:
    r = np.linspace(1e-3, 12.0, 8_001)
    log_p = 2.0 * np.log(r) - 0.5 * ((r - 5.0) / 0.5) ** 2
    w = np.exp(log_p - logsumexp(log_p))
    sd = math.sqrt(w @ r**2 / 3.0)
    evidence = math.log(4.0 * math.pi) + logsumexp(log_p) + math.log(r[1] - r[0]) - 1.5 * LOG_2PI - 3.0 * math.log(10.0)

    def build(h: Any) -> Model:
        def model() -> None:
            x = h.sample("x", h.dist.Normal(h.array(np.zeros(3)), 10.0).to_event(1))
            r2 = h.xp.sum(x * x)
            h.factor("shell", -0.5 * ((h.xp.sqrt(r2 + 1e-12) - 5.0) / 0.5) ** 2 + 0.5 * r2 / 100.0)

        return model

    return known("shell", "bent", build, (np.zeros(3), np.full(3, sd), evidence))


def twisted(size: int, bend: float) -> Target:
    """Haario's twisted normal."""

    def build(h: Any) -> Model:
        def model() -> None:
            a = h.sample("a", h.dist.Normal(h.array(0.0), h.array(10.0)))
            h.sample("b", h.dist.Normal(bend * (a**2 - 100.0), h.array(1.0)))
            h.sample("rest", h.dist.Normal(h.array(np.zeros(size - 2)), 1.0).to_event(1))

        return model

    mean = {"a": np.zeros(1), "b": np.zeros(1), "rest": np.zeros(size - 2)}
    sd = {"a": np.array([10.0]), "b": np.array([math.sqrt(1.0 + 2.0 * (100 * bend) ** 2)]), "rest": np.ones(size - 2)}
    return Target(f"twisted {bend} in {size}", "bent", build, mean, sd, log_evidence=0.0)


def funnel_with_data(size: int, noise: float) -> Target:
    """Neal's funnel, of whose latents a few are seen through noise."""
    rng = np.random.default_rng(14)
    y = rng.normal(size=size) * 1.5
    v = np.linspace(-20.0, 16.0, 20_001)
    spread = np.exp(v)
    log_p = normal(v, 0.0, 3.0) + normal(y[:, None], 0.0, np.sqrt(spread + noise**2)).sum(0)
    total = logsumexp(log_p)
    w = np.exp(log_p - total)
    shrink = spread / (spread + noise**2)
    means = (w * shrink).sum() * y
    squares = (w * (shrink[None] * noise**2 + (shrink[None] * y[:, None]) ** 2)).sum(1)
    mean, sd = w @ v, math.sqrt(w @ v**2 - (w @ v) ** 2)

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            level = h.sample("v", h.dist.Normal(h.array(0.0), h.array(3.0)))
            with h.plate("rows", size):
                x = h.sample("x", h.dist.Normal(h.array(0.0), h.xp.exp(0.5 * level)))
                h.sample("y", h.dist.Normal(x, noise), obs=data)

        return model

    return Target(
        f"funnel with {size} data, noise {noise}",
        "bent",
        build,
        {"v": np.atleast_1d(mean), "x": means},
        {"v": np.atleast_1d(sd), "x": np.sqrt(squares - means**2)},
        log_evidence=float(total + math.log(v[1] - v[0])),
    )


def horseshoe() -> Target:
    """Three means with half-Cauchy scales of their own: one is noise, one at the border, one a signal."""
    y, tau = np.array([0.2, 2.0, 5.0]), 0.3
    u = np.linspace(-14.0, 14.0, 20_001)  # log scales
    scale = np.exp(u)
    prior = np.log(2.0 / math.pi) + u - np.log1p(scale**2)
    mean, sd, evidence = np.zeros(3), np.zeros(3), 0.0
    for i, value in enumerate(y):
        spread = (tau * scale) ** 2
        log_p = prior + normal(value, 0.0, np.sqrt(spread + 1.0))
        total = logsumexp(log_p)
        w, shrink = np.exp(log_p - total), spread / (spread + 1.0)
        mean[i] = w @ shrink * value
        sd[i] = math.sqrt(w @ (shrink + (shrink * value) ** 2) - mean[i] ** 2)
        evidence += total + math.log(u[1] - u[0])

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            with h.plate("rows", 3):
                local = h.sample("local", h.dist.HalfCauchy(h.array(1.0)))
                beta = h.sample("x", h.dist.Normal(h.array(0.0), tau * local))
                h.sample("y", h.dist.Normal(beta, 1.0), obs=data)

        return model

    return known("horseshoe", "heavy tails", build, (mean, sd, float(evidence)))


def separated() -> Target:
    """A logistic regression whose outcomes a line separates, six rows."""
    x = np.array([-1.5, -1.0, -0.4, 0.5, 0.9, 1.4])
    y = (x > 0).astype(float)

    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        total = normal(a, 0.0, 20.0) + normal(b, 0.0, 20.0)
        for row, one in zip(x, y, strict=True):
            eta = a + b * row
            total = total + one * eta - np.logaddexp(0.0, eta)
        return total

    mean, sd, evidence = grid(log_density, np.linspace(-110, 110, 1_101), np.linspace(-30, 150, 1_201))

    def build(h: Any) -> Model:
        rows, data = h.array(x), h.array(y)

        def model() -> None:
            a = h.sample("a", h.dist.Normal(h.array(0.0), h.array(20.0)))
            b = h.sample("b", h.dist.Normal(h.array(0.0), h.array(20.0)))
            with h.plate("rows", len(x)):
                h.sample("y", h.dist.Bernoulli(logits=a + b * rows), obs=data)

        return model

    pair = [{"a": v[:1], "b": v[1:]} for v in (mean, sd)]
    return Target("separated, six rows", "regression", build, *pair, log_evidence=evidence)


def rare_rates() -> Target:
    """Four rates of rare events, under Jeffreys' prior."""
    hits, trials = np.array([0.0, 1.0, 0.0, 3.0]), np.array([1_000.0, 1_000.0, 20.0, 200.0])
    law = stats.beta(hits + 0.5, trials - hits + 0.5)

    def log_beta(a: Any, b: Any) -> Any:
        return gammaln(a) + gammaln(b) - gammaln(a + b)

    each = log_beta(hits + 0.5, trials - hits + 0.5) - log_beta(0.5, 0.5) - np.log(trials + 1.0)
    each = each - log_beta(hits + 1.0, trials - hits + 1.0)

    def build(h: Any) -> Model:
        counts, totals = h.array(hits), h.array(trials)

        def model() -> None:
            with h.plate("groups", 4):
                p = h.sample("x", h.dist.Beta(h.array(0.5), h.array(0.5)))
                h.sample("y", h.dist.Binomial(totals, p), obs=counts)

        return model

    return known("rare rates, Jeffreys", "boundary", build, (law.mean(), law.std(), float(each.sum())))


def line(name: str, kind: str, axis: np.ndarray, log_density: Callable[..., np.ndarray], build: Any) -> Target:
    """A target of one latent by quadrature."""
    return known(name, kind, build, grid(log_density, axis))


def cauchy_data() -> list[Target]:
    def target(y: np.ndarray, df: float, name: str) -> Target:
        def log_density(x: np.ndarray) -> np.ndarray:
            return normal(x, 0.0, 10.0) + stats.t(df).logpdf(y[:, None] - x[None]).sum(0)

        def build(h: Any) -> Model:
            data = h.array(y)

            def model() -> None:
                x = h.sample("x", h.dist.Normal(h.array(np.zeros(1)), 10.0).to_event(1))
                with h.plate("rows", len(y)):
                    h.sample("y", h.dist.StudentT(df, x[0], 1.0), obs=data)

            return model

        return line(name, "heavy tails", np.linspace(-70, 70, 28_001), log_density, build)

    return [
        target(np.array([-6.0, 6.5]), 1.0, "two Cauchy data"),
        target(np.array([-8.0, -7.5, 7.0, 7.6, 8.1]), 1.0, "five Cauchy data"),
        target(np.array([3.0]), 1.5, "one datum, df 1.5"),
    ]


def heavy(df: float, size: int) -> Target:
    def build(h: Any) -> Model:
        def model() -> None:
            h.sample("x", h.dist.StudentT(df, h.array(np.zeros(size)), 1.0).to_event(1))

        return model

    sd = math.sqrt(df / (df - 2.0))
    return known(f"Student t, df {df}, {size} of them", "heavy tails", build, (np.zeros(size), np.full(size, sd), 0.0))


def squared_level() -> Target:
    """Groups whose common level is a square: its sign is not known, the prior leans to one."""
    groups, tau = 8, 0.5
    y = np.random.default_rng(15).normal(3.0, 1.0, groups)

    def log_density(m: np.ndarray) -> np.ndarray:
        return normal(m, 0.4, 1.5) + normal(y[:, None], m[None] ** 2, math.hypot(tau, 1.0)).sum(0)

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            m = h.sample("x", h.dist.Normal(h.array(0.4), h.array(1.5)))
            with h.plate("groups", groups):
                theta = h.sample("theta", h.dist.Normal(m**2, tau))
                h.sample("y", h.dist.Normal(theta, 1.0), obs=data)

        return model

    return line("hierarchy with a squared level", "hierarchy", np.linspace(-6, 6, 6_001), log_density, build)


def bimodal_locals(size: int) -> Target:
    """Elements of a plate that are seen by their squares: two modes each, two to the power of `size` together."""
    y = np.linspace(2.0, 5.0, size)
    axis = np.linspace(-8, 8, 8_001)
    found = [grid(lambda z, row=row: normal(z, 0.3, 2.0) + normal(row, z**2, 0.5), axis) for row in y]
    mean, sd = (np.array([f[i][0] for f in found]) for i in (0, 1))

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            with h.plate("rows", size):
                z = h.sample("x", h.dist.Normal(h.array(0.3), h.array(2.0)))
                h.sample("y", h.dist.Normal(z**2, 0.5), obs=data)

        return model

    return known(f"{size} squares in a plate", "many modes", build, (mean, sd, sum(f[2] for f in found)))


def scale_of_few() -> Target:
    """The scale of two numbers near zero, under a half-Cauchy: a boundary and a long tail."""
    y = np.array([0.01, -0.02])
    u = np.linspace(-16.0, 12.0, 40_001)
    s = np.exp(u)
    log_p = normal(y[:, None], 0.0, s).sum(0) + math.log(2.0 / math.pi) - np.log1p(s**2) + u
    total = logsumexp(log_p)
    w = np.exp(log_p - total)
    evidence = float(total + math.log(u[1] - u[0]))

    def build(h: Any) -> Model:
        data = h.array(y)

        def model() -> None:
            scale = h.sample("s", h.dist.HalfCauchy(h.array(1.0)))
            h.deterministic("x", h.xp.log(scale))
            with h.plate("rows", 2):
                h.sample("y", h.dist.Normal(h.array(0.0), scale), obs=data)

        return model

    return known("scale of two", "boundary", build, (w @ u, math.sqrt(w @ u**2 - (w @ u) ** 2), evidence))


def process() -> Target:
    """A Gaussian process whose data are a slow wave with noise, or a quick one without."""
    t = np.linspace(0.0, 1.0, 9)
    y = np.array([0.6, -0.4, 0.7, -0.1, 0.2, 0.9, -0.5, 0.4, 0.3])
    gaps = (t[:, None] - t[None]) ** 2

    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = normal(a, -1.0, 1.0) + normal(b, -1.5, 1.0)
        for index in np.ndindex(a.shape):
            c = np.exp(-0.5 * gaps / math.exp(2 * a[index])) + math.exp(2 * b[index]) * np.eye(9) + 1e-8 * np.eye(9)
            root = np.linalg.cholesky(c)
            z = np.linalg.solve(root, y)
            out[index] += -0.5 * z @ z - np.log(np.diag(root)).sum() - 4.5 * LOG_2PI
        return out

    mean, sd, evidence = grid(log_density, np.linspace(-6, 4, 121), np.linspace(-6, 3, 121))

    def build(h: Any) -> Model:
        d2, data, eye = h.array(gaps), h.array(y), h.array(np.eye(9))

        def model() -> None:
            a = h.sample("a", h.dist.Normal(h.array(-1.0), h.array(1.0)))
            b = h.sample("b", h.dist.Normal(h.array(-1.5), h.array(1.0)))
            c = h.xp.exp(-0.5 * d2 * h.xp.exp(-2.0 * a)) + (h.xp.exp(2.0 * b) + 1e-8) * eye
            h.sample("y", h.dist.MultivariateNormal(h.array(np.zeros(9)), covariance_matrix=c), obs=data)

        return model

    pair = [{"a": v[:1], "b": v[1:]} for v in (mean, sd)]
    return Target("length of a process", "separate modes", build, *pair, log_evidence=evidence)


def frequency() -> Target:
    """The frequency of a wave seen at few times: many narrow modes."""
    t = np.array([0.0, 0.7, 1.9, 3.1, 4.6, 6.0])
    y = np.sin(2.3 * t) + 0.3 * np.random.default_rng(16).normal(size=6)

    def log_density(x: np.ndarray) -> np.ndarray:
        return normal(x, 0.0, 4.0) + normal(y[:, None], np.sin(x[None] * t[:, None]), 0.5).sum(0)

    def build(h: Any) -> Model:
        times, data = h.array(t), h.array(y)

        def model() -> None:
            x = h.sample("x", h.dist.Normal(h.array(np.zeros(1)), 4.0).to_event(1))
            with h.plate("rows", 6):
                h.sample("y", h.dist.Normal(h.xp.sin(x[0] * times), 0.5), obs=data)

        return model

    return line("frequency", "many modes", np.linspace(-24, 24, 96_001), log_density, build)


def cross() -> Target:
    """Two normals at one place whose correlations are opposite: one mode, in the form of an X."""
    covariances = [np.array([[4.0, r], [r, 4.0]]) for r in (3.92, -3.92)]
    precisions = [np.linalg.inv(c) for c in covariances]
    norm = math.log(0.5) - LOG_2PI - 0.5 * math.log(np.linalg.det(covariances[0]))

    def build(h: Any) -> Model:
        first, second = (h.array(p) for p in precisions)

        def model() -> None:
            x = h.sample("x", h.dist.Normal(h.array(np.zeros(2)), 5.0).to_event(1))
            each = h.xp.stack([-0.5 * h.xp.sum(x * (first @ x)), -0.5 * h.xp.sum(x * (second @ x))])
            prior = -h.xp.sum(x * x) / 50.0 - LOG_2PI - 2.0 * math.log(5.0)
            h.factor("target", log_sum_exp(h, each) + norm - prior)

        return model

    return known("cross", "bent", build, (np.zeros(2), np.full(2, 2.0), 0.0))


def two_lines() -> Target:
    """Two regressions through one cloud, in either order, with unequal parts."""
    rng = np.random.default_rng(17)
    x = rng.normal(size=40)
    y = np.where(rng.uniform(size=40) < 0.6, 1.5, -1.0) * x + 0.4 * rng.normal(size=40)

    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        total = normal(a, 0.0, 3.0) + normal(b, 0.0, 3.0)
        for row, value in zip(x, y, strict=True):
            total = total + np.logaddexp(
                math.log(0.6) + normal(value, a * row, 0.4), math.log(0.4) + normal(value, b * row, 0.4)
            )
        return total

    axis = np.linspace(-4, 4, 801)

    def build(h: Any) -> Model:
        rows, data, logs = h.array(x), h.array(y), h.array(np.log([0.6, 0.4]))

        def model() -> None:
            b = h.sample("x", h.dist.Normal(h.array(np.zeros(2)), 3.0).to_event(1))
            each = logs[:, None] - 0.5 * ((data[None, :] - b[:, None] * rows[None, :]) / 0.4) ** 2
            h.factor("y", h.xp.sum(log_sum_exp(h, each)) - len(x) * (math.log(0.4) + 0.5 * LOG_2PI))

        return model

    return known("two lines", "label switching", build, grid(log_density, axis, axis))


def targets() -> list[Target]:
    """All of them."""
    nine = [[6 * i, 6 * j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    far = np.zeros((2, 5))
    far[1, :2] = 20.0 / math.sqrt(2.0)
    needle = np.array([[0.0, 0.0, 0.0], [2.5, 1.0, 0.0]])
    narrow = np.zeros((2, 3))
    narrow[1, 0] = 5.0
    return [
        two_components(0.55, 4.0, 30),
        two_components(0.8, 3.0, 30),
        free_weight(),
        two_lines(),
        with_evidence(mixture("20 apart in 5", "separate modes", [0.55, 0.45], far, [1, 1], 10), 10.0),
        with_evidence(
            mixture("narrow beside wide in 3", "narrow beside wide", [0.5, 0.5], narrow, [1.0, 0.15], 5), 5.0
        ),
        with_evidence(mixture("needle in 3", "narrow beside wide", [0.5, 0.5], needle, [1.0, 0.05], 5), 5.0),
        with_evidence(mixture("needle within", "narrow beside wide", [0.5, 0.5], 0.6 * needle, [1.0, 0.05], 5), 5.0),
        with_evidence(mixture("rare needle", "narrow beside wide", [0.9, 0.1], needle, [1.0, 0.05], 5), 5.0),
        with_evidence(
            mixture("nine unequal modes", "many modes", np.arange(1, 10), nine, np.linspace(0.3, 1.0, 9), 7), 7.0
        ),
        factor_scores(),
        bimodal_locals(2),
        bimodal_locals(6),
        squared_level(),
        process(),
        frequency(),
        shell(),
        cross(),
        twisted(3, 0.03),
        twisted(8, 0.1),
        funnel_with_data(5, 1.0),
        funnel_with_data(2, 0.3),
        horseshoe(),
        *cauchy_data(),
        heavy(2.5, 3),
        separated(),
        rare_rates(),
        scale_of_few(),
    ]
