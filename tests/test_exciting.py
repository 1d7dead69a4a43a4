"""The input a neuron likes best: closed forms in a ball, in a box and in both; several maxima; the projection."""

import numpy as np
import pytest
import torch
from analytic import names, normal, uniform
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize

from isoresponse.exciting import _project, most_exciting_input
from isoresponse.neuron import Box, Neuron


def mei(neuron, generator, center=None, **how):
    """The MEI in float64, which the center brings with it."""
    center = torch.zeros(neuron.shape, dtype=torch.float64) if center is None else center
    return most_exciting_input(neuron, generator=generator, center=center, **how)


def linear(n, generator, box=None, shape=None):
    w = normal(n, generator=generator)
    return w, Neuron(lambda x: x.flatten(1) @ w, shape or (n,), box or Box())


@pytest.fixture
def hill(generator):
    """A rotated quadratic with one maximum at (0.2, -0.1, 0.3), axes 1, 2 and 5."""
    q, _ = torch.linalg.qr(normal(3, 3, generator=generator))
    h = q @ torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)) @ q.T
    top = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)
    return Neuron(lambda x: 7 - torch.einsum("ci,ij,cj->c", x - top, h, x - top), (3,), Box(-1.0, 1.0)), top


@pytest.mark.parametrize("norm", [0.3, 1.0, 40.0])
def test_in_a_ball_a_linear_neuron_likes_its_own_weights(generator, norm):
    w, neuron = linear(6, generator)
    found = mei(neuron, generator, norm=norm)
    torch.testing.assert_close(found.point, norm * w / w.norm(), rtol=1e-4, atol=1e-4 * norm)
    assert float(found.value) == pytest.approx(norm * float(w.norm()), rel=1e-8)
    assert set(names(found.status)) == {"DONE"}
    torch.testing.assert_close(found.agreement, torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-6)


def test_in_a_box_a_linear_neuron_likes_a_corner(generator):
    w, neuron = linear(6, generator, Box(-0.5, 2.0))
    found = mei(neuron, generator)
    torch.testing.assert_close(found.point, torch.where(w > 0, 2.0, -0.5).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [0.4, 0.9, 1.6])
def test_in_ball_and_box_a_linear_neuron_agrees_with_scipy(generator, norm):
    w, neuron = linear(5, generator, Box(-0.3, 0.6))
    center = uniform(5, low=-0.25, high=0.3, generator=generator)
    found = mei(neuron, generator, norm=norm, center=center)
    ball = NonlinearConstraint(lambda x: ((x - center.numpy()) ** 2).sum(), -np.inf, norm**2)
    other = minimize(
        lambda x: -x @ w.numpy(), center.numpy(), method="SLSQP", bounds=[(-0.3, 0.6)] * 5, constraints=[ball],
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert float(found.value) == pytest.approx(-other.fun, rel=1e-7)
    np.testing.assert_allclose(found.point.numpy(), other.x, atol=2e-4)


def test_an_interior_maximum_is_found_from_every_start(hill, generator):
    neuron, top = hill
    found = mei(neuron, generator, max_steps=400, rtol=1e-9)
    torch.testing.assert_close(found.points, top.expand(8, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.value, torch.tensor(7.0, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.agreement, torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-6)


def test_an_interior_maximum_counts_as_converged_with_optimality_zero(hill, generator):
    found = mei(hill[0], generator, max_steps=400)
    assert set(names(found.status)) == {"DONE"}
    assert (found.optimality <= 1e-4).all()


def test_a_quadratic_in_a_ball_that_cuts_its_maximum_off_agrees_with_scipy(hill, generator):
    neuron, _ = hill
    found = mei(neuron, generator, norm=0.2, max_steps=400)
    ball = NonlinearConstraint(lambda x: (x**2).sum(), -np.inf, 0.04)
    other = minimize(
        lambda x: -float(neuron.value(torch.as_tensor(x)[None])), np.zeros(3), method="SLSQP", constraints=[ball],
        options={"ftol": 1e-14},
    )  # fmt: skip
    assert float(found.value) == pytest.approx(-other.fun, rel=1e-6)
    assert float(found.point.norm()) == pytest.approx(0.2, rel=1e-9)


def test_several_maxima_show_as_disagreement_and_the_best_comes_first(generator):
    a = torch.eye(4, dtype=torch.float64)[0]
    neuron = Neuron(lambda x: torch.where(x @ a > 0, 2.0, 1.0) * (x @ a).abs(), (4,))
    found = mei(neuron, generator, norm=1.5, starts=12)
    torch.testing.assert_close(found.point, 1.5 * a, rtol=0, atol=1e-3)
    assert torch.equal(found.point, found.points[0])
    assert torch.equal(found.value, found.values[0])
    assert (found.values.diff() <= 0).all()
    assert {round(v, 4) for v in found.values.tolist()} == {3.0, 1.5}
    opposite = found.values < 2
    torch.testing.assert_close(found.agreement, torch.where(opposite, -1.0, 1.0).double(), rtol=0, atol=1e-4)


def test_agreement_is_seen_from_the_middle_of_the_starts(generator):
    a, center = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 50.0]).double()
    neuron = Neuron(lambda x: (x @ a).abs(), (2,))
    found = mei(neuron, generator, norm=1.0, center=center, starts=12)
    same = torch.sign(found.points[:, 0]) == torch.sign(found.point[0])
    assert 0 < int(same.sum()) < 12
    torch.testing.assert_close(found.agreement, torch.where(same, 1.0, -1.0).double(), rtol=0, atol=1e-3)


def test_inputs_keep_their_shape_dtype_and_reproduce_from_the_seed():
    w = torch.arange(6.0)
    neuron = Neuron(lambda x: x.flatten(1) @ w, (1, 2, 3), Box(0.0, 1.0))
    first, again = (most_exciting_input(neuron, generator=torch.Generator().manual_seed(3), starts=3) for _ in range(2))
    assert first.point.shape == (1, 2, 3)
    assert first.points.shape == (3, 1, 2, 3)
    assert first.point.dtype == torch.float32
    assert torch.equal(first.points, again.points)


def test_points_stay_in_ball_and_box(generator):
    net = torch.nn.Sequential(torch.nn.Linear(8, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1)).double()
    for p in net.parameters():
        p.data = normal(*p.shape, generator=generator)
    neuron, center = Neuron.of(net, shape=(8,), box=Box(0.0, 1.0)), torch.full((8,), 0.9, dtype=torch.float64)
    found = mei(neuron, generator, norm=0.7, center=center)
    assert neuron.box.contains(found.points).all()
    assert ((found.points - center).norm(dim=1) <= 0.7 * (1 + 1e-9)).all()
    torch.testing.assert_close(found.values, neuron.value(found.points))


def test_a_start_without_gradient_is_flat_and_leaves_the_others_alone(generator):
    neuron = Neuron(lambda x: x[:, 0].relu(), (2,), Box(-1.0, 1.0))
    found = mei(neuron, generator, starts=10)
    dead = torch.tensor([name == "FLAT" for name in names(found.status)])
    assert 0 < int(dead.sum()) < 10
    assert found.points[dead].isnan().all()
    assert found.values[dead].isnan().all()
    torch.testing.assert_close(found.points[~dead, 0], torch.ones(int((~dead).sum()), dtype=torch.float64))
    assert not dead[0]


def test_a_constant_neuron_has_no_answer(generator):
    found = mei(Neuron(lambda x: 0 * x.sum(1), (2,)), generator, norm=1.0)
    assert set(names(found.status)) == {"FLAT"}
    assert found.value.isnan()
    assert found.point.isnan().all()


LINEAR = Neuron(lambda x: x.sum(1), (2,))


@pytest.mark.parametrize(
    ("neuron", "how", "message"),
    [
        (LINEAR, {}, "needs a norm or a finite box, got neither"),
        (Neuron(LINEAR.response, (2,), Box(0.0)), {}, "needs a norm or a finite box"),
        (LINEAR, {"norm": 0.0}, r"norm must be positive, got 0\.0"),
        (LINEAR, {"norm": float("nan")}, "norm must be positive, got nan"),
        (LINEAR, {"norm": float("inf")}, "norm"),
        (LINEAR, {"norm": 1.0, "starts": 0}, "starts must be at least 1, got 0"),
        (Neuron(lambda x, b: x.sum(1) + b, (2,), given=(torch.ones(3),)), {"norm": 1.0}, "differs between cases"),
        (LINEAR, {"norm": 1.0, "center": torch.zeros(3, dtype=torch.float64)}, "center"),
    ],
)
def test_questions_without_an_answer_are_refused(generator, neuron, how, message):
    with pytest.raises(ValueError, match=message):
        mei(neuron, generator, **how)


# --- the projection onto ball and box


def project(x, center, radius):
    return _project(x, center, radius, Neuron(LINEAR.response, (4,), Box(-0.4, 0.7)))


@pytest.fixture
def scene(generator):
    center = uniform(30, 4, low=-0.4, high=0.7, generator=generator)
    return center, center + 2 * normal(30, 4, generator=generator), center + normal(30, 4, generator=generator)


@given(seed=st.integers(0, 10_000), radius=st.floats(0.05, 3.0))
def test_projecting_twice_changes_nothing_and_never_stretches(seed, radius):
    draw = torch.Generator().manual_seed(seed)
    center = uniform(1, 4, low=-0.4, high=0.7, generator=draw)
    a, b = center + 2 * normal(2, 1, 4, generator=draw)
    once, other = project(a, center, radius), project(b, center, radius)
    torch.testing.assert_close(project(once, center, radius), once, rtol=0, atol=1e-12)
    assert (once - other).norm() <= (a - b).norm() * (1 + 1e-9)
    assert (once - center).norm() <= radius * (1 + 1e-12)


def test_inside_nothing_moves(scene):
    center, x, _ = scene
    inside = (center + 0.1 * (x - center) / (x - center).norm(dim=1, keepdim=True)).clamp(-0.4, 0.7)
    assert torch.equal(project(inside, center, 0.2), inside)


def test_without_a_ball_it_is_the_clip(scene):
    center, x, _ = scene
    assert torch.equal(project(x, center, float("inf")), x.clamp(-0.4, 0.7))


@pytest.mark.parametrize("radius", [0.2, 0.6])
def test_the_projection_agrees_with_scipy(scene, radius):
    center, x, _ = scene
    ours = project(x, center, radius)
    for i in range(6):
        c, target = center[i].numpy(), x[i].numpy()
        inside = [LinearConstraint(np.eye(4), -0.4, 0.7)]
        ball = NonlinearConstraint(lambda p, c=c: ((p - c) ** 2).sum(), -np.inf, radius**2)
        found = minimize(
            lambda p, t=target: ((p - t) ** 2).sum(), c, method="SLSQP", constraints=[*inside, ball],
            options={"ftol": 1e-13, "maxiter": 300},
        )  # fmt: skip
        np.testing.assert_allclose(ours[i].numpy(), found.x, atol=1e-5)
