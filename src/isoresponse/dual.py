"""The point nearest to another one where a few linear functions have given values, inside bounds.

A quadratic programme with as many multipliers as there are functions, however many elements the point has: so it is solved
in the multipliers, exactly but for rounding, for all cases at once. What `norms.nearest_in_plane` does for one
plane, `nearest_within` does for several.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isoresponse.norms import size

NEWTON = 50  # steps by default at most; five to ten are usual
SHORTENINGS = 20  # of one of them at most, each to a quarter
DAMPING = 1e-3  # of a step, relative to the constraints' own curvature, where they are missed by as much as the answer is long


def nearest_within(
    y: Float[Tensor, "case n"],
    rows: Float[Tensor, "case k n"],
    values: Float[Tensor, "case k"],
    lower: Float[Tensor, "case n"],
    upper: Float[Tensor, "case n"],
    soft: Float[Tensor, "case k"] | None = None,
    multipliers: Float[Tensor, "case k"] | None = None,
    max_steps: int = NEWTON,
) -> tuple[Float[Tensor, "case n"], Float[Tensor, "case k"], Bool[Tensor, " case"]]:
    """The point d nearest to `y` with rows.d = values inside bounds, its multipliers (case, k), and whether it was found.

    d = clip(y + multipliers.rows). The multipliers maximise a concave, piecewise quadratic dual, by Newton's method (Qi and
    Sun 1993), damped while it is far from the answer, with steps shortened until the dual rises.

    Parameters
    ----------
    rows
        Of length one each; few.
    lower, upper
        Bounds of d, on either side of zero or zero.
    soft
        A constraint may be missed by this times its multiplier.
    multipliers
        Where to begin.
    max_steps
        Of Newton's method. Where no point meets all constraints it would go on for ever.
    """
    lower, upper = lower.clamp_max(0).expand_as(y), upper.clamp_min(0).expand_as(y)
    eps, movable, far = torch.finfo(y.dtype).eps, upper > lower, size(y) + size(values)
    soft = torch.zeros_like(values) if soft is None else soft

    def at(multipliers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        aim = y + (multipliers[:, None] @ rows)[:, 0]
        d = torch.clamp(aim, lower, upper)
        residual = values - (rows @ d[:, :, None])[:, :, 0] - soft * multipliers
        dual = 0.5 * (d - y).square().sum(1) + (multipliers * (residual + 0.5 * soft * multipliers)).sum(1)
        return aim, d, residual, dual

    multipliers = torch.zeros_like(values) if multipliers is None else multipliers
    aim, d, residual, dual = at(multipliers)
    stuck = torch.zeros_like(dual, dtype=torch.bool)  # where no step raises the dual any more, for rounding
    for _ in range(max_steps):
        missed, scale = size(residual), size(d) + far
        going = ~stuck & (missed > 8 * eps * (scale + size(multipliers)))
        if not bool(going.any()):
            break
        free = ((aim == d) & movable).to(y.dtype)[:, None] * rows
        matrix = free @ rows.transpose(1, 2) + torch.diag_embed(soft)
        damping = DAMPING * (missed / scale.clamp_min(torch.finfo(y.dtype).tiny)).clamp(max=1.0) + 10 * eps
        ridge = damping * torch.diagonal(matrix, dim1=1, dim2=2).mean(1).clamp_min(1e-3)
        step = torch.linalg.solve_ex(matrix + torch.diag_embed(ridge[:, None].expand_as(soft)), residual)[0]
        # --- shorten until the dual rises as its slope says, or the constraints are missed by much less
        here, slope, before = dual - 4 * eps * dual.abs(), 1e-4 * (residual * step).sum(1), multipliers
        part, risen = torch.ones_like(slope), ~going
        for _ in range(SHORTENINGS):
            multipliers = before + torch.where(going, part, torch.zeros_like(part))[:, None] * step
            aim, d, residual, dual = at(multipliers)
            risen = risen | (dual >= here + part * slope) | (size(residual) < 0.5 * missed)
            if bool(risen.all()):
                break
            part = torch.where(risen, part, 0.25 * part)
        stuck = stuck | ~risen
    return d, multipliers, size(residual) <= 100 * eps * (size(d) + far)
