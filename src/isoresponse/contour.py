"""Along a contour to its closest point, from a point near by.

At the closest point the perturbation is parallel to the contour's normal. `search` (L2) solves this as the
geometry problem it is, inside the box and with gradients only:

1. *Foot.* Replace the contour by its tangent plane at the current point; the point of that plane inside
   the box nearest to the start is found exactly (`nearest_in_plane`). The vector from the current point
   to the foot vanishes exactly at the solution: it is the residual, relative to the distance the
   `optimality` of the answer.
2. *Step.* A full step onto the foot overshoots by (distance x curvature) and diverges where that product
   exceeds one. How strongly the residual really changes along a step is seen from one step to the next;
   these secants give the inverse of 1 + distance x shape operator (limited-memory quasi-Newton), so the
   step is shortened along bent directions and lengthened along focusing ones, without a Hessian.
3. *Ray.* The new point is brought back to the contour along its ray from the start by a bracketed
   search with forward passes only. Every iterate therefore is an answer that is truly across, and the
   best one is never lost.

`refine` does the same in L1 and L-infinity. There the foot of a plane is a corner, which jumps where two elements of
the gradient change places, and its change teaches nothing. So the contour is taken for a sphere instead, bent as the
gradient's changes tell: its nearest point (`nearest_in_ball`) moves continuously, also in the elements that lie between
all bounds because the response no longer depends on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isoresponse.crossing import Problem, Solution, cross_ray, rounding
from isoresponse.loop import Status, failed, iterate, mark, status_tensor
from isoresponse.norms import nearest_in_ball, nearest_in_plane, size
from isoresponse.operators import inverse_secant_product

# Secant pairs kept by search: curved quadrics need them, networks hardly (benchmarks/digits.py --ablate).
MEMORY = 6
SHRINK = 0.5  # factor on the step after one that did not improve the distance
STALL = 1e-3  # relative step below which a case that keeps failing to improve has converged
OVERSHOOT = 1e-4  # of the first gap in response, aimed at beyond the level until a point across is known
STRAIGHT = 0.01  # least bending of the sphere that refine sees, in units of its slope over the distance
SHARPER, PATIENCE = 4.0, 8  # factor on the bending after a step that did not help; so many of them in a row end it
TOLERATED = 1.3  # an iterate this much farther than the best one is still a useful place to look from


@dataclass(frozen=True, eq=False)
class _Search:
    """State of `search`; every tensor has leading axis case."""

    x: Tensor  # current iterate
    below: Tensor  # excess at the start
    across: Tensor  # whether x is an answer
    best: Tensor
    best_distance: Tensor
    optimality: Tensor  # of the best point
    last_x: Tensor
    last_residual: Tensor
    comparable: Tensor  # whether last_* belong to the same regime as x
    steps: Tensor  # (case, memory, n) secants: steps ...
    changes: Tensor  # ... and changes of the residual
    scale: Tensor  # inverse curvature for unseen directions
    relax: Tensor  # factor on the step, halved by every failure to improve
    gradients: Tensor
    forwards: Tensor


def search(problem: Problem, first: Tensor, max_steps: int, rtol: float) -> Solution:
    """The closest point in L2 of a contour that is smooth near by, beginning at `first` (case, n)."""
    below = problem.excess(problem.start)
    cases, n = problem.start.shape
    zeros, nothing = torch.zeros_like(first), torch.zeros_like(below)
    memory = first.new_zeros((cases, MEMORY, n))
    none = torch.zeros_like(below, dtype=torch.bool)
    count = torch.zeros_like(below, dtype=torch.int64)
    infinite = torch.full_like(below, float("inf"))
    state = _Search(
        first, below, none, first, infinite, infinite, first, zeros, none,
        memory, memory, torch.ones_like(below), torch.ones_like(below), count, count + 1,
    )  # fmt: skip
    if first is not problem.start:
        state = _begin_across(problem, state)
    state, status = iterate(lambda s, i: _closest_step(problem.select(i), s, rtol), state, max_steps)
    found = torch.isfinite(state.best_distance)
    already = below >= 0
    status = mark(
        status,
        (found & failed(status), Status.STALLED),
        (~found & (status == int(Status.MAX_STEPS)), Status.UNREACHABLE),
        (already, Status.ALREADY),
    )
    point = torch.where(already[:, None], problem.start, state.best)
    distance = torch.where(already, nothing, state.best_distance)
    optimality = torch.where(already, nothing, state.optimality)
    value = problem.neuron.value(torch.where((found | already)[:, None], point, problem.start))
    solution = Solution(point, value, distance, optimality, status, state.gradients, state.forwards + 1)
    return solution.blanked()


def _begin_across(problem: Problem, s: _Search) -> _Search:
    """The state with the first point brought to the contour along its ray, where that succeeds."""
    point, found, spent = cross_ray(problem, s.below, s.x, rounding(s.below))
    length = (point - problem.start).norm(dim=1).masked_fill(~found, float("inf"))
    x = torch.where(found[:, None], point, s.x)
    return replace(s, x=x, best=x, best_distance=length, across=found, forwards=s.forwards + spent)


def _closest_step(problem: Problem, s: _Search, rtol: float) -> tuple[_Search, Tensor]:
    excess, gradient = problem.excess_and_grad(s.x)
    # --- foot: nearest point of the tangent plane; from x itself while nothing across is known
    origin = torch.where(s.across[:, None], problem.start, s.x)
    # until then a little beyond the contour, which Newton may otherwise approach for ever from this side
    beyond = torch.where(s.across, torch.zeros_like(excess), OVERSHOOT * s.below.abs())
    gap = beyond - excess + (gradient * (s.x - origin)).sum(1)
    d, reachable = nearest_in_plane(gap, gradient, *problem.room(origin))
    residual = origin + d - s.x
    distance = (s.x - problem.start).norm(dim=1)
    optimality = torch.where(s.across, residual.norm(dim=1) / distance, torch.full_like(distance, float("inf")))
    at_best = s.across & (distance <= s.best_distance)
    # --- what the last step taught about curvature
    step, change = s.x - s.last_x, s.last_residual - residual
    overlap, size = (step * change).sum(1), change.norm(dim=1)
    useful = s.comparable & s.across & (overlap > 1e-3 * step.norm(dim=1) * size)
    steps, changes = _remember(s.steps, step, useful), _remember(s.changes, change, useful)
    scale = torch.where(useful, (overlap / (size * size).clamp_min(1e-30)).clamp(1e-3, 1.0), s.scale)
    # --- step, no longer than half the distance
    move = inverse_secant_product(steps, changes, scale, residual)
    uphill = (move * residual).sum(1) > 0
    move = torch.where(uphill[:, None], move, scale[:, None] * residual)
    cap = (0.5 * distance / move.norm(dim=1).clamp_min(1e-30)).clamp(max=1.0) * s.relax
    move = torch.where(s.across[:, None], cap[:, None] * move, residual)
    # --- ray: back to the contour, sharply, so that distances can be compared and the best is never lost
    candidate = problem.clip(s.x + move)
    point, found, spent = cross_ray(problem, s.below, candidate, rounding(s.below))
    length = (point - problem.start).norm(dim=1)
    better = found & (length < s.best_distance)
    accepted = found & (length < TOLERATED * s.best_distance)
    rejected = s.across & ~accepted
    worse = s.across & ~(found & (length < distance))
    forget = rejected & (s.relax < 0.3)
    new = replace(
        s,
        x=torch.where(accepted[:, None], point, torch.where(s.across[:, None], s.best, candidate)),
        across=s.across | found,
        best=torch.where(better[:, None], point, s.best),
        best_distance=torch.where(better, length, s.best_distance),
        optimality=torch.where(at_best, optimality, s.optimality),
        last_x=s.x,
        last_residual=residual,
        comparable=s.across & accepted,
        steps=steps.masked_fill(forget[:, None, None], 0.0),
        changes=changes.masked_fill(forget[:, None, None], 0.0),
        scale=torch.where(rejected, 0.5 * scale, scale),
        relax=torch.where(better | ~s.across, torch.ones_like(s.relax), torch.where(worse, SHRINK * s.relax, s.relax)),
        gradients=s.gradients + 1,
        forwards=s.forwards + 1 + spent,
    )
    # --- what ends a case; where several hold, the last one is said
    stuck = ~new.across & (d == 0).all(1)
    finite = torch.isfinite(excess) & torch.isfinite(gradient).all(1)
    status = mark(
        status_tensor(Status.RUNNING, excess),
        (new.across & (new.relax < STALL), Status.STALLED),
        (stuck & reachable, Status.UNREACHABLE),
        (stuck & ~reachable, Status.BLOCKED),
        ((gradient == 0).all(1), Status.FLAT),
        (at_best & (optimality <= rtol), Status.DONE),
        (~finite, Status.NOT_FINITE),
        (s.below >= 0, Status.ALREADY),
    )
    return new, status


def _remember(memory: Tensor, new: Tensor, where: Tensor) -> Tensor:
    return torch.where(where[:, None, None], torch.cat([memory[:, 1:], new[:, None]], 1), memory)


@dataclass(frozen=True, eq=False)
class _Refined:
    x: Tensor  # best point, on the contour; until one is known, where Newton has come
    distance: Tensor  # infinite until then
    optimality: Tensor
    bend: Tensor  # of the sphere that the contour is taken for, response / input^2
    last_x: Tensor
    last_gradient: Tensor
    failures: Tensor  # steps since the last one that shortened the distance
    gradients: Tensor
    forwards: Tensor


def refine(problem: Problem, first: Tensor, max_steps: int, rtol: float) -> Solution:
    """The closest point of the contour in any norm: to the nearest point of a sphere, back along the ray.

    Each of `first` (case, n) is a point across, or the start: then Newton steps come first.

    How strongly the sphere is bent is learned from the change of the gradient along the last step (Barzilai and
    Borwein 1988). A step that does not shorten the distance makes it `SHARPER`; DONE and STALLED as in `search`.
    """
    below = problem.excess(problem.start)
    count = torch.zeros_like(below, dtype=torch.int64)
    zero, nothing = torch.zeros_like(below), torch.zeros_like(first)
    distance = size(first - problem.start, problem.norm)
    distance = distance.masked_fill(distance == 0, torch.inf)
    state = _Refined(first, distance, zero + torch.inf, zero, first, nothing, count, count, count + 1)
    state, status = iterate(lambda s, i: _refined(problem.select(i), below[i], s, rtol), state, max_steps)
    none = torch.isinf(state.distance) & (status != int(Status.NOT_FINITE))
    status = mark(status, (none, Status.UNREACHABLE))
    value = problem.neuron.value(state.x)
    return Solution(
        state.x, value, state.distance, state.optimality, status, state.gradients, state.forwards + 1
    ).blanked()  # fmt: skip


def _refined(problem: Problem, below: Tensor, s: _Refined, rtol: float) -> tuple[_Refined, Tensor]:
    excess, gradient = problem.excess_and_grad(s.x)
    _, optimality = foot_of(problem, s.x, excess, gradient)
    # --- how strongly the contour bends: as the gradient has changed, or more where that did not help
    step, change = s.x - s.last_x, s.last_gradient - gradient
    seen = (change * change).sum(1) / (change * step).sum(1).clamp_min(torch.finfo(below.dtype).tiny)
    known = ((change * step).sum(1) > 0) & (s.failures == 0) & (s.bend > 0)
    slope = gradient.norm(dim=1) / (s.x - problem.start).norm(dim=1).clamp_min(torch.finfo(below.dtype).tiny)
    bend = torch.where(known, seen, torch.where(s.failures > 0, SHARPER * s.bend, 0.1 * s.bend))
    bend = bend.clamp(min=STRAIGHT * slope).clamp(max=slope / STALL**2).clamp_min(torch.finfo(below.dtype).tiny)
    foot, _ = nearest_in_ball(
        excess, gradient, bend, s.x - problem.start, *problem.room(problem.start), problem.norm
    )  # fmt: skip
    across = torch.isfinite(s.distance)
    step, _ = nearest_in_plane(OVERSHOOT * below.abs() - excess, gradient, *problem.room(s.x))
    candidate = problem.clip(torch.where(across[:, None], problem.start + foot, s.x + step))
    point, found, spent = cross_ray(problem, below, candidate, rounding(below))
    distance = size(point - problem.start, problem.norm)
    better = found & (distance < s.distance)
    new = _Refined(
        torch.where(better[:, None], point, torch.where(across[:, None], s.x, candidate)),
        torch.where(better, distance, s.distance),
        optimality,
        torch.where(across, bend, torch.zeros_like(bend)),
        torch.where(better[:, None], s.x, s.last_x),
        torch.where(better[:, None], gradient, s.last_gradient),
        torch.where(better | ~across, torch.zeros_like(s.failures), s.failures + 1),
        s.gradients + 1,
        s.forwards + 1 + spent,
    )
    finite = torch.isfinite(excess) & torch.isfinite(gradient).all(1)
    return new, mark(
        status_tensor(Status.RUNNING, excess),
        (new.failures >= PATIENCE, Status.STALLED),
        (across & (optimality <= rtol) & ~better, Status.DONE),
        (~finite & ~across, Status.NOT_FINITE),
    )


def foot_of(problem: Problem, x: Tensor, excess: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Displacement to the tangent plane's nearest point as seen from the start, and the `optimality` of `x`."""
    way = x - problem.start
    gap = (gradient * way).sum(1) - excess
    foot, _ = nearest_in_plane(gap, gradient, *problem.room(problem.start), problem.norm)
    distance = size(way, problem.norm)
    off = size(foot - way, 2.0) if problem.norm == 2.0 else (distance - size(foot, problem.norm)).clamp_min(0)
    return foot, off / distance.clamp_min(torch.finfo(distance.dtype).tiny)
