"""Jets at a scale: what each builder measures, at which scale, how sure it is, and what it refuses."""

import math
from functools import partial

import pytest
import torch
from analytic import bending, frames, normal, quadric, relu_net, uniform
from torch.autograd.function import once_differentiable

from isoresponse.geometry import normal_curvature, principal_curvatures
from isoresponse.jets import JetBuilder, exact_jet, secant_jet, smoothed_jet
from isoresponse.krylov import krylov_jet
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.susceptibility import predict_distance, propose_scale


def net_of(n, *, generator):
    return Neuron.of(relu_net(n, generator=generator), shape=(n,))


def test_along_a_measured_direction_the_secant_is_the_mean_over_the_stretch():
    """Means of second derivatives over [-h, h] in closed form, for a response that is no quadratic."""
    neuron = Neuron(lambda x: x[:, 0] + torch.cos(2 * x[:, 1]) - x[:, 2].pow(4), (3,))
    x = torch.tensor([[0.1, 0.0, 0.0]], dtype=torch.float64)
    basis = torch.eye(3, dtype=torch.float64)[None, 1:]
    for h in (0.01, 0.5, 2.0):
        jet = secant_jet(neuron, x, scale=h, basis=basis)
        dense = jet.hessian.dense()[0]
        expected = torch.diag(torch.tensor([0.0, -2 * math.sin(2 * h) / h, -4 * h**2], dtype=torch.float64))
        torch.testing.assert_close(dense, expected, rtol=1e-9, atol=1e-9)
        assert float(jet.scale) == h
        assert jet.estimator == "secant"


def test_smoothing_a_kink_has_its_closed_form(generator):
    """E |s + sigma z| has second derivative 2 phi(s / sigma) / sigma: the exact Hessian of |.| is zero."""
    neuron = Neuron(lambda x: x[:, 0] + x[:, 1].abs(), (2,))
    x = torch.tensor([[0.0, 0.3]], dtype=torch.float64)
    for sigma in (0.2, 0.5):
        jet = smoothed_jet(neuron, x, scale=sigma, samples=40_000, generator=generator)
        expected = 2 * math.exp(-0.5 * (0.3 / sigma) ** 2) / math.sqrt(2 * math.pi) / sigma
        hessian = jet.hessian.dense()[0]
        assert float(hessian[1, 1]) == pytest.approx(expected, abs=2 * float(jet.error))
        assert float(jet.error) < 0.1
        assert float(jet.gradient[0, 1]) == pytest.approx(math.erf(0.3 / sigma / math.sqrt(2)), abs=0.02)


def test_smoothing_is_exact_on_quadrics_with_few_samples(generator):
    known = quadric(4, 6, generator=generator)
    exact = exact_jet(known.neuron, known.point)
    jet = smoothed_jet(known.neuron, known.point, scale=0.7, samples=20, generator=generator)
    torch.testing.assert_close(jet.hessian.dense(), exact.hessian.dense(), rtol=1e-9, atol=1e-9)
    assert (jet.error >= 0).all()
    shift = (jet.gradient - exact.gradient).abs().max()
    assert shift < 1e-9  # opposite draws cancel


def test_the_smoothed_band_shrinks_with_samples_and_holds(generator):
    neuron, x = net_of(6, generator=generator), normal(40, 6, generator=generator)
    few, many, reference = (
        smoothed_jet(neuron, x, scale=0.5, samples=s, generator=generator) for s in (60, 960, 20_000)
    )
    assert float((many.error / few.error).median()) == pytest.approx(0.25, rel=0.5)
    kappa = [principal_curvatures(j, 5, generator=generator, end="outward") for j in (few, many, reference)]
    for seen in kappa[:2]:
        inside = (seen.values - kappa[2].values).abs() <= seen.error
        assert inside.double().mean() > 0.9


def test_secants_hold_along_the_directions_that_they_find(generator):
    neuron, x = net_of(6, generator=generator), normal(60, 6, generator=generator)
    seen = principal_curvatures(secant_jet(neuron, x, scale=0.5), 5, generator=generator)
    inside = []
    for k in range(5):
        t = seen.directions[:, k]
        truth = bending(secant_jet(neuron, x, scale=0.5, basis=t[:, None]), t)
        inside.append((truth - seen.values[:, k]).abs() <= seen.error[:, k])
    assert torch.stack(inside).double().mean() > 0.9


def test_scales_differ_from_case_to_case_and_a_case_does_not_depend_on_its_neighbours(generator):
    neuron, x = net_of(6, generator=generator), normal(5, 6, generator=generator)
    scales = uniform(5, low=0.1, high=1.0, generator=generator)
    together = secant_jet(neuron, x, scale=scales)
    alone = secant_jet(neuron, x[3:4], scale=float(scales[3]))
    torch.testing.assert_close(alone.hessian.dense()[0], together.hessian.dense()[3], rtol=1e-12, atol=1e-13)
    assert torch.equal(together.select(torch.tensor([3])).error, together.error[3:4])


def test_the_krylov_jet_is_what_the_prediction_sees(generator):
    known = quadric(5, 6, generator=generator)
    d = known.point - known.x
    jet = krylov_jet(known.neuron, known.x, displacement=d, steps=3)
    torch.testing.assert_close(jet.scale, d.norm(dim=1))
    assert jet.basis is not None
    assert jet.basis.shape == (5, 3, 6)
    exact = exact_jet(known.neuron, known.x)
    torch.testing.assert_close(jet.hessian @ d, exact.hessian @ d, rtol=1e-7, atol=1e-7)
    seen = principal_curvatures(jet, 2, generator=generator)
    for k in range(2):
        torch.testing.assert_close(bending(exact, seen.directions[:, k]), seen.values[:, k], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_builder_is_one(generator, dtype):
    known = quadric(3, 5, generator=generator).to(dtype)
    builders: list[JetBuilder] = [
        exact_jet,
        partial(secant_jet, scale=0.5),
        partial(smoothed_jet, scale=0.5, samples=30, generator=generator),
        partial(krylov_jet, displacement=known.point - known.x, steps=2),
    ]
    for build in builders:
        assert isinstance(build, JetBuilder)
        jet = build(known.neuron, known.x)
        for tensor in (jet.value, jet.gradient, jet.scale, jet.error, jet.hessian @ jet.gradient):
            assert tensor.dtype == dtype
        assert (jet.status == int(Status.DONE)).all()
        assert jet.estimator in ("exact", "secant", "smoothed", "krylov")
        torch.testing.assert_close(jet.gradient, exact_jet(known.neuron, known.x).gradient, rtol=1e-4, atol=1e-4)


def test_the_proposed_scale_is_the_first_order_distance(generator):
    known = quadric(4, generator=generator)
    torch.testing.assert_close(
        propose_scale(known.neuron, known.x, known.level),
        predict_distance(known.neuron, known.x, known.level, predictor=1).distance,
    )
    neuron = Neuron(lambda x: x.relu().sum(1), (2,))
    scale = propose_scale(neuron, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 3.0)
    jet = secant_jet(neuron, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), scale=scale)
    assert jet.status.tolist() == [
        int(Status.DONE),
        int(Status.NOT_FINITE),
    ]  # a dead unit has no predicted perturbation


# --- what cannot be measured


def test_a_scale_wider_than_the_box_is_a_case_of_its_own_or_an_error(generator):
    neuron = Neuron(lambda x: x.square().sum(1), (3,), Box(0.0, 1.0))
    x = uniform(2, 3, generator=generator)
    for build in (secant_jet, partial(smoothed_jet, samples=50, generator=generator)):
        jet = build(neuron, x, scale=torch.tensor([0.5, 1.5]))
        assert jet.status.tolist() == [int(Status.DONE), int(Status.TOO_WIDE)]
        seen = principal_curvatures(jet, 1, generator=generator)
        assert seen.values[1].isnan().all()
        assert torch.isfinite(seen.values[0]).all()
        with pytest.raises(
            ValueError, match=r"the scale 1.5 is wider than the box \(1\), so every probe would leave it"
        ):
            build(neuron, x, scale=1.5)
    frozen = Neuron(neuron.response, (3,), Box(torch.zeros(3), torch.tensor([1.0, 1.0, 0.0])))
    x[:, 2] = 0
    assert (secant_jet(frozen, x, scale=0.5).status == int(Status.DONE)).all()


class _Once(torch.autograd.Function):
    """sin(x), whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize(
    "response",
    [
        lambda x: _Once.apply(x).sum(1),
        lambda x: torch.cdist(x[:, None], torch.ones(len(x), 1, 3, dtype=x.dtype)).flatten(),
    ],
)
def test_what_cannot_be_differentiated_twice_is_said_and_secants_work(generator, response):
    neuron, x = Neuron(response, (3,), name="once"), normal(2, 3, generator=generator)
    with pytest.raises(ValueError, match=r"once cannot be differentiated twice \(.*\); measure .* secant_jet"):
        exact_jet(neuron, x).hessian @ x
    assert (secant_jet(neuron, x, scale=0.01).status == int(Status.DONE)).all()


def test_a_response_without_a_gradient_is_flat():
    neuron = Neuron(lambda x: x.detach().round().sum(1), (3,))
    jet = exact_jet(neuron, torch.ones(2, 3))
    assert (jet.status == int(Status.FLAT)).all()
    assert bending(jet, torch.ones(2, 3)).isnan().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(secant_jet, scale=float("inf")), "scale must be positive, got inf"),
        (
            partial(smoothed_jet, scale=0.1, samples=10, generator=torch.Generator()),
            "samples must be at least 20 for 6 .* got 10",
        ),
        (
            partial(krylov_jet, displacement=torch.ones(2, 5).double()),
            r"displacement must have the shape of x, \(2, 6\)",
        ),
        (
            partial(krylov_jet, displacement=torch.ones(2, 6).double(), steps=7),
            "steps must be between 1 and the 6 .*, got 7",
        ),
        (
            partial(secant_jet, scale=0.1, basis=torch.ones(2, 2, 6).double()),
            r"independent .* dependent ones in 2 of 2 cases",
        ),
        (partial(secant_jet, scale=0.1, basis=torch.zeros(2, 2, 6).double()), "dependent ones in 2 of 2 cases"),
    ],
)
def test_settings_of_no_use_are_refused(generator, unchecked, build, message):
    known = quadric(2, generator=generator)
    with pytest.raises(ValueError, match=message):
        unchecked(build.func)(known.neuron, known.x, **build.keywords)


def test_a_basis_that_holds_the_gradient_is_refused(generator):
    known = quadric(3, generator=generator)
    basis = frames(3, 6, generator=generator)[:, :2].clone()
    basis[1, 0] = exact_jet(known.neuron, known.x).gradient[1]
    with pytest.raises(ValueError, match=r"of the gradient, which is measured anyway; got .* in 1 of 3 cases"):
        secant_jet(known.neuron, known.x, scale=0.1, basis=basis)


def test_too_many_axes_are_refused():
    neuron = Neuron(lambda x: x.square().sum(1), (5000,))
    with pytest.raises(
        ValueError, match="along all 5000 axes 5000 x 5000 numbers per case would be stored; give a basis"
    ):
        secant_jet(neuron, torch.ones(1, 5000), scale=0.1)


# --- numbers that looked fine


def test_what_is_separable_along_the_axes_is_not_taken_for_a_quadratic():
    """x^4 summed over the axes: no asymmetry at all, yet along the diagonal the curvature is an eighth of what the axes say."""
    neuron = Neuron(lambda x: x.sum(1) + x.pow(4).sum(1), (8,))
    x = torch.zeros(1, 8, dtype=torch.float64)
    t = torch.tensor([[1.0, -1.0] * 4], dtype=torch.float64)
    seen = normal_curvature(secant_jet(neuron, x, scale=1.0), t)
    truth = bending(secant_jet(neuron, x, scale=1.0, basis=t[:, None]), t)
    assert abs(float(seen.value - truth)) > 1
    assert abs(float(seen.value - truth)) <= float(seen.error)


def test_a_krylov_space_that_ends_early_has_no_second_curvature():
    ball = Neuron(lambda x: -x.norm(dim=1), (3,))
    x = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    d = torch.tensor([[0.0, 0.0, -0.5], [0.0, 0.1, -0.5]], dtype=torch.float64)
    seen = principal_curvatures(krylov_jet(ball, x, displacement=d), 1, generator=torch.Generator())
    assert seen.status.tolist() == [int(Status.UNDEFINED), int(Status.DONE)]
    assert seen.values.isnan()[:, 0].tolist() == [True, False]


def test_steps_that_rounding_changes_are_taken_as_they_came_out():
    centre = torch.tensor([200.3, 150.2, 100.1])
    neuron = Neuron(lambda x: -0.5 * (x - centre).square().sum(1), (3,))
    x = centre + torch.tensor([[1.0, 0.0, 0.0]])
    for scale in (1e-2, 1e-3):
        seen = principal_curvatures(secant_jet(neuron, x, scale=scale), 2, generator=torch.Generator())
        torch.testing.assert_close(seen.values, torch.ones(1, 2), rtol=0, atol=1e-3)
        assert (seen.error > (seen.values - 1).abs()).all()


def test_one_sided_differences_of_a_large_response_say_how_little_they_know():
    neuron = Neuron(lambda x: 1e4 + 3 * x[:, 0] + x[:, 0].square(), (2,))
    x = torch.tensor([[0.5, 0.5]])
    jet = krylov_jet(neuron, x, displacement=torch.tensor([[1e-2, 1e-2]]), steps=1)
    seen = float((jet.hessian @ torch.tensor([[1.0, 1.0]])).sum() / 2)
    assert abs(seen - 1) <= float(jet.error)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_responses_of_any_size_in_float32(size):
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x = torch.tensor([[1.0, 0.5, 0.2, 0.7]])
    plain = principal_curvatures(
        exact_jet(Neuron(lambda z: -(weights * z.square()).sum(1), (4,)), x), 3, generator=torch.Generator()
    )
    neuron = Neuron(lambda z: -size * (weights * z.square()).sum(1), (4,))
    for jet in (exact_jet(neuron, x), secant_jet(neuron, x, scale=0.1)):
        seen = principal_curvatures(jet, 3, generator=torch.Generator())
        torch.testing.assert_close(seen.values, plain.values, rtol=1e-4, atol=1e-5)


def test_bases_may_have_the_shape_of_images_and_inputs_may_carry_a_graph(generator):
    neuron = Neuron(lambda x: x.flatten(1).square().sum(1), (1, 2, 3))
    x = normal(2, 1, 2, 3, generator=generator).requires_grad_(True)
    basis = normal(2, 2, 1, 2, 3, generator=generator)
    for jet in (
        secant_jet(neuron, x, scale=0.1, basis=basis),
        smoothed_jet(neuron, x, scale=0.1, samples=40, generator=generator, basis=basis),
        krylov_jet(neuron, x, displacement=basis[:, 0]),
        exact_jet(neuron, x),
    ):
        seen = principal_curvatures(jet, 1, generator=generator)
        assert not seen.values.requires_grad
        assert not jet.point.requires_grad
