"""The essay's figures, as numbers."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from isoresponse.classifier import Classifier
from isoresponse.models.elevation import ElevationMap
from isoresponse.neuron import Box
from isoresponse.studies import figures, gallery
from isoresponse.studies.sizes import perturbation_sizes
from isoresponse.studies.terrain import ascent, load_elevation, topography

NAN = float("nan")


def test_region_shares_are_their_integrals():
    figure, numbers = figures.region(bend=1.0, width=0.35, size=400)
    assert isinstance(figure, Figure)
    assert numbers["straight"]["share_of_box"] == pytest.approx(0.5, abs=1e-12)
    w = 0.35
    root = math.sqrt(w * w + 1)  # integral of sqrt(w^2 + y^2) from 0 to 1
    share = (1 + w - 0.5 * (root + w * w * math.asinh(1 / w))) / 2
    assert numbers["bent"]["share_of_box"] == pytest.approx(share, abs=numbers["bent"]["error"])
    assert numbers["bent"]["error"] < 0.005
    assert numbers["bent_over_straight"] == pytest.approx(2 * numbers["bent"]["share_of_box"])


def test_without_bend_the_regions_are_one():
    _, numbers = figures.region(bend=0.0, size=60)
    assert numbers["bent_over_straight"] == 1.0


def test_the_straight_neurons_path_is_straight_and_the_bent_ones_ends_nearer_the_mei():
    figure, numbers = figures.neurons(knots=9)
    assert len(figure.axes) == 3
    straight, bent = numbers["straight"], numbers["bent"]
    assert straight["path_length"] == pytest.approx(7.0, abs=1e-6)
    assert straight["angle_perturbation_to_mei_end_deg"] == pytest.approx(0.0, abs=1e-3)
    assert straight["angle_input_to_mei_end_deg"] == pytest.approx(math.degrees(math.atan2(2.2, 8)), abs=1e-6)
    assert bent["angle_input_to_mei_end_deg"] < 0.1 * straight["angle_input_to_mei_end_deg"]
    assert bent["angle_perturbation_to_mei_end_deg"] > 5
    assert bent["angle_input_to_mei_start_deg"] == pytest.approx(straight["angle_input_to_mei_start_deg"])
    for row in (straight, bent):
        assert row["response_end"] - row["response_start"] == pytest.approx(7.0)
        assert row["largest_drift"] < 1e-5


@pytest.fixture
def pair():
    """Two classes split at the middle of the first of four elements, in the box [-1, 3]."""
    net = nn.Linear(4, 2, bias=True)
    net.weight.data, net.bias.data = torch.tensor([[-8.0, 0, 0, 0], [0, 0, 0, 0]]), torch.tensor([8.0, 0.0])
    return Classifier.of(nn.Sequential(nn.Flatten(), net), shape=(1, 2, 2), box=Box(-1.0, 3.0))


def test_sizes_are_shares_of_the_range_and_grey_levels(pair):
    x = torch.zeros(3, 1, 2, 2)
    after = x.clone()
    after[0, 0, 0, 0] = 1.6  # rounds to a level that is still across
    after[1, 0, 0, 0] = 1.0005  # rounds back to below 1
    after[2] = NAN
    sizes = perturbation_sizes(pair, x, after, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(sizes.rms[:2], torch.tensor([1.6 / 4 / 2, 1.0005 / 4 / 2]))
    torch.testing.assert_close(sizes.grey_levels[:2], 255 * sizes.rms[:2])
    assert sizes.rms[2].isnan()
    assert sizes.survives_8bit.tolist() == [True, bool(round(2.0005 / 4 * 255) / 255 * 4 - 1 > 1), False]


def test_sizes_need_a_range():
    clf = Classifier.of(nn.Linear(2, 2), shape=(2,))
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="sizes in grey levels need a finite box"):
        perturbation_sizes(clf, x, x, torch.zeros(1, dtype=torch.int64))


def test_the_triptych_says_what_it_shows(pair):
    x, labels = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    after = x.clone()
    after[:, 0, 0, 0] = torch.tensor([1.1, 2.2])
    figure, numbers = figures.triptych(pair, x, labels, after, [("near", 0), ("far", 1)])
    assert len(figure.axes) == 6
    assert numbers["near"]["l2"] == pytest.approx(1.1)
    assert (numbers["far"]["label"], numbers["far"]["answer"]) == (0, 1)
    assert numbers["far"]["confidence_before"] == pytest.approx(1 / (1 + math.exp(-8)), rel=1e-5)
    assert numbers["far"]["confidence_after"] == pytest.approx(1 / (1 + math.exp(8 - 8 * 2.2)), rel=1e-5)
    assert numbers["near"]["magnified"] == 2.0  # 2 / 1.1, rounded to a number one can say
    titles = " ".join(ax.get_title() for ax in figure.axes)
    assert "perturbation × 2" in titles
    assert "L2 1.100, r.m.s. 0.1375 = 35.1 grey levels" in titles


@pytest.mark.parametrize(
    ("distance", "picks"),
    [
        ([3.0, 1.0, 2.0], [("smallest", 1), ("median", 2), ("largest", 0)]),
        ([3.0, NAN, 1.0, 2.0, 9.0, NAN], [("smallest", 2), ("median", 3), ("largest", 4)]),
        ([NAN, 2.0, 1.0], [("smallest", 2), ("largest", 1)]),
        ([NAN, 2.0], [("smallest", 1)]),
        ([NAN, NAN], []),
    ],
)
def test_cases_to_show(distance, picks):
    assert figures.smallest_median_largest(torch.tensor(distance)) == picks


@pytest.mark.parametrize(("step", "nice"), [(0.9, 1.0), (17.0, 20.0), (0.024, 0.025), (4.1e6, 5e6), (7.6, 10.0)])
def test_steps_are_numbers_one_can_say(step, nice):
    assert figures.nice_step(step) == pytest.approx(nice)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_figure_is_the_same_file(tmp_path, suffix):
    for stem in ("a", "b"):
        figures.save(figures.region(size=30)[0], tmp_path / stem)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


# --- landscapes


@pytest.fixture(scope="module")
def cone():
    """A mountain of 1000 m with round contours in a square of 10 km."""
    at = np.linspace(-5, 5, 41)
    return ElevationMap(1000 * np.exp(-(at[:, None] ** 2 + at**2) / 12), (0.25, 0.25))


def test_on_a_round_mountain_the_steepest_path_is_straight_to_its_top(cone):
    figure, numbers = ascent(cone, "cone", starts=8, knots=11)
    assert isinstance(figure, Figure)
    assert numbers["summit_km"] == pytest.approx([5.0, 5.0])
    assert numbers["summit_m"] == pytest.approx(1000.0)
    assert numbers["share_reaching_the_summit"] == 1.0
    assert numbers["length_km"] == pytest.approx(numbers["straight_line_km"], rel=1e-3)
    assert numbers["median_angle_error_deg"] < 0.5
    assert numbers["end_m"] == pytest.approx(numbers["start_m"] + 0.98 * (1000 - numbers["start_m"]))


def test_a_map_is_cut_into_lines_at_a_stated_step(cone):
    figure, numbers = topography(cone, "cone")
    assert numbers["step_m"] == 100.0
    assert numbers["highest_m"] == pytest.approx(1000.0)
    assert "every 100 m" in figure.axes[0].get_title()


GRID = np.arange(30.0).reshape(5, 6)


@pytest.mark.parametrize(
    ("arrays", "cell"),
    [
        ({}, (0.01, 0.01)),
        ({"cell": 30.0}, (0.03, 0.03)),
        ({"lat": np.linspace(1, -1, 5), "lon": np.linspace(0, 5, 6)}, (111.32, 55.66)),
        ({"lat": np.linspace(-1, 1, 5), "lon": np.linspace(0, 5, 6)}, (111.32, 55.66)),
        ({"dx": 20.0, "dy": 40.0}, (0.02, 0.04)),
    ],
    ids=["unknown", "cell", "north to south", "south to north", "dx and dy"],
)
def test_cells_of_a_map_file_are_measured(tmp_path, arrays, cell):
    np.savez(tmp_path / "my_map.npz", elevation=GRID, **arrays)
    terrain, name = load_elevation(tmp_path / "my_map.npz")
    assert name == ("my map" if arrays else "my map (cells of 10 m assumed)")
    assert terrain.cell == pytest.approx(cell)
    rises_north = bool(terrain.grid[-1, 0] > terrain.grid[0, 0])
    assert rises_north == ("lat" in arrays and arrays["lat"][0] < 0)


# --- the gallery


def test_a_gallery_holds_its_figures_and_their_numbers(tmp_path):
    numbers = gallery.write_gallery(tmp_path, only=["region", "region"])
    assert {p.name for p in tmp_path.iterdir()} == {"region.png", "region.svg", "figures.json"}
    told = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert told["figures"] == numbers
    assert told["provenance"]["settings"] == {"seed": 0, "dem": None}


def test_the_triptych_of_the_gallery_is_of_real_digits(tmp_path):
    numbers = gallery.write_gallery(tmp_path, only=["triptych"])["triptych"]
    assert list(numbers) == ["smallest", "median", "largest"]
    assert all(row["label"] != row["answer"] for row in numbers.values())
    assert numbers["smallest"]["l2"] < numbers["median"]["l2"] < numbers["largest"]["l2"]
