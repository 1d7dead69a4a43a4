"""The mass of Gaussian noise beyond a level: closed forms of statistics, then one method against another."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats as stats
import torch
from analytic import counted, names, normal, relu_net, sphere
from scipy.integrate import quad

from isoresponse.chords import chord_jet
from isoresponse.geometry import principal_curvatures
from isoresponse.jets import exact_jet
from isoresponse.lines import line_mass
from isoresponse.loop import Status
from isoresponse.mass import jointly, predicted_joint_mass, predicted_mass, second_order_mass
from isoresponse.neuron import Box, Neuron
from isoresponse.noise import sampled_mass
from isoresponse.solve import closest_point
from isoresponse.subset import subset_mass
from isoresponse.tails import orthant_tail, paraboloid_tail

FORMULAS = ["first_order", "breitung", "hohenbichler_rackwitz", "tvedt", "paraboloid"]
BETAS = torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def phi(z):
    return torch.special.log_ndtr(torch.as_tensor(z, dtype=torch.float64)).exp()


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def ball(n=20, radius=2.0):
    """-|x|: {f >= -radius} is a ball, {f <= -radius} its outside."""
    return Neuron(lambda x: -x.square().sum(1).sqrt(), (n,))


def along(n, *distances):
    """Starts at these distances from the origin, along an oblique direction."""
    direction = torch.ones(n, dtype=torch.float64) / n**0.5
    return torch.stack([d * direction for d in distances])


def paraboloid(n=20, curvature=0.1):
    return Neuron(lambda x: x[:, 0] - 0.5 * curvature * x[:, 1:].square().sum(1), (n,))


def paraboloid_truth(beta, curvature, n):
    def inside(q):
        return stats.norm.sf(beta + 0.5 * curvature * q) * stats.chi2.pdf(q, n)

    return quad(inside, 0, np.inf, epsabs=0, epsrel=1e-10, limit=500)[0]


# --- formulas ---------------------------------------------------------------------------------------------


def test_flat_contours_leave_the_normal_tail():
    told = second_order_mass(BETAS, torch.zeros(3, 5, dtype=torch.float64))
    for name in FORMULAS:
        torch.testing.assert_close(getattr(told, name), phi(-BETAS), rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [1, 5, 60])
@pytest.mark.parametrize("curvature", [-0.1, 0.01, 0.3])
def test_the_mass_beyond_a_paraboloid_is_exact_down_to_the_farthest_tail(n, curvature):
    bent = torch.full((3, n), curvature, dtype=torch.float64)
    found = paraboloid_tail(BETAS, bent, torch.ones_like(bent))
    truth = double(*(paraboloid_truth(b, curvature, n) for b in BETAS.tolist()))
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=0)


def test_the_formulas_are_those_of_the_literature():
    bent, beta = double([0.3, 0.05, -0.04]), 3.0
    told = second_order_mass(double(beta), bent)
    k, tail, density = bent[0].numpy(), stats.norm.sf(beta), stats.norm.pdf(beta)

    def product(b):
        return np.prod(1 / np.sqrt(1 + b * k.astype(complex)))

    rest = beta * tail - density
    breitung = tail * product(beta).real
    rackwitz = tail * product(density / tail).real
    three = breitung + rest * (product(beta) - product(beta + 1)).real
    three = three + (beta + 1) * rest * (product(beta) - product(beta + 1j).real).real
    for name, truth in zip(FORMULAS[1:4], (breitung, rackwitz, three), strict=True):
        torch.testing.assert_close(getattr(told, name), double(truth), rtol=1e-10, atol=0)


def test_all_formulas_agree_far_out():
    """Asymptotic for large beta, at given products of distance and curvature."""
    beta = double(10.0, 35.0)
    told = second_order_mass(beta, double([0.5, 1.0, -0.5]).expand(2, -1) / beta[:, None])
    for name in FORMULAS[1:4]:
        off = (getattr(told, name) / told.paraboloid - 1).abs()
        assert off[1] < 0.002
        assert off[1] < 0.15 * off[0] + 1e-6


def test_counts_repeat_a_curvature():
    bent = double([0.1, 0.1, 0.1, -0.05])
    told, again = second_order_mass(double(3.0), bent), second_order_mass(double(3.0), bent[:, 2:], double([3.0, 1.0]))
    for name in FORMULAS:
        torch.testing.assert_close(getattr(told, name), getattr(again, name))


def test_a_focusing_contour_has_no_formula_but_the_integral():
    told = second_order_mass(double(3.0), double([-0.4]))
    assert torch.isnan(told.breitung).all()
    assert torch.isnan(told.tvedt).all()
    assert told.first_order < told.paraboloid < 1


def test_formulas_refuse_what_they_cannot_read(unchecked):
    with pytest.raises(ValueError, match="must not be negative"):
        second_order_mass(double(-1.0), double([0.1]))
    with pytest.raises(ValueError, match=r"shape \(1, node\)"):
        unchecked(second_order_mass)(double(1.0), double([0.1]), double([1.0, 2.0]))


# --- prediction -------------------------------------------------------------------------------------------


def test_curvature_predicts_the_mass_of_a_ball_and_of_its_outside():
    n, sigma = 10, 0.2
    x = along(n, 3.0, 1.0)
    told = predicted_mass(ball(n), x, -2.0, sigma, generator=seeded())
    inside = stats.ncx2.cdf((2 / sigma) ** 2, n, (3 / sigma) ** 2)
    outside = stats.ncx2.sf((2 / sigma) ** 2, n, (1 / sigma) ** 2)
    truth = double(inside, outside)
    assert ((told.paraboloid / truth - 1).abs() < 0.2).all()
    assert (told.first_order[0] / truth[0]) > 4
    assert (told.first_order[1] / truth[1]) < 0.2
    torch.testing.assert_close(told.focus, double(0.5, -0.5))
    torch.testing.assert_close(told.bending, double(0.5, -0.5) * (n - 1))
    assert (told.standard_error == 0).all()
    assert "PredictedMass(2 of 2 cases" in repr(told)


def test_the_sign_of_curvature_is_that_of_the_region_beyond(generator):
    known = sphere(4, 6, generator=generator)
    up = predicted_mass(known.neuron, known.x, known.level, 0.3, generator=seeded())
    falling = Neuron(lambda x, *given: -known.neuron.response(x, *given), (6,), given=known.neuron.given)
    down = predicted_mass(falling, known.x, -known.level, 0.3, generator=seeded())
    for name in [*FORMULAS, "focus", "bending"]:
        torch.testing.assert_close(getattr(up, name), getattr(down, name))
    assert (up.bending > 0).all()


def test_an_incomplete_spectrum_has_a_standard_error(generator):
    n = 60
    bent = normal(n - 1, generator=generator) * 0.1
    f = Neuron(lambda x: x[:, 0] - 0.5 * (bent * x[:, 1:].square()).sum(1), (n,))
    x = torch.zeros(1, n, dtype=torch.float64)
    design = closest_point(f, x, 3.0)
    truth = paraboloid_tail(double(3.0), bent[None], torch.ones_like(bent)[None])
    off = []
    for seed in range(20):
        told = predicted_mass(f, x, 3.0, 1.0, probes=4, steps=8, design=design, generator=seeded(seed))
        assert told.standard_error > 0
        off.append((told.paraboloid - truth) / told.standard_error)
    assert 0.5 < torch.cat(off).square().mean().sqrt() < 2.0


def test_chords_measure_a_quadratic_exactly_at_any_scale():
    f, x = paraboloid(8, 0.3), torch.zeros(2, 8, dtype=torch.float64)
    exact = predicted_mass(f, x, double(2.0, 3.0), 0.7, generator=seeded())
    jet = partial(chord_jet, scale=2.0, generator=seeded(1))
    told = predicted_mass(f, x, double(2.0, 3.0), 0.7, jet=jet, generator=seeded())
    for name in FORMULAS:
        torch.testing.assert_close(getattr(told, name), getattr(exact, name), rtol=0.02, atol=0)
    assert told.estimator == "chord"
    measured = chord_jet(f, x, scale=2.0, pairs=0, generator=seeded())
    torch.testing.assert_close(measured.hessian.dense(), exact_jet(f, x).hessian.dense(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(measured.gradient, exact_jet(f, x).gradient)
    assert (measured.error < 1e-9).all()
    torch.testing.assert_close(measured.select(torch.tensor([1])).hessian.dense(), measured.hessian.dense()[1:])


def test_chords_refuse_a_scale_that_is_none():
    f, x = paraboloid(3), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="scale must be positive"):
        chord_jet(f, x, scale=0.0, generator=seeded())
    with pytest.raises(ValueError, match="pairs must not be negative"):
        chord_jet(f, x, scale=1.0, pairs=-1, generator=seeded())


def test_cases_without_a_closest_point_say_why():
    f = Neuron(lambda x: -x.square().sum(1), (3,))
    x = torch.ones(2, 3, dtype=torch.float64)
    told = predicted_mass(f, x, double(1.0, -1.0), 0.5, generator=seeded())
    assert names(told.status) == ["UNREACHABLE", "DONE"]
    assert torch.isnan(told.paraboloid[0])
    assert told.paraboloid[1] > 0
    found = line_mass(f, x, double(1.0, -1.0), 0.5, generator=seeded())
    assert names(found.status) == ["UNREACHABLE", "DONE"]
    assert torch.isnan(found.probability[0])


# --- estimates --------------------------------------------------------------------------------------------


def test_one_line_is_enough_for_a_flat_contour():
    w = double([1.0, -2.0, 0.5, 3.0])
    f = Neuron(lambda x: torch.tanh((x * w).sum(1)), (4,))
    x = torch.zeros(3, 4, dtype=torch.float64)
    level = torch.tanh(BETAS * w.norm() * 0.1)
    for sign in (1.0, -1.0):
        found = line_mass(f, x, sign * level, 0.1, lines=10, generator=seeded())
        torch.testing.assert_close(found.probability, phi(-BETAS), rtol=1e-6, atol=0)
        assert (found.standard_error < 1e-6 * found.probability).all()


def test_noise_ignores_the_box():
    f = Neuron(lambda x: x[:, 0].exp(), (2,), Box(0.0, 1.0))
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    level, truth = math.exp(2.5), phi([-4.0])
    torch.testing.assert_close(line_mass(f, x, level, 0.5, generator=seeded()).probability, truth, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        predicted_mass(f, x, level, 0.5, generator=seeded()).paraboloid, truth, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("n", [3, 40])
def test_a_ball_and_its_outside_by_lines_and_by_subsets(n):
    sigma = 0.35 if n == 3 else 0.12
    x = along(n, 3.0, 1.2)
    inside = stats.ncx2.cdf((2 / sigma) ** 2, n, (3 / sigma) ** 2)
    outside = stats.ncx2.sf((2 / sigma) ** 2, n, (1.2 / sigma) ** 2)
    truth = double(inside, outside)
    f = ball(n)
    design = closest_point(f, x, -2.0)
    bent = principal_curvatures(exact_jet(f, design.point), n - 1, generator=seeded())
    beyond = bent.values * double(1.0, -1.0)[:, None]
    found = line_mass(f, x, -2.0, sigma, design=design, curvatures=(beyond, bent.directions), generator=seeded(1))
    assert ((found.probability - truth).abs() < 4 * found.standard_error + 0.01 * truth).all()
    assert (found.standard_error < 0.08 * truth).all()
    assert (found.forwards < 1000).all()
    climbed = subset_mass(f, x, -2.0, sigma, samples=1000, generator=seeded(2))
    assert ((climbed.probability - truth).abs() < 3.5 * climbed.standard_error).all()


def test_curvatures_make_lines_sharper_and_leave_them_right():
    n, curvature = 30, 0.2
    f, x = paraboloid(n, curvature), torch.zeros(3, n, dtype=torch.float64)
    truth = double(*(paraboloid_truth(b, curvature, n - 1) for b in BETAS.tolist()))
    directions = torch.eye(n, dtype=torch.float64)[1:].expand(3, -1, -1)
    for told in (curvature, 0.5 * curvature):  # half of it is wrong, but better than nothing
        bent = torch.full((3, n - 1), told, dtype=torch.float64)
        found = line_mass(f, x, BETAS, 1.0, curvatures=(bent, directions), generator=seeded())
        assert ((found.probability - truth).abs() < 4 * found.standard_error).all()
        assert (found.standard_error < (0.1 if told == curvature else 0.4) * truth).all()


def test_curvatures_tell_where_lines_cross_and_so_save_looks():
    n, curvature, lines = 30, 0.02, 100
    f, x = paraboloid(n, curvature), torch.zeros(1, n, dtype=torch.float64)
    directions = torch.eye(n, dtype=torch.float64)[None, 1:]
    design = closest_point(f, x, 4.0)
    told = {
        told: line_mass(
            f, x, 4.0, 1.0, lines=lines, design=design, generator=seeded(),
            curvatures=(torch.full((1, n - 1), told, dtype=torch.float64), directions),
        )
        for told in (curvature, -curvature)
    }  # fmt: skip
    spent = {k: int(found.forwards[0]) - int(design.forwards[0]) - 2 * 16 for k, found in told.items()}
    assert spent[curvature] <= 2 * lines  # one look where it crosses, one beyond
    assert spent[curvature] < spent[-curvature] < 6 * lines
    torch.testing.assert_close(told[-curvature].probability, told[curvature].probability, rtol=0.2, atol=0)


def test_standard_errors_are_what_repetition_shows():
    n, curvature = 10, 0.1
    f, x = paraboloid(n, curvature), torch.zeros(2, n, dtype=torch.float64)
    beta = double(2.0, 4.5)
    truth = double(*(paraboloid_truth(b, curvature, n - 1) for b in beta.tolist()))
    design = closest_point(f, x, beta)
    methods = [
        lambda g: line_mass(f, x, beta, 1.0, lines=80, design=design, generator=g),
        lambda g: subset_mass(f, x, beta, 1.0, samples=500, generator=g),
        lambda g: sampled_mass(f, x, beta, 1.0, samples=1000, generator=g),
    ]
    for k, method in enumerate(methods):
        runs = [method(seeded(seed)) for seed in range(30)]
        each = torch.stack([run.probability for run in runs])[:, : 2 if k < 2 else 1] / truth[: 2 if k < 2 else 1]
        told = torch.stack([run.standard_error for run in runs])[:, : each.shape[1]] / truth[: each.shape[1]]
        ratio = each.std(0) / told.square().mean(0).sqrt()
        assert (ratio > 0.6).all()
        assert (ratio < 1.6).all()
        assert ((each.mean(0) - 1).abs() < 4 * each.std(0) / 30**0.5 + 0.01).all()


def test_one_in_a_billion():
    n = 12
    f, x = paraboloid(n, 0.02), torch.zeros(1, n, dtype=torch.float64)
    truth = paraboloid_truth(5.8, 0.02, n - 1)
    assert truth < 2e-9
    lines = line_mass(f, x, 5.8, 1.0, generator=seeded(3))
    climbed = subset_mass(f, x, 5.8, 1.0, samples=2000, generator=seeded(3))
    for found in (lines, climbed):
        assert (found.probability - truth).abs() < 3 * found.standard_error
    assert lines.standard_error < 0.1 * truth
    assert climbed.standard_error < 0.5 * truth


def test_lines_see_one_side_and_subsets_both():
    """Why there are two methods: the region behind the other closest point meets no line's first crossing."""
    f = Neuron(lambda x: x[:, 0].square() + 0.01 * x[:, 0], (3,))
    x = torch.full((1, 3), 0.1, dtype=torch.float64)
    level = f.value(x + double([2.9, 0.0, 0.0]))
    one, other = phi(-2.9), phi(-(3.0 + 0.01 + 0.1))
    lines = line_mass(f, x, level, 1.0, generator=seeded())
    climbed = subset_mass(f, x, level, 1.0, samples=5000, generator=seeded())
    torch.testing.assert_close(lines.probability[0], one, rtol=1e-3, atol=0)
    assert (climbed.probability - one - other).abs() < 3 * climbed.standard_error
    assert climbed.probability - 3 * climbed.standard_error > one


def test_a_network_of_kinks_by_three_methods(generator):
    net = relu_net(20, generator=generator)
    f, x = Neuron.of(net, 0, shape=(20,)), normal(2, 20, generator=generator)
    level = f.value(x) + 0.6
    counts = sampled_mass(f, x, level, 0.5, samples=40_000, generator=seeded())
    lines = line_mass(f, x, level, 0.5, generator=seeded())
    climbed = subset_mass(f, x, level, 0.5, generator=seeded())
    jet = partial(chord_jet, scale=0.5 * 20**0.5, pairs=64, generator=seeded())
    told = predicted_mass(f, x, level, 0.5, jet=jet, generator=seeded())
    for found in (lines, climbed):
        both = (found.standard_error.square() + counts.standard_error.square()).sqrt()
        assert ((found.probability - counts.probability).abs() < 4 * both).all()
    assert ((told.paraboloid / counts.probability).log().abs() < 0.4).all()


METHODS = {
    "sampled": partial(sampled_mass, samples=500),
    "subset": partial(subset_mass, samples=200),
    "lines": partial(line_mass, lines=20),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_case_alone_equals_itself_in_a_batch(method):
    x, level = along(6, 3.0, 3.4, 1.0), double(-2.0, -2.2, -2.1)
    f = Neuron(lambda x, stretch: -(stretch[:, None] * x).norm(dim=1), (6,), given=(double(1.0, 1.1, 0.9),))
    ask = METHODS[method]
    whole = ask(f, x, level, 0.4, generator=seeded())
    for i in range(3):
        part = torch.tensor([i])
        alone = ask(f.select(part), x[part], level[part], 0.4, generator=seeded())
        torch.testing.assert_close(alone.probability, whole.probability[part], rtol=1e-9, atol=0)
        torch.testing.assert_close(alone.standard_error, whole.standard_error[part], rtol=1e-7, atol=0)
        assert alone.forwards == whole.forwards[part]


@pytest.mark.parametrize("method", METHODS)
def test_costs_are_those_that_were_paid(method):
    neuron, spent = counted(ball(6))
    found = METHODS[method](neuron, along(6, 3.0, 3.5), -2.0, 0.4, generator=seeded())
    assert abs(int(found.forwards.sum()) - spent["forwards"]) <= 4  # the check of the question asks once or twice
    assert int(found.gradients.sum()) == spent["gradients"]
    assert "Mass(2 of 2 cases" in repr(found)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_stays_single(method):
    found = METHODS[method](ball(6), along(6, 3.0).float(), -2.0, 0.6, generator=seeded())
    assert found.probability.dtype == found.standard_error.dtype == torch.float32
    assert found.probability > 0


def test_a_response_that_is_not_finite_spoils_its_case_only():
    f = Neuron(
        lambda x, bad: torch.where((bad > 0) & (x[:, 1] > 0.5), torch.nan, x[:, 0]), (2,), given=(double(0.0, 1.0),)
    )
    x = torch.zeros(2, 2, dtype=torch.float64)
    for method in METHODS.values():
        found = method(f, x, 1.0, 1.0, generator=seeded())
        assert names(found.status) == ["DONE", "NOT_FINITE"]
        assert torch.isnan(found.probability).tolist() == [False, True]


def test_a_climb_that_is_cut_short_gives_a_bound():
    found = subset_mass(
        paraboloid(4, 0.0), torch.zeros(1, 4, dtype=torch.float64), 8.0, 1.0, most=3, generator=seeded()
    )
    assert found.status == int(Status.MAX_STEPS)
    assert found.probability < 0.011


def rectified(threshold):
    """A plateau at 0, then the identity: most of the noise sees nothing but the plateau."""
    return Neuron(lambda x: (x[:, 0] - threshold).clamp_min(0), (5,))


def test_a_climb_starts_from_a_plateau_and_is_stuck_on_one_that_has_no_end():
    x = torch.zeros(2, 5, dtype=torch.float64)
    truth = phi(-(1.645 + 2.0))
    runs = [subset_mass(rectified(1.645), x[:1], 2.0, 1.0, samples=1000, generator=seeded(k)) for k in range(8)]
    z = torch.cat([(run.probability - truth) / run.standard_error for run in runs])
    assert (z.abs() < 4).all()
    assert 0.3 < z.square().mean().sqrt() < 2.5
    stuck = subset_mass(rectified(9.0), x, 2.0, 1.0, generator=seeded())
    assert names(stuck.status) == ["MAX_STEPS", "MAX_STEPS"]
    assert (stuck.probability == 1).all()  # a bound, and no number that looks like an answer
    assert repr(stuck).startswith("Mass(0 of 2 cases, 2 not settled, median nan")


def test_a_bound_is_above_the_truth():
    for most in (1, 2, 3):
        x = torch.zeros(1, 5, dtype=torch.float64)
        found = subset_mass(paraboloid(5, 0.0), x, 5.0, 1.0, most=most, generator=seeded())
        assert found.status == int(Status.MAX_STEPS)
        assert phi(-5.0) < found.probability < 0.2 * 10.0 ** (1 - most)


@pytest.mark.parametrize("method", [line_mass, subset_mass, partial(sampled_mass, samples=1000)])
def test_at_the_level_is_not_beyond_it(method):
    """A response that saturates at the level: nothing is beyond."""
    f = Neuron(lambda x: x[:, 0].clamp_max(1.0), (3,))
    found = method(f, torch.zeros(1, 3, dtype=torch.float64), 1.0, 1.0, generator=seeded())
    assert names(found.status)[0] in ("FLAT", "UNREACHABLE", "MAX_STEPS") or found.probability == 0


def test_lines_that_settle_nothing_say_so():
    n = 30
    f, x = paraboloid(n, 0.3), torch.zeros(1, n, dtype=torch.float64)
    directions = torch.eye(n, dtype=torch.float64)[None, 1:]
    design = closest_point(f, x, 4.0)
    bent = torch.full((1, n - 1), 0.3, dtype=torch.float64)
    good = line_mass(f, x, 4.0, 1.0, design=design, curvatures=(bent, directions), generator=seeded())
    blind = line_mass(f, x, 4.0, 1.0, design=design, generator=seeded())
    assert names(good.status) == ["DONE"]
    assert names(blind.status) == ["MAX_STEPS"]  # two or three lines of 150 carry it
    assert "1 not settled" in repr(blind)


def test_no_line_across_is_no_zero():
    """The design point is a spike so thin that no line through noise across it meets it."""
    f = Neuron(lambda x: 1 - (x[:, 0] - 3).abs() - 1e9 * x[:, 1:].square().sum(1), (4,))
    x = torch.zeros(1, 4, dtype=torch.float64)
    found = line_mass(f, x, 0.5, 1.0, pilot=0, generator=seeded())
    assert names(found.status) == ["UNREACHABLE"]
    assert torch.isnan(found.probability).all()


def test_the_doubt_is_the_error_that_balls_have():
    for n, beta, radius in [(3, 4.0, 5.0), (10, 2.0, 10.0), (10, 4.0, 10.0), (30, 6.0, 20.0), (100, 4.0, 50.0)]:
        outside, inside = along(n, radius + beta), along(n, radius - beta)
        truths = stats.ncx2.cdf(radius**2, n, (radius + beta) ** 2), stats.ncx2.sf(radius**2, n, (radius - beta) ** 2)
        for x, truth in zip((outside, inside), truths, strict=True):
            told = predicted_mass(ball(n, radius), x, -radius, 1.0, generator=seeded())
            error = (told.paraboloid / truth).log().abs()
            assert error / 2.5 < told.doubt < 4 * error + 1e-3
    far = predicted_mass(ball(100, 5.0), along(100, 9.0), -5.0, 1.0, generator=seeded())
    assert far.doubt > 5  # wrong by orders of magnitude
    assert "if contours are round" in repr(far)


def test_a_formula_that_gives_no_probability_is_nan():
    told = second_order_mass(double(6.0), torch.full((1, 100), 0.2, dtype=torch.float64))
    assert torch.isnan(told.tvedt).all()  # negative
    assert torch.isfinite(told.breitung).all()


def test_bad_questions_are_refused(unchecked):
    f, x = ball(3), along(3, 3.0)
    for sigma in (0.0, float("nan"), double(0.1, 0.2)):
        with pytest.raises(ValueError, match="sigma"):
            unchecked(sampled_mass)(f, x, -2.0, sigma, samples=10, generator=seeded())
    with pytest.raises(ValueError, match="samples must be at least 2"):
        sampled_mass(f, x, -2.0, 0.1, samples=1, generator=seeded())
    with pytest.raises(ValueError, match="multiple of 50"):
        subset_mass(f, x, -2.0, 0.1, samples=120, generator=seeded())
    with pytest.raises(ValueError, match="at least 1 level"):
        subset_mass(f, x, -2.0, 0.1, most=0, generator=seeded())
    with pytest.raises(ValueError, match="lines must be at least 2"):
        line_mass(f, x, -2.0, 0.1, lines=1, generator=seeded())
    with pytest.raises(ValueError, match="curvatures must be values"):
        line_mass(f, x, -2.0, 0.1, curvatures=(double([1.0]), double([1.0, 2.0])[:, :, None]), generator=seeded())


# --- ensembles --------------------------------------------------------------------------------------------


def pair(cosine=0.6):
    sine = (1 - cosine**2) ** 0.5
    return [Neuron(lambda x: x[:, 0], (5,)), Neuron(lambda x: cosine * x[:, 0] + sine * x[:, 1], (5,))]


def test_an_ensemble_of_linear_neurons_is_an_orthant():
    levels, x = double([2.0, 2.0], [3.0, 4.5]), torch.zeros(2, 5, dtype=torch.float64)
    law = stats.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]])
    truth = double(law.cdf([-2, -2]), law.cdf([-3, -4.5]))
    told = predicted_joint_mass(pair(), x, levels, 1.0, generator=seeded())
    assert ((told.probability - truth).abs() < 5 * told.standard_error + 1e-4 * truth).all()
    assert (told.standard_error < 0.05 * truth).all()
    joint = jointly(pair(), levels)
    lines = line_mass(joint, x, 0.0, 1.0, lines=400, generator=seeded())
    climbed = subset_mass(joint, x, 0.0, 1.0, generator=seeded())
    for found in (lines, climbed):
        assert ((found.probability - truth).abs() < 4 * found.standard_error).all()


def test_independent_neurons_multiply():
    beta, eye = BETAS[None], torch.eye(3, dtype=torch.float64)[None]
    found, error = orthant_tail(beta, eye, generator=seeded())
    torch.testing.assert_close(found, phi(-BETAS).prod()[None], rtol=1e-6, atol=0)
    assert error < 1e-6 * found
    # and two that are one and the same count once
    same, _ = orthant_tail(double([2.0, 2.0]), torch.ones(1, 2, 2, dtype=torch.float64), generator=seeded())
    torch.testing.assert_close(same, phi(double(-2.0)), rtol=0.05, atol=0)


def test_ensembles_keep_every_neurons_own_cases():
    first = Neuron(lambda x, a: a * x[:, 0], (2,), given=(double(1.0, 2.0),))
    second = Neuron(lambda x, b, c: b * x[:, 1] + c, (2,), given=(double(1.0, 1.0), double(0.0, 5.0)))
    joint = jointly([first, second], torch.zeros(2, 2, dtype=torch.float64))
    x = double([3.0, 1.0], [3.0, 1.0])
    assert joint(x).tolist() == [1.0, 6.0]
    assert joint.select(torch.tensor([1]))(x[:1]).tolist() == [6.0]


def test_ensembles_that_are_none_are_refused():
    x = torch.zeros(1, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="one input shape"):
        jointly([], double([0.0]))
    with pytest.raises(ValueError, match="one input shape"):
        jointly([*pair(), ball(3)], double([0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="2 columns"):
        jointly(pair(), double([0.0]))
    with pytest.raises(ValueError, match="not all neurons"):
        predicted_joint_mass(pair(), x, double([-1.0, -1.0]), 1.0, generator=seeded())
