"""The closest point of a contour: the smallest change of the input that moves a response to a level.

Three things in turn, each for what the others cannot do. On a smooth contour `contour.search` goes straight
to the closest point. What is left on a kink, in a flat region or at the end of the box is approached again at
a scale (`approach`), from afar and with gradients averaged on the way. And since both are local, further `starts` ask
the global question.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse.approach import QUIET, Approach, approach, first_pace
from isoresponse.contour import foot_of, refine, search
from isoresponse.crossing import Problem, Solution, cross_ray, require_settings, rounding
from isoresponse.loop import Status, failed, mark, put, take
from isoresponse.neuron import Neuron
from isoresponse.norms import size


def closest_point(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    norm: float = 2.0,
    budget: int = 200,
    starts: int = 1,
    start: Float[Tensor, "case *shape"] | None = None,
    rtol: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Solution:
    """The point nearest to `x` (inside the neuron's box) whose response is across `level`.

    "Across" is the far side of the level as seen from `x`: above it where the response is now below, otherwise
    below it; where the response is at the level already, `x` is the answer (status ALREADY). The
    answer is a local optimum, reached from the start's own gradient; `starts` asks the global question.

    Parameters
    ----------
    level
        Response to reach, in response units; a number, or one per case.
    norm
        In which the change is to be small: 2 (Euclidean), 1 or infinity.
    budget
        Gradients per case at most, all starts together. A search that has converged leaves the rest unspent.
    starts
        Places to search from: the first is `x` itself (or `start`), the others lie at the far end of random directions.
    start
        Where to begin the search instead of at `x`, e.g. a predicted point; distances still count from `x`.
    rtol
        A case has converged when its `optimality` is below `rtol`. In L2 the distance is then
        right to about rtol^2 (in a box, where elements come and go at a bound, to 1e-5).
    generator
        For the directions of further starts; needed where `starts` is above 1.

    Returns
    -------
    Solution
        Status DONE (converged), STALLED (no step improves it: a kink or rounding), MAX_STEPS (best so
        far), ALREADY (the response at `x` is at the level: distance 0), or one of the failures, with NaN.

    Raises
    ------
    ValueError
        Invalid inputs or level, an unknown norm, `budget` or `starts` below 1, starts without a generator, `rtol`
        not between 0 and 1.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,))
    >>> closest_point(f, torch.tensor([[3.0, 4.0]]), level=100.0).distance
    tensor([5.0000])
    """
    require_search(budget, rtol, starts, generator, 1 if norm == 2.0 else 3)
    problem = Problem.of(neuron, x, level, norm)
    first = problem.start
    if start is not None:
        neuron.require_inputs(start, "start")
        if len(start) != len(x):
            raise ValueError(f"start must hold one point per case of x, {len(x)}, got {len(start)}.")
        first = start.flatten(1)
    share = max(1, budget // starts)
    solution = nearest(problem, first, share, rtol)
    for _ in range(starts - 1):
        far = elsewhere(problem, torch.nan_to_num(solution.distance, nan=0.0), generator)
        solution = better_of(solution, nearest(problem, far, share, rtol))
    return replace(solution, point=solution.point.reshape(x.shape), forwards=solution.forwards + 1)


def nearest(problem: Problem, first: Tensor, budget: int, rtol: float) -> Solution:
    """`closest_point` on a flat problem, from one place; `first` (case, n) is the problem's start itself or elsewhere.

    In L2, `search`; what it leaves on a kink, in the flat or at the end of the box is approached again at a scale, with
    the gradients left over. In the other norms, `approach`, then `refine`.
    """
    if problem.norm != 2.0:
        below = problem.excess(problem.start)
        last = budget // 4
        state = _around(problem, below, Approach.at(first), torch.full_like(below, max(budget - last - 1, 1)).long())
        answer = settle(problem, below, state, rtol)
        todo = torch.nonzero(answer.status != int(Status.ALREADY)).flatten()
        if last == 0 or len(todo) == 0:
            return answer
        earlier, part = take(answer, todo), problem.select(todo)
        refined = refine(part, torch.where(earlier.success[:, None], earlier.point, part.start), last, rtol)
        second = replace(refined, status=torch.where(refined.success, refined.status, earlier.status)).blanked()
        return put(answer, todo, better_of(earlier, second))
    found = search(problem, first, budget, rtol)
    left = budget - found.gradients
    ended = failed(found.status) & (found.status != int(Status.NOT_FINITE))
    last = budget // 8
    again = torch.nonzero((ended | (found.status == int(Status.STALLED))) & (left > QUIET + last)).flatten()
    if len(again) == 0:
        return found
    part = problem.select(again)
    below = part.excess(part.start)
    known = found.success[again]
    state = Approach.at(torch.where(known[:, None], found.point[again], part.start))
    state = replace(state, distance=torch.where(known, found.distance[again], state.distance))
    second = settle(part, below, _around(part, below, state, left[again] - last - 1), rtol)
    earlier, second = take(found, again), polished(part, second, ~known, last, rtol)
    # what the first search said of a case stands where the second finds nothing either
    second = replace(second, status=torch.where(second.success, second.status, earlier.status)).blanked()
    return put(found, again, better_of(earlier, second))


def _around(problem: Problem, below: Tensor, state: Approach, steps: Tensor) -> Approach:
    """Two approaches: most of the steps at a full pace, the rest from the best point at a small one."""
    pace = first_pace(steps)
    state = approach(problem, below, state, steps - steps // 3, pace)
    return approach(problem, below, state.again(), steps // 3, 0.5 * pace)


def polished(problem: Problem, solution: Solution, cases: Tensor, steps: int, rtol: float) -> Solution:
    """`solution` after at most `steps` more gradients on the contour itself, for those of `cases` (mask) that are across."""
    todo = torch.nonzero(solution.success & cases).flatten()
    if steps < 1 or len(todo) == 0:
        return solution
    along, earlier = search if problem.norm == 2.0 else refine, take(solution, todo)
    return put(solution, todo, better_of(earlier, along(problem.select(todo), earlier.point, steps, rtol)))


def better_of(one: Solution, other: Solution) -> Solution:
    """Case by case the nearer of two solutions, with the costs of both."""
    spent = {"gradients": one.gradients + other.gradients, "forwards": one.forwards + other.forwards}
    far = torch.finfo(one.distance.dtype).max
    second = torch.nan_to_num(other.distance, nan=far) < torch.nan_to_num(one.distance, nan=far)
    return replace(put(one, torch.nonzero(second).flatten(), take(other, second)), **spent)


def elsewhere(problem: Problem, reach: Tensor, generator: torch.Generator | None) -> Tensor:
    """The far end (case, n) of a random direction."""
    draws = torch.randn(problem.start.shape, generator=generator, dtype=problem.start.dtype)
    return far_end(problem, reach, draws.to(problem.start.device))


def far_end(problem: Problem, reach: Tensor, direction: Tensor) -> Tensor:
    """Where the box ends (case, n) along the signs of `direction`, or four times `reach` along it where there is no bound."""
    down, up = problem.room(problem.start)
    room = torch.where(direction > 0, up, -down)
    bounded = torch.isfinite(room)
    step = 4 * reach[:, None].clamp_min(torch.finfo(reach.dtype).tiny) / direction.norm(dim=1, keepdim=True) * direction
    return problem.clip(problem.start + torch.where(bounded, direction.sign() * room.abs(), step))


def settle(problem: Problem, below: Tensor, state: Approach, rtol: float, *, width: float = 0.0) -> Solution:
    """The answer of an approach: its best point brought to the contour along its ray, and how good it is there.

    One gradient, and forward passes until the ray's bracket has relative `width` (at 0: to rounding).
    """
    already, found = below >= 0, torch.isfinite(state.distance)
    aim = torch.where(found[:, None], state.best, problem.start)
    narrow = rounding(below).clamp_min(width)
    point, across, spent = cross_ray(problem, below, aim, narrow, expansions=0)
    excess, gradient = problem.excess_and_grad(point)
    _, optimality = foot_of(problem, point, excess, gradient)
    distance = size(point - problem.start, problem.norm)
    status = mark(
        state.status,
        (found & across & (optimality <= rtol), Status.DONE),
        (~(found & across) & ~failed(state.status), Status.UNREACHABLE),
        (already, Status.ALREADY),
    )
    nothing = torch.zeros_like(distance)
    return Solution(
        torch.where(already[:, None], problem.start, point),
        problem.level + problem.sign * excess,
        torch.where(already, nothing, distance),
        torch.where(already, nothing, optimality),
        status,
        state.gradients + 1,
        state.gradients + spent + 2,
    ).blanked()


def require_search(budget: int, rtol: float, starts: int, generator: torch.Generator | None, least: int = 1) -> None:
    """Raise ValueError unless a search with these settings could end well, `least` gradients from every start."""
    require_settings("budget", budget, rtol)
    if budget < least * starts:
        raise ValueError(f"budget must be at least {least} gradients per case and start, got {budget} for {starts}.")
    if starts < 1 or (starts > 1 and generator is None):
        raise ValueError(
            f"starts must be at least 1, and more than 1 need a generator, got starts={starts}, generator={generator}."
        )
