"""Fixtures of the tests of models, studies and command line (a pytest plugin): their own cache, one trained subject."""

import pytest

from isoresponse.models import digits as zoo
from isoresponse.studies.measure import Settings, measure
from isoresponse.studies.subject import load_subject


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The user's cache of trained models stays untouched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISORESPONSE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def digits(cache):
    return zoo.digits()


@pytest.fixture(scope="session")
def subject(cache):
    """The built-in MLP on the built-in digits."""
    return load_subject("digits-mlp")


@pytest.fixture(scope="session")
def study(subject):
    """Twelve of its digits, measured with a short referee."""
    return measure(subject, Settings(cases=12, seed=3, referee_steps=20))
