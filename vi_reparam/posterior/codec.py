"""How a framework's own values are stored in files."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np


class Codec(abc.ABC):
    """A framework's values as NumPy's arrays, and back."""

    @abc.abstractmethod
    def array(self, value: Any) -> np.ndarray | None:
        """An array of the framework, or NumPy's, as NumPy's; None if it is none."""

    @abc.abstractmethod
    def restore(self, array: np.ndarray, dtype: str) -> Any:
        """The array as programs take it.

        Args:
            dtype: by name, as it was before it was stored.
        """

    def pack(self, value: Any) -> tuple[Any, str] | None:
        """A value of the framework's own kind as (what can be stored, text about it); None if it is none."""
        return None

    def unpack(self, content: Any, about: str) -> Any:
        """What was packed.

        Raises:
            ValueError: for what this framework never packs.
        """
        raise ValueError(f"a value of kind {about!r} was stored by another backend")
