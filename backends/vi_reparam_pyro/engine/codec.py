"""Torch's values in the file of a posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vi_reparam.posterior.codec import Codec
from vi_reparam_pyro.ops.ops import ops


class TorchCodec(Codec):
    """`vi_reparam.posterior.codec.Codec` for torch."""

    def array(self, value: Any) -> np.ndarray | None:
        return ops.to_numpy(value) if isinstance(value, torch.Tensor | np.ndarray | np.generic) else None

    def restore(self, array: np.ndarray, dtype: str) -> Any:
        return torch.as_tensor(array, device=torch.get_default_device())
