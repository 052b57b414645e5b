"""A draw of the guide in the model's unconstrained coordinates: base, path and weight together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.bases import DiagonalMixture, Params, lift
from vi_reparam.gaussians.skew import skew
from vi_reparam.numerics.special import log_sum_exp
from vi_reparam.sde import network as networks
from vi_reparam.sde.path import Drifts, simulate
from vi_reparam.sde.schedules import Schedule
from vi_reparam.sde.solver import Adams, sample
from vi_reparam.sde.tau import as_tau
from vi_reparam.sde.variances import kernel_variances

if TYPE_CHECKING:
    from vi_reparam.guides.sde import SDE

Slope = Callable[[Callable[[Array], Array]], Callable[[Array], Array]]
"""``slope(fn)``: the gradient of a function of a vector, as the backend takes it."""


class Residual(Protocol):
    """A network: r(x, lambda), with what it precomputes by lambda."""

    def rows(self, lambdas: tuple[float, ...], dtype: Any, *, frozen: bool) -> Any:
        """What it precomputes, leading axis over the lambdas."""

    def at(self, x: Array, row: Any, *, frozen: bool) -> tuple[Array, Array | None]:
        """r at x, and the gate of the target's gradient or None."""
        ...


@dataclass(frozen=True)
class Steps:
    """Steps other than those that were trained.

    Args:
        num_steps: of a path; `solver`: which; `tau`: a number or a schedule.
    """

    num_steps: int
    solver: Adams
    tau: Any

    @classmethod
    def of(cls, family: SDE, *, solver: Any = None, order: Any = None, num_steps: Any = None, tau: Any = None) -> Steps:
        """The trained steps, with what is given in their place.

        Raises:
            ArgumentError: for what cannot be used.
        """
        chosen = family.solver if solver is None else solver
        if not isinstance(chosen, Adams):
            raise ArgumentError(f"solver={solver!r}: expected one such as Adams(order=2, corrector=3)")
        if order is not None:
            chosen = replace(chosen, order=order)
        num_steps = family.num_steps if num_steps is None else num_steps
        family.schedule.grid(num_steps)  # refuses what is no number of steps
        return cls(num_steps, chosen, family.tau if tau is None else as_tau(tau))

    def have_kernel(self, schedule: Schedule) -> bool:
        """Whether each step has a density: no corrector, and noise."""
        moving = all(self.tau.at(low, high) > 0.0 for low, high in pairwise(schedule.grid(self.num_steps)))
        return moving and not self.solver.corrector


@dataclass(frozen=True)
class Latent:
    """A draw.

    Attributes:
        value: z, shape ``[..., D]``.
        log_q: what log p(z) - log_q needs to be the path's log weight, shape ``[...]``; NaN where
            the solver has no kernel.
        score_term: None, or for ``"log_variance"`` the path's log q, with its gradient by the kernels
            (the base has a pathwise one).
    """

    value: Array
    log_q: Array
    score_term: Array | None = None


class MLPResidual:
    """The default network with its parameters, which are kept in units of `network.parameter_scale`.

    Args:
        component: one-hot, of the base; None for one alone.
        features: the row that it is conditioned on, shape ``[F]``; None for none.
    """

    def __init__(
        self, ops: Ops, spec: networks.MLP, params: Params, span: Any, component: Any, features: Array | None = None
    ) -> None:
        self.ops, self.spec, self.span, self.component, self.features = ops, spec, span, component, features
        unit = networks.parameter_scale(params["bias_out"].shape[0])
        self.live = params if unit == 1.0 else {name: unit * value for name, value in params.items()}
        self.fixed = {name: ops.stop_gradient(value) for name, value in self.live.items()}

    def rows(self, lambdas: tuple[float, ...], dtype: Any, *, frozen: bool) -> Any:
        params = self.fixed if frozen else self.live
        features = networks.fourier(self.span, lambdas, self.spec.frequencies)
        found = networks.embed(self.ops, params, self.ops.xp.asarray(features, dtype=dtype))
        for name, row in (("component", self.component), ("condition", self.features)):
            if name in params:
                found["hidden"] = found["hidden"] + self.ops.xp.reshape(row, (1, -1)) @ params[name]
        return found

    def at(self, x: Array, row: Any, *, frozen: bool) -> tuple[Array, Array | None]:
        params = self.fixed if frozen else self.live
        return networks.apply(self.ops, self.spec, params, x, row), row["gate"]


def deviations(ops: Ops, family: SDE, size: int, dtype: Any, log_ratio: Array | None) -> Array:
    """The kernels' standard deviations, shape ``[steps, D]``.

    Args:
        log_ratio: log of the learned ones over their start, over `network.parameter_scale`. Shape ``[steps, D]``.
    """
    xp, grid = ops.xp, family.schedule.grid(family.num_steps)
    fixed = [v**0.5 for v in kernel_variances(family.variance, family.schedule, grid, family.tau)]
    wide = xp.reshape(xp.asarray(fixed, dtype=dtype), (-1, 1)) + xp.zeros((1, size), dtype=dtype)
    return wide if log_ratio is None else wide * xp.exp(networks.parameter_scale(size) * log_ratio)


def draw(
    ops: Ops,
    family: SDE,
    base: Params,
    log_ratio: Array | None,
    residual: Residual,
    start: Array,
    noise: Array,
    *,
    component: Any = None,
    bend: Array | None = None,
    target: Callable[[Array], Array] | None = None,
    slope: Slope | None = None,
    clip: float = 50.0,
    steps: Steps | None = None,
) -> Latent:
    """Make a draw of noise.

    Args:
        base: the base's parameters, of all components.
        log_ratio: as in `deviations`.
        residual: the drift's network.
        start: standard normal, shape ``[..., D]``; `noise`: shape ``[steps, ..., D]``.
        component: which of the mixture's components, one-hot, shape ``[components]``.
        bend: of each coordinate of a path's end, as in `skew.skew`, shape ``[D]``; None for none.
        target: log p of a latent vector, for the gated gradient; None for none.
        slope: how the backend takes its gradient.
        clip: largest magnitude of a coordinate of that gradient.
        steps: other steps than the trained ones, each with the noise that its own exact step injects;
            `noise` has as many. Without a kernel (a corrector, or tau = 0) log_q is NaN.
    """
    sampling = steps is not None and not steps.have_kernel(family.schedule)
    if steps is not None and not sampling:
        taken = {"num_steps": steps.num_steps, "solver": steps.solver, "tau": steps.tau}
        family = replace(family, **taken, variance=steps.solver.form, gradient="reparameterization")
        log_ratio = None
    xp, stop, dtype = ops.xp, ops.stop_gradient, start.dtype
    spec = family.base
    grid = family.schedule.grid(family.num_steps if steps is None else steps.num_steps)
    own = base if component is None else spec.component(ops, base, component)
    held = {name: stop(value) for name, value in own.items()}
    lambdas = grid if sampling else grid[:-1]
    factors = networks.coefficients(family.parameterization, family.schedule, lambdas)
    rows = {
        **{name: xp.asarray(by, dtype=dtype) for name, by in zip(("x", "r", "target"), factors, strict=True)},
        "live": residual.rows(lambdas, dtype, frozen=False),
        "frozen": residual.rows(lambdas, dtype, frozen=True) if family.gradient == "path" else (),
    }

    process: dict[str, Any] = {"schedule": family.schedule, "grid": grid, "own": rows}

    def end_at(params: Params, x: Array, raw: Array | None) -> tuple[Array, Array | float]:
        """z of a path's end, and log|dz/dx|."""
        if raw is None:
            return spec.to_latent(ops, params, x), spec.log_det(ops, params)
        bent, log_rise, _ = skew(ops, x, raw)
        return spec.to_latent(ops, params, bent), spec.log_det(ops, params) + xp.sum(log_rise, axis=-1)

    pull = None
    if target is not None and slope is not None:
        still = None if bend is None else stop(bend)

        def on_path(x: Array) -> Array:
            z, log_det = end_at(held, x, still)
            return target(z) + log_det

        pull = slope(on_path)

    def shared(x: Array, row: Any) -> Any:
        if pull is None:
            return None
        # the target's gradient less the base's, at the data that the base expects
        at = stop(row["own"]["x"] * x)
        found = pull(at) + at
        found = xp.where(xp.isfinite(found), found, xp.zeros_like(found))
        return stop(row["own"]["target"] * xp.clip(found, -clip, clip))

    def predict(x: Array, row: Any, given: Any, frozen: bool) -> Array:
        mine = row["own"]
        r, gate = residual.at(x, mine["frozen" if frozen else "live"], frozen=frozen)
        data = mine["x"] * x + mine["r"] * r
        return data if given is None or gate is None else data + lift(ops, gate, x.ndim) * given

    if sampling and steps is not None:
        first = family.schedule.total(grid[0]) * start
        process |= {"adams": steps.solver, "tau": steps.tau}
        end = sample(ops, lambda x, row: predict(x, row, shared(x, row), False), first, noise, **process)
        z, _ = end_at(own, end / family.schedule.total(grid[-1]), bend)
        return Latent(z, xp.sum(0.0 * z, axis=-1) + math.nan)

    drifts = Drifts(partial(predict, frozen=False), partial(predict, frozen=True), shared)
    sd = deviations(ops, family, start.shape[-1], dtype, log_ratio)
    kernels = {"adams": family.solver, "tau": family.tau, "gradient": family.gradient, "checkpoint": family.checkpoint}
    path = simulate(ops, drifts, start, noise, sd, **process, **kernels)
    # the path lives in standardized coordinates, so base and bend enter by z and log|dz/dx| alone
    z, log_det = end_at(own, path.end, bend)
    log_q, score_term = path.log_q, None
    if family.gradient == "log_variance":
        log_q, score_term = stop(log_q), log_q
    log_q = log_q - log_det
    if component is not None and isinstance(spec, DiagonalMixture):
        # the draw of a component, against which stands the component's probability given z
        logs = spec.log_joint(ops, base, z)
        own_log = xp.sum(logs * xp.reshape(component, (-1, *(1 for _ in logs.shape[1:]))), axis=0)
        log_q = log_q - math.log(spec.num_components) - (own_log - log_sum_exp(ops, logs, axis=0))
    return Latent(z, log_q, score_term)
