"""The networks of flows in Pyro: zuko's, and Pyro's own block autoregressive layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import Transform, constraints

from vi_reparam.errors import BackendError
from vi_reparam.guides.flow import INTERVAL, KINDS, NUM_KNOTS, Flow

Array = Any


class TorchNetwork:
    """`vi_reparam.programs.network.Network` of modules whose weights come from elsewhere.

    Args:
        family: the specification.
        size: D.
        num_features: of the row that it is conditioned on; None for none.
    """

    def __init__(self, family: Flow, size: int, num_features: int | None) -> None:
        self._make = functools.partial(bijection, family, size, num_features=num_features)
        self._module = self._make(0)
        self._full = {_plain(name): name for name, _ in self._module.named_parameters()}
        self.names = tuple(self._full)

    def init(self, key: int) -> dict[str, Array]:
        """Weights that follow from the key."""
        return {_plain(name): weight.detach().clone() for name, weight in self._make(key).named_parameters()}

    def bind(self, weights: dict[str, Array]) -> _Bound:
        """The bijection with these weights."""
        return _Bound(self._module, {self._full[name]: weight for name, weight in weights.items()})


class _Bound:
    def __init__(self, module: torch.nn.Module, weights: dict[str, Array]) -> None:
        self._module, self._weights = module, weights

    def at(self, x: Array, row: Array | None) -> tuple[Array, Array]:
        return torch.func.functional_call(self._module, self._weights, (x, row))

    def inverse(self, y: Array, row: Array | None) -> Array:
        return torch.func.functional_call(self._module, self._weights, (y, row, True))


def network(family: Flow, size: int, num_features: int | None) -> TorchNetwork:
    """As `vi_reparam.backend.host.Host.bijection`; made once."""
    return _network(family, size, num_features, torch.get_default_dtype(), torch.get_default_device())


@functools.lru_cache(maxsize=64)
def _network(family: Flow, size: int, num_features: int | None, dtype: Any, device: Any) -> TorchNetwork:
    return TorchNetwork(family, size, num_features)


def _plain(name: str) -> str:
    return name.removeprefix("layers.").replace(".", "_")


class Layers(torch.nn.Module):
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


def bijection(family: Flow, size: int, seed: int, num_features: int | None = None) -> Layers:
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
        return Layers(layers, _block, _no_inverse)
    if kind == "autoregressive":
        return Layers(layers, _through_inverse, lambda layer, y, row: layer(row)(y))
    return Layers(layers, lambda layer, x, row: layer(row).call_and_ladj(x), lambda layer, y, row: layer(row).inv(y))


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
