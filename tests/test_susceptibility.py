"""Predicted distances: closed forms of every order, and how agreement is measured."""

import math
from dataclasses import replace

import pytest
import torch
from analytic import linear, names, normal, quadric, sphere, tanh, uniform
from test_solve import BENT, FAILURES, SOUND, counted

from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.prediction import Doubt
from isoresponse.predictors import FirstOrder, Krylov
from isoresponse.solve import closest_point
from isoresponse.susceptibility import Comparison, compare, predict_distance

NAN = float("nan")


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("make", [linear, tanh, sphere, quadric])
def test_tier_0_is_the_gap_and_tier_1_the_gap_times_the_spacing(generator, make):
    known = make(8, generator=generator)
    value, gradient = known.neuron.value_and_grad(known.x)
    gap, size = (known.level - value), gradient.norm(dim=1)
    margin = predict_distance(known.neuron, known.x, known.level, predictor=0)
    torch.testing.assert_close(margin.distance, gap.abs())
    assert margin.displacement.isnan().all()
    first = predict_distance(known.neuron, known.x, known.level, predictor=1)
    torch.testing.assert_close(first.distance, gap.abs() / size)
    torch.testing.assert_close(first.displacement, (gap / size.square())[:, None] * gradient)
    for told in (margin, first):
        assert set(names(told.status)) == {"DONE"}
        assert told.low.isnan().all()


@pytest.mark.parametrize("tier", [1, 3])
def test_a_linear_neuron_is_predicted_exactly(generator, tier):
    known = linear(8, generator=generator)
    told = predict_distance(known.neuron, known.x, known.level, predictor=tier)
    torch.testing.assert_close(told.distance, known.distance)
    torch.testing.assert_close(told.displacement, known.point - known.x)


@pytest.mark.parametrize("tier", [1, 3])
def test_a_linear_neuron_in_a_box_is_predicted_exactly(generator, tier):
    known = linear(30, generator=generator)
    neuron, x = replace(known.neuron, box=Box(-1.0, 1.0)), torch.tanh(known.x)
    value, gradient = neuron.value_and_grad(x)
    farthest = (gradient.abs() * (gradient.sign() - x).abs()).sum(1)
    level = value + uniform(30, low=0.3, high=1.2, generator=generator) * farthest
    told, measured = predict_distance(neuron, x, level, predictor=tier), closest_point(neuron, x, level)
    assert torch.equal(told.distance.isnan(), level - value > farthest)
    some = ~told.distance.isnan()
    torch.testing.assert_close(told.distance[some], measured.distance[some], rtol=1e-9, atol=0)
    assert neuron.box.contains(x + told.displacement, atol=1e-12)[some].all()
    torch.testing.assert_close(neuron.value(x + told.displacement)[some], level[some])
    assert not measured.success[~some].any()


@pytest.mark.parametrize("bent", BENT, ids=str)
def test_the_whole_2_jet_is_the_measured_distance_on_quadrics(generator, bent):
    """With as many products as dimensions the model is the quadric itself, at whatever scale it was measured."""
    known = quadric(20, 5, low=bent[0], high=bent[1], generator=generator)
    told = predict_distance(known.neuron, known.x, known.level, predictor=Krylov(5))
    assert (told.doubt & int(Doubt.KINK) == 0).all()
    torch.testing.assert_close(told.distance, known.distance, rtol=1e-4, atol=0)
    torch.testing.assert_close(told.distance, told.displacement.norm(dim=1))


@pytest.mark.parametrize("tier", [0, 1, 2, 3, 4])
def test_falling_to_a_level_is_rising_for_the_negative_neuron(generator, tier):
    known = quadric(8, generator=generator)
    negative = replace(known.neuron, response=lambda x, *given: -known.neuron.response(x, *given))
    up = predict_distance(known.neuron, known.x, known.level, predictor=tier)
    down = predict_distance(negative, known.x, -known.level, predictor=tier)
    torch.testing.assert_close(down.distance, up.distance, rtol=1e-12, atol=0, equal_nan=True)


def test_a_kink_on_the_way_is_a_reason_to_doubt():
    """A ramp of finite height: a step along the gradient ends on it, one across leads past it."""

    def response(x, ramp):
        return x @ torch.tensor([1.0, 0.1]).double() + ramp(0.3 * x[:, 0] + x[:, 1])

    corner = Neuron(lambda x: response(x, lambda u: 5 * u.clamp(0.2, 0.6)), (2,))
    smooth = Neuron(lambda x: response(x, lambda u: 0.2 * u.square()), (2,))
    start = torch.zeros(1, 2).double()
    doubted, trusted = (predict_distance(f, start, f.value(start) + 1, predictor=3) for f in (corner, smooth))
    assert int(doubted.doubt) & int(Doubt.KINK)
    assert any("kink" in reason for reason in doubted.reasons[0])
    assert not int(trusted.doubt) & int(Doubt.KINK)


@pytest.mark.parametrize("tier", [0, 1, 2, 3, 4])
def test_images_keep_their_shape(generator, tier):
    known = quadric(4, 6, generator=generator)
    inner = known.neuron
    image = replace(inner, response=lambda x, *given: inner.response(x.flatten(1), *given), shape=(1, 2, 3))
    flat = predict_distance(inner, known.x, known.level, predictor=tier)
    shaped = predict_distance(image, known.x.reshape(4, 1, 2, 3), known.level, predictor=tier)
    torch.testing.assert_close(shaped.displacement, flat.displacement.reshape(4, 1, 2, 3), equal_nan=True)
    torch.testing.assert_close(shaped.distance, flat.distance, equal_nan=True)


@pytest.mark.parametrize("tier", [1, 3])
@pytest.mark.parametrize("status", SOUND, ids=lambda s: s.name)
def test_a_failed_case_is_nan_and_leaves_its_neighbours_alone(tier, status):
    neuron, x, _ = FAILURES[status]
    both = torch.tensor([x, [1.0, 3.0]], dtype=torch.float64)
    level = neuron.value(both)[1:] + 0.01
    together = predict_distance(neuron, both, level.expand(2), predictor=tier)
    alone = predict_distance(neuron, both[1:], level, predictor=tier)
    assert names(together.status) == [status.name, "DONE"]
    assert together.distance[0].isnan()
    assert together.displacement[0].isnan().all()
    torch.testing.assert_close(together.distance[1:], alone.distance)


def test_a_box_that_ends_before_the_level_is_said():
    neuron, x, level = FAILURES[Status.BLOCKED]
    told = predict_distance(neuron, torch.tensor([x], dtype=torch.float64), level, predictor=1)
    assert names(told.status) == ["UNREACHABLE"]
    assert told.distance.isnan().all()


def test_tier_3_says_where_its_quadratic_never_reaches_the_level():
    """|x|^2 = -1: the tangent plane reaches it, the quadratic does not."""
    neuron, x, level = FAILURES[Status.UNREACHABLE]
    x = torch.tensor([x], dtype=torch.float64)
    assert names(predict_distance(neuron, x, level, predictor=1).status) == ["DONE"]
    assert names(predict_distance(neuron, x, level, predictor=3).status) == ["UNREACHABLE"]


def test_a_non_finite_response_has_no_margin():
    neuron, x, level = FAILURES[Status.NOT_FINITE]
    told = predict_distance(neuron, torch.tensor([x, [0.75, 0.5]], dtype=torch.float64), level, predictor=0)
    assert names(told.status) == ["NOT_FINITE", "DONE"]
    assert told.distance.isnan().tolist() == [True, False]


@pytest.mark.parametrize("tier", [0, 1, 2, 3, 4])
def test_reported_costs_are_the_true_costs(generator, tier):
    known = quadric(7, generator=generator)
    neuron, spent = counted(known.neuron)
    told = predict_distance(neuron, known.x, known.level, predictor=tier)
    assert int(told.gradients.sum()) == spent["gradients"]
    assert int(told.forwards.sum()) == spent["forwards"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"predictor": FirstOrder}, TypeError, r"got the class FirstOrder; write FirstOrder\(\)"),
        ({"predictor": True}, TypeError, "a tier of cost or a Predictor, got bool"),
        ({"predictor": 5}, ValueError, r"a tier of cost from 0 \(margin\) to 4 \(foot points\), or a predictor, got 5"),
        ({"norm": 3.0}, ValueError, "norm must be 1, 2 or float"),
    ],
)
def test_invalid_settings_are_refused(unchecked, settings, error, message):
    with pytest.raises(error, match=message):
        unchecked(predict_distance)(Neuron(lambda x: x.sum(1), (3,)), torch.zeros(2, 3), 1.0, **settings)


def test_perfect_agreement():
    measured = numbers(1, 4, 2, 3)
    assert compare(measured, measured) == Comparison(1.0, 1.0, 1.0, 0.0, 0.0, cases=4, failed=0, unmeasured=0)


def test_agreement_in_closed_form():
    """Everything predicted twice as far: ranks agree, the bias is log 2, r2 = 1 - sum(y^2) / sum((y - mean)^2)."""
    seen = compare(2 * numbers(1, 2, 3, 4), numbers(1, 2, 3, 4))
    assert seen.spearman == pytest.approx(1)
    assert seen.kendall == pytest.approx(1)
    assert seen.r2 == pytest.approx(1 - 30 / 5)
    assert seen.bias == seen.median_abs_log_error == pytest.approx(math.log(2))


def test_rank_correlations_in_closed_form():
    """One swapped neighbour among four: spearman 1 - 6 * 2 / 60, kendall (5 - 1) / 6; errors cancel in the bias."""
    seen = compare(numbers(1, 3, 2, 4), numbers(1, 2, 3, 4))
    assert seen.spearman == pytest.approx(0.8)
    assert seen.kendall == pytest.approx(2 / 3)
    assert seen.bias == pytest.approx(0, abs=1e-15)
    assert seen.median_abs_log_error == pytest.approx(math.log(1.5) / 2)
    assert compare(numbers(4, 3, 2, 1), numbers(1, 2, 3, 4)).spearman == pytest.approx(-1)


def test_cases_without_both_distances_are_counted_and_left_out():
    measured = numbers(1, 2, 3, 4, NAN, 0, 7)
    predicted = numbers(1, 2, 3, 4, 5, 6, float("inf"))
    seen = compare(predicted, measured)
    assert (seen.cases, seen.failed, seen.unmeasured) == (4, 1, 1)
    assert seen.r2 == 1


@pytest.mark.parametrize(
    ("predicted", "measured"),
    [(numbers(1, 2), numbers(1, 2)), (numbers(1, 1, 1), numbers(1, 2, 3)), (numbers(1, 2, 3), numbers(2, 2, 2))],
)
def test_too_little_to_compare_is_nan_without_a_warning(predicted, measured):
    seen = compare(predicted, measured)
    assert math.isnan(seen.spearman)
    assert math.isnan(seen.r2)
    assert seen.cases == len(predicted)


@pytest.mark.parametrize(("a", "b"), [((3,), (4,)), ((3, 1), (3, 1))])
def test_comparing_different_cases_is_refused(unchecked, a, b):
    with pytest.raises(ValueError, match=r"predicted and measured must both have shape \(case,\), got \(3"):
        unchecked(compare)(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("tier", [1, 3])
def test_a_box_per_element_bounds_the_prediction_of_inputs_of_any_shape(generator, tier):
    """Bounds of the input's own shape say the same as one number for all elements."""
    w = normal(6, generator=generator)

    def response(x):
        return torch.tanh(x.flatten(1) @ w)

    x = 0.4 + 0.2 * torch.rand(9, 2, 3, generator=generator, dtype=torch.float64)
    ones = torch.ones(2, 3, dtype=torch.float64)
    level = Neuron(response, (2, 3)).value(x) + 0.1
    one, each = (
        predict_distance(Neuron(response, (2, 3), box), x, level, predictor=tier)
        for box in (Box(0, 1), Box(0 * ones, ones))
    )
    assert torch.isfinite(one.distance).all()
    torch.testing.assert_close(each.distance, one.distance, rtol=0, atol=0, equal_nan=True)
