"""How far a decision or a level is, told without searching for it: what is asked, who answers, and what an answer holds.

A `Predictor` is anything that is given `Boundaries` and returns a `Prediction`. The built-in ones form a ladder of cost
(`predictors`): the margin, the first order inside the box, the change of spacing on the way, curvature in a Krylov
space, foot points, and a look at several scales (`scales`), which networks trained to be robust need. `calibrate` wraps any
of them, a user's own included, so that its predictions come with an interval that holds as often as it says.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Problem
from isoresponse.loop import Status, failed, mark, put, status_tensor
from isoresponse.neuron import Neuron
from isoresponse.norms import size

UNLIKELY = 1.5  # a boundary this many times farther than the nearest, to first order, is given up


class Doubt(enum.IntFlag):
    """Reasons not to trust a prediction; `sentences` says them in words."""

    BOX = 1
    BLIND = 2
    UNSETTLED = 4
    FOCUSING = 8
    KINK = 16
    LONELY = 32

    @property
    def sentences(self) -> list[str]:
        """One sentence per reason."""
        return [_REASONS[d] for d in Doubt if d in self]


_REASONS = {
    Doubt.BOX: "half of what the perturbation would move, by size, is held at the bounds of the box",
    Doubt.BLIND: "the first linearisation does not see the contour: most of the gap is left where it says the contour is; "
    "iso.ManyScales() looks further",
    Doubt.UNSETTLED: "the last step still changed the distance by more than a twentieth",
    Doubt.FOCUSING: "the contour bends towards the input about as sharply as it is far: its nearest point lies aside",
    Doubt.KINK: "gradient differences are far from symmetric: a kink lies on the way",
    Doubt.LONELY: "places looked at from far apart lead to very different distances: there may be nearer ones",
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted distances, one per case, with what is known of their quality and what they cost.

    A case without a prediction is NaN and says why in `status`. `low` and `high` are NaN until a predictor is calibrated.
    """

    distance: Tensor = axes("case", units="input", about="predicted distance in the norm asked for")
    low: Tensor = axes("case", units="input", about="lower end of its interval")
    high: Tensor = axes("case", units="input", about="upper end of its interval")
    spread: Tensor = axes(
        "case", about="disagreement of the predictor's own estimates, as a log ratio; 0 for a single one"
    )
    displacement: Tensor = axes(
        "case", "*shape", units="input", about="predicted perturbation, NaN where there is none"
    )
    rival: Tensor = axes("case", about="class whose boundary it is, -1 for a level")
    doubt: Tensor = axes("case", about="reasons not to trust it, flags of Doubt")
    status: Tensor = axes("case", about="how the case ended")
    gradients: Tensor = axes("case", about="gradients spent")
    forwards: Tensor = axes("case", about="forward passes spent, those inside gradients included")

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        known = ~failed(self.status)
        median = float(self.distance[known].median()) if bool(known.any()) else float("nan")
        cost = float(self.gradients.double().mean())
        return (
            f"Prediction({int(known.sum())} of {len(self)} cases, median distance {median:.4g}, "
            f"{int((self.doubt > 0).sum())} doubtful, {cost:.1f} gradients per case)"
        )

    @property
    def reasons(self) -> list[list[str]]:
        """For every case the sentences that say why it should not be trusted."""
        return [Doubt(d).sentences for d in self.doubt.tolist()]

    @classmethod
    def of(
        cls,
        displacement: Float[Tensor, "case n"],
        status: Int[Tensor, " case"],
        norm: float,
        *,
        gradients: Int[Tensor, " case"],
        forwards: Int[Tensor, " case"],
        distance: Float[Tensor, " case"] | None = None,
        rival: Int[Tensor, " case"] | None = None,
        spread: Float[Tensor, " case"] | None = None,
        doubt: Int[Tensor, " case"] | None = None,
    ) -> Prediction:
        """The prediction of some displacements; without a `distance` it is their size. Failed cases become NaN."""
        bad, nan = failed(status), float("nan")
        distance = size(displacement, norm) if distance is None else distance
        zero = torch.zeros_like(distance)
        none = torch.full_like(zero, nan)
        return cls(
            distance=distance.masked_fill(bad, nan), low=none, high=none,
            spread=(zero if spread is None else spread.nan_to_num(posinf=10.0)).masked_fill(bad, nan),
            displacement=displacement.masked_fill(bad[:, None], nan),
            rival=torch.full_like(status, -1) if rival is None else rival,
            doubt=torch.zeros_like(status) if doubt is None else doubt.masked_fill(bad, 0),
            status=status, gradients=gradients, forwards=forwards,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Boundaries:
    """What a predictor is asked: the boundaries round each case, all of them and each by itself.

    Points are flat, (case, n). `decision` is the question itself, whose `excess` is positive where a point is across.
    `each` is the same for single boundaries, one per entry of `owner`: the margins between the label and its rivals in
    descending order of the rivals' scores, or the level of a neuron once more.
    """

    decision: Problem
    each: Problem
    owner: Tensor  # (boundary,): the case
    rival: Tensor  # (boundary,): the class, -1 for a level
    below: Tensor  # (case,): excess at the start, negative
    gaps: Tensor  # (boundary,): excess of each at the start

    @property
    def cases(self) -> int:
        """How many cases there are."""
        return len(self.below)

    @property
    def norm(self) -> float:
        """In which distances are meant."""
        return self.decision.norm

    def nearest(self, distance: Float[Tensor, " boundary"]) -> Int[Tensor, " case"]:
        """Index of the nearest boundary of every case; NaN counts as infinite."""
        table = self.table(distance)
        return self.table(torch.arange(len(self.owner), device=self.owner.device), -1).gather(
            1, table.argmin(1, keepdim=True)
        )[:, 0]  # fmt: skip

    def table(self, values: Tensor, missing: float = float("inf")) -> Tensor:
        """Values (boundary,) as (case, place), in the order of `owner`, `missing` (also for NaN) in empty places."""
        number = torch.bincount(self.owner, minlength=self.cases)
        place = torch.arange(len(self.owner), device=self.owner.device) - (number.cumsum(0) - number)[self.owner]
        empty = values.new_full((self.cases, int(number.max())), missing)
        return empty.index_put((self.owner, place), torch.nan_to_num(values, nan=missing, posinf=float("inf")))

    def count(self, spent: Int[Tensor, " boundary"]) -> Int[Tensor, " case"]:
        """What was spent on the boundaries of each case."""
        return torch.zeros_like(self.below, dtype=torch.int64).index_add(0, self.owner, spent)

    def select(self, chosen: Tensor) -> Boundaries:
        """Some of the boundaries (mask); at least one of every case must stay."""
        return replace(
            self, each=self.each.select(torch.nonzero(chosen)[:, 0]), owner=self.owner[chosen], rival=self.rival[chosen],
            gaps=self.gaps[chosen],
        )  # fmt: skip

    def likely(self, distance: Float[Tensor, " boundary"], factor: float = UNLIKELY) -> Tensor:
        """Mask of the boundaries not more than `factor` times as far as the nearest of their case; all where none is known."""
        best = self.table(distance).amin(1)[self.owner]
        return (torch.nan_to_num(distance, nan=float("inf")) <= factor * best) | torch.isinf(best)

    @classmethod
    def of_level(cls, neuron: Neuron, x: Tensor, level: float | Tensor, norm: float) -> Boundaries:
        """The boundary of a neuron: its contour at `level`."""
        problem = Problem.of(neuron, x, level, norm)
        gap = problem.excess(problem.start)
        owner = torch.arange(len(x), device=x.device)
        return cls(problem, problem, owner, torch.full_like(owner, -1), gap, gap)

    def put_to(self, predictor: Predictor, already: Tensor) -> Prediction:
        """The prediction of all cases; asked about are those that are neither across `already` nor without a value."""
        known = torch.isfinite(self.below)
        to_go = torch.nonzero(~already & known).flatten()
        if len(to_go) == self.cases:
            return predictor(self)
        none = torch.zeros_like(already, dtype=torch.int64)
        status = mark(status_tensor(Status.ALREADY, self.below), (~known, Status.NOT_FINITE))
        nowhere = torch.zeros_like(self.decision.start)
        told = Prediction.of(nowhere, status, self.norm, gradients=none, forwards=none)
        told = replace(told, low=told.distance, high=told.distance)
        return put(told, to_go, predictor(self._only(to_go))) if len(to_go) else told

    def _only(self, kept: Int[Tensor, " some"]) -> Boundaries:
        """The boundaries of some cases, in rising order."""
        place = torch.full_like(self.below, -1, dtype=torch.int64)
        place[kept] = torch.arange(len(kept), device=kept.device)
        theirs = torch.nonzero(place[self.owner] >= 0).flatten()
        return Boundaries(
            self.decision.select(kept), self.each.select(theirs), place[self.owner[theirs]], self.rival[theirs],
            self.below[kept], self.gaps[theirs],
        )  # fmt: skip


@runtime_checkable
class Predictor(Protocol):
    """Tells how far the nearest of some boundaries is. Everything it spends on the way it counts in the prediction.

    Examples
    --------
    A user's own: half of the margin.

    >>> import torch
    >>> from isoresponse.neuron import Neuron
    >>> def half(ask):
    ...     nothing = torch.full_like(ask.decision.start, float("nan"))
    ...     none = torch.zeros_like(ask.below, dtype=torch.int64)
    ...     return Prediction.of(nothing, none + 1, ask.norm, gradients=none, forwards=none, distance=-0.5 * ask.below)
    >>> f = Neuron(lambda x: x.sum(1), shape=(2,))
    >>> half(Boundaries.of_level(f, torch.zeros(1, 2), 3.0, 2.0)).distance
    tensor([1.5000])
    """

    def __call__(self, ask: Boundaries) -> Prediction:
        """Prediction (case,) for the boundaries asked about, displacements flat; none of the cases is across already."""
        ...
