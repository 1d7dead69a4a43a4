"""Fair comparisons: neurons that agree with a given one in everything but how their contours bend.

Curvature is to blame for a difference between two neurons only if nothing else differs. A `Twin` has the response of a
given neuron along one line, so value, gradient and spacing at a point of it, and contours that are straight, bent
outward or bent inward as asked. `matched_pair` puts the line through the most exciting input, as in the essay's figure 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from isoresponse.models.basic import Linear, is_float, kind_of


class Twin(nn.Module):
    """Response (case,) to inputs (case, *shape): that of a given neuron on a line, spread out along prescribed contours.

    With s the position along the line through `point` and r the distance from it, the given neuron is asked at the
    position q = s - curvature r^2 / (1 + sqrt(1 + (curvature r / slope)^2)) of the line. With curvature 0 this is the pointwise
    twin, q = s: a linear filter, and as its nonlinearity the given neuron's own response along the line.

    Matched with the given neuron f: the response everywhere on the line (so the gap to any level, and the distance to it
    along the line) and all its derivatives along the line. With the default direction also the gradient at `point`,
    hence the spacing and the order in which nearby contours are crossed. Not matched: how f's contours bend, and how
    its steepest path turns. Twins of one f, point and direction differ from one another in nothing but curvature: their
    Hessians at `point` differ by the curvature's difference x |gradient| on all tangents, nowhere else.

    Parameters
    ----------
    neuron
        Any callable from inputs (case, *shape) to responses (case,) or (case, 1), differentiable, of one case at a time
        (a network in eval mode).
    point
        (*shape), an input on the line.
    direction
        (*shape), along the line to where the response rises; the gradient of `neuron` at `point` if left out.
    curvature
        Of all contours where they cross the line, in every tangent direction, in 1/input; positive: outward.
    slope
        Of the contours far from the line, if bent: 1 is a chevron with half an angle of 45 degrees, `inf` a parabola.

    Raises
    ------
    TypeError
        A neuron that cannot be called.
    ValueError
        Shapes that do not fit, a direction (or gradient) that is zero or not finite, a curvature that is not finite, a
        slope that is not positive, a neuron that answers with more than one number.

    Notes
    -----
    Let c be the curvature, h = sqrt(1 + (c r / slope)^2), m = c r / h, u the direction, e the unit vector away from the line
    and f'(q) the response's derivative along it. The gradient is f'(q) (u - m e). Where f' > 0, one principal curvature of
    the contour is in the plane of u and e, n - 2 go round the line::

        c / (h^3 (1 + m^2)^(3/2)),        c / (h (1 + m^2)^(1/2))

    With point = 0, direction = phi and a linear neuron this is `OutwardBent` of bend = slope and width = slope / c.

    Examples
    --------
    >>> import torch
    >>> def ball(x): return 1 - x.square().sum(1)
    >>> twin = Twin(ball, torch.tensor([0.0, 0.5]))
    >>> twin(torch.tensor([[0.0, 0.5], [0.0, 0.25], [9.0, 0.25]]))  # the last differs across the line only
    tensor([0.7500, 0.9375, 0.9375])
    """

    point: Tensor
    direction: Tensor

    def __init__(
        self,
        neuron: Callable[[Tensor], Tensor],
        point: Tensor,
        *,
        direction: Tensor | None = None,
        curvature: float = 0.0,
        slope: float = 1.0,
    ) -> None:
        super().__init__()
        if not callable(neuron):
            raise TypeError(
                f"Twin needs a neuron that can be called with inputs (case, *shape), got {kind_of(neuron)}."
            )
        if not (math.isfinite(curvature) and slope > 0):
            raise ValueError(
                f"Twin needs a finite curvature and a positive slope, got curvature={curvature} and slope={slope}."
            )
        if not is_float(point) or point.ndim == 0 or not bool(point.isfinite().all()):
            raise ValueError(f"Twin needs a point that is one finite floating-point input, got {kind_of(point)}.")
        along = _gradient(neuron, point) if direction is None else direction.detach().to(point)
        if along.shape != point.shape:
            raise ValueError(
                f"Twin needs a direction of the point's shape {tuple(point.shape)}, got {tuple(along.shape)}."
            )
        size = torch.linalg.vector_norm(along)
        if not 0 < float(size) < math.inf:
            what = "gradient at the point" if direction is None else "direction"
            raise ValueError(
                f"Twin needs a {what} that is finite and not zero, got norm {float(size)}; give another point or direction."
            )
        self.neuron, self.curvature, self.slope = neuron, curvature, slope
        self.register_buffer("point", point.detach().clone())
        self.register_buffer("direction", along / size)

    def forward(self, x: Tensor) -> Tensor:
        """Responses (case,) to inputs (case, *shape)."""
        if x.shape[1:] != self.point.shape or x.ndim == 0:
            raise ValueError(
                f"expected inputs of shape (case, {', '.join(map(str, self.point.shape))}), as the point is, got "
                f"{tuple(x.shape)}."
            )
        point, direction = self.point.to(x).flatten(), self.direction.to(x).flatten()
        away = x.flatten(1) - point
        along = away @ direction
        across = (away - along[:, None] * direction).square().sum(1)
        steep = torch.sqrt(1 + (self.curvature / self.slope) ** 2 * across)
        position = along - self.curvature * across / (1 + steep)
        return _one_number(self.neuron((point + position[:, None] * direction).reshape(x.shape)), len(x))


def matched_pair(
    mei: Tensor,
    *,
    curvature: float,
    slope: float = 1.0,
    neuron: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Twin, Twin]:
    """A neuron with straight contours and one with bent contours, equal in MEI, gap, gradient and spacing.

    Both respond alike to every multiple of `mei`, with the same gradient there; for both, `mei` is the most exciting
    input of its norm, as long as the response rises all along the line up to it.

    Parameters
    ----------
    mei
        (*shape), the most exciting input; its length matters for the limit below only.
    curvature
        Of the bent contours where they cross the line of `mei`, in 1/input. Positive: outward, selective. Negative:
        inward, tolerant as a complex cell is, but no more than the sphere of radius |mei|, of curvature -1/|mei|: with
        contours bent more tightly another input of that norm is more exciting.
    slope
        As for `Twin`.
    neuron
        Gives the response along the line; linear, one response unit per input unit, if left out.

    Raises
    ------
    ValueError
        An `mei` that is zero or not finite, contours bent inward too tightly, what `Twin` refuses.

    Examples
    --------
    >>> import torch
    >>> straight, bent = matched_pair(torch.tensor([2.0, 0.0]), curvature=1.5)
    >>> x = torch.tensor([[2.0, 0.0], [2.0, 1.0]])
    >>> straight(x), bent(x)
    (tensor([2., 2.]), tensor([2.0000, 1.4648]))
    """
    size = float(torch.linalg.vector_norm(mei)) if mei.is_floating_point() else math.nan
    if not 0 < size < math.inf:
        raise ValueError(
            f"matched_pair needs a floating-point mei that is finite and not zero, got {mei.dtype}, norm {size}."
        )
    if curvature * size <= -1:
        raise ValueError(
            f"matched_pair needs a curvature above -1/|mei| = {-1 / size:.4g}, as inputs of its norm off the line would "
            f"be more exciting otherwise, got curvature={curvature}; bend less, or give a shorter mei."
        )
    along = mei / size
    given = Linear(along[None]) if neuron is None else neuron
    straight = Twin(given, mei, direction=along)
    return straight, Twin(given, mei, direction=along, curvature=curvature, slope=slope)


def _gradient(neuron: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Gradient (*shape) of the response at one input, zero where it does not depend on it."""
    with torch.enable_grad():
        x = point.detach()[None].requires_grad_(True)
        value = _one_number(neuron(x), 1)
        if not value.requires_grad:
            return torch.zeros_like(point)
        (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    return torch.zeros_like(point) if gradient is None else gradient[0]


def _one_number(response: Tensor, cases: int) -> Tensor:
    if response.shape not in ((cases,), (cases, 1)):
        raise ValueError(
            f"Twin needs a neuron with one number per case, shape ({cases},) or ({cases}, 1), got {tuple(response.shape)}; "
            "pick a unit, e.g. lambda x: model(x)[:, 3]."
        )
    return response.reshape(cases)
