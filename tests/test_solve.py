"""The closest point, against geometry that knows it: closed forms, SciPy in a box, and every way to fail."""

from dataclasses import replace

import pytest
import torch
from analytic import BENT, FAILURES, SOUND, ZOO, counted, linear, names, normal, planes, quadric, sphere, tanh

from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.newton import to_level
from isoresponse.solve import closest_point


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
    found = closest_point(known.neuron, known.x, known.level, budget=120)
    assert set(names(found.status)) == {"DONE"}
    torch.testing.assert_close(found.distance, known.distance, rtol=1e-6, atol=0)
    assert (found.distance >= known.distance * (1 - 1e-12)).all()


def test_a_tighter_tolerance_gives_the_distance_to_its_square(generator):
    known = quadric(30, 8, generator=generator)
    found = closest_point(known.neuron, known.x, known.level, rtol=1e-6, budget=120)
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
    found = closest_point(neuron, torch.zeros(len(w), 5, dtype=torch.float64), 1.0, budget=250)
    assert found.success.all()
    assert (found.status == Status.STALLED).double().mean() > 0.7
    ratio = found.distance / torch.einsum("ckn,ck->cn", w, dual).norm(dim=1)
    assert (ratio >= 1 - 1e-12).all()
    assert ratio.median() < 1.001


def test_rounding_stalls_at_the_optimum(generator):
    known = quadric(20, generator=generator)
    found = closest_point(known.neuron, known.x, known.level, rtol=0.0, budget=300)
    assert set(names(found.status)) == {"STALLED"}
    torch.testing.assert_close(found.distance, known.distance, rtol=1e-13, atol=0)


def test_the_step_limit_returns_the_best_point_so_far(generator):
    known = quadric(20, 8, low=0.0, high=3.0, generator=generator)
    found = closest_point(known.neuron, known.x, known.level, budget=2)
    assert "MAX_STEPS" in names(found.status)
    some = found.success
    assert (found.gradients <= 2).all()
    assert (found.distance >= known.distance * (1 - 1e-12))[some].all()


@pytest.mark.parametrize("bent", BENT, ids=str)
def test_more_steps_never_give_a_larger_distance(generator, bent):
    known = quadric(20, 8, low=bent[0], high=bent[1], generator=generator)
    before = torch.full((20,), float("inf"), dtype=torch.float64)
    for steps in range(8, 19):
        now = closest_point(known.neuron, known.x, known.level, budget=steps, rtol=1e-8).distance.nan_to_num(
            nan=torch.inf
        )
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
        ({"budget": 0}, "budget must be at least 1 gradient per case, got 0"),
        ({"start": torch.full((2, 3), 7.0)}, "start must lie in the box"),
    ],
)
def test_invalid_questions_are_refused(changes, message):
    neuron = Neuron(lambda x: x.sum(1), (3,), Box(0.0, 1.0))
    with pytest.raises(ValueError, match=message):
        closest_point(neuron, torch.zeros(2, 3), 1.0, **changes)


def test_a_start_is_needed_for_every_case(generator, unchecked):
    known = quadric(5, generator=generator)
    with pytest.raises(ValueError, match=r"neuron was made for 5 cases, .* got 2 in start"):
        unchecked(closest_point)(known.neuron, known.x, known.level, start=known.x[:2])
