"""Curvature in a plane: Meusnier's relation, scales, the contour itself as a referee, and planes that cut nothing."""

import inspect
import math
from functools import partial

import pytest
import torch
from analytic import SMOOTH, bending, linear, normal, quadric, relu_net, sphere

from isoresponse.geometry import FlatHessianWarning
from isoresponse.jets import exact_jet, secant_jet, smoothed_jet
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.sections import plane_basis, sagitta_curvature, section, section_curvature

BENT = [make for make in SMOOTH if make is not linear]


def oblique(known, generator, lean=0.5):
    """A plane per case that leans away from the normal."""
    normals = exact_jet(known.neuron, known.point).normal
    lean = lean * torch.nn.functional.normalize(normal(*known.x.shape, generator=generator), dim=1)
    return plane_basis(normals + lean, normal(*known.x.shape, generator=generator))


@pytest.mark.parametrize("make", BENT)
@pytest.mark.parametrize("lean", [0.0, 0.5])
def test_meusnier(generator, make, lean):
    known = make(8, generator=generator)
    cut = section_curvature(known.neuron, known.point, oblique(known, generator, lean))
    jet = exact_jet(known.neuron, known.point)
    torch.testing.assert_close(cut.normal_curvature, bending(jet, cut.tangent), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(cut.curvature * cut.tilt.cos(), cut.normal_curvature, rtol=1e-12, atol=1e-12)
    assert (torch.einsum("cn,cn->c", cut.tangent, jet.normal).abs() < 1e-12).all()
    assert (cut.tilt > 0.01).all() if lean else (cut.tilt < 1e-7).all()


@pytest.mark.parametrize("degrees", [0.0, 30.0, 89.0])
def test_the_small_circles_of_a_ball(degrees):
    """A plane that leans by an angle cuts a circle of radius r cos(angle) out of a sphere of radius r."""
    angle = math.radians(degrees)
    x = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)
    rise = torch.tensor([[0.0, math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    basis = plane_basis(rise, torch.tensor([[1.0, 0, 0]], dtype=torch.float64))
    cut = section_curvature(Neuron(lambda z: -z.norm(dim=1), (3,)), x, basis)
    assert float(cut.curvature) == pytest.approx(1 / (2 * math.cos(angle)), rel=1e-10)
    assert float(cut.normal_curvature) == pytest.approx(0.5, rel=1e-10)
    assert float(cut.tilt) == pytest.approx(angle, abs=1e-12)


@pytest.mark.parametrize("make", BENT)
def test_the_contour_itself_agrees(generator, make):
    known = make(8, generator=generator)
    basis = oblique(known, generator, 0.2)
    exact = section_curvature(known.neuron, known.point, basis)
    seen = sagitta_curvature(known.neuron, known.point, basis, scale=2e-3)
    found = seen.status == int(Status.DONE)
    assert found.double().mean() > 0.8
    assert ((seen.curvature - exact.curvature).abs() <= 2 * seen.error + 1e-5)[found].all()
    torch.testing.assert_close(seen.curvature[found], exact.curvature[found], rtol=1e-3, atol=1e-3)
    across = (seen.tangent * exact.tangent).sum(1).abs()
    torch.testing.assert_close(across[found], torch.ones_like(across[found]), rtol=0, atol=1e-4)


def test_a_finite_scale_sees_the_bending_of_a_network_of_relus(generator):
    net = Neuron.of(relu_net(generator=generator), shape=(6,))
    x = normal(10, 6, generator=generator)
    basis = plane_basis(net.value_and_grad(x)[1], normal(10, 6, generator=generator))
    with pytest.warns(FlatHessianWarning, match="says nothing about bending"):
        assert (section_curvature(net, x, basis).curvature == 0).all()
    for jet in (partial(secant_jet, scale=0.8), partial(smoothed_jet, scale=0.8, samples=500, generator=generator)):
        seen = section_curvature(net, x, basis, jet=jet)
        assert (seen.curvature.abs() > 1e-4).any()
        assert (seen.error > 0).all()
        assert (seen.scale == 0.8).all()


def test_a_plane_that_touches_the_contour_cuts_no_line(generator):
    known = sphere(3, 5, generator=generator)
    normals = exact_jet(known.neuron, known.point).normal
    first, second = normal(2, 3, 5, generator=generator)
    flat = [v - (v * normals).sum(1, keepdim=True) * normals for v in (first, second)]
    flat[0][1] += normals[1]
    cut = section_curvature(known.neuron, known.point, plane_basis(*flat))
    assert cut.status.tolist() == [int(Status.UNDEFINED), int(Status.DONE), int(Status.UNDEFINED)]
    assert cut.curvature.isnan().tolist() == [True, False, True]


def test_flat_and_broken_cases_and_the_neighbours(generator):
    neuron = Neuron(lambda x: x.square().sum(1) * torch.where(x[:, 0] > 5, torch.nan, 1.0), (4,))
    x = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [6, 0, 0, 0]], dtype=torch.float64)
    basis = plane_basis(x + 1, normal(3, 4, generator=generator))
    expected = [int(s) for s in (Status.DONE, Status.FLAT, Status.NOT_FINITE)]
    cut = section_curvature(neuron, x, basis)
    assert cut.status.tolist() == expected
    assert cut.curvature.isnan().tolist() == [False, True, True]
    seen = sagitta_curvature(neuron, x, basis, scale=0.01)
    assert seen.curvature.isnan().tolist()[2]
    assert int(seen.status[0]) == int(Status.DONE)


def test_a_section_is_the_neuron_on_plane_coordinates(generator):
    known = quadric(4, generator=generator)
    basis = plane_basis(*normal(2, 4, 6, generator=generator))
    c = normal(4, 2, generator=generator)
    flat = section(known.neuron, known.x, basis)
    torch.testing.assert_close(flat.value(c), known.neuron.value(known.x + torch.einsum("ci,cin->cn", c, basis)))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda f, x: plane_basis(x, -2 * x), r"within 0\.001 rad of parallel in 3 of 3 cases"),
        (lambda f, x: plane_basis(x, 0 * x), "finite and not zero in every case"),
        (lambda f, x: inspect.unwrap(plane_basis)(x, x[:2]), "one shape"),
        (
            lambda f, x: section(f, x, torch.ones(3, 2, 6).double()),
            "orthonormal pairs of directions, got pairs that are not",
        ),
        (lambda f, x: inspect.unwrap(section)(f, x, torch.ones(3, 6).double()), r"basis must have shape \(3, 2, 6\)"),
        (
            lambda f, x: sagitta_curvature(f, x, plane_basis(x, x + 1), scale=0.0),
            "scale must be positive and finite, got 0.0",
        ),
    ],
)
def test_planes_that_are_none_are_refused(generator, ask, message):
    known = quadric(3, generator=generator)
    with pytest.raises(ValueError, match=message):
        ask(known.neuron, known.x)


def test_a_scale_that_leaves_the_box_in_the_plane_is_too_wide():
    neuron = Neuron(lambda x: x.square().sum(1), (3,), Box(0.0, 1.0))
    x = torch.full((1, 3), 0.5, dtype=torch.float64)
    basis = plane_basis(x, torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64))
    cut = section_curvature(neuron, x, basis, jet=partial(secant_jet, scale=50.0))
    assert cut.status.tolist() == [int(Status.TOO_WIDE)]
    assert cut.curvature.isnan().all()


def test_an_arc_hidden_by_rounding_is_not_straight():
    neuron = Neuron(lambda x: 1e3 - x.square().sum(1), (2,))
    x = torch.tensor([[0.0, 0.5]])
    basis = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    for scale in (0.1, 0.01, 0.003):
        seen = sagitta_curvature(neuron, x, basis, scale=scale)
        assert abs(float(seen.curvature) - 2) <= float(seen.error)


def test_tiny_and_huge_directions_span_planes():
    for size in (1e-22, 1e20):
        first, second = size * torch.tensor([[1.0, 1, 0]]), size * torch.tensor([[0.0, 1, 0]])
        basis = plane_basis(first, second)
        torch.testing.assert_close(basis @ basis.transpose(1, 2), torch.eye(2)[None], rtol=0, atol=1e-6)
