"""Spacing of contours along a way, and what following it costs: the greedy path, the closest point near by, the closest of all.

The steepest path crosses each contour where it is. It is the shortest way only if spacing is the same everywhere; otherwise
"there may be a suboptimal direction to take at that moment that ultimately achieves the goal with fewer steps": down into a
valley, and up a cliff on its other side. `spacing_profile` shows spacing along any way; `greedy_against_closest` says how much
the greedy path loses to the closest point that a search finds from the same start, and that one to the closest known at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Solution
from isoresponse.grid import GridSolution
from isoresponse.loop import Status
from isoresponse.multistart import LocalGlobal
from isoresponse.neuron import Neuron
from isoresponse.paths import gradient_path
from isoresponse.solve import closest_point


@dataclass(frozen=True, eq=False)
class SpacingProfile:
    """Distance between contours, per response unit, at every knot of a way; knots beyond a way's end are NaN.

    `spacing` is 1/|gradient| over the elements that the box lets move uphill, infinite where the response is flat. `along` is
    what a step in the way's own direction pays per response unit: never less, and negative where the way goes down.
    """

    spacing: Tensor = axes("case", "knot", units="input / response", about="distance between contours")
    along: Tensor = axes("case", "knot", units="input / response", about="distance between contours along the way")
    response: Tensor = axes("case", "knot", units="response", about="response at the knot")
    arclength: Tensor = axes("case", "knot", units="input", about="length of the way up to the knot")

    @property
    def narrowest(self) -> Tensor:
        """The smallest spacing (case,) on the way: how steep its steepest place is."""
        return torch.nan_to_num(self.spacing, nan=torch.inf).amin(1)

    @property
    def dip(self) -> Tensor:
        """How far (case,) below the first knot the response falls on the way, in response units; 0 for a climb."""
        lowest = torch.nan_to_num(self.response, nan=torch.inf).amin(1)
        return (self.response[:, 0] - lowest).clamp_min(0)

    def __repr__(self) -> str:
        cases, knots = self.spacing.shape
        falls = int((self.dip > 0).sum())
        return (
            f"SpacingProfile({cases} ways of up to {knots} knots, narrowest spacing {float(self.narrowest.median()):.4g} "
            f"(median), {falls} fall below their start)"
        )


def spacing_profile(neuron: Neuron, points: Float[Tensor, "case knot *shape"]) -> SpacingProfile:
    """Spacing of the neuron's contours at the knots of a way, such as `gradient_path(...).points` or `straight_way(x, end)`.

    One gradient per knot.

    Raises
    ------
    ValueError
        Fewer than two knots, first knots that are no valid inputs.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,))
    >>> way = straight_way(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), knots=3)
    >>> spacing_profile(f, way).spacing
    tensor([[0.5000, 0.3333, 0.2500]])
    """
    if points.ndim != 2 + len(neuron.shape) or points.shape[2:] != torch.Size(neuron.shape) or points.shape[1] < 2:
        raise ValueError(
            f"points must have shape (case, knot, {', '.join(map(str, neuron.shape))}) with at least 2 knots, got "
            f"{tuple(points.shape)}; give straight_way(x, end) or gradient_path(...).points."
        )
    neuron.require_inputs(points[:, 0], "the first knot of every way")
    knots = points.shape[1]
    there = torch.isfinite(points.flatten(2)).all(2)
    rows: tuple[list[Tensor], ...] = ([], [], [])
    for k in range(knots):
        here = torch.where(there[:, k].reshape(-1, *[1] * (points.ndim - 2)), points[:, k], points[:, 0])
        value, gradient = neuron.value_and_grad(here)
        free = gradient.masked_fill(~neuron.box.free(here, gradient), 0.0).flatten(1)
        last = there[:, min(k + 1, knots - 1)]
        ahead = torch.where(last[:, None], points[:, min(k + 1, knots - 1)].flatten(1), points[:, k].flatten(1))
        step = ahead - points[:, max(k - 1, 0)].flatten(1)
        slope = (gradient.flatten(1) * step).sum(1) / step.norm(dim=1)
        for row, number in zip(rows, (1 / free.norm(dim=1), 1 / slope, value), strict=True):
            row.append(number.masked_fill(~there[:, k], torch.nan))
    steps = (points[:, 1:] - points[:, :-1]).flatten(2).norm(dim=2)
    length = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(1)], 1)
    spacing, along, response = (torch.stack(row, 1) for row in rows)
    return SpacingProfile(spacing, along, response, length)


def straight_way(
    x: Float[Tensor, "case *shape"], end: Float[Tensor, "case *shape"], *, knots: int = 21
) -> Float[Tensor, "case knot *shape"]:
    """Points equally spaced from `x` to `end`, both included.

    Raises ValueError for fewer than two knots or points of different shapes.
    """
    if knots < 2 or x.shape != end.shape:
        raise ValueError(
            f"a way needs 2 knots and ends of one shape, got {knots}, {tuple(x.shape)}, {tuple(end.shape)}."
        )
    part = torch.linspace(0, 1, knots, dtype=x.dtype, device=x.device).reshape(1, -1, *[1] * (x.ndim - 1))
    return x[:, None] + part * (end - x)[:, None]


@dataclass(frozen=True, eq=False)
class Detours:
    """The greedy path, the closest point near by and the closest one known, of the same starts and level.

    `greedy` is the length of the steepest path, `reach` the straight distance to its end: at most as long, and at least
    as far as the closest point. Both are infinite where the path ends on the way (a summit, a wall), NaN where its steps ran out.
    """

    greedy: Tensor = axes("case", units="input", about="length of the steepest path to the level")
    reach: Tensor = axes("case", units="input", about="straight distance to where that path ends")
    d_local: Tensor = axes(
        "case", units="input", about="distance of the closest point that a search from the start finds"
    )
    d_global: Tensor = axes("case", units="input", about="distance of the closest point known")
    points: Tensor = axes("case", "knot", "*shape", units="input", about="the steepest path")
    closest: Tensor = axes("case", "*shape", units="input", about="the closest point known")
    path_status: Tensor = axes("case", about="how the steepest path ended")

    @property
    def judged(self) -> Bool[Tensor, " case"]:
        """Where a closest point is known, at a distance above zero, and the greedy path was followed to an end."""
        return torch.isfinite(self.d_global) & (self.d_global > 0) & ~self.greedy.isnan()

    @property
    def greedy_excess(self) -> Tensor:
        """Length of the greedy path over the closest distance known (case,), infinite where it never arrives; NaN unjudged."""
        return (self.greedy / self.d_global).masked_fill(~self.judged, torch.nan)

    @property
    def local_excess(self) -> Tensor:
        """The local search's distance over the closest known (case,), infinite where it found none; NaN unjudged."""
        ratio = torch.nan_to_num(self.d_local, nan=torch.inf) / self.d_global
        return ratio.masked_fill(~(torch.isfinite(self.d_global) & (self.d_global > 0)), torch.nan)

    def __len__(self) -> int:
        return len(self.d_global)

    def __repr__(self) -> str:
        some = self.judged
        if not bool(some.any()):
            return f"Detours(none of {len(self)} cases judged)"
        greedy, local = (
            e[some].sort().values[(int(some.sum()) - 1) // 2] for e in (self.greedy_excess, self.local_excess)
        )
        return (
            f"Detours({int(some.sum())} of {len(self)} cases judged, median excess of the greedy path {float(greedy):.4g}, "
            f"of the local search {float(local):.4g})"
        )


def greedy_against_closest(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    known: Solution | GridSolution | None = None,
    local: Solution | None = None,
    budget: int = 100,
    starts: int = 5,
    knots: int = 21,
    max_steps: int = 300,
    generator: Generator | None = None,
) -> Detours:
    """How far the steepest path goes to `level`, and how far the closest points are, found from the start and known at all.

    Parameters
    ----------
    known
        A better answer to the same question: of `closest_point_on_grid`, exact in two dimensions, or a longer search. If left
        out, the same search from `starts` places. The nearest of all answers counts, the path's end included.
    local
        The local answer, if it is there already.
    budget
        Gradients per case of each search.
    max_steps
        Of the steepest path, two gradients each.
    generator
        For the places of the further starts; needed without `known`.

    Raises
    ------
    ValueError
        What the searches refuse: invalid inputs or level, starts without a generator.

    Examples
    --------
    >>> import torch
    >>> from isoresponse.grid import closest_point_on_grid
    >>> from isoresponse.neuron import Box
    >>> def hills(x):  # a wide one, whose flank is greedily climbed, and a narrow one, nearer, behind a valley
    ...     return torch.exp(-(x - 3).square().sum(1) / 8) + torch.exp(-(x + 1.3).square().sum(1))
    >>> f = Neuron(hills, shape=(2,), box=Box(-2.0, 6.0))
    >>> x = torch.tensor([[0.3, 0.4]])
    >>> found = greedy_against_closest(f, x, 0.8, known=closest_point_on_grid(f, x, 0.8))
    >>> found.greedy, found.d_local, found.d_global
    (tensor([2.4122]), tensor([2.4122]), tensor([1.8356]))
    """
    path = gradient_path(neuron, x, level, knots=knots, rtol=0.1, max_steps=max_steps)
    if local is None:
        local = closest_point(neuron, x, level, budget=budget)
    if known is None:
        known = closest_point(neuron, x, level, budget=budget * starts, starts=starts, generator=generator)
    both = LocalGlobal.of(local, known)
    arrived = path.status == int(Status.DONE)
    stopped = (path.status == int(Status.FLAT)) | (path.status == int(Status.BLOCKED))
    end = torch.where(arrived.reshape(-1, *[1] * (x.ndim - 1)), path.points[:, -1], x)

    def of_path(length: Tensor) -> Tensor:
        return length.masked_fill(~arrived, torch.nan).masked_fill(stopped, torch.inf)

    reach = (end - x).flatten(1).norm(dim=1)
    nearer = arrived & (reach < torch.nan_to_num(both.d_global, nan=torch.inf))
    return Detours(
        greedy=of_path(path.arclength[:, -1]),
        reach=of_path(reach),
        d_local=both.d_local,
        d_global=torch.where(nearer, reach, both.d_global),
        points=path.points,
        closest=torch.where(nearer.reshape(-1, *[1] * (x.ndim - 1)), end, both.point),
        path_status=path.status,
    )
