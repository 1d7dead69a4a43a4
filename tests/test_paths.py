"""The steepest path across contours: closed forms, laws, and every way to end early."""

import pytest
import torch
from analytic import BENT, dot, energy, linear, names, normal, quadric, relu_net, sphere
from scipy.integrate import solve_ivp

from isoresponse.neuron import Box, Neuron
from isoresponse.paths import gradient_path
from isoresponse.solve import closest_point


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def passed(path):
    return torch.isfinite(path.points).flatten(2).all(2)


def gelu_net(*, generator):
    net = relu_net(generator=generator)
    net[1] = torch.nn.GELU()
    return net


def test_on_a_linear_neuron_the_path_is_straight_and_as_long_as_the_gap_over_the_slope(generator):
    known = linear(generator=generator)
    path = gradient_path(known.neuron, known.x, known.level, knots=9)
    assert set(names(path.status)) == {"DONE"}
    part = torch.linspace(0, 1, 9, dtype=torch.float64)[None, :, None]
    straight = known.x[:, None] + part * (known.point - known.x)[:, None]
    torch.testing.assert_close(path.points, straight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(path.arclength[:, -1], known.distance, rtol=1e-8, atol=0)
    assert path.orthogonality.abs().max() < 1e-6


def test_down_is_as_good_as_up(generator):
    known = linear(generator=generator)
    start = known.neuron(known.x)
    back = gradient_path(known.neuron, known.point, start, knots=5)
    torch.testing.assert_close(back.points[:, -1], known.x, rtol=1e-8, atol=1e-8)
    assert (back.responses.diff(dim=1) < 0).all()


@pytest.mark.parametrize("shape", [sphere, energy])
def test_round_contours_are_crossed_along_their_radius(shape, generator):
    known = shape(generator=generator)
    path = gradient_path(known.neuron, known.x, known.level, knots=11)
    assert set(names(path.status)) == {"DONE"}
    if shape is sphere:
        torch.testing.assert_close(path.points[:, -1], known.point, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(path.arclength[:, -1], known.distance, rtol=1e-5, atol=0)
    assert (path.arclength[:, -1] >= known.distance * (1 - 1e-6)).all()


@pytest.mark.parametrize("bent", BENT)
def test_laws_of_the_steepest_path_on_quadrics(bent, generator):
    known = quadric(6, low=bent[0], high=bent[1], generator=generator)
    path = gradient_path(known.neuron, known.x, known.level, knots=31, rtol=0.02)
    done = torch.tensor([name == "DONE" for name in names(path.status)])
    assert done.all()
    start = known.neuron(known.x)
    span = known.level - start
    targets = start[:, None] + torch.linspace(0, 1, 31, dtype=torch.float64) * span[:, None]
    here = torch.stack([known.neuron.value(p) for p in path.points.unbind(1)], 1)
    assert ((here - targets).abs() <= 1.05e-6 * span.abs()[:, None]).all()
    torch.testing.assert_close(path.responses, here)
    torch.testing.assert_close(path.drift, (here - targets), rtol=0, atol=1e-12)
    assert (path.arclength[:, -1] >= known.distance * (1 - 1e-6)).all()
    nearest = closest_point(known.neuron, known.x, known.level)
    assert (path.arclength[:, -1] >= nearest.distance * (1 - 1e-6)).all()
    # between knots a path may turn: the chord's angle to the gradient is small, its median far below a degree
    assert torch.rad2deg(path.orthogonality[:, 1:-1].median()) < 0.5


def test_halving_the_distance_between_knots_quarters_the_chord_angle(generator):
    """Chord through two neighbours against the gradient between them: a central difference."""
    known = quadric(3, low=-0.5, high=2.0, generator=generator)
    angle = [
        gradient_path(known.neuron, known.x, known.level, knots=k, rtol=1e-2).orthogonality[:, 1:-1].mean()
        for k in (8, 15)
    ]
    assert float(angle[0] / angle[1]) == pytest.approx(4.0, rel=0.1)


def test_the_path_agrees_with_scipy(generator):
    known = quadric(2, low=-0.5, high=5.0, generator=generator)
    path = gradient_path(known.neuron, known.x, known.level, knots=6, rtol=3e-3)
    for i in range(2):
        neuron = known.neuron.select(torch.tensor([i]))

        def along(_t, x, neuron=neuron):
            _, g = neuron.value_and_grad(torch.as_tensor(x)[None])
            return (g / (g * g).sum())[0].numpy()

        span = float(known.level[i] - neuron(known.x[i : i + 1])[0])
        exact = solve_ivp(
            along, (0, span), known.x[i].numpy(), rtol=1e-7, atol=1e-9, t_eval=[k * span / 5 for k in range(6)]
        )
        error = (path.points[i] - torch.as_tensor(exact.y.T)).norm(dim=1)
        assert float(error.max()) < 2e-3 * float(path.arclength[i, -1])


def test_in_a_box_the_path_slides_along_the_wall(generator):
    neuron = Neuron(lambda x: 2 * x[:, 0] + x[:, 1], (2,), Box(0.0, 1.0))
    path = gradient_path(neuron, vector(0.8, 0.0)[None], 2.8, knots=13)
    assert names(path.status) == ["DONE"]
    assert neuron.box.contains(path.points[0]).all()
    # (0.8, 0) -> (1, 0.1) along (2, 1), then up the wall to (1, 0.8)
    torch.testing.assert_close(path.points[0, -1], vector(1.0, 0.8), rtol=0, atol=1e-6)
    for knot, response in zip(path.points[0], torch.linspace(1.6, 2.8, 13).double(), strict=True):
        free = response <= 2.1
        there = vector(0.8, 0) + (response - 1.6) / 5 * vector(2, 1) if free else vector(1.0, float(response) - 2)
        torch.testing.assert_close(knot, there, rtol=0, atol=2e-3)
    assert path.orthogonality[0, [1, 2, 3, 7, 8, 9, 10, 11]].abs().max() < 1e-6  # all but those beside the bend


def test_a_corner_ends_the_path_as_blocked():
    neuron = Neuron(lambda x: x.sum(1), (2,), Box(0.0, 1.0))
    path = gradient_path(neuron, torch.full((1, 2), 0.5, dtype=torch.float64), 2.9, knots=9)
    assert passed(path)[0].tolist() == [True] * 5 + [False] * 4  # 1, 1.2375, ... 1.95; the corner is at 2
    assert names(path.status) == ["BLOCKED"]


def test_a_start_in_the_corner_is_blocked_at_once():
    neuron = Neuron(lambda x: x.sum(1), (2,), Box(0.0, 1.0))
    path = gradient_path(neuron, torch.ones(1, 2, dtype=torch.float64), 3.0, knots=4)
    assert names(path.status) == ["BLOCKED"]
    assert passed(path)[0].tolist() == [True, False, False, False]


def test_a_summit_below_the_level_ends_the_path_and_keeps_what_was_passed():
    neuron = Neuron(lambda x: 1 - x.square().sum(1), (3,))
    start = vector(1.2, 0.9, 0.0)[None]  # response -1.25, summit 1, level 2
    path = gradient_path(neuron, start, 2.0, knots=14)
    assert names(path.status) == ["FLAT"]
    knots = torch.linspace(-1.25, 2.0, 14, dtype=torch.float64)
    below = knots < 0.99
    assert passed(path)[0, below].all()
    assert not passed(path)[0, knots > 1].any()
    torch.testing.assert_close(path.responses[0, below], knots[below], rtol=0, atol=1e-5)
    torch.testing.assert_close(path.arclength[0, below], 1.5 - (1 - knots[below]).sqrt(), rtol=0, atol=1e-4)
    for numbers in (path.responses, path.arclength, path.orthogonality, path.drift):
        assert numbers[0, knots > 1].isnan().all()


def test_a_dead_start_and_a_nan_end_alone(generator):
    def response(x):
        good = x.sum(1)
        return torch.where(x[:, 0] > 5, 0 * good, torch.where(x[:, 0] < -5, (x[:, 0] + 5).sqrt(), good))

    x = torch.tensor([[0.0, 0], [6, 0], [-6, 0], [1, 1]], dtype=torch.float64)
    path = gradient_path(Neuron(response, (2,)), x, torch.tensor([1.0, 1.0, 1.0, 3.0]).double(), knots=3)
    assert names(path.status) == ["DONE", "FLAT", "NOT_FINITE", "DONE"]
    torch.testing.assert_close(path.points[[0, 3], -1], torch.tensor([[0.5, 0.5], [1.5, 1.5]]).double())
    assert not passed(path)[1:3, 1:].any()


@pytest.mark.parametrize("build", [quadric, relu_net])
def test_a_case_alone_is_the_case_in_a_batch(build, generator):
    if build is quadric:
        known = quadric(4, 3, generator=generator)
        neuron, x = known.neuron, known.x
        level = neuron.value(x) + 0.2 * (known.level - neuron.value(x))
    else:
        neuron = Neuron.of(relu_net(generator=generator), shape=(6,))
        x = normal(4, 6, generator=generator)
        level = neuron.value(x) + 0.05
    whole = gradient_path(neuron, x, level, knots=3)
    for i in (0, 3):
        case = slice(i, i + 1)
        alone = gradient_path(neuron.select(torch.tensor([i])), x[case], level[case], knots=3)
        assert alone.status[0] == whole.status[i]
        torch.testing.assert_close(alone.points[0], whole.points[i], rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("net", [relu_net, gelu_net])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_are_crossed_to_the_end(net, dtype, generator):
    neuron = Neuron.of(net(generator=generator).to(dtype), shape=(6,))
    x = normal(12, 6, generator=generator).to(dtype)
    start = neuron.value(x)
    path = gradient_path(neuron, x, start + 0.3, knots=9)
    done = torch.tensor([name == "DONE" for name in names(path.status)])
    assert int(done.sum()) >= 11
    tight = 1.01e-6 if dtype == torch.float64 else 1e-5
    assert path.drift[done].abs().max() <= tight * 0.3 + 8 * torch.finfo(dtype).eps * float(start.abs().max() + 1)
    assert path.points.dtype == dtype
    nearest = closest_point(neuron, x, start + 0.3)
    assert (path.arclength[:, -1] >= nearest.distance * (1 - 1e-4))[done].all()


def test_images_keep_their_shape_and_the_level_may_be_the_start(generator):
    w = normal(6, generator=generator)
    neuron = Neuron(lambda x: x.flatten(1) @ w, (1, 2, 3))
    x = normal(2, 1, 2, 3, generator=generator)
    path = gradient_path(neuron, x, neuron.value(x) + torch.tensor([1.0, 0.0]).double(), knots=4)
    assert path.points.shape == (2, 4, 1, 2, 3)
    assert set(names(path.status)) == {"DONE"}
    torch.testing.assert_close(path.arclength[1], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)


def test_alignment_is_the_cosine_of_the_change_with_a_direction(generator):
    known = linear(generator=generator)
    path = gradient_path(known.neuron, known.x, known.level, knots=5)
    direction = normal(7, generator=generator)
    change = known.point - known.x
    cosine = dot(change, direction) / (change.norm(dim=1) * direction.norm())
    seen = path.alignment(direction)
    assert seen[:, 0].isnan().all()
    torch.testing.assert_close(seen[:, 1:], cosine[:, None].expand(-1, 4), rtol=0, atol=1e-7)
    torch.testing.assert_close(path.alignment(-3 * direction)[:, 1:], -seen[:, 1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "level", "knots", "message"),
    [
        (torch.zeros(1, 2), 1.0, 1, "at least 2 knots, got 1"),
        (torch.zeros(1, 3), 1.0, 5, r"x must have shape \(case, 2\)"),
        (torch.full((1, 2), 3.0), 1.0, 5, "x must lie in the box"),
        (torch.zeros(1, 2), float("nan"), 5, "level must be finite"),
        (torch.zeros(2, 2), torch.zeros(3), 5, r"level must be a number or have shape \(2,\)"),
    ],
)
def test_paths_that_make_no_sense_are_refused(unchecked, x, level, knots, message):
    with pytest.raises(ValueError, match=message):
        unchecked(gradient_path)(Neuron(lambda x: x.sum(1), (2,), Box(-1.0, 1.0)), x, level, knots=knots)
