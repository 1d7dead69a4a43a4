"""The closest point, against geometry that knows it: closed forms, SciPy in a box, and every way to fail."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from analytic import ZOO, linear, names, normal, planes, quadric, sphere, tanh, uniform

from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.solve import closest_point, to_level

BENT = [(-0.9, -0.1), (0.0, 1.0), (0.0, 20.0), (-0.9, 20.0)]


def counted(neuron):
    """The same neuron, and its true numbers of forward and backward passes, in cases."""
    spent = {"forwards": 0, "gradients": 0}

    def back(gradient):
        spent["gradients"] += len(gradient)

    def response(x, *given):
        spent["forwards"] += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(back)
        return neuron.response(x, *given)

    return replace(neuron, response=response), spent


def require_across(neuron, x, level, solution, slack=0.0):
    """The answer is on the far side of the level, in the box, and its numbers are those of its point."""
    sign = torch.where(level >= neuron.value(x), 1.0, -1.0)
    assert (sign * (neuron.value(solution.point) - level) >= -slack).all()
    assert neuron.box.contains(solution.point).all()
    torch.testing.assert_close(solution.value, neuron.value(solution.point))
    torch.testing.assert_close(solution.distance, (solution.point - x).flatten(1).norm(dim=1))


@pytest.mark.parametrize("make", ZOO)
def test_the_zoos_closest_points_are_found(generator, make):
    known = make(20, generator=generator)
    found = closest_point(known.neuron, known.x, known.level)
    assert set(names(found.status)) == {"DONE"}
    torch.testing.assert_close(found.distance, known.distance, rtol=1e-6, atol=0)
    require_across(known.neuron, known.x, known.level, found, slack=1e-13)
    assert (found.optimality <= 1e-4).all()
    error = (found.point - known.point).norm(dim=1) / known.distance
    assert error.max() < 1e-3


@pytest.mark.parametrize("bent", BENT, ids=str)
@pytest.mark.parametrize("n", [3, 8, 40])
def test_bent_contours_whatever_distance_times_curvature(generator, bent, n):
    known = quadric(30, n, low=bent[0], high=bent[1], generator=generator)
    found = closest_point(known.neuron, known.x, known.level, max_steps=120)
    assert set(names(found.status)) == {"DONE"}
    torch.testing.assert_close(found.distance, known.distance, rtol=1e-6, atol=0)
    assert (found.distance >= known.distance * (1 - 1e-12)).all()


def test_a_tighter_tolerance_gives_the_distance_to_its_square(generator):
    known = quadric(30, 8, generator=generator)
    found = closest_point(known.neuron, known.x, known.level, rtol=1e-6, max_steps=120)
    torch.testing.assert_close(found.distance, known.distance, rtol=1e-11, atol=0)
    torch.testing.assert_close(found.point, known.point, rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [linear, sphere, quadric])
def test_float32_is_right_to_a_few_units_of_rounding(generator, make):
    known = make(20, generator=generator)
    single = known.to(torch.float32)
    found = closest_point(single.neuron, single.x, single.level)
    assert found.distance.dtype == found.point.dtype == torch.float32
    assert found.success.all()
    torch.testing.assert_close(found.distance.double(), known.distance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bent", BENT, ids=str)
def test_a_case_alone_has_the_answer_it_has_in_a_batch(generator, bent):
    known = quadric(6, 6, low=bent[0], high=bent[1], generator=generator)
    together = closest_point(known.neuron, known.x, known.level)
    for i in range(0, 6, 2):
        one = known.select(i)
        alone = closest_point(one.neuron, one.x, one.level)
        torch.testing.assert_close(alone.distance, together.distance[i : i + 1], rtol=1e-9, atol=0)
        assert alone.status == together.status[i]
        assert alone.gradients == together.gradients[i]


def tanh_net(generator, n=8, width=20):
    w, b, v = 1.5 * normal(width, n, generator=generator), normal(width, generator=generator), normal(width, generator=generator)
    return Neuron(lambda x: torch.tanh(x @ w.T + b) @ v / width**0.5, (n,), Box(0.0, 1.0))


def boxed_net(generator, cases=24):
    neuron = tanh_net(generator)
    x = neuron.box.clip(uniform(cases, 8, low=-0.5, high=1.5, generator=generator))
    return neuron, x, neuron.value(x) + 0.35 * normal(cases, generator=generator)


def boxed_quadric(generator, cases=24):
    known = quadric(cases, 8, low=-0.5, high=3.0, generator=generator)
    neuron = replace(known.neuron, box=Box(-1.5, 1.5))
    return neuron, neuron.box.clip(known.x), known.level


def by_scipy(neuron, x, level, start):
    """Distance by SLSQP from `start`, infinite where it gave up."""
    rises = float(torch.where(level >= neuron.value(x[None]), 1.0, -1.0))

    def excess(z):
        return rises * float(neuron.value(torch.from_numpy(z)[None]) - level)

    def slope(z):
        return rises * neuron.value_and_grad(torch.from_numpy(z)[None])[1][0].numpy()

    low, high = float(neuron.box.lower), float(neuron.box.upper)
    found = scipy.optimize.minimize(
        lambda z: (0.5 * (z - x.numpy()) @ (z - x.numpy()), z - x.numpy()), start.numpy(), jac=True, method="SLSQP",
        bounds=[(low, high)] * len(x), constraints={"type": "ineq", "fun": excess, "jac": slope},
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return np.sqrt(2 * found.fun) if found.success and excess(found.x) > -1e-9 else np.inf


@pytest.mark.parametrize("problems", [boxed_net, boxed_quadric])
def test_in_a_box_scipy_finds_nothing_nearer(generator, problems):
    """SLSQP from the same start is no better, and cannot improve our answer either; most answers touch the box."""
    neuron, x, level = problems(generator)
    found = closest_point(neuron, x, level, max_steps=120)
    solved = torch.nonzero(found.success).flatten().tolist()
    assert len(solved) >= 20
    touching = ((found.point == neuron.box.lower) | (found.point == neuron.box.upper)).any(1)
    assert int(touching.sum()) >= 10
    for i in solved:
        one = neuron.select(torch.tensor([i]))
        assert by_scipy(one, x[i], level[i], x[i]) >= float(found.distance[i]) * (1 - 1e-4)
        assert by_scipy(one, x[i], level[i], found.point[i]) >= float(found.distance[i]) * (1 - 1e-4)
    some = found.success
    part = replace(found, point=found.point[some], value=found.value[some], distance=found.distance[some])
    require_across(neuron.select(some), x[some], level[some], part, slack=1e-12)


def test_a_linear_neuron_in_a_box_has_the_planes_own_projection(generator):
    known = linear(20, 6, generator=generator)
    neuron = replace(known.neuron, box=Box(-1.0, 1.0))
    x = 0.5 * torch.tanh(known.x)
    value, gradient = neuron.value_and_grad(x)
    level = value + 0.6 * gradient.abs().sum(1)  # reachable: the corner is at 0.5 at least
    found = closest_point(neuron, x, level)
    multiplier = torch.zeros(20, dtype=torch.float64)  # bisection on clip(t * gradient), independent of the library
    high = multiplier + 1e4
    for _ in range(200):
        middle = (multiplier + high) / 2
        d = (x + middle[:, None] * gradient).clamp(-1, 1) - x
        multiplier = torch.where((gradient * d).sum(1) < level - value, middle, multiplier)
        high = torch.where((gradient * d).sum(1) < level - value, high, middle)
    some = (gradient * d).sum(1) >= level - value - 1e-9
    assert some.sum() >= 8
    torch.testing.assert_close(found.distance[some], d.norm(dim=1)[some], rtol=1e-9, atol=0)
    assert not found.success[~some].any()


def nothing(x):
    return 0 * x.sum(1)


def saturated(x):
    return x.sum(1).clamp(max=1.0)


ROOT = Neuron(lambda x: (x[:, 0] - 0.5).sqrt() + x[:, 1], (2,))
FAILURES = {
    Status.FLAT: (Neuron(lambda x: x.relu().sum(1), (2,)), [-1.0, -1.0], 5.0),
    Status.BLOCKED: (Neuron(lambda x: x.sum(1), (2,), Box(-1.0, 1.0)), [1.0, 1.0], 3.0),
    Status.UNREACHABLE: (Neuron(lambda x: x.square().sum(1), (2,)), [1.0, 2.0], -1.0),
    Status.NOT_FINITE: (ROOT, [0.0, 1.0], 2.5),
}
SOUND = {Status.FLAT: [1.0, 1.0], Status.NOT_FINITE: [0.75, 0.5]}  # an input from which the same level is reached


@pytest.mark.parametrize("status", FAILURES, ids=lambda s: s.name)
@pytest.mark.parametrize("search", [closest_point, to_level])
def test_every_failure_has_its_status_and_is_nan(status, search):
    neuron, x, level = FAILURES[status]
    found = search(neuron, torch.tensor([x], dtype=torch.float64), level)
    assert names(found.status) == [status.name]
    for numbers in (found.point, found.value, found.distance, found.optimality):
        assert numbers.isnan().all()
    assert (found.gradients > 0).all()


@pytest.mark.parametrize("status", SOUND, ids=lambda s: s.name)
@pytest.mark.parametrize("search", [closest_point, to_level])
def test_a_failed_case_leaves_its_neighbours_alone(status, search):
    neuron, x, level = FAILURES[status]
    both = torch.tensor([x, SOUND[status]], dtype=torch.float64)
    together, alone = search(neuron, both, level), search(neuron, both[1:], level)
    assert names(together.status) == [status.name, "DONE"]
    torch.testing.assert_close(together.distance[1:], alone.distance, rtol=1e-12, atol=0)
    torch.testing.assert_close(together.point[1:], alone.point, rtol=1e-12, atol=1e-15)


def test_a_start_on_the_level_is_at_distance_zero(generator):
    known = quadric(4, generator=generator)
    found = closest_point(known.neuron, known.x, known.neuron.value(known.x))
    assert found.success.all()
    assert (found.distance <= 1e-9 * known.distance).all()


def test_a_kink_stalls_near_its_optimum(generator):
    """Two planes to be risen above at once; the optimum in their corner is that of a 2 x 2 system."""
    w = normal(80, 2, 5, generator=generator)
    dual = torch.linalg.solve(w @ w.transpose(1, 2), torch.ones(80, 2, dtype=torch.float64))
    cornered = (dual > 0).all(1)  # both planes hold the answer: it lies on the kink
    w, dual = w[cornered], dual[cornered]
    neuron = Neuron(lambda x, w: torch.einsum("ckn,cn->ck", w, x).amin(1), (5,), given=(w,))
    found = closest_point(neuron, torch.zeros(len(w), 5, dtype=torch.float64), 1.0, max_steps=400)
    assert found.success.all()
    assert (found.status == Status.STALLED).double().mean() > 0.9
    ratio = found.distance / torch.einsum("ckn,ck->cn", w, dual).norm(dim=1)
    assert (ratio >= 1 - 1e-12).all()
    assert ratio.median() < 1.001


def test_rounding_stalls_at_the_optimum(generator):
    known = quadric(20, generator=generator)
    found = closest_point(known.neuron, known.x, known.level, rtol=0.0, max_steps=300)
    assert set(names(found.status)) == {"STALLED"}
    torch.testing.assert_close(found.distance, known.distance, rtol=1e-13, atol=0)


def test_the_step_limit_returns_the_best_point_so_far(generator):
    known = quadric(20, 8, low=0.0, high=3.0, generator=generator)
    found = closest_point(known.neuron, known.x, known.level, max_steps=2)
    assert "MAX_STEPS" in names(found.status)
    some = found.success
    assert (found.gradients <= 2).all()
    assert (found.distance >= known.distance * (1 - 1e-12))[some].all()


@pytest.mark.parametrize("bent", BENT, ids=str)
def test_more_steps_never_give_a_larger_distance(generator, bent):
    known = quadric(20, 8, low=bent[0], high=bent[1], generator=generator)
    before = torch.full((20,), float("inf"), dtype=torch.float64)
    for steps in range(1, 20, 2):
        now = closest_point(known.neuron, known.x, known.level, max_steps=steps, rtol=1e-8).distance.nan_to_num(nan=torch.inf)
        assert (now <= before * (1 + 1e-12)).all(), steps
        before = now


def test_a_start_elsewhere_finds_the_other_contour():
    """|x| = 1 on the line has two answers; distances count from x, not from the start."""
    neuron = Neuron(lambda x: x[:, 0].square() + 0.01 * x[:, 0], (1,))
    x = torch.tensor([[0.2], [0.2]], dtype=torch.float64)
    found = closest_point(neuron, x, 1.0, start=torch.tensor([[0.5], [-0.7]], dtype=torch.float64))
    roots = torch.tensor([-0.005 + (0.005**2 + 1) ** 0.5, -0.005 - (0.005**2 + 1) ** 0.5], dtype=torch.float64)
    torch.testing.assert_close(found.point[:, 0], roots)
    torch.testing.assert_close(found.distance, (roots - 0.2).abs())


def test_a_good_start_saves_gradients(generator):
    known = quadric(20, 8, generator=generator)
    cold = closest_point(known.neuron, known.x, known.level)
    warm = closest_point(known.neuron, known.x, known.level, start=known.point)
    torch.testing.assert_close(warm.distance, known.distance, rtol=1e-6, atol=0)
    assert warm.gradients.double().mean() < 0.4 * cold.gradients.double().mean()


def test_images_keep_their_shape(generator):
    known = quadric(4, 6, generator=generator)
    inner = known.neuron
    image = replace(inner, response=lambda x, *given: inner.response(x.flatten(1), *given), shape=(1, 2, 3))
    for search in (closest_point, to_level):
        flat, shaped = search(inner, known.x, known.level), search(image, known.x.reshape(4, 1, 2, 3), known.level)
        torch.testing.assert_close(shaped.point, flat.point.reshape(4, 1, 2, 3), equal_nan=True)
        torch.testing.assert_close(shaped.distance, flat.distance, equal_nan=True)


@pytest.mark.parametrize("search", [closest_point, to_level])
@pytest.mark.parametrize("make", [linear, quadric, planes])
def test_reported_costs_are_the_true_costs(generator, search, make):
    known = make(7, generator=generator)
    neuron, spent = counted(known.neuron)
    found = search(neuron, known.x, known.level)
    assert {"forwards": int(found.forwards.sum()), "gradients": int(found.gradients.sum())} == spent


@pytest.mark.parametrize("make", [linear, tanh, sphere, quadric])
def test_to_level_lands_on_the_level(generator, make):
    known = make(20, generator=generator)
    found = to_level(known.neuron, known.x, known.level, rtol=1e-9, max_steps=60)
    assert set(names(found.status)) == {"DONE"}
    gap = (known.level - known.neuron.value(known.x)).abs()
    assert ((found.value - known.level).abs() <= 1e-9 * gap).all()
    torch.testing.assert_close(found.value, known.neuron.value(found.point), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.distance, (found.point - known.x).norm(dim=1))
    assert (found.distance >= known.distance * (1 - 1e-8)).all()
    if make in (linear, tanh, sphere):  # straight gradient lines end at the closest point
        torch.testing.assert_close(found.distance, known.distance, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1 gradient per case, got 0"),
        ({"start": torch.full((2, 3), 7.0)}, "start must lie in the box"),
    ],
)
def test_invalid_questions_are_refused(changes, message):
    neuron = Neuron(lambda x: x.sum(1), (3,), Box(0.0, 1.0))
    with pytest.raises(ValueError, match=message):
        closest_point(neuron, torch.zeros(2, 3), 1.0, **changes)
