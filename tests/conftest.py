"""What every test file shares: one thread, seeded generators, one hypothesis profile."""

import inspect
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and types are checked at run time wherever users call; not in the loops below, where that would take longer than
# the tests themselves. Before anything of the library is imported.
INNER = {
    "approach",
    "contour",
    "crossing",
    "dual",
    "hooks",
    "loop",
    "marching",
    "neuron",
    "norms",
    "operators",
    "spectra",
}
SOURCE = Path(__file__).parent.parent / "src" / "isoresponse"
CHECKED = [f"isoresponse.{p.stem}" for p in SOURCE.iterdir() if p.stem not in INNER and not p.stem.startswith("__")]
install_import_hook(CHECKED, "typecheck.checker")

from studying import assert_refused, cache, digits, main, place, run, small, study, subject  # noqa: E402, F401  (fixtures)

torch.set_num_threads(1)

settings.register_profile("isoresponse", deadline=None, derandomize=True, database=None, max_examples=14)
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
