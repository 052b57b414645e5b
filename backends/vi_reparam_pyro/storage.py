"""Torch's values in the file of a posterior."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from vi_reparam.posterior import storage
from vi_reparam_pyro.engine.arguments import to_numpy


class Codec(storage.Codec):
    """`vi_reparam.posterior.storage.Codec` for torch."""

    def array(self, value: Any) -> np.ndarray | None:
        return to_numpy(value) if isinstance(value, torch.Tensor | np.ndarray | np.generic) else None

    def restore(self, array: np.ndarray, dtype: str) -> Any:
        return torch.as_tensor(array, device=torch.get_default_device())

    def shapes(self, params: dict) -> dict[str, list[int]]:
        return {f"['{name}']": list(np.shape(to_numpy(value))) for name, value in params.items()}

    def prepare(self, model: Any, params: dict, args: tuple, kwargs: dict) -> None:
        pass  # Pyro runs nothing abstractly

    def make(self, model: Any, **fields: Any) -> Any:
        from vi_reparam_pyro.posterior import Posterior

        return Posterior(model, **fields)


def load(path: str | os.PathLike, model: Any) -> Any:
    """Reads a posterior that `Posterior.save` wrote.

    Args:
        path: the file.
        model: the guided model that it was fitted with.

    Returns:
        The posterior.

    Raises:
        ArgumentError: there is no such file, it is not one of ours, or it is of another model.
    """
    return storage.load(path, model, Codec())
