"""How far a response is from a level: predicted from geometry alone, and compared with measurement.

A prediction is the distance to the contour of the response's Taylor polynomial at the input, inside the
box: of order 0 the response gap itself (the margin), of order 1 the gap times the contour spacing, of
order 2 with the bending of the contours and the change of their spacing along the way. The polynomial of
order 2 is a neuron like any other, so the search that measures real distances also solves the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.contour import search
from isoresponse.crossing import Problem
from isoresponse.krylov import krylov_secants
from isoresponse.loop import Status, failed, mark, status_tensor
from isoresponse.neuron import Neuron
from isoresponse.norms import nearest_in_plane
from isoresponse.operators import secant_product

KRYLOV_STEPS = 2  # products of the second-order prediction; 1, 2, 4, 8 are compared in benchmarks/digits.py --ablate
MODEL_STEPS = 60  # steps of the search on the quadratic model; they cost no pass through the network


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted distance to a level, one per case; NaN with a status where the model never reaches it.

    For order 0 the distance is the response gap and has response units.
    """

    distance: Tensor = axes("case", units="input", about="predicted Euclidean distance (order 0: response gap)")
    displacement: Tensor = axes("case", "*shape", units="input", about="predicted perturbation (NaN for order 0)")
    status: Tensor = axes("case", about="how the case ended")
    scale: Tensor = axes("case", units="input", about="scale of the second-order measurement, 0 for order < 2")
    error: Tensor = axes("case", about="asymmetry of the measured Hessian; NaN for order < 2")
    gradients: Tensor = axes("case", about="gradients spent")
    forwards: Tensor = axes("case", about="forward passes spent")
    order: int = axes(about="order of the prediction")

    def __repr__(self) -> str:
        known = ~failed(self.status)
        median = float(self.distance[known].median()) if bool(known.any()) else float("nan")
        what = "margin" if self.order == 0 else "distance"
        cost = float(self.gradients.double().mean())
        return (
            f"Prediction(order {self.order}, {int(known.sum())} of {len(self.status)} cases, median {what} {median:.4g}, "
            f"{cost:.1f} gradients per case)"
        )

    @classmethod
    def of(cls, order: int, displacement: Tensor, status: Tensor, **fields: Tensor) -> Prediction:
        """The prediction of displacements (case, *shape): their lengths, NaN where the status is a failure."""
        bad = failed(status).reshape(-1, *[1] * (displacement.ndim - 1))
        displacement = displacement.masked_fill(bad, float("nan"))
        return cls(displacement.flatten(1).norm(dim=1), displacement, status, order=order, **fields)


def predict_distance(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    order: int = 2,
    steps: int = KRYLOV_STEPS,
) -> Prediction:
    """Predicted distance from `x` to the contour at `level`, inside the box, without searching for it.

    Parameters
    ----------
    order
        0: |level - f|, forward passes only. 1: distance to the tangent plane of the contour, one gradient.
        2: distance to the quadratic through the jet at the scale of the first-order prediction,
        `steps` more gradients. Exact Hessians would be zero on ReLU networks.
    steps
        Dimension of the Krylov space in which curvature is measured (order 2).

    Raises
    ------
    ValueError
        Invalid inputs or level, an order other than 0, 1, 2, `steps` below 1.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,))
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> [round(predict_distance(f, x, 100.0, order=k).distance.item(), 4) for k in (0, 1, 2)]
    [75.0, 7.5, 5.0]
    """
    if order not in (0, 1, 2):
        raise ValueError(f"order must be 0 (margin), 1 (spacing) or 2 (curvature), got {order}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    problem = Problem.of(neuron, x, level)
    nan = torch.full_like(problem.level, float("nan"))
    none = torch.zeros_like(problem.level, dtype=torch.int64)
    if order == 0:
        gap = -problem.excess(problem.start)
        done = mark(status_tensor(Status.DONE, gap), (~torch.isfinite(gap), Status.NOT_FINITE))
        zero = torch.zeros_like(gap)
        return Prediction(gap, torch.full_like(x, float("nan")), done, zero, nan, none, none + 2, 0)
    excess, gradient = problem.excess_and_grad(problem.start)
    first, reachable = nearest_in_plane(-excess, gradient, *problem.room(problem.start))
    status = first_order_status(excess, gradient, reachable)
    if order == 1:
        return Prediction.of(
            1,
            first.reshape(x.shape),
            status,
            scale=torch.zeros_like(excess),
            error=nan,
            gradients=none + 1,
            forwards=none + 2,
        )
    signed = _rising(problem)
    hessian = krylov_secants(signed, problem.start, excess, gradient, first, steps)
    taylor = (problem.start, excess, gradient, hessian.basis, hessian.images)
    model = Neuron(_quadratic, signed.shape, signed.box, "2-jet", taylor)
    question = Problem(model, problem.start, torch.zeros_like(excess), torch.ones_like(excess))
    answer = search(question, problem.clip(problem.start + first), MODEL_STEPS, 1e-3)
    status = torch.where((status == int(Status.DONE)) | (status == int(Status.UNREACHABLE)), answer.status, status)
    displacement = answer.point - problem.start
    spent = none + 1 + steps
    return Prediction.of(
        2, displacement.reshape(x.shape), status,
        scale=first.norm(dim=1), error=hessian.asymmetry, gradients=spent, forwards=spent + 1,
    )  # fmt: skip


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
    distance = predict_distance(neuron, x, level, order=1).distance
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


def _quadratic(x: Tensor, start: Tensor, value: Tensor, gradient: Tensor, basis: Tensor, images: Tensor) -> Tensor:
    d = x - start
    return value + (gradient * d).sum(1) + 0.5 * (d * secant_product(basis, images, d)).sum(1)


def _rising(problem: Problem) -> Neuron:
    """The problem's signed excess as a neuron."""
    inner = problem.neuron
    return Neuron(
        lambda x, sign, level, *given: sign * (inner.response(x, *given) - level),
        inner.shape, inner.box, inner.name, (problem.sign, problem.level, *inner.given),
    )  # fmt: skip


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
