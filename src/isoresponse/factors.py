"""What a distance is made of: gap, spacing, its rate, turning, bending and the box, measured at the input.

The smallest perturbation is, exactly, the response gap times the contour spacing, times what the contours do on the way. Up
to second order that is the 2-jet, which in the frame of the steepest direction has three blocks: the change of
the spacing (N'HN/|g|), the turning of the path (PHN/|g|) and the bending of the contour (PHP/|g|). And there is the
box, which holds elements that would leave it. `level_factors` and `adversary_factors` measure them for every case, with
the Hessian taken at the scale of the first-order perturbation, and compute the distance with every subset of them switched
on. `explain` shares out the variance of measured distances among them.

Nothing here is told where the measured perturbation ended: with the geometry at its end any model of the way would come
out right. And nothing is fitted: factors enter with the exponents that geometry gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.classifier import Classifier
from isoresponse.contour import search
from isoresponse.crossing import Problem
from isoresponse.krylov import krylov_secants
from isoresponse.loop import Status, failed, join, mark, status_tensor
from isoresponse.neuron import Box, Neuron, flatten
from isoresponse.norms import nearest_in_plane
from isoresponse.prediction import UNLIKELY
from isoresponse.rivals import first_smallest
from isoresponse.shares import in_order, places, subsets

FACTORS = ("gap", "spacing", "rate", "turning", "bending", "box")
FURTHER = "further"  # the seventh, where a look beyond the jet is given
BATCH = 32  # cases measured together, each with every subset of the blocks
MODEL_STEPS, MODEL_RTOL = 60, 1e-4  # of the search on the quadratic model; it costs no pass through the network
MOST_RIVALS = 9  # boundaries looked at


@dataclass(frozen=True, eq=False)
class Factors:
    """For every case the measured distance, and the distances that geometry gives with some of its parts switched on.

    Column s of `distance` has the blocks on whose bit is set in s: 1 rate, 2 turning, 4 bending, 8 box. Column 0 is gap times
    spacing. Where a block leaves no way to the contour (`blind`) it has no say: the distance is that without it.
    """

    measured: Tensor = axes("case", units="input", about="measured distance")
    gap: Tensor = axes("case", units="response", about="response between the input and the level")
    spacing: Tensor = axes("case", units="input/response", about="distance of neighbouring contours at the input")
    distance: Tensor = axes("case", "subset", units="input", about="distance with a subset of the blocks switched on")
    further: Tensor = axes("case", units="input", about="distance told by a look beyond the jet, NaN without one")
    blind: Tensor = axes("case", about="whether some block left no way to the contour")
    rival: Tensor = axes("case", about="class whose boundary it is, -1 for a level")
    model: Tensor = axes("case", about="which of the pooled models it is")
    gradients: Tensor = axes("case", about="gradients spent")
    status: Tensor = axes("case", about="whether the case has all factors")

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        sound = ~failed(self.status) & (self.status != int(Status.ALREADY))
        return f"Factors({int(sound.sum())} of {len(self)} cases, {int(self.blind.sum())} of them blind in some block)"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the factors: the seventh, `further`, only where a look beyond the jet was given."""
        return FACTORS if bool(self.further.isnan().all()) else (*FACTORS, FURTHER)

    def logs(self) -> Float[Tensor, "subset case"]:
        """Log of the distance (up to a constant) that every subset of the factors tells; bit k is factor k of `names`."""
        member = subsets(len(self.names)).to(self.gap)
        blocks = (member[:, 2:6] @ torch.tensor([1.0, 2.0, 4.0, 8.0]).to(member)).long()
        bent = (self.distance / self.distance[:, :1]).log().T[blocks]
        told = member[:, :1] * self.gap.log() + member[:, 1:2] * self.spacing.log() + bent
        if len(self.names) > len(FACTORS):
            told = told + member[:, 6:] * (self.further / self.distance[:, -1]).log()
        return told

    def contributions(self, order: Sequence[str] | None = None) -> Float[Tensor, "factor case"]:
        """What each factor adds to the log of the distance when switched on after those before it in `order`."""
        return in_order(places(self.names, order)).to(self.gap) @ self.logs()


def level_factors(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    measured: Float[Tensor, " case"],
    *,
    directions: int = 2,
    further: Float[Tensor, " case"] | None = None,
) -> Factors:
    """What geometry at `x` says of the distance to the contour at `level`, part by part, beside the `measured` distance.

    Parameters
    ----------
    measured
        Euclidean distances (case,), as `closest_point` finds them; NaN (or anything not positive) where there is none.
    directions
        In which the Hessian is measured, at the scale of the first-order perturbation: itself, and what the change of the
        gradient along it adds. One gradient each, twice: along the gradient, and along where the box lets it go.
    further
        Distances (case,) told by a predictor that looks beyond the jet, if its share is asked for too. Where one is not
        finite or not positive it has no say.

    Returns
    -------
    Factors
        Status DONE, ALREADY (at the level), FLAT (the gradient vanishes), NOT_FINITE (or no measured distance).

    Raises
    ------
    ValueError, TypeError
        Invalid inputs or level, distances that are no tensor or of another number, `directions` below 1.
    """
    problem = Problem.of(neuron, x, level)
    _require(x, measured, directions, further)
    parts = []
    for some in torch.arange(len(x), device=x.device).split(BATCH):
        part = problem.select(some)
        distance, blind, gap, spacing, status, spent = _measure(part, directions)
        rival = torch.full_like(status, -1)
        parts.append(_as_factors(distance, blind, gap, spacing, status, rival, spent))
    return _finished(join(parts), measured, further)


def adversary_factors(
    classifier: Classifier,
    x: Float[Tensor, "case *shape"],
    labels: Int[Tensor, " case"],
    measured: Float[Tensor, " case"],
    *,
    directions: int = 2,
    further: Float[Tensor, " case"] | None = None,
) -> Factors:
    """What geometry at `x` says of the distance to the nearest decision boundary, part by part, beside the `measured` one.

    Of the boundaries with the wrong classes it is the one that the whole of the geometry holds nearest, whichever the
    measured perturbation crossed. Parameters as in `level_factors`; `labels` are the classes to be left.

    Raises
    ------
    ValueError, TypeError
        Invalid inputs or labels, distances that are no tensor or of another number, `directions` below 1.
    """
    classifier.require_labelled(x, labels)
    _require(x, measured, directions, further)
    parts = [
        _nearest_boundary(classifier, some, theirs, directions)
        for some, theirs in zip(x.detach().split(BATCH), labels.long().split(BATCH), strict=True)
    ]
    return _finished(join(parts), measured, further)


# --- one boundary ---------------------------------------------------------------------------------------------------


def _measure(problem: Problem, directions: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Distances (case, subset), which are blind, gap, spacing, status and gradients spent, of flat problems."""
    start = problem.start
    excess, gradient = problem.excess_and_grad(start)
    steepness = gradient.norm(dim=1)
    gap = -excess
    status = mark(
        status_tensor(Status.DONE, excess),
        (steepness == 0, Status.FLAT),
        (gap <= 0, Status.ALREADY),
        (~(torch.isfinite(excess) & torch.isfinite(gradient).all(1)), Status.NOT_FINITE),
    )
    sound = status == int(Status.DONE)
    safe = torch.where(sound, steepness, torch.ones_like(steepness))
    unit = torch.where(sound[:, None], gradient / safe[:, None], torch.ones_like(gradient) / gradient.shape[1] ** 0.5)
    straight = torch.where(sound, gap / safe, torch.ones_like(gap))
    gradient, excess = unit * safe[:, None], -straight * safe
    # --- the same jet twice: along the gradient, and along where the box lets it go
    rising = problem.rising()
    free = replace(rising, box=Box())
    ahead = straight[:, None] * unit
    columns = _switched(_frame(free, start, excess, gradient, ahead, directions), straight, None)
    spent = 1 + directions
    lower, upper = problem.room(start)
    if bool(torch.isinf(lower).all() and torch.isinf(upper).all()):
        boxed = columns
    else:
        first, reachable = nearest_in_plane(straight, unit, lower, upper)
        first = torch.where(
            reachable[:, None], first, 0.5 * first
        )  # beyond the box: the scale is half way to its corner
        first = torch.where((first == 0).all(1, keepdim=True), ahead, first)
        frame = _frame(rising, start, excess, gradient, first, directions)
        boxed = _switched(frame, straight, (rising, start, unit, first))
        boxed[0] = first.norm(dim=1).double().masked_fill(~reachable, torch.nan)
        spent += directions
    distance, blind = _without_gaps(torch.stack([*columns, *boxed], 1))
    bad = ~sound[:, None]
    return (
        distance.to(start).masked_fill(bad, torch.nan), blind & sound, gap.masked_fill(~sound, torch.nan),
        (1 / safe).masked_fill(~sound, torch.nan), status, torch.full_like(status, spent),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Frame:
    """The Hessian over |g|, on an orthonormal basis whose first vector is the direction of attack."""

    basis: Tensor  # (case, m, n)
    matrix: Tensor  # (case, m, m), 1/input


def _frame(neuron: Neuron, x: Tensor, excess: Tensor, gradient: Tensor, first: Tensor, directions: int) -> _Frame:
    known = krylov_secants(neuron, x, excess, gradient, first, directions)
    spanning = torch.cat([first[:, None], known.basis, known.images], 1).double()
    lengths = spanning.norm(dim=2, keepdim=True)
    unit = spanning / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    basis = torch.linalg.qr(torch.nan_to_num(unit).transpose(1, 2)).Q.transpose(1, 2)
    images = torch.stack([(known @ b.to(x)).double() for b in basis.unbind(1)], 1)
    matrix = torch.einsum("cin,cjn->cij", basis, images) / gradient.double().norm(dim=1)[:, None, None]
    return _Frame(basis, torch.nan_to_num(0.5 * (matrix + matrix.transpose(1, 2))))


def _switched(
    frame: _Frame, straight: Tensor, inside: tuple[Neuron, Tensor, Tensor, Tensor] | None
) -> list[Float[Tensor, " case"]]:
    """Distances with the subsets of rate, turning and bending on; NaN where the model never reaches the level.

    Without a box the model has as many dimensions as the frame, with one (`inside`) as many as the input.
    """
    straight = straight.double()
    cases, eye = len(straight), torch.eye(frame.matrix.shape[1]).to(straight)
    if inside is None:
        start = straight.new_zeros(cases, len(eye))
        unit, basis, box = eye[:1].expand_as(start), eye.expand(cases, -1, -1), Box()
        first = straight[:, None] * unit
    else:
        neuron, x, slope, foot = inside
        start, unit, basis, box, first = x.double(), slope.double(), frame.basis, neuron.box, foot.double()
    rate = eye[:1].T @ eye[:1]
    bending = (1 - eye[:1].T) @ (1 - eye[:1])
    on = subsets(3)[1:].to(straight)[:, :, None, None]
    masks = on[:, 0] * rate + on[:, 1] * (1 - rate - bending) + on[:, 2] * bending
    every = torch.arange(cases, device=straight.device).repeat(len(masks))  # all subsets at once, as cases
    matrix = frame.matrix[every] * masks.repeat_interleave(cases, 0)
    given = (start[every], straight[every], unit[every], basis[every], matrix)
    model = Neuron(_quadratic, tuple(start.shape[1:]), box, "2-jet", given)
    question = Problem(model, start[every], torch.zeros_like(straight[every]), torch.ones_like(straight[every]))
    answer = search(question, question.clip((start + first)[every]), MODEL_STEPS, MODEL_RTOL)
    return [straight, *answer.distance.split(cases)]


def _quadratic(x: Tensor, start: Tensor, straight: Tensor, unit: Tensor, basis: Tensor, matrix: Tensor) -> Tensor:
    way = x - start
    inside = torch.einsum("cmn,cn->cm", basis, way)
    return (unit * way).sum(1) - straight + 0.5 * torch.einsum("ci,cij,cj->c", inside, matrix, inside)


def _without_gaps(distance: Float[Tensor, "case subset"]) -> tuple[Float[Tensor, "case subset"], Tensor]:
    """The table with what is NaN replaced by the distance without one block, and whether (case,) anything was.

    The blocks are given up in the order bending, turning, rate, box.
    """
    columns = list(distance.unbind(1))
    for number in range(1, len(columns)):
        given_up = next(bit for bit in (4, 2, 1, 8) if number & bit)
        columns[number] = torch.where(columns[number].isnan(), columns[number ^ given_up], columns[number])
    return torch.stack(columns, 1), distance.isnan().any(1)


# --- which boundary -------------------------------------------------------------------------------------------------


def _nearest_boundary(classifier: Classifier, x: Tensor, labels: Tensor, directions: int) -> Factors:
    """The factors of the boundary that the full model holds nearest, among those that first order leaves in the running."""
    with torch.no_grad():
        scores = classifier.logits(x)
    others = scores.scatter(1, labels[:, None], -torch.inf)
    count = min(classifier.classes - 1, MOST_RIVALS)
    rivals = others.topk(count, dim=1).indices.flatten()
    owner = torch.arange(len(x), device=x.device).repeat_interleave(count)
    every = _margins(classifier, x[owner], labels[owner], rivals)
    excess, gradient = every.excess_and_grad(every.start)
    steepness = gradient.norm(dim=1)
    first = (-excess / steepness).masked_fill((steepness == 0) | (excess > 0), torch.inf).nan_to_num(nan=torch.inf)
    inside, reachable = nearest_in_plane(-excess, gradient, *every.room(every.start))
    boxed = torch.where(reachable, inside.norm(dim=1), torch.full_like(first, torch.inf)).reshape(-1, count)
    table = torch.where(torch.isinf(boxed).all(1, keepdim=True), first.reshape(-1, count), boxed)
    nearest = table.amin(1, keepdim=True)
    likely = (table <= UNLIKELY * nearest) & torch.isfinite(table)
    likely[:, 0] |= ~likely.any(1)
    chosen = torch.nonzero(likely.flatten()).flatten()
    distance, blind, gap, spacing, status, spent = _measure(every.select(chosen), directions)
    # --- a case decided otherwise is there already, whatever this boundary says
    mine = owner[chosen]
    full = torch.nan_to_num(distance[:, -1], nan=torch.inf)
    best = first_smallest(full, mine, len(x))
    all_spent = torch.full_like(labels, count).index_add(0, mine, spent)
    told = _as_factors(
        distance[best], blind[best], gap[best], spacing[best], status[best], rivals[chosen][best], all_spent
    )
    return replace(told, status=mark(told.status, (scores.argmax(1) != labels, Status.ALREADY)))


def _margins(classifier: Classifier, x: Tensor, labels: Tensor, rivals: Tensor) -> Problem:
    start = x.flatten(1)
    zero = torch.zeros_like(start[:, 0])
    return Problem(flatten(classifier.margin(labels, rivals), start), start, zero, zero - 1)


# --- what they share ------------------------------------------------------------------------------------------------


def _as_factors(
    distance: Tensor, blind: Tensor, gap: Tensor, spacing: Tensor, status: Tensor, rival: Tensor, spent: Tensor
) -> Factors:
    nan = torch.full_like(gap, torch.nan)
    return Factors(nan, gap, spacing, distance, nan, blind, rival, torch.zeros_like(status), spent, status)


def _finished(told: Factors, measured: Tensor, further: Tensor | None) -> Factors:
    """The factors with the measured distances, and failures where these (or those further on) are missing."""
    measured = measured.detach().to(told.gap)
    unknown = ~(torch.isfinite(measured) & (measured > 0)) & ~failed(told.status)
    look = told.further if further is None else further.detach().to(told.gap)
    if further is not None:
        look = torch.where(torch.isfinite(look) & (look > 0), look, told.distance[:, -1])  # it has no say there
    already = told.status == int(Status.ALREADY)
    return replace(
        told, measured=measured, further=look, status=mark(told.status, (unknown & ~already, Status.NOT_FINITE))
    )


def _require(x: Tensor, measured: object, directions: int, further: object) -> None:
    for name, values in (("measured", measured), ("further", further)):
        if values is None and name == "further":
            continue
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(
                f"{name} must be a floating-point tensor of distances (case,), got {got}; use torch.as_tensor(...).float()."
            )
        if values.shape != (len(x),):
            raise ValueError(f"{name} must have shape ({len(x)},), one distance per input, got {tuple(values.shape)}.")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}.")
