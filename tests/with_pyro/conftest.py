import os

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported, by whichever test

torch = pytest.importorskip("torch")
pyro = pytest.importorskip("pyro")


@pytest.fixture(autouse=True)
def double_precision_and_a_store_of_its_own():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(20170613)
    validating = torch.distributions.Distribution._validate_args
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(before)
    assert torch.distributions.Distribution._validate_args == validating, "left behind: validation of distributions"
