"""Codes of units with a hard threshold: active units explain the input on their own, and each is worth its place."""

from __future__ import annotations

import torch
from torch import Tensor

from isoresponse.models.sparse_active import ActiveSystem
from isoresponse.models.sparse_elements import Elements
from isoresponse.models.sparse_solver import Shrinkage


@torch.no_grad()
def select(
    elements: Elements, shrinkage: Shrinkage, x: Tensor, *, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """Activities (case, count) of inputs x (case, n), and by how much (case,) they miss the conditions of a fixed point.

    From rest, the unit that is driven most above the threshold enters and all active ones settle; the weakest one leaves if
    it stays below the threshold, and a rectified one as soon as it falls to zero. With elements of norm 1 every exchange
    lowers 1/2 |x - D a|^2 + 1/2 sparsity^2 (number of active units), so it ends. A case is finished once no unit is driven
    above the threshold by more than `tolerance` times its largest drive (sparsity if that is more).
    """
    drive = elements.drive(x)
    allowed = tolerance * drive.abs().amax(1).clamp_min(shrinkage.sparsity)
    activity, violation = torch.zeros_like(drive), torch.full_like(allowed, torch.inf)
    moving = torch.arange(len(x), device=x.device)
    a, active = torch.zeros_like(drive), torch.zeros_like(drive, dtype=torch.bool)
    for _ in range(max_steps):
        if len(moving) == 0:
            break
        target = ActiveSystem(elements, active).solve(drive)
        blocked = torch.zeros_like(moving, dtype=torch.bool)
        if shrinkage.rectified:
            way, leaves = torch.where(active & (target < 0), a / (a - target), torch.inf).min(1)
            blocked = way.isfinite()
            target = torch.where(
                blocked[:, None], torch.lerp(a, target, torch.where(blocked, way, 1.0)[:, None]), target
            )
            active = _changed(active, leaves, blocked, False)
        a = torch.where(active, target, 0.0)
        smallest, weakest = torch.where(active, a.abs(), torch.inf).min(1)
        weak = ~blocked & (smallest <= shrinkage.sparsity)
        active = _changed(active, weakest, weak, False)
        remains = elements.drive(x - elements.sum(a))
        most, enters = torch.where(active, -torch.inf, shrinkage.excess(remains)).max(1)
        settled = ~blocked & ~weak
        active = _changed(active, enters, settled & (most > allowed), True)
        missing = torch.maximum(most, torch.where(a != 0, remains.abs(), 0.0).amax(1)).clamp_min(0)
        activity[moving], violation[moving] = a, torch.where(settled, missing, torch.inf)
        on = ~settled | (most > allowed)
        moving, x, drive, a, active, allowed = (t[on] for t in (moving, x, drive, a, active, allowed))
    return activity, violation


def missed(elements: Elements, shrinkage: Shrinkage, x: Tensor, activity: Tensor) -> Tensor:
    """By how much (case,) activities (case, count) miss the conditions of a fixed point."""
    remains = elements.drive(x - elements.sum(activity))
    weak = (shrinkage.sparsity - activity.abs()).clamp_min(0)
    return torch.where(activity == 0, shrinkage.excess(remains).relu(), torch.maximum(remains.abs(), weak)).amax(1)


def _changed(active: Tensor, unit: Tensor, where: Tensor, to: bool) -> Tensor:
    """`active` (case, count) with one unit (case,) set in some cases."""
    before = active.gather(1, unit[:, None])
    return active.scatter(1, unit[:, None], torch.where(where[:, None], to, before))
