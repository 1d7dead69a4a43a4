"""A neuron is a response with exact derivatives, and a box in which its inputs live."""

import pytest
import torch
from analytic import SMOOTH, linear, normal, quadric

from isoresponse.neuron import Box, Neuron, require_inputs


def test_a_response_that_is_not_one_number_per_case_is_refused():
    with pytest.raises(
        ValueError, match=r"'odd' must answer with one number per case, shape \(2,\), got shape \(2, 3\)"
    ):
        Neuron(lambda x: x, (3,), name="odd")(torch.zeros(2, 3))


@pytest.mark.parametrize("make", SMOOTH)
def test_gradient_and_hessian_are_those_of_autograd_case_by_case(generator, make):
    known = make(3, generator=generator)
    v = normal(*known.x.shape, generator=generator)
    value, gradient, product = known.neuron.linearise(known.x)
    torch.testing.assert_close(known.neuron.hvp(known.x, v), product(v), rtol=0, atol=0)
    for i in range(3):
        single = known.neuron.select(torch.tensor([i]))

        def alone(z, single=single):
            return single(z[None])[0]

        torch.testing.assert_close(value[i], alone(known.x[i]))
        torch.testing.assert_close(gradient[i], torch.autograd.functional.jacobian(alone, known.x[i]))
        dense = torch.autograd.functional.hessian(alone, known.x[i])
        torch.testing.assert_close(product(v)[i], dense @ v[i], rtol=1e-9, atol=1e-12)


def test_an_affine_or_constant_response_has_hessian_zero(generator):
    known = linear(3, generator=generator)
    assert (known.neuron.hvp(known.x, known.x) == 0).all()
    constant = Neuron(lambda x: torch.ones(len(x), dtype=x.dtype), (7,))
    assert (constant.value_and_grad(known.x)[1] == 0).all()
    assert (constant.hvp(known.x, known.x) == 0).all()


def test_select_keeps_each_case_its_own_response(generator):
    known = quadric(4, generator=generator)
    picked = torch.tensor([3, 1])
    torch.testing.assert_close(known.neuron.select(picked)(known.x[picked]), known.neuron(known.x)[picked])
    same = Neuron(lambda x: x.sum(1), (2,))
    assert same.select(picked) is same


def test_values_carry_no_graph_but_a_call_does(generator):
    x = normal(2, 3, generator=generator).requires_grad_()
    neuron = Neuron(lambda z: z.square().sum(1), (3,))
    assert not neuron.value(x).requires_grad
    assert neuron(x).requires_grad
    with torch.no_grad():
        assert (neuron.value_and_grad(x)[1] == 2 * x).all()


def test_the_box_clips_contains_and_knows_what_can_move():
    box = Box(torch.tensor([0.0, -1.0]), 1.0)
    x = torch.tensor([[-0.5, -0.5], [0.0, 1.0], [0.5, 2.0]])
    assert box.contains(x).tolist() == [False, True, False]
    assert box.contains(x, atol=0.5).tolist() == [True, True, False]
    assert box.clip(x).tolist() == [[0, -0.5], [0, 1], [0.5, 1]]
    assert box.contains(box.clip(x)).all()
    up = torch.ones(3, 2)
    assert box.free(box.clip(x), up).tolist() == [[True, True], [True, False], [True, False]]
    assert box.free(box.clip(x), -up).tolist() == [[False, True], [False, True], [True, True]]


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (float("nan"), 1.0), (torch.tensor([0.0, 2.0]), 1.0)])
def test_a_box_needs_room(bounds):
    with pytest.raises(ValueError, match=r"a Box needs lower <= upper everywhere, got lower=.* swap the bounds"):
        Box(*bounds)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.5, 0.5]], TypeError, "x must be a torch tensor, got list; use torch.as_tensor"),
        (
            torch.ones(1, 2, dtype=torch.uint8),
            TypeError,
            r"x must be floating point, float32 or float64, got torch.uint8; convert it",
        ),
        (torch.zeros(2), ValueError, r"x must have shape \(case, 2\), got \(2,\); the first axis counts cases"),
        (torch.zeros(1, 3), ValueError, r"x must have shape \(case, 2\), got \(1, 3\)"),
        (torch.tensor(0.5), ValueError, r"x must have shape \(case, 2\), got \(\)"),
        (torch.zeros(0, 2), ValueError, "x holds no cases; give at least one input"),
        (
            torch.tensor([[0.5, float("nan")], [0, 0]]),
            ValueError,
            "must be finite, got NaN or infinity in 1 of 2 cases",
        ),
        (
            torch.tensor([[0.5, 3.0], [0, 0]]),
            ValueError,
            r"box \[0, 1\], got values from 0 to 3 \(1 of 2 cases outside\)",
        ),
    ],
)
def test_invalid_inputs_are_refused_with_what_was_expected(unchecked, x, error, message):
    with pytest.raises(error, match=message):
        unchecked(require_inputs)(x, (2,), Box(0.0, 1.0))


def test_a_neuron_made_for_other_cases_is_refused(generator):
    known = quadric(3, 4, generator=generator)
    with pytest.raises(ValueError, match="was made for 3 cases, of which each has arguments of its own, got 2 in x"):
        known.neuron.require_inputs(known.x[:2])


def test_a_per_element_box_is_named_by_its_range():
    neuron = Neuron(lambda x: x.sum(1), (2,), Box(torch.tensor([0.0, -1.0]), 1.0))
    with pytest.raises(ValueError, match=r"lie in the box \[tensor in -1..0, 1\]"):
        neuron.require_inputs(torch.tensor([[-0.5, 0.0]]))


def test_bounds_that_are_no_numbers_are_refused(unchecked):
    with pytest.raises(TypeError, match="the bounds of a Box are numbers or tensors, got 'a' and 'b'"):
        unchecked(Box.__post_init__)(type("Fake", (), {"lower": "a", "upper": "b"})())
