"""Local geometry of contours: sign, closed forms, invariances, and honest errors."""

import warnings

import pytest
import torch
from analytic import (
    SMOOTH,
    bending,
    dot,
    energy,
    exp,
    frames,
    hollow,
    linear,
    normal,
    planes,
    quadric,
    relu_net,
    rotated,
    sphere,
    uniform,
)

from isoresponse.geometry import (
    FlatHessianWarning,
    local_geometry,
    normal_curvature,
    principal_curvatures,
    shape_operator,
)
from isoresponse.jets import exact_jet, secant_jet
from isoresponse.krylov import krylov_secants
from isoresponse.neuron import Box, Neuron

BENT = [make for make in SMOOTH if make is not linear]  # a linear neuron's exact Hessian vanishes, with a warning


def curvatures_of(neuron, x, generator, rank=None, **settings):
    rank = x.shape[1] - 1 if rank is None else rank
    return principal_curvatures(exact_jet(neuron, x), rank, generator=generator, **settings)


def composed(neuron, before=lambda x: x, after=lambda f: f):
    return Neuron(lambda x, *given: after(neuron.response(before(x), *given)), neuron.shape, given=neuron.given)


def test_the_sign_convention():
    """Round the high response (a ball to be entered): +1/r. Round the low response (a ball to be left): -1/r."""
    x = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)
    along = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    enter, leave = Neuron(lambda x: -x.norm(dim=1), (3,)), Neuron(lambda x: x.norm(dim=1), (3,))
    assert bending(exact_jet(enter, x), along).tolist() == [0.5]
    assert bending(exact_jet(leave, x), along).tolist() == [-0.5]
    saddle = Neuron(lambda x: x[:, 2] - x[:, 0].square() + 3 * x[:, 1].square(), (3,))
    seen = curvatures_of(saddle, 0 * x, torch.Generator())
    torch.testing.assert_close(seen.values, torch.tensor([[2.0, -6.0]], dtype=torch.float64))
    torch.testing.assert_close(seen.directions.abs()[0], torch.eye(3, dtype=torch.float64)[:2])


@pytest.mark.parametrize("make", BENT)
def test_principal_curvatures_in_closed_form(generator, make):
    known = make(10, generator=generator)
    seen = curvatures_of(known.neuron, known.point, generator)
    torch.testing.assert_close(seen.values, known.curvatures, rtol=1e-8, atol=1e-8)
    assert (seen.residuals < 1e-8).all()
    assert (seen.scale == 0).all()
    identity = torch.einsum("ckn,cln->ckl", seen.directions, seen.directions)
    torch.testing.assert_close(identity, torch.eye(identity.shape[1], dtype=torch.float64).expand_as(identity))


def test_float32_stays_float32_and_within_rounding(generator):
    known = quadric(10, generator=generator)
    single = known.to(torch.float32)
    seen = curvatures_of(single.neuron, single.point, generator)
    assert seen.values.dtype == seen.directions.dtype == torch.float32
    torch.testing.assert_close(seen.values.double(), known.curvatures, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [quadric, energy])
def test_the_shape_operator_is_the_dense_formula(generator, make):
    """-PHP/|g| with every matrix written out; its eigenvalues are the curvatures and one 0 for the normal."""
    known = make(6, generator=generator)
    jet = exact_jet(known.neuron, known.x)
    unit = jet.gradient / jet.gradient.norm(dim=1, keepdim=True)
    p = torch.eye(6, dtype=torch.float64) - unit[:, :, None] * unit[:, None]
    dense = -p @ jet.hessian.dense() @ p / jet.gradient.norm(dim=1)[:, None, None]
    torch.testing.assert_close(shape_operator(jet).dense(), dense, rtol=0, atol=1e-12)
    seen = principal_curvatures(jet, 5, generator=generator)
    with_normal = torch.cat([seen.values, torch.zeros(6, 1, dtype=torch.float64)], 1).sort(1).values
    torch.testing.assert_close(torch.linalg.eigvalsh(dense), with_normal, rtol=0, atol=1e-9)
    images = torch.einsum("cij,ckj->cki", dense, seen.directions)
    torch.testing.assert_close(images, seen.values[:, :, None] * seen.directions, rtol=0, atol=1e-8)
    for k in range(5):
        torch.testing.assert_close(bending(jet, seen.directions[:, k]), seen.values[:, k])


@pytest.mark.parametrize("make", BENT)
def test_curvature_turns_with_the_frame(generator, make):
    known = make(5, generator=generator)
    turn = frames(1, known.x.shape[1], generator=generator)[0]
    moved = rotated(known, turn)
    before, after = (curvatures_of(k.neuron, k.x, torch.Generator(), rank=2) for k in (known, moved))
    torch.testing.assert_close(after.values, before.values, rtol=1e-8, atol=1e-8)
    t = normal(*known.x.shape, generator=generator)
    here, there = exact_jet(known.neuron, known.x), exact_jet(moved.neuron, moved.x)
    torch.testing.assert_close(bending(there, t @ turn.T), bending(here, t), rtol=1e-9, atol=1e-10)
    turning = local_geometry(here).turning @ turn.T
    torch.testing.assert_close(local_geometry(there).turning, turning, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("make", BENT)
def test_translation_scaling_and_rescaling_of_the_response(generator, make):
    known = make(5, generator=generator)
    x, neuron = known.x, known.neuron
    t = normal(*x.shape, generator=generator)
    kappa = bending(exact_jet(neuron, x), t)
    shift = normal(x.shape[1], generator=generator)

    def measured(before, after, at):
        return bending(exact_jet(composed(neuron, before, after), at), t)

    def same(f):
        return f

    torch.testing.assert_close(measured(lambda z: z - shift, same, x + shift), kappa, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(measured(lambda z: z / 3, same, 3 * x), kappa / 3, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(measured(same, lambda f: torch.sinh(0.1 * f) + 2, x), kappa, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(measured(same, lambda f: -f, x), -kappa, rtol=1e-9, atol=1e-10)


def test_the_tangential_part_of_a_direction_counts(generator):
    known = quadric(6, generator=generator)
    jet = exact_jet(known.neuron, known.point)
    t = normal(6, 6, generator=generator)
    torch.testing.assert_close(bending(jet, 5 * t + 2 * jet.normal), bending(jet, t))
    assert bending(jet, 2 * jet.normal).isnan().all()


def test_the_largest_in_size_come_first_chosen_then_sorted(generator):
    known = quadric(10, 8, low=-0.9, high=2.0, generator=generator)
    seen = curvatures_of(known.neuron, known.point, generator, rank=3)
    largest = known.curvatures.gather(1, known.curvatures.abs().argsort(1, descending=True)[:, :3])
    torch.testing.assert_close(seen.values, largest.sort(1, descending=True).values)


@pytest.mark.parametrize("steps", [3, 6, 12])
def test_residuals_bound_the_error(generator, steps):
    known = quadric(10, 30, generator=generator)
    seen = curvatures_of(known.neuron, known.point, generator, rank=3, max_steps=steps)
    nearest = (seen.values[:, :, None] - known.curvatures[:, None]).abs().amin(2)
    assert (nearest <= seen.residuals + 1e-10).all()


def test_the_normal_never_leaks_in(generator):
    """Fifty dimensions, every curvature above 1: a leaking normal would add one near 0 and tilt the directions."""
    known = quadric(3, 50, low=5.0, high=6.0, generator=generator)
    jet = exact_jet(known.neuron, known.point)
    seen = principal_curvatures(jet, 49, generator=generator)
    torch.testing.assert_close(seen.values, known.curvatures, rtol=0, atol=1e-9)
    assert torch.einsum("ckn,cn->ck", seen.directions, jet.normal).abs().max() < 1e-12


def test_local_geometry_in_closed_form(generator):
    known = quadric(6, generator=generator)
    _, gradient, hessian, _ = known.neuron.given
    size = gradient.norm(dim=1, keepdim=True)
    unit = gradient / size
    bent = torch.einsum("cij,cj->ci", hessian, unit) / size
    seen = local_geometry(exact_jet(known.neuron, known.point))
    torch.testing.assert_close(seen.spacing, 1 / size[:, 0])
    torch.testing.assert_close(seen.normal, unit)
    torch.testing.assert_close(seen.spacing_rate, dot(unit, bent))
    torch.testing.assert_close(seen.turning, bent - dot(unit, bent)[:, None] * unit, rtol=1e-9, atol=1e-12)
    assert dot(seen.turning, unit).abs().max() < 1e-12


def test_contours_of_an_exponential_crowd_and_those_of_a_distance_do_not(generator):
    known = exp(5, generator=generator)
    seen = local_geometry(exact_jet(known.neuron, known.x))
    torch.testing.assert_close(seen.spacing_rate, 0.5 * known.neuron.given[0].norm(dim=1))
    even = hollow(5, generator=generator)
    seen = local_geometry(exact_jet(even.neuron, even.point))
    torch.testing.assert_close(seen.spacing, torch.ones(5, dtype=torch.float64))
    assert seen.spacing_rate.abs().max() < 1e-12
    assert seen.turning.abs().max() < 1e-12


@pytest.mark.parametrize("scale", [0.01, 3.0, torch.linspace(0.1, 5, 6, dtype=torch.float64)])
def test_secants_are_exact_on_quadrics_at_any_scale(generator, scale):
    known = quadric(6, generator=generator)
    exact, seen = exact_jet(known.neuron, known.point), secant_jet(known.neuron, known.point, scale=scale)
    torch.testing.assert_close(seen.hessian.dense(), exact.hessian.dense(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((seen.value, seen.gradient), (exact.value, exact.gradient))
    assert (seen.error < 1e-10).all()
    assert (seen.scale == scale).all()
    found = principal_curvatures(seen, 5, generator=generator)
    torch.testing.assert_close(found.values, known.curvatures, rtol=1e-8, atol=1e-8)
    assert torch.equal(found.scale, seen.scale)
    assert (found.residuals <= found.error).all()
    assert (found.error < 1e-10).all()


def test_secants_in_a_basis_know_the_hessian_there(generator):
    known = quadric(6, generator=generator)
    basis = frames(6, 6, generator=generator)[:, :2]
    exact, seen = exact_jet(known.neuron, known.point), secant_jet(known.neuron, known.point, scale=0.5, basis=basis)
    for direction in basis.unbind(1):
        torch.testing.assert_close(seen.hessian @ direction, exact.hessian @ direction, rtol=1e-9, atol=1e-9)


def test_secants_keep_the_shape_of_images(generator):
    image = Neuron(lambda x: (x**2).flatten(1) @ torch.arange(6, dtype=x.dtype), (2, 3))
    seen = secant_jet(image, normal(2, 2, 3, generator=generator), scale=0.1)
    dense = torch.diag(2 * torch.arange(6, dtype=torch.float64)).expand(2, 6, 6)
    torch.testing.assert_close(seen.hessian.dense(), dense, rtol=0, atol=1e-10)


def test_across_kinks_the_secants_disagree_and_say_so(generator):
    neuron = Neuron.of(relu_net(generator=generator), shape=(6,))
    x = normal(8, 6, generator=generator)
    seen = secant_jet(neuron, x, scale=1.0)
    assert (seen.error > 0.02).all()
    assert (seen.hessian.dense() - seen.hessian.dense().transpose(1, 2)).abs().max() < 1e-12
    assert (exact_jet(neuron, x).hessian.dense() == 0).all()


@pytest.mark.parametrize("make", [linear, planes])
def test_a_vanishing_exact_hessian_warns_and_a_measured_one_does_not(generator, make):
    known = make(4, generator=generator)
    with pytest.warns(FlatHessianWarning, match=r"curvature 0 says nothing about bending; .* secant_jet"):
        assert (curvatures_of(known.neuron, known.point, generator).values == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        principal_curvatures(secant_jet(known.neuron, known.point, scale=1e-3), 2, generator=generator)


def test_where_the_gradient_vanishes_everything_is_nan_and_the_neighbour_is_not(generator):
    neuron = Neuron(lambda x: x.square().sum(1), (3,))
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], dtype=torch.float64)
    jet = exact_jet(neuron, x)
    seen, local = principal_curvatures(jet, 2, generator=generator), local_geometry(jet)
    bent = bending(jet, normal(2, 3, generator=generator))
    for numbers in (jet.steepness, jet.normal, seen.values, local.spacing, local.spacing_rate, local.turning, bent):
        assert numbers.flatten(1).isnan()[0].all() if numbers.ndim > 1 else numbers[0].isnan()
        assert torch.isfinite(numbers[1]).all()
    torch.testing.assert_close(seen.values[1], torch.full((2,), -0.2, dtype=torch.float64))


def test_krylov_secants_know_the_hessian_on_the_space_they_span(generator):
    known = quadric(6, generator=generator)
    jet, d = exact_jet(known.neuron, known.x), known.point - known.x
    for steps in (1, 3, 6):
        seen = krylov_secants(known.neuron, known.x, jet.value, jet.gradient, d, steps)
        assert seen.basis.shape[1] == steps
        v = d
        for _ in range(steps):
            torch.testing.assert_close(seen @ v, jet.hessian @ v, rtol=1e-7, atol=1e-7)
            v = jet.hessian @ v / (jet.hessian @ v).norm(dim=1, keepdim=True)


def test_krylov_secants_probe_inside_the_box_only(generator):
    seen = []

    def response(x):
        seen.append(x.detach())
        return x.square().sum(1)

    box = Box(0.0, 1.0)
    neuron, x = Neuron(response, (6,), box), uniform(5, 6, generator=generator)
    value, gradient = neuron.value_and_grad(x)
    krylov_secants(neuron, x, value, gradient, box.clip(x + normal(5, 6, generator=generator)) - x, 3)
    assert len(seen) == 4
    assert all(box.contains(z, atol=1e-15).all() for z in seen)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda f, x, g: secant_jet(f, x, scale=0.0), "scale must be positive, got 0.0; 0 is what exact_jet measures"),
        (lambda f, x, g: secant_jet(f, x, scale=torch.tensor([1.0, -1.0])), "scale must be positive"),
        (
            lambda f, x, g: secant_jet(f, x, scale=1.0, basis=x[:, None, :2]),
            r"basis must have shape \(2, k, 3\), got \(2, 1, 2\)",
        ),
        (lambda f, x, g: secant_jet(f, x[:, :2], scale=1.0), r"x must have shape \(case, 3\)"),
        (lambda f, x, g: exact_jet(f, x[:, :2]), r"x must have shape \(case, 3\)"),
        (lambda f, x, g: curvatures_of(f, x, g, rank=3), "rank must be between 1 and 2 .*, got 3"),
        (lambda f, x, g: curvatures_of(f, x, g, rank=0), "rank must be between 1 and 2 .*, got 0"),
        (lambda f, x, g: curvatures_of(f, x, g, rank=2, max_steps=1), "max_steps must be at least the rank 2, got 1"),
    ],
)
def test_invalid_questions_are_refused(generator, measure, message):
    known = sphere(2, 3, generator=generator)
    with pytest.raises(ValueError, match=message):
        measure(known.neuron, known.x, generator)


def test_scales_and_directions_of_another_shape_are_refused(generator, unchecked):
    known = quadric(5, generator=generator)
    with pytest.raises(ValueError, match=r"scale must be a number or have shape \(\d+,\), got \(3,\)"):
        unchecked(secant_jet)(known.neuron, known.x, scale=torch.ones(3))
    with pytest.raises(ValueError, match="direction must have the shape of the inputs"):
        unchecked(normal_curvature)(exact_jet(known.neuron, known.x), known.x[:, :2])
