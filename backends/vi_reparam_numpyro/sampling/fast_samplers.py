"""NumPyro's own distributions, drawn by our loops."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from vi_reparam_numpyro.sampling.random import draw

Array = Any

_on: ContextVar[bool] = ContextVar("fast_samplers", default=False)
_lock = threading.Lock()
_users = 0
_own: dict[type, Callable[..., Array]] = {}


def _gamma(d: Any, key: Any, lanes: tuple[int, ...]) -> Array:
    return draw("gamma", key, lanes, d.concentration, d.rate)


def _beta(d: Any, key: Any, lanes: tuple[int, ...]) -> Array:
    return draw("beta", key, lanes, d.concentration1, d.concentration0)


def _dirichlet(d: Any, key: Any, lanes: tuple[int, ...]) -> Array:
    x = draw("dirichlet", key, lanes, d.concentration)
    info = jnp.finfo(x.dtype)
    return jnp.clip(x, info.tiny, 1.0 - info.eps)  # as NumPyro's


def _student_t(d: Any, key: Any, lanes: tuple[int, ...]) -> Array:
    return draw("student_t", key, lanes, d.df, d.loc, d.scale)


_DRAWS: dict[type, Callable[[Any, Any, tuple[int, ...]], Array]] = {
    dist.Gamma: _gamma,  # InverseGamma and Chi2 draw through it
    dist.Beta: _beta,
    dist.Dirichlet: _dirichlet,
    dist.StudentT: _student_t,
}


def _sampler(kind: type, own: Callable[..., Array]) -> Callable[..., Array]:
    def sample(self: Any, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        if not _on.get():  # another thread's
            return own(self, key, sample_shape)
        return _DRAWS[kind](self, key, tuple(sample_shape) + self.batch_shape)

    sample.__doc__ = own.__doc__
    return sample


@contextlib.contextmanager
def fast_samplers() -> Iterator[None]:
    """NumPyro's Gamma, Beta, Dirichlet, InverseGamma, Chi2 and StudentT draw through `vr.random` inside.

    An existing program is faster with one line, and what is built on these (Predictive, a
    sampler's starting points, mixtures) with it; it draws from the same laws, other numbers.
    Also a decorator; it nests, other threads are left alone, and on exit everything is as it was.

    What JAX compiled outside keeps its samplers inside, and the other way round: enter before
    the first call of a jitted function.
    """
    global _users
    with _lock:
        if not _users:
            for kind in _DRAWS:
                _own[kind] = kind.sample  # type: ignore[attr-defined]
                kind.sample = _sampler(kind, _own[kind])  # type: ignore[attr-defined]
        _users += 1
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)
        with _lock:
            _users -= 1
            if not _users:
                for kind, own in _own.items():
                    kind.sample = own  # type: ignore[attr-defined]
                _own.clear()
