"""A flow of zuko or Pyro as a Pyro guide."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import Transform, constraints

from vi_reparam.backend.data import Data
from vi_reparam.errors import BackendError
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians.bases import Diagonal
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.guides import Flow, FullRank, Gaussian
from vi_reparam.guides.flow import CHEAP_INVERSES, INTERVAL, KINDS, NUM_KNOTS
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.layout import Layout
from vi_reparam_pyro.joint import (
    Joint,
    JointGuide,
    Vector,
    bends,
    frame_params,
    match_draws,
    tail_param,
    take_gaussian,
)
from vi_reparam_pyro.ops.ops import ops

Array = Any


class FlowGuide(JointGuide):
    """A Gaussian's frame, and a bijection that bends it.

    Args:
        model: the model.
        family: the specification.
        cover: which latents it draws.
    """

    kind = "flow"

    def __init__(self, model: Any, family: Flow, cover: SiteSelection = ALL) -> None:
        super().__init__(model, family, cover)
        self._made: dict[Any, Bijection] = {}

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> TorchDistribution:
        size, family, prefix = layout.size, self.family, f"{self.scope}{self.prefix}"
        width = 0.1 if layout.plate is None else 1.0  # one frame for all elements, which lie apart
        frame = frame_params(prefix, size, size <= LARGEST, width, self.start(layout, args, kwargs))
        tail = tail_param(prefix)
        num = None if features is None else features.shape[1]
        module = self._module(size, num)
        first = functools.cache(lambda: _weights(family, size, ops.root_key(), num))
        names = [name for name, _ in module.named_parameters()]
        live = {name: pyro.param(f"{prefix}_{_plain(name)}", lambda name=name: first()[name]) for name in names}
        held = {name: weight.detach() for name, weight in live.items()}
        bend = bends(prefix, layout, features) if family.skew else lambda row: None
        kind, gradient = family.kind_at(size), family.gradient_at(size)

        def draw(noise: Array, row: Array | None) -> Vector:
            @functools.cache
            def rows(x: Array) -> Array:  # of the Jacobian, and the slope of its log-determinant: one pass for both
                return torch.func.jacrev(lambda v: torch.cat([t.reshape(-1) for t in module.at(held, v, row)]))(x)

            z, log_q = path.flow(
                ops,
                lambda x: module.at(live, x, row),
                lambda x: module.at(held, x, row),
                frame,
                tail,
                noise,
                bend=bend(row),
                gradient=gradient if torch.is_grad_enabled() else "reparameterization",  # the value is the same
                inverse=(lambda y: module.inverse_at(held, y, row)) if kind in CHEAP_INVERSES else None,
                slope_of=lambda f, x: torch.func.grad(f)(x) if kind in CHEAP_INVERSES else rows(x)[-1],
                jacobian_of=lambda f, x: rows(x)[:-1],
            )
            return Vector(z, log_q, frozen=gradient == "path")

        def noise(key: int, *lead: int) -> Array:
            return ops.normal(key, (*lead, size), torch.get_default_dtype())

        if layout.plate is None:
            return Joint(size, lambda key: draw(noise(key), None), self.site)
        return Joint.each(size, noise, draw, self.site, features, layout.plate)

    def _module(self, size: int, num_features: int | None) -> Bijection:
        """The layers, whose weights come from elsewhere."""
        key = size, num_features, torch.get_default_dtype(), torch.get_default_device()
        if key not in self._made:
            self._made[key] = bijection(self.family, size, 0, num_features)
        return self._made[key]

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: int) -> list[dict[str, Array]]:
        if self.family.is_local:
            return [{}]
        size = self.layout(*data.call).size
        spec = FullRank() if size <= LARGEST else Gaussian(Diagonal())
        params = dict(fit(spec, None, key).params)
        found = Preconditioner.of(ops, take_gaussian(params, spec.gaussian))
        return [{**params, f"{self.prefix}_center": found.center, f"{self.prefix}_root": found.root}]

    def matched(self, layout: Layout, draws: dict[str, Array]) -> dict[str, Array]:
        center, scale, bend = match_draws(layout, draws, bends=self.family.skew)
        root = torch.diag(scale) if layout.size <= LARGEST else scale
        values = {f"{self.prefix}_center": center, f"{self.prefix}_root": root}
        if self.family.skew and any(layout.positive()):
            values[f"{self.prefix}_skew"] = bend
        return values


def _plain(name: str) -> str:
    return name.removeprefix("layers.").replace(".", "_")


def _weights(family: Flow, size: int, seed: int, num_features: int | None) -> dict[str, Array]:
    made = bijection(family, size, seed, num_features)
    return {name: weight.detach().clone() for name, weight in made.named_parameters()}


class Bijection(torch.nn.Module):
    """Layers end to end.

    Args:
        layers: modules.
        forward: (y, log|J|) of a layer, x and a row of features or None; `inverse`: x of a layer, y and the row.
    """

    def __init__(
        self,
        layers: list[torch.nn.Module],
        forward: Callable[[Any, Array, Array | None], tuple[Array, Array]],
        inverse: Callable[[Any, Array, Array | None], Array],
    ) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self._forward, self._inverse = forward, inverse

    def at(self, weights: dict[str, Array], x: Array, row: Array | None = None) -> tuple[Array, Array]:
        """Y and log|J| of x, with these weights."""
        return torch.func.functional_call(self, weights, (x, row))

    def inverse_at(self, weights: dict[str, Array], y: Array, row: Array | None = None) -> Array:
        """X of y, with these weights."""
        return torch.func.functional_call(self, weights, (y, row, True))

    def forward(self, x: Array, row: Array | None, backwards: bool = False) -> Any:
        if backwards:
            for layer in reversed(self.layers):
                x = self._inverse(layer, x, row)
            return x
        log_det: Any = 0.0
        for layer in self.layers:
            x, own = self._forward(layer, x, row)
            log_det = log_det + own
        return x, log_det


def bijection(family: Flow, size: int, seed: int, num_features: int | None = None) -> Bijection:
    """The layers, the identity at the start but for ``"block_autoregressive"``.

    The order of the coordinates in each layer is always the same one; the weights follow from the seed.

    Args:
        num_features: of the row that they are conditioned on; None for none.

    Raises:
        BackendError: if zuko is missing.
    """
    kind = family.kind_at(size)
    orders = torch.Generator(device="cpu").manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        order = [torch.randperm(size, generator=orders) for _ in range(family.num_layers)]
        layers = [_layer(family, kind, size, own, num_features or 0) for own in order]
    if KINDS[kind] == "block":
        return Bijection(layers, _block, _no_inverse)
    if kind == "autoregressive":
        return Bijection(layers, _through_inverse, lambda layer, y, row: layer(row)(y))
    return Bijection(layers, lambda layer, x, row: layer(row).call_and_ladj(x), lambda layer, y, row: layer(row).inv(y))


def _layer(family: Flow, kind: str, size: int, order: Array, num_features: int) -> torch.nn.Module:
    if KINDS[kind] == "block":
        return _Block(family, size, order)
    held = torch.distributions.Distribution._validate_args
    try:
        from zuko.flows.autoregressive import MaskedAutoregressiveTransform
        from zuko.transforms import MonotonicRQSTransform
    except ImportError as error:
        raise BackendError("vr.Flow needs zuko: pip install 'vi-reparam[pyro]'") from error
    finally:  # its import switches the validation of all torch distributions off
        torch.distributions.Distribution._validate_args = held
    options: dict[str, Any] = {"univariate": _InvertedAffine if kind == "autoregressive" else _Affine}
    if KINDS[kind] == "spline":
        options["univariate"] = functools.partial(MonotonicRQSTransform, bound=INTERVAL)
        options["shapes"] = [(NUM_KNOTS,), (NUM_KNOTS,), (NUM_KNOTS - 1,)]
    passes = 2 if kind in ("coupling", "spline_coupling") else None
    hidden = {"hidden_features": (family.hidden,), "activation": torch.nn.SiLU}
    layer: Any = MaskedAutoregressiveTransform(
        size, context=num_features, passes=passes, order=order, **options, **hidden
    )
    last = layer.hyper[-1] if size > 1 or num_features else layer.phi
    for weight in last.parameters():
        torch.nn.init.zeros_(weight)
    for part in layer.modules():
        if hasattr(part, "mask"):
            part.mask = part.mask.to(torch.get_default_dtype())  # once, not at every step
    return layer


class _Affine(Transform):
    """A shift and a scale between 0 and 4: a scale without a bound multiplies over the layers, far out."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign: Any = +1

    def __init__(self, shift: Array, raw: Array, side: float = 1.0) -> None:
        super().__init__()
        self.shift = shift
        self.log_scale = side * (math.log(4.0) + torch.nn.functional.logsigmoid(raw - math.log(3.0)))

    def _call(self, x: Array) -> Array:
        return x * self.log_scale.exp() + self.shift

    def _inverse(self, y: Array) -> Array:
        return (y - self.shift) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Array, y: Array) -> Array:
        return self.log_scale.expand(x.shape)


_InvertedAffine = functools.partial(_Affine, side=-1.0)
"""Its inverse has the bounded scale."""


def _through_inverse(layer: Any, x: Array, row: Array | None) -> tuple[Array, Array]:
    transform = layer(row)
    y = transform.inv(x)
    return y, -transform.log_abs_det_jacobian(y, x)


class _Block(torch.nn.Module):
    """Pyro's block autoregressive layer, then an order of the coordinates."""

    def __init__(self, family: Flow, size: int, order: Array) -> None:
        super().__init__()
        from pyro.distributions.transforms import BlockAutoregressive

        width = max(1, -(-family.hidden // size))
        self.inner = BlockAutoregressive(size, hidden_factors=[width], residual="gated")  # without, y is bounded
        self.register_buffer("order", order.to(torch.get_default_device()))


def _block(layer: Any, x: Array, row: Array | None) -> tuple[Array, Array]:
    y = layer.inner._call(x)
    log_det, layer.inner._cached_logDetJ = layer.inner._cached_logDetJ, None
    return y[layer.order], log_det.sum(-1)


def _no_inverse(layer: Any, y: Array, row: Array | None) -> Array:
    raise NotImplementedError
