"""How far a response is from a level: predicted from geometry without searching, and compared with measurement.

A prediction has a tier of cost. 0, forward passes only: the response gap itself (the margin). 1, one gradient: the gap times
the contour spacing. 2, one more look: how the spacing changes on the way. 3, a few gradients round the point: how the contours
bend. 4, geometric steps: look again where the last look said the contour is. All but the first know the box.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse.loop import join
from isoresponse.neuron import Neuron
from isoresponse.norms import require_norm
from isoresponse.prediction import Boundaries, Prediction, Predictor
from isoresponse.predictors import as_predictor

BATCH = 256  # cases predicted together


def predict_distance(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    predictor: Predictor | int = 4,
    norm: float = 2.0,
) -> Prediction:
    """Predicted distance from `x` to the contour at `level`, inside the box, without searching for it.

    Parameters
    ----------
    predictor
        A tier of cost: 0 the gap |level - f|, in response units; 1 the tangent plane; 2 the spacing's change on the way;
        3 the 2-jet at the scale of that first order, in a Krylov space; 4 foot points. Or any predictor: those of
        `predictors` with other settings, `ManyScales` for networks trained to be robust, a calibrated one (`calibrate`),
        which also gives intervals, or a function of yours (`Predictor`).
    norm
        In which the distance is meant: 2, 1 or infinity.

    Raises
    ------
    ValueError, TypeError
        Invalid inputs or level, an unknown norm or tier, something that cannot be asked.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,))
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> [round(predict_distance(f, x, 100.0, predictor=tier).distance.item(), 2) for tier in (0, 1, 2, 3, 4)]
    [75.0, 7.5, 5.0, 5.0, 5.0]
    """
    asked = as_predictor(predictor)
    require_norm(norm)
    neuron.require_inputs(x)
    levels = torch.as_tensor(level, dtype=x.dtype, device=x.device)
    parts = []
    for i in torch.arange(len(x), device=x.device).split(BATCH):
        theirs = levels[i] if levels.shape == x.shape[:1] else levels
        ask = Boundaries.of_level(neuron.select(i), x[i], theirs, norm)
        told = ask.put_to(asked, ask.below == 0)
        parts.append(replace(told, displacement=told.displacement.reshape(x[i].shape), forwards=told.forwards + 2))
    return join(parts)


def propose_scale(
    neuron: Neuron, x: Float[Tensor, "case *shape"], level: float | Float[Tensor, " case"]
) -> Float[Tensor, " case"]:
    """The scale (case,), in input units, at which curvature matters for reaching `level`: the predicted perturbation's size.

    The first-order distance inside the box, for one gradient. NaN where that is not known (then a jet at this scale has a
    status for the case). For `smoothed_jet`, whose scale is per direction, divide it by the root of the number of
    directions to get draws of that length.

    Raises ValueError for invalid inputs or levels.

    Examples
    --------
    >>> import torch
    >>> from isoresponse import secant_jet
    >>> f = Neuron(lambda x: (x.relu() * torch.tensor([3.0, 4.0])).sum(1), shape=(2,))
    >>> x = torch.ones(1, 2)
    >>> scale = propose_scale(f, x, level=12.0)
    >>> scale
    tensor([1.])
    >>> secant_jet(f, x, scale=scale).estimator
    'secant'
    """
    distance = predict_distance(neuron, x, level, predictor=1).distance
    return torch.where(distance > 0, distance, torch.full_like(distance, float("nan")))


@dataclass(frozen=True)
class Comparison:
    """Agreement of predicted with measured distances, over the cases where both exist.

    `spearman` and `kendall` (tau-b) compare ranks. `r2` is the share of the variance of the measured
    distances that the prediction *as it is* accounts for (no line is fitted; negative where it is worse
    than their mean), `median_abs_log_error` the median of |log(predicted / measured)|, `bias` the median
    of the log ratio itself (negative: predicted too small). NaN where fewer than three cases are left.
    `cases` have both numbers, `failed` have no prediction, `unmeasured` a prediction but no measured distance.
    """

    spearman: float
    kendall: float
    r2: float
    median_abs_log_error: float
    bias: float
    cases: int
    failed: int
    unmeasured: int


def compare(predicted: Float[Tensor, " case"], measured: Float[Tensor, " case"]) -> Comparison:
    """How well predicted distances agree with measured ones; both (case,), NaN where there is none.

    Raises
    ------
    ValueError
        Different numbers of cases.
    """
    predicted, measured = torch.as_tensor(predicted), torch.as_tensor(measured)
    if predicted.shape != measured.shape or predicted.ndim != 1:
        raise ValueError(
            f"predicted and measured must both have shape (case,), got {tuple(predicted.shape)} and {tuple(measured.shape)}."
        )
    told, found = (t.detach().double().cpu().numpy() for t in (predicted, measured))
    both = np.isfinite(told) & np.isfinite(found) & (told > 0) & (found > 0)
    failed_cases = int((~np.isfinite(told)).sum())
    unmeasured = int((np.isfinite(told) & ~np.isfinite(found)).sum())
    told, found = told[both], found[both]
    if len(told) < 3 or np.ptp(told) == 0 or np.ptp(found) == 0:
        nan = float("nan")
        return Comparison(nan, nan, nan, nan, nan, len(told), failed_cases, unmeasured)
    log_ratio = np.log(told / found)
    return Comparison(
        spearman=float(scipy.stats.spearmanr(told, found).statistic),
        kendall=float(scipy.stats.kendalltau(told, found).statistic),
        r2=float(1 - np.square(told - found).sum() / np.square(found - found.mean()).sum()),
        median_abs_log_error=float(np.median(np.abs(log_ratio))),
        bias=float(np.median(log_ratio)),
        cases=len(told),
        failed=failed_cases,
        unmeasured=unmeasured,
    )
