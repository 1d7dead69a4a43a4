"""To a contour: the closest point on it, and the way to it along the gradient.

The smallest perturbation that moves a response to a level is the vector to the closest point of that
contour, and at that point it is parallel to the contour's normal. `closest_point` solves this as the
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
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse.crossing import Problem, Solution, cross_ray, nearest_in_plane, rounding
from isoresponse.loop import Status, failed, iterate, mark, status_tensor
from isoresponse.neuron import Neuron
from isoresponse.operators import inverse_secant_product

# Secant pairs kept by closest_point: curved quadrics need them, networks hardly (benchmarks/digits.py --ablate).
MEMORY = 6
SHRINK = 0.5  # factor on the step after one that did not improve the distance
STALL = 1e-3  # relative step below which a case that keeps failing to improve has converged
OVERSHOOT = 1e-4  # of the first gap in response, aimed at beyond the level until a point across is known
TOLERATED = 1.3  # an iterate this much farther than the best one is still a useful place to look from


@dataclass(frozen=True, eq=False)
class _Search:
    """State of `closest_point`; every tensor has leading axis case."""

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


def closest_point(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    start: Float[Tensor, "case *shape"] | None = None,
    max_steps: int = 200,
    rtol: float = 1e-4,
) -> Solution:
    """The point nearest to `x` (Euclidean, inside the neuron's box) whose response is across `level`.

    "Across" is the far side of the level as seen from `x`: above it where the response is now below, otherwise
    below it; where the response is at the level already, `x` is the answer (status ALREADY). The
    answer is a local optimum, reached from the start's own gradient.

    Parameters
    ----------
    level
        Response to reach, in response units; a number, or one per case.
    start
        Where to begin the search instead of at `x`, e.g. a predicted point; distances still count from `x`.
    max_steps
        Gradients per case at most.
    rtol
        A case has converged when its tangential residual is below `rtol` times its distance. The
        distance is then right to about rtol^2 (in a box, where elements come and go at a bound, to 1e-5).

    Returns
    -------
    Solution
        Status DONE (converged), STALLED (no step improves it: a kink or rounding), MAX_STEPS (best so
        far), ALREADY (the response at `x` is at the level: distance 0), or one of the failures, with NaN.

    Raises
    ------
    ValueError
        Invalid inputs or level, `max_steps` below 1, `rtol` not between 0 and 1.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,))
    >>> closest_point(f, torch.tensor([[3.0, 4.0]]), level=100.0).distance
    tensor([5.0000])
    """
    require_settings(max_steps, rtol)
    problem = Problem.of(neuron, x, level)
    if start is not None:
        neuron.require_inputs(start, "start")
        if len(start) != len(x):
            raise ValueError(f"start must hold one point per case of x, {len(x)}, got {len(start)}.")
    solution = search(problem, problem.start if start is None else start.flatten(1), max_steps, rtol)
    return replace(solution, point=solution.point.reshape(x.shape), forwards=solution.forwards + 1)


def require_settings(max_steps: int, rtol: float) -> None:
    """Raise ValueError unless a search with these settings could end well."""
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1 gradient per case, got {max_steps}.")
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol must be at least 0 and below 1, got {rtol}.")


def search(problem: Problem, first: Tensor, max_steps: int, rtol: float) -> Solution:
    """`closest_point` on a flat problem, beginning at `first` (case, n)."""
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


def to_level(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    rtol: float = 1e-6,
    max_steps: int = 30,
) -> Solution:
    """A point on the contour at `level`, reached from `x` by Newton steps along the gradient in the box.

    A step that comes out beyond the level has bracketed it, and the level is then found along that step, so
    spacing that changes by orders of magnitude (a saturated sigmoid) does no harm. The point is not the nearest
    one in general (that is `closest_point`), but a few gradients cheap and as near as the contours are parallel.
    `optimality` is the remaining response error relative to the first one.

    Parameters
    ----------
    rtol
        Accepted response error relative to the distance in response from start to level.

    Raises
    ------
    ValueError
        Invalid inputs or level, `max_steps` below 1, `rtol` not between 0 and 1.
    """
    require_settings(max_steps, rtol)
    problem = Problem.of(neuron, x, level)
    solution = newton(problem, rtol, max_steps)
    return replace(solution, point=solution.point.reshape(x.shape), forwards=solution.forwards + 1)


@dataclass(frozen=True, eq=False)
class _Newton:
    x: Tensor
    best: Tensor
    best_excess: Tensor
    damping: Tensor  # factor on the next step, smaller after one that came no nearer
    gradients: Tensor
    forwards: Tensor


def newton(problem: Problem, rtol: float, max_steps: int, atol: Tensor | None = None) -> Solution:
    """`to_level` on a flat problem; `atol` (case,) is an accepted response error in response units."""
    below = problem.excess(problem.start)
    eps = torch.finfo(below.dtype).eps
    accepted = rtol * below.abs() + 4 * eps * problem.level.abs() if atol is None else atol
    infinite = torch.full_like(below, float("inf"))
    count = torch.zeros_like(below, dtype=torch.int64)
    state = _Newton(problem.start, problem.start, infinite, torch.ones_like(below), count, count + 1)

    def step(s: _Newton, cases: Tensor) -> tuple[_Newton, Tensor]:
        part, goal = problem.select(cases), accepted[cases]
        excess, gradient = part.excess_and_grad(s.x)
        finite = torch.isfinite(excess) & torch.isfinite(gradient).all(1)
        better = finite & (excess.abs() < s.best_excess.abs())
        best = torch.where(better[:, None], s.x, s.best)
        best_excess = torch.where(better, excess, s.best_excess)
        ahead = torch.where(excess > 0, -torch.ones_like(excess), torch.ones_like(excess))
        d, _ = nearest_in_plane(excess.abs(), ahead[:, None] * gradient, *part.room(s.x))
        damping = torch.where(better, (2 * s.damping).clamp(max=1.0), 0.25 * s.damping)
        d = torch.where(better[:, None], damping[:, None] * d, torch.zeros_like(d))
        aim = part.clip(s.x + d)
        reached = part.excess(aim)
        close = better & (reached.abs() <= goal)
        best = torch.where(close[:, None], aim, best)
        best_excess = torch.where(close, reached, best_excess)
        # a step past the level has bracketed it, however far it went
        past = better & ~close & ~(ahead * reached <= 0)
        x, spent = torch.where(better[:, None], aim, 0.5 * (torch.nan_to_num(s.x) + best)), torch.ones_like(s.forwards)
        if bool(past.any()):
            onward = replace(part, start=s.x, sign=ahead * part.sign)
            toward = torch.where(past[:, None], aim, s.x)
            point, found, more = cross_ray(onward, -excess.abs(), toward, rounding(excess), expansions=0)
            x, spent = torch.where((past & found)[:, None], point, x), spent + more
        status = mark(
            status_tensor(Status.RUNNING, excess),
            (better & (d == 0).all(1), Status.BLOCKED),
            (finite & (gradient == 0).all(1), Status.FLAT),
            (~finite & torch.isinf(best_excess), Status.NOT_FINITE),
            (best_excess.abs() <= goal, Status.DONE),
        )
        return _Newton(x, best, best_excess, damping, s.gradients + 1, s.forwards + 1 + spent), status

    state, status = iterate(step, state, max_steps)
    status = mark(status, (status == int(Status.MAX_STEPS), Status.UNREACHABLE))
    value = problem.level + problem.sign * state.best_excess
    relative = state.best_excess.abs() / below.abs().clamp_min(torch.finfo(below.dtype).tiny)
    distance = (state.best - problem.start).norm(dim=1)
    return Solution(state.best, value, distance, relative, status, state.gradients, state.forwards).blanked()
