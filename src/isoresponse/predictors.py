"""Predictors of a distance, from what a forward pass tells to a few geometric steps.

They form a ladder. `Margin` looks at values only. `FirstOrder` divides them by the slope, inside the box. `AlongTheWay`
adds how the spacing of contours changes towards the foot. `Krylov` adds their curvature, all of it measured round the
point at the scale of the first-order distance. `FootPoints` moves: it looks again where the last look said the contour
is, and needs one gradient for each. `Clever` (Weng et al. 2018) samples slopes in a ball. `scales.ManyScales` goes further.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isoresponse.contour import refine, search
from isoresponse.crossing import Problem
from isoresponse.krylov import krylov_secants
from isoresponse.loop import Status, failed, mark, status_tensor
from isoresponse.neuron import Neuron
from isoresponse.norms import INF, nearest_in_plane, size
from isoresponse.operators import secant_product
from isoresponse.prediction import UNLIKELY, Boundaries, Doubt, Prediction, Predictor

PART = 0.7  # of the way from foot to foot that a step goes: a full one overshoots where contours are bent
CREDIBLE = 0.7  # a foot is believed where it leaves less than this part of the gap
SETTLED = 0.05  # relative change of the distance below which a foot has settled
ASYMMETRIC = 0.5  # of measured second derivatives, beyond which a kink is suspected
MODEL_STEPS = 60  # of the search on a quadratic model; they cost no pass through the network


@dataclass(frozen=True, eq=False)
class Feet:
    """The first order of every boundary: the nearest point of its tangent plane inside the box; one gradient each."""

    way: Tensor  # (boundary, n)
    distance: Tensor  # (boundary,): infinite where the plane is out of reach
    gradient: Tensor  # (boundary, n)
    status: Tensor

    @classmethod
    def of(cls, ask: Boundaries, inside_box: bool = True) -> Feet:
        """At the starts."""
        problem = ask.each
        excess, gradient = problem.excess_and_grad(problem.start)
        room = problem.room(problem.start)
        if not inside_box:
            room = (torch.full_like(gradient, -INF), torch.full_like(gradient, INF))
        way, exists = nearest_in_plane(-excess, gradient, *room, problem.norm)
        status = first_order_status(excess, gradient, exists)
        distance = size(way, problem.norm).masked_fill(failed(status), INF)
        return cls(way, distance, gradient, status)


@dataclass(frozen=True)
class Margin:
    """The gap in response, forward passes only: it ranks cases, and has response units until calibrated."""

    def __call__(self, ask: Boundaries) -> Prediction:
        """The prediction (case,) for these boundaries."""
        none = torch.zeros_like(ask.below, dtype=torch.int64)
        nowhere = torch.full_like(ask.decision.start, float("nan"))
        first = ask.nearest(-ask.gaps)
        return Prediction.of(
            nowhere, status_tensor(Status.DONE, ask.below), ask.norm,
            distance=-ask.below, rival=ask.rival[first], gradients=none, forwards=none,
        )  # fmt: skip


@dataclass(frozen=True)
class FirstOrder:
    """Gap over slope: the distance to the nearest tangent plane. One gradient per boundary.

    Parameters
    ----------
    inside_box
        False: as if inputs were unbounded, the score that divides the margin by the (dual) norm of the gradient.
    """

    inside_box: bool = True

    def __call__(self, ask: Boundaries) -> Prediction:
        """The prediction (case,) for these boundaries."""
        feet = Feet.of(ask, self.inside_box)
        ones = ask.count(torch.ones_like(ask.owner))
        return _nearest(ask, feet.distance, feet.way, feet.status, ones, ones)


@dataclass(frozen=True)
class AlongTheWay:
    """First order, and how the spacing of contours changes on the way to its foot; one forward pass more per likely boundary.

    The response along the way is the parabola through its value and slope at the start and its value at the foot. (Second
    derivatives at the start itself are zero on piecewise linear networks.)
    """

    unlikely: float = UNLIKELY

    def __call__(self, ask: Boundaries) -> Prediction:
        """The prediction (case,) for these boundaries."""
        feet = Feet.of(ask)
        chosen = ask.likely(feet.distance, self.unlikely)
        some, way, distance, status = ask.select(chosen), feet.way[chosen], feet.distance[chosen], feet.status[chosen]
        there = some.each.excess(some.each.clip(some.each.start + way))
        slope = (feet.gradient[chosen] * way).sum(1)
        bend = there - some.gaps - slope
        # the smaller root t > 0 of gaps + slope t + bend t^2, written so that bend may vanish
        under = slope.square() - 4 * bend * some.gaps
        part = -2 * some.gaps / (slope + under.clamp_min(0).sqrt())
        status = mark(status, ((under < 0) & (status == int(Status.DONE)), Status.UNREACHABLE))
        forwards = ask.count(torch.ones_like(ask.owner)) + some.count(torch.ones_like(some.owner))
        return _nearest(
            some, part * distance, part[:, None] * way, status, ask.count(torch.ones_like(ask.owner)), forwards,
            spread=part.clamp_min(1e-6).log().abs(), doubt=_blind(some, there),
        )  # fmt: skip


@dataclass(frozen=True)
class Krylov:
    """The 2-jet at the scale of the first-order distance, curvature in `steps` directions, solved inside the box.

    All that geometry round the point knows. `steps` gradients more per likely boundary.

    Raises ValueError for `steps` below 1.
    """

    steps: int = 2
    unlikely: float = UNLIKELY

    def __post_init__(self) -> None:
        _require_steps(self.steps)

    def __call__(self, ask: Boundaries) -> Prediction:
        """The prediction (case,) for these boundaries."""
        feet = Feet.of(ask)
        chosen = ask.likely(feet.distance, self.unlikely)
        some, way = ask.select(chosen), feet.way[chosen]
        problem, status = some.each, feet.status[chosen]
        neuron = problem.rising()
        measured = krylov_secants(neuron, problem.start, some.gaps, feet.gradient[chosen], way, self.steps)
        given = (problem.start, some.gaps, feet.gradient[chosen], measured.basis, measured.images)
        model = Neuron(_quadratic, neuron.shape, neuron.box, "2-jet", given)
        zero = torch.zeros_like(some.gaps)
        asked = Problem(model, problem.start, zero, zero + 1, problem.norm)
        first = problem.clip(problem.start + way)
        nearby = ask.norm == 2.0  # elsewhere the search must begin on the model's contour, or at the start
        answer = search(asked, first, MODEL_STEPS, 1e-3) if nearby else refine(asked, problem.start, MODEL_STEPS, 1e-3)
        told = (status == int(Status.DONE)) | (status == int(Status.UNREACHABLE))
        status = torch.where(told, answer.status, status)
        status = mark(status, (status == int(Status.BLOCKED), Status.UNREACHABLE))  # by its quadratic, inside the box
        # searched to the limit of its steps, a model's answer is still the model's answer
        status = mark(status, ((status == int(Status.STALLED)) | (status == int(Status.MAX_STEPS)), Status.DONE))
        spent = ask.count(torch.ones_like(ask.owner)) + self.steps * some.count(torch.ones_like(some.owner))
        moved = answer.point - problem.start
        ratio = size(moved, ask.norm) / size(way, ask.norm).clamp_min(1e-30)
        kink = (measured.asymmetry > ASYMMETRIC).long() * int(Doubt.KINK)
        return _nearest(
            some, size(moved, ask.norm), moved, status, spent, spent, spread=ratio.log().abs(), doubt=kink
        )  # fmt: skip


@dataclass(frozen=True)
class FootPoints:
    """A few geometric steps: look where the last plane said the contour is, and replace the contour by the plane seen there.

    The distance is that of the last plane's foot; the ray through the last point looked at gives another one, which
    is longer where the contour bends away, and so a measure of what is not yet settled. Each step goes `PART` of the
    way to the new foot. One gradient per step and likely boundary; boundaries that fall behind are given up.

    Raises ValueError for `steps` below 1.
    """

    steps: int = 3
    unlikely: float = UNLIKELY

    def __post_init__(self) -> None:
        _require_steps(self.steps)

    def __call__(self, ask: Boundaries) -> Prediction:
        """The prediction (case,) for these boundaries."""
        feet = Feet.of(ask)
        spent = ask.count(torch.ones_like(ask.owner))
        some, way, distance, status = ask, feet.way, feet.distance, feet.status
        doubt, turned = torch.zeros_like(ask.owner), torch.zeros_like(distance)
        for step in range(self.steps):
            factor = self.unlikely if step < 2 else 1 + 0.5 * (self.unlikely - 1)  # later feet are better known
            chosen = some.likely(distance, factor)
            some, way, distance, status = some.select(chosen), way[chosen], distance[chosen], status[chosen]
            doubt, before = doubt[chosen], distance
            problem = some.each
            excess, gradient = problem.excess_and_grad(problem.clip(problem.start + way))
            spent = spent + some.count(torch.ones_like(some.owner))
            rise = (gradient * way).sum(1)
            foot, exists = nearest_in_plane(rise - excess, gradient, *problem.room(problem.start), ask.norm)
            if step == 0:
                doubt = doubt | _blind(some, excess)
            finite = torch.isfinite(excess) & torch.isfinite(gradient).all(1)
            seen = first_order_status(torch.full_like(excess, -1.0), gradient, exists)
            status = mark(seen, (~finite, Status.NOT_FINITE), (status == int(Status.FLAT), Status.FLAT))
            distance = size(foot, ask.norm).masked_fill(failed(status), INF)
            part = (1 - excess / torch.where(rise > 0, rise, torch.ones_like(rise))).clamp(0.1, 10.0)
            ray = torch.where(rise > 0, part, torch.full_like(part, 10.0)) * size(way, ask.norm)
            turned = size(foot - way, 2.0) / size(way, 2.0).clamp_min(1e-30)
            way = way + PART * (foot - way)
        change = (distance / before).log().abs()
        spread = (ray / distance.clamp_min(1e-30)).log().abs() + change.nan_to_num(nan=10.0, posinf=10.0)
        doubt = doubt | (change.nan_to_num(nan=INF) > SETTLED).long() * int(Doubt.UNSETTLED)
        doubt = doubt | (turned > 1).long() * int(Doubt.FOCUSING) | _boxed(problem, foot, gradient)
        return _nearest(some, distance, foot, status, spent, spent, spread=spread, doubt=doubt)


@dataclass(frozen=True)
class Clever:
    """Gap over the largest slope near by (Weng et al. 2018), the score known as CLEVER.

    Slopes are sampled in a ball of the radius of the first-order distance (theirs is fixed); their largest possible value is
    estimated from the largest two of them (Robson and Whitlock 1964) in the place of a Weibull fit, which takes thousands.

    Raises ValueError for fewer than 2 `samples`.
    """

    samples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, got {self.samples}.")

    def __call__(self, ask: Boundaries) -> Prediction:
        """The prediction (case,) for these boundaries."""
        feet = Feet.of(ask)
        problem = ask.each
        dual = {1.0: INF, 2.0: 2.0, INF: 1.0}[ask.norm]
        reach = ask.table(feet.distance).amin(1)[ask.owner]
        reach = torch.where(torch.isfinite(reach), reach, torch.ones_like(reach))
        generator = torch.Generator().manual_seed(self.seed)
        slopes = [size(feet.gradient, dual)]
        for _ in range(self.samples):
            step = torch.randn(problem.start.shape[1], generator=generator, dtype=torch.float64).to(problem.start)[None]
            length = torch.rand((), generator=generator).item()
            point = problem.clip(problem.start + length * reach[:, None] * step / size(step, ask.norm)[:, None])
            slopes.append(size(problem.excess_and_grad(point)[1], dual))
        largest, second = torch.stack(slopes, 1).topk(2, dim=1).values.unbind(1)
        steepest = 2 * largest - second
        distance = (-ask.gaps / steepest.clamp_min(1e-30)).masked_fill(steepest == 0, INF)
        status = mark(status_tensor(Status.DONE, distance), (steepest == 0, Status.FLAT))
        spent = (self.samples + 1) * ask.count(torch.ones_like(ask.owner))
        nowhere = torch.full_like(feet.way, float("nan"))
        return _nearest(ask, distance, nowhere, status, spent, spent)


def _nearest(
    ask: Boundaries,
    distance: Float[Tensor, " boundary"],
    way: Float[Tensor, "boundary n"],
    status: Int[Tensor, " boundary"],
    gradients: Int[Tensor, " case"],
    forwards: Int[Tensor, " case"],
    *,
    spread: Float[Tensor, " boundary"] | None = None,
    doubt: Int[Tensor, " boundary"] | None = None,
) -> Prediction:
    """The prediction made of the nearest boundary of each case."""
    distance = distance.masked_fill(failed(status) | distance.isnan(), INF)
    best = ask.nearest(distance)
    status = mark(status, (distance.isinf() & ~failed(status), Status.UNREACHABLE))
    return Prediction.of(
        way[best], status[best], ask.norm, distance=distance[best], rival=ask.rival[best],
        spread=None if spread is None else spread[best], doubt=None if doubt is None else doubt[best],
        gradients=gradients, forwards=forwards,
    )  # fmt: skip


def _blind(ask: Boundaries, excess: Float[Tensor, " boundary"]) -> Int[Tensor, " boundary"]:
    """The flag of a first foot that leaves most of the gap."""
    return (excess.abs() > CREDIBLE * ask.gaps.abs()).long() * int(Doubt.BLIND)


def _boxed(problem: Problem, way: Float[Tensor, "case n"], gradient: Float[Tensor, "case n"]) -> Int[Tensor, " case"]:
    """The flag of a displacement of which half, by energy of the gradient, is held at the bounds."""
    lower, upper = problem.room(problem.start)
    held = ((gradient > 0) & (way >= upper)) | ((gradient < 0) & (way <= lower))
    share = gradient.square().masked_fill(~held, 0.0).sum(1) / gradient.square().sum(1).clamp_min(1e-30)
    return (share > 0.5).long() * int(Doubt.BOX)


def _quadratic(x: Tensor, start: Tensor, value: Tensor, gradient: Tensor, basis: Tensor, images: Tensor) -> Tensor:
    d = x - start
    return value + (gradient * d).sum(1) + 0.5 * (d * secant_product(basis, images, d)).sum(1)


def first_order_status(excess: Tensor, gradient: Tensor, reachable: Tensor) -> Tensor:
    """How a first-order prediction ended (case,), from `excess` (case,), `gradient` (case, n) and its plane's reach."""
    finite = torch.isfinite(excess) & torch.isfinite(gradient).all(1)
    return mark(
        status_tensor(Status.DONE, excess),
        (~reachable, Status.UNREACHABLE),
        ((gradient == 0).all(1), Status.FLAT),
        (~finite, Status.NOT_FINITE),
        (excess > 0, Status.ALREADY),
    )


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")


TIERS: tuple[Predictor, ...] = (Margin(), FirstOrder(), AlongTheWay(), Krylov(), FootPoints())  # by cost


def as_predictor(predictor: Predictor | int) -> Predictor:
    """The predictor of a tier, or the one that is given.

    Raises ValueError for a tier that there is not, TypeError for what is neither.
    """
    if isinstance(predictor, int) and not isinstance(predictor, bool):
        if not 0 <= predictor < len(TIERS):
            raise ValueError(
                f"predictor must be a tier of cost from 0 (margin) to {len(TIERS) - 1} (foot points), or a predictor, "
                f"got {predictor}."
            )
        return TIERS[predictor]
    if isinstance(predictor, type):
        raise TypeError(
            f"predictor must be a Predictor, got the class {predictor.__name__}; write {predictor.__name__}()."
        )
    if isinstance(predictor, bool) or not callable(predictor):
        raise TypeError(f"predictor must be a tier of cost or a Predictor, got {type(predictor).__name__}.")
    return predictor
