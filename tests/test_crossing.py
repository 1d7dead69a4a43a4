"""One plane, one ray, one question: the parts of every search, each against its own definition."""

import numpy as np
import pytest
import scipy.optimize
import torch
from analytic import ZOO, counted, dot, names, normal, quadric, sphere, uniform
from hypothesis import given
from hypothesis import strategies as st

from isoresponse.crossing import Problem, Solution, cross_ray
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron, flatten
from isoresponse.norms import nearest_in_plane

INF = float("inf")


def random_planes(cases, n, generator):
    """Gradients with some zeros, boxes round zero with some infinite and some closed sides."""
    gradient = normal(cases, n, generator=generator)
    gradient[torch.rand(cases, n, generator=generator) < 0.15] = 0
    lower, upper = (-uniform(cases, n, high=1.5, generator=generator), uniform(cases, n, high=1.5, generator=generator))
    upper[torch.rand(cases, n, generator=generator) < 0.2] = INF
    lower[torch.rand(cases, n, generator=generator) < 0.2] = 0
    return uniform(cases, high=2.0, generator=generator), gradient, lower, upper


def highest(gradient, lower, upper):
    """The largest gradient.d inside the box."""
    return torch.where(gradient > 0, gradient * upper, torch.where(gradient < 0, gradient * lower, 0.0)).sum(1)


def test_nearest_in_plane_is_scipys_optimum(generator):
    gap, gradient, lower, upper = random_planes(25, 6, generator)
    d, exists = nearest_in_plane(gap, gradient, lower, upper)
    agreed = 0
    for i in torch.nonzero(exists).flatten().tolist():
        g = gradient[i].numpy()
        found = scipy.optimize.minimize(
            lambda z: (0.5 * z @ z, z), np.zeros(6), jac=True, method="SLSQP", options={"ftol": 1e-15, "maxiter": 200},
            bounds=list(zip(lower[i].tolist(), upper[i].tolist(), strict=True)),
            constraints={"type": "eq", "fun": lambda z, g=g, i=i: g @ z - float(gap[i]), "jac": lambda z, g=g: g},
        )  # fmt: skip
        if found.success:
            np.testing.assert_allclose(d[i].numpy(), found.x, atol=1e-6)
            agreed += 1
    assert agreed >= 15


def test_it_exists_exactly_where_the_box_reaches_the_plane(generator):
    gap, gradient, lower, upper = random_planes(300, 6, generator)
    d, exists = nearest_in_plane(gap, gradient, lower, upper)
    assert torch.equal(exists, highest(gradient, lower, upper) >= gap)
    assert 20 < int(exists.sum()) < 299
    torch.testing.assert_close(dot(gradient, d)[exists], gap[exists], rtol=1e-12, atol=1e-13)
    assert ((d >= lower) & (d <= upper)).all()
    corner = torch.where(gradient > 0, upper, torch.where(gradient < 0, lower, 0.0))
    torch.testing.assert_close(d[~exists], corner[~exists])


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5, 30]))
def test_no_feasible_point_is_nearer(seed, n):
    generator = torch.Generator().manual_seed(seed)
    gap, gradient, lower, upper = random_planes(20, n, generator)
    d, exists = nearest_in_plane(gap, gradient, lower, upper)
    other = torch.minimum(torch.maximum(d + normal(20, n, generator=generator), lower), upper)
    beyond = exists & (dot(gradient, other) >= gap)  # a half space is enough: the gap is positive
    assert (d.norm(dim=1) <= other.norm(dim=1) + 1e-12)[beyond].all()


def test_projecting_twice_is_projecting_once(generator):
    gap, gradient, lower, upper = random_planes(50, 6, generator)
    d, exists = nearest_in_plane(gap, gradient, lower, upper)
    left = gap - dot(gradient, d)
    again, _ = nearest_in_plane(left.masked_fill(left.abs() < 1e-12, 0.0), gradient, lower - d, upper - d)
    assert (again[exists] == 0).all()


def test_without_a_box_it_is_the_orthogonal_projection(generator):
    gap, gradient = uniform(5, generator=generator), normal(5, 4, generator=generator)
    wide = torch.full((5, 4), INF, dtype=torch.float64)
    d, exists = nearest_in_plane(gap, gradient, -wide, wide)
    assert exists.all()
    torch.testing.assert_close(d, gap[:, None] * gradient / dot(gradient, gradient)[:, None], rtol=1e-14, atol=0)


@pytest.mark.parametrize("gap", [0.0, -1.0])
def test_a_gap_already_closed_needs_no_step(gap, generator):
    _, gradient, lower, upper = random_planes(5, 4, generator)
    d, exists = nearest_in_plane(torch.full((5,), gap, dtype=torch.float64), gradient, lower, upper)
    assert exists.all()
    assert (d == 0).all()


def test_a_zero_gradient_reaches_nothing():
    one = torch.ones(1, 3)
    d, exists = nearest_in_plane(torch.ones(1), 0 * one, -one, one)
    assert not exists.any()
    assert (d == 0).all()


@pytest.mark.parametrize("stretch", [0.05, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("width", [1e-2, 1e-10])
def test_the_ray_ends_across_and_within_the_width(generator, stretch, width):
    """Through the closest point of a ball the crossing is at that point, wherever on the ray the candidate is."""
    known = sphere(20, generator=generator)
    neuron, spent = counted(known.neuron)
    problem = Problem.of(neuron, known.x, known.level)
    below = problem.excess(known.x)
    before = spent["forwards"]
    reach = known.point - known.x
    point, found, passes = cross_ray(problem, below, known.x + stretch * reach, torch.full_like(below, width))
    assert int(passes.sum()) == spent["forwards"] - before
    assert found.all()
    assert (problem.excess(point) > 0).all()
    travelled = (point - known.x).norm(dim=1) / known.distance
    assert (travelled >= 1 - 1e-14).all()
    assert (travelled <= 1 / (1 - width) + 1e-14).all()


def test_a_ray_that_never_crosses_is_not_found_and_the_others_are(generator):
    known = sphere(4, generator=generator)
    problem = Problem.of(known.neuron, known.x, known.level)
    aim = known.point.clone()
    aim[2] = 2 * known.x[2] - known.point[2]  # away from the ball
    _, found, _ = cross_ray(problem, problem.excess(known.x), aim, torch.full((4,), 1e-6, dtype=torch.float64))
    assert found.tolist() == [True, True, False, True]


def test_a_ray_bends_along_the_box():
    """Element 0 stops at its bound, element 1 goes on until the level is reached."""
    neuron = Neuron(lambda x: x.sum(1), (2,), Box(0.0, torch.tensor([0.5, 10.0])))
    x = torch.zeros(1, 2, dtype=torch.float64)
    problem = Problem.of(neuron, x, 3.0)
    point, found, _ = cross_ray(problem, problem.excess(x), x + 1, torch.full((1,), 1e-12, dtype=torch.float64))
    assert found.all()
    torch.testing.assert_close(point, torch.tensor([[0.5, 2.5]], dtype=torch.float64))


def test_a_ray_crosses_a_jump_on_the_far_side():
    neuron = Neuron(lambda x: (x[:, 0] > 0.3).double() * 2 - 1, (1,))
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem = Problem.of(neuron, x, 0.5)
    point, found, _ = cross_ray(problem, problem.excess(x), x + 1, torch.full((1,), 1e-9, dtype=torch.float64))
    assert found.all()
    assert 0.3 < float(point) < 0.3 + 1e-9


@pytest.mark.parametrize("make", ZOO)
def test_excess_is_positive_exactly_across(generator, make):
    known = make(generator=generator)
    problem = Problem.of(known.neuron, known.x, known.level)
    rising = known.level >= known.neuron.value(known.x)
    assert torch.equal(problem.sign > 0, rising)
    assert (problem.excess(known.x) < 0).all()
    beyond = known.x + 1.001 * (known.point - known.x)
    excess, gradient = problem.excess_and_grad(beyond)
    assert (excess > 0).all()
    torch.testing.assert_close(problem.excess(beyond), excess)
    assert (dot(gradient, known.point - known.x) > 0).all()


def test_a_selected_problem_is_the_problem_of_the_selected_cases(generator):
    known = quadric(4, generator=generator)
    problem, cases = Problem.of(known.neuron, known.x, known.level), torch.tensor([3, 0])
    torch.testing.assert_close(problem.select(cases).excess(known.point[cases]), problem.excess(known.point)[cases])


def test_flattening_changes_the_shape_of_the_input_and_of_its_box_only(generator):
    box = Box(-torch.ones(3, 1), torch.arange(1, 3, dtype=torch.float32))
    neuron = Neuron(lambda x: (x[:, 0] * x[:, 2]).sum(1), (3, 2), box)
    x = normal(5, 3, 2, generator=generator)
    flat = flatten(neuron, x)
    assert flat.shape == (6,)
    assert flat.box.lower.dtype == x.dtype
    torch.testing.assert_close(flat.value(x.flatten(1)), neuron.value(x))
    torch.testing.assert_close(flat.box.clip(x.flatten(1)), box.clip(x).flatten(1))


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (torch.zeros(3), r"level must be a number or have shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 1), r"level must be a number or have shape \(2,\), got \(2, 1\)"),
        (INF, "level must be finite, got infinity"),
        (torch.tensor([0.0, INF]), "level must be finite, got infinity"),
        (torch.full((2,), torch.nan), "level must be finite, got NaN in every case"),
    ],
)
def test_an_invalid_level_is_refused(level, message):
    with pytest.raises(ValueError, match=message):
        Problem.of(Neuron(lambda x: x.sum(1), (3,)), torch.zeros(2, 3), level)


@pytest.mark.parametrize("level", [1.0, torch.tensor(1.0), torch.tensor([1.0]), torch.ones(2)])
def test_a_level_is_a_number_or_one_per_case(level):
    assert Problem.of(Neuron(lambda x: x.sum(1), (3,)), torch.zeros(2, 3), level).level.tolist() == [1, 1]


@pytest.fixture
def solution():
    one, none = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    status = torch.tensor([Status.DONE, Status.FLAT, Status.STALLED])
    return Solution(one[:, None, None].expand(3, 2, 2), one, 2 * one, 0 * one, status, none + 4, none + 9).blanked()


def test_a_solution_is_nan_exactly_where_it_failed(solution):
    assert solution.success.tolist() == [True, False, True]
    assert names(solution.status) == ["DONE", "FLAT", "STALLED"]
    for numbers in (solution.point.flatten(1)[:, 0], solution.value, solution.distance, solution.optimality):
        assert numbers.isnan().tolist() == [False, True, False]
    assert solution.point[1].isnan().all()


def test_a_solution_says_what_it_holds(solution):
    assert len(solution) == 3
    assert repr(solution) == "Solution(2 of 3 cases, median distance 2, 4.0 gradients per case)"


def test_scripts_may_raise_for_failed_cases(solution):
    with pytest.raises(
        ValueError, match=r"1 of 3 cases failed \(case 1: failed: the gradient vanished.*look at .status"
    ):
        solution.raise_if_failed()
    sound = Solution(*(getattr(solution, f)[[0, 2]] for f in solution.__dataclass_fields__))
    assert sound.raise_if_failed() is sound
