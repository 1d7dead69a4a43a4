"""Predictions with intervals that hold as often as they say, learned from cases whose distance is known.

A predictor is asked about cases that have been measured. What is left between its answers and the measured distances
has a typical size that differs from case to case: it is larger where the predictor's own estimates disagree and where it has
doubts. That size is learned, and the residuals in its unit give the interval, conformally (Papadopoulos et al. 2002;
Romano et al. 2019): whatever the predictor and however wrong it is, new cases of the same kind fall inside as often as
promised, on average. Each residual is judged by a model learned without it (cross-conformal, Vovk 2015), so every measured
case serves both purposes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse.loop import failed
from isoresponse.prediction import Boundaries, Prediction, Predictor
from isoresponse.predictors import as_predictor

FOLDS = 30  # fewer leave the models that judge worse than the one that is used, and intervals too wide
LEAST = 1e-4  # log units: a residual below that is as good as none
NARROWEST, WIDEST = 0.1, 10.0  # typical sizes, relative to their median: what the model may say
RIDGE = 1.0  # cases' worth of shrinkage of the size model towards one size for all


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A predictor with a scale and an interval; ask it as any other. Made by `calibrate`.

    The calibrated distance is exp(offset) times the predicted one to the power `slope`: a straight line in logarithms, of
    positive slope, so it never changes the order of cases. It also turns a margin, in response units, into a distance.
    """

    predictor: Predictor
    coverage: float
    offset: float
    slope: float
    size: Tensor  # (3,): log typical residual = size . (1, log spread, doubtful)
    typical: float  # the median of that
    lower: float  # quantiles of the residuals in units of their typical size
    upper: float
    cases: int  # that it was learned from

    def __call__(self, ask: Boundaries) -> Prediction:
        """What the predictor says, on the learned scale and with the learned interval."""
        return self.refined(self.predictor(ask))

    def __repr__(self) -> str:
        return (
            f"Calibrated({self.predictor}, {100 * self.coverage:g} % from {self.cases} cases, slope {self.slope:.3g}, "
            f"typical error {100 * math.exp(self.typical):.2g} %)"
        )

    def refined(self, told: Prediction) -> Prediction:
        """A prediction of the predictor with distance and interval as learned; displacements stay as they are."""
        middle = self.offset + self.slope * told.distance.log()
        scale = _scale(told, self.size, self.typical).to(middle)
        known = ~failed(told.status) & (told.distance > 0)
        ends = (middle.exp(), (middle + self.lower * scale).exp(), (middle + self.upper * scale).exp())
        distance, low, high = (torch.where(known, end, told.distance) for end in ends)
        return replace(told, distance=distance, low=low, high=high)


def calibrate(
    predictor: Predictor | int,
    told: Prediction,
    measured: Float[Tensor, " case"],
    *,
    coverage: float = 0.9,
) -> Calibrated:
    """The predictor with an interval that holds the measured distance in the part `coverage` of cases like these.

    Parameters
    ----------
    predictor
        A `Predictor`, or its tier of cost as in `predict_distance`.
    told
        What it said about some cases, by `predict_distance`, in the norm in which it will be asked.
    measured
        Their distances (case,), from `closest_point` or `closest_adversary`. Cases without either number are left out.
    coverage
        Between 0 and 1.

    Raises
    ------
    ValueError
        Different numbers of cases, a coverage outside (0, 1), or too few cases for it: 19 for 90 %, 39 for 95 %; a tier that
        there is not.

    Notes
    -----
    The promise holds on average over cases, not for each kind of them, and only for cases like those it was learned
    from: the same network, the same norm, inputs drawn alike. Measured distances are upper bounds, so an interval is one
    for what *that* search would find.

    Examples
    --------
    >>> import torch
    >>> from isoresponse.neuron import Neuron
    >>> from isoresponse.susceptibility import predict_distance
    >>> from isoresponse.predictors import FirstOrder
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,))
    >>> x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) + 1
    >>> truth = 4 - x.norm(dim=1)
    >>> told = predict_distance(f, x, 16.0, predictor=FirstOrder())
    >>> better = calibrate(FirstOrder(), told, truth)
    >>> seen = predict_distance(f, x, 16.0, predictor=better)
    >>> inside = ((seen.low <= truth) & (truth <= seen.high)).double().mean().item()
    >>> 0.85 < inside < 0.95
    True
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}.")
    if measured.shape != told.distance.shape:
        raise ValueError(f"measured must have shape ({len(told)},), one per case told, got {tuple(measured.shape)}.")
    predictor = as_predictor(predictor)
    distance, measured = told.distance.detach().double().cpu(), measured.detach().double().cpu()
    both = torch.isfinite(distance) & (distance > 0) & torch.isfinite(measured) & (measured > 0)
    needed = math.ceil(2 / (1 - coverage) - 1 - 1e-9)
    if int(both.sum()) < needed:
        raise ValueError(
            f"an interval of {100 * coverage:g} % needs at least {needed} cases with both distances, got "
            f"{int(both.sum())}; measure more, or ask for less coverage."
        )
    x, y, about = distance[both].log(), measured[both].log(), _about(told)[both]
    fold = torch.arange(len(x)) % FOLDS
    scores = torch.empty_like(x)
    for k in range(FOLDS):
        out = fold == k
        offset, slope = _line(x[~out], y[~out])
        residual = y - offset - slope * x
        size, typical = _sizes(residual[~out], about[~out])
        scores[out] = residual[out] / _scale_of(about[out], size, typical)
    offset, slope = _line(x, y)
    size, typical = _sizes(y - offset - slope * x, about)
    tail = 0.5 * (1 - coverage)
    lower, upper = _quantile(scores, tail), _quantile(scores, 1 - tail)
    return Calibrated(predictor, coverage, offset, slope, size, typical, lower, upper, len(x))


def _about(told: Prediction) -> Tensor:
    """What the typical residual depends on (case, 3): one, log of the spread, whether there are doubts."""
    spread = told.spread.detach().double().cpu().nan_to_num(nan=0.0, posinf=10.0).clamp(0, 10)
    doubtful = (told.doubt > 0).double().cpu()
    return torch.stack([torch.ones_like(spread), (spread + 10 * LEAST).log(), doubtful], 1)


def _scale(told: Prediction, size: Tensor, typical: float) -> Tensor:
    return _scale_of(_about(told), size, typical)


def _scale_of(about: Tensor, size: Tensor, typical: float) -> Tensor:
    """Typical residual (case,), in log units."""
    return (about @ size).clamp(typical + math.log(NARROWEST), typical + math.log(WIDEST)).exp()


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Offset and slope of a robust rising line: the median of the slopes between pairs of points (Theil 1950, Sen 1968)."""
    dx, dy = x[:, None] - x, y[:, None] - y
    apart = dx > 0
    slope = float((dy[apart] / dx[apart]).median()) if bool(apart.any()) else 1.0
    slope = max(slope, 1e-3)
    return float((y - slope * x).median()), slope


def _sizes(residual: Tensor, about: Tensor) -> tuple[Tensor, float]:
    """Weights of log |residual| on what it depends on, the two that are not constant shrunk and not negative."""
    target = residual.abs().clamp_min(LEAST).log()
    middle = about.mean(0)
    middle[0] = 0.0
    a = about - middle
    penalty = RIDGE * torch.diag(torch.tensor([0.0, 1.0, 1.0], dtype=a.dtype))
    weights = torch.linalg.solve(a.T @ a + penalty, a.T @ target)
    rising = weights.clamp_min(0.0)
    rising[0] = target.mean() - (middle[1:] @ rising[1:])
    return rising, float((about @ rising).median())


def _quantile(scores: Tensor, part: float) -> float:
    """The value below which a new score falls in this part of draws: between order statistics, of n + 1 places."""
    order = scores.sort().values
    place = min(max(part * (len(order) + 1) - 1, 0.0), len(order) - 1.0)
    low = math.floor(place)
    high = min(low + 1, len(order) - 1)
    return float(order[low] + (place - low) * (order[high] - order[low]))
