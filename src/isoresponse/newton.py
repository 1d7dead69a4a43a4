"""To a level along the gradient: Newton's method in the box, a few gradients cheap.

Not the closest point (that is `solve.closest_point`), but one as near as the contours are parallel: the corrector of
paths and walks, and the way to a level where any point of it will do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse.crossing import Problem, Solution, cross_ray, require_settings, rounding
from isoresponse.loop import Status, iterate, mark, status_tensor
from isoresponse.neuron import Neuron
from isoresponse.norms import nearest_in_plane


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
    require_settings("max_steps", max_steps, rtol)
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
