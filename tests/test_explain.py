"""What susceptibility is made of: planted causes first, then what must not matter, then what cannot be explained."""

from dataclasses import replace

import pytest
import torch
from analytic import frames, relu_net, uniform
from matplotlib.figure import Figure
from torch import Generator

from isoresponse import (
    Box,
    Classifier,
    Neuron,
    adversary_factors,
    closest_point,
    explain,
    level_factors,
    plot,
    pool_factors,
)
from isoresponse.loop import Status

CASES = 40
SEED = Generator().manual_seed(7)
VARIED = uniform(CASES, low=0.5, high=3.0, generator=SEED)


def bowl(cases=CASES, *, gap=1.0, slope=1.0, rate=0.0, turning=0.0, bending=0.0, turn=None):
    """From 0 to a level `gap` above; in the frame of the gradient (rotated) the Hessian over the slope has these blocks."""

    def each(value):
        return torch.as_tensor(value, dtype=torch.float64).expand(cases)

    def response(x, g, s, r, t, b, q):
        z = torch.einsum("cij,cj->ci", q, x)
        bent = r * z[:, 0] ** 2 / 2 + t * z[:, 0] * z[:, 1] + b * z[:, 1] ** 2 / 2
        return s * (z[:, 0] + bent) + 1 - g

    turn = frames(cases, 3, generator=Generator().manual_seed(3)) if turn is None else turn
    given = (*(each(v) for v in (gap, slope, rate, turning, bending)), turn)
    return Neuron(response, (3,), given=given), torch.zeros(cases, 3, dtype=torch.float64)


def told(neuron, x, level=1.0, **settings):
    measured = closest_point(neuron, x, level, budget=200).distance
    return level_factors(neuron, x, level, measured, **settings)


def shares(factors, **settings):
    return explain(factors, generator=Generator().manual_seed(0), resamples=50, **settings)


PLANTED = {
    "gap": {"gap": VARIED},
    "spacing": {"slope": VARIED},
    "rate": {"rate": VARIED - 0.4},
    "turning": {"turning": VARIED},
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_factor_that_alone_varies_accounts_for_everything(name):
    found = shares(told(*bowl(**PLANTED[name])))
    k = found.names.index(name)
    for values in (found.share, found.in_order):
        others = torch.cat([values[:k], values[k + 1 :]])
        assert float(others.abs().max()) < 1e-3
        assert float(values[k]) > 0.995
    assert abs(float(found.unexplained)) < 5e-3
    assert float(found.share_low[k]) > 0.99


def test_bending_acts_through_turning_and_both_together_account_for_it():
    found = shares(told(*bowl(turning=0.4, bending=2 * VARIED)))
    assert abs(float(found.unexplained)) < 5e-3
    order = dict(zip(found.names, found.in_order.tolist(), strict=True))
    assert order["bending"] > 0.99  # turning, the same everywhere, comes before it
    mean = dict(zip(found.names, found.share.tolist(), strict=True))
    assert mean["turning"] + mean["bending"] > 0.99
    assert mean["bending"] > 0.3
    assert abs(mean["gap"]) + abs(mean["spacing"]) + abs(mean["rate"]) + abs(mean["box"]) < 1e-3


def test_a_box_that_alone_varies_accounts_for_everything():
    w = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    neuron = Neuron(lambda x: x @ w, (3,), Box(-5.0, 5.0))
    x = torch.zeros(CASES, 3, dtype=torch.float64)
    room = uniform(CASES, low=0.05, high=0.35, generator=Generator().manual_seed(1))  # of the steepest element
    x[:, 0] = 5 - room
    found = shares(told(neuron, x, neuron.value(x) + 1))
    assert float(found.share[-1]) > 0.999
    assert float(found.share[:-1].abs().max()) < 1e-6
    assert abs(float(found.unexplained)) < 1e-6


def test_several_causes_at_once_add_up():
    generator = Generator().manual_seed(5)
    four = [uniform(CASES, low=0.6, high=1.6, generator=generator) for _ in range(4)]
    factors = told(*bowl(gap=four[0], slope=four[1], rate=four[2] - 1, turning=four[3] - 1, bending=0.3))
    found = shares(factors)
    assert float(found.unexplained) < 0.02
    for values in (found.share, found.in_order):
        torch.testing.assert_close(values.sum() + found.unexplained, torch.tensor(1.0).double())
    assert float(found.share[:3].min()) > 0.02
    backwards = shares(factors, order=found.names[::-1])
    assert backwards.names == found.names[::-1]
    torch.testing.assert_close(backwards.share.flip(0), found.share)
    torch.testing.assert_close(backwards.in_order.sum(), found.in_order.sum())
    assert float((backwards.in_order.flip(0) - found.in_order).abs().max()) > 1e-3


def test_noise_in_the_measurement_is_left_over_by_its_share():
    neuron, x = bowl(400, gap=uniform(400, low=0.5, high=3.0, generator=Generator().manual_seed(2)))
    noise = 0.3 * torch.randn(400, generator=Generator().manual_seed(4), dtype=torch.float64)
    clean = closest_point(neuron, x, 1.0).distance
    found = shares(level_factors(neuron, x, 1.0, clean * noise.exp()))
    expected = noise.var() / (clean.log() + noise).var()
    torch.testing.assert_close(found.unexplained, expected, rtol=1e-3, atol=0)
    assert float(found.unexplained_low) < float(expected) < float(found.unexplained_high)
    torch.testing.assert_close(found.bias, noise.mean(), rtol=1e-3, atol=1e-4)


def test_what_lies_beyond_the_first_order_distance_stays_unexplained():
    far = uniform(CASES, low=1.5, high=4.0, generator=Generator().manual_seed(6))
    neuron = Neuron(lambda x, f: (x[:, 0] / f).sinh() * f / torch.sinh(1 / f), (2,), given=(far,))  # known at 0 and 1
    wall = Neuron(lambda x, f: x[:, 0].clamp(max=0.9) + 10 * (x[:, 0] - f).clamp(min=0), (2,), given=(far,))
    x = torch.zeros(CASES, 2, dtype=torch.float64)
    assert float(shares(level_factors(neuron, x, 2.0, closest_point(neuron, x, 2.0).distance)).unexplained) < 0.2
    blind = shares(level_factors(wall, x, 1.0, far + 0.01))
    assert float(blind.unexplained) > 0.99
    with_look = shares(level_factors(wall, x, 1.0, far + 0.01, further=far))
    assert with_look.names[-1] == "further"
    assert float(with_look.share[-1]) > 0.99
    assert abs(float(with_look.unexplained)) < 1e-2


@pytest.fixture(scope="module")
def mixed():
    generator = Generator().manual_seed(5)
    four = [uniform(CASES, low=0.6, high=1.6, generator=generator) for _ in range(4)]
    return {"gap": four[0], "slope": four[1], "rate": four[2] - 1, "turning": four[3] - 1, "bending": 0.3}


def test_units_of_the_input_and_of_the_response_do_not_matter(mixed):
    neuron, x = bowl(**mixed)
    factors = told(neuron, x)
    finer = Neuron(lambda x, *g: 7 * neuron.response(x / 1000, *g), (3,), given=neuron.given)
    again = level_factors(finer, x, 7.0, 1000 * factors.measured)
    torch.testing.assert_close(again.distance, 1000 * factors.distance, rtol=1e-3, atol=0)
    torch.testing.assert_close(shares(again).share, shares(factors).share, rtol=0, atol=1e-3)


def test_rotation_does_not_matter(mixed):
    factors = told(*bowl(**mixed))
    neuron, x = bowl(**mixed, turn=frames(CASES, 3, generator=Generator().manual_seed(11)))
    again = level_factors(neuron, x, 1.0, factors.measured)
    torch.testing.assert_close(again.distance, factors.distance, rtol=1e-3, atol=0)


def test_a_case_alone_is_itself_in_a_batch(mixed):
    neuron, x = bowl(**mixed)
    factors = told(neuron, x)
    alone = level_factors(neuron.select(torch.tensor([3])), x[3:4], 1.0, factors.measured[3:4])
    torch.testing.assert_close(alone.distance[0], factors.distance[3], rtol=1e-12, atol=0)


@pytest.fixture(scope="module")
def classes():
    """A smooth classifier, inputs in its box, their labels and their distances to the nearest boundary."""
    generator = Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 24), torch.nn.Softplus(), torch.nn.Linear(24, 4)).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, generator=generator)
    made = Classifier.of(net.requires_grad_(False), shape=(8,), box=Box(0.0, 1.0))
    x = torch.rand(CASES, 8, generator=generator, dtype=torch.float64)
    labels = made.predict(x)
    return made, x, labels, made.closest_adversary(x, labels, budget=100).distance


def test_a_smooth_classifier_is_explained_by_its_geometry(classes):
    made, x, labels, far = classes
    factors = adversary_factors(made, x, labels, far)
    found = shares(factors)
    assert float(found.unexplained) < 0.03
    assert found.cases + found.lost == len(x)
    assert bool((factors.rival != labels)[torch.isfinite(factors.gap)].all())
    others = shares(replace(factors, measured=far.flip(0)))  # the distances of other inputs
    assert float(others.unexplained) > 0.5


def test_failed_cases_are_left_out_and_counted(classes):
    made, x, labels, far = classes
    x, labels, far = x[:30], labels[:30].clone(), far[:30].clone()
    far[:3] = torch.nan
    labels[5] = (labels[5] + 1) % 4
    factors = adversary_factors(made, x, labels, far)
    assert factors.status[0] == Status.NOT_FINITE
    assert factors.status[5] == Status.ALREADY
    found = shares(factors)
    assert (found.cases, found.lost) == (26, 4)
    assert "4 left out" in str(found)


def test_a_flat_case_ends_alone():
    neuron = Neuron(lambda x, s: s * x.sum(1), (2,), given=(torch.tensor([1.0, 0.0]).double(),))
    factors = level_factors(neuron, torch.zeros(2, 2).double(), 1.0, torch.tensor([0.7, 0.7]).double())
    assert [Status(s).name for s in factors.status.tolist()] == ["DONE", "FLAT"]
    assert not bool(torch.isfinite(factors.distance[1]).any())


def test_models_are_pooled_as_groups():
    one, two = (told(*bowl(20, gap=VARIED[:20], slope=slope)) for slope in (1.0, 10.0))
    both = pool_factors([one, two])
    assert both.model.tolist() == [0] * 20 + [1] * 20
    found = dict(zip(both.names, shares(both).share.tolist(), strict=True))
    assert found["spacing"] > found["gap"] > 0.05  # between models spacing, within them the gap
    assert sum(found.values()) > 0.999


def test_piecewise_linear_contours_are_seen_at_a_scale():
    net = relu_net(6, generator=Generator().manual_seed(0))
    x = torch.randn(CASES, 6, generator=Generator().manual_seed(1), dtype=torch.float64)
    neuron = Neuron(lambda x: net(x)[:, 0], (6,))
    level = neuron.value(x).detach() + 0.3 * VARIED
    measured = closest_point(neuron, x, level, budget=60).distance
    assert float(shares(level_factors(neuron, x, level, measured)).unexplained) < 0.3


def test_bad_input_is_refused(unchecked):
    neuron, x = bowl(gap=VARIED)
    factors = told(neuron, x)
    seed = Generator().manual_seed(0)
    with pytest.raises(ValueError, match="at least 20 cases with a measured distance and a gradient, got 10 of 10"):
        explain(told(*bowl(10, gap=VARIED[:10])), generator=seed)
    with pytest.raises(ValueError, match="distances that differ, got the same one in every case"):
        explain(told(*bowl()), generator=seed)
    with pytest.raises(ValueError, match="order must hold each of gap, spacing"):
        explain(factors, generator=seed, order=("gap",))
    with pytest.raises(ValueError, match=r"coverage must be between 0 and 1, got 1\.0"):
        explain(factors, generator=seed, coverage=1.0)
    with pytest.raises(ValueError, match="resamples must be at least 2, got 1"):
        explain(factors, generator=seed, resamples=1)
    with pytest.raises(ValueError, match="directions must be at least 1, got 0"):
        level_factors(neuron, x, 1.0, factors.measured, directions=0)
    with pytest.raises(ValueError, match=r"further must have shape \(40,\), one distance per input, got \(39,\)"):
        unchecked(level_factors)(neuron, x, 1.0, factors.measured, further=factors.measured[1:])
    with pytest.raises(TypeError, match=r"measured must be a floating-point tensor of distances .* got list"):
        unchecked(level_factors)(neuron, x, 1.0, factors.measured.tolist())
    with pytest.raises(TypeError, match=r"further must be a floating-point tensor of distances .* got torch\.bool"):
        unchecked(level_factors)(neuron, x, 1.0, factors.measured, further=factors.measured > 0)
    with pytest.raises(TypeError, match=r"level must be a number or a tensor of shape \(\d+,\), got str"):
        unchecked(level_factors)(neuron, x, "high", factors.measured)
    assert explain(factors, generator=seed, order=", ".join(factors.names)).order == ", ".join(factors.names)
    with pytest.raises(ValueError, match="pool_factors needs factors of the same names, at least one"):
        pool_factors([factors, level_factors(neuron, x, 1.0, factors.measured, further=factors.measured)])
    with pytest.raises(ValueError, match="pool_factors needs factors"):
        pool_factors([])


def test_the_figure_shows_every_share_and_the_rest_of_every_model(mixed):
    found = {name: shares(told(*bowl(**mixed, turn=None))) for name in ("a", "b")}
    ax = plot.explanation(Figure().subplots(), found)
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines if line.get_label() in found}
    for name, one in found.items():
        assert drawn[name].tolist() == pytest.approx([*(100 * one.share).tolist(), 100 * float(one.unexplained)])
    assert [t.get_text() for t in ax.get_xticklabels()] == [*found["a"].names, "left"]
    with pytest.raises(ValueError, match="one or more results with the same factors"):
        plot.explanation(Figure().subplots(), {})
    backwards = shares(told(*bowl(**mixed)), order=found["a"].names[::-1])
    with pytest.raises(ValueError, match="one or more results with the same factors"):
        plot.explanation(Figure().subplots(), {**found, "c": backwards})
