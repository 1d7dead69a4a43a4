"""Spacing along ways, greedy paths against closest points, and fast marching as a referee."""

import numpy as np
import pytest
import torch

import isoresponse as iso
from isoresponse.marching import marching_distance


def hills(x):
    """A wide hill, whose flank is greedily climbed, and a narrow one, nearer, behind a valley."""
    return torch.exp(-(x - 3).square().sum(1) / 8) + torch.exp(-(x + 1.3).square().sum(1))


TWO = iso.Neuron(hills, (2,), iso.Box(-2.0, 6.0))
START = torch.tensor([[0.3, 0.4], [2.0, 1.0]], dtype=torch.float64)


def test_the_profile_of_a_cone_and_of_a_bowl():
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    cone = iso.spacing_profile(iso.Neuron(lambda z: 2 * z.norm(dim=1), (2,)), iso.straight_way(x, 3 * x, knots=5))
    torch.testing.assert_close(cone.spacing, torch.full((2, 5), 0.5).double())
    torch.testing.assert_close(cone.along, cone.spacing)
    torch.testing.assert_close(cone.arclength[:, -1], 2 * x.norm(dim=1))
    bowl = iso.spacing_profile(iso.Neuron(lambda z: z.square().sum(1), (2,)), iso.straight_way(x, 3 * x, knots=5))
    torch.testing.assert_close(bowl.spacing, 1 / (2 * x.norm(dim=1)[:, None] * torch.linspace(1, 3, 5).double()))
    torch.testing.assert_close(bowl.narrowest, 1 / (6 * x.norm(dim=1)))
    assert (bowl.dip == 0).all()


def test_along_a_slanted_way_a_response_unit_costs_more_and_downhill_it_is_negative():
    plane = iso.Neuron(lambda z: z[:, 0], (2,))
    x = torch.zeros(2, 2, dtype=torch.float64)
    end = torch.tensor([[1.0, 1.0], [-2.0, 0.0]], dtype=torch.float64)
    told = iso.spacing_profile(plane, iso.straight_way(x, end, knots=3))
    torch.testing.assert_close(told.spacing, torch.ones(2, 3).double())
    torch.testing.assert_close(told.along[0], torch.full((3,), 2**0.5).double())
    torch.testing.assert_close(told.along[1], -torch.ones(3).double())
    assert told.dip.tolist() == [0.0, 2.0]


def test_on_a_steepest_path_both_spacings_are_one_and_the_box_takes_part():
    path = iso.gradient_path(TWO, START, 0.8, knots=41)
    told = iso.spacing_profile(TWO, path.points)
    torch.testing.assert_close(told.along[:, 1:-1], told.spacing[:, 1:-1], rtol=1e-2, atol=0)
    torch.testing.assert_close(told.response, path.responses)
    walled = iso.Neuron(lambda z: 3 * z[:, 0] + 4 * z[:, 1], (2,), iso.Box(0.0, 1.0))
    at = torch.tensor([[1.0, 0.2]], dtype=torch.float64)
    told = iso.spacing_profile(walled, iso.straight_way(at, at + torch.tensor([[0.0, 0.4]])))
    torch.testing.assert_close(told.spacing, torch.full((1, 21), 0.25).double())  # the first element cannot rise


def test_knots_beyond_an_end_are_nan():
    points = iso.straight_way(START, START + 1, knots=4)
    points[1, 2:] = torch.nan
    told = iso.spacing_profile(TWO, points)
    assert torch.isfinite(told.spacing[0]).all()
    assert told.spacing[1].isnan().tolist() == [False, False, True, True]
    assert torch.isfinite(told.narrowest).all()


def test_a_greedy_path_loses_to_the_hill_behind_the_valley():
    exact = iso.closest_point_on_grid(TWO, START, 0.8)
    found = iso.greedy_against_closest(TWO, START, 0.8, known=exact)
    torch.testing.assert_close(found.d_global, exact.distance)
    assert (found.greedy >= found.reach - 1e-9).all()
    assert (found.reach >= found.d_local - 1e-9).all()
    assert float(found.greedy_excess[0]) == pytest.approx(2.41 / 1.8356, rel=0.01)
    assert float(found.greedy_excess[1]) == pytest.approx(1.0, rel=1e-3)  # on the near flank nothing is lost
    way = iso.spacing_profile(TWO, iso.straight_way(START, found.closest))
    assert way.dip[0] > 0  # down first
    assert way.dip[1] == 0
    assert way.narrowest[0] < 0.6 * iso.spacing_profile(TWO, found.points).narrowest[0]  # then up a cliff
    assert "2 of 2 cases judged" in repr(found)


def test_further_starts_stand_in_where_there_is_no_grid(generator):
    exact = iso.closest_point_on_grid(TWO, START, 0.8)
    found = iso.greedy_against_closest(TWO, START, 0.8, starts=5, budget=60, generator=generator)
    torch.testing.assert_close(found.d_global, exact.distance, rtol=1e-3, atol=0)
    assert found.local_excess[0] > 1.2


def test_a_path_that_ends_on_a_lower_hill_is_infinitely_long():
    low = iso.Neuron(
        lambda x: 0.5 * torch.exp(-x.square().sum(1)) + torch.exp(-(x - 4).square().sum(1)), (2,), iso.Box(-2.0, 6.0)
    )
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    found = iso.greedy_against_closest(low, x, 0.8, known=iso.closest_point_on_grid(low, x, 0.8))
    assert torch.isinf(found.greedy).all()
    assert torch.isinf(found.greedy_excess).all()
    assert torch.isfinite(found.d_global).all()


def test_refusals():
    with pytest.raises(ValueError, match="with at least 2 knots, got"):
        iso.spacing_profile(TWO, START[:, None])
    with pytest.raises(ValueError, match=r"points must have shape \(case, knot, 2\)"):
        iso.spacing_profile(TWO, START)
    with pytest.raises(ValueError, match="a way needs 2 knots and ends of one shape"):
        iso.straight_way(START, START, knots=1)
    with pytest.raises(ValueError, match="more than 1 need a generator"):
        iso.greedy_against_closest(TWO, START, 0.8)


# --- fast marching


def test_marching_finds_the_distance_to_a_disc_to_a_cell():
    errors = []
    for size in (41, 81):
        t = np.linspace(-2, 2, size)
        x, y = np.meshgrid(t, t)
        r = np.hypot(x - 0.1, y + 0.2)
        told = marching_distance(-r, -0.7, (t[1] - t[0], t[1] - t[0]))
        errors.append(np.abs(told - np.maximum(r - 0.7, 0)).max())
        assert errors[-1] < t[1] - t[0]
    assert errors[1] < 0.8 * errors[0]


def test_cells_that_are_not_square_and_a_speed():
    x, y = np.meshgrid(np.arange(9) * 0.5, np.arange(5) * 2.0)
    told = marching_distance(-y, 0.0, (0.5, 2.0))
    np.testing.assert_allclose(told, y)
    np.testing.assert_allclose(marching_distance(-x, 0.0, (0.5, 2.0), speed=np.full(x.shape, 4.0)), x / 4)
    assert np.isinf(marching_distance(-y, 5.0, (0.5, 2.0))).all()


def test_the_grid_search_and_marching_agree():
    t = np.linspace(-2, 6, 161)
    grid = torch.as_tensor(np.stack(np.meshgrid(t, t), -1).reshape(-1, 2))
    told = marching_distance(TWO.value(grid).reshape(161, 161).numpy(), 0.8, (t[1] - t[0], t[1] - t[0]))
    nodes = [(46, 48), (80, 60), (20, 120)]
    x = torch.tensor([[t[j], t[i]] for i, j in nodes])
    exact = iso.closest_point_on_grid(TWO, x, 0.8)
    np.testing.assert_allclose([told[n] for n in nodes], exact.distance.numpy(), atol=t[1] - t[0])


def test_marching_refuses_what_is_no_grid():
    with pytest.raises(ValueError, match="marching needs a finite grid"):
        marching_distance(np.zeros(3), 0.0, (1.0, 1.0))
    with pytest.raises(ValueError, match="cell must be two positive lengths"):
        marching_distance(np.zeros((3, 3)), 0.0, (1.0, 0.0))
    with pytest.raises(ValueError, match="speed must be positive"):
        marching_distance(np.zeros((3, 3)), 0.0, (1.0, 1.0), speed=np.zeros((3, 3)))
