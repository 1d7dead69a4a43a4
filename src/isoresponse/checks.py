"""Is this model fit to be measured? Checks that guess the cause of what they find.

The contract of a response function: (1) one finite number per case, (2) the same for the same input,
(3) case i depends on case i only, (4) a gradient that is really its derivative. A model that breaks it
gets one sentence with the likely cause. That a Hessian vanishes is no fault, but worth knowing: such a
response is piecewise affine, and curvature must be asked for at a finite scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse.neuron import Neuron


@dataclass(frozen=True)
class NeuronCheck:
    """What `check_neuron` saw: ranges over the given inputs, and notes in words."""

    response_range: tuple[float, float]
    steepness_range: tuple[float, float]
    constant: bool
    hessian_vanishes: bool
    gradient_error: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        low, high = self.response_range
        flat, steep = self.steepness_range
        head = f"response {low:.4g} to {high:.4g}, steepness {flat:.4g} to {steep:.4g} per input unit"
        return "\n".join([head, *self.notes])


def check_neuron(neuron: Neuron, x: Float[Tensor, "case *shape"], *, generator: Generator) -> NeuronCheck:
    """Ranges and notes for a sound response function; a sentence with the likely cause for an unsound one.

    Parameters
    ----------
    x
        Two or more typical inputs (one is used twice).
    generator
        For the probe directions.

    Raises
    ------
    ValueError
        Non-finite responses or gradients, a stochastic response, cases that depend on each other, a
        gradient that was cut off. (A gradient that differs from finite differences is noted, not refused.)

    Examples
    --------
    >>> import torch
    >>> relu = Neuron(lambda x: x.clamp_min(0).sum(1), shape=(3,))
    >>> check_neuron(relu, torch.rand(4, 3), generator=torch.Generator()).hessian_vanishes
    True
    """
    neuron.require_inputs(x)
    if len(x) == 1 and not neuron.given:
        x = torch.cat([x, x])
    value = _finite_values(neuron, x)
    _require_repeatable(neuron, x, value)
    _require_separate(neuron, x, value)
    value, gradient = neuron.value_and_grad(x)
    steepness = gradient.flatten(1).norm(dim=1)
    if not bool(torch.isfinite(steepness).all()):
        raise ValueError(
            f"the gradient of {neuron.name} is NaN or infinite at {int((~torch.isfinite(steepness)).sum())} of {len(x)} "
            "inputs; look for sqrt, log or a division at zero, or a norm of a zero vector."
        )
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    direction = direction / direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    error, moved = _derivative_error(neuron, x, direction, gradient)
    constant = bool((steepness == 0).all()) and not moved
    hessian = neuron.hvp(x, direction).flatten(1).norm(dim=1)
    vanishes = bool((hessian == 0).all()) and not constant
    notes = []
    if constant:
        notes.append(
            f"{neuron.name} did not change when {len(x)} inputs were moved a little and its gradient is zero "
            "there: no search that follows gradients, and no prediction from them, can succeed. That says nothing of "
            "larger changes."
        )
    elif bool((steepness == 0).any()):
        dead = int((steepness == 0).sum())
        notes.append(
            f"the gradient vanishes at {dead} of {len(x)} inputs (dead or saturated there): those cases will be FLAT."
        )
    if vanishes:
        notes.append(
            "the Hessian is zero almost everywhere (linear, or piecewise linear such as ReLU): exact curvature says "
            "nothing. Predictions measure it at the scale of the perturbation (tiers 3 and 4); so does "
            "secant_jet(neuron, x, scale=...)."
        )
    disagreement = _second_derivative_error(neuron, x, direction, gradient)
    if disagreement > 0.05 and not vanishes:  # of a Hessian that is zero the note above says enough
        notes.append(
            f"Hessian products disagree with differences of the gradient by {disagreement:.0%} (median): kinks closer than the "
            "step, or a backward pass that is only partly differentiable; use secant_jet(neuron, x, scale=...) there."
        )
    if error > 0.05:
        notes.append(
            f"finite differences disagree with the gradient by {error:.0%} (median): kinks closer than the step, or a "
            "gradient that is not the derivative (a straight-through estimator?)."
        )
    spread = (float(value.min()), float(value.max()))
    return NeuronCheck(
        spread, (float(steepness.min()), float(steepness.max())), constant, vanishes, error, tuple(notes)
    )


def _finite_values(neuron: Neuron, x: Tensor) -> Tensor:
    value = neuron.value(x)
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"{neuron.name} answers NaN or infinity for {int((~torch.isfinite(value)).sum())} of {len(x)} inputs; check "
            "the inputs' range and normalisation, and that the model's weights are finite."
        )
    return value


def _require_repeatable(neuron: Neuron, x: Tensor, value: Tensor) -> None:
    again = neuron.value(x)
    if not torch.equal(again, value):
        worst = float((again - value).abs().max())
        if worst > 1e-4 * float(value.abs().max()) + 1e-7:
            raise ValueError(
                f"{neuron.name} answers differently for the same input (by up to {worst:.3g}): is dropout active, i.e. the "
                "model in training mode (call .eval()), or noise drawn in the forward pass?"
            )


def _require_separate(neuron: Neuron, x: Tensor, value: Tensor) -> None:
    half = torch.arange(max(1, len(x) // 2), device=x.device)
    alone = neuron.select(half).value(x[half])
    worst = float((alone - value[half]).abs().max())
    tolerance = 1e-3 * float(value.abs().max()) + 1e-6
    if worst > tolerance:
        raise ValueError(
            f"case i of {neuron.name} depends on case j (by up to {worst:.3g}): is batch normalisation in training mode "
            "(call .eval()), or is something averaged over the batch axis?"
        )


def _second_derivative_error(neuron: Neuron, x: Tensor, direction: Tensor, gradient: Tensor) -> float:
    """Median relative error of the Hessian's product with `direction` against a central difference of gradients."""
    step = torch.finfo(x.dtype).eps ** (1 / 3) * (1 + x.flatten(1).norm(dim=1)).reshape(-1, *[1] * (x.ndim - 1))
    ahead, behind = (neuron.value_and_grad(x + sign * step * direction)[1] for sign in (1.0, -1.0))
    measured = ((ahead - behind) / (2 * step)).flatten(1)
    told = neuron.hvp(x, direction).flatten(1)
    noise = 20 * torch.finfo(x.dtype).eps * gradient.flatten(1).norm(dim=1) / step.flatten()
    moved = measured.norm(dim=1) > noise
    if not bool(moved.any()):
        return 0.0
    return float(((measured - told).norm(dim=1) / measured.norm(dim=1))[moved].median())


def _derivative_error(neuron: Neuron, x: Tensor, direction: Tensor, gradient: Tensor) -> tuple[float, bool]:
    """Median relative error of the directional derivative against a central difference; whether f moved."""
    step = torch.finfo(x.dtype).eps ** (1 / 3) * (1 + x.flatten(1).norm(dim=1)).reshape(-1, *[1] * (x.ndim - 1))
    ahead, behind = neuron.value(x + step * direction), neuron.value(x - step * direction)
    measured = (ahead - behind) / (2 * step.flatten())
    told = (gradient * direction).flatten(1).sum(1)
    noise = 20 * torch.finfo(x.dtype).eps * ahead.abs() / step.flatten()
    moved = measured.abs() > noise
    if bool((gradient == 0).all()) and bool(moved.any()):
        raise ValueError(
            f"{neuron.name} changes with its input but its gradient is zero: is the gradient detached in the model "
            "(.detach(), no_grad, .item(), numpy, argmax or rounding)?"
        )
    if not bool(moved.any()):
        return 0.0, False
    return float(((measured - told).abs() / measured.abs())[moved].median()), True
