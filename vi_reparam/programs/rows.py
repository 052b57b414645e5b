"""One by one: for programs that read values in Python, which cannot run many times at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vi_reparam.backend.ops import Ops

NOT_AT_ONCE = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)
"""What frameworks raise where a program cannot run many times at once; what else is wrong is raised again."""


class OneByOne:
    """The same two functions as those of an `Ops`, as loops in Python."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops

    def vmap(self, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`fn` for each row of a tree of arrays."""

        def rows(tree: Any) -> Any:
            num = self.ops.tree_leaves(tree)[0].shape[0]
            return self._stacked([fn(self.ops.tree_map(lambda x, i=i: x[i], tree)) for i in range(num)])

        return rows

    def many(self, fn: Callable[[Any], Any], key: Any, num: int) -> Any:
        """`num` runs of ``fn(key)``, each with its own noise."""
        return self._stacked([fn(own) for own in self.ops.split(key, num)])

    def _stacked(self, found: list[Any]) -> Any:
        return self.ops.tree_map(lambda *rows: self.ops.xp.stack(rows), *found)
