"""Laws that tie the modules together, on random members of the whole analytic zoo."""

from dataclasses import replace

import pytest
import torch
from analytic import SMOOTH, ZOO, dot, frames, linear, normal, quadric, rotated, sphere
from hypothesis import given, settings
from hypothesis import strategies as st

from isoresponse.crossing import Problem, cross_ray
from isoresponse.geometry import principal_curvatures
from isoresponse.jets import exact_jet
from isoresponse.neuron import Neuron
from isoresponse.newton import to_level
from isoresponse.solve import closest_point
from isoresponse.susceptibility import predict_distance

makers, seeds = st.sampled_from(ZOO), st.integers(0, 10**6)
few = settings(max_examples=10)


def questions(make, seed):
    generator = torch.Generator().manual_seed(seed)
    return make(5, generator=generator), generator


def solved(neuron, x, level):
    return closest_point(neuron, x, level, budget=120)


def answered(make, seed):
    """A question, its generator, its answer and its problem."""
    known, generator = questions(make, seed)
    found = solved(known.neuron, known.x, known.level)
    return known, generator, found, Problem.of(known.neuron, known.x, known.level)


def composed(known, before=lambda x: x, after=lambda f: f):
    inner = known.neuron
    return replace(inner, response=lambda x, *given: after(inner.response(before(x), *given)))


@few
@given(makers, seeds)
def test_no_point_across_the_level_is_nearer(make, seed):
    known, generator, found, problem = answered(make, seed)
    for spread in (0.1, 0.5, 2.0):
        noise = spread * known.distance[:, None] * normal(*known.x.shape, generator=generator)
        other = found.point + noise
        across = problem.excess(other) >= 0
        nearer = (other - known.x).norm(dim=1) < found.distance * (1 - 1e-6)
        assert not (across & nearer).any()


@few
@given(makers, seeds)
def test_no_ray_crosses_nearer(make, seed):
    """Also along the ray to the closest point itself the level is not crossed before it."""
    known, generator, found, problem = answered(make, seed)
    aims = known.distance[:, None] * 0.3 * normal(*known.x.shape, generator=generator)
    for aim in (found.point, found.point + aims):
        width = torch.full_like(known.distance, 1e-9)
        point, hit, _ = cross_ray(problem, problem.excess(known.x), aim, width)
        assert ((point - known.x).norm(dim=1)[hit] >= found.distance[hit] * (1 - 1e-6)).all()


@few
@given(st.sampled_from(SMOOTH), seeds)
def test_the_closest_point_lies_along_the_normal_and_a_gradient_step_is_no_shorter(make, seed):
    known, _ = questions(make, seed)
    found = solved(known.neuron, known.x, known.level)
    normals = exact_jet(known.neuron, found.point).normal
    cosine = dot(normals, found.point - known.x) / found.distance
    torch.testing.assert_close(cosine.abs(), torch.ones_like(cosine), rtol=0, atol=1e-6)
    reached = to_level(known.neuron, known.x, known.level, rtol=1e-9, max_steps=60)
    some = reached.success
    assert (reached.distance[some] >= found.distance[some] * (1 - 1e-6)).all()


@few
@given(makers, seeds, st.floats(0.05, 50.0))
def test_scaling_the_input_scales_the_distance(make, seed, s):
    known, _ = questions(make, seed)
    plain = solved(known.neuron, known.x, known.level)
    scaled = solved(composed(known, before=lambda x: x / s), s * known.x, known.level)
    torch.testing.assert_close(scaled.distance, s * plain.distance, rtol=1e-7, atol=0)


@few
@given(makers, seeds)
def test_translation_moves_the_answer_along(make, seed):
    known, generator = questions(make, seed)
    shift = normal(known.x.shape[1], generator=generator)
    moved = solved(composed(known, before=lambda x: x - shift), known.x + shift, known.level)
    torch.testing.assert_close(moved.distance, known.distance, rtol=1e-6, atol=0)
    torch.testing.assert_close(moved.point, known.point + shift, rtol=0, atol=3e-3)


@few
@given(makers, seeds)
def test_rotation_turns_the_answer_along(make, seed):
    known, generator = questions(make, seed)
    turned = rotated(known, frames(1, known.x.shape[1], generator=generator)[0])
    found = solved(turned.neuron, turned.x, turned.level)
    torch.testing.assert_close(found.distance, known.distance, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.point, turned.point, rtol=0, atol=3e-3)


@few
@given(makers, seeds)
def test_a_monotone_rescaling_of_the_response_leaves_the_closest_point(make, seed):
    known, _ = questions(make, seed)

    def rescale(f):
        return torch.sinh(0.2 * f) + 0.1 * f

    found = solved(composed(known, after=rescale), known.x, rescale(known.level))
    assert found.success.all()
    torch.testing.assert_close(found.distance, known.distance, rtol=1e-6, atol=0)


@few
@given(makers, seeds)
def test_falling_is_rising_of_the_negative_response(make, seed):
    known, _ = questions(make, seed)
    up = solved(known.neuron, known.x, known.level)
    down = solved(composed(known, after=lambda f: -f), known.x, -known.level)
    torch.testing.assert_close(down.point, up.point, rtol=0, atol=1e-12)
    assert torch.equal(down.status, up.status)


@pytest.mark.parametrize("make", [linear, sphere, quadric])
def test_any_order_of_the_cases_gives_the_same_answers(generator, make):
    known = make(8, generator=generator)
    order = torch.randperm(8, generator=generator)
    mixed = known.select(order)
    there, here = solved(mixed.neuron, mixed.x, mixed.level), solved(known.neuron, known.x, known.level)
    torch.testing.assert_close(there.distance, here.distance[order], rtol=1e-9, atol=0)


def test_from_outside_a_ball_of_low_response_first_order_underestimates_by_the_known_factor():
    """For f = |x|^2 and level c: the tangent plane is (c - r^2) / 2r away, the contour sqrt(c) - r."""
    r, c = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), 9.0
    x = torch.stack([0 * r, r], 1)
    neuron = Neuron(lambda x: x.square().sum(1), (2,))
    torch.testing.assert_close(predict_distance(neuron, x, c, predictor=1).distance, (c - r**2) / (2 * r))
    torch.testing.assert_close(predict_distance(neuron, x, c, predictor=3).distance, 3 - r, rtol=1e-9, atol=0)
    torch.testing.assert_close(closest_point(neuron, x, c).distance, 3 - r, rtol=1e-9, atol=0)


def test_distance_times_curvature_at_the_answer_is_above_minus_one(generator):
    """A closest point is a minimum only where the contour bends away less than the sphere round the start."""
    known = quadric(20, 6, low=-0.9, high=2.0, generator=generator)
    found = solved(known.neuron, known.x, known.level)
    seen = principal_curvatures(exact_jet(known.neuron, found.point), 5, generator=generator)
    assert (found.distance[:, None] * seen.values > -1).all()
    torch.testing.assert_close(seen.values, known.curvatures, rtol=1e-2, atol=1e-2)
