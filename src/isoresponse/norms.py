"""Three ways to measure a change of the input, and the nearest point of a plane in each.

A contour seen from close by is a plane, so every search for the closest point of a contour asks one
question over and over: the smallest change, inside the box, that reaches a plane. It has an exact answer
in each norm. In L2 the change follows the gradient, in L-infinity its signs, in L1 its largest elements;
in all three, elements that meet a bound stay there and the others carry on.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

INF = float("inf")
NORMS = (1.0, 2.0, INF)


def require_norm(norm: float) -> None:
    """Raise ValueError unless `norm` is one of 1, 2 and infinity."""
    if isinstance(norm, bool) or not isinstance(norm, int | float) or float(norm) not in NORMS:
        raise ValueError(f"norm must be 1, 2 or float('inf') (L1, L2, L-infinity), got {norm!r}.")


def size(d: Float[Tensor, "case n"], norm: float = 2.0) -> Float[Tensor, " case"]:
    """How large the changes `d` are (case,), in input units."""
    return torch.linalg.vector_norm(d, norm, dim=1)


def nearest_in_plane(
    gap: Float[Tensor, " case"],
    gradient: Float[Tensor, "case n"],
    lower: Float[Tensor, "case n"],
    upper: Float[Tensor, "case n"],
    norm: float = 2.0,
) -> tuple[Float[Tensor, "case n"], Bool[Tensor, " case"]]:
    """The smallest d with gradient.d = gap and lower <= d <= upper, and whether it exists.

    Where the box ends before the plane, d is the box's farthest corner.

    Parameters
    ----------
    gap
        Positive; a gap that is not is treated as zero.
    lower, upper
        Bounds of d (not of the point), on either side of zero.
    norm
        In which d is smallest: 1, 2 or infinity.
    """
    end = torch.where(gradient > 0, upper.clamp_min(0), lower.clamp_max(0))  # where each element is heading
    gap = gap.clamp_min(0)
    if norm == 1.0:
        return _largest_first(gap, gradient, end)
    # each element moves in proportion to its pace until it meets its bound
    pace = gradient if norm == 2.0 else gradient.sign()
    return _all_together(gap, gradient, pace, end)


def nearest_in_ball(
    excess: Float[Tensor, " case"],
    gradient: Float[Tensor, "case n"],
    bend: Float[Tensor, " case"],
    way: Float[Tensor, "case n"],
    lower: Float[Tensor, "case n"],
    upper: Float[Tensor, "case n"],
    norm: float = 2.0,
) -> tuple[Float[Tensor, "case n"], Bool[Tensor, " case"]]:
    """The smallest d where excess + gradient.(d - way) - bend/2 |d - way|^2 >= 0 and lower <= d <= upper, and whether it exists.

    A contour seen as a sphere round its peak way + gradient / bend, of curvature bend / |gradient| at `way` if that is on
    it. All such d lie on one path to the peak: shrunk towards zero in L2, cut to a common ceiling in L-infinity,
    each brought nearer by as much in L1. Where the sphere is out of reach, d is the peak itself, inside the bounds.

    Parameters
    ----------
    bend
        Positive, in response / input^2.
    """
    peak = way + gradient / bend[:, None]
    farthest = peak.abs().amax(1, keepdim=True)

    def at(part: Tensor) -> Tensor:
        if norm == 2.0:
            free = part[:, None] * peak
        elif norm == 1.0:
            free = peak.sign() * (peak.abs() - (1 - part[:, None]) * farthest).clamp_min(0)
        else:
            free = peak.clamp(-part[:, None] * farthest, part[:, None] * farthest)
        return torch.minimum(torch.maximum(free, lower), upper)

    def reached(d: Tensor) -> Tensor:
        step = d - way
        return excess + (step * (gradient - 0.5 * bend[:, None] * step)).sum(1) >= 0

    low, high = torch.zeros_like(excess), torch.ones_like(excess)
    exists = reached(at(high))
    for _ in range(4 - int(math.log2(torch.finfo(excess.dtype).eps))):
        middle = 0.5 * (low + high)
        enough = reached(at(middle))
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return at(torch.where(exists, high, torch.ones_like(high))), exists


def _all_together(gap: Tensor, gradient: Tensor, pace: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The d = clip(t * pace) for one multiplier t per case.

    The plane's value along that path is concave and piecewise linear in t, so Newton from t = 0 rises to the root
    without overshooting and ends after as many steps as pieces are met.
    """
    t = torch.zeros_like(gap)
    rise, farthest = gradient * pace, gradient * end
    for _ in range(gradient.shape[1] + 1):
        pinned = ((t[:, None] * pace).abs() >= end.abs()) & (gradient != 0)
        reached = torch.where(pinned, farthest, torch.zeros_like(gradient)).sum(1)
        slope = torch.where(pinned, torch.zeros_like(gradient), rise).sum(1)
        new = torch.where(slope > 0, (gap - reached) / torch.where(slope > 0, slope, torch.ones_like(slope)), t)
        new = torch.maximum(new, t)
        moved = new > t * (1 + 4 * torch.finfo(t.dtype).eps)
        t = torch.where(moved, new, t)
        if not bool(moved.any()):
            break
    d = torch.where(pinned, end, t[:, None] * pace)
    exists = (slope > 0) | (reached >= gap)
    return d, exists & torch.isfinite(d).all(1)


def _largest_first(gap: Tensor, gradient: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Elements go to their bound in the order of the size of their gradient; the last one as far as needed."""
    order = gradient.abs().argsort(dim=1, descending=True, stable=True)
    ahead, slope = end.gather(1, order), gradient.gather(1, order)
    useful = slope != 0  # an unbounded element that does nothing must not become NaN
    ahead, per_unit = (
        torch.where(useful, ahead, torch.zeros_like(ahead)),
        torch.where(useful, slope, torch.ones_like(slope)),
    )
    gains = ahead * slope
    before = torch.cat([torch.zeros_like(gains[:, :1]), gains[:, :-1].cumsum(1)], dim=1)
    wanted = (gap[:, None] - before).clamp_min(0)
    moves = torch.where(gains <= wanted, ahead, torch.where(useful, wanted / per_unit, torch.zeros_like(ahead)))
    moves = torch.where(wanted > 0, moves, torch.zeros_like(moves))
    d = torch.zeros_like(gradient).scatter(1, order, moves)
    return d, (gains.sum(1) >= gap) & torch.isfinite(d).all(1)
