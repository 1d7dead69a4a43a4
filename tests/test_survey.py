"""Many planes at once: what one plane says, said of all of them, as a labelled table."""

from functools import partial

import pytest
import torch
from analytic import normal, relu_net

from isoresponse.directions import random_directions
from isoresponse.jets import secant_jet
from isoresponse.loop import Status
from isoresponse.models.basic import OutwardBent, Straight
from isoresponse.neuron import Neuron
from isoresponse.records import read_store, to_dataset, write_store
from isoresponse.survey import SurveyGrid, survey_planes

GRID = SurveyGrid(reach=2.0, size=30)


@pytest.fixture
def pair(generator):
    phi = normal(2, 6, generator=generator)
    neurons = [
        Neuron.of(Straight(phi[0]), shape=(6,), name="straight"),
        Neuron.of(OutwardBent(phi[1], bend=0.8, width=0.8), shape=(6,), name="bent"),
    ]
    second = torch.stack([random_directions(4, orthogonal_to=p, generator=generator) for p in phi])
    return neurons, phi, second


def test_straight_contours_are_straight_and_bent_ones_bent_in_every_plane(pair):
    neurons, phi, second = pair
    oblique = second + phi[:, None] * 0.5
    seen = survey_planes(
        neurons, phi, {"random": second, "oblique": oblique[:, :2]}, grid=GRID, jet=partial(secant_jet, scale=1e-3),
        progress=False,
    )  # fmt: skip
    assert seen.curvature.shape == (2, 6)
    assert seen.curvature[0].abs().max() < 1e-9
    torch.testing.assert_close(seen.curvature[1], torch.full((6,), 1.0, dtype=torch.float64), rtol=1e-4, atol=0)
    assert (seen.error[1] < 1e-3).all()
    assert seen.tilt.abs().max() < 1e-6  # the planes hold the normal
    torch.testing.assert_close(seen.distance, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(seen.level, torch.ones(2, dtype=torch.float64))
    assert seen.iso_response[0].abs().max() < 1e-9
    assert (seen.published_curvature[1] > 0.3).all()
    assert (seen.published_curvature[1] < 1.0).all()  # the fit sees the chevron's straight arms too
    assert seen.estimator == "secant"
    assert seen.of("oblique").curvature.shape == (2, 2)


def test_the_table_is_labelled_and_survives_a_store(pair, tmp_path):
    neurons, phi, second = pair
    seen = survey_planes(neurons[1:], phi[1:], {"random": second[1:]}, grid=GRID, progress=False)
    table = to_dataset(seen, coords=seen.coords)
    assert table["curvature"].dims == ("neuron", "plane")
    assert table["neuron"].values.tolist() == ["bent"]
    assert set(table["family"].values) == {"random"}
    write_store(table, tmp_path / "survey.zarr")
    assert read_store(tmp_path / "survey.zarr")["curvature"].equals(table["curvature"])


def test_neurons_that_do_not_rise_have_a_status_and_others_go_on(pair):
    neurons, phi, second = pair
    falling = Neuron(lambda x: -(x @ phi[0]), (6,), name="falling")
    seen = survey_planes(
        [falling, neurons[1]], phi, {"random": second}, grid=GRID, jet=partial(secant_jet, scale=0.1), progress=False
    )
    assert (seen.status[0] == int(Status.UNREACHABLE)).all()
    assert seen.curvature[0].isnan().all()
    assert torch.isfinite(seen.curvature[1]).all()
    alone = survey_planes(
        neurons[1:], phi[1:], {"random": second[1:]}, grid=GRID, jet=partial(secant_jet, scale=0.1), progress=False
    )
    torch.testing.assert_close(alone.curvature[0], seen.curvature[1], rtol=0, atol=1e-14)


def test_a_network_of_relus_bends_at_a_scale(generator):
    net = relu_net(generator=generator)
    neuron = Neuron.of(net, shape=(6,))
    phi = neuron.value_and_grad(torch.zeros(1, 6, dtype=torch.float64))[1]
    second = random_directions(5, orthogonal_to=phi[0], generator=generator)[None]
    seen = survey_planes(
        [neuron], phi, {"random": second}, grid=GRID, jet=partial(secant_jet, scale=0.5), progress=False
    )
    assert (seen.curvature.abs() > 1e-4).any()
    assert (seen.error > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": []}, "needs neurons and families of planes, got 0 and 1"),
        ({"seconds": {}}, "needs neurons and families of planes, got 2 and 0"),
        ({"seconds": {"a": torch.ones(2, 3, 5).double()}}, r"directions 'a' must have shape .* got \(2, 3, 5\)"),
        ({"exciting": torch.ones(2, 5).double()}, r"exciting must have shape \(2, 6\), one input per neuron"),
        (
            {"grid": SurveyGrid(reach=2.0, origin=torch.ones(5).double())},
            r"origin must have the shape .* \(6,\), got \(5,\)",
        ),
    ],
)
def test_surveys_that_do_not_fit_are_refused(pair, unchecked, change, message):
    neurons, phi, second = pair
    settings = {"neurons": neurons, "exciting": phi, "seconds": {"random": second}, "grid": GRID} | change
    with pytest.raises(ValueError, match=message):
        unchecked(survey_planes)(settings.pop("neurons"), settings.pop("exciting"), settings.pop("seconds"), **settings)


def test_parallel_directions_span_no_plane(pair):
    neurons, phi, _ = pair
    with pytest.raises(ValueError, match=r"within 0\.001 rad of parallel in 1 of 1 cases"):
        survey_planes(neurons, phi, {"same": -phi[:, None]}, grid=GRID, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reach": 0.0}, "reach must be positive"),
        ({"reach": 1.0, "size": 2}, "size must be at least 3"),
        ({"reach": 1.0, "level": 1.0}, "level must be between 0 and 1"),
        ({"reach": 1.0, "unit": 0.0}, "unit must be positive"),
    ],
)
def test_grids_of_no_use_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SurveyGrid(**settings)


def test_directions_of_failed_attacks_have_a_status_and_the_other_planes_go_on(pair):
    neurons, phi, second = pair
    spoilt = second.clone()
    spoilt[1, 0] = torch.nan
    spoilt[1, 2] = 0
    dead = phi.clone()
    dead[0] = 0
    seen = survey_planes(
        neurons, dead, {"attack": spoilt}, grid=GRID, jet=partial(secant_jet, scale=1e-3), progress=False
    )
    undefined = int(Status.UNDEFINED)
    assert seen.status[1].tolist() == [undefined, 1, undefined, 1]
    assert seen.published_status[1].tolist() == [undefined, 1, undefined, 1]
    assert (seen.status[0] == undefined).all()
    assert seen.curvature[1].isnan().tolist() == [True, False, True, False]
    assert seen.iso_response[0].isnan().all()


def test_the_estimator_stays_with_the_table(pair):
    neurons, phi, second = pair
    seen = survey_planes(neurons, phi, {"a": second}, grid=GRID, jet=partial(secant_jet, scale=0.1), progress=False)
    assert to_dataset(seen, coords=seen.coords).attrs["estimator"] == "secant"
