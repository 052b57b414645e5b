"""The sparse gamma deep exponential family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vi_reparam.backend.host import Host
from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Implicit, Rejection
from vi_reparam_models import data
from vi_reparam_models.model import Model, Program, require_positive

WEIGHT_PRIOR = (0.1, 0.3)
TOP_PRIOR = (0.1, 0.1)
LAYER_SHAPE = 0.1


class _Plates:
    """The plates of one run, by layer: words below layer 1.

    The weights from layer l + 1 down to layer l share the plate of layer l's units, and the
    likelihood shares words with w0 and documents with z1, so every latent's downstream cost is
    as elementwise as it truly is.
    """

    def __init__(self, host: Host, documents: int, words: int, layers: Sequence[int]) -> None:
        self.documents = host.plate("documents", documents, dim=-2)
        self.columns = [host.plate("words", words, dim=-1)]
        self.columns += [host.plate(f"units{layer}", size, dim=-1) for layer, size in enumerate(layers, 1)]
        self.rows = [host.plate(f"rows{layer}", size, dim=-2) for layer, size in enumerate(layers, 1)]


def sparse_gamma_def(
    *,
    layers: Sequence[int] = (100, 40, 15),
    counts: Any = None,
    min_shape: float = 1.0,
    init_seed: int = 0,
) -> Model:
    """Counts as Poisson(z1 w0), with each layer's mean set by the layer above it.

    The guide is a gamma at every latent, in its shape and mean through softplus. It starts as the
    authors' does: softplus(0.5 + 0.1 noise) for shapes, softplus(0.1 noise) for means.

    Args:
        layers: units a layer, from the data up.
        counts: documents by words; the digits of scikit-learn if None.
        min_shape: shapes start here or above (the authors' 1 serves a sampler without boost).
        init_seed: seed of the starting noise.

    Raises:
        ArgumentError: if an option cannot be used.
    """
    name = "sparse_gamma_def"
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise ArgumentError(f"model {name!r}: layers={layers!r} given, expected sizes such as [100, 40, 15]")
    for size in layers:
        require_positive(name, "layers", size, integer=True)
    require_positive(name, "min_shape", min_shape)
    observed = data.digits() if counts is None else np.asarray(counts)
    if observed.ndim != 2 or not np.issubdtype(observed.dtype, np.number):
        raise ArgumentError(f"model {name!r}: counts of shape {observed.shape} given, expected documents by words")
    if not (np.isfinite(observed).all() and (observed >= 0).all() and (observed == np.round(observed)).all()):
        raise ArgumentError(f"model {name!r}: counts must be whole numbers of at least 0")
    documents, words = observed.shape
    layers = tuple(layers)
    shapes = {f"w{layer}": pair for layer, pair in enumerate(zip(layers, (words, *layers[:-1]), strict=True))}
    shapes |= {f"z{layer}": (documents, size) for layer, size in enumerate(layers, 1)}

    def program(host: Host) -> Program:
        def model(counts: Any = None) -> None:
            plates = _Plates(host, documents, words, layers)
            weights = []
            for layer in range(len(layers)):
                with plates.rows[layer], plates.columns[layer]:
                    weights.append(host.sample(f"w{layer}", host.dist.Gamma(*WEIGHT_PRIOR)))
            above = None
            for layer in range(len(layers), 0, -1):
                prior = TOP_PRIOR if above is None else (LAYER_SHAPE, LAYER_SHAPE / (above @ weights[layer]))
                with plates.documents, plates.columns[layer]:
                    above = host.sample(f"z{layer}", host.dist.Gamma(*prior))
            with plates.documents, plates.columns[0]:
                obs = None if counts is None else host.array(counts)
                host.sample("counts", host.dist.Poisson(above @ weights[0]), obs=obs)

        return model

    def guide_program(host: Host) -> Program:
        start = _initial(shapes, min_shape, init_seed)
        positive = host.dist.constraints.softplus_positive

        def latent(name: str) -> None:
            shape = host.param(f"{name}_shape", host.array(start[f"{name}_shape"]), constraint=positive)
            mean = host.param(f"{name}_mean", host.array(start[f"{name}_mean"]), constraint=positive)
            host.sample(name, host.dist.Gamma(shape, shape / mean))

        def guide(counts: Any = None) -> None:
            plates = _Plates(host, documents, words, layers)
            for layer in range(len(layers)):
                with plates.rows[layer], plates.columns[layer]:
                    latent(f"w{layer}")
            for layer in range(len(layers), 0, -1):
                with plates.documents, plates.columns[layer]:
                    latent(f"z{layer}")

        return guide

    return Model(
        name=name,
        description=f"sparse gamma deep exponential family, layers {'/'.join(map(str, layers))}",
        source="Ranganath et al. (2015), Deep exponential families; Naesseth et al. (2017), section 5.2",
        model=program,
        data=lambda: ((), {"counts": observed}),
        guide=guide_program,
        entropy="analytic",
        estimators=(Implicit(), Rejection(boost=4), Rejection(boost=4, baseline=None)),
        fit_defaults={"num_steps": 2_000, "num_particles": 2, "learning_rate": 0.05},
        options={"layers": layers, "counts": None if counts is None else "given", "min_shape": min_shape}
        | {"init_seed": init_seed},
    )


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def _initial(shapes: dict[str, tuple[int, int]], min_shape: float, seed: int) -> dict[str, np.ndarray]:
    """Where the authors start: sigma = 0.1 around 0.5 for shapes and around 0 for means, before softplus."""
    rng = np.random.default_rng(seed)
    start = {}
    for name, shape in shapes.items():
        start[f"{name}_shape"] = np.maximum(_softplus(0.5 + 0.1 * rng.standard_normal(shape)), min_shape)
        start[f"{name}_mean"] = _softplus(0.1 * rng.standard_normal(shape))
    return start
