"""The contract's laws run in double precision and without rank promotion, whoever runs them."""

import contextlib

import pytest

with contextlib.suppress(ImportError):
    import jax

    jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True)
def strict_ranks():
    """Broadcasting between arrays of different rank is an error in these tests."""
    try:
        import jax
    except ImportError:
        yield
        return
    with jax.numpy_rank_promotion("raise"):
        yield
