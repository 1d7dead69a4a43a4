"""The study of spacing: a landscape with a known cliff behind a valley, networks, verdicts, and what is written."""

import numpy as np
import pytest
import torch
import xarray as xr

from isoresponse.classifier import Classifier
from isoresponse.models.elevation import ElevationMap
from isoresponse.neuron import Box
from isoresponse.studies import spacing
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import HOLDS, write_outcome

SMALL = spacing.Settings(starts=10, example_climb=0.25, resolution=32, steps=80, budget=40, places=2)


@pytest.fixture(scope="module")
def valley():
    """A long ramp in the east, a narrow steep wall in the west, a valley between them; nothing depends on the north."""
    east = np.linspace(0, 10, 81)
    profile = 60 * np.maximum(east - 2, 0) + 800 / (1 + np.exp(8 * (east - 0.9)))
    return ElevationMap(np.tile(profile, (41, 1)), (0.125, 0.125))


@pytest.fixture(scope="module")
def landscape(valley):
    return spacing.on_landscape(valley, "valley", SMALL)


def test_the_cliff_is_found_and_three_ways_to_measure_it_agree(landscape):
    _, example = landscape
    n = example.numbers
    assert n["dip_m"] > 0
    assert n["greedy_over_closest"] > 1.1
    assert n["closest_km"] <= n["local_km"] * (1 + 1e-6)
    assert n["closest_error_km"] < 1e-3
    assert n["marching_km"] == pytest.approx(n["closest_km"], abs=2 * n["cell_km"])
    assert n["narrowest_spacing_closest_m_per_m"] < 0.2 * n["narrowest_spacing_greedy_m_per_m"]
    assert float(example.closest[0]) < 2 < float(example.start[0])  # in the west, from the ramp


def test_the_example_starts_with_the_landscape_known(landscape, valley):
    """On a ramp of 60 m per km the greedy path is the climb over the slope."""
    _, example = landscape
    assert example.numbers["greedy_km"] == pytest.approx(example.numbers["climb_m"] / 60, rel=0.02)


def linear():
    net = torch.nn.Linear(4, 2).double()
    net.weight.data = torch.tensor([[1.0, -2.0, 0.5, 3.0], [-1.0, 1.0, 2.0, 0.5]]).double()
    x = torch.rand(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clf = Classifier.of(net, shape=(4,), box=Box(-9.0, 9.0))
    return Networks({"plane": clf}, x, clf.predict(x), "toy", {"plane": 1.0})


def test_a_linear_network_loses_nothing():
    (told,) = spacing.on_networks(linear(), SMALL)
    np.testing.assert_allclose(told.greedy_excess, 1.0, rtol=1e-5)
    np.testing.assert_allclose(told.local_excess, 1.0, rtol=2e-4)
    np.testing.assert_allclose(told.reach_excess, 1.0, rtol=1e-5)
    np.testing.assert_allclose(told.dip, 0.0, atol=1e-9)


def test_what_is_written(landscape, tmp_path):
    table, example = landscape
    dataset = xr.concat([table, *spacing.on_networks(linear(), SMALL)], "subject", join="outer")
    made = spacing.outcome(dataset, example)
    verdicts = {c.says.split(": ", 1)[0].split(") ")[1]: [] for c in made.claims}
    for c in made.claims:
        verdicts[c.says.split(": ", 1)[0].split(") ")[1]].append(c.verdict)
    assert verdicts["valley"][0] == HOLDS
    assert verdicts["toy"][0] != HOLDS
    numbers = write_outcome(made, tmp_path)
    assert numbers["cliff"]["landscape"] == "valley"
    for name in ("spacing.png", "cliff.png", "spacing.csv"):
        assert (tmp_path / "figures" / name).exists()
    row = dict(zip(numbers["table"]["columns"], numbers["table"]["rows"][1], strict=True))
    assert row["greedy path never arrives"] == 0.0
    assert row["greedy path over closest, median"] == pytest.approx(1.0, rel=1e-5)


def test_landscapes_are_those_of_the_folder(tmp_path):
    assert spacing.landscapes(None) == [None]
    assert spacing.landscapes(tmp_path) == [None]
    (tmp_path / "dem").mkdir()
    (tmp_path / "dem" / "a.npz").write_bytes(b"")
    assert [p.name for p in spacing.landscapes(tmp_path)] == ["a.npz"]
