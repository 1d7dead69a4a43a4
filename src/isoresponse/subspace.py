"""The adversarial subspace: how many ways there are across a level, how far each is, and how the level bends among them.

The closest point across a level is one way out. The next one is the closest point whose perturbation is orthogonal to
the first, then to the first two, and so on (Paiton et al. 2021, "The geometry of adversarial subspaces"). The
perturbations found span the adversarial subspace of an input; distance against dimension, and the curvature of the
boundary inside that subspace beside a random one, describe it.

No search of its own is needed for this. A move that is orthogonal to the perturbations found does not notice what is
added to the gradient along them. `_Orthogonal` adds just so much that the nearest point of the tangent plane inside the
box, which every search steps to, is itself orthogonal to them; `nearest_within` finds out how much, exactly, as
the multipliers of a small quadratic programme (`dual`). So the searches go on in the remaining directions unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.approach import QUIET, Approach, approach, first_pace
from isoresponse.contour import search
from isoresponse.crossing import Problem, Solution
from isoresponse.cuts import curvatures_within
from isoresponse.dual import nearest_within
from isoresponse.geometry import Curvatures
from isoresponse.jets import JetBuilder, exact_jet
from isoresponse.loop import Status, count_statuses, failed, mark, put, take
from isoresponse.neuron import Neuron
from isoresponse.operators import length
from isoresponse.solve import better_of, elsewhere, require_search, settle

STEPS = 12  # of the multipliers at most: a plane in reach needs fewer, one out of reach would take many
SOFT = 1e-3  # of the plane as a constraint, relative to its own curvature
AFAR = 2.0  # times the box's reach, beyond which points are drawn nearer before they are projected
QUICK, LAST = (
    0.15,
    0.2,
)  # shares of the gradients: for the search along the contour that comes first, and for the one that ends it


@dataclass(frozen=True, eq=False)
class AdversarialSubspace:
    """The successive closest points across a level, their orthogonal perturbations, and the curvature among these.

    Dimensions are in order of distance. Those that could not be reached hold NaN and say why in `status`. `curvatures` are
    those of the level's contour at the closest point, within the tangent directions of the subspace, one
    fewer than there are dimensions; `random_curvatures` those within as many random tangents. Both are None where only one
    dimension was asked for, the second without a generator too.
    """

    point: Tensor = axes("case", "dim", "*shape", units="input", about="the closest point found in each dimension")
    basis: Tensor = axes("case", "dim", "n", about="unit perturbations, orthonormal")
    value: Tensor = axes("case", "dim", units="response", about="response at the point")
    distance: Tensor = axes("case", "dim", units="input", about="Euclidean distance of the point from the start")
    optimality: Tensor = axes("case", "dim", about="how far from closest, relative to the distance")
    status: Tensor = axes("case", "dim", about="how the search in each dimension ended")
    gradients: Tensor = axes("case", "dim", about="gradients spent on the search")
    forwards: Tensor = axes("case", "dim", about="forward passes spent on it, those inside gradients included")
    curvatures: Curvatures | None = axes(about="curvatures at the closest point inside the subspace", default=None)
    random_curvatures: Curvatures | None = axes(about="those inside a random tangent subspace", default=None)

    @property
    def success(self) -> Tensor:
        """Which dimensions (case, dim) have an answer."""
        return ~failed(self.status)

    @property
    def reached(self) -> Tensor:
        """How many dimensions (case,) the subspace has: orthogonal perturbations found, of those asked for."""
        return torch.isfinite(self.basis).all(2).sum(1)

    @property
    def mean_curvature(self) -> Tensor:
        """Mean of the `curvatures` (case,), in 1/input; NaN where there is none."""
        return _mean(self.curvatures, self.distance)

    @property
    def random_mean_curvature(self) -> Tensor:
        """Mean of the `random_curvatures` (case,), in 1/input; NaN where there is none."""
        return _mean(self.random_curvatures, self.distance)

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        far = ", ".join(f"{d:.4g}" for d in self.distance.double().nanquantile(0.5, dim=0).tolist())
        return (
            f"AdversarialSubspace({len(self)} cases, {float(self.reached.double().mean()):.1f} of {self.status.shape[1]} "
            f"dimensions on average, median distances {far}, {count_statuses(self.status.flatten())})"
        )


def adversarial_subspace(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    dims: int = 5,
    budget: int = 200,
    starts: int = 1,
    rtol: float = 1e-4,
    jet: JetBuilder = exact_jet,
    generator: Generator | None = None,
) -> AdversarialSubspace:
    """The nearest points to `x` across `level`, each perturbation orthogonal to those before, and how the level bends there.

    All distances are Euclidean, and all points inside the neuron's box. Each is a local optimum, as in `closest_point`.
    Perturbations that are orthogonal to each other are so in any order; should a later search find a nearer point than an
    earlier one did, it takes its place. For a classifier take its decision and level 0,
    `adversarial_subspace(clf.decision(labels), x, 0.0)`, with inputs that are decided as labelled.

    Parameters
    ----------
    level
        Response to reach, in response units; a number, or one per case.
    dims
        How many orthogonal perturbations are sought. A case in which one is not found has none after it either.
    budget
        Gradients per case and dimension at most.
    starts
        Places to search from in each dimension, as in `closest_point`; more than 1 need a generator.
    rtol
        A search has converged when its `optimality` is below `rtol`. Directions are then known to about that angle, so what
        is left of a gradient outside the directions found counts as zero below it.
    jet
        How the curvatures are measured, e.g. `partial(secant_jet, scale=0.5)`; the neuron is cut by the subspace, so
        that a scale costs gradients for its few dimensions only. The default, exact, sees no bending in ReLU networks.
    generator
        For the random subspace, whose curvatures are left out without it, and for further starts.

    Returns
    -------
    AdversarialSubspace
        Status per case and dimension as in `closest_point`; UNREACHABLE also where no orthogonal direction leads on. A start
        that is already at the level is ALREADY in every dimension, with distance 0 and without directions. Curvatures are
        positive where the contour bends outward, round the higher response (for a decision, the label's
        own region), with status UNDEFINED where fewer than two dimensions were found, NaN beyond those that were found.

    Raises
    ------
    ValueError
        Invalid inputs or level, `dims` not between 1 and the number of input elements, `budget` or `starts` below 1, starts
        without a generator, `rtol` not between 0 and 1, or whatever `jet` refuses.

    Warns
    -----
    FlatHessianWarning
        As `principal_curvatures` does: an exact jet whose Hessian vanishes.

    Examples
    --------
    >>> import torch
    >>> axes = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    >>> cell = Neuron(lambda x: (x / axes).square().sum(1), shape=(4,))   # contours are ellipsoids
    >>> found = adversarial_subspace(cell, torch.full((1, 4), 1e-4).double(), 1.0, dims=3)
    >>> found.distance.round(decimals=3).tolist(), found.curvatures.values.round(decimals=3).tolist()
    ([[1.0, 2.0, 4.0]], [[-0.063, -0.25]])
    """
    problem = Problem.of(neuron, x, level, 2.0)
    require_search(budget, rtol, starts, generator)
    cases, n = problem.start.shape
    if not 1 <= dims <= n:
        raise ValueError(f"dims must be between 1 and {n}, the number of input elements, got {dims}.")
    draw = None
    if generator is not None and dims > 1:
        # shared by all cases, so that a case alone equals itself in a batch
        draw = torch.randn((dims - 1, n), generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    # across by more than rounding, so that an answer holds in a batch of another size too
    here = problem.level + problem.sign * problem.excess(problem.start)
    slack = 32 * torch.finfo(x.dtype).eps * torch.maximum(problem.level.abs(), here.abs())
    slack = torch.where(here == problem.level, torch.zeros_like(slack), slack)
    problem = replace(problem, start=problem.clip(problem.start), level=problem.level + problem.sign * slack)
    solution, basis = _successive(problem, _Settings(budget, starts, rtol, generator), dims)
    order = torch.nan_to_num(solution.distance, nan=torch.inf).argsort(dim=1, stable=True)
    point, basis = (t.gather(1, order[:, :, None].expand_as(t)) for t in (solution.point, basis))
    # the two forward passes above belong to no dimension; the first one searched bears them
    forwards = torch.cat([solution.forwards[:, :1] + 2, solution.forwards[:, 1:]], 1)
    told = (solution.value, solution.distance, solution.optimality, solution.status, solution.gradients)
    value, distance, optimality, status, gradients = (t.gather(1, order) for t in told)
    found = AdversarialSubspace(
        point.reshape(cases, dims, *x.shape[1:]), basis, value, distance, optimality, status, gradients,
        forwards.gather(1, order),
    )  # fmt: skip
    return found if dims == 1 else _with_curvatures(found, neuron, x.detach(), draw, jet)


# --- the search -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    budget: int
    starts: int
    rtol: float
    generator: Generator | None


def _successive(problem: Problem, settings: _Settings, dims: int) -> tuple[Solution, Tensor]:
    """The solutions, with a second axis dim in every field, and the unit perturbations (case, dim, n), or NaN."""
    basis = problem.start.new_full((len(problem.start), dims, problem.start.shape[1]), torch.nan)
    last = _closest(problem, settings)
    solutions = [last]
    for k in range(dims):
        basis[:, k] = _directions(problem, last)
        if k + 1 == dims:
            break
        # where a dimension adds no direction the next search would repeat it, and end as it did
        going = torch.nonzero(torch.isfinite(basis[:, k]).all(1)).flatten()
        none = torch.zeros_like(last.gradients)
        last = replace(last, gradients=none, forwards=none)
        if len(going):
            part = problem.select(going)
            within = _Orthogonal(
                part.neuron, part.start, part.level, part.sign, part.norm,
                found=basis[going, : k + 1], blind=max(settings.rtol, 1000 * torch.finfo(basis.dtype).eps),
            )  # fmt: skip
            solution = _closest(within, settings)
            lost = (solution.status == int(Status.FLAT)) | (solution.status == int(Status.BLOCKED))
            last = put(last, going, replace(solution, status=mark(solution.status, (lost, Status.UNREACHABLE))))
        solutions.append(last)
    names = ("point", "value", "distance", "optimality", "status", "gradients", "forwards")
    return Solution(*(torch.stack([getattr(s, name) for s in solutions], 1) for name in names)), basis


def _closest(problem: Problem, settings: _Settings) -> Solution:
    """The closest point of a flat problem, from its start and from as many further places as are asked for."""
    share = max(1, settings.budget // settings.starts)
    solution = _nearest(problem, problem.start, share, settings.rtol)
    for _ in range(settings.starts - 1):
        far = elsewhere(problem, torch.nan_to_num(solution.distance, nan=0.0), settings.generator)
        solution = better_of(solution, _nearest(problem, far, share, settings.rtol))
    return solution


def _nearest(problem: Problem, first: Tensor, budget: int, rtol: float) -> Solution:
    """From one place: along the contour; where that has not converged soon, from afar, then along the contour again.

    Fewer directions are left with every dimension, the contour is farther off, and a piecewise affine response has more
    kinks on the way: what an approach at a scale is for.
    """
    quick = search(problem, first, max(1, int(QUICK * budget)), rtol)
    left = budget - quick.gradients
    ended = (Status.DONE, Status.ALREADY, Status.NOT_FINITE)
    over = torch.stack([quick.status == int(s) for s in ended]).any(0)
    again = torch.nonzero(~over & (left > QUIET)).flatten()
    if len(again) == 0:
        return quick
    part, earlier, last = problem.select(again), take(quick, again), max(1, int(LAST * budget))
    below, steps = part.excess(part.start), (left[again] - last - 1).clamp_min(1)
    pace = first_pace(steps)
    state = approach(part, below, Approach.at(first[again]), steps - steps // 3, pace)
    state = approach(part, below, state.again(), steps // 3, 0.5 * pace)
    earlier = _nearer(settle(part, below, state, rtol), earlier)
    best = torch.where(earlier.success[:, None], earlier.point, part.start)
    return put(quick, again, _nearer(search(part, best, last, rtol), earlier))


def _nearer(second: Solution, earlier: Solution) -> Solution:
    """The nearer of the two; what the earlier one says of a case stands where the second finds nothing either."""
    status = torch.where(second.success, second.status, earlier.status)
    return better_of(replace(second, status=status).blanked(), earlier)


def _directions(problem: Problem, solution: Solution) -> Tensor:
    """Unit perturbations (case, n), NaN where there is none."""
    way = solution.point - problem.start
    return torch.where(
        (solution.distance > 0)[:, None], way / length(way, keepdim=True), torch.full_like(way, torch.nan)
    )


@dataclass(frozen=True, eq=False)
class _Orthogonal(Problem):
    """A problem in L2 whose perturbations must be orthogonal to the directions `found` (case, k, n), which are orthonormal.

    `blind`: a gradient whose part outside of them is smaller than this, relative to the whole, counts as zero.
    """

    found: Tensor = field(kw_only=True)
    blind: float = field(kw_only=True)

    def select(self, cases: Tensor) -> Problem:
        part = super().select(cases)
        return _Orthogonal(
            part.neuron, part.start, part.level, part.sign, part.norm, found=self.found[cases], blind=self.blind
        )

    def clip(self, x: Tensor) -> Tensor:
        """The nearest point that is inside the box and in the remaining directions from the start.

        Points many times as far as the box reaches are drawn nearer first: rounding would drown the answer.
        """
        down, up = self.room(self.start)
        way, nothing = x - self.start, torch.zeros_like(self.found[:, :, 0])
        # --- most points are there already, but for rounding: those on a ray between two such points
        away = torch.einsum("ckn,cn->ck", self.found, way).abs().amax(1)
        rounding = 8 * torch.finfo(x.dtype).eps * (length(way) + self.start.abs().amax(1))
        there = (away <= rounding) & ((way >= down) & (way <= up)).all(1)
        if bool(there.all()):
            return super().clip(x)
        far = (AFAR * length(torch.maximum(-down, up)) / length(way)).nan_to_num(nan=1.0).clamp(max=1.0)
        near = far[:, None] * way
        for _ in range(2):  # the second time from near by, where rounding is smaller
            near, _, met = nearest_within(near, self.found, nothing, down, up)
        near = torch.where(met[:, None], near, torch.zeros_like(near))
        return super().clip(self.start + torch.where(there[:, None], way, near))

    def excess_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The excess, and the gradient with what makes the tangent plane's nearest point orthogonal to `found`."""
        excess, gradient = super().excess_and_grad(x)
        steep = length(gradient)
        sound = torch.isfinite(steep) & (steep > 0) & torch.isfinite(excess)
        unit = torch.where(sound[:, None], gradient / steep[:, None], torch.zeros_like(gradient))
        gap = (unit * (x - self.start)).sum(1) - torch.where(sound, excess / steep, torch.zeros_like(excess))
        rows = torch.cat([unit[:, None], self.found], 1)
        values = torch.nn.functional.pad(gap.clamp_min(0)[:, None], (0, self.found.shape[1]))
        # --- the plane may be out of reach, so it is a soft constraint first, then as hard as its multiplier asks for
        soft, multipliers = torch.zeros_like(values), torch.zeros_like(values)
        plain = -torch.einsum("ckn,cn->ck", self.found, unit)  # without bounds, the projection
        outside = length(unit + torch.einsum("ck,ckn->cn", plain, self.found))
        soft[:, 0] = SOFT * outside.square().clamp_min(self.blind**2)
        for _ in range(2):
            _, multipliers, _ = nearest_within(
                torch.zeros_like(x), rows, values + soft * multipliers, *self.room(self.start), soft, multipliers, STEPS
            )
        # --- the multipliers of the directions found, per unit of the gradient's own
        across = multipliers[:, :1]
        added = torch.where(
            across > 0, multipliers[:, 1:] / torch.where(across > 0, across, torch.ones_like(across)), plain
        )
        left = unit + torch.einsum("ck,ckn->cn", added, self.found)
        left = torch.where((outside > self.blind)[:, None], steep[:, None] * left, torch.zeros_like(left))
        return excess, torch.where(sound[:, None], left, gradient)


# --- the curvature among the directions found -------------------------------------------------------------


def _with_curvatures(
    found: AdversarialSubspace, neuron: Neuron, x: Tensor, draw: Tensor | None, jet: JetBuilder
) -> AdversarialSubspace:
    """`found` with the curvatures at its closest points."""
    first, count = found.status[:, 0], found.reached
    at = torch.where((count > 0).reshape(-1, *[1] * (x.ndim - 1)), found.point[:, 0], x)

    def inside(basis: Tensor) -> Curvatures:
        told = curvatures_within(neuron, at, basis, jet)
        return replace(told, status=torch.where(failed(first), first, told.status))

    if draw is None:
        return replace(found, curvatures=inside(found.basis))
    gradient = neuron.value_and_grad(at)[1].flatten(1)
    normal = torch.nan_to_num(gradient / length(gradient, keepdim=True))
    drawn = draw - torch.einsum("kn,cn->ck", draw, normal)[:, :, None] * normal[:, None]
    random = torch.cat([normal[:, None], torch.linalg.qr(drawn.transpose(1, 2)).Q.transpose(1, 2)], 1)
    random = torch.where(torch.isfinite(found.basis), random, torch.full_like(random, torch.nan))
    return replace(found, curvatures=inside(found.basis), random_curvatures=inside(random))


def _mean(curvatures: Curvatures | None, distance: Tensor) -> Tensor:
    return torch.full_like(distance[:, 0], torch.nan) if curvatures is None else curvatures.values.nanmean(1)
