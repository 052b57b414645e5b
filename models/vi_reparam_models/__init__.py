"""Ready models, written once for every backend, each with its data.

>>> from vi_reparam_models import get, names
>>> get("eight_schools", centered=True).options
{'centered': True}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from vi_reparam.errors import ArgumentError
from vi_reparam_models.breast_cancer import breast_cancer
from vi_reparam_models.digits import digits
from vi_reparam_models.dirichlet_multinomial import dirichlet_multinomial
from vi_reparam_models.eight_schools import eight_schools
from vi_reparam_models.gamma_poisson import gamma_poisson
from vi_reparam_models.model import Exact, Model, check_options
from vi_reparam_models.sparse_gamma_def import sparse_gamma_def

_MODELS: dict[str, Callable[..., Model]] = {
    "breast_cancer": breast_cancer,
    "digits": digits,
    "dirichlet_multinomial": dirichlet_multinomial,
    "eight_schools": eight_schools,
    "gamma_poisson": gamma_poisson,
    "sparse_gamma_def": sparse_gamma_def,
}

__all__ = ["Exact", "Model", "get", "names", "options"]


def names() -> list[str]:
    """The ready models, in alphabetical order."""
    return sorted(_MODELS)


def options(name: str) -> dict[str, Any]:
    """A model's options and their defaults.

    Raises:
        ArgumentError: for an unknown model.
    """
    return {key: parameter.default for key, parameter in inspect.signature(_builder(name)).parameters.items()}


def get(name: str, **options: Any) -> Model:
    """A ready model.

    Args:
        name: one of `names`.
        **options: the model's own options.

    Raises:
        ArgumentError: for an unknown model, an option it does not have, or a value it cannot use.
    """
    build = _builder(name)
    check_options(name, build, options)
    return build(**options)


def _builder(name: str) -> Callable[..., Model]:
    if name not in _MODELS:
        raise ArgumentError(f"unknown model {name!r}: there are {', '.join(names())}")
    return _MODELS[name]
