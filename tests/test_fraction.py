"""The fraction of directions, and of the box, that get across a level: caps and areas, then counting."""

import math
from functools import partial

import pytest
import scipy.special
import torch
from analytic import names, normal

from isoresponse.chords import chord_jet
from isoresponse.fraction import adversarial_fraction, increasing_share, wilson
from isoresponse.mass import jointly
from isoresponse.neuron import Box, Neuron
from isoresponse.tails import _Form, pooled, sphere_tail


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def cap(cosine, n):
    return double(*(0.5 * scipy.special.betainc((n - 1) / 2, 0.5, max(0.0, 1 - c * c)) for c in cosine))


def quadratic(n, bent, *, generator):
    """A quadratic with a random Hessian of that size, gradient e_1 at 0."""
    hessian = normal(n, n, generator=generator)
    hessian = 0.5 * bent * (hessian + hessian.T) / n**0.5
    return Neuron(lambda x: x[:, 0] + 0.5 * ((x @ hessian) * x).sum(1), (n,))


# --- tails on the sphere ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "rtol"), [(3, 0.09), (10, 0.03), (100, 3e-4), (784, 4e-5)])
def test_caps_of_spheres(n, rtol):
    cosine = [0.01, 0.1, 0.2, 0.3] if n > 50 else [0.05, 0.3, 0.6, 0.95]
    one, zero = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    found = sphere_tail(double(*cosine), (zero, one), (zero, n * one))
    torch.testing.assert_close(found, cap(cosine, n), rtol=rtol, atol=0)
    complement = sphere_tail(-double(*cosine), (zero, one), (zero, n * one))
    torch.testing.assert_close(found + complement, torch.ones_like(found), rtol=rtol, atol=0)


def test_the_length_is_met_at_every_saddle_point(generator):
    """Not where the last step of the search for it happened to be a halved bracket: tails were 0 there."""
    n = 200
    node, force = normal(1, n, generator=generator) / n, normal(1, n, generator=generator).square() / n
    form = _Form(node, force, node, torch.ones_like(node))
    for s in torch.logspace(-2, 3, 200, dtype=torch.float64)[:, None]:
        near, _ = form.inverse(s, form.shift(s))
        length = near.sum(1) + s.square() * (force * near.square()).sum(1)
        torch.testing.assert_close(length / n, torch.ones_like(s), rtol=0, atol=1e-10)


def test_beyond_the_range_of_the_form_there_is_nothing():
    one, zero = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    assert sphere_tail(double(1.01, -1.01, 5.0), (zero, one), (zero, 10 * one)).tolist() == [0.0, 1.0, 0.0]
    # and a constant is on one side or the other
    assert sphere_tail(double(1.0, -1.0, 0.6), (one, zero), (one, 10 * one)).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("n", [5, 50])
def test_quadratics_on_spheres_against_counting(generator, n):
    node = 2 * normal(1, n, generator=generator)
    gradient = 1.5 * normal(1, n, generator=generator) / n**0.5
    u = normal(200_000, n, generator=generator)
    u = u / u.norm(dim=1, keepdim=True)
    value = u @ gradient[0] + 0.5 * (u.square() @ node[0])
    for share in (0.9, 0.5, 0.2, 0.01):
        gap = value.kthvalue(int(len(value) * (1 - share))).values[None]
        found = sphere_tail(gap, (node, gradient.square()), (node, torch.ones_like(node)))
        noise = (share * (1 - share) / len(value)) ** 0.5
        assert abs(found.item() - share) < 4 * noise + (0.06 if n == 5 else 0.01) * share


def test_pooled_probes_are_a_mean_with_its_standard_error():
    nodes = double([1.0], [2.0], [6.0])
    value, error = pooled(lambda node, count: (node * count).sum(1), nodes[None], torch.ones_like(nodes)[None])
    torch.testing.assert_close(value, double(3.0))
    torch.testing.assert_close(error, nodes.std(0) / 3**0.5)


# --- fractions --------------------------------------------------------------------------------------------


def test_a_linear_neurons_fraction_is_a_cap():
    n = 30
    f = Neuron(lambda x: 2.0 * x.sum(1), (n,))
    x = torch.zeros(3, n, dtype=torch.float64)
    radius, level = double(1.0, 2.0, 2.0), double(2.0, 6.0, -6.0)
    found = adversarial_fraction(
        f, x, level, radius, samples=20_000, generator=seeded(), jet=partial(chord_jet, scale=1.0, generator=seeded())
    )
    truth = cap([c / (2 * n**0.5) for c in (2.0, 3.0, 3.0)], n)
    torch.testing.assert_close(found.first_order, truth)
    torch.testing.assert_close(found.predicted, truth, rtol=5e-3, atol=0)
    torch.testing.assert_close(found.moments, truth, rtol=0.05, atol=0)
    assert ((found.measured - truth).abs() < 4 * found.measured_error).all()
    assert ((found.lower < truth) & (truth < found.upper)).all()
    assert "Fraction(3 of 3 cases" in repr(found)


def test_bending_changes_the_fraction_at_once(generator):
    """Bent away fewer, bent towards more directions than the gradient alone tells, and as many as are counted."""
    n = 40
    x = torch.zeros(1, n, dtype=torch.float64)
    told = []
    for curvature in (-0.3, 0.0, 0.3):
        f = Neuron(lambda x, k=curvature: x[:, 0] - 0.5 * k * x[:, 1:].square().sum(1) + 1e-9 * x.square().sum(1), (n,))
        found = adversarial_fraction(f, x, 0.2, 1.0, samples=10_000, generator=seeded())
        assert (found.measured - found.predicted).abs() < 4 * found.measured_error + 0.01 * found.predicted
        told.append(found.predicted.item())
    assert told[0] > 1.5 * told[1] > 3 * told[2]


def test_random_quadratics_and_their_falling_twins(generator):
    n = 60
    f = quadratic(n, 1.5, generator=generator)
    twin = Neuron(lambda x: -f.response(x), (n,))
    x, radius = torch.zeros(3, n, dtype=torch.float64), double(2.0, 4.0, 8.0)
    found = adversarial_fraction(f, x, 1.0, radius, samples=10_000, generator=seeded())
    other = adversarial_fraction(twin, x, -1.0, radius, samples=50, generator=seeded())
    assert ((found.predicted - found.measured).abs() < 4 * found.measured_error + 0.02 * found.predicted).all()
    assert (found.predicted_error == 0).all()
    torch.testing.assert_close(found.predicted, other.predicted, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.moments, other.moments, rtol=1e-5, atol=0)


def test_an_incomplete_spectrum_has_a_standard_error(generator):
    n = 60
    f, x = quadratic(n, 1.5, generator=generator), torch.zeros(1, n, dtype=torch.float64)
    whole = adversarial_fraction(f, x, 1.0, 4.0, samples=2, generator=seeded())
    off = []
    for seed in range(6):
        part = adversarial_fraction(f, x, 1.0, 4.0, samples=2, probes=4, steps=6, generator=seeded(seed))
        assert part.predicted_error > 0
        off.append((part.predicted - whole.predicted) / part.predicted_error)
    assert 0.4 < torch.cat(off).square().mean().sqrt() < 2.0


def test_fractions_that_counting_misses():
    n = 100
    f = Neuron(lambda x: x[:, 0] + 0.02 * x[:, 1:].square().sum(1), (n,))
    x = torch.zeros(1, n, dtype=torch.float64)
    found = adversarial_fraction(f, x, 0.55, 1.0, rare=True, samples=2000, generator=seeded())
    assert 1e-10 < found.measured < 1e-6
    assert (found.measured / found.predicted).log().abs() < 4 * found.measured_error / found.measured
    assert found.lower < found.predicted < found.upper


def test_a_climb_that_does_not_arrive_gives_a_bound():
    f = Neuron(lambda x: (x[:, 0] - 2.0).clamp_min(0), (5,))  # the sphere of radius 1 sees the plateau only
    found = adversarial_fraction(f, torch.zeros(1, 5), 0.5, 1.0, rare=True, generator=seeded())
    assert names(found.status) == ["MAX_STEPS"]
    assert found.lower == 0
    assert found.upper == found.measured == 1


def test_clipping_to_the_box_takes_directions_away():
    f = Neuron(lambda x: x.sum(1), (20,), Box(0.0, 1.0))
    x = torch.ones(1, 20, dtype=torch.float64)
    free = adversarial_fraction(f, x, 20.5, 1.0, generator=seeded())
    boxed = adversarial_fraction(f, x, 20.5, 1.0, clip=True, generator=seeded())
    assert free.measured > 0.1
    assert boxed.measured == 0
    assert boxed.upper > 0


def test_an_ensemble_leaves_fewer_directions():
    n = 20
    pair = [Neuron(lambda x: x[:, 0], (n,)), Neuron(lambda x: x[:, 1], (n,))]
    x = torch.zeros(1, n, dtype=torch.float64)
    both = adversarial_fraction(jointly(pair, double([0.1, 0.1])), x, 0.0, 1.0, samples=20_000, generator=seeded())
    one = adversarial_fraction(pair[0], x, 0.1, 1.0, samples=20_000, generator=seeded())
    assert (both.measured - one.measured**2).abs() < 0.02


def test_flat_and_spoiled_cases():
    f = Neuron(
        lambda x, kind: torch.where(kind > 0, torch.nan, 1.0) * (0.5 * x.square().sum(1)),
        (3,),
        given=(double(0.0, 1.0),),
    )
    x = torch.zeros(2, 3, dtype=torch.float64)
    whole = Neuron(lambda x: 0.5 * x.square().sum(1), (3,))
    # no gradient: every direction is alike, and the radius decides
    found = adversarial_fraction(whole, x, double(0.4, 0.6), 1.0, samples=50, generator=seeded())
    assert found.predicted.tolist() == found.measured.tolist() == [1.0, 0.0]
    spoiled = increasing_share(Neuron(f.response, (3,), Box(-1.0, 1.0), given=f.given), x, generator=seeded())
    assert names(spoiled.status) == ["DONE", "NOT_FINITE"]


def test_a_case_alone_equals_itself_in_a_batch():
    f = Neuron(lambda x, a: x[:, 0] + a * x.square().sum(1), (6,), Box(-1.0, 1.0), given=(double(0.1, -0.3),))
    x = torch.zeros(2, 6, dtype=torch.float64)
    whole = adversarial_fraction(f, x, 0.3, 0.8, samples=300, probes=3, steps=2, generator=seeded())
    share = increasing_share(f, x, generator=seeded())
    part = torch.tensor([1])
    alone = adversarial_fraction(f.select(part), x[part], 0.3, 0.8, samples=300, probes=3, steps=2, generator=seeded())
    for name in ("predicted", "predicted_error", "measured", "moments", "lower"):
        torch.testing.assert_close(getattr(alone, name), getattr(whole, name)[part], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(increasing_share(f.select(part), x[part], generator=seeded()).share, share.share[part])


def test_bad_questions_are_refused(unchecked):
    f, x = Neuron(lambda x: x.sum(1), (3,)), torch.zeros(2, 3)
    for radius in (0.0, -1.0, float("inf"), torch.ones(3)):
        with pytest.raises(ValueError, match="radius must be positive"):
            unchecked(adversarial_fraction)(f, x, 1.0, radius, generator=seeded())
    for settings in ({"samples": 1}, {"probes": 1}):
        with pytest.raises(ValueError, match="at least 2"):
            adversarial_fraction(f, x, 1.0, 1.0, generator=seeded(), **settings)
    with pytest.raises(ValueError, match="multiple of 50"):
        adversarial_fraction(f, x, 1.0, 1.0, rare=True, samples=130, generator=seeded())


# --- the share of the box ---------------------------------------------------------------------------------


def test_areas_in_two_dimensions():
    disc = Neuron(lambda x: -x.square().sum(1), (2,), Box(-1.0, 1.0))
    found = increasing_share(disc, double([0.6, 0.0], [0.3, 0.3]))
    torch.testing.assert_close(found.share, double(0.09, 0.045) * math.pi, rtol=2e-4, atol=0)
    assert ((found.share - double(0.09, 0.045) * math.pi).abs() < found.error).all()
    assert found.method == "grid"
    slanted = Neuron(lambda x: x[:, 0] + 0.5 * x[:, 1], (2,), Box(0.0, double(1.0, 2.0)))
    half = increasing_share(slanted, double([0.5, 1.0]), cells=10)
    torch.testing.assert_close(half.share, double(0.5), rtol=1e-12, atol=0)
    assert half.error < 1e-12
    level = increasing_share(slanted, double([0.5, 1.0]), level=1.5, cells=20)
    torch.testing.assert_close(level.share, double(0.125), rtol=1e-9, atol=0)
    assert "Share(1 of 1 cases" in repr(level)


def test_the_grid_converges_to_second_order():
    disc = Neuron(lambda x: -x.square().sum(1), (2,), Box(-1.0, 1.0))
    x, truth = double([0.6, 0.0]), 0.09 * math.pi
    coarse, fine = ((increasing_share(disc, x, cells=c).share - truth).abs() for c in (20, 160))
    assert fine < coarse / 20


def test_volumes_in_more_dimensions():
    f = Neuron(lambda x: x.amax(1), (4,), Box(0.0, 1.0))
    x = torch.full((2, 4), 0.7, dtype=torch.float64)
    x[1] = 0.9
    found = increasing_share(f, x, samples=20_000, generator=seeded())
    truth = 1 - double(0.7, 0.9) ** 4
    assert ((found.lower < truth) & (truth < found.upper)).all()
    assert ((found.share - truth).abs() < 4 * found.error).all()


def test_intervals_of_shares():
    low, high = wilson(double(0.0, 0.5, 1.0), 100)
    torch.testing.assert_close(low, double(0.0, 0.4038, 0.9630), rtol=0, atol=1e-4)
    torch.testing.assert_close(high, double(0.0370, 0.5962, 1.0), rtol=0, atol=1e-4)


def test_shares_that_cannot_be_told_are_refused():
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="finite bounds"):
        increasing_share(Neuron(lambda x: x.sum(1), (3,)), x, generator=seeded())
    with pytest.raises(ValueError, match="give a generator"):
        increasing_share(Neuron(lambda x: x.sum(1), (3,), Box(0.0, 1.0)), x)
    with pytest.raises(ValueError, match="even number"):
        increasing_share(Neuron(lambda x: x.sum(1), (2,), Box(0.0, 1.0)), torch.zeros(1, 2), cells=7)
