"""A look at several scales: predictions where geometry at the point itself says nothing.

A network that was trained to resist changes of every element up to some size answers nothing to smaller ones: round
each input lies a dead zone. The gradient in it points nowhere in particular, and the closest adversary in L2 is *sparse*, a few
elements that go beyond. A network with competing units has another problem, many small facets. So `ManyScales` looks first
how large a change must be to count, then which elements count at that size, and starts from several places that follow from it:

1. *Amplitude.* Forward passes at random sparse patterns of signs, at several amplitudes: the one at which the response
   falls most per unit of amplitude is the scale.
2. *Slope at that scale.* The mean of gradients at such patterns, a smoothed gradient.
3. *Few elements.* Those with the largest slope at that scale, tried one by one with forward passes; then added one after
   another, each time the one that brings the response closest to the level (matching pursuit).
4. *Many elements.* The foot of the plane with the smoothed slope; and points well beyond the first-order feet of the
   nearest boundaries.

From each, a short search comes back towards the start (`approach`, `search`); the nearest end is the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isoresponse.approach import Approach, approach
from isoresponse.contour import refine, search
from isoresponse.crossing import Problem, cross_ray, rounding
from isoresponse.loop import Status, failed, mark, status_tensor
from isoresponse.norms import nearest_in_plane, size
from isoresponse.prediction import Boundaries, Doubt, Prediction
from isoresponse.predictors import CREDIBLE, Feet

AMPLITUDES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)  # tried, in units of the reach of an element
PATTERNS = 4  # random patterns by which the amplitude is chosen
DENSITY = 0.2  # part of the elements that a pattern moves
TELLING = 0.05  # part of the gap that the best single element must close for sparse answers to be looked for
BEYOND = 2.5  # how far beyond a first-order foot an approach starts
PACE = 0.5  # part of the way that an approach first takes
BACK = 12  # gradients of the search from a sparse start
SPARSE = (1.0, 0.8)  # of the amplitude, for sparse starts; another one moves each element as far as it can go
SEARCHES, STARTS = len(SPARSE) + 1, 3  # from few elements, from many
SHORT = 8  # gradients that an approach needs at least
APART = 0.2  # log ratio of the two nearest ends beyond which the nearest is lonely


@dataclass(frozen=True)
class ManyScales:
    """The nearest of several short searches that start where the response counts at the scale at which it counts.

    Parameters
    ----------
    gradients
        Per case, besides one of each boundary: at most what the probes need and the searches share.
    probes
        How many of them are for the smoothed slope.
    elements
        How many elements are tried one by one; costs forward passes.
    depth
        How many elements a sparse start moves at most.
    seed
        Of the random patterns, which are the same for every case.

    Raises ValueError for `probes`, `elements` or `depth` below 1, or for `gradients` that leave the searches too few.
    """

    gradients: int = 98
    probes: int = 32
    elements: int = 128
    depth: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("probes", "elements", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        least = self.probes + SEARCHES * BACK + STARTS * SHORT
        if self.gradients < least:
            raise ValueError(
                f"gradients must be at least {least} per case with {self.probes} probes, got {self.gradients}; "
                "FootPoints needs fewer."
            )

    def __call__(self, ask: Boundaries) -> Prediction:
        """The prediction (case,) for these boundaries."""
        problem, below = ask.decision, ask.below
        generator = torch.Generator().manual_seed(self.seed)
        feet = Feet.of(ask)
        ones = ask.count(torch.ones_like(ask.owner))
        patterns = [_pattern(problem.start, generator) for _ in range(max(PATTERNS, self.probes))]
        amplitude, spent = _amplitude(problem, below, patterns[:PATTERNS])
        slope = _slope(problem, amplitude, patterns[: self.probes])
        gradients, forwards = ones + self.probes, ones + spent + self.probes
        ends: list[_End] = []
        # --- few elements
        few, telling = [], torch.zeros_like(below, dtype=torch.bool)
        for far in (*(factor * amplitude for factor in SPARSE), _reach(problem)):
            point, tells, tried = _few(problem, below, slope, far, self.elements, self.depth)
            few.append((point, tells))
            telling, forwards = telling | tells, forwards + tried
        sparse = [_back(problem, below, point, tells) for point, tells in few]
        # --- many elements
        left = self.gradients - self.probes
        starts = [_smoothed_foot(problem, below, slope), *_beyond(ask, feet)]
        share = torch.where(telling, (left - SEARCHES * BACK) // STARTS, left // STARTS)
        ends = sparse + [_approached(problem, below, point, share) for point in starts]
        # --- the nearest
        distance = torch.stack([e.distance for e in ends], 1)
        order = distance.sort(dim=1, stable=True)
        best, second = order.values[:, 0], order.values[:, 1]
        way = torch.stack([e.way for e in ends], 1)[torch.arange(len(below), device=below.device), order.indices[:, 0]]
        gradients = gradients + sum(e.gradients for e in ends)
        forwards = forwards + sum(e.forwards for e in ends)
        spread = (second / best).log().nan_to_num(nan=10.0, posinf=10.0).clamp(0, 10)
        doubt = (spread > APART).long() * int(Doubt.LONELY) | _first_is_blind(ask, feet)
        status = mark(
            status_tensor(Status.DONE, below),
            (best.isinf(), Status.UNREACHABLE),
            ((slope == 0).all(1) & best.isinf(), Status.FLAT),
        )
        # the class whose boundary it is costs a forward pass of each boundary
        at = problem.clip(problem.start + way)[ask.owner]
        crossed = ask.table(-ask.each.excess(at)).argmin(1)
        table = ask.table(ask.rival.to(below.dtype), -1.0)
        rival = table.gather(1, crossed[:, None])[:, 0].long()
        return Prediction.of(
            way, status, ask.norm, distance=best, rival=rival, spread=spread, doubt=doubt,
            gradients=gradients, forwards=forwards + 2 * ones,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _End:
    """Where one short search has come; infinite distance where nowhere."""

    way: Tensor
    distance: Tensor
    gradients: Tensor
    forwards: Tensor


def _pattern(start: Float[Tensor, "case n"], generator: torch.Generator) -> Float[Tensor, "1 n"]:
    """Random signs on part of the elements, zero on the others."""
    n = start.shape[1]
    signs = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    return (signs * (torch.rand(n, generator=generator) < DENSITY)).to(start)[None]


def _reach(problem: Problem) -> Float[Tensor, "case n"]:
    """The unit of amplitude of every element: the width of the box, or twice the largest element where it has none."""
    down, up = problem.room(problem.start)
    width = up - down
    wide = 2 * problem.start.abs().amax(1, keepdim=True).clamp_min(0.5)
    return torch.where(torch.isfinite(width), width, wide.expand_as(width))


def _amplitude(
    problem: Problem, below: Float[Tensor, " case"], patterns: list[Tensor]
) -> tuple[Float[Tensor, "case n"], int]:
    """The amplitude (case, n) at which random patterns bring the response closest per unit of it, and what was spent."""
    reach = _reach(problem)
    gains = []
    for part in AMPLITUDES:
        seen = [problem.excess(problem.clip(problem.start + part * reach * p)) - below for p in patterns]
        # more than the gap is of no use, so where little is enough a small amplitude is
        gains.append(torch.minimum(torch.stack(seen, 1).nan_to_num(nan=0.0), below.abs()[:, None]).mean(1) / part)
    best = torch.stack(gains, 1).argmax(1)
    parts = torch.tensor(AMPLITUDES, dtype=below.dtype, device=below.device)[best]
    return parts[:, None] * reach, len(AMPLITUDES) * len(patterns)


def _slope(problem: Problem, amplitude: Float[Tensor, "case n"], patterns: list[Tensor]) -> Float[Tensor, "case n"]:
    """The mean gradient (case, n) at random patterns: one gradient each."""
    total = torch.zeros_like(problem.start)
    for pattern in patterns:
        total = total + problem.excess_and_grad(problem.clip(problem.start + amplitude * pattern))[1].nan_to_num()
    return total / len(patterns)


def _few(
    problem: Problem,
    below: Float[Tensor, " case"],
    slope: Float[Tensor, "case n"],
    amplitude: Float[Tensor, "case n"],
    elements: int,
    depth: int,
) -> tuple[Float[Tensor, "case n"], Tensor, Int[Tensor, " case"]]:
    """Points that move few elements, whether one by itself says something (case,), and forwards spent (case,)."""
    n = problem.start.shape[1]
    down, up = problem.room(problem.start)
    move = torch.where(slope > 0, torch.minimum(up, amplitude), torch.maximum(down, -amplitude))
    move = torch.where(slope == 0, torch.zeros_like(move), move)
    index = (slope * move).topk(min(elements, n), dim=1).indices
    moves = move.gather(1, index)
    alone = _tried(problem, problem.start, index, moves)
    gain, first = (alone - below[:, None]).max(1)
    telling = gain > TELLING * below.abs()
    spent = torch.full_like(index[:, 0], index.shape[1])
    point = problem.start.scatter_add(1, index.gather(1, first[:, None]), moves.gather(1, first[:, None]))
    point = torch.where(telling[:, None], point, problem.start)
    value = torch.where(telling, below + gain, below)
    used = torch.zeros_like(index, dtype=torch.bool).scatter(1, first[:, None], True)
    for _ in range(depth - 1):
        on = torch.nonzero(telling & (value <= 0) & ~used.all(1)).flatten()
        if len(on) == 0:
            break
        seen = _tried(problem.select(on), point[on], index[on], moves[on]).masked_fill(used[on], -torch.inf)
        best, which = seen.max(1)
        added = point[on].scatter_add(1, index[on].gather(1, which[:, None]), moves[on].gather(1, which[:, None]))
        point, value = point.index_copy(0, on, added), value.index_copy(0, on, best)
        used = used.index_put((on, which), torch.ones_like(which, dtype=torch.bool))
        spent = spent.index_add(0, on, torch.full_like(on, index.shape[1]))
    return problem.clip(point), telling, spent


def _tried(
    problem: Problem, point: Float[Tensor, "case n"], index: Int[Tensor, "case k"], moves: Float[Tensor, "case k"]
) -> Float[Tensor, "case k"]:
    """Excess (case, k) at `point` with one more element moved, for each of k elements."""
    cases, k = index.shape
    owner = torch.arange(cases, device=index.device).repeat_interleave(k)
    moved = point[owner].scatter_add(1, index.reshape(-1, 1), moves.reshape(-1, 1))
    seen = problem.select(owner).excess(problem.select(owner).clip(moved))
    return seen.reshape(cases, k).nan_to_num(nan=-torch.inf)


def _smoothed_foot(
    problem: Problem, below: Float[Tensor, " case"], slope: Float[Tensor, "case n"]
) -> Float[Tensor, "case n"]:
    way, _ = nearest_in_plane(-below, slope, *problem.room(problem.start), problem.norm)
    return problem.clip(problem.start + way.nan_to_num(nan=0.0))


def _beyond(ask: Boundaries, feet: Feet) -> list[Float[Tensor, "case n"]]:
    """Points well beyond the first-order feet of the two nearest boundaries of each case, or once and twice of the only one."""
    problem = ask.decision
    order = ask.table(feet.distance).argsort(dim=1, stable=True)
    index = ask.table(torch.arange(len(ask.owner), device=order.device).to(feet.distance), -1.0).long()
    ways = [feet.way[index.gather(1, order[:, k : k + 1])[:, 0]] for k in range(min(2, order.shape[1]))]
    scaled = [BEYOND * ways[0], BEYOND * ways[1] if len(ways) > 1 else ways[0]]
    return [problem.clip(problem.start + way) for way in scaled]


def _back(problem: Problem, below: Float[Tensor, " case"], point: Float[Tensor, "case n"], where: Tensor) -> _End:
    """The closest point of the contour as a short search from `point` finds it, for the cases `where`."""
    on = torch.nonzero(where).flatten()
    infinite = torch.full_like(below, torch.inf)
    none = torch.zeros_like(below, dtype=torch.int64)
    end = _End(torch.zeros_like(point), infinite, none, none)
    if len(on) == 0:
        return end
    some = problem.select(on)
    if problem.norm == 2.0:
        answer, extra = search(some, point[on], BACK, 1e-3), none[on]
    else:
        # begun on the contour, or, where that ray does not meet it, at the start
        first, found, extra = cross_ray(some, below[on], point[on], rounding(below[on]))
        answer = refine(some, torch.where(found[:, None], first, some.start), BACK, 1e-3)
    distance = answer.distance.nan_to_num(nan=torch.inf)
    return _End(
        end.way.index_copy(0, on, answer.point.nan_to_num() - torch.where(failed(answer.status)[:, None], 0.0, some.start)),
        infinite.index_copy(0, on, distance),
        none.index_copy(0, on, answer.gradients),
        none.index_copy(0, on, answer.forwards + extra),
    )  # fmt: skip


def _approached(
    problem: Problem, below: Float[Tensor, " case"], point: Float[Tensor, "case n"], steps: Int[Tensor, " case"]
) -> _End:
    """The best point across of an approach of so many gradients, or, where it met none, what its last ray promises."""
    state = approach(problem, below, Approach.at(point), steps, torch.full_like(below, PACE))
    distance = torch.where(torch.isfinite(state.distance), state.distance, state.promise)
    way = torch.where(torch.isfinite(state.distance)[:, None], state.best, state.x) - problem.start
    scale = (distance / size(way, problem.norm).clamp_min(1e-30)).nan_to_num(nan=0.0, posinf=0.0)
    return _End(scale[:, None] * way, distance, state.gradients, state.gradients)


def _first_is_blind(ask: Boundaries, feet: Feet) -> Int[Tensor, " case"]:
    """The flag of cases whose nearest first-order foot leaves most of the gap; one forward pass."""
    nearest = ask.nearest(feet.distance)
    seen = ask.decision.excess(ask.decision.clip(ask.decision.start + feet.way[nearest]))
    blind = (seen.abs() > CREDIBLE * ask.below.abs()) | torch.isinf(feet.distance[nearest])
    return blind.long() * int(Doubt.BLIND)
