"""Data sets that come with scikit-learn, as NumPy arrays."""

from __future__ import annotations

import functools

import numpy as np

from vi_reparam.errors import ArgumentError


def _require(module: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        raise ArgumentError(
            f"this data set comes with scikit-learn, which is not installed ({error}): pip install scikit-learn"
        ) from error


@functools.cache
def digits() -> np.ndarray:
    """Handwritten digits (Alpaydin and Kaynak 1998): counts from 0 to 16, shape ``(1797, 64)``.

    Raises:
        ArgumentError: if scikit-learn is not installed.
    """
    _require("sklearn.datasets")
    from sklearn.datasets import load_digits

    return np.asarray(load_digits(return_X_y=True)[0], dtype=np.float64)


@functools.cache
def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Breast cancer Wisconsin (Street et al. 1993): standardized predictors ``(569, 30)``, benign or not ``(569,)``.

    Raises:
        ArgumentError: if scikit-learn is not installed.
    """
    _require("sklearn.datasets")
    from sklearn.datasets import load_breast_cancer

    x, y = (np.asarray(part, dtype=np.float64) for part in load_breast_cancer(return_X_y=True))
    return (x - x.mean(0)) / x.std(0), y
