"""A fitted posterior: draws, figures, predictions, and a verdict on whether to trust it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vi_reparam.posterior.posterior import PosteriorBase
from vi_reparam_numpyro import storage
from vi_reparam_numpyro.predict import predict
from vi_reparam_numpyro.scoring import NEEDS_VALUES, Scorer, key_of


class Posterior(PosteriorBase):
    """A fitted posterior of a NumPyro model. Calls with the same number of draws compile once."""

    array_functions = "jax.numpy"
    needs_values = NEEDS_VALUES
    key_of = staticmethod(key_of)

    def make_scorer(self, guide: Any = None) -> Scorer:
        guide = self.guided.guide if guide is None else guide
        return Scorer(self.guided.model, guide, self.params, self.args, self.kwargs)

    def predictive(self, args: tuple, kwargs: dict, **options: Any) -> dict[str, jax.Array]:
        return predict(self.scorer, args, kwargs, **options)

    @staticmethod
    def epsilon() -> float:
        return float(jnp.finfo(jnp.result_type(float)).eps)

    @staticmethod
    def tree_map(fn: Callable, tree: Any) -> Any:
        return jax.tree.map(fn, tree)

    @staticmethod
    def codec() -> storage.Codec:
        return storage.Codec()
