"""Is the closest point found also the closest there is? The local answer against the global one.

A search that follows gradients ends at a local optimum, and a measured susceptibility is too large wherever another
part of the contour comes nearer. `local_against_global` asks how often that happens, and by how much: the same search
from many places instead of one. What it finds is the nearest point *known*, so the loss that it reports is a lower bound.
Where inputs have two elements `grid.closest_point_on_grid` gives the true answer to compare with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.classifier import Classifier
from isoresponse.crossing import Solution
from isoresponse.grid import GridSolution
from isoresponse.neuron import Neuron
from isoresponse.solve import closest_point


@dataclass(frozen=True, eq=False)
class LocalGlobal:
    """How far one search says the closest point is, and how far the nearest point known to any search is.

    The local search `loses` a case where its answer is more than `rtol` farther, or where it has none and another search has
    one. A case without any answer, or with a start that is across already, is not `judged`. The nearest point known need not
    be the nearest there is, so a loss rate is a lower bound unless an exact search is among those compared.
    """

    point: Tensor = axes("case", "*shape", units="input", about="the nearest point known")
    d_local: Tensor = axes("case", units="input", about="distance of the local answer")
    d_global: Tensor = axes("case", units="input", about="distance of the nearest point known")
    status: Tensor = axes("case", about="how the search that found it ended")
    gradients_local: Tensor = axes("case", about="gradients that the local search spent")
    gradients_global: Tensor = axes("case", about="gradients that the global search spent")
    forwards_local: Tensor = axes("case", about="forward passes that the local search spent")
    forwards_global: Tensor = axes("case", about="forward passes that the global search spent")
    rtol: float = axes(about="relative excess beyond which the local search loses")

    @classmethod
    def of(cls, local: Solution, other: Solution | GridSolution, *, rtol: float = 0.01) -> LocalGlobal:
        """The comparison of two answers to the same questions; whichever is nearer counts as the global one.

        Raises
        ------
        ValueError
            Answers of different inputs, `rtol` negative or not finite.
        """
        if local.point.shape != other.point.shape:
            raise ValueError(
                "both answers must be to the same inputs, got points of shape "
                f"{tuple(local.point.shape)} and {tuple(other.point.shape)}."
            )
        _require_rtol(rtol)
        far = torch.finfo(local.distance.dtype).max
        second = torch.nan_to_num(other.distance, nan=far) < torch.nan_to_num(local.distance, nan=far)
        return cls(
            point=torch.where(second.reshape(-1, *[1] * (local.point.ndim - 1)), other.point, local.point),
            d_local=local.distance,
            d_global=torch.where(second, other.distance, local.distance),
            status=torch.where(second, other.status, local.status),
            gradients_local=local.gradients,
            gradients_global=other.gradients,
            forwards_local=local.forwards,
            forwards_global=other.forwards,
            rtol=float(rtol),
        )

    @property
    def judged(self) -> Tensor:
        """Which cases (case,) can be lost: some search has an answer, at a distance above zero."""
        return torch.isfinite(self.d_global) & (self.d_global > 0)

    @property
    def ratio(self) -> Tensor:
        """d_local / d_global (case,): infinite where only the global search has an answer, NaN where not judged."""
        ratio = torch.nan_to_num(self.d_local, nan=torch.inf) / self.d_global
        return torch.where(self.judged, ratio, torch.full_like(ratio, torch.nan))

    @property
    def loses(self) -> Tensor:
        """Where (case,) the local answer is more than `rtol` farther than the nearest point known."""
        return self.ratio > 1 + self.rtol

    @property
    def loss_rate(self) -> float:
        """Share of the judged cases that the local search loses; NaN where there is none."""
        judged = int(self.judged.sum())
        return int(self.loses.sum()) / judged if judged else math.nan

    @property
    def loss_rate_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the loss rate; 0 to 1 where no case was judged."""
        judged = int(self.judged.sum())
        if not judged:
            return 0.0, 1.0
        found = scipy.stats.binomtest(int(self.loses.sum()), judged).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def ratio_quantile(self, q: float) -> float:
        """The smallest ratio that at least the share `q` of the judged cases do not exceed; NaN where there is none.

        Raises
        ------
        ValueError
            A share outside 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, got {q}.")
        ratio = self.ratio[self.judged].sort().values
        # not interpolated: between a number and infinity there is none
        return float(ratio[max(0, math.ceil(q * len(ratio)) - 1)]) if len(ratio) else math.nan

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        low, high = self.loss_rate_interval
        median, most = self.ratio_quantile(0.5), self.ratio_quantile(0.95)
        spent = (float(g.double().mean()) for g in (self.gradients_local, self.gradients_global))
        return (
            f"LocalGlobal(the local search loses {int(self.loses.sum())} of {int(self.judged.sum())} cases by more than "
            f"{self.rtol:.2g}: {self.loss_rate:.1%}, 95 % interval {low:.1%} to {high:.1%}; d_local / d_global median "
            f"{median:.4g}, 95 % quantile {most:.4g}; {' against '.join(f'{s:.1f}' for s in spent)} gradients per case)"
        )


def local_against_global(
    subject: Neuron | Classifier,
    x: Float[Tensor, "case *shape"],
    goal: float | Float[Tensor, " case"] | Int[Tensor, " case"],
    *,
    norm: float = 2.0,
    budget: int = 100,
    starts: int = 10,
    generator: torch.Generator,
    rtol: float = 0.01,
) -> LocalGlobal:
    """How often, and by how much, a search from one place finds a farther point than the same search from `starts` places.

    Both are `closest_point` or `closest_adversary`: once with `budget` gradients, once with as many for *each* start. The
    nearer answer counts as the global one.

    Parameters
    ----------
    subject, goal
        A neuron and the level to reach (a number, or one per case), or a classifier and the labels (case,) to be left.
    norm
        In which the change is to be small: 2 (Euclidean), 1 or infinity.
    budget
        Gradients per case and start at most.
    starts
        Places of the global search, at least 2. The first is that of the local one.
    generator
        For the directions of the others.
    rtol
        How much farther, relatively, an answer has to be to count as lost. Differences below a per cent are as often a
        search that has not converged as another part of the contour.

    Raises
    ------
    ValueError
        `starts` below 2, `rtol` negative, and what the search itself refuses.
    TypeError
        A subject that is neither, labels that are not integers.

    Examples
    --------
    >>> import torch
    >>> from isoresponse.neuron import Box
    >>> def hills(x):  # a wide one, whose flank the gradient follows, and a narrow one, nearer, on the other side
    ...     return torch.exp(-(x - 3).square().sum(1) / 8) + torch.exp(-(x + 1.3).square().sum(1))
    >>> f = Neuron(hills, shape=(2,), box=Box(-2.0, 6.0))
    >>> x = torch.tensor([[0.3, 0.4], [2.0, 1.0]])
    >>> found = local_against_global(f, x, 0.8, generator=torch.Generator().manual_seed(0))
    >>> found.d_local, found.d_global
    (tensor([2.4122, 0.9000]), tensor([1.8356, 0.9000]))
    >>> found.loses, found.loss_rate
    (tensor([ True, False]), 0.5)
    """
    if starts < 2:
        raise ValueError(f"starts must be at least 2, got {starts}: the local search is the one with a single start.")
    _require_rtol(rtol)
    if isinstance(subject, Classifier):
        if not isinstance(goal, Tensor):
            raise TypeError(f"for a classifier goal must be the labels, an integer tensor, got {type(goal).__name__}.")
        local = subject.closest_adversary(x, goal, norm=norm, budget=budget)
        widely = subject.closest_adversary(
            x, goal, norm=norm, budget=budget * starts, starts=starts, generator=generator
        )
    elif isinstance(subject, Neuron):
        local = closest_point(subject, x, goal, norm=norm, budget=budget)
        widely = closest_point(subject, x, goal, norm=norm, budget=budget * starts, starts=starts, generator=generator)
    else:
        raise TypeError(f"subject must be a Neuron or a Classifier, got {type(subject).__name__}.")
    return LocalGlobal.of(local, widely, rtol=rtol)


def _require_rtol(rtol: float) -> None:
    """Raise ValueError unless `rtol` can say how much farther is too far."""
    if not 0 <= rtol < math.inf:
        raise ValueError(f"rtol must be at least 0 and finite, got {rtol}.")
