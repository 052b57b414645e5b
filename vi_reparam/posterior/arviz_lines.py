"""Both lines of ArviZ, 0.x and 1.x, behind the few functions that this library asks of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr


def import_arviz() -> Any:
    """ArviZ, without the announcement of its next major version that it makes on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _is_first_line() -> bool:
    return "InferenceData" in vars(import_arviz())  # 1.x has a warning of that name


def container(groups: Mapping[str, xr.Dataset]) -> Any:
    """ArviZ's own holder of groups: `InferenceData` in 0.x, xarray's `DataTree` in 1.x."""
    if _is_first_line():
        return import_arviz().InferenceData(**groups, warn_on_custom_groups=False)
    import xarray as xr

    return xr.DataTree.from_dict(dict(groups))
