"""The smallest change that survives storage: the closest point across a level among those of a lattice.

An image file knows 256 values per pixel. A smallest perturbation found in floating point is a fragile thing, and
rounding as an afterthought may undo it (Bonnet, Furon and Bas 2020). Here the question is asked on the lattice
itself. Where the response is linear it is a knapsack: every element moves by whole levels, each level has its price in
distance and its gain in response, and the cheapest levels that fill the gap are sought (`cheapest`). `on_lattice`
begins with what rounding makes of a solution, or of the same perturbation made longer until it survives, and goes
on with knapsacks on the response as its gradient sees it from the last point, each checked by a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Problem, Solution
from isoresponse.knapsack import Lattice, cheapest
from isoresponse.loop import Status, failed, iterate, mark, put, status_tensor, take
from isoresponse.neuron import Neuron
from isoresponse.norms import size

LENGTHENINGS, HALVINGS = 16, 6  # forward passes to make a perturbation long enough to survive, and shorter again
FIRST_LENGTHENING = 0.01  # doubled each time
TRIES = 4  # forward passes on one linearisation, each aimed farther beyond the level
PATIENCE = 5  # linearisations in a row without a nearer point


@dataclass(frozen=True, eq=False)
class LatticeSolution:
    """One lattice point per case, how far it is, and how far the solutions are that it came from and that rounding makes.

    A failed case holds NaN in `point`, `value` and `d_lattice`, -1 in `index`, and says why in `status`. `d_round` is
    NaN where the rounded point is not across. All distances are in the same norm and count from the start, even
    where that is not a point of the lattice.
    """

    point: Tensor = axes("case", "*shape", units="input", about="the lattice point found")
    index: Tensor = axes("case", "*shape", about="its level in each element, from 0 at the lower bound")
    value: Tensor = axes("case", units="response", about="response at the point")
    d_float: Tensor = axes("case", units="input", about="distance of the given solution")
    d_round: Tensor = axes("case", units="input", about="distance of the solution rounded, where that survives")
    d_lattice: Tensor = axes("case", units="input", about="distance of the lattice point found")
    survives: Tensor = axes("case", about="whether the solution rounded to the lattice is still across")
    status: Tensor = axes("case", about="how the case ended")
    gradients: Tensor = axes("case", about="gradients spent, those of the given solution not included")
    forwards: Tensor = axes("case", about="forward passes spent, those inside gradients included")

    @property
    def success(self) -> Tensor:
        """Which cases (case,) have a lattice point."""
        return ~failed(self.status)

    @property
    def ratio(self) -> Tensor:
        """How many times as far as the solution (case,) the lattice point is; NaN for a distance of zero."""
        return torch.where(self.d_float > 0, self.d_lattice / self.d_float, torch.full_like(self.d_float, torch.nan))

    @property
    def survival_rate(self) -> float:
        """Share of the given solutions, at a distance above zero, that survive plain rounding; NaN where there is none."""
        return float(self.survives[self.d_float > 0].double().mean())

    @property
    def median_ratio(self) -> float:
        """Median of `ratio` over the cases that have one."""
        return self.ratio_quantile(0.5)

    def ratio_quantile(self, q: float) -> float:
        """Quantile `q` (between 0 and 1) of `ratio` over the cases that have one; NaN where there is none."""
        return float(self.ratio.double().nanquantile(q))

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        return (
            f"LatticeSolution({int(self.success.sum())} of {len(self)} cases, {self.survival_rate:.1%} survive rounding, "
            f"median d_lattice / d_float {self.median_ratio:.4g}, {float(self.gradients.double().mean()):.1f} gradients "
            "per case)"
        )


@dataclass(frozen=True, eq=False)
class _State:
    """The nearest lattice point across so far, and where the response is to be linearised next."""

    index: Tensor  # (case, n): of the best point ...
    cost: Tensor  # ... its distance, infinite while there is none, and its response's excess
    excess: Tensor
    anchor: Tensor  # (case, n)
    memory: Tensor  # (case, n): the last gradient
    at_best: Tensor  # whether the anchor is the best point
    radius: Tensor  # levels that an element may move from the best point
    failures: Tensor  # linearisations since the last improvement
    gradients: Tensor
    forwards: Tensor


@dataclass(frozen=True, eq=False)
class _Search:
    """A problem on a lattice. A point is across where its excess is above `slack` (case,), the response's rounding."""

    problem: Problem
    lattice: Lattice
    slack: Tensor

    @classmethod
    def of(cls, problem: Problem, already: Tensor, levels: int) -> _Search:
        """The search for `problem` on the lattice of its box; one forward pass."""
        lattice = Lattice.of(problem.neuron.box, levels, problem.start)
        below = problem.excess(problem.start)
        info = torch.finfo(below.dtype)
        slack = 8 * info.eps * torch.maximum(problem.level.abs(), (problem.level + problem.sign * below).abs())
        # where the start is said to be across already, its own side is the one to stay on, and to be at the level suffices
        sign = torch.where(already & (below < 0), -problem.sign, problem.sign)
        return cls(
            replace(problem, sign=sign), lattice, torch.where(already, torch.full_like(slack, -info.tiny), slack)
        )

    def select(self, cases: Tensor) -> _Search:
        return replace(self, problem=self.problem.select(cases), slack=self.slack[cases])

    def cost(self, index: Tensor) -> Tensor:
        return size(self.lattice.point(index) - self.problem.start, self.problem.norm)

    def offer(self, state: _State, index: Tensor, asked: Tensor) -> tuple[_State, Tensor]:
        """The state after looking at `index` in the cases `asked` (mask), and what the excess is there (-inf elsewhere)."""
        cases = torch.nonzero(asked).flatten()
        excess = torch.full_like(self.slack, -torch.inf)
        if len(cases) == 0:
            return state, excess
        excess = excess.index_copy(0, cases, self.problem.select(cases).excess(self.lattice.point(index[cases])))
        cost = self.cost(index)
        better = (excess > self.slack) & (cost < state.cost)
        new = replace(
            state,
            index=torch.where(better[:, None], index, state.index),
            cost=torch.where(better, cost, state.cost),
            excess=torch.where(better, excess, state.excess),
            forwards=state.forwards + asked,
        )
        return new, excess


def on_lattice(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    solution: Solution,
    level: float | Float[Tensor, " case"],
    *,
    levels: int = 256,
    norm: float = 2.0,
    budget: int = 30,
) -> LatticeSolution:
    """The nearest point to `x` found across `level` whose elements all take one of `levels` values between their bounds.

    For a classifier, take its decision and level 0: `on_lattice(clf.decision(labels), x, solution, 0.0)`. The start
    need not lie on the lattice; distances count from it all the same. "Across" is meant strictly, by more than
    rounding. The answer is at most as far as the rounded solution wherever that survives.

    Parameters
    ----------
    solution
        Where to begin: what `closest_point`, `closest_adversary` or an attack found for the same `x` and level. Its failed
        cases stay failed, with their status. Where `x` is across already (ALREADY), so is the nearest lattice point, mostly.
    level
        Response to reach, in response units; a number, or one per case.
    levels
        Values of each element: 256 for 8 bits. The first is the box's lower bound, the last its upper one.
    norm
        In which the change is to be small: 2 (Euclidean), 1 or infinity; that of the solution, as a rule.
    budget
        Gradients per case at most.

    Returns
    -------
    LatticeSolution
        Status DONE (no cheaper point of the lattice is across to first order), STALLED (first order promises one, but none
        was found), MAX_STEPS (best within the budget), ALREADY, UNREACHABLE (no lattice point across was found).

    Raises
    ------
    ValueError
        Invalid inputs or level, a solution of other inputs, an unknown norm, a box without finite bounds, `levels` not from 2
        to 65,536, `budget` below 1.
    TypeError
        A solution that is not a `Solution`.

    Examples
    --------
    >>> import torch
    >>> from isoresponse.neuron import Box
    >>> from isoresponse.solve import closest_point
    >>> f = Neuron(lambda x: x @ torch.tensor([3.0, 1.0]), shape=(2,), box=Box(0, 1))
    >>> x = torch.zeros(1, 2)
    >>> found = on_lattice(f, x, closest_point(f, x, level=1.2), level=1.2, levels=5)
    >>> found.index, found.survives
    (tensor([[2, 0]], dtype=torch.int32), tensor([False]))
    """
    if not isinstance(solution, Solution):
        raise TypeError(f"solution must be a Solution, as closest_point gives it, got {type(solution).__name__}.")
    problem = Problem.of(neuron, x, level, norm)
    if solution.point.shape != x.shape:
        raise ValueError(
            f"solution must hold one point per case of x, shape {tuple(x.shape)}, got {tuple(solution.point.shape)}."
        )
    if budget < 1:
        raise ValueError(f"budget must be at least 1 gradient per case, got {budget}.")
    already = solution.status == int(Status.ALREADY)
    search = _Search.of(problem, already, levels)
    problem, lattice = search.problem, search.lattice
    target = solution.point.detach().to(x).flatten(1)
    known = ~failed(solution.status) & torch.isfinite(target).all(1)
    target = torch.where(known[:, None], problem.clip(target), problem.start)
    state, d_round = _rounded(search, target, known)
    unsettled = known & ~(already & torch.isfinite(d_round))
    cases = torch.nonzero(unsettled).flatten()
    status = mark(solution.status, (~known & ~failed(solution.status), Status.NOT_FINITE))
    if len(cases):
        part = search.select(cases)
        begun = _lengthened(part, take(state, cases), target[cases])
        ended, how = iterate(lambda s, c: _improve(part.select(c), s), begun, budget)
        none = torch.isinf(ended.cost) & ~failed(how)
        status = status.index_copy(0, cases, mark(how, (none, Status.UNREACHABLE)))
        state = put(state, cases, ended)
    lost = failed(status)
    point = lattice.point(state.index).masked_fill(lost[:, None], torch.nan)
    return LatticeSolution(
        point=point.reshape(x.shape),
        index=state.index.masked_fill(lost[:, None], -1.0).to(torch.int32).reshape(x.shape),
        value=(problem.level + problem.sign * state.excess).masked_fill(lost, torch.nan),
        d_float=size(target - problem.start, problem.norm).masked_fill(~known, torch.nan),
        d_round=d_round,
        d_lattice=state.cost.masked_fill(lost, torch.nan),
        survives=torch.isfinite(d_round),
        status=status,
        gradients=state.gradients,
        forwards=state.forwards + 2,
    )


def _rounded(search: _Search, target: Tensor, known: Tensor) -> tuple[_State, Tensor]:
    """The state that knows the rounded targets only, and their distances (case,), NaN where they are not across."""
    index = search.lattice.place(target).round()
    none = torch.zeros_like(known, dtype=torch.int64)
    state = _State(
        index=index,
        cost=torch.full_like(search.slack, torch.inf),
        excess=torch.full_like(search.slack, -torch.inf),
        anchor=target,
        memory=torch.zeros_like(target),
        at_best=torch.zeros_like(known),
        radius=torch.full_like(search.slack, search.lattice.levels),
        failures=none,
        gradients=none,
        forwards=none,
    )
    state, _ = search.offer(state, index, known)
    return state, torch.where(torch.isfinite(state.cost), state.cost, torch.full_like(state.cost, torch.nan))


def _lengthened(search: _Search, state: _State, target: Tensor) -> _State:
    """What else rounding gives where plain rounding fails: away from the start, and of longer perturbations.

    The perturbation is lengthened until it survives, then shortened by bisection; forward passes only.
    """
    start, lattice = search.problem.start, search.lattice
    place, home = lattice.place(target), lattice.place(start)
    lost = torch.isinf(state.cost)
    outwards = torch.where(place > home, place.ceil(), place.floor())
    state, _ = search.offer(state, outwards, lost)
    low, high = torch.zeros_like(search.slack), torch.full_like(search.slack, FIRST_LENGTHENING)
    found = ~lost
    for turn in range(LENGTHENINGS + HALVINGS):
        growing = turn < LENGTHENINGS
        asked = lost & (~found if growing else found)
        middle = high if growing else 0.5 * (low + high)
        longer = search.problem.clip(start + (1 + middle)[:, None] * (target - start))
        state, excess = search.offer(state, lattice.place(longer).round(), asked)
        across = asked & (excess > search.slack)
        found = found | across
        low = torch.where(asked & ~across, middle, low)
        high = torch.where(found, high, 2 * high) if growing else torch.where(across, middle, high)
    return state


def _improve(search: _Search, s: _State) -> tuple[_State, Tensor]:
    """One gradient: the cheapest lattice point that it puts across, aimed farther beyond the level until it is.

    Where that fails, the response is linearised next at the point that failed, as the mean with the gradient before (at a
    kink both sides count), and elements may move half as far from the best point as they did.
    """
    problem, lattice = search.problem, search.lattice
    excess, gradient = problem.excess_and_grad(s.anchor)
    sound = torch.isfinite(excess) & torch.isfinite(gradient).all(1)
    gradient = torch.where(sound[:, None], gradient, torch.zeros_like(gradient))
    mixed = (s.failures > 0) & ~s.at_best & torch.isfinite(s.cost)
    gradient = torch.where(mixed[:, None], 0.5 * (gradient + s.memory), gradient)
    s = replace(s, memory=gradient, gradients=s.gradients + 1, forwards=s.forwards + 1)
    # --- the gap that the knapsack has to fill, in response, from the start
    offset = (gradient * (s.anchor - problem.start)).sum(1) - torch.where(sound, excess, torch.zeros_like(excess))
    reach = torch.where(torch.isfinite(s.cost), s.radius, torch.full_like(s.radius, lattice.levels))[:, None]
    low, high = (s.index - reach).clamp_min(0), (s.index + reach).clamp_max(lattice.levels - 1)
    aim, new = search.slack, s
    trying, tried = sound & (gradient != 0).any(1), torch.zeros_like(sound)
    last = s.index
    for _ in range(TRIES):
        index = cheapest(lattice, problem.start, gradient, aim + offset, low, high, problem.norm)
        trying = trying & (search.cost(index) < new.cost * (1 - 8 * torch.finfo(aim.dtype).eps))
        if not bool(trying.any()):
            break
        new, seen = search.offer(new, index, trying)
        last = torch.where(trying[:, None], index, last)
        tried = tried | trying
        short = trying & ~(seen > search.slack) & torch.isfinite(seen)
        aim = torch.where(short, aim + 1.2 * (search.slack - seen), aim)
        trying = short
    # --- where to look next
    better = new.cost < s.cost
    settled = ~tried & s.at_best & sound & (gradient != 0).any(1)
    failures = torch.where(better, torch.zeros_like(s.failures), s.failures + 1)
    moved = (last - s.index).abs().amax(1)
    shrunk = torch.where(tried, torch.minimum(0.5 * moved, 0.5 * s.radius), s.radius).floor().clamp_min(1)
    to_best = better | (~tried & torch.isfinite(new.cost))
    next_anchor = torch.where(to_best[:, None], lattice.point(new.index), lattice.point(last))
    new = replace(
        new,
        anchor=next_anchor,
        at_best=to_best,
        radius=torch.where(better, torch.full_like(s.radius, lattice.levels), shrunk),
        failures=failures,
    )
    status = mark(
        status_tensor(Status.RUNNING, excess),
        (failures >= PATIENCE, Status.STALLED),
        (~sound & torch.isinf(new.cost), Status.NOT_FINITE),
        (settled, Status.STALLED),
        (settled & (s.radius >= lattice.levels), Status.DONE),
    )
    return new, status
