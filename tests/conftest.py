"""What every test file shares: one thread, seeded generators, one hypothesis profile."""

import inspect

import pytest
import torch
from hypothesis import settings
from studying import assert_refused, cache, digits, main, place, run, small, study, subject  # noqa: F401  (fixtures)

torch.set_num_threads(1)

settings.register_profile("isoresponse", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("isoresponse")


@pytest.fixture
def generator():
    """A fresh, seeded generator; nothing in the tests draws from the global one."""
    return torch.Generator().manual_seed(20)


@pytest.fixture
def unchecked():
    """Strip the type checker that the tests put round the library, to reach the library's own message.

    In a test run jaxtyping and beartype refuse wrong kinds before the function's own check can speak; a
    user, who has neither switched on, meets that check.
    """
    return inspect.unwrap
