"""All that the core asks of a framework, on one page.

The core never imports a framework: an `Ops` reaches it as an argument, where noise is drawn, or by `ops_of`, from the
type of an array. `tests/contract` holds every backend to the same laws.
"""

# The docstring of a protocol's method is its body.
# pyright: reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

Array = Any
Key = Any
Shape = tuple[int, ...]
Params = Mapping[str, Array]
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
Held = Array | None
"""A value at which a draw is held, or None to draw it."""

State = TypeVar("State")
Body = Callable[[State, Any], tuple[State, Any]]
"""A step of a loop: from the state and a row to the new state and an output."""


@runtime_checkable
class Ops(Protocol):
    """What a framework must offer: array functions, a stop-gradient, keyed noise, two loops."""

    name: str
    """The backend's entry-point name, ``"numpyro"`` or ``"pyro"``."""

    array_module: str
    """Top-level module of the framework's arrays (``"jax"``, ``"torch"``): how `ops_of` finds it."""

    xp: Any
    """An array-API namespace (``jax.numpy``, ``array_api_compat.torch``)."""

    def gammaln(self, x: Array) -> Array:
        """log |Gamma(x)|, differentiable."""

    def digamma(self, x: Array) -> Array:
        """The derivative of `gammaln`, differentiable."""

    def log_ndtr(self, x: Array) -> Array:
        """Logarithm of the standard normal distribution function, differentiable."""

    def ndtri(self, p: Array) -> Array:
        """Quantile of the standard normal."""

    def stop_gradient(self, x: Array) -> Array:
        """The same value, seen as a constant by differentiation."""

    def refuse_gradient(self, message: str, value: Array, *operands: Any) -> Array:
        """`value`, which raises a `GradientError` if it is differentiated in anything behind it or `operands`."""

    def concrete(self, x: Array) -> Array | None:
        """The value of `x` if Python can know it now, differentiated or not; None inside jit or vmap."""

    def key(self, seed: int) -> Key:
        """A key from an integer seed."""

    def root_key(self) -> Key:
        """A new key from the framework's own randomness where a program runs: its seed handler or global state."""

    def fold_in(self, key: Key, number: int) -> Key:
        """A key of its own for each number, a Python integer."""

    def split(self, key: Key, num: int) -> list[Key]:
        """`num` independent keys."""

    def aux_key(self, key: Key) -> Key:
        """A key for noise independent of what `rejection_loop` or `split` make of `key`."""

    def normal(self, key: Key, shape: Shape, dtype: Any) -> Array:
        """Standard normal noise of this shape."""

    def uniform(self, key: Key, shape: Shape, dtype: Any) -> Array:
        """Uniform noise on (0, 1]: its logarithm is finite."""

    def poisson(self, key: Key, rate: Array, shape: Shape) -> Array:
        """Poisson draws of this shape in the dtype of `rate`; never differentiated."""

    def while_loop(self, cond: Callable[[State], Array], body: Callable[[State], State], state: State) -> State:
        """Repeat `body` while `cond`; never differentiated."""

    def rejection_loop(
        self, attempt: Callable[..., tuple[Array, Array]], key: Key, shape: Shape, params: Any, max_rounds: int
    ) -> Array:
        """Repeat proposals until each lane has one accepted; never differentiated.

        Args:
            attempt: ``attempt(key, lanes, *params)`` makes a proposal's noise, shape ``lanes + ...``,
                and whether it is accepted, shape ``lanes``; `lanes` may be any part of `shape`.
            shape: of the lanes.
            params: arrays of that shape.
            max_rounds: proposals a lane may make; one that is never accepted becomes NaN.

        Returns:
            The accepted noise. A lane's noise follows from the key, its place in `shape` and its own
            parameters: what other lanes hold does not change it.
        """

    def upcast(self, x: Array) -> Array | None:
        """``x`` in twice its precision, differentiably; None where that is not to be had, or costs much."""

    def with_slope(self, value: Array, parameter: Array, slope: Callable[[Array, Array], Array]) -> Array:
        """``value``, with the derivative ``slope(value, parameter)`` in `parameter`; computed only where asked for."""

    def scan(
        self, body: Body[State], state: State, xs: Any, *, checkpoint: bool = False, unroll: bool = False
    ) -> tuple[State, Any]:
        """Fold `body` over the leading axis of `xs`; differentiated, recomputing if `checkpoint`.

        With `unroll` a compiler sees the steps one after another instead of a loop, and may fuse them.
        """

    def float_dtype(self) -> Any:
        """The framework's default floating-point type."""

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """An array of the framework, on its default device; floating-point numbers in the default type unless told."""

    def to_numpy(self, x: Array) -> Any:
        """The array as NumPy's, out of differentiation."""

    def vmap(self, fn: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        """`fn` for each row of its arguments, trees of arrays; one with None in `in_axes` is the same for all rows."""

    def many(self, fn: Callable[[Key], Any], key: Key, num: int) -> Any:
        """`num` runs of ``fn(key)`` at once, each with its own noise; results have a leading axis."""

    def grad(self, fn: Callable[..., Array]) -> Callable[..., Any]:
        """The gradient of a scalar function in its first argument, a tree of arrays."""

    def jacobian(self, fn: Callable[[Array], Any], *, has_aux: bool = False) -> Callable[[Array], Any]:
        """The Jacobian of a function of a vector; with `has_aux`, `fn` gives (value, aux), and this (Jacobian, aux)."""

    def once(self, x: Array) -> Array:
        """The same array, of which a compiler sees that it is to be computed once, though many values use it."""

    def products(self, slope: Callable[[Array], Array], x: Array, seeds: Array) -> tuple[Array, Array]:
        """Rows of `seeds` times the derivative of a slope at a vector, a symmetric matrix; and the slope itself.

        Shapes ``[C, L]`` and ``[L]``.
        """

    def cholesky(self, a: Array) -> Array:
        """The lower triangular root of a matrix, shape ``[N, N]``; not finite where it has none. Nothing is raised."""

    def solve_triangular(self, a: Array, b: Array, *, lower: bool) -> Array:
        """x with a x = b, of a triangular matrix, shape ``[N, N]``, and a vector or matrix, shape ``[N, ...]``."""

    def compiled(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` as one program, traced once for all its uses, where the framework traces; itself elsewhere."""

    def form(self, tree: Any) -> Hashable:
        """Equal for trees of equal structure, shapes, dtypes and other values, at one default floating-point type."""

    def vjp(self, fn: Callable[..., tuple[Array, Any]], *trees: Any) -> tuple[Array, Callable[..., list[Any]], Any]:
        """The value of a function, and its pull-back, which may be called more than once.

        Args:
            fn: of trees of arrays; gives (array, a tree of arrays that is not differentiated).

        Returns:
            (the array; ``slopes(i, cotangent, leaves)``; the other tree). The slopes are those in the leaves of the
            i-th tree, None where there is none. A framework that differentiates by identity takes them in `leaves`,
            the arrays of that tree as the function used them.
        """

    def at_once(self) -> AbstractContextManager[Any]:
        """What runs inside is computed now, though a program around it be traced, and is not differentiated."""

    def tree_map(self, fn: Callable[..., Any], tree: Any, *others: Any) -> Any:
        """`fn` at every leaf of trees of the same form."""

    def tree_leaves(self, tree: Any) -> list[Any]:
        """The leaves of a tree, dictionaries by sorted key."""
