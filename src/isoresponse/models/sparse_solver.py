"""Minimisers of 1/2 |x - D a|^2 + sparsity |a|_1 for many inputs at once, to rounding.

Few accelerated steps in float32 tell roughly which units are active; then sets of active units are tried out: the equations
of a set are solved in float64, units with the wrong sign leave, silent units that are driven above the threshold enter. A
set that needs no change is the answer. Where trying out sets leads nowhere, more steps are taken, and where these lead
nowhere, units are exchanged one at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoresponse.models.sparse_active import ActiveSystem
from isoresponse.models.sparse_elements import Elements, Shrinkage
from isoresponse.models.sparse_exchange import exchange

FEW = 3  # as long as no more than one unit in so many is wrong, another set is tried
BURST, GROWTH = 20, 3 / 2  # steps before sets are tried for the first time, and how many more each time after that
SINGLE = 100  # steps after which float32 is no longer good enough
HASTE = 5.0  # first rate, as a multiple of the one that is safe whichever units are active
DESCENT = 0.6  # by which the threshold falls per step
SLACK = 1.2  # rate times stiffness that is allowed: at 4/3 accelerated steps become unstable
CHECK = 2  # steps between looks at the stiffness and at whether momentum still helps
LONG = 1000  # steps after which units are exchanged one by one
SETS = 20  # sets tried between bursts of steps


class Steps:
    """Accelerated proximal gradient steps from rest, in units of the largest drive of each case.

    The threshold comes down from the largest drive, so that few units are ever active, and the rate is what these few allow:
    it starts high and falls where a step shows that the elements involved reinforce one another.
    """

    def __init__(self, elements: Elements, shrinkage: Shrinkage, x: Tensor, scale: Tensor) -> None:
        self.elements, self.shrinkage = elements, shrinkage
        self.scale, self.x = scale[:, None], x / scale[:, None]
        self.a = self.ahead = torch.zeros(len(x), elements.count).to(x)
        self.momentum = torch.ones_like(self.scale)
        self.largest = elements.largest().to(x)
        self.rate = (HASTE / self.largest).expand_as(self.scale)
        self.taken = 0

    def take(self, steps: int, dtype: torch.dtype) -> None:
        """Go on for some steps."""
        elements = self.elements.to(dtype)
        x, a, ahead, momentum, rate, largest, last = (
            t.to(dtype)
            for t in (
                self.x, self.a, self.ahead, self.momentum, self.rate, self.largest, self.shrinkage.sparsity / self.scale
            )
        )  # fmt: skip
        sum_a, sum_ahead = elements.sum(a), elements.sum(ahead)
        for _ in range(steps):
            self.taken += 1
            v = elements.climb(ahead, rate * (x - sum_ahead))
            after = self.shrinkage(v, rate * last.clamp_min(DESCENT**self.taken))
            sum_after = elements.sum(after)
            following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
            if self.taken % CHECK == 0:
                back = ahead - after
                size = torch.linalg.vector_norm(back, dim=1, keepdim=True)
                stretch = torch.linalg.vector_norm(sum_ahead - sum_after, dim=1, keepdim=True) / size
                stiffness = torch.where(size > 0, stretch.square(), 0).minimum(largest)  # along this step
                rate = torch.where(rate * stiffness > SLACK, SLACK / stiffness, rate)
                restart = back.mul_(after - a).sum(1, keepdim=True) > 0
                momentum, following = torch.where(restart, 1.0, momentum), torch.where(restart, 1.0, following)
            onward = 1 + (momentum - 1) / following
            ahead, sum_ahead = torch.lerp(a, after, onward), torch.lerp(sum_a, sum_after, onward)
            a, sum_a, momentum = after, sum_after, following
        self.a, self.ahead, self.momentum, self.rate = (t.to(self.x) for t in (a, ahead, momentum, rate))

    def keep(self, cases: Tensor) -> None:
        """Leave all other cases."""
        self.scale, self.x, self.a, self.ahead, self.momentum, self.rate = (
            t[cases] for t in (self.scale, self.x, self.a, self.ahead, self.momentum, self.rate)
        )


@torch.no_grad()
def minimise(
    elements: Elements, shrinkage: Shrinkage, x: Tensor, *, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """Activities (case, count) of inputs x (case, n), and by how much (case,) they miss the conditions of a minimum.

    A case is finished once it misses them by no more than `tolerance` times its largest drive, or sparsity if that is more.
    Cases that are not after `max_steps` (in whole bursts) have the activities they got to.
    """
    drive = elements.drive(x)
    scale = drive.abs().amax(1).clamp_min(shrinkage.sparsity)
    activity, violation = torch.zeros_like(drive), torch.full_like(scale, torch.inf)
    moving = torch.arange(len(x), device=x.device)
    steps = Steps(elements, shrinkage, x, scale)
    taken, burst, dtype = 0, BURST, torch.float32
    while len(moving) and taken < max_steps:
        steps.take(burst, dtype)
        taken, burst = taken + burst, int(burst * GROWTH)
        if taken > SINGLE:
            dtype = torch.float64
        found, missing = try_sets(
            elements,
            shrinkage,
            x[moving],
            drive[moving],
            steps.a.sign(),
            tolerance * scale[moving],
            hasty=taken <= SINGLE,
        )
        activity[moving], violation[moving] = found, missing
        on = missing > tolerance * scale[moving]
        moving = moving[on]
        steps.keep(on)
        if taken > LONG:
            break
    if len(moving) and taken < max_steps:
        rest = max_steps - taken
        found, missing = exchange(elements, shrinkage, x[moving], hard=False, tolerance=tolerance, max_steps=rest)
        activity[moving], violation[moving] = found, missing
        on = ~(missing <= tolerance * scale[moving])
        moving = moving[on]
        steps.keep(on)
    if len(moving):
        activity[moving] = steps.a * steps.scale
        violation[moving] = missed(elements, shrinkage, x[moving], activity[moving])
    return activity, violation


def try_sets(
    elements: Elements, shrinkage: Shrinkage, x: Tensor, drive: Tensor, sign: Tensor, allowed: Tensor, *, hasty: bool
) -> tuple[Tensor, Tensor]:
    """Activities (case, count) and what they miss (case,), infinite where no set of active units was found.

    In haste, sets of dependent elements count as none.
    """
    activity, violation = torch.zeros_like(drive), torch.full_like(allowed, torch.inf)
    left = torch.arange(len(x), device=x.device)
    if hasty:  # more elements than numbers are dependent
        left = ((sign != 0).sum(1) <= elements.n).nonzero()[:, 0]
        x, drive, sign, allowed = (t[left] for t in (x, drive, sign, allowed))
    fewest = torch.full_like(left, elements.count + 1)
    for _ in range(SETS):
        active = sign != 0
        system = ActiveSystem(elements, active, hasty=hasty)
        a = system.solve(torch.add(drive, sign, alpha=-shrinkage.sparsity))
        remains = elements.drive(x - elements.sum(a))
        excess = shrinkage.excess(remains)
        wrong, enters = a * sign < 0, (excess > allowed[:, None]) & ~active
        many = (wrong | enters).sum(1)
        missing = torch.where(active, excess.abs(), excess).amax(1).clamp_min(0)
        skipped = system.dependent & hasty
        done = (many == 0) & (missing <= allowed) & ~skipped
        activity[left[done]], violation[left[done]] = a[done], missing[done]
        promising = ~skipped & (many > 0) & (many < fewest) & (many * FEW <= active.sum(1))
        if not bool(promising.any()):
            break
        sign = torch.where(active, sign * ~wrong, remains.sign() * enters)
        left, fewest, x, drive, sign, allowed = (t[promising] for t in (left, many, x, drive, sign, allowed))
    return activity, violation


def missed(elements: Elements, shrinkage: Shrinkage, x: Tensor, activity: Tensor) -> Tensor:
    """By how much (case,) activities (case, count) miss the conditions of a minimum."""
    remains = elements.drive(x - elements.sum(activity))
    off = (remains - shrinkage.sparsity * activity.sign()).abs()
    return torch.where(activity == 0, shrinkage.excess(remains).relu(), off).amax(1)
