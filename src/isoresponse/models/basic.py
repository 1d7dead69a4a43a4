"""Neurons with straight contours, and one with contours bent outward and everything else equal.

Linear and pointwise-nonlinear neurons have straight contours whatever the nonlinearity: it only changes the spacing.
`Straight` and `OutwardBent` are the pair of the essay's figure 4. Both have the same most exciting direction, the
same response along it, and the same contour spacing there; only the bending differs, so whatever differs between
them is due to bending. For such pairs of any neuron see `models.matched`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """Responses (case, units) of linear neurons to inputs (case, *shape): filter . x + bias.

    The filters are given, not learnt (buffers); for weights that learn there is `torch.nn.Linear`.

    Parameters
    ----------
    filters
        (units, *shape), one receptive field per unit, in response per input unit.
    bias
        A number, or one per unit (units,), in response units.

    Raises
    ------
    ValueError
        Filters without a unit axis, of integers or not finite, a bias that does not fit, inputs of another shape or kind.

    Notes
    -----
    The gradient is the filter w everywhere; contours are planes orthogonal to it, 1/|w| apart per response unit; every
    principal curvature is zero.

    Examples
    --------
    >>> import torch
    >>> Linear(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))(torch.tensor([[3.0, 4.0]]))
    tensor([[11.,  4.]])
    """

    filters: Tensor
    bias: Tensor

    def __init__(self, filters: Tensor, *, bias: float | Tensor = 0.0) -> None:
        super().__init__()
        if not is_float(filters) or filters.ndim < 2 or 0 in filters.shape:
            raise ValueError(
                f"Linear needs floating-point filters of shape (units, *shape), got {kind_of(filters)}; a single filter is "
                "filter[None]."
            )
        offset = torch.as_tensor(bias, dtype=filters.dtype, device=filters.device).detach()
        if offset.shape not in ((), (len(filters),)):
            raise ValueError(
                f"Linear needs a bias that is a number or has shape ({len(filters)},), one per filter, got "
                f"{tuple(offset.shape)}."
            )
        if not bool(filters.isfinite().all() and offset.isfinite().all()):
            raise ValueError("Linear needs finite filters and bias, got NaN or infinity; remove them.")
        self.register_buffer("filters", filters.detach())
        self.register_buffer("bias", offset.expand(len(filters)).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Responses (case, units) to inputs (case, *shape)."""
        if not is_float(x) or x.ndim == 0 or x.shape[1:] != self.filters.shape[1:]:
            raise ValueError(
                f"expected floating-point inputs of shape (case, {', '.join(map(str, self.filters.shape[1:]))}), as the "
                f"filters are, got {kind_of(x)}; convert or reshape the input."
            )
        return x.flatten(1) @ self.filters.to(x).flatten(1).T + self.bias.to(x)


class LinearNonlinear(nn.Module):
    """Responses (case, units) of linear-nonlinear neurons to inputs (case, *shape): phi(filter . x + bias).

    Parameters
    ----------
    filters, bias
        As for `Linear`.
    nonlinearity
        phi, applied to every unit alone: `torch.relu`, `torch.sigmoid`, `torch.nn.functional.softplus`, or any callable
        from (case, units) to (case, units).

    Raises
    ------
    TypeError
        A nonlinearity that cannot be called.
    ValueError
        What `Linear` refuses; a nonlinearity that changes the shape.

    Notes
    -----
    With z = w.x + b the gradient is phi'(z) w and the Hessian phi''(z) ww'. So contours are the planes of `Linear`, all
    principal curvatures zero, and phi sets the spacing, 1/(|phi'(z)| |w|). Where phi' is zero (a silent rectifier) there
    is no contour. The response along its steepest line is all that a pointwise nonlinearity can shape.
    (Chichilnisky 2001, Network 12:199.)

    Examples
    --------
    >>> import torch
    >>> LinearNonlinear(torch.eye(2), torch.relu, bias=-1.0)(torch.tensor([[3.0, 0.5]]))
    tensor([[2., 0.]])
    """

    def __init__(
        self, filters: Tensor, nonlinearity: Callable[[Tensor], Tensor], *, bias: float | Tensor = 0.0
    ) -> None:
        super().__init__()
        if not callable(nonlinearity):
            raise TypeError(
                f"LinearNonlinear needs a nonlinearity that can be called, got {nonlinearity!r}; give torch.relu, say."
            )
        self.linear, self.nonlinearity = Linear(filters, bias=bias), nonlinearity

    def forward(self, x: Tensor) -> Tensor:
        """Responses (case, units) to inputs (case, *shape)."""
        drive = self.linear(x)
        response = self.nonlinearity(drive)
        if response.shape != drive.shape:
            raise ValueError(
                f"the nonlinearity must act on every unit alone and keep the shape {tuple(drive.shape)}, got "
                f"{tuple(response.shape)} from it."
            )
        return response


class Straight(nn.Module):
    """Response phi.x: contours are straight lines orthogonal to `phi`, one input unit apart per response unit.

    `phi` (n,) is scaled to norm 1; it is the gradient everywhere. Every principal curvature is zero. ValueError for a
    `phi` that is zero or not finite.
    """

    phi: Tensor

    def __init__(self, phi: Tensor) -> None:
        super().__init__()
        self.register_buffer("phi", _unit(phi))

    def forward(self, x: Tensor) -> Tensor:
        """Responses (case,) to inputs (case, n)."""
        return x @ _along(self.phi, x)


class OutwardBent(nn.Module):
    """Response phi.x - bend * (sqrt(width^2 + |x_perp|^2) - width): contours bend away from the origin.

    Each contour is a hyperbola opening away from the origin with its tip on the axis of `phi`. There it has the
    curvature `bend / width` (1/input, positive: exo-origin); far from the axis it is a chevron of slope `bend`.
    Along the axis response and spacing are those of `Straight`.

    Raises
    ------
    ValueError
        A negative bend, a width that is not positive, a `phi` that is zero or not finite.

    Notes
    -----
    At the distance r = |x_perp| from the axis, with h = sqrt(width^2 + r^2) and m = bend r / h, the gradient is
    phi - m x_perp / r. One principal curvature is along it (in the plane of phi and x), the other n - 2 go round the axis::

        bend width^2 / (h^3 (1 + m^2)^(3/2)),        bend / (h (1 + m^2)^(1/2))
    """

    phi: Tensor

    def __init__(self, phi: Tensor, *, bend: float = 1.0, width: float = 0.5) -> None:
        super().__init__()
        if not (0 <= bend < math.inf and 0 < width < math.inf):
            raise ValueError(f"OutwardBent needs a finite bend >= 0 and width > 0, got bend={bend} and width={width}.")
        self.register_buffer("phi", _unit(phi))
        self.bend, self.width = bend, width

    def forward(self, x: Tensor) -> Tensor:
        """Responses (case,) to inputs (case, n)."""
        phi = _along(self.phi, x)
        along = x @ phi
        across = (x - along[:, None] * phi).square().sum(1)
        return along - self.bend * (torch.sqrt(self.width**2 + across) - self.width)


def is_float(value: object) -> bool:
    """Whether it is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def kind_of(value: object) -> str:
    """What something is, for a message: dtype and shape of a tensor, the type of anything else."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _along(phi: Tensor, x: Tensor) -> Tensor:
    """`phi` (n,) in the dtype of inputs (case, n), or the reason why they are none."""
    if not is_float(x) or x.ndim != 2 or x.shape[1] != len(phi):
        raise ValueError(
            f"expected floating-point inputs of shape (case, {len(phi)}), as phi is, got {kind_of(x)}; convert or reshape the "
            "input."
        )
    return phi.to(x)


def _unit(phi: Tensor) -> Tensor:
    size = phi.norm() if is_float(phi) and phi.ndim == 1 else torch.tensor(torch.nan)
    if not 0 < float(size) < float("inf"):
        raise ValueError(
            f"phi must be one direction (n,), floating point, finite and not zero, got {kind_of(phi)} of norm {float(size)}."
        )
    return phi / size
