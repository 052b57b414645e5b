"""A flow of flowjax as a NumPyro guide."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import experimental, lax, random

from vi_reparam.backend.data import Data
from vi_reparam.errors import BackendError
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians.bases import Diagonal
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.guides import Flow, FullRank, Gaussian
from vi_reparam.guides.flow import CHEAP_INVERSES, INTERVAL, KINDS, NUM_KNOTS
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.layout import Layout
from vi_reparam.sites import recorder as listener
from vi_reparam_numpyro.engine.arguments import jit_once
from vi_reparam_numpyro.host.guard import running_objective
from vi_reparam_numpyro.joint import (
    ALONE,
    Joint,
    JointGuide,
    Vector,
    bends,
    frame_of,
    frame_params,
    match_draws,
    tail_param,
    take_gaussian,
)
from vi_reparam_numpyro.ops.ops import ops

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
        self._made: dict[Any, Any] = {}

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> dist.Distribution:
        size, family, prefix = layout.size, self.family, self.prefix
        width = 0.1 if layout.plate is None else 1.0  # one frame for all elements, which lie apart
        frame = frame_params(prefix, size, size <= LARGEST, width, self.start(layout, args, kwargs))
        tail = tail_param(prefix)
        template, join = self._parts(size, None if features is None else features.shape[1])
        weights: Any = numpyro.param(f"{prefix}_weights", lambda key: _redrawn(template, key))
        live, held = join(weights), join(jax.tree.map(lax.stop_gradient, weights))
        bend = bends(prefix, layout, features) if family.skew else lambda row: None
        kind, gradient = family.kind_at(size), family.gradient_at(size)
        frozen = gradient == "path"
        if listener.current() is None and running_objective() == ALONE:
            gradient = "reparameterization"  # of the same value, without a Jacobian that nobody asks for
        cheap = kind in CHEAP_INVERSES

        def make(key: Array, row: Array | None = None) -> Vector:
            noise = random.normal(key, (size,), jnp.result_type(float))
            z, log_q = path.flow(
                ops,
                lambda x: live.transform_and_log_det(x, row),
                lambda x: held.transform_and_log_det(x, row),
                frame,
                tail,
                noise,
                bend=bend(row),
                gradient=gradient,
                inverse=(lambda y: held.inverse(y, row)) if cheap else None,
                slope_of=lambda f, x: jax.grad(f)(x),
                jacobian_of=lambda f, x: jax.jacfwd(f)(x),
            )
            return Vector(z, log_q, frozen=frozen)

        if layout.plate is None:
            return Joint(size, make, self.site)
        return Joint.each(size, make, self.site, features, layout.plate)

    def _parts(self, size: int, num_features: int | None) -> Any:
        """`parts_of` the bijection, made once; in a thread, since flowjax checks values that a trace would hide."""
        known = size, num_features, jnp.result_type(float)
        if known not in self._made:
            made: list[Any] = []
            thread = threading.Thread(target=lambda: made.append(_attempt(self.family, *known)))
            thread.start()
            thread.join()
            if isinstance(made[0], Exception):
                raise made[0]
            self._made[known] = made[0]
        return self._made[known]

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Any) -> list[dict[str, Array]]:
        if self.family.is_local:
            return [{}]
        size = self.layout(*data.call).size
        spec = FullRank() if size <= LARGEST else Gaussian(Diagonal())
        params = dict(fit(spec, None, key).params)
        found = frame_of(take_gaussian(params, spec.gaussian))
        return [{**params, f"{self.prefix}_center": found.center, f"{self.prefix}_root": found.root}]

    def matched(self, layout: Layout, draws: dict[str, Array]) -> dict[str, Array]:
        center, scale, bend = match_draws(layout, draws, bends=self.family.skew)
        root = jnp.diag(scale) if layout.size <= LARGEST else scale
        values = {f"{self.prefix}_center": center, f"{self.prefix}_root": root}
        if self.family.skew and any(layout.positive()):
            values[f"{self.prefix}_skew"] = bend
        return values


def _attempt(family: Flow, size: int, num_features: int | None, dtype: Any) -> Any:
    home: Any = jax if hasattr(jax, "enable_x64") else experimental
    try:
        with home.enable_x64(jnp.dtype(dtype).itemsize == 8):  # a thread does not know of the caller's precision
            return parts_of(bijection(family, size, random.key(0), num_features))
    except Exception as error:  # raised by whoever waits for the thread
        return error


def _redrawn(template: dict[str, np.ndarray], key: Any) -> dict[str, Array]:
    """Other weights of the same spread; what is constant at the start stays so."""
    made = {}
    for (name, leaf), own in zip(template.items(), random.split(key, len(template)), strict=True):
        spread = leaf.std()
        moved = leaf.mean() + spread * random.normal(own, leaf.shape, leaf.dtype)
        made[name] = moved if leaf.ndim > 2 and spread > 0.0 else jnp.asarray(leaf)  # the first axis is the layers'
    return made


def parts_of(module: Any) -> tuple[dict[str, np.ndarray], Callable[[dict[str, Array]], Any]]:
    """A bijection's arrays by number, and what makes a bijection of them again."""
    import equinox
    import paramax

    arrays, rest = equinox.partition(module, equinox.is_inexact_array, is_leaf=_is_fixed)
    leaves, tree = jax.tree.flatten(arrays)

    def join(named: dict[str, Array]) -> Any:
        arrays = jax.tree.unflatten(tree, [named[str(i)] for i in range(len(leaves))])
        return paramax.unwrap(equinox.combine(arrays, rest))

    return {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}, join


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

    keys = random.split(key, family.num_layers)
    # block layers close over masks that they make, so no trace may be on
    layers = bijections.Scan(equinox.filter_vmap(layer)(keys) if transformer is None else _at_once(layer, keys))
    return bijections.Invert(layers) if kind == "autoregressive" else layers


def _at_once(make: Callable[[Any], Any], keys: Any) -> Any:
    """``make`` of each key, stacked, as one program: operation by operation it would be compiled for seconds."""
    import equinox

    rest: list[Any] = []

    def arrays(keys: Any) -> Any:
        own, others = equinox.partition(equinox.filter_vmap(make)(keys), equinox.is_array)
        rest.append(others)
        return own

    return equinox.combine(jit_once(arrays, ())(keys), rest[0])


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

    scale = paramax.Parameterize(_scale, jnp.zeros(()))
    return equinox.tree_at(lambda affine: affine.scale, bijections.Affine(), scale)


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
