"""Codes by exchanges of one active unit at a time: slow, but certain to end; and the codes of units with a hard threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from isoresponse.models.sparse_active import ActiveSystem
from isoresponse.models.sparse_elements import Elements, Shrinkage


@torch.no_grad()
def exchange(
    elements: Elements, shrinkage: Shrinkage, x: Tensor, *, hard: bool, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """Activities (case, count) of inputs x (case, n), and by how much (case,) they miss the conditions, infinite if unfinished.

    From rest, the unit that is driven most above the threshold enters and all active ones move towards where they settle; on
    the way, one that falls to zero leaves (Lawson & Hanson 1974; Lee, Battle, Raina & Ng 2007). Every exchange lowers
    1/2 |x - D a|^2 + sparsity |a|_1, so it ends, at the minimum.

    With `hard` thresholds active units settle where they explain the input on their own, and the weakest leaves while it
    stays below the threshold. With elements of norm 1 that lowers 1/2 |x - D a|^2 + 1/2 sparsity^2 (number of active units).
    """
    drive = elements.drive(x)
    allowed = tolerance * drive.abs().amax(1).clamp_min(shrinkage.sparsity)
    activity, violation = torch.zeros_like(drive), torch.full_like(allowed, torch.inf)
    moving = torch.arange(len(x), device=x.device)
    a, sign, last = torch.zeros_like(drive), torch.zeros_like(drive), torch.zeros_like(moving)
    for _ in range(max_steps):
        if len(moving) == 0:
            break
        pull = 0.0 if hard else shrinkage.sparsity * sign
        target, endless = _settled(elements, a, sign, last, drive - pull)
        blocked = torch.zeros_like(moving, dtype=torch.bool)
        if shrinkage.rectified or not hard:
            falls = (sign * (target - a) < 0) & ((sign * target < 0) | endless[:, None])
            way, leaves = torch.where(falls, a / (a - target), torch.inf).min(1)
            blocked = way.isfinite()
            target = torch.where(
                blocked[:, None], torch.lerp(a, target, torch.where(blocked, way, 1.0)[:, None]), target
            )
            sign = _changed(sign, leaves, blocked, 0.0)
        a = torch.where(sign != 0, target, 0.0)
        settled = ~blocked
        if hard:
            smallest, weakest = torch.where(sign != 0, a.abs(), torch.inf).min(1)
            weak = settled & (smallest <= shrinkage.sparsity)
            sign, settled = _changed(sign, weakest, weak, 0.0), settled & ~weak
        remains = elements.drive(x - elements.sum(a))
        most, last = torch.where(sign != 0, -torch.inf, shrinkage.excess(remains)).max(1)
        enters = settled & (most > allowed)
        off = (remains - (0.0 if hard else shrinkage.sparsity * a.sign())).abs()
        missing = torch.maximum(most, torch.where(a != 0, off, 0.0).amax(1)).clamp_min(0)
        activity[moving], violation[moving] = a, torch.where(settled, missing, torch.inf)
        sign = _changed(sign, last, enters, remains.gather(1, last[:, None]).sign())
        on = ~settled | enters
        moving, x, drive, a, sign, last, allowed = (t[on] for t in (moving, x, drive, a, sign, last, allowed))
    return activity, violation


def _settled(elements: Elements, a: Tensor, sign: Tensor, last: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Where active units settle (case, count), and the cases (case,) in which a straight way leads from `a` without end.

    There is one where the element of the `last` unit that entered (case,) is a sum of the other active ones: it can take
    over from them, and what it costs falls all the way.
    """
    system = ActiveSystem(elements, sign != 0, hasty=True)
    target, endless = system.solve(right), system.dependent
    if bool(endless.any()):
        unit = last[endless, None]
        own = torch.zeros_like(a[endless]).scatter(1, unit, sign[endless].gather(1, unit))
        others = ActiveSystem(elements, (sign[endless] != 0).scatter(1, unit, False))
        target[endless] = a[endless] + own - others.solve(elements.drive(elements.sum(own)))
    return target, endless


def _changed(sign: Tensor, unit: Tensor, where: Tensor, to: Tensor | float) -> Tensor:
    """`sign` (case, count) with that of one unit (case,) set in some cases."""
    before = sign.gather(1, unit[:, None])
    return sign.scatter(1, unit[:, None], torch.where(where[:, None], to, before))


def missed_hard(elements: Elements, shrinkage: Shrinkage, x: Tensor, activity: Tensor) -> Tensor:
    """By how much (case,) activities (case, count) miss the conditions of a fixed point of units with a hard threshold."""
    remains = elements.drive(x - elements.sum(activity))
    weak = (shrinkage.sparsity - activity.abs()).clamp_min(0)
    return torch.where(activity == 0, shrinkage.excess(remains).relu(), torch.maximum(remains.abs(), weak)).amax(1)
