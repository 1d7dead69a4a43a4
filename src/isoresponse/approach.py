"""Coming to a contour from afar: where the first linearisation does not see it.

Where contours are straight and evenly spaced, the gradient at the input tells where a contour lies. A
network trained to be robust is not like that: units are dead, inputs saturate at the box, and the gradient
at the input points to the wrong boundary or nowhere. What helps is a gradient *at a scale*. `approach`
starts far out, where the first linearisation leads, be it a corner of the box, and comes back towards
the start. At each point it replaces the contour by a plane and goes part of the way to the point of that
plane nearest to the start:

- The plane's *normal* is a running mean of the unit gradients met on the way (as in dual averaging, Nesterov
  2009). Early on these were met far apart, so it is a gradient at the scale of the whole way. At a kink it tends
  to a mean of the gradients on either side, in whose cone the perturbation lies at the closest point.
- The *pace*, the part of the way that is taken, falls to a small rest. That settles the cycles of full steps.
- The plane is aimed at a little *beyond* the contour; by more while points come out short of it, by less
  while they come out across. So about every other point is an answer, and no forward pass is spent on a line search.

One gradient a step and nothing else; the best point across is never lost. Where gradients are exactly zero and none was
met before, points are looked at ever farther from the start until one is met.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isoresponse.crossing import Problem
from isoresponse.loop import Status, iterate, mark, status_tensor
from isoresponse.norms import nearest_in_plane, size

MEMORY = 0.7  # share of the running mean that each gradient leaves in place
STRIDE, CALMER = (
    0.85,
    0.2,
)  # the first part of the way to the plane that is taken: STRIDE / (gradients in all)^CALMER ...
LEAST_PACE = 0.05  # ... and the part that is taken in the end
BEYOND = 0.1  # aimed at beyond the level, in units of the gap at the start; and its least and largest value
LEAST_BEYOND, MOST_BEYOND = 0.003, 2.0
PRESS, RELIEF = 1.5, 0.7  # factors on it after a point that is short of the level, and after one across
QUIET, PATIENCE = 8, 0.3  # an approach has settled after so many gradients, or this share of them, without ...
SETTLED = 1e-4  # ... an improvement of this part of the distance
NEAR, FARTHER = (
    1 / 64,
    2.0,
)  # how far from the start a flat region is left, in units of the room, and its growth every second time


@dataclass(frozen=True, eq=False)
class Approach:
    """State and result of `approach`; every tensor has leading axis case."""

    x: Tensor  # current point
    normal: Tensor  # running mean of unit gradients
    beyond: Tensor
    best: Tensor  # best point across ...
    distance: Tensor  # ... and its distance, infinite while there is none
    promise: Tensor  # distance at which the latest ray would meet the contour, by its slope there
    quiet: Tensor  # gradients since the last improvement worth the name
    flat: Tensor  # gradients that were zero while no direction was known
    gradients: Tensor
    status: Tensor

    @classmethod
    def at(cls, first: Tensor) -> Approach:
        """Nothing known yet, about to look at `first` (case, n)."""
        zero = torch.zeros_like(first[:, 0])
        none, infinite = torch.zeros_like(zero, dtype=torch.int64), torch.full_like(zero, torch.inf)
        running = status_tensor(Status.RUNNING, zero)
        return cls(
            first, torch.zeros_like(first), zero + BEYOND, first, infinite, infinite, none, none, none, running
        )  # fmt: skip

    def again(self) -> Approach:
        """From the best point once more, with a fresh mean; from the current one where nothing across is known."""
        known = torch.isfinite(self.distance)
        fresh = Approach.at(torch.where(known[:, None], self.best, self.x))
        return replace(
            fresh, best=self.best, distance=self.distance, promise=self.promise, gradients=self.gradients,
            normal=torch.where(known[:, None], fresh.normal, self.normal),
        )  # fmt: skip


def first_pace(gradients: Tensor) -> Tensor:
    """The part of the way to the plane (case,) with which a search of so many gradients (case,) in all begins."""
    return STRIDE * gradients.clamp_min(1).to(torch.get_default_dtype()) ** -CALMER


def approach(problem: Problem, below: Tensor, state: Approach, steps: Tensor, pace: Tensor) -> Approach:
    """Up to `steps` (case,) more gradients per case of the search described above.

    The status is DONE where a smooth contour's closest point is met to 1e-4, STALLED where an answer has settled,
    MAX_STEPS at the limit, FLAT where every gradient was zero, UNREACHABLE where nothing across was found, NOT_FINITE where
    the response was not.

    Parameters
    ----------
    below
        Excess (case,) at the start, not positive: the unit of what is aimed at beyond the level.
    pace
        Part of the way (case,) that is taken first; it falls to a small rest.
    """
    begun, most = state.gradients, int(steps.max()) if len(steps) else 0

    def step(s: Approach, cases: Tensor) -> tuple[Approach, Tensor]:
        turn = s.gradients - begun[cases]
        granted = steps[cases].clamp_min(1).to(s.beyond.dtype)
        part = (pace[cases] * (1 - turn / granted)).clamp_min(LEAST_PACE).to(s.beyond.dtype)
        new, status = _step(problem.select(cases), below[cases], s, part, (PATIENCE * granted).clamp_min(QUIET))
        return new, mark(status, ((status == int(Status.RUNNING)) & (turn + 1 >= steps[cases]), Status.MAX_STEPS))

    state, status = iterate(step, state, most)
    nothing = torch.isinf(state.distance) & (status != int(Status.NOT_FINITE))
    blind = nothing & (state.normal == 0).all(1)
    answered = torch.isfinite(state.distance) & (status == int(Status.NOT_FINITE))
    return replace(
        state, status=mark(status, (nothing, Status.UNREACHABLE), (blind, Status.FLAT), (answered, Status.STALLED))
    )


def _step(problem: Problem, below: Tensor, s: Approach, pace: Tensor, patience: Tensor) -> tuple[Approach, Tensor]:
    excess, gradient = problem.excess_and_grad(s.x)
    slope, way = gradient.norm(dim=1), s.x - problem.start
    distance, across = size(way, problem.norm), excess > 0
    better = across & (distance < s.distance)
    clearly = across & (distance < (1 - SETTLED) * s.distance)
    quiet = torch.where(clearly | torch.isinf(s.distance), torch.zeros_like(s.quiet), s.quiet + 1)
    # --- the plane: a running mean of the directions, as steep as the gradient is here
    live = slope > 0
    unit = gradient / torch.where(live, slope, torch.ones_like(slope))[:, None]
    normal = torch.where(live[:, None], MEMORY * s.normal + (1 - MEMORY) * unit, s.normal)
    steep = torch.where(live, slope, torch.ones_like(slope)) / normal.norm(dim=1).clamp_min(1e-30)
    plane = steep[:, None] * normal
    beyond = torch.where(across, RELIEF * s.beyond, PRESS * s.beyond).clamp(LEAST_BEYOND, MOST_BEYOND)
    gap = beyond * below.abs() - excess + (plane * way).sum(1)
    foot, _ = nearest_in_plane(gap, plane, *problem.room(problem.start), problem.norm)
    pace = torch.where(distance > 0, pace, torch.ones_like(pace))
    onward = problem.clip(s.x + pace[:, None] * (problem.start + foot - s.x))
    lost = ~live & (s.normal == 0).all(1)
    onward = torch.where(lost[:, None], _out_of_the_flat(problem, s.flat), onward)
    # --- where this ray would meet the contour, if the response went on as it does here
    rise = (gradient * way).sum(1)
    ahead = 1 - excess / torch.where(rise > 0, rise, torch.ones_like(rise))
    promise = torch.where((rise > 0) & (ahead > 0), ahead * distance, torch.full_like(distance, torch.inf))
    new = replace(
        s,
        x=onward,
        normal=normal,
        beyond=beyond,
        best=torch.where(better[:, None], s.x, s.best),
        distance=torch.where(better, distance, s.distance),
        promise=torch.minimum(promise, torch.where(better, distance, s.distance)),
        quiet=quiet,
        flat=s.flat + lost,
        gradients=s.gradients + 1,
    )
    finite = torch.isfinite(excess) & torch.isfinite(gradient).all(1)
    status = mark(
        status_tensor(Status.RUNNING, excess),
        (quiet >= patience, Status.STALLED),
        (~finite, Status.NOT_FINITE),
    )
    return new, status


def _out_of_the_flat(problem: Problem, turn: Tensor) -> Tensor:
    """Where to look (case, n) while every gradient was zero: along signs without a pattern, there and back, ever farther."""
    start = problem.start
    there = torch.div(turn, 2, rounding_mode="floor")
    signs = signs_without_pattern(1 + there, start) * torch.where(turn % 2 == 0, 1, -1)[:, None]
    down, up = problem.room(start)
    room = torch.where(signs > 0, up, -down)
    unbounded = start.abs().amax(1, keepdim=True).clamp_min(1.0)
    part = (NEAR * FARTHER ** there.to(start.dtype))[:, None]
    reach = torch.where(torch.isfinite(room), part.clamp(max=1.0) * room, part * unbounded)
    return problem.clip(start + signs * reach)


def signs_without_pattern(number: Tensor, like: Tensor) -> Tensor:
    """Signs (case, n), as `like` is, from a Weyl sequence, another one for every `number` (case,) from 1 on: always the same."""
    element = torch.arange(1, like.shape[1] + 1, device=like.device, dtype=torch.float64)
    place = torch.remainder(element * element * 0.6180339887498949 * number[:, None].sqrt(), 1.0)
    return torch.where(place < 0.5, 1.0, -1.0).to(like)
