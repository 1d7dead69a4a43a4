"""The local answer against the global one, and the referee in two dimensions, against geometry that knows both."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic import names, normal, quadric, sphere, uniform

from isoresponse import grid
from isoresponse.classifier import Classifier
from isoresponse.crossing import Solution
from isoresponse.grid import closest_point_on_grid
from isoresponse.loop import Status
from isoresponse.models.elevation import ElevationMap
from isoresponse.multistart import LocalGlobal, local_against_global
from isoresponse.neuron import Box, Neuron
from isoresponse.records import to_dataset
from isoresponse.solve import closest_point

INF = float("inf")
NORMS = [2.0, 1.0, INF]
NEAR, FAR = 1.8356197, 2.4122089  # distances from START to the two hills at 0.8
START = torch.tensor([[0.3, 0.4], [2.0, 1.0]], dtype=torch.float64)


def hills(x):
    """A wide one, whose flank the gradient follows from START, and a narrow one that is nearer to its first point."""
    return torch.exp(-(x - 3).square().sum(1) / 8) + torch.exp(-(x + 1.3).square().sum(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def disc(centre=(0.0, 0.0), radius=1.0):
    """Minus the distance to a circle: positive inside."""
    return lambda x: radius - (x - x.new_tensor(centre)).norm(dim=1)


def gaussians(cases, *, generator, count=10):
    """Another sum of bumps in every case, starts, and levels that are met in the box."""
    centre = uniform(cases, count, 2, generator=generator)
    height = uniform(cases, count, low=-1.0, generator=generator)
    width = uniform(cases, count, low=0.07, high=0.25, generator=generator)
    x, there = (uniform(cases, 2, generator=generator) for _ in range(2))

    def response(x, centre, height, width):
        return (height * torch.exp(-(x[:, None] - centre).square().sum(2) / (2 * width**2))).sum(1)

    neuron = Neuron(response, (2,), Box(-0.5, 1.5), given=(centre, height, width))
    return neuron, x, neuron.value(there)


def mountains(cases, *, generator):
    """A smooth random elevation model, as one response for all cases."""
    rough = normal(40, 50, generator=generator).numpy()
    terrain = ElevationMap(1000 * rough, (0.1, 0.1), smoothing=2.5)
    extent = torch.tensor(terrain.extent, dtype=torch.float64)
    neuron = Neuron(terrain, (2,), Box(0.0, extent))
    x, there = (extent * uniform(cases, 2, generator=generator) for _ in range(2))
    return neuron, x, neuron.value(there)


def by_brute_force(neuron, x, level, *, side=250, norm=2.0):
    """Distance (case,) to the nearest of many points across, infinite where there is none, and half the grid's diagonal."""
    lower, upper = (bound.expand(2) for bound in neuron.box.bounds(x))
    steps = [torch.linspace(float(a), float(b), side, dtype=x.dtype) for a, b in zip(lower, upper, strict=True)]
    points = torch.cartesian_prod(*steps)
    found = []
    for case in range(len(x)):
        here = neuron.select(torch.full((len(points),), case))
        sign = 1.0 if level[case] >= neuron.select(torch.tensor([case])).value(x[case : case + 1]) else -1.0
        across = sign * (here.value(points) - level[case]) > 0
        distance = torch.linalg.vector_norm(points - x[case], norm, dim=1).masked_fill(~across, INF)
        found.append(distance.amin())
    return torch.stack(found), float((upper - lower).norm()) / (side - 1) / 2


def require_sound(neuron, x, level, found, norm=2.0, slack=1e-12):
    """Every answer is across and in the box, is described by its numbers, and lies no nearer than its bound."""
    sign = torch.where(level >= neuron.value(x), 1.0, -1.0)
    assert (sign * (neuron.value(found.point) - level) >= -slack).all()
    assert neuron.box.contains(found.point).all()
    torch.testing.assert_close(found.value, neuron.value(found.point))
    torch.testing.assert_close(found.distance, torch.linalg.vector_norm(found.point - x, norm, dim=1))
    assert (found.lower <= found.distance).all()
    assert (found.error >= 0).all()


def answers(distance, status=None, gradients=10):
    """A Solution with these distances, along the first axis."""
    distance = torch.as_tensor(distance, dtype=torch.float64)
    zero = torch.zeros_like(distance)
    if status is None:
        status = torch.where(distance.isnan(), int(Status.UNREACHABLE), int(Status.DONE))
    point = torch.stack([distance, zero], 1)
    spent = torch.full_like(distance, gradients).long()
    return Solution(point, zero, distance, zero, status, spent, 2 * spent)


# --------------------------------------------------------------------------------------------------------- the referee


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", [(0.3, 0.2), (1.5, 0.9), (-1.2, 1.7)])
def test_a_circle(start, norm):
    """From inside and outside; the truth from a million of its points."""
    neuron = Neuron(disc(), (2,), Box(-2.0, 2.0))
    x = torch.tensor([start], dtype=torch.float64)
    found = closest_point_on_grid(neuron, x, 0.0, norm=norm, resolution=32)
    angle = torch.linspace(0, 2 * math.pi, 1_000_001, dtype=torch.float64)
    rim = torch.stack([angle.cos(), angle.sin()], 1)
    truth = torch.linalg.vector_norm(rim - x, norm, dim=1).amin()
    assert names(found.status) == ["DONE"]
    require_sound(neuron, x, 0.0, found, norm)
    assert float(found.distance) == pytest.approx(float(truth), rel=1e-9 if norm == 2.0 else 1e-4)
    assert float(found.lower) <= float(truth)
    assert float(found.error) <= 1.0001e-4 * float(found.distance)


@pytest.mark.parametrize("norm", NORMS)
def test_a_line(generator, norm):
    """The distance is the gap over the gradient's size in the dual norm."""
    w = normal(20, 2, generator=generator)
    x, gap = uniform(20, 2, low=-1.0, generator=generator), uniform(20, low=-1.0, generator=generator)
    neuron = Neuron(lambda x, w: (w * x).sum(1), (2,), Box(-20.0, 20.0), given=(w,))
    dual = {2.0: 2.0, 1.0: INF, INF: 1.0}[norm]
    truth = gap.abs() / torch.linalg.vector_norm(w, dual, dim=1)
    found = closest_point_on_grid(neuron, x, neuron.value(x) + gap, norm=norm, resolution=16)
    kept = truth < 15
    torch.testing.assert_close(found.distance[kept], truth[kept], rtol=1e-8 if norm == 2.0 else 1e-4, atol=0)
    assert (found.lower <= truth * (1 + 1e-12))[kept].all()


def test_a_line_that_is_nearest_outside_the_box():
    """x + y = 1.5 in the unit square, from the corner (0, 0.9): met at (0.6, 0.9) without the box, at (0.5, 1) inside."""
    neuron = Neuron(lambda x: x @ x.new_tensor([1.0, 3.0]), (2,), Box(0.0, 1.0))
    x = torch.tensor([[0.0, 0.9]]).double()
    found = closest_point_on_grid(neuron, x, 3.5, resolution=16)
    torch.testing.assert_close(found.point, torch.tensor([[0.5, 1.0]]).double(), rtol=0, atol=1e-6)


def test_the_nearer_of_two_circles():
    wide, small = disc((2.0, 0.0)), disc((-1.5, 0.5), 0.25)
    neuron = Neuron(lambda x: torch.maximum(wide(x), small(x)), (2,), Box(-4.0, 4.0))
    x = torch.tensor([[0.0, 0.0], [0.4, 0.0], [-3.0, 1.0]]).double()
    found = closest_point_on_grid(neuron, x, 0.0, resolution=64)
    far, near = (x - x.new_tensor([2.0, 0.0])).norm(dim=1) - 1, (x - x.new_tensor([-1.5, 0.5])).norm(dim=1) - 0.25
    torch.testing.assert_close(found.distance, torch.minimum(far, near), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("make", "norm"), [(gaussians, 2.0), (gaussians, 1.0), (gaussians, INF), (mountains, 2.0)])
def test_landscapes_against_brute_force(generator, make, norm):
    neuron, x, level = make(8, generator=generator)
    found = closest_point_on_grid(neuron, x, level, norm=norm, resolution=40)
    assert set(names(found.status)) == {"DONE"}
    require_sound(neuron, x, level, found, norm, slack=1e-9)
    brute, half = by_brute_force(neuron, x, level, norm=norm)
    assert (found.distance <= brute * (1 + 1e-9)).all()  # no point of a finer grid is nearer
    assert (found.lower >= 0.99 * brute - 8 * half).all()
    assert (found.error <= 1.0001e-4 * found.distance).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_coarse_grid_gives_the_same_answer(generator, norm):
    neuron, x, level = gaussians(8, generator=generator)
    coarse, fine = (closest_point_on_grid(neuron, x, level, norm=norm, resolution=r) for r in (30, 71))
    torch.testing.assert_close(coarse.distance, fine.distance, rtol=1.1e-4, atol=0)


def test_kinks_and_jumps(generator):
    w = normal(8, 2, generator=generator)
    kinked = Neuron(lambda x: (x @ w.T - 0.3).relu().sum(1), (2,), Box(-1.0, 1.0))
    stepped = Neuron(lambda x: (4 * x[:, 0]).round() + 0.0 * x[:, 1], (2,), Box(-1.0, 1.0))
    x = uniform(6, 2, low=-0.5, high=0.5, generator=generator)
    level = kinked.value(x) + 0.4
    found = closest_point_on_grid(kinked, x, level, resolution=32)
    require_sound(kinked, x, level, found)
    assert (found.distance <= by_brute_force(kinked, x, level)[0] * (1 + 1e-9)).all()
    assert (found.error <= 1.0001e-4 * found.distance).all()
    found = closest_point_on_grid(stepped, x, 2.5, resolution=32)  # first 3 at 0.625
    torch.testing.assert_close(found.distance, 0.625 - x[:, 0], rtol=0, atol=0.05)
    assert (found.distance >= 0.625 - x[:, 0]).all()


def test_no_nearest_place_in_the_middle_of_a_circle():
    """Everywhere is equally near: the number of cells ends it, and the bound says what is known."""
    neuron = Neuron(disc(), (2,), Box(-2.0, 2.0))
    found = closest_point_on_grid(neuron, torch.zeros(1, 2).double(), 0.0, resolution=32, rtol=1e-6)
    assert names(found.status) == ["MAX_STEPS"]
    assert 1 - 2e-3 < float(found.lower) < 1 - 1e-6
    assert float(found.distance) == pytest.approx(1.0, abs=1e-9)


def test_every_way_to_fail(generator):
    shape = Neuron(lambda x, kind: torch.where(kind > 0, torch.nan, x.square().sum(1)), (2,), Box(-1.0, 1.0))
    kind = torch.tensor([0.0, 1.0, 0.0, 0.0]).double()
    x = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.5, 0.0], [0.5, 0.0]]).double()
    level = torch.tensor([0.5, 0.5, 0.25, 5.0]).double()
    found = closest_point_on_grid(replace(shape, given=(kind,)), x, level, resolution=16)
    assert names(found.status) == ["DONE", "NOT_FINITE", "ALREADY", "UNREACHABLE"]
    assert found.distance[0] == pytest.approx(math.sqrt(0.5) - 0.5, rel=1e-9)
    assert found.distance[2] == found.lower[2] == 0
    for t in (found.point, found.value, found.distance, found.lower):
        assert torch.isnan(t[[1, 3]]).all()
        assert torch.isfinite(t[[0, 2]]).all()


def test_nothing_is_claimed_where_the_response_is_not_finite():
    """Across at x = 1, and NaN beyond y = 0.5, where nobody knows."""
    neuron = Neuron(lambda x: torch.where(x[:, 1] > 0.5, torch.nan, x[:, 0]), (2,), Box(-2.0, 2.0))
    x = torch.tensor([[0.0, 0.3], [0.9, 0.0]]).double()
    found = closest_point_on_grid(neuron, x, 1.0, resolution=16)
    torch.testing.assert_close(found.distance, torch.tensor([1.0, 0.1]).double())
    assert names(found.status) == ["MAX_STEPS", "DONE"]
    assert 0.15 < found.lower[0] <= 0.2 + 1e-12


@pytest.mark.parametrize("make", [gaussians, mountains])
def test_a_case_is_itself_in_any_batch(generator, monkeypatch, make):
    neuron, x, level = make(5, generator=generator)
    whole = closest_point_on_grid(neuron, x, level, resolution=24)
    monkeypatch.setattr(grid, "AT_ONCE", 1000)  # a case, or a few nodes, at a time
    for other in (torch.tensor([3]), torch.tensor([4, 1])):
        part = closest_point_on_grid(neuron.select(other), x[other], level[other], resolution=24)
        torch.testing.assert_close(part.distance, whole.distance[other], rtol=1e-12, atol=0)
        torch.testing.assert_close(part.lower, whole.lower[other], rtol=1e-12, atol=0)
        assert torch.equal(part.forwards, whole.forwards[other])


def test_dtype_shape_and_words():
    neuron = Neuron(lambda x: x.flatten(1).square().sum(1), (1, 2), Box(-2.0, 2.0))
    x = torch.tensor([[[0.6, 0.8]]])
    found = closest_point_on_grid(neuron, x, 2.25, resolution=16)
    assert found.point.shape == (1, 1, 2)
    assert found.distance.dtype == torch.float32
    assert float(found.distance) == pytest.approx(0.5, rel=1e-5)
    assert repr(found).startswith("GridSolution(1 of 1 cases, median distance 0.5, no case too far by more than ")
    assert repr(closest_point_on_grid(neuron, x, 99.0, resolution=4)).startswith("GridSolution(0 of 1 cases")
    assert to_dataset(found)["lower"].dims == ("case",)
    free = replace(neuron, box=Box())
    inside = closest_point_on_grid(free, x, 2.25, box=Box(-2.0, torch.tensor([[0.7, 2.0]])), resolution=16)
    assert (inside.point[..., 0] <= 0.7).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 1}, "resolution >= 2.* got resolution=1"),
        ({"steepening": 0.5}, "steepening >= 1.*steepening=0.5"),
        ({"rtol": 0.0}, "0 < rtol < 1.*rtol=0.0"),
        ({"norm": 3.0}, "norm must be 1, 2"),
        ({"box": Box(0.0, INF)}, "finite lower < upper bounds.*give box="),
        ({"box": Box(0.0, torch.tensor([0.0, 1.0]))}, "finite lower < upper"),
        ({"box": Box(torch.zeros(3), 1.0)}, "do not fit inputs of shape"),
        ({"box": Box(0.6, 1.0)}, "x must lie in the box of the grid, got 1 of 1 cases outside"),
        ({"level": torch.nan}, "level must be finite"),
    ],
)
def test_what_the_referee_refuses(change, message):
    neuron, x = Neuron(hills, (2,)), torch.full((1, 2), 0.5)
    settings = {"level": 0.8, "box": Box(-1.0, 1.0)} | change
    with pytest.raises(ValueError, match=message):
        closest_point_on_grid(neuron, x, settings.pop("level"), **settings)


def test_the_referee_is_for_two_dimensions():
    with pytest.raises(ValueError, match="inputs of two elements, got 3; use more starts"):
        closest_point_on_grid(Neuron(hills, (3,), Box(0.0, 1.0)), torch.zeros(1, 3), 0.5)


# ----------------------------------------------------------------------------------------------- the local, the global


def test_a_planted_detour_is_lost_by_the_local_search():
    """The gradient leads to the wide hill; the narrow one, nearer, is seen from elsewhere and by the referee."""
    neuron = Neuron(hills, (2,), Box(-2.0, 6.0))
    found = local_against_global(neuron, START, 0.8, budget=20, starts=20, generator=seeded())
    torch.testing.assert_close(found.d_local, torch.tensor([FAR, 0.9000]).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.d_global, torch.tensor([NEAR, 0.9000]).double(), rtol=1e-4, atol=0)
    assert found.loses.tolist() == [True, False]
    assert found.loss_rate == 0.5
    assert found.ratio_quantile(1.0) == pytest.approx(FAR / NEAR, rel=1e-5)
    truth = closest_point_on_grid(neuron, START, 0.8)
    torch.testing.assert_close(truth.distance, found.d_global, rtol=1e-8, atol=0)
    torch.testing.assert_close(truth.point, found.point, rtol=0, atol=1e-3)


def test_a_planted_detour_of_a_classifier():
    def scores(x):
        return torch.stack([torch.full_like(x[:, 0], 0.8), hills(x)], 1)

    classifier = Classifier(scores, (2,), 2, Box(-2.0, 6.0))
    found = local_against_global(classifier, START, torch.zeros(2).long(), budget=20, starts=20, generator=seeded())
    assert found.loses.tolist() == [True, False]
    torch.testing.assert_close(found.d_global, torch.tensor([NEAR, 0.9000]).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("make", [sphere, quadric])
def test_from_outside_of_a_convex_body_the_local_search_never_loses(generator, make):
    """One nearest point, and it is the only local optimum."""
    known = make(12, 5, generator=generator) if make is sphere else make(12, 5, low=0.2, high=2.0, generator=generator)
    found = local_against_global(known.neuron, known.x, known.level, starts=4, generator=seeded(), rtol=1e-6)
    assert found.judged.all()
    assert found.loss_rate == 0
    torch.testing.assert_close(found.d_global, known.distance, rtol=1e-6, atol=0)
    assert found.loss_rate_interval[1] < 0.25


def test_a_linear_classifier_never_loses(generator):
    weight = normal(3, 6, generator=generator)
    classifier = Classifier(lambda x: x @ weight.T, (6,), 3, Box(-5.0, 5.0))
    x = uniform(20, 6, low=-1.0, generator=generator)
    found = local_against_global(classifier, x, classifier.predict(x), starts=3, generator=seeded())
    assert found.judged.all()
    assert found.loss_rate == 0


@pytest.mark.parametrize("make", [gaussians, mountains])
def test_starts_agree_with_the_referee_as_often_or_more_often(generator, make):
    """On landscapes with many hills no search finds a point nearer than the referee's, and starts lose none that it had."""
    neuron, x, level = make(14, generator=generator)
    truth = closest_point_on_grid(neuron, x, level, resolution=40)
    local = closest_point(neuron, x, level, budget=20)
    widely = closest_point(neuron, x, level, budget=60, starts=3, generator=seeded())
    for found in (local, widely):
        assert (found.distance >= truth.lower * (1 - 1e-12))[found.success].all()
    once, often = LocalGlobal.of(local, truth), LocalGlobal.of(widely, truth)
    assert once.loss_rate > 0.05
    assert often.loss_rate <= once.loss_rate
    known = LocalGlobal.of(local, widely)
    assert known.loses.sum() <= once.loses.sum()  # what is known is no nearer than what there is


def test_the_same_seed_gives_the_same_result(generator):
    neuron, x, level = gaussians(5, generator=generator)
    one, two = (
        local_against_global(neuron, x, level, starts=2, budget=12, norm=INF, generator=seeded(5)) for _ in range(2)
    )
    for name in ("point", "d_local", "d_global", "status", "gradients_global", "forwards_global"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=0, atol=0, equal_nan=True)


def test_the_local_answer_of_a_case_is_the_same_in_any_batch(generator):
    known = quadric(6, 4, generator=generator)
    whole = local_against_global(known.neuron, known.x, known.level, starts=2, budget=20, generator=seeded())
    for case in (0, 4):
        one = known.select(case)
        alone = local_against_global(one.neuron, one.x, one.level, starts=2, budget=20, generator=seeded())
        torch.testing.assert_close(alone.d_local, whole.d_local[[case]], rtol=1e-12, atol=0)
        assert torch.equal(alone.gradients_local, whole.gradients_local[[case]])


def test_the_numbers_of_a_comparison():
    """Eight cases: two lost, one of them without a local answer; one not judged for want of any, one at distance zero."""
    nan = math.nan
    local = answers([1.0, 2.0, 3.0, nan, nan, 0.0, 1.005, 0.9])
    other = answers([1.0, 1.0, 3.5, 2.0, nan, 0.0, 1.0, 0.9], gradients=70)
    found = LocalGlobal.of(local, other)
    assert found.loses.tolist() == [False, True, False, True, False, False, False, False]
    assert found.judged.tolist() == [True, True, True, True, False, False, True, True]
    expected = torch.tensor([1.0, 2.0, 1.0, INF, nan, nan, 1.005, 1.0]).double()
    torch.testing.assert_close(found.ratio, expected, equal_nan=True)
    torch.testing.assert_close(found.point[:, 0], found.d_global, equal_nan=True)
    assert names(found.status)[3:5] == ["DONE", "UNREACHABLE"]
    assert found.loss_rate == pytest.approx(2 / 6)
    assert found.loss_rate_interval == pytest.approx((0.0968, 0.7000), abs=1e-4)  # Wilson (1927) for 2 of 6
    assert [found.ratio_quantile(q) for q in (0.0, 0.5, 0.6, 0.8, 1.0)] == [1.0, 1.0, 1.005, 2.0, INF]
    assert LocalGlobal.of(local, other, rtol=0.001).loses.sum() == 3
    assert len(found) == 8
    assert repr(found) == (
        "LocalGlobal(the local search loses 2 of 6 cases by more than 0.01: 33.3%, 95 % interval 9.7% to 70.0%; "
        "d_local / d_global median 1, 95 % quantile inf; 10.0 against 70.0 gradients per case)"
    )
    assert to_dataset(found)["d_global"].attrs["units"] == "input"


def test_no_case_to_judge():
    found = LocalGlobal.of(answers([math.nan]), answers([math.nan]))
    assert math.isnan(found.loss_rate)
    assert math.isnan(found.ratio_quantile(0.5))
    assert found.loss_rate_interval == (0.0, 1.0)
    assert "loses 0 of 0 cases" in repr(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": 1}, "starts must be at least 2, got 1: the local search"),
        ({"rtol": -0.1}, "rtol must be at least 0 and finite, got -0.1"),
        ({"rtol": INF}, "rtol must be at least 0 and finite, got inf"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"norm": 3.0}, "norm must be 1, 2"),
    ],
)
def test_what_the_comparison_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        local_against_global(Neuron(hills, (2,)), START, 0.8, generator=seeded(), **change)


def test_other_things_than_neurons_and_labels(unchecked):
    compare = unchecked(local_against_global)
    with pytest.raises(TypeError, match="subject must be a Neuron or a Classifier, got function"):
        compare(hills, START, 0.8, generator=seeded())
    classifier = Classifier(lambda x: x, (2,), 2)
    with pytest.raises(TypeError, match="goal must be the labels, an integer tensor, got float"):
        compare(classifier, START, 0.8, generator=seeded())


def test_answers_to_other_questions_and_quantiles_that_are_none():
    with pytest.raises(ValueError, match=r"same inputs, got points of shape \(2, 2\) and \(3, 2\)"):
        LocalGlobal.of(answers([1.0, 2.0]), answers([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="quantile lies between 0 and 1, got 2"):
        LocalGlobal.of(answers([1.0]), answers([1.0])).ratio_quantile(2.0)


def test_numpy_is_not_asked_for_randomness(generator):
    """A seeded search leaves the global generators alone."""
    neuron, x, level = gaussians(3, generator=generator)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    local_against_global(neuron, x, level, starts=2, budget=20, generator=seeded())
    assert torch.equal(before, torch.get_rng_state())
    assert numpy_before == np.random.get_state()[1].tolist()  # noqa: NPY002
