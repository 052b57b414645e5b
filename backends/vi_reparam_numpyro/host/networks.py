"""The networks of flows in NumPyro: flowjax's."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import experimental, random

from vi_reparam.errors import BackendError
from vi_reparam.guides.flow import INTERVAL, KINDS, NUM_KNOTS, Flow
from vi_reparam_numpyro.ops.jit import jit_once

Array = Any


class FlowjaxNetwork:
    """`vi_reparam.programs.network.Network` of a flowjax bijection.

    Args:
        module: the bijection.
    """

    def __init__(self, module: Any) -> None:
        import equinox

        arrays, self._rest = equinox.partition(module, equinox.is_inexact_array, is_leaf=_is_fixed)
        leaves, self._tree = jax.tree.flatten(arrays)
        self._first = {f"weight{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        self.names = tuple(self._first)

    def init(self, key: Any) -> dict[str, Array]:
        """Other weights of the same spread; what is constant at the start stays so."""
        made = {}
        for (name, leaf), own in zip(self._first.items(), random.split(key, len(self._first)), strict=True):
            spread = leaf.std()
            moved = leaf.mean() + spread * random.normal(own, leaf.shape, leaf.dtype)
            made[name] = moved if leaf.ndim > 2 and spread > 0.0 else jnp.asarray(leaf)  # the first axis is the layers'
        return made

    def bind(self, weights: dict[str, Array]) -> _Bound:
        """The bijection with these weights."""
        import equinox
        import paramax

        arrays = jax.tree.unflatten(self._tree, [weights[name] for name in self.names])
        return _Bound(paramax.unwrap(equinox.combine(arrays, self._rest)))


class _Bound:
    def __init__(self, module: Any) -> None:
        self.at, self.inverse = module.transform_and_log_det, module.inverse


def network(family: Flow, size: int, num_features: int | None) -> FlowjaxNetwork:
    """As `vi_reparam.backend.host.Host.bijection`; made once, in a thread: flowjax checks values that a trace hides."""
    return _network(family, size, num_features, jnp.result_type(float))


@functools.lru_cache(maxsize=64)
def _network(family: Flow, size: int, num_features: int | None, dtype: Any) -> FlowjaxNetwork:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(_attempt(family, size, num_features, dtype)))
    thread.start()
    thread.join()
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]


def _attempt(family: Flow, size: int, num_features: int | None, dtype: Any) -> Any:
    home: Any = jax if hasattr(jax, "enable_x64") else experimental
    try:
        with home.enable_x64(jnp.dtype(dtype).itemsize == 8):  # a thread does not know of the caller's precision
            return FlowjaxNetwork(bijection(family, size, random.key(0), num_features))
    except Exception as error:  # raised by whoever waits for the thread
        return error


def _is_fixed(leaf: Any) -> bool:
    """Whether training leaves it as it is."""
    import paramax

    return isinstance(leaf, paramax.NonTrainable)


def bijection(family: Flow, size: int, key: Any, num_features: int | None = None) -> Any:
    """The layers, the identity at the start but for ``"block_autoregressive"``.

    Args:
        num_features: of the row that they are conditioned on; None for none.

    Raises:
        BackendError: if flowjax is missing.
    """
    try:
        import equinox
        from flowjax import bijections
    except ImportError as error:
        raise BackendError("vr.Flow needs flowjax: pip install 'vi-reparam[numpyro]'") from error
    kind = family.kind_at(size)
    transformer = _transformer(bijections, kind)
    of_vector = None if transformer is None else _of_vector(transformer)

    def layer(key: Any) -> Any:
        own, order = random.split(key)
        made = _layer(bijections, family, kind, size, own, num_features, transformer, of_vector)
        if size == 1:
            return made
        moved = bijections.Permute(random.permutation(order, jnp.arange(size))) if size > 2 else bijections.Flip((2,))
        return bijections.Chain([made, moved])

    # block layers close over masks that they make, so no trace may be on
    made = equinox.filter_vmap(layer)(random.split(key, family.num_layers)) if transformer is None else None
    layers = bijections.Scan(_at_once(layer, key, family.num_layers) if made is None else made)
    return bijections.Invert(layers) if kind == "autoregressive" else layers


def _at_once(make: Callable[[Any], Any], key: Any, num: int) -> Any:
    """``make`` of so many keys, stacked, as one program: operation by operation it would be compiled for seconds."""
    import equinox

    rest: list[Any] = []

    def arrays(key: Any) -> Any:
        own, others = equinox.partition(equinox.filter_vmap(make)(random.split(key, num)), equinox.is_array)
        rest.append(others)
        return own

    return equinox.combine(jit_once(arrays, ())(key), rest[0])


def _transformer(bijections: Any, kind: str) -> Any:
    """What acts on one coordinate; None where the layers have none."""
    if KINDS[kind] == "block":
        return None
    if KINDS[kind] == "spline":
        return bijections.RationalQuadraticSpline(knots=NUM_KNOTS, interval=INTERVAL)
    affine = _affine(bijections)
    # layers that are drawn through their inverse: that is to have the bound
    return bijections.Invert(affine) if kind == "autoregressive" else affine


def _of_vector(transformer: Any) -> Any:
    """What makes a transformer of a network's output; it closes over arrays, so no trace may be on."""
    import equinox
    from flowjax.utils import get_ravelled_pytree_constructor

    return get_ravelled_pytree_constructor(transformer, filter_spec=equinox.is_inexact_array, is_leaf=_is_fixed)[0]


def _layer(
    bijections: Any,
    family: Flow,
    kind: str,
    size: int,
    key: Any,
    num_features: int | None,
    transformer: Any,
    of_vector: Any,
) -> Any:
    if transformer is None:
        width = max(1, -(-family.hidden // size))
        return bijections.BlockAutoregressiveNetwork(key, dim=size, cond_dim=None, depth=1, block_dim=width)
    options = {"transformer": transformer, "nn_width": family.hidden, "nn_depth": 1, "nn_activation": jax.nn.silu}
    options["cond_dim"] = num_features
    if kind in ("coupling", "spline_coupling"):
        made = bijections.Coupling(key, untransformed_dim=size // 2, dim=size, **options)
        return _start_at_identity(made, "conditioner", of_vector)
    made = bijections.MaskedAutoregressive(key, dim=size, **options)
    return _start_at_identity(made, "masked_autoregressive_mlp", of_vector)


def _affine(bijections: Any) -> Any:
    """A shift and a scale between 0 and 4: a scale without a bound multiplies over the layers, far out."""
    import equinox
    import paramax

    zero = jnp.asarray(np.zeros((), jnp.result_type(float)))
    made = equinox.filter_eval_shape(bijections.Affine)  # shapes alone: its own scale would be computed
    return equinox.tree_at(lambda affine: (affine.loc, affine.scale), made, (zero, paramax.Parameterize(_scale, zero)))


def _scale(raw: Array) -> Array:
    return 4.0 * jax.nn.sigmoid(raw - math.log(3.0))


def _start_at_identity(layer: Any, network: str, of_vector: Any) -> Any:
    """The layer with the last weights of its network at zero, and what was made outside of its trace."""
    import equinox

    def last(made: Any) -> Any:
        return getattr(made, network).layers[-1]

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x) if equinox.is_inexact_array(x) else x, last(layer))
    layer = equinox.tree_at(lambda made: made.transformer_constructor, layer, of_vector)
    return equinox.tree_at(last, layer, zeros)
