"""`check_neuron`: each way to break the contract is answered with its likely cause."""

import pytest
import torch
from analytic import normal, quadric, relu_net, uniform
from torch import nn

from isoresponse.checks import check_neuron
from isoresponse.neuron import Neuron


class Straight(torch.autograd.Function):
    """Forward twice the sum, backward that of the sum: a gradient that is not the derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return 2 * x.sum(1)

    @staticmethod
    def backward(ctx, grad):
        return grad[:, None].expand(ctx.shape)


def stochastic(x):
    return x.sum(1) + torch.randn(len(x), dtype=x.dtype, generator=NOISE)


NOISE = torch.Generator().manual_seed(1)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (lambda x: (x[:, 0] - 10).log(), "odd answers NaN or infinity for 4 of 4 inputs; check the inputs' range"),
        (lambda x: x.sum(1) / (x[:, 0] > 0.5), r"answers NaN or infinity for \d of 4 inputs"),
        (stochastic, r"odd answers differently for the same input \(by up to .*is dropout active"),
        (lambda x: x.sum(1) - x.mean(), r"case i of odd depends on case j .*batch normalisation in training mode"),
        (
            lambda x: (x - x).square().sum(1).sqrt(),
            "the gradient of odd is NaN or infinite at 4 of 4 inputs; look for sqrt",
        ),
        (
            lambda x: x.detach().square().sum(1),
            "odd changes with its input but its gradient is zero: is the gradient detached",
        ),
        (lambda x: (x.detach() + 0 * x).sum(1), "changes with its input but its gradient is zero"),
    ],
)
def test_an_unsound_response_is_refused_with_its_likely_cause(generator, response, message):
    with pytest.raises(ValueError, match=message):
        check_neuron(Neuron(response, (3,), name="odd"), uniform(4, 3, generator=generator), generator=generator)


def test_batch_norm_in_training_mode_is_caught(generator):
    norm = nn.BatchNorm1d(3, track_running_stats=False).double()
    with pytest.raises(ValueError, match="case i of neuron depends on case j"):
        check_neuron(Neuron(lambda x: norm(x)[:, 0], (3,)), normal(6, 3, generator=generator), generator=generator)


def test_invalid_inputs_are_refused_first(generator):
    with pytest.raises(ValueError, match="x must have shape"):
        check_neuron(Neuron(lambda x: x.sum(1), (3,)), torch.zeros(2, 4), generator=generator)


def test_a_sound_curved_neuron_has_ranges_and_no_notes(generator):
    known = quadric(5, generator=generator)
    seen = check_neuron(known.neuron, known.x, generator=generator)
    value, gradient = known.neuron.value_and_grad(known.x)
    assert seen.notes == ()
    assert not seen.constant
    assert not seen.hessian_vanishes
    assert seen.response_range == pytest.approx((float(value.min()), float(value.max())))
    steepness = gradient.norm(dim=1)
    assert seen.steepness_range == pytest.approx((float(steepness.min()), float(steepness.max())))
    assert seen.gradient_error < 1e-6
    assert str(seen).startswith(f"response {float(value.min()):.4g} to {float(value.max()):.4g}, steepness")


@pytest.mark.parametrize("cases", [1, 2, 5])
def test_one_input_is_enough(generator, cases):
    known = quadric(cases, generator=generator)
    assert check_neuron(known.neuron, known.x, generator=generator).notes == ()
    same = Neuron(lambda x: x.square().sum(1), (6,))
    assert check_neuron(same, known.x, generator=generator).notes == ()


def test_a_relu_network_is_told_to_ask_at_a_finite_scale(generator):
    neuron = Neuron.of(relu_net(generator=generator), shape=(6,))
    seen = check_neuron(neuron, normal(8, 6, generator=generator), generator=generator)
    assert seen.hessian_vanishes
    assert len(seen.notes) == 1  # that products differ from differences is the same thing
    assert "secant_jet(neuron, x, scale=...)" in seen.notes[0]


def test_a_constant_response_is_noted_not_refused(generator):
    flat = Neuron(lambda x: 0 * x.sum(1) + 2, (3,), name="flat")
    seen = check_neuron(flat, normal(4, 3, generator=generator), generator=generator)
    assert seen.constant
    assert not seen.hessian_vanishes
    assert "flat did not change when" in str(seen)


def test_dead_inputs_are_counted(generator):
    x = torch.tensor([[1.0, 1.0], [-1, -2], [-3, -1], [2, 1]], dtype=torch.float64)
    seen = check_neuron(Neuron(lambda x: x.sum(1).relu(), (2,)), x, generator=generator)
    assert "the gradient vanishes at 2 of 4 inputs" in str(seen)


def test_a_gradient_that_is_not_the_derivative_is_noted(generator):
    seen = check_neuron(Neuron(Straight.apply, (3,)), normal(4, 3, generator=generator), generator=generator)
    assert seen.gradient_error == pytest.approx(0.5, abs=1e-6)
    assert any("finite differences disagree with the gradient by 50%" in note for note in seen.notes)


def test_float32_rounding_is_not_mistaken_for_a_fault(generator):
    known = quadric(5, generator=generator).to(torch.float32)
    assert check_neuron(known.neuron, known.x, generator=generator).notes == ()


class _PartlyOnce(torch.autograd.Function):
    """sin(x), whose backward pass hides its dependence on x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.detach())
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].detach().cos()


def test_a_backward_pass_that_is_partly_differentiable_is_noted(generator):
    neuron = Neuron(lambda x: _PartlyOnce.apply(2 * x.square()).sum(1), shape=(3,))
    seen = check_neuron(neuron, torch.rand(6, 3, generator=generator, dtype=torch.float64) + 0.2, generator=generator)
    assert "Hessian products disagree with differences of the gradient" in str(seen)
    sound = Neuron(lambda x: torch.sin(2 * x.square()).sum(1), shape=(3,))
    seen = check_neuron(sound, torch.rand(6, 3, generator=generator, dtype=torch.float64) + 0.2, generator=generator)
    assert "Hessian products" not in str(seen)
