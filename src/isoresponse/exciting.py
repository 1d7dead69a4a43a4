"""The input a neuron likes best: its most exciting input (MEI), inside the box and a norm ball.

The MEI is the axis of every picture of a response surface: what the neuron labels as its own. Projected
gradient ascent from several starts; the spread over the starts is part of the answer, because a neuron
with several maxima has no single label.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Problem
from isoresponse.loop import Status, failed, iterate, mark, status_tensor
from isoresponse.neuron import Neuron, flatten

BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class MostExciting:
    """The best input found, and what every start led to; `start` 0 is the best."""

    point: Tensor = axes("*shape", units="input", about="most exciting input")
    value: Tensor = axes(units="response", about="response to it")
    points: Tensor = axes("start", "*shape", units="input", about="end point of every start, best first")
    values: Tensor = axes("start", units="response", about="response at every end point")
    optimality: Tensor = axes("start", about="projected gradient relative to the largest gradient seen, 0 at a maximum")
    status: Tensor = axes("start", about="how each start ended")
    gradients: Tensor = axes("start", about="gradients spent")
    center: Tensor = axes("*shape", units="input", about="middle of the starts")

    @property
    def agreement(self) -> Tensor:
        """Cosine (start,) between each end point and the best one, both seen from the middle of the starts."""
        flat = (self.points - self.center).flatten(1)
        best = flat[:1]
        return torch.nn.functional.cosine_similarity(flat, best, dim=1)


def most_exciting_input(
    neuron: Neuron,
    *,
    generator: Generator,
    norm: float | None = None,
    center: Float[Tensor, "*shape"] | None = None,
    starts: int = 8,
    max_steps: int = 200,
    rtol: float = 1e-4,
) -> MostExciting:
    """The input with the largest response inside the box and, if given, a ball round `center`.

    Parameters
    ----------
    generator
        Draws the starts: small steps from `center` in random directions.
    norm
        Radius of the ball in input units. Without it the box must be finite, else the response of most
        neurons has no maximum.
    center
        Middle of the ball and of the starts, whose dtype and device are used; the zero input (float32, on the
        CPU) if left out. The nearest point of the box is taken instead where it lies outside.
    starts
        Number of starts; the best end point is the answer, `agreement` compares the others with it.
    max_steps
        Gradients per start at most.
    rtol
        A start has converged when the constraints undo a step along the gradient (of the length of the first
        offset from `center`) but for the part `rtol`.

    Raises
    ------
    ValueError
        Neither a norm nor a finite box, a norm that is not positive, `starts` below 1, a neuron that differs
        between cases.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x @ torch.tensor([3.0, 4.0]), shape=(2,))
    >>> most_exciting_input(f, norm=1.0, generator=torch.Generator().manual_seed(0)).point
    tensor([0.6000, 0.8000])
    """
    if center is not None and (tuple(center.shape) != neuron.shape or not bool(torch.isfinite(center).all())):
        raise ValueError(f"center must be one finite input of shape {neuron.shape}, got shape {tuple(center.shape)}.")
    middle = neuron.box.clip(torch.zeros((1, *neuron.shape)) if center is None else center[None])
    lower, upper = neuron.box.bounds(middle)
    bounded = bool(torch.isfinite(lower).all() and torch.isfinite(upper).all())
    if (norm is None or norm == float("inf")) and not bounded:
        raise ValueError("most_exciting_input needs a norm or a finite box, got neither; give norm=... in input units.")
    if norm is not None and not norm > 0:
        raise ValueError(f"norm must be positive, got {norm}.")
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}.")
    if neuron.given:
        raise ValueError("most_exciting_input takes one neuron, got one that differs between cases; select a case.")
    origin = middle.flatten(1)
    flat = flatten(neuron, origin)
    radius = float("inf") if norm is None else norm
    draws = torch.randn((starts, origin.shape[1]), generator=generator, dtype=origin.dtype, device=generator.device)
    draws = draws.to(origin.device)
    span = min(radius, float((upper - lower).mean()) if bounded else radius) * (
        1.0 if norm else draws.shape[1] ** 0.5 / 4
    )
    first = _project(origin + 0.5 * span * draws / draws.norm(dim=1, keepdim=True), origin, radius, flat)
    zero = origin.new_zeros(starts)
    problem = Problem(flat, origin.expand(starts, -1), zero, zero + 1)
    state, status = _ascend(problem, first, radius, max_steps, rtol)
    values = state.best_value.masked_fill(failed(status), float("nan"))
    order = torch.nan_to_num(values, nan=-torch.inf).argsort(descending=True)
    points = state.best.masked_fill(failed(status)[:, None], float("nan"))[order].reshape(starts, *neuron.shape)
    return MostExciting(
        points[0],
        values[order[0]],
        points,
        values[order],
        state.optimality[order],
        status[order],
        state.gradients[order],
        middle[0],
    )


@dataclass(frozen=True, eq=False)
class _Ascent:
    x: Tensor
    best: Tensor
    best_value: Tensor
    best_gradient: Tensor
    steepest: Tensor  # largest gradient seen
    step: Tensor
    optimality: Tensor
    gradients: Tensor


def _ascend(problem: Problem, first: Tensor, radius: float, max_steps: int, rtol: float) -> tuple[_Ascent, Tensor]:
    """Projected gradient ascent with a Barzilai-Borwein step that is shortened after every failure."""
    value = torch.full_like(problem.level, -torch.inf)
    state = _Ascent(
        first, first, value, torch.zeros_like(first), torch.zeros_like(value), torch.full_like(value, float("nan")),
        torch.full_like(value, float("inf")), torch.zeros_like(value, dtype=torch.int64),
    )  # fmt: skip

    unit = (first - problem.start).norm(dim=1).clamp_min(1e-6)

    def step(s: _Ascent, cases: Tensor) -> tuple[_Ascent, Tensor]:
        origin = problem.start[cases]
        value, gradient = problem.neuron.value_and_grad(s.x)
        steepness = gradient.norm(dim=1)
        better = value > s.best_value
        moved, change = s.x - s.best, gradient - s.best_gradient
        # the longest step the observed curvature allows; without curvature twice the last one
        curvature = -(moved * change).sum(1) / (moved * moved).sum(1).clamp_min(1e-30)
        known = torch.isfinite(s.step) & (curvature > 0)
        longer = torch.where(known, 1 / torch.where(known, curvature, torch.ones_like(curvature)), 2 * s.step)
        longer = torch.minimum(torch.maximum(longer, s.step), 10 * s.step)
        length = torch.where(better, longer, 0.25 * s.step)
        reach = (first.norm(dim=1)[cases] + s.x.norm(dim=1) + 1) / steepness.clamp_min(1e-30)
        length = torch.where(torch.isfinite(s.step), length, reach)
        best = torch.where(better[:, None], s.x, s.best)
        best_gradient = torch.where(better[:, None], gradient, s.best_gradient)
        best_value = torch.where(better, value, s.best_value)
        target = _project(best + length[:, None] * best_gradient, origin, radius, problem.neuron)
        uphill = best_gradient / best_gradient.norm(dim=1, keepdim=True).clamp_min(1e-30) * unit[cases, None]
        steepest = torch.maximum(s.steepest, steepness)
        free = (_project(best + uphill, origin, radius, problem.neuron) - best).norm(dim=1) / unit[cases]
        free = free * best_gradient.norm(dim=1) / steepest.clamp_min(torch.finfo(free.dtype).tiny)
        still = (target - best).norm(dim=1) <= 1e-7 * (best.norm(dim=1) + 1)
        status = mark(
            status_tensor(Status.RUNNING, value),
            (still, Status.STALLED),
            (free <= rtol, Status.DONE),
            ((steepness == 0) & ~torch.isfinite(s.step), Status.FLAT),
            (~(torch.isfinite(value) & torch.isfinite(steepness)), Status.NOT_FINITE),
        )
        return _Ascent(target, best, best_value, best_gradient, steepest, length, free, s.gradients + 1), status

    return iterate(step, state, max_steps)


def _project(x: Tensor, center: Tensor, radius: float, neuron: Neuron) -> Tensor:
    """The nearest point of box and ball to `x` (case, n); the center must lie in the box.

    The projection is clip(center + s * (x - center)) for one factor s per case; its distance from the center
    grows with s, so s is found by bisection.
    """
    inside = neuron.box.clip(x)
    if radius == float("inf"):
        return inside
    low, high = torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        fits = (neuron.box.clip(center + middle * (x - center)) - center).norm(dim=1, keepdim=True) <= radius
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    fits = (inside - center).norm(dim=1, keepdim=True) <= radius
    return torch.where(fits, inside, neuron.box.clip(center + low * (x - center)))
