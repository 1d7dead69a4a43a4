"""Second axes of planes: uniform, orthogonal, in the right order, and shifted in phase."""

import inspect
import math

import numpy as np
import pytest
import scipy.signal
import torch
from analytic import normal

from isoresponse.directions import attack_directions, comparison_directions, phase_shifted, random_directions
from isoresponse.neuron import Neuron


@pytest.mark.parametrize("mutually", [False, True])
def test_random_directions_are_unit_orthogonal_and_uniform(generator, mutually):
    axis = normal(2, 3, generator=generator)
    draws = torch.cat([
        random_directions(5, orthogonal_to=axis, generator=generator, mutually=mutually) for _ in range(800)
    ]).flatten(1)  # fmt: skip
    torch.testing.assert_close(draws.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert (draws @ axis.flatten()).abs().max() < 1e-13
    unit = axis.flatten() / axis.norm()
    projector = torch.eye(6, dtype=torch.float64) - torch.outer(unit, unit)
    torch.testing.assert_close(draws.T @ draws / 4000, projector / 5, rtol=0, atol=0.02)
    assert draws.mean(0).abs().max() < 0.03
    if mutually:
        torch.testing.assert_close(draws[:5] @ draws[:5].T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_comparison_directions_come_closest_first_and_not_too_close():
    def at(degrees):
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), 0.0]

    others = 3 * torch.tensor([at(80), at(10), at(30), at(172), at(120), [0, 0, 1]], dtype=torch.float64)
    found, which = comparison_directions(torch.tensor([2.0, 0, 0], dtype=torch.float64), others)
    assert which.tolist() == [2, 0, 5, 4]
    expected = torch.tensor([[0.0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert comparison_directions(others[5], others, count=2)[1].shape == (2,)


@pytest.mark.parametrize("frequency", [(3, 0), (0, 2), (2, 5), (-4, 3)])
@pytest.mark.parametrize("angle", [math.pi / 2, 0.7, math.pi])
def test_a_grating_is_shifted_by_the_angle(frequency, angle):
    rows, columns = torch.meshgrid(torch.arange(16.0).double(), torch.arange(20.0).double(), indexing="ij")
    wave = 2 * math.pi * (frequency[0] * rows / 16 + frequency[1] * columns / 20)
    shifted = phase_shifted(torch.cos(wave), angle)
    # cos(k.x) is cos(-k.x) too: which of the two is called dominant decides the sense
    error = min((shifted - torch.cos(wave + s * angle)).abs().max() for s in (-1, 1))
    assert error < 1e-10


def test_colours_are_shifted_together_and_a_gabor_becomes_its_quadrature(generator):
    t = torch.linspace(-1, 1, 32, dtype=torch.float64)
    window = torch.exp(-(t[:, None].square() + t[None].square()) / 0.1)
    even, odd = window * torch.cos(20 * t)[None], window * torch.sin(20 * t)[None]
    seen = phase_shifted(torch.stack([even, -2 * even, odd]))
    sign = torch.sign((seen[0] * odd).sum())
    torch.testing.assert_close(seen, sign * torch.stack([odd, -2 * odd, -even]), rtol=0, atol=2e-3)


def test_in_one_dimension_it_is_the_hilbert_transform(generator):
    signal = normal(31, generator=generator)
    hilbert = torch.as_tensor(np.imag(scipy.signal.hilbert((signal - signal.mean()).numpy())))
    torch.testing.assert_close(phase_shifted(signal) - signal.mean(), hilbert, rtol=0, atol=1e-12)
    assert phase_shifted(signal.float()).dtype == torch.float32


def test_the_norm_stays_and_two_quarter_turns_negate(generator):
    image = normal(9, 11, generator=generator)
    image = image - image.mean()
    torch.testing.assert_close(phase_shifted(image).norm(), image.norm())
    torch.testing.assert_close(phase_shifted(phase_shifted(image)), phase_shifted(image, math.pi))


def test_the_attack_direction_of_a_linear_neuron_is_its_gradient():
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = attack_directions(Neuron(lambda x: x @ w, (2,)), torch.zeros(1, 2, dtype=torch.float64), 10.0)
    torch.testing.assert_close(found[0], w * 10 / 25)


@pytest.mark.parametrize(
    "ask",
    [
        lambda a, g: random_directions(1, orthogonal_to=a, generator=g),
        lambda a, g: comparison_directions(a, a[None]),
        lambda a, g: phase_shifted(a),
    ],
)
def test_integers_are_refused(generator, monkeypatch, ask):
    for name in ("random_directions", "comparison_directions", "phase_shifted"):
        monkeypatch.setitem(globals(), name, inspect.unwrap(globals()[name]))
    with pytest.raises(TypeError, match=r"must be floating point, float32 or float64, got torch\.int64; convert it"):
        ask(torch.tensor([1, 2, 3]), generator)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda a, g: random_directions(0, orthogonal_to=a, generator=g), "count must be at least 1"),
        (
            lambda a, g: random_directions(4, orthogonal_to=a, generator=g, mutually=True),
            "at most 3 in 4 input elements",
        ),
        (lambda a, g: random_directions(1, orthogonal_to=0 * a, generator=g), "finite and not zero"),
        (lambda a, g: comparison_directions(a, a[None]), "0 of 1 others are at least 15 degrees"),
        (lambda a, g: comparison_directions(a, torch.eye(4)[1:], count=4), "3 of 3 others .* got count=4"),
        (
            lambda a, g: inspect.unwrap(comparison_directions)(a, torch.eye(3)),
            r"others must have shape \(other, 4\), got \(3, 3\)",
        ),
        (lambda a, g: phase_shifted(torch.ones(4, 4)), "no frequency but its mean"),
        (lambda a, g: phase_shifted(torch.ones(2, 2, 2, 2)), r"must have shape \(n,\), \(h, w\) or"),
    ],
)
def test_questions_without_an_answer_are_refused(generator, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(torch.tensor([1.0, 0, 0, 0]), generator)
