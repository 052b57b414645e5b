"""A fitted posterior: draws, figures, predictions, and a verdict on whether to trust it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vi_reparam.posterior.posterior import PosteriorBase
from vi_reparam_pyro import storage
from vi_reparam_pyro.predict import predict
from vi_reparam_pyro.scoring import ReadsValuesError, Scorer, key_of


class Posterior(PosteriorBase):
    """A fitted posterior of a Pyro model. Networks get its weights for the while of a call."""

    array_functions = "torch"
    needs_values = (ReadsValuesError,)
    key_of = staticmethod(key_of)

    def make_scorer(self, guide: Any = None) -> Scorer:
        guide = self.guided.guide if guide is None else guide
        return Scorer(self.guided.model, guide, self.params, self.args, self.kwargs)

    def predictive(self, args: tuple, kwargs: dict, **options: Any) -> dict[str, torch.Tensor]:
        return predict(self.scorer, args, kwargs, **options)

    @staticmethod
    def epsilon() -> float:
        return float(torch.finfo(torch.get_default_dtype()).eps)

    @staticmethod
    def tree_map(fn: Callable, tree: Any) -> Any:
        return pytree.tree_map(fn, tree)

    @staticmethod
    def codec() -> storage.Codec:
        return storage.Codec()
