"""Double precision, and no silent broadcasting between arrays of different rank, in every test."""

import contextlib

import pytest

with contextlib.suppress(ImportError):
    import jax

    jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True)
def strict_rank_promotion():
    """Broadcasting between arrays of different rank is an error."""
    try:
        import jax
    except ImportError:
        yield
        return
    with jax.numpy_rank_promotion("raise"):
        yield
