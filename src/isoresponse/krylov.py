"""The Hessian along the directions that matter for one displacement: what a prediction over that distance needs.

Differences of gradients along the displacement itself, along what the gradient's change adds to it, and so on: the
vectors that Lanczos would multiply with. Two of them carry the predictions of tier 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse.jets import Jet, jet_status
from isoresponse.loop import Status, mark
from isoresponse.neuron import Neuron, flatten
from isoresponse.operators import SecantOperator, from_secants, length


def krylov_jet(
    neuron: Neuron, x: Float[Tensor, "case *shape"], *, displacement: Float[Tensor, "case *shape"], steps: int = 2
) -> Jet:
    """The 2-jet at the scale of `displacement`, known in the Krylov space of `steps` dimensions that it spans.

    One gradient a step, at x plus a step of the length of the displacement (one-sided, inside the box): what the
    prediction of tier 3 looks at. Curvature is known in the tangent directions of that space only, and where the space has
    fewer dimensions than `steps` (the displacement is an eigenvector, say) principal curvatures are UNDEFINED.

    Raises
    ------
    ValueError
        Invalid inputs, a displacement of another shape, `steps` below 1.
    """
    neuron.require_inputs(x)
    x = x.detach()
    if displacement.shape != x.shape:
        raise ValueError(f"displacement must have the shape of x, {tuple(x.shape)}, got {tuple(displacement.shape)}.")
    if not 1 <= steps <= x[0].numel():
        raise ValueError(f"steps must be between 1 and the {x[0].numel()} input elements, got {steps}.")
    flat = flatten(neuron, x)
    start, d = x.flatten(1), torch.nan_to_num(displacement.detach()).flatten(1)
    value, gradient = flat.value_and_grad(start)
    measured = krylov_secants(flat, start, value, gradient, d, steps)
    scale = length(displacement.detach().flatten(1))
    curved = length(measured.images).amax(1) * length(start)
    rounding = 4 * torch.finfo(x.dtype).eps * ((length(gradient) + curved) / scale + 2 * value.abs() / scale**2)
    status = mark(jet_status(value, gradient), (~(scale > 0) | scale.isinf(), Status.NOT_FINITE))
    bad = ~torch.isfinite(measured.images).flatten(1).all(1) & (status == int(Status.DONE))
    status = mark(status, (bad, Status.NOT_FINITE))
    zero = torch.zeros_like(value)
    # few mixed derivatives are a small sample of their disagreement: twice the band of `secant_jet`
    return Jet(
        x, value, gradient, measured.operator(), scale, 4 * measured.skew + rounding, zero, status,
        "krylov", measured.basis,
    )  # fmt: skip


def krylov_secants(
    neuron: Neuron,
    x: Float[Tensor, "case n"],
    value: Float[Tensor, " case"],
    gradient: Float[Tensor, "case n"],
    displacement: Float[Tensor, "case n"],
    steps: int,
) -> SecantOperator:
    """The Hessian at the scale of `displacement`, in the `steps`-dimensional Krylov space it spans.

    `value` and `gradient` are those of the flat `neuron` at `x`.

    The first secant runs along the displacement itself, each next one along what the last change of the
    gradient added, all of the same length, clipped to the box and restricted to the elements that the
    displacement moves. One gradient each. Each change is corrected along its own step so that the
    quadratic passes through the response at every probe: the value there is known anyway, and it holds
    the curvature weighted as a prediction over that distance needs it (with it the median error of the
    prediction falls fivefold).
    """
    moving = displacement != 0
    size = displacement.norm(dim=1, keepdim=True)
    tried, changes = [], []
    step = displacement
    for _ in range(steps):
        ahead, behind = neuron.box.clip(x + step) - x, neuron.box.clip(x - step) - x
        roomier = ahead.norm(dim=1, keepdim=True) >= 0.5 * behind.norm(dim=1, keepdim=True)
        step = torch.where(roomier, ahead, behind)
        reached, there = neuron.value_and_grad(x + step)
        change = there - gradient
        along = 2 * (reached - value - (gradient * step).sum(1)) - (change * step).sum(1)
        change = change + _divide(along[:, None] * step, (step * step).sum(1, keepdim=True))
        tried.append(step)
        changes.append(change)
        hessian = from_secants(torch.stack(tried, 1), torch.stack(changes, 1))
        rest = torch.where(moving, hessian.images[:, -1], torch.zeros_like(step))
        for _ in range(2):
            rest = rest - torch.einsum("ck,ckn->cn", torch.einsum("ckn,cn->ck", hessian.basis, rest), hessian.basis)
        step = _divide(rest, rest.norm(dim=1, keepdim=True)) * size
    return hessian


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """The quotient a / b, zero where b is."""
    return torch.where(b > 0, a / torch.where(b > 0, b, torch.ones_like(b)), torch.zeros_like(a))
