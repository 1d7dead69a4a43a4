"""The closest point inside a box, against SciPy and against bisection."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from analytic import linear, normal, quadric, uniform

from isoresponse.neuron import Box, Neuron
from isoresponse.solve import closest_point


def tanh_net(generator, n=8, width=20):
    w, b, v = (
        1.5 * normal(width, n, generator=generator),
        normal(width, generator=generator),
        normal(width, generator=generator),
    )
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
    found = closest_point(neuron, x, level, budget=120)
    solved = torch.nonzero(found.success).flatten().tolist()
    assert len(solved) >= 20
    touching = ((found.point == neuron.box.lower) | (found.point == neuron.box.upper)).any(1)
    assert int(touching.sum()) >= 10
    for i in solved:
        one = neuron.select(torch.tensor([i]))
        assert by_scipy(one, x[i], level[i], x[i]) >= float(found.distance[i]) * (1 - 1e-4)
        assert by_scipy(one, x[i], level[i], found.point[i]) >= float(found.distance[i]) * (1 - 1e-4)
    some = found.success
    sign = torch.where(level >= neuron.value(x), 1.0, -1.0)
    assert (sign * (found.value - level) >= -1e-12)[some].all()
    assert neuron.box.contains(found.point)[some].all()


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


def nearest_on_ellipsoid(p, a):
    """Distance of point `p` to the ellipsoid with half-axes `a`, from the secular equation of its multiplier."""

    def miss(t):
        return float(np.square(a * p / (a * a + t)).sum() - 1)

    t = scipy.optimize.brentq(miss, -(float(a.min()) ** 2) + 1e-12, 1e6, xtol=1e-15)
    return float(np.linalg.norm(a * a * p / (a * a + t) - p))


@pytest.mark.parametrize("n", [3, 12])
def test_an_ellipsoid_is_met_from_inside_and_from_outside(generator, n):
    """Also where Newton approaches the contour for ever from one side, and where the ray only grazes it."""
    axes = 0.3 + 2 * torch.rand(300, n, generator=generator, dtype=torch.float64)
    points = 2 * torch.randn(300, n, generator=generator, dtype=torch.float64)
    ellipsoid = Neuron(lambda x, a: (x * x / a**2).sum(1), (n,), given=(axes,))
    found = closest_point(ellipsoid, points, 1.0)
    pairs = zip(points.numpy(), axes.numpy(), strict=True)
    truth = torch.tensor([nearest_on_ellipsoid(p, a) for p, a in pairs], dtype=torch.float64)
    assert found.success.all()
    torch.testing.assert_close(found.distance, truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("squash", "level", "argument"),
    [(torch.exp, 5.0, np.log(5.0)), (torch.sigmoid, 0.9, np.log(9.0)), (torch.tanh, -0.5, np.arctanh(-0.5))],
    ids=["exp", "sigmoid", "tanh"],
)
def test_spacing_that_changes_by_orders_of_magnitude_changes_no_distance(generator, squash, level, argument, dtype):
    """A linear-nonlinear neuron has straight contours whatever its nonlinearity: the distance is that of the linear one."""
    w = normal(200, 6, generator=generator)
    x = 2 * normal(200, 6, generator=generator)
    neuron = Neuron(lambda z, w: squash((z * w).sum(1)), (6,), given=(w.to(dtype),))
    found = closest_point(neuron, x.to(dtype), level)
    truth = (argument - (x * w).sum(1)).abs() / w.norm(dim=1)
    exact = found.success & (found.status != 4)
    assert exact.double().mean() > 0.9  # float32 saturates to gradient zero in some cases: FLAT, not a number
    torch.testing.assert_close(
        found.distance[exact].double(), truth[exact], rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=2e-5
    )
