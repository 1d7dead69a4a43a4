"""The walk along one contour: the change that changes nothing."""

import math

import pytest
import torch
from analytic import dot, linear, names, normal, quadric, relu_net, sphere, uniform

from isoresponse.neuron import Box, Neuron
from isoresponse.paths import iso_walk


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def passed(path):
    return torch.isfinite(path.points).flatten(2).all(2)


@pytest.mark.parametrize("step", [0.02, 0.1])
def test_on_a_sphere_the_walk_is_an_arc(step, generator):
    known = sphere(generator=generator)
    walk = iso_walk(known.neuron, known.point, normal(6, 5, generator=generator), step=step, knots=11)
    assert set(names(walk.status)) == {"DONE"}
    radius = 1 / known.curvatures[:, :1]
    _, centre = known.neuron.given
    away = (walk.points - centre[:, None]).norm(dim=2)
    torch.testing.assert_close(away, radius.expand(-1, 11), rtol=0, atol=2e-4 * step)
    first, last = walk.points[:, 0] - centre, walk.points[:, -1] - centre
    arc = radius[:, 0] * torch.arccos(dot(first, last) / radius[:, 0] ** 2)
    # a tangent step of length s, drawn back along the radius, covers the angle atan(s / r)
    torch.testing.assert_close(arc, 10 * radius[:, 0] * torch.atan(step / radius[:, 0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(arc, torch.full((6,), 10 * step, dtype=torch.float64), rtol=step**2, atol=0)


def test_the_response_does_not_change_and_the_gradient_is_always_across(generator):
    known = quadric(6, low=-0.9, high=5.0, generator=generator)
    step = 0.02 * known.distance.min().item()
    walk = iso_walk(known.neuron, known.point, normal(6, 6, generator=generator), step=step, knots=16)
    assert set(names(walk.status)) == {"DONE"}
    _, gradient = known.neuron.value_and_grad(known.point)
    accepted = 1.1e-3 * step * gradient.norm(dim=1, keepdim=True)
    assert (walk.drift.abs() <= accepted).all()
    here = torch.stack([known.neuron.value(p) for p in walk.points.unbind(1)], 1)
    assert ((here - known.level[:, None]).abs() <= accepted).all()
    assert torch.rad2deg((walk.orthogonality[:, 1:-1] - math.pi / 2).abs()).max() < 1.0
    torch.testing.assert_close(walk.arclength[:, -1], torch.full((6,), 15 * step).double(), rtol=1e-3, atol=0)


def test_on_a_plane_the_walk_is_straight_and_keeps_to_its_direction(generator):
    known = linear(generator=generator)
    direction = normal(6, 7, generator=generator)
    walk = iso_walk(known.neuron, known.x, direction, step=0.5, knots=4)
    _, normals = known.neuron.value_and_grad(known.x)
    tangent = direction - (dot(direction, normals) / dot(normals, normals))[:, None] * normals
    end = known.x + 1.5 * tangent / tangent.norm(dim=1, keepdim=True)
    torch.testing.assert_close(walk.points[:, -1], end, rtol=0, atol=1e-9)


def test_in_a_box_the_walk_slides_on_and_keeps_the_response():
    neuron = Neuron(lambda x: x.sum(1), (3,), Box(0.0, 1.0))
    x = vector(0.9, 0.5, 0.1)[None]
    walk = iso_walk(neuron, x, vector(1.0, 0.2, -0.1)[None], step=0.05, knots=9)
    assert names(walk.status) == ["DONE"]
    assert neuron.box.contains(walk.points[0]).all()
    torch.testing.assert_close(walk.responses, torch.full((1, 9), 1.5, dtype=torch.float64), rtol=0, atol=1e-5)
    assert float(walk.points[0, :, 0].max()) == 1.0  # along one wall,
    assert float(walk.points[0, -1, 2]) == 0.0  # then along another


def test_where_no_tangent_stays_in_the_box_the_walk_is_blocked():
    neuron = Neuron(lambda x: x.sum(1), (2,), Box(0.0, 1.0))
    walk = iso_walk(neuron, vector(0.8, 0.2)[None], vector(1, -1)[None], step=0.1, knots=6)
    assert names(walk.status) == ["BLOCKED"]
    assert passed(walk)[0].tolist() == [True] * 4 + [False] * 2
    torch.testing.assert_close(walk.points[0, 3], vector(1.0, 0.0))
    torch.testing.assert_close(walk.responses[0, :4], torch.ones(4, dtype=torch.float64))


def test_without_gradient_or_tangent_the_walk_does_not_start():
    neuron = Neuron(lambda x: x[:, 0].relu(), (2,))
    x = torch.tensor([[-1.0, 0], [1, 0], [1, 0]], dtype=torch.float64)
    along = torch.tensor([[0.0, 1], [1, 0], [0, 1]], dtype=torch.float64)
    walk = iso_walk(neuron, x, along, step=0.1, knots=3)
    assert names(walk.status) == ["FLAT", "BLOCKED", "DONE"]
    assert not passed(walk)[:2, 1:].any()
    torch.testing.assert_close(walk.points[2, -1], vector(1.0, 0.2))


def test_a_walk_on_a_network_is_the_same_alone(generator):
    net = relu_net(generator=generator)
    net[1] = torch.nn.GELU()
    neuron = Neuron.of(net, shape=(6,), box=Box(0.0, 1.0))
    x, along = uniform(4, 6, generator=generator), normal(4, 6, generator=generator)
    whole = iso_walk(neuron, x, along, step=0.03, knots=12)
    for i in range(4):
        alone = iso_walk(neuron, x[i : i + 1], along[i : i + 1], step=0.03, knots=12)
        torch.testing.assert_close(alone.points[0], whole.points[i], rtol=1e-9, atol=1e-9, equal_nan=True)
    kept = passed(whole)
    response = neuron.value(x)[:, None].expand(-1, 12)
    torch.testing.assert_close(whole.responses[kept], response[kept], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"step": 0.0}, r"positive step, got knots=3 and step=0\.0"),
        ({"step": float("nan")}, "positive step"),
        ({"step": 0.1, "knots": 1}, "knots >= 2 and a positive step, got knots=1"),
        ({"step": 0.1, "direction": torch.ones(1, 3)}, r"direction must have the shape of x, \(1, 2\), got \(1, 3\)"),
        ({"step": 0.1, "direction": torch.tensor([[float("nan"), 1.0]])}, "direction"),
        ({"step": 0.1, "x": torch.zeros(1, 3), "direction": torch.ones(1, 3)}, r"x must have shape \(case, 2\)"),
    ],
)
def test_walks_that_make_no_sense_are_refused(unchecked, how, message):
    how = {"x": torch.zeros(1, 2), "direction": torch.ones(1, 2), "knots": 3} | how
    with pytest.raises(ValueError, match=message):
        unchecked(iso_walk)(Neuron(lambda x: x.sum(1), (2,)), how.pop("x"), how.pop("direction"), **how)
