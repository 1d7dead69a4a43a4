"""The nearest of many boundaries: which to approach, how long, and which to give up.

Every class that is not the label is a rival with a boundary of its own. One forward pass and one gradient
per rival give the distance to each of them to first order. The nearest few are approached, on the *decision*
itself, so that another class which comes first on the way is taken at once. Successive halving (Jamieson and
Talwalkar 2016) divides the budget: everybody gets a share, the best quarter of them the next one, and the
last of it goes to the best alone. Where the first order says nothing because no rival is within reach of
the box to first order, as on networks trained to be robust, few are approached, each for longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isoresponse.approach import Approach, approach, first_pace, signs_without_pattern
from isoresponse.crossing import Problem, Solution
from isoresponse.loop import failed, join, take
from isoresponse.norms import nearest_in_plane
from isoresponse.predictors import CREDIBLE, first_order_status
from isoresponse.solve import elsewhere, far_end, polished, settle

CANDIDATES = 9  # rivals, by score, whose first-order distance is computed
HOPELESS = 3.0  # a rival this many times farther than the nearest, to first order, is not followed
SHORT = 4  # least gradients of a first approach where the first order reaches the boundary ...
LONG = {2.0: 12, 1.0: 25, math.inf: 25}  # ... and where it does not: from corner to corner they come closer more slowly
WIDE, MOST_WIDE = 60, 8  # one further place, across the box, is approached per so many gradients; and at most so many
KEPT = 4  # one in so many goes on to the next round
EARLY = 0.85  # part of what is left that each round but the last may spend
LAST = 16  # gradients of the last search, on the contour itself
ROUGH = 1e-4  # relative width of the ray's bracket where the budget is small


@dataclass(frozen=True, eq=False)
class Ranked:
    """Candidate rivals of each case, in places 0, 1, ... by score."""

    rivals: Tensor  # (case, place)
    feet: Tensor  # (case, place, n): first-order displacement, the box's corner where it does not exist
    distance: Tensor  # (case, place): its length in the norm, infinite where it does not exist
    status: Tensor  # (case, place)
    slack: Tensor  # (case, place): rounding of the margin, in response units

    def in_running(self, most: int, factor: float) -> Tensor:
        """Mask (case, place) of at most `most` rivals, none more than `factor` times as far as the nearest."""
        order = self.distance.argsort(dim=1, stable=True)[:, :most]
        near = torch.zeros_like(self.distance, dtype=torch.bool).scatter(1, order, True)
        best = self.distance.amin(1, keepdim=True)
        return near & ((self.distance <= factor * best) | torch.isinf(best) | (factor == torch.inf))

    def pairs(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Case index and rival of every chosen place, in order."""
        return torch.nonzero(chosen)[:, 0], self.rivals[chosen]


def nearest_of_all(
    problem: Problem, ranked: Ranked, budget: int, starts: int, generator: torch.Generator | None
) -> Solution:
    """The nearest answer to a decision's `problem` that `budget` gradients per case find, beginning at the ranked feet.

    `starts` is how many further places, at the far end of random directions, are approached beside the rivals.
    """
    cases = len(problem.start)
    below = problem.excess(problem.start)
    spent = ranked.distance.shape[1]
    last = LAST if budget >= 5 * LAST else 0
    left = max(budget - spent - last - 1, 1)
    # --- who is approached
    nearest = ranked.distance.argmin(1)
    seen = problem.excess(problem.clip(problem.start + ranked.feet[torch.arange(cases, device=below.device), nearest]))
    reachable = torch.isfinite(ranked.distance).any(1) & (seen.abs() <= CREDIBLE * below.abs())
    few, many = max(1, left // (2 * LONG[problem.norm])), max(1, left // (2 * SHORT))
    chosen = ranked.in_running(many, HOPELESS)
    chosen = torch.where(reachable[:, None], chosen, ranked.in_running(few, torch.inf))
    owner, _ = ranked.pairs(chosen)
    first = problem.start[owner] + ranked.feet[chosen]
    wide = min(left // WIDE, MOST_WIDE)
    if starts + wide > 0:
        reach, number = ranked.distance.amin(1).nan_to_num(posinf=1.0), torch.ones_like(nearest)
        far = [elsewhere(problem, reach, generator) for _ in range(starts)]
        far += [far_end(problem, reach, signs_without_pattern((1 + k) * number, problem.start)) for k in range(wide)]
        owner = torch.cat([owner, *[torch.arange(cases, device=owner.device)] * len(far)])
        first = torch.cat([first, *far])
    state = Approach.at(problem.clip(first))
    # --- rounds: a share of the gradients each, divided among those who are left
    number = torch.bincount(owner, minlength=cases)
    rounds = 1 + torch.ceil(torch.log(number.double()) / math.log(KEPT) - 1e-9).long()
    used, turn, pace = torch.zeros_like(rounds), 0, first_pace(torch.as_tensor([left], device=below.device))
    gone: list[tuple[Approach, Tensor]] = []
    while len(owner):
        number = torch.bincount(owner, minlength=cases)
        part = torch.where(rounds - turn > 1, EARLY, 1.0)
        share = torch.floor(part * (left - used) / number.clamp_min(1)).long()
        before = state.gradients
        state = approach(problem.select(owner), below[owner], state, share[owner], pace.expand(len(owner)))
        used = used.index_add(0, owner, state.gradients - before)
        turn = turn + 1
        stay = _nearest_quarter(state.promise, owner, number) & (turn < rounds[owner])
        gone.append((take(state, ~stay), owner[~stay]))
        state, owner = take(state, stay), owner[stay]
    everything, owner = join([s for s, _ in gone]), torch.cat([o for _, o in gone])
    best = first_smallest(everything.distance, owner, cases)
    state = replace(take(everything, best), gradients=used)
    # --- the last of it, on the contour itself
    answer = settle(problem, below, state, 1e-4, width=0.0 if last else ROUGH)
    answer = polished(problem, answer, torch.ones_like(answer.success), last, 1e-4)
    return replace(answer, gradients=answer.gradients + spent, forwards=answer.forwards + 1)


def rank(
    gaps: Tensor, gradients: list[Tensor], rivals: Tensor, slack: Tensor, lower: Tensor, upper: Tensor, norm: float
) -> Ranked:
    """First-order feet and distances of candidate rivals from their margins `gaps` (case, place) and their gradients."""
    feet, status = [], []
    for k, gradient in enumerate(gradients):
        foot, exists = nearest_in_plane(gaps[:, k], -gradient, lower, upper, norm)
        feet.append(foot)
        status.append(first_order_status(-gaps[:, k], gradient, exists))
    corners, how = torch.stack(feet, 1), torch.stack(status, 1)
    distance = torch.linalg.vector_norm(corners, norm, dim=2).masked_fill(failed(how), torch.inf)
    return Ranked(rivals, corners, distance, how, slack)


def first_smallest(values: Tensor, cases: Tensor, count: int) -> Tensor:
    """For each of `count` cases the index of its smallest value; failed (NaN) ones come last."""
    clean = torch.nan_to_num(values, nan=torch.inf)
    by_value = clean.argsort(stable=True)
    order = by_value[cases[by_value].argsort(stable=True)]
    _, counts = torch.unique_consecutive(cases[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    return order[starts]


def _nearest_quarter(distance: Tensor, owner: Tensor, number: Tensor) -> Tensor:
    """Mask of the approaches that go on: of every case the best one in `KEPT`, rounded up."""
    by_distance = distance.argsort(stable=True)
    order = by_distance[owner[by_distance].argsort(stable=True)]
    begin = (number.cumsum(0) - number)[owner[order]]
    place = torch.arange(len(order), device=order.device) - begin
    stays = place < -torch.div(-number[owner[order]], KEPT, rounding_mode="floor")
    return torch.zeros_like(stays).scatter(0, order, stays)
