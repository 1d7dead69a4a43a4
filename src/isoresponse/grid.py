"""The closest of all points across a level, where inputs have two elements: the referee of every other search.

A search that follows gradients ends at a local optimum. In two dimensions one can look everywhere instead. What a grid of
responses and gradients leaves open is settled by branch and bound (Horst and Tuy 1996) on its cells: a cell is given up
where the response cannot reach the level in it, or where no point of it is nearer than what is known, and cut in four
otherwise. So the answer comes with a bound below which there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from isoresponse._fields import axes
from isoresponse.crossing import Problem
from isoresponse.loop import Status, failed, join, mark, status_tensor, take
from isoresponse.neuron import Box, Neuron
from isoresponse.norms import size
from isoresponse.planes import grid_of
from isoresponse.solve import nearest

MOST_CELLS = 20_000  # of one case at a time: more mean that no place is nearer than all others
HALVINGS = 40  # of a cell, at most
POLISH = 60  # gradients that bring a point across to the contour's closest point near by
AT_ONCE = 4_000_000  # responses held at a time


@dataclass(frozen=True, eq=False)
class GridSolution:
    """The nearest point across a level in two dimensions, one per case, and the distance below which there is none.

    A failed case holds NaN and says why in `status`. The true distance lies between `lower` and `distance`; cases that share
    a response share its grid, which `gradients` counts for each of them.
    """

    point: Tensor = axes("case", "*shape", units="input", about="the nearest point found")
    value: Tensor = axes("case", units="response", about="response at the point")
    distance: Tensor = axes("case", units="input", about="its distance from the start")
    lower: Tensor = axes("case", units="input", about="no point across is nearer than this")
    status: Tensor = axes("case", about="how the case ended")
    gradients: Tensor = axes("case", about="gradients spent")
    forwards: Tensor = axes("case", about="forward passes spent, those inside gradients included")

    @property
    def success(self) -> Tensor:
        """Which cases (case,) have an answer."""
        return ~failed(self.status)

    @property
    def error(self) -> Tensor:
        """How much nearer (case,) the true closest point can be at most, in input units."""
        return self.distance - self.lower

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        found = self.success
        median, worst = float("nan"), float("nan")
        if bool(found.any()):
            median, worst = float(self.distance[found].median()), float(self.error[found].max())
        return (
            f"GridSolution({int(found.sum())} of {len(self)} cases, median distance {median:.4g}, no case too far by more "
            f"than {worst:.2g})"
        )


def closest_point_on_grid(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    norm: float = 2.0,
    box: Box | None = None,
    resolution: int = 128,
    steepening: float = 2.0,
    rtol: float = 1e-4,
) -> GridSolution:
    """The closest of all points across `level`, for inputs of two elements, to within a stated error.

    The response and its gradient are taken at the nodes of a grid over the whole box, and no point of a cell is believed to
    differ from its nearest corner by more than `steepening` times the largest gradient at the cell's corners allows. Cells
    that can hold a nearer point across are cut in four until there are none. That is exact for a response that is quadratic
    within each cell, at `steepening` 1; what is steeper than allowed inside one cell (a spike, a jump) can be missed.

    Parameters
    ----------
    level
        Response to reach, in response units; a number, or one per case.
    norm
        In which the change is to be small: 2 (Euclidean), 1 or infinity.
    box
        Where to look, if not in the neuron's whole box (which may be infinite).
    resolution
        Cells along each axis.
    steepening
        How many times as steep as at its corners the response may be inside a cell.
    rtol
        A case is DONE where no point is nearer than (1 - rtol) times the distance found. The point itself is the local
        optimum there, as exact as `closest_point` makes it.

    Returns
    -------
    GridSolution
        Status DONE, MAX_STEPS (a nearer point cannot be excluded by the number of cells allowed, as in the middle of a
        circle; `lower` says how near), ALREADY, or UNREACHABLE (nothing across was found).

    Raises
    ------
    ValueError
        Inputs that have not two elements, a box without finite bounds or without the starts, a resolution below 2, a
        `steepening` below 1, `rtol` not between 0 and 1, an unknown norm.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,), box=Box(-2.0, 2.0))
    >>> closest_point_on_grid(f, torch.tensor([[0.6, 0.8]]).double(), level=4.0)
    GridSolution(1 of 1 cases, median distance 1, no case too far by more than 0.0001)
    """
    problem = Problem.of(neuron, x, level, norm)
    if problem.start.shape[1] != 2:
        raise ValueError(f"a grid needs inputs of two elements, got {problem.start.shape[1]}; use more starts instead.")
    if resolution < 2 or not 1 <= steepening < math.inf or not 0 < rtol < 1:
        raise ValueError(
            "a grid needs resolution >= 2, a finite steepening >= 1 and 0 < rtol < 1, got "
            f"resolution={resolution}, steepening={steepening}, rtol={rtol}."
        )
    problem = replace(problem, neuron=replace(problem.neuron, box=_region(problem, box, neuron.shape)))
    share = max(1, AT_ONCE // (resolution + 1) ** 2)
    every = torch.arange(len(x), device=x.device)
    parts = [_on_grid(problem.select(some), resolution, steepening, rtol) for some in every.split(share)]
    found = join(parts)
    return replace(found, point=found.point.reshape(x.shape))


def _region(problem: Problem, box: Box | None, shape: tuple[int, ...]) -> Box:
    """The part of the neuron's box that lies in `box`; ValueError unless it is finite and holds the starts."""
    lower, upper = problem.neuron.box.bounds(problem.start)
    if box is not None:
        box.require_fits(shape)
        low, high = (bound.expand(shape).flatten() for bound in box.bounds(problem.start))
        lower, upper = torch.maximum(lower, low), torch.minimum(upper, high)
    if not bool((torch.isfinite(lower) & torch.isfinite(upper) & (lower < upper)).all()):
        raise ValueError(
            f"a grid needs a box with finite lower < upper bounds, got {lower.tolist()} and {upper.tolist()}; give box=."
        )
    region = Box(lower, upper)
    outside = int((~region.contains(problem.start, atol=1e-6)).sum())
    if outside:
        raise ValueError(f"x must lie in the box of the grid, got {outside} of {len(problem.start)} cases outside.")
    return region


@dataclass(frozen=True, eq=False)
class _Best:
    """The nearest point across known to each case, and what it cost."""

    point: Tensor  # (case, 2)
    distance: Tensor  # infinite while there is none
    gradients: Tensor
    forwards: Tensor

    def offered(self, owner: Tensor, points: Tensor, distance: Tensor) -> _Best:
        """With points (any number) of the cases `owner` that are across at `distance`, infinite where they are not."""
        nearest_now = self.distance.scatter_reduce(0, owner, distance, "amin")
        won = (distance == nearest_now[owner]) & (distance < self.distance[owner])
        return replace(self, point=self.point.index_copy(0, owner[won], points[won]), distance=nearest_now)

    def polished(self, problem: Problem, chosen: Tensor) -> _Best:
        """Brought, where `chosen` (mask) and known, to the closest point of the contour near by."""
        cases = torch.nonzero(chosen & torch.isfinite(self.distance)).flatten()
        if len(cases) == 0:
            return self
        found = nearest(problem.select(cases), self.point[cases], POLISH, 1e-6)
        known = replace(
            self,
            gradients=self.gradients.index_add(0, cases, found.gradients),
            forwards=self.forwards.index_add(0, cases, found.forwards),
        )
        return known.offered(cases, found.point, torch.nan_to_num(found.distance, nan=torch.inf))


@dataclass(frozen=True, eq=False)
class _Cells:
    """Rectangles, in any number, that may hold points across nearer than the best one known to their case."""

    owner: Tensor  # (cell,)
    centre: Tensor  # (cell, 2)
    half: Tensor  # (cell, 2): of the sides
    steep: Tensor  # (cell,): what the gradient is not believed to exceed; infinite where it is not known

    def distance(self, problem: Problem) -> Tensor:
        """From each case's start to the nearest point of the cell."""
        away = (self.centre - problem.start[self.owner]).abs() - self.half
        return size(away.clamp_min(0), problem.norm)

    def quarters(self) -> _Cells:
        corners = self.half.new_tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
        centre = (self.centre[:, None] + corners * self.half[:, None]).flatten(0, 1)
        return _Cells(
            self.owner.repeat_interleave(4),
            centre,
            0.5 * self.half.repeat_interleave(4, 0),
            self.steep.repeat_interleave(4),
        )


def _on_grid(problem: Problem, resolution: int, steepening: float, rtol: float) -> GridSolution:
    """`closest_point_on_grid` for cases whose grids are held all at once."""
    below = problem.excess(problem.start)
    already, sound = below >= 0, torch.isfinite(below)
    searched = sound & ~already
    best, cells = _coarse(problem, resolution, steepening)
    best, cells = best.polished(problem, searched), take(cells, searched[cells.owner])
    rough, lower = best.distance, torch.full_like(below, torch.inf)
    for turn in range(HALVINGS + 1):
        near = cells.distance(problem)
        live = near < (1 - rtol) * best.distance[cells.owner]
        crowd = torch.bincount(cells.owner[live], minlength=len(below)) > MOST_CELLS
        # what is given up unexamined bounds the distance from below
        ended = live & (crowd[cells.owner] | (turn == HALVINGS))
        lower = lower.scatter_reduce(0, cells.owner[ended], near[ended], "amin")
        cells = take(cells, live & ~ended)
        if len(cells.owner) == 0:
            break
        cells = cells.quarters()
        cells = take(cells, cells.distance(problem) < (1 - rtol) * best.distance[cells.owner])
        excess = problem.select(cells.owner).excess(cells.centre)
        far = size(cells.centre - problem.start[cells.owner], problem.norm)
        across = (excess > 0) & torch.isfinite(excess)
        best = best.offered(cells.owner, cells.centre, far.masked_fill(~across, torch.inf))
        best = replace(best, forwards=best.forwards + torch.bincount(cells.owner, minlength=len(below)))
        cells = take(cells, ~(excess + cells.steep * size(cells.half) <= 0))
    open_ = torch.isfinite(lower)
    lower = torch.minimum(lower, (1 - rtol) * best.distance)
    best = best.polished(problem, searched & (best.distance < rough))
    status = mark(
        status_tensor(Status.DONE, below),
        (open_, Status.MAX_STEPS),
        (torch.isinf(best.distance), Status.UNREACHABLE),
        (already, Status.ALREADY),
        (~sound, Status.NOT_FINITE),
    )
    bad, nothing = failed(status), torch.zeros_like(below)
    point = torch.where((already | bad)[:, None], problem.start, best.point)
    return GridSolution(
        point.masked_fill(bad[:, None], torch.nan),
        problem.neuron.value(point).masked_fill(bad, torch.nan),
        torch.where(already, nothing, best.distance).masked_fill(bad, torch.nan),
        torch.where(already, nothing, torch.minimum(lower, best.distance)).masked_fill(bad, torch.nan),
        status,
        best.gradients,
        best.forwards + 3,
    )


def _coarse(problem: Problem, resolution: int, steepening: float) -> tuple[_Best, _Cells]:
    """The grid's nearest node across, and those of its cells that the contour may cross or that lie across."""
    lower, upper = problem.neuron.box.bounds(problem.start)
    cases, side = len(problem.start), resolution + 1
    part = torch.linspace(0, 1, side, dtype=lower.dtype, device=lower.device)
    nodes = lower + (upper - lower) * grid_of(part, part)  # row by row of constant second element
    value, slope = _responses(problem, nodes)
    excess = problem.sign[:, None] * (value - problem.level[:, None])
    excess = excess.masked_fill(~torch.isfinite(excess), torch.nan)
    far = torch.linalg.vector_norm(nodes - problem.start[:, None], problem.norm, dim=2)
    far = far.masked_fill(~(excess > 0), torch.inf)
    count = torch.full((cases,), len(nodes), dtype=torch.int64, device=nodes.device)
    distance, which = far.min(1)
    best = _Best(nodes[which], distance, count, count)
    # --- the largest excess and gradient at the corners of every cell; NaN where one of them is
    half = 0.5 * (upper - lower) / resolution
    highest = max_pool2d(excess.reshape(cases, 1, side, side), 2, 1).reshape(cases, -1)
    steepest = max_pool2d(slope.reshape(-1, 1, side, side), 2, 1).reshape(len(slope), -1)
    # nothing is claimed of a cell where the response or its gradient is not finite at a corner
    unknown = torch.isnan(highest) | ~torch.isfinite(steepest)
    steep = (steepening * steepest).expand(cases, -1).masked_fill(unknown, torch.inf)
    owner, cell = torch.nonzero(~(highest + steep * half.norm() <= 0), as_tuple=True)
    corner = nodes.reshape(side, side, 2)[:-1, :-1].reshape(-1, 2)
    return best, _Cells(owner, corner[cell] + half, half.expand(len(owner), 2), steep[owner, cell])


def _responses(problem: Problem, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Responses and sizes of gradients (case, node), with one row for all cases where they share a response."""
    neuron = problem.neuron
    cases = len(problem.start) if neuron.given else 1
    values, slopes = [], []
    for some in nodes.split(max(1, AT_ONCE // (16 * cases))):
        owner = torch.arange(cases, device=nodes.device).repeat_interleave(len(some))
        value, gradient = neuron.select(owner).value_and_grad(some.repeat(cases, 1))
        values.append(value.reshape(cases, -1))
        slopes.append(size(gradient).reshape(cases, -1))
    return torch.cat(values, 1), torch.cat(slopes, 1)
