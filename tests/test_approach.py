"""The search in every norm, against optima in closed form, and where the first linearisation sees nothing."""

import math

import pytest
import torch
from analytic import normal, uniform
from torch import nn

from isoresponse.classifier import Classifier
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.norms import INF, nearest_in_plane, size
from isoresponse.solve import closest_point

NORMS = [1.0, 2.0, INF]


def into_a_ball(x, radius, norm):
    """How far (case,) `x` is from the ball of `radius` around the origin: by bisection on the dual's one number."""
    low, high = torch.zeros(len(x), dtype=x.dtype), x.abs().amax(1)
    for _ in range(100):
        middle = 0.5 * (low + high)
        # L-infinity: every element comes nearer by as much; L1: the largest come down to a common ceiling
        shrunk, cut = (x.abs() - middle[:, None]).clamp_min(0), torch.minimum(x.abs(), middle[:, None])
        moved = shrunk if norm == INF else cut
        outside = moved.norm(dim=1) > radius
        low, high = (
            torch.where(outside == (norm == INF), middle, low),
            torch.where(outside == (norm == INF), high, middle),
        )
    return high if norm == INF else (x.abs() - low[:, None]).clamp_min(0).sum(1)


@pytest.mark.parametrize("norm", [1.0, INF])
def test_into_a_ball(generator, norm):
    x = 2 * normal(40, 8, generator=generator)
    neuron = Neuron(lambda z: z.square().sum(1), (8,))
    far = x.norm(dim=1) > 1.5
    found = closest_point(neuron, x[far], 2.25, norm=norm)
    assert found.success.all()
    # elements whose slope vanishes at the optimum lie between all bounds, where no corner of a plane would put them
    torch.testing.assert_close(found.distance, into_a_ball(x[far], 1.5, norm), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.distance, size(found.point - x[far], norm))
    assert (found.value <= 2.25).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("squash", [torch.relu, torch.tanh])
def test_a_flat_start_is_left(generator, norm, squash):
    """A silent unit, and one saturated to the last bit of float32, say nothing of the way; past it the answer is exact."""
    w, x = normal(40, 6, generator=generator), 2 * normal(40, 6, generator=generator)
    drive = -12 - 4 * uniform(40, generator=generator)
    x = x + ((drive - (x * w).sum(1)) / w.square().sum(1))[:, None] * w
    neuron = Neuron(lambda z, w: squash((z * w).sum(1)), (6,), given=(w.float(),))
    found = closest_point(neuron, x.float(), 0.5, norm=norm, budget=400)
    truth = (math.atanh(0.5) if squash is torch.tanh else 0.5) - drive
    truth = truth / w.norm(p={1.0: INF, 2.0: 2.0, INF: 1.0}[norm], dim=1)
    assert found.success.double().mean() > 0.95
    some = found.success
    torch.testing.assert_close(found.distance[some].double(), truth[some], rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("budget", [100, 500])
def test_a_linear_classifier_in_a_box_is_solved_exactly(generator, norm, budget):
    weights, offsets = normal(4, 6, generator=generator), 0.3 * normal(4, generator=generator)
    clf = Classifier(lambda z: z @ weights.T + offsets, (6,), 4, Box(0, 1))
    x = uniform(60, 6, generator=generator)
    labels = clf.predict(x)
    scores = clf.logits(x)
    best = torch.full((60,), INF, dtype=torch.float64)
    for rival in range(4):
        gap = scores.gather(1, labels[:, None])[:, 0] - scores[:, rival]
        d, exists = nearest_in_plane(gap, weights[rival] - weights[labels], -x, 1 - x, norm)
        best = torch.minimum(best, size(d, norm).masked_fill(~exists | (labels == rival), INF))
    found = clf.closest_adversary(x, labels, norm=norm, budget=budget)
    solvable = torch.isfinite(best)
    torch.testing.assert_close(found.distance[solvable], best[solvable], rtol=1e-10, atol=0)
    assert (found.gradients <= budget).all()
    assert not found.success[~solvable].any()


@pytest.mark.parametrize("norm", NORMS)
def test_targets_are_reached(generator, norm):
    net = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 5)).double()
    for parameter in net.parameters():
        parameter.data = 2 * normal(*parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    clf, x = Classifier.of(net, shape=(6,), box=Box(-2, 2)), uniform(20, 6, generator=generator)
    labels = clf.predict(x)
    targets = (labels + 1) % 5
    found = clf.closest_adversary(x, labels, norm=norm, targets=targets)
    some = found.success
    assert some.double().mean() > 0.8
    assert (clf.predict(found.point[some]) == targets[some]).all()
    anyone = clf.closest_adversary(x, labels, norm=norm)
    assert (anyone.distance[some] <= 1.02 * found.distance[some]).all()
    with pytest.raises(ValueError, match="targets must differ from labels"):
        clf.closest_adversary(x, labels, targets=labels)


@pytest.mark.parametrize("norm", NORMS)
def test_thresholds_hide_the_boundary_from_the_gradient_at_the_input(generator, norm):
    """Units that wake up at 0.4, as interval-bound training makes them: the gradient at the input leads to other elements."""
    weights = uniform(1, 8, generator=generator)

    def response(z):
        return (weights * torch.relu(z - 0.4)).sum(1) + 1e-3 * z.flip(1)[:, 0]

    neuron = Neuron(response, (8,), Box(0, 1))
    found = closest_point(
        neuron, torch.zeros(1, 8, dtype=torch.float64), 0.3 * float(weights.max()), norm=norm, budget=300
    )
    assert found.success.all()
    # one element alone, raised until its unit answers, is always an answer
    assert float(found.distance) <= 1.001 * (0.4 + 0.3)


@pytest.mark.parametrize("norm", NORMS)
def test_a_larger_budget_is_not_worse(generator, norm):
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 5)).double()
    for parameter in net.parameters():
        parameter.data = 2 * normal(*parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    clf, x = Classifier.of(net, shape=(6,), box=Box(0, 1)), uniform(40, 6, generator=generator)
    labels = clf.predict(x)
    means = []
    for budget in (10, 40, 160, 640):
        found = clf.closest_adversary(x, labels, norm=norm, budget=budget)
        means.append(float(found.distance[found.success].mean()))
        assert (found.gradients <= budget).all()
        assert (found.propagations >= found.gradients).all()
    # all but a little, as another budget may end in another local optimum
    assert means[3] <= 1.005 * means[2] <= 1.01 * means[1] <= 1.1 * means[0]


def test_more_starts_find_the_other_side_of_the_valley():
    """The near wall is hidden: from the start the slope leads to a far one."""
    neuron = Neuron(lambda z: torch.where(z[:, 0] > 0, 0.2 * z[:, 0], 4 * (-z[:, 0] - 0.5)), (1,), Box(-10, 10))
    x = torch.tensor([[0.1]], dtype=torch.float64)
    once = closest_point(neuron, x, 1.0)
    torch.testing.assert_close(once.distance, torch.tensor([4.9], dtype=torch.float64), rtol=1e-6, atol=0)
    often = closest_point(neuron, x, 1.0, starts=8, budget=400, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(often.distance, torch.tensor([0.85], dtype=torch.float64), rtol=1e-6, atol=0)
    assert int(often.gradients) <= 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": 3.0}, "norm must be 1, 2 or"),
        ({"budget": 0}, "budget must be at least 1 gradient per case, got 0"),
        ({"budget": 2, "norm": 1.0}, "budget must be at least 3 gradients per case and start, got 2"),
        ({"starts": 0}, "starts must be at least 1"),
        ({"starts": 2}, "more than 1 need a generator"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    neuron = Neuron(lambda z: z.sum(1), (2,))
    with pytest.raises(ValueError, match=message):
        closest_point(neuron, torch.zeros(1, 2), 1.0, **changes)


@pytest.mark.parametrize("norm", NORMS)
def test_statuses_and_neighbours(norm):
    """One case cannot be reached, one is there already, one breaks on the way, one is sound: each by itself."""

    def response(z):
        return torch.where(z[:, 1] > 5, torch.full_like(z[:, 0], torch.nan), z[:, 0] + z[:, 1])

    neuron = Neuron(response, (2,), Box(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 9.0])))
    x = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    sound = closest_point(neuron, x, 1.5, norm=norm)
    both = closest_point(neuron, x.expand(3, 2), torch.tensor([1.5, 1.0, 40.0], dtype=torch.float64), norm=norm)
    assert torch.equal(both.point[0], sound.point[0])
    assert both.status[1] == Status.ALREADY
    assert both.distance[1] == 0
    assert not both.success[2]
    assert both.distance[2].isnan()
