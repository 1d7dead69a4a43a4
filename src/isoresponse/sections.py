"""The curvature of contours in a plane, and how it is tied to that of the whole contour.

A neuron cut by a plane is a neuron with two inputs, so every way of measuring a jet, exact or at a scale, measures
it too: `section` makes that neuron. In the plane its contour is a line with one curvature. Meusnier (1776): that
curvature times the cosine of the angle between plane and normal is the curvature of the hypersurface along the
line's tangent. A plane that misses the gradient therefore overstates bending, and the angle (`tilt`) is part of
the result. `sagitta_curvature` measures the same thing by finding the contour itself, without any derivative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Problem, cross_ray, rounding
from isoresponse.geometry import warn_where_flat
from isoresponse.jets import Jet, JetBuilder, exact_jet
from isoresponse.loop import Status, failed, mark
from isoresponse.neuron import Box, Neuron
from isoresponse.operators import length


@dataclass(frozen=True, eq=False)
class SectionCurvature:
    """Curvature of the contour line that a plane cuts out of an iso-response hypersurface, one plane per case."""

    curvature: Tensor = axes("case", units="1/input", about="curvature of the contour line in the plane")
    error: Tensor = axes("case", units="1/input", about="error of the curvature at the stated scale")
    normal_curvature: Tensor = axes("case", units="1/input", about="that of the hypersurface along the line (Meusnier)")
    tilt: Tensor = axes("case", units="rad", about="angle between the normal of the contour and the plane")
    tangent: Tensor = axes("case", "n", about="unit tangent of the contour line, in input space")
    scale: Tensor = axes("case", units="input", about="scale of the measurement, 0 for exact")
    status: Tensor = axes("case", about="how the case ended")
    estimator: str = axes(about="how it was measured")

    def __repr__(self) -> str:
        sound = ~failed(self.status)
        median = float(self.curvature[sound].median()) if bool(sound.any()) else float("nan")
        return f"SectionCurvature({int(sound.sum())} of {len(sound)} planes, median {median:.4g}, {self.estimator})"


def section(neuron: Neuron, x: Float[Tensor, "case *shape"], basis: Float[Tensor, "case 2 n"]) -> Neuron:
    """The neuron cut by one plane per case: a response of plane coordinates (case, 2), in input units, with x at (0, 0).

    Parameters
    ----------
    basis
        Orthonormal pairs of directions, as in `Plane.basis`.

    Raises
    ------
    ValueError
        Invalid inputs, a basis of another shape, or one that is not orthonormal: (nearly) parallel directions span no plane.
    """
    neuron.require_inputs(x)
    cases, n = x.flatten(1).shape
    if basis.shape != (cases, 2, n):
        raise ValueError(f"basis must have shape ({cases}, 2, {n}), two directions per case, got {tuple(basis.shape)}.")
    overlap, sizes = basis.prod(1).sum(1), length(basis)
    if not bool(((overlap.abs() < 1e-4) & ((sizes - 1).abs() < 1e-4).all(1)).all()):
        raise ValueError(
            "basis must hold orthonormal pairs of directions, got pairs that are not; use plane_basis(first, second), which "
            "orthonormalises and refuses parallel ones."
        )
    shape = neuron.shape

    def response(c: Tensor, origin: Tensor, directions: Tensor, *given: Tensor) -> Tensor:
        # no matrix product: its sums over all elements are not pairwise, and float32 loses four digits at image size
        at = origin + (c[:, :, None] * directions).sum(1).reshape(len(c), *shape)
        return neuron.response(at, *given)

    return Neuron(response, (2,), Box(), f"{neuron.name} in a plane", (x.detach(), basis.detach(), *neuron.given))


def plane_basis(
    first: Float[Tensor, "case *shape"], second: Float[Tensor, "case *shape"], *, min_angle: float = 1e-3
) -> Float[Tensor, "case 2 n"]:
    """Orthonormal bases (case, 2, n) of the planes spanned by two directions per case, the first along `first`.

    Raises
    ------
    ValueError
        Different shapes, zero or non-finite directions, or pairs within `min_angle` (radians) of parallel or antiparallel.
    """
    if first.shape != second.shape or first.ndim < 2:
        raise ValueError(
            f"both directions must have one shape (case, ...), got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    u, v = first.flatten(1), second.flatten(1)
    lengths = torch.stack([length(u), length(v)])
    if not bool(((lengths > 0) & torch.isfinite(lengths)).all()):
        raise ValueError("both directions must be finite and not zero in every case; give two different directions.")
    u, v = u / lengths[0, :, None], v / lengths[1, :, None]
    for _ in range(2):
        v = v - (u * v).sum(1, keepdim=True) * u
    sine = length(v, keepdim=True)
    narrow = int((sine < torch.sin(torch.tensor(min_angle))).sum())
    if narrow:
        raise ValueError(
            f"the two directions are within {min_angle} rad of parallel in {narrow} of {len(u)} cases and span no plane; choose "
            "a second one that differs, e.g. from random_directions."
        )
    return torch.stack([u, v / sine], 1)


def section_curvature(
    neuron: Neuron, x: Float[Tensor, "case *shape"], basis: Float[Tensor, "case 2 n"], *, jet: JetBuilder = exact_jet
) -> SectionCurvature:
    """Curvature of the contour through `x` within one plane per case, from derivatives in that plane.

    Positive: bent outward, round the higher response. The plane's jet is exact, or measured at a scale where `jet` says so:
    `jet=partial(secant_jet, scale=0.5)` looks at the plane only and costs nine gradients. One gradient more gives the tilt.

    NaN with status UNDEFINED where the plane is tangent to the contour (it cuts no line there), FLAT where the gradient vanishes,
    TOO_WIDE where the scale exceeds the box. Warns as `principal_curvatures` does.

    Raises ValueError as `section` does.

    Examples
    --------
    >>> import torch
    >>> ball = Neuron(lambda x: -x.norm(dim=1), (3,))
    >>> x = torch.tensor([[0.0, 0.0, 2.0]])
    >>> oblique = plane_basis(torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 1]]))   # 45 degrees off the normal
    >>> cut = section_curvature(ball, x, oblique)
    >>> round(cut.curvature.item(), 4), round(cut.normal_curvature.item(), 4), round(cut.tilt.rad2deg().item(), 1)
    (0.7071, 0.5, 45.0)
    """
    inside = jet(section(neuron, x, basis), x.new_zeros((len(x), 2)))
    gradient = neuron.value_and_grad(x)[1].flatten(1)
    flat = inside.gradient
    eps = torch.finfo(x.dtype).eps
    steepness, seen = length(gradient), length(flat)
    within = (basis * gradient[:, None]).sum(2)
    cut, missed = length(within), length(gradient - torch.einsum("ci,cin->cn", within, basis))
    lower, upper = (bound.expand(neuron.shape).flatten() for bound in neuron.box.bounds(x))
    reach = (inside.scale[:, None, None] * basis).abs().amax(1)
    status = mark(
        inside.status,
        # a plane within sqrt(eps) of tangent would be measured by its rounding
        ((cut <= eps**0.5 * steepness) & (inside.status <= int(Status.FLAT)), Status.UNDEFINED),
        ((reach > (upper - lower).masked_fill(upper == lower, torch.inf)).any(1), Status.TOO_WIDE),
        (steepness == 0, Status.FLAT),
        (~torch.isfinite(steepness), Status.NOT_FINITE),
    )
    bad = failed(status)
    tangent = torch.stack([-flat[:, 1], flat[:, 0]], 1) / seen[:, None]
    bent = inside.hessian @ tangent
    curvature = -(tangent * bent).sum(1) / seen
    cosine = cut / torch.hypot(cut, missed)
    _warn_where_affine(neuron, x, inside, (bent == 0).all(1) & ~bad)
    error = (inside.error + inside.gradient_error * curvature.abs()) / seen + 4 * eps * length(bent) / seen
    error = (
        error + eps * x[0].numel() ** 0.5 * curvature.abs()
    )  # sums over all elements that torch does not sum pairwise

    def sound(t: Tensor) -> Tensor:
        return t.masked_fill(bad.reshape(-1, *[1] * (t.ndim - 1)), torch.nan)

    return SectionCurvature(
        sound(curvature), sound(error), sound(curvature * cosine), sound(torch.atan2(missed, cut)),
        sound(torch.einsum("ci,cin->cn", tangent, basis)), inside.scale, status, inside.estimator,
    )  # fmt: skip


def sagitta_curvature(
    neuron: Neuron, x: Float[Tensor, "case *shape"], basis: Float[Tensor, "case 2 n"], *, scale: float
) -> SectionCurvature:
    """Curvature of the contour through `x` in one plane per case, from where the contour is, without derivatives.

    `basis` holds the direction in which the response rises first and a direction across second. The contour is found, by
    forward passes along the first direction, at `scale` and half of it to both sides; the height of the arc over its chord
    (sagitta) gives the curvature. The difference between the two scales is the error. `tilt`, `normal_curvature` need a
    gradient and are NaN.

    NaN with status UNREACHABLE where the contour is not met along the first direction.

    Raises ValueError as `section` does, or for a scale that is not positive.
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}.")
    flat = section(neuron, x, basis)
    level = flat.value(x.new_zeros((len(x), 2)))
    wide, near = (_arc(flat, level, h) for h in (scale, 0.5 * scale))
    # a finite response whose contour is met on all sides, and an arc that is not hidden by rounding
    status = mark(
        torch.full_like(level, int(Status.DONE), dtype=torch.int64),
        (~(wide[1] & near[1]), Status.UNREACHABLE),
        (~torch.isfinite(level), Status.NOT_FINITE),
    )
    bad = failed(status)
    nan = torch.full_like(level, torch.nan)
    tangent = wide[2][:, :1] * basis[:, 0] + wide[2][:, 1:] * basis[:, 1]
    # --- the heights are as uncertain as the responses, divided by the slope along the first direction, which needs no derivative
    slope = (flat.value(_at(level, scale, 0.0)) - flat.value(_at(level, -scale, 0.0))).abs() / (2 * scale)
    eps = torch.finfo(x.dtype).eps
    height = eps * (level.abs() / slope.clamp_min(torch.finfo(x.dtype).tiny) + length(x.flatten(1)))
    error = 2 * (wide[0] - near[0]).abs() + 32 * height / scale**2
    return SectionCurvature(
        wide[0].masked_fill(bad, torch.nan), error.masked_fill(bad, torch.nan), nan, nan,
        tangent.masked_fill(bad[:, None], torch.nan), torch.full_like(level, scale), status, "sagitta",
    )  # fmt: skip


def _arc(flat: Neuron, level: Tensor, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """Curvature (case,) of the contour at plane point (0, 0) from its heights at +-width, whether both exist, and its tangent."""
    heights, found = [], torch.ones_like(level, dtype=torch.bool)
    for side in (width, -width):
        start = _at(level, 0.0, side)
        problem = Problem.of(flat, start, torch.nan_to_num(level))
        aim = start.clone()
        aim[:, 0] = 0.25 * width * problem.sign
        below = problem.excess(start)
        point, met, _ = cross_ray(problem, below, aim, rounding(below))
        heights.append(torch.where(below == 0, torch.zeros_like(level), point[:, 0]))
        found = found & (met | (below == 0))
    above, beneath = heights
    slope = (above - beneath) / (2 * width)
    curvature = (above + beneath) / width**2 / (1 + slope**2) ** 1.5
    tangent = torch.stack([slope, torch.ones_like(slope)], 1) / (1 + slope**2).sqrt()[:, None]
    return curvature, found, tangent


def _at(like: Tensor, first: float, second: float) -> Tensor:
    """The same plane coordinates (case, 2) for every case."""
    return torch.tensor([first, second], dtype=like.dtype, device=like.device).expand(len(like), 2)


def _warn_where_affine(neuron: Neuron, x: Tensor, inside: Jet, zero: Tensor) -> None:
    """Warn where an exact section is straight because the response is affine, and not only in this plane."""
    if inside.estimator == "exact" and bool(zero.any()):
        warn_where_flat(exact_jet(neuron, x), zero)
