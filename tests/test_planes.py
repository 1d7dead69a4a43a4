"""Planes through input space, responses on them in raw units, their contours in input units."""

import math

import pytest
import torch
from analytic import bending, normal, quadric

from isoresponse.jets import exact_jet
from isoresponse.neuron import Box, Neuron
from isoresponse.planes import Plane, contours, response_surface


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def plane(generator):
    return Plane.spanning(*normal(3, 2, 3, generator=generator))


@pytest.fixture
def flat():
    """The plane of the two axes of a two-dimensional input space."""
    return Plane.spanning(vector(0, 0), vector(3, 0), vector(1, 1))


# --- the plane


@pytest.mark.parametrize("angle", [1.0, 0.01, 0.0011])
def test_the_basis_is_orthonormal_however_narrow_the_angle(generator, angle):
    u, side = normal(2, 40, generator=generator)
    u, side = u / u.norm(), side - (side @ u) / (u @ u) * u
    v = math.cos(angle) * u + math.sin(angle) * side / side.norm()
    plane = Plane.spanning(torch.zeros(40, dtype=torch.float64), 7 * u, 0.1 * v)
    torch.testing.assert_close(plane.basis @ plane.basis.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(plane.basis[0], u)
    assert plane.basis[1] @ v > 0


def test_the_basis_is_orthonormal_in_float32():
    plane = Plane.spanning(torch.zeros(3), torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 2e-3, 0]))
    torch.testing.assert_close(plane.basis @ plane.basis.T, torch.eye(2), rtol=0, atol=1e-6)


def test_coordinates_survive_the_way_to_inputs_and_back(plane, generator):
    coordinates = normal(9, 2, generator=generator)
    inputs = plane.inject(coordinates)
    assert inputs.shape == (9, 2, 3)
    torch.testing.assert_close(plane.project(inputs), coordinates)
    distances = (inputs - plane.origin).flatten(1).norm(dim=1)
    torch.testing.assert_close(distances, coordinates.norm(dim=1))  # coordinates are lengths in input units


def test_projecting_gives_the_nearest_point_of_the_plane(plane, generator):
    x = normal(5, 2, 3, generator=generator)
    foot = plane.inject(plane.project(x))
    torch.testing.assert_close(plane.project(foot), plane.project(x))
    assert ((x - foot).flatten(1) @ plane.basis.T).abs().max() < 1e-14


def test_both_given_directions_lie_in_the_plane(generator):
    origin, u, v = normal(3, 5, generator=generator)
    plane = Plane.spanning(origin, u, v)
    for x in (origin, origin + u, origin + v, origin + 2 * u - 3 * v):
        torch.testing.assert_close(plane.inject(plane.project(x[None]))[0], x)


A = vector(1, 2, 2)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (A, A, "within 0.001 rad of parallel"),
        (A, -3 * A, "within 0.001 rad of parallel"),
        (A, A + 1e-4 * vector(1, 0, 0), "within 0.001 rad of parallel"),
        (A, 0 * A, "finite and not zero"),
        (0 * A, A, "finite and not zero"),
        (A, A * float("nan"), "finite and not zero"),
        (A, A * float("inf"), "finite and not zero"),
        (A, vector(1, 2), r"one shape, got \(3,\), \(3,\) and \(2,\)"),
    ],
)
def test_directions_that_span_no_plane_are_refused(unchecked, first, second, message):
    with pytest.raises(ValueError, match=message):
        unchecked(Plane.spanning.__func__)(Plane, torch.zeros(3, dtype=torch.float64), first, second)


# --- the surface


def test_responses_are_those_of_the_neuron_in_its_own_units(plane, generator):
    neuron = Neuron(lambda x: 1000 + 300 * x.flatten(1).square().sum(1), (2, 3))
    view = response_surface(neuron, plane, x=(-1.0, 2.0), y=(-0.5, 0.5), size=5)
    assert view.x.tolist() == [-1.0, -0.25, 0.5, 1.25, 2.0]
    assert view.y.tolist() == [-0.5, -0.25, 0.0, 0.25, 0.5]
    for row, b in enumerate(view.y):
        for column, a in enumerate(view.x):
            here = plane.origin + (a * plane.basis[0] + b * plane.basis[1]).reshape(2, 3)
            torch.testing.assert_close(view.response[row, column], neuron(here[None])[0])


@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_the_batch_size_does_not_matter(plane, batch_size):
    neuron = Neuron(lambda x: x.flatten(1).prod(1), (2, 3), Box(-1.0, 1.0))
    view = response_surface(neuron, plane, x=(-2.0, 2.0), y=(-2.0, 2.0), size=6)
    other = response_surface(neuron, plane, x=(-2.0, 2.0), y=(-2.0, 2.0), size=6, batch_size=batch_size)
    torch.testing.assert_close(view.response, other.response, rtol=1e-12, atol=0)
    assert torch.equal(view.inside, other.inside)


def test_inside_tells_where_the_box_is(flat):
    neuron = Neuron(lambda x: x.sum(1), (2,), Box(vector(-1, 0), vector(1, 0.5)))
    view = response_surface(neuron, flat, x=(-2.0, 2.0), y=(-1.0, 1.0), size=5)
    x_fits, y_fits = view.x.abs() <= 1, (view.y >= 0) & (view.y <= 0.5)
    assert torch.equal(view.inside, y_fits[:, None] & x_fits[None])


@pytest.mark.parametrize("degrees", [0.0, 20.0, 65.0, 90.0])
def test_tilt_is_the_angle_between_gradient_and_plane(degrees):
    angle = math.radians(degrees)
    w = vector(math.cos(angle) * 0.6, math.cos(angle) * 0.8, math.sin(angle))
    plane = Plane.spanning(torch.zeros(3, dtype=torch.float64), vector(1, 0, 0), vector(0, 1, 0))
    neuron = Neuron(lambda x: x @ (5 * w), (3,))
    view = response_surface(neuron, plane, x=(-1.0, 1.0), y=(-1.0, 1.0), size=2)
    assert float(torch.rad2deg(view.tilt)) == pytest.approx(degrees, abs=1e-5)


def test_where_the_gradient_vanishes_there_is_no_tilt(flat):
    view = response_surface(Neuron(lambda x: x.square().sum(1), (2,)), flat, x=(-1.0, 1.0), y=(-1.0, 1.0), size=3)
    assert view.tilt.isnan()


def test_a_tilted_cut_overstates_curvature_by_the_cosine(generator):
    """Meusnier: curvature seen in a plane, times the cosine of its tilt, is that of the hypersurface."""
    known = quadric(1, 5, generator=generator)
    x, neuron = known.point, known.neuron
    jet = exact_jet(neuron, x)
    draw = normal(2, 5, generator=generator)
    tangent = draw[0] - (draw[0] @ jet.normal[0]) * jet.normal[0]
    tangent = tangent / tangent.norm()
    plane = Plane.spanning(x[0], tangent, jet.normal[0] + 0.8 * draw[1])
    alone = Neuron(lambda z: neuron.response(z, *(g.expand(len(z), *g.shape[1:]) for g in neuron.given)), (5,))
    tilt = response_surface(alone, plane, x=(-1.0, 1.0), y=(-1.0, 1.0), size=2).tilt
    inside = exact_jet(Neuron(lambda c: alone(plane.inject(c)), (2,)), torch.zeros(1, 2, dtype=torch.float64))
    along = torch.stack([-inside.normal[:, 1], inside.normal[:, 0]], 1)
    seen = bending(inside, along)
    true = bending(jet, along @ plane.basis)
    torch.testing.assert_close(seen * torch.cos(tilt), true, rtol=1e-10, atol=0)
    assert tilt > 0.1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"size": 1}, "size >= 2 and increasing ranges, got size=1"),
        ({"x": (1.0, 1.0)}, "increasing ranges"),
        ({"y": (1.0, -1.0)}, "increasing ranges"),
        ({"y": (float("nan"), 1.0)}, "increasing ranges"),
    ],
)
def test_grids_without_points_are_refused(flat, how, message):
    neuron = Neuron(lambda x: x.sum(1), (2,))
    with pytest.raises(ValueError, match=message):
        response_surface(neuron, flat, **({"x": (-1.0, 1.0), "y": (-1.0, 1.0)} | how))


def test_a_plane_of_other_inputs_is_refused(flat):
    with pytest.raises(ValueError, match=r"inputs of shape \(2,\), the neuron of \(3,\)"):
        response_surface(Neuron(lambda x: x.sum(1), (3,)), flat, x=(-1.0, 1.0), y=(-1.0, 1.0))


# --- contours


def test_the_contour_of_a_linear_neuron_is_one_straight_line(flat):
    w = vector(3, 4)
    view = response_surface(Neuron(lambda x: x @ w, (2,)), flat, x=(-2.0, 2.0), y=(-2.0, 2.0), size=33)
    (line,) = contours(view, 2.5)
    torch.testing.assert_close(line @ w, torch.full((len(line),), 2.5, dtype=torch.float64), rtol=1e-12, atol=0)
    assert float((line @ w / 5).mean()) == pytest.approx(0.5)  # its distance from the origin, in input units
    assert line[:, 1].max() - line[:, 1].min() == pytest.approx(3 / 4 * (line[:, 0].max() - line[:, 0].min()))


def test_the_contour_of_a_circle_has_its_radius(flat):
    view = response_surface(Neuron(lambda x: -x.square().sum(1), (2,)), flat, x=(-2.0, 2.0), y=(-1.8, 1.8), size=201)
    (line,) = contours(view, -2.25)
    assert float((line.norm(dim=1) - 1.5).abs().max()) < 2e-4  # half a squared cell over the radius
    length = (line[1:] - line[:-1]).norm(dim=1).sum()
    assert float(length) == pytest.approx(2 * math.pi * 1.5, rel=1e-3)


def test_a_level_that_is_not_met_has_no_contour_and_two_hills_have_two(flat):
    neuron = Neuron(lambda x: -(x[:, 0].abs() - 1).square() - x[:, 1].square(), (2,))
    view = response_surface(neuron, flat, x=(-2.0, 2.0), y=(-1.0, 1.0), size=81)
    assert contours(view, 5.0) == []
    assert len(contours(view, -0.25)) == 2
