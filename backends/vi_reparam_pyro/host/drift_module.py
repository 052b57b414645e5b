"""A user's own drift network in Pyro: a torch module."""

from __future__ import annotations

from typing import Any

import pyro
import torch


def drift(module: Any, name: str) -> tuple[Any, Any]:
    """As `vi_reparam.backend.host.Host.drift`: the module's weights are trained in place."""
    if not isinstance(module, torch.nn.Module):
        return module, module
    pyro.module(name, module)

    def frozen(*inputs: Any) -> Any:
        held = {name: weight.detach() for name, weight in module.named_parameters()}
        return torch.func.functional_call(module, held, inputs)

    return module, frozen
