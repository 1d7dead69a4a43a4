"""Two walks on a response surface: straight across its contours, and along one of them.

`gradient_path` is what every gradient-following attack approximates: at each point orthogonal to the
contours, dx/dt = g/|g|^2, so that the clock *is* the response. It is not the shortest way to its end (that
is `closest_point`), and its length is never below that distance. `iso_walk` is the opposite: a change of
the input that changes nothing in the response.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Problem
from isoresponse.loop import Status, iterate, mark, status_tensor
from isoresponse.neuron import Neuron
from isoresponse.newton import newton

SMALLEST = 1e-4  # step of gradient_path, as a fraction of the way, that is taken whatever its error


@dataclass(frozen=True, eq=False)
class Path:
    """Points along a walk, a fixed number of knots per case; knots beyond a case's end are NaN.

    `orthogonality` is the angle between the gradient at a knot and the chord through its neighbours, over the
    elements strictly inside the box: what a gradient path keeps at zero, up to its turning between knots, and an
    iso-response walk at 90 degrees. Along a kink of a piecewise linear response a steepest path slides, its
    direction a mixture of the gradients on both sides, and the angle to either of them is not zero.
    """

    points: Tensor = axes("case", "knot", "*shape", units="input", about="points on the path")
    responses: Tensor = axes("case", "knot", units="response", about="response at the knot")
    arclength: Tensor = axes("case", "knot", units="input", about="length of the polygon up to the knot")
    orthogonality: Tensor = axes("case", "knot", units="rad", about="angle between chord and gradient")
    drift: Tensor = axes("case", "knot", units="response", about="response minus the response the knot should have")
    status: Tensor = axes("case", about="how the case ended")
    gradients: Tensor = axes("case", about="gradients spent")

    def alignment(self, direction: Float[Tensor, "*shape"]) -> Float[Tensor, "case knot"]:
        """Cosine between the perturbation at each knot (point minus first point) and `direction`.

        With the most exciting input for direction: how much the change made so far looks like it. NaN at
        knot 0, where nothing has changed.
        """
        moved = (self.points - self.points[:, :1]).flatten(2)
        along = moved @ direction.flatten()
        size = moved.norm(dim=2) * direction.norm()
        return torch.where(size > 0, along / size, torch.full_like(size, float("nan")))


def gradient_path(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    knots: int = 21,
    rtol: float = 0.03,
    max_steps: int = 1000,
) -> Path:
    """The steepest path from `x` to the contour at `level`, with knots equally spaced in response.

    Integrates dx/dt = g/|g|^2 (elements at a bound of the box that would leave it are held) by Heun's method
    with an Euler estimate of the error and a step per case, corrected onto the knot's response by Newton.

    Parameters
    ----------
    knots
        Number of points, both ends included.
    rtol
        Accepted difference between the Euler and the Heun step, relative to the step (half the angle by which the
        path may turn in it) or to a tenth of the length so far.
    max_steps
        Steps per case at most; two gradients each.

    Returns
    -------
    Path
        FLAT where the gradient vanishes on the way (a summit, a dead unit), BLOCKED where the box ends it; the
        knots passed until then are kept.

    Raises
    ------
    ValueError
        Invalid inputs or level, fewer than two knots.
    """
    if knots < 2:
        raise ValueError(f"a path needs at least 2 knots, got {knots}.")
    problem = Problem.of(neuron, x, level)
    start_value = problem.neuron.value(problem.start)
    total = problem.level - start_value
    cases, n = problem.start.shape
    points = problem.start.new_full((cases, knots, n), float("nan"))
    points[:, 0] = problem.start
    count = torch.zeros_like(total, dtype=torch.int64)
    zero = torch.zeros_like(total)
    state = _Walk(problem.start, zero, zero + 1.0 / (knots - 1), count + 1, points, zero, count)

    def step(s: _Walk, which: Tensor) -> tuple[_Walk, Tensor]:
        return _gradient_step(problem.select(which), s, start_value[which], total[which], knots, rtol)

    state, status = iterate(step, state, max_steps)
    fractions = torch.linspace(0, 1, knots, dtype=total.dtype, device=total.device)
    targets = start_value[:, None] + fractions * total[:, None]
    return _as_path(problem, state, status, targets, x.shape)


def iso_walk(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    direction: Float[Tensor, "case *shape"],
    *,
    step: float,
    knots: int = 21,
    rtol: float = 1e-4,
) -> Path:
    """A walk along the contour through `x`, starting along the tangential part of `direction`.

    Each of the `knots` - 1 steps has length about `step`: a tangent step inside the box, then Newton back to
    the contour; the direction is carried along by projection onto the new tangent.

    Parameters
    ----------
    step
        Length of one step in input units; small against the contour's radius of curvature.
    rtol
        Accepted response error relative to what a step along the gradient would change.

    Returns
    -------
    Path
        BLOCKED where no tangent direction stays in the box, FLAT where the gradient vanishes.

    Raises
    ------
    ValueError
        Invalid inputs, a direction of another shape, a step that is not positive, fewer than two knots.
    """
    if knots < 2 or not step > 0:
        raise ValueError(f"iso_walk needs knots >= 2 and a positive step, got knots={knots} and step={step}.")
    if direction.shape != x.shape:
        raise ValueError(f"direction must have the shape of x, {tuple(x.shape)}, got {tuple(direction.shape)}.")
    if not bool(torch.isfinite(direction).all()):
        raise ValueError("direction must be finite, got NaN or infinity; give a direction for every case.")
    neuron.require_inputs(x)
    problem = Problem.of(neuron, x, neuron.value(x))
    cases, n = problem.start.shape
    points = problem.start.new_full((cases, knots, n), float("nan"))
    points[:, 0] = problem.start
    count = torch.zeros(cases, dtype=torch.int64, device=x.device)
    state = _Along(problem.start, direction.flatten(1), count + 1, points, count)

    def onward(s: _Along, which: Tensor) -> tuple[_Along, Tensor]:
        return _contour_step(problem.select(which), s, step, rtol, knots)

    state, status = iterate(onward, state, knots)
    targets = problem.level[:, None].expand(cases, knots)
    return _as_path(problem, state, status, targets, x.shape)


@dataclass(frozen=True, eq=False)
class _Walk:
    x: Tensor
    done: Tensor  # fraction of the way in response
    size: Tensor  # next step, as a fraction
    knot: Tensor  # next knot to fill
    points: Tensor
    travelled: Tensor  # length so far
    gradients: Tensor


@dataclass(frozen=True, eq=False)
class _Along:
    x: Tensor
    direction: Tensor
    knot: Tensor
    points: Tensor
    gradients: Tensor


def _gradient_step(
    problem: Problem, s: _Walk, start_value: Tensor, total: Tensor, knots: int, rtol: float
) -> tuple[_Walk, Tensor]:
    to_knot = s.knot / (knots - 1) - s.done
    size = torch.minimum(s.size, to_knot)
    lands = size >= to_knot * (1 - 1e-6)
    rise = size * total
    slope, gradient, free = _climb(problem, s.x, total)
    euler = problem.clip(s.x + rise[:, None] * slope)
    slope_there, _, free_there = _climb(problem, euler, total)
    heun = problem.clip(s.x + 0.5 * rise[:, None] * (slope + slope_there))
    length = (heun - s.x).norm(dim=1)
    allowed = rtol * torch.maximum(length, 0.1 * s.travelled)
    error = (heun - euler).norm(dim=1) / allowed.clamp_min(torch.finfo(length.dtype).tiny)
    # at a kink the two disagree however short the step: below SMALLEST it is crossed and corrected
    fine = ((error <= 1) | (size <= SMALLEST)) & torch.isfinite(heun).all(1)
    target = replace(problem, start=heun, level=start_value + (s.done + size) * total)
    target = replace(target, sign=torch.ones_like(total))
    corrected = newton(target, 0.0, 6, atol=1e-6 * total.abs() + 8 * torch.finfo(total.dtype).eps * target.level.abs())
    # a correction longer than the step is a jump to another slope: the response cannot be had from here
    ok = fine & free & (free_there | lands) & corrected.success & (corrected.distance <= length)
    x = torch.where(ok[:, None], corrected.point, s.x)
    arrived = ok & lands
    done = torch.where(ok, torch.where(lands, s.knot / (knots - 1), s.done + size), s.done)
    points = _fill(s.points, s.knot, x, arrived)
    factor = torch.nan_to_num(0.9 / error.clamp_min(1e-12), nan=0.2).clamp(0.2, 3.0)
    factor = torch.where(ok, factor, factor.clamp(max=0.5))
    stepped = torch.maximum(size * factor, torch.full_like(size, SMALLEST))
    stepped = torch.where(lands & ok, torch.maximum(s.size, stepped), stepped)
    knot = s.knot + arrived.long()
    ended = ~ok & (size <= SMALLEST)
    walled = ~free_there | (corrected.status == int(Status.BLOCKED))
    status = mark(
        status_tensor(Status.RUNNING, total),
        (ended, Status.FLAT),
        ((ended & walled) | ~free, Status.BLOCKED),
        ((gradient == 0).all(1), Status.FLAT),
        (~(torch.isfinite(gradient).all(1) & torch.isfinite(total)), Status.NOT_FINITE),
        (knot == knots, Status.DONE),
    )
    travelled = s.travelled + torch.where(ok, length, torch.zeros_like(length))
    new = _Walk(x, done, stepped, knot, points, travelled, s.gradients + 2 + corrected.gradients)
    return new, status


def _fill(points: Tensor, knot: Tensor, x: Tensor, where: Tensor) -> Tensor:
    """`points` (case, knot, n) with `x` (case, n) at each case's `knot`, in the cases `where`."""
    slots = torch.arange(points.shape[1], device=points.device)
    return torch.where(((slots == knot[:, None]) & where[:, None])[:, :, None], x[:, None], points)


def _climb(problem: Problem, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input change per response, g/|g|^2 on the elements that can move; the gradient; whether any can."""
    _, gradient = problem.neuron.value_and_grad(x)
    ahead = torch.where(total[:, None] < 0, -gradient, gradient)
    moving = gradient.masked_fill(~problem.neuron.box.free(x, ahead), 0.0)
    square = (moving * moving).sum(1, keepdim=True)
    slope = torch.where(
        square > 0, moving / torch.where(square > 0, square, torch.ones_like(square)), torch.zeros_like(moving)
    )
    return slope, gradient, square[:, 0] > 0


def _contour_step(problem: Problem, s: _Along, step: float, rtol: float, knots: int) -> tuple[_Along, Tensor]:
    _, gradient = problem.neuron.value_and_grad(s.x)
    steepness = gradient.norm(dim=1, keepdim=True)
    tangent = _tangent(problem, s.x, s.direction, gradient)
    length = tangent.norm(dim=1, keepdim=True)
    unit = tangent / length.clamp_min(torch.finfo(length.dtype).tiny)
    guess = problem.clip(s.x + step * unit)
    back = replace(problem, start=guess)
    corrected = newton(back, rtol, 12, atol=rtol * step * steepness[:, 0])
    knot = s.knot + 1
    status = mark(
        torch.where(corrected.success, int(Status.RUNNING), corrected.status),
        ((length == 0).flatten(), Status.BLOCKED),
        ((steepness == 0).flatten(), Status.FLAT),
    )
    ok = status == int(Status.RUNNING)
    x = torch.where(ok[:, None], corrected.point, s.x)
    points = _fill(s.points, s.knot, x, ok)
    status = mark(status, (ok & (knot == knots), Status.DONE))
    return _Along(
        x, torch.where(ok[:, None], unit, s.direction), knot, points, s.gradients + 1 + corrected.gradients
    ), status


def _tangent(problem: Problem, x: Tensor, direction: Tensor, gradient: Tensor) -> Tensor:
    """The part of `direction` along the contour whose elements at a bound do not leave the box.

    Holding an element changes the tangent of the others, which can drive further elements outwards: two rounds
    settle all but contrived cases, what is left is clipped and corrected by the caller's Newton step.
    """
    held = torch.zeros_like(x, dtype=torch.bool)
    tangent = direction
    for _ in range(3):
        normal = gradient.masked_fill(held, 0.0)
        free = direction.masked_fill(held, 0.0)
        square = (normal * normal).sum(1, keepdim=True)
        along = (free * normal).sum(1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
        tangent = free - along * normal
        tiny = 100 * torch.finfo(x.dtype).eps * direction.norm(dim=1, keepdim=True)
        tangent = torch.where(tangent.norm(dim=1, keepdim=True) > tiny, tangent, torch.zeros_like(tangent))
        held = held | ~problem.neuron.box.free(x, tangent)
    return tangent


def _as_path(problem: Problem, state: _Walk | _Along, status: Tensor, targets: Tensor, shape: torch.Size) -> Path:
    points = state.points
    cases, knots = points.shape[:2]
    passed = torch.isfinite(points).all(2)
    responses, angles = [], []
    for k in range(knots):
        here = torch.where(passed[:, k, None], points[:, k], problem.start)
        value, gradient = problem.neuron.value_and_grad(here)
        before, after = points[:, max(k - 1, 0)], points[:, min(k + 1, knots - 1)]
        after = torch.where(torch.isfinite(after), after, points[:, k])
        free = torch.ones_like(here, dtype=torch.bool)  # elements held at a bound take no part
        for point in (before, here, after):
            down, up = problem.room(point)
            free = free & (down < 0) & (up > 0)
        chord, normal = (after - before) * free, gradient * free
        cosine = (normal * chord).sum(1) / (normal.norm(dim=1) * chord.norm(dim=1))
        angles.append(torch.arccos(cosine.abs().clamp(max=1.0)).masked_fill(~passed[:, k], float("nan")))
        responses.append(value.masked_fill(~passed[:, k], float("nan")))
    response = torch.stack(responses, 1)
    steps = (points[:, 1:] - points[:, :-1]).norm(dim=2)
    arclength = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(1)], 1)
    return Path(
        points.reshape(cases, knots, *shape[1:]), response, arclength, torch.stack(angles, 1), response - targets,
        status, state.gradients + knots,
    )  # fmt: skip
