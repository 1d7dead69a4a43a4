"""How many directions succeed: the share of random directions, or of the whole box, in which a response gets across a level.

The smallest perturbation is one direction; what bending changes first is how many others there are. A contour at distance d
that is bent away leaves the closest point where it is, and makes the fraction of directions that cross it at a given radius
smaller. `adversarial_fraction` predicts it from gradient and Hessian at `x` and counts it; `increasing_share` is its global
counterpart, the share of the allowed inputs with a response above that of `x`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import scipy.special
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Problem
from isoresponse.geometry import ESTIMATOR, SCALE
from isoresponse.jets import Jet, JetBuilder, exact_jet
from isoresponse.loop import Status, failed, mark, status_tensor
from isoresponse.neuron import Box, Neuron, flatten
from isoresponse.noise import Mass, blocks, counted_mass, draws, evaluate
from isoresponse.operators import length
from isoresponse.spectra import lanczos, quadrature
from isoresponse.subset import subset
from isoresponse.tails import log_normal_tail, pooled, sphere_tail

LEVELS = 20  # of a subset simulation at most
Z95 = 1.959964  # standard deviations of a 95 % interval


@dataclass(frozen=True, eq=False)
class Fraction:
    """The fraction of directions that succeed at a radius, predicted and measured, one per case."""

    first_order: Tensor = axes(
        "case", about="predicted from the gradient alone: a spherical cap, exact for flat contours"
    )
    moments: Tensor = axes("case", about="predicted from mean and variance of the quadratic, as if it were normal")
    predicted: Tensor = axes("case", about="predicted from gradient and Hessian")
    predicted_error: Tensor = axes("case", about="standard error of predicted, from the sampling of the spectrum")
    measured: Tensor = axes("case", about="fraction of random directions that are across the level")
    measured_error: Tensor = axes("case", about="standard error of measured")
    lower: Tensor = axes("case", about="lower end of the 95 % interval of measured")
    upper: Tensor = axes("case", about="upper end of the 95 % interval of measured")
    gradients: Tensor = axes("case", about="gradients spent: two per Hessian product (the jet's own not counted)")
    forwards: Tensor = axes("case", about="forward passes spent, those inside gradients included")
    scale: Tensor = axes("case", **SCALE)
    status: Tensor = axes("case", about="how the case ended")
    estimator: str = axes(**ESTIMATOR)

    def __repr__(self) -> str:
        sound = ~failed(self.status)
        told, found = (
            float(t[sound].median()) if bool(sound.any()) else float("nan") for t in (self.predicted, self.measured)
        )
        return (
            f"Fraction({int(sound.sum())} of {len(sound)} cases, median predicted {told:.3g}, measured {found:.3g}, "
            f"{self.estimator})"
        )


def adversarial_fraction(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    radius: float | Float[Tensor, " case"],
    *,
    jet: JetBuilder = exact_jet,
    probes: int = 16,
    steps: int = 16,
    samples: int = 1000,
    rare: bool = False,
    clip: bool = False,
    generator: Generator,
) -> Fraction:
    """The fraction of uniformly random directions along which the response, `radius` away from `x`, is across `level`.

    Across is the far side of the level as seen from `x`. Predicted: the fraction for the quadratic with the jet's gradient and
    Hessian, by a double saddle point on the sphere; it sees how the Hessian's spectrum and its coupling to the gradient shape the
    tail, where mean and variance (`moments`) only see the bulk. Both ask for the response at `radius` from `x`, a long way in
    high dimensions, so `partial(chord_jet, scale=radius, generator=...)` is the jet for networks. In few dimensions the saddle
    point's own error shows: flat contours, for which `first_order` is exact, it tells too low by up to 11 % in 2 dimensions, 7 %
    in 3, 5 % in 5 and 2 % in 10.

    Parameters
    ----------
    jet
        What gradient and Hessian are. On piecewise affine responses the exact Hessian is zero.
    probes, steps
        Random vectors, and Hessian products each, that the spectrum is told from; all of it where they reach the dimension.
    samples
        Random directions, shared by all cases. With `rare`, per level (a multiple of 50).
    rare
        Measure by subset simulation, which reaches fractions that counting misses, down to 1e-9 and below. Where it does not
        arrive, the status is MAX_STEPS, and `measured` bounds the fraction from above: `lower` is 0.
    clip
        Clip the perturbed inputs of the measurement to the box. The prediction knows no box.

    Raises
    ------
    ValueError
        Invalid inputs or levels; a radius that is not positive; fewer than two samples or probes; samples that are no multiple of
        50 with `rare`; a single input element.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x[:, 0] - 0.5 * x[:, 1:].square().sum(1), shape=(50,))
    >>> x = torch.zeros(1, 50, dtype=torch.float64)
    >>> found = adversarial_fraction(f, x, 0.1, 1.0, samples=20_000, generator=torch.Generator().manual_seed(0))
    >>> print(f"{found.first_order.item():.2f} {found.predicted.item():.1e}")    # bent away: few directions are left
    0.24 1.6e-04
    """
    problem = Problem.of(neuron, x, level)
    cases, n = problem.start.shape
    radii = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    if radii.shape not in ((), (cases,)) or not bool(((radii > 0) & torch.isfinite(radii)).all()):
        raise ValueError(f"radius must be positive, a number or of shape ({cases},), got {radius}.")
    if samples < 2 or probes < 2 or n < 2:
        raise ValueError(f"samples, probes and input elements must be at least 2, got {samples}, {probes} and {n}.")
    radii = radii.expand(cases)
    told, products, seen = _predicted(problem, radii, x.shape, jet, probes, steps, generator)
    found = _measured(problem, radii, samples, rare, clip, generator)
    status = torch.where(found.status == int(Status.DONE), _soundness(seen), found.status)
    bad = failed(status)
    lower, upper = interval(found, samples, counted=not rare)
    first, moments, predicted, error, p, p_error, lower, upper = (
        t.to(x.dtype).masked_fill(bad, torch.nan)
        for t in (*told, found.probability, found.standard_error, lower, upper)
    )
    grads = torch.full_like(status, 1 + 2 * products)
    return Fraction(
        first, moments, predicted, error, p, p_error, lower, upper,
        grads, grads + found.forwards, seen.scale, status, seen.estimator,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Share:
    """The share of the box in which a response is above a level, one per case, with a 95 % interval."""

    share: Tensor = axes("case", about="share of the box in which the response is above the level")
    error: Tensor = axes("case", about="standard error; of a grid, the change from one twice as coarse")
    lower: Tensor = axes("case", about="lower end of the 95 % interval (of a grid: share - error)")
    upper: Tensor = axes("case", about="upper end of the 95 % interval (of a grid: share + error)")
    forwards: Tensor = axes("case", about="forward passes spent")
    status: Tensor = axes("case", about="how the case ended")
    method: str = axes(about="grid or sampling")

    def __repr__(self) -> str:
        sound = ~failed(self.status)
        median = float(self.share[sound].median()) if bool(sound.any()) else float("nan")
        return f"Share({int(sound.sum())} of {len(sound)} cases, median {median:.3g}, {self.method})"


def increasing_share(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    *,
    level: float | Float[Tensor, " case"] | None = None,
    cells: int = 200,
    samples: int = 2000,
    generator: Generator | None = None,
) -> Share:
    """The share of the box whose inputs have a response above that of `x` (or above `level`).

    In two dimensions the area on a grid of `cells` by `cells`, each cut where the interpolated response crosses the level: exact
    up to a term of second order in the size of a cell. In more of them, the share of `samples` inputs drawn uniformly in the box,
    the same for all cases, with Wilson's (1927) interval.

    Parameters
    ----------
    cells
        Cells along each side, an even number; two dimensions only.
    samples, generator
        For more than two dimensions.

    Raises
    ------
    ValueError
        Invalid inputs or levels; an unbounded box, which has no volume; more than two dimensions without a generator; an odd
        number of cells, or fewer than two samples.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: -x.square().sum(1), (2,), Box(-1.0, 1.0))
    >>> found = increasing_share(f, torch.tensor([[0.6, 0.0]]))       # inside the circle: 0.09 pi of the square
    >>> round(found.share.item(), 3)
    0.283
    """
    neuron.require_inputs(x)
    flat, start = flatten(neuron, x.detach()), x.detach().flatten(1)
    lower, upper = flat.box.bounds(start)
    if not bool(torch.isfinite(upper - lower).all()):
        raise ValueError("the share of a box needs one with finite bounds; give the neuron's box, e.g. Box(0, 1).")
    cases, n = start.shape
    here = flat.value(start)
    if level is not None:
        here = Problem.of(neuron, x, level).level
    if n == 2 and (cells < 2 or cells % 2):
        raise ValueError(f"cells must be an even number, at least 2, got {cells}.")
    every = torch.arange(cases, device=x.device)

    def excess(u: Tensor, which: Tensor) -> Tensor:
        return flat.select(which).value(lower + u * (upper - lower)) - here[which]

    if n == 2:
        side = torch.linspace(0, 1, cells + 1, dtype=x.dtype, device=x.device)
        points = torch.stack(torch.meshgrid(side, side, indexing="ij"), 2).reshape(-1, 2)
        value = evaluate(excess, points.expand(cases, -1, -1), every).reshape(cases, cells + 1, cells + 1)
        share = area_above(value)
        error = (share - area_above(value[:, ::2, ::2])).abs()
        status = mark(status_tensor(Status.DONE, share), (~torch.isfinite(value).flatten(1).all(1), Status.NOT_FINITE))
        low, high, method, count = (share - error).clamp_min(0), (share + error).clamp_max(1), "grid", points.shape[0]
    elif generator is None or samples < 2:
        raise ValueError(
            f"in {n} dimensions the box is sampled: give a generator and at least 2 samples, got {samples}."
        )
    else:
        lot = generator.device
        sizes = ((k, n) for k in blocks(samples, start))
        parts = (torch.rand(size, generator=generator, dtype=x.dtype, device=lot).to(x.device) for size in sizes)
        found = counted_mass(excess, parts, every)
        share, error, status = found.probability, found.standard_error, found.status
        (low, high), method, count = wilson(share, samples), "sampling", samples
    status = mark(status, (~torch.isfinite(here), Status.NOT_FINITE))
    share, error, low, high = (t.to(x.dtype).masked_fill(failed(status), torch.nan) for t in (share, error, low, high))
    return Share(share, error, low, high, torch.full_like(status, count + 1), status, method)


def area_above(value: Float[Tensor, "case row column"]) -> Float[Tensor, " case"]:
    """Share (case,) of a rectangle in which the response, known on a regular grid of points, is above 0.

    Each cell is four triangles round its centre, on each of which the response is taken for linear.
    """
    a, b, c, d = value[:, :-1, :-1], value[:, :-1, 1:], value[:, 1:, 1:], value[:, 1:, :-1]
    centre = 0.25 * (a + b + c + d)
    total = torch.zeros_like(value[:, 0, 0])
    for p, q in ((a, b), (b, c), (c, d), (d, a)):
        corner = torch.stack([p, q, centre], 3).sort(dim=3, descending=True).values
        high, middle, low = corner.unbind(3)
        tip = high.square() / ((high - middle) * (high - low))  # one corner above
        base = 1 - low.square() / ((low - high) * (low - middle))  # two corners above
        part = torch.where(middle > 0, torch.where(low >= 0, 1.0, base), torch.where(high > 0, tip, 0.0))
        total = total + 0.25 * part.mean((1, 2))
    return total


def wilson(share: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """The 95 % interval (case,) of a share of `samples` independent draws (Wilson 1927)."""
    z = Z95**2 / samples
    middle = (share + 0.5 * z) / (1 + z)
    half = (share * (1 - share) * z + 0.25 * z * z).sqrt() / (1 + z)
    # none of the draws, or all of them, put the end exactly there
    return (middle - half).clamp_min(0).masked_fill(share == 0, 0.0), (middle + half).clamp_max(1).masked_fill(
        share == 1, 1.0
    )


def interval(found: Mass, samples: int, *, counted: bool) -> tuple[Tensor, Tensor]:
    """The 95 % interval (case,) of a probability: Wilson's where it was counted, otherwise of its logarithm."""
    if counted:
        return wilson(found.probability, samples)
    factor = (Z95 * found.standard_error / found.probability).exp()
    bounded = found.status == int(Status.MAX_STEPS)  # from above only
    return (found.probability / factor).masked_fill(bounded, 0.0), (found.probability * factor).clamp_max(1)


# --- prediction and measurement ---------------------------------------------------------------------------


def _predicted(
    problem: Problem, radii: Tensor, shape: torch.Size, jet: JetBuilder, probes: int, steps: int, generator: Generator
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], int, Jet]:
    """First order, moments, prediction and its standard error (case,) each; Hessian products; the jet."""
    n = problem.start.shape[1]
    free = replace(problem.neuron, box=Box())
    given = Neuron(lambda x, *g: free.response(x.flatten(1), *g), tuple(shape[1:]), Box(), free.name, free.given)
    seen = jet(given, problem.start.reshape(shape))
    gap = (-problem.excess(problem.start)).double()
    gradient, reach = torch.nan_to_num(seen.gradient), radii.double()
    force = (reach * length(gradient).double()).square()
    cosine = gap / force.sqrt()
    size = scipy.special.betainc((n - 1) / 2, 0.5, (1 - cosine.square()).clamp(0, 1).cpu().numpy())
    first = torch.nan_to_num(0.5 * torch.as_tensor(size, device=gap.device))
    # --- the spectrum as the gradient sees it, and as random vectors do
    order = min(steps, n)
    pairs = lanczos(seen.hessian, order, start=gradient, generator=generator)
    unit = gradient / length(gradient, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    weight = torch.einsum("ckn,cn->ck", pairs.vectors, unit).square().double()
    nodes, weights, _ = quadrature(seen.hessian, probes, order, generator=generator)
    bend = (problem.sign * radii.square()).double()[:, None, None] * torch.nan_to_num(nodes).double()
    near = (problem.sign * radii.square()).double()[:, None] * torch.nan_to_num(pairs.values).double()
    counts = n * torch.nan_to_num(weights).double()
    force_near = force[:, None] * torch.nan_to_num(weight)

    def tail(node: Tensor, count: Tensor) -> Tensor:
        times = len(node) // len(gap)
        again = (t.repeat(times, *[1] * (t.ndim - 1)) for t in (gap, near, force_near))
        first, *pull = again
        return sphere_tail(first, (pull[0], pull[1]), (node, count))

    predicted, error = pooled(tail, bend, counts)
    trace, square = (counts * bend).sum(2).mean(1), (counts * bend.square()).sum(2).mean(1)
    variance = force / n + 0.5 * (square - trace.square() / n).clamp_min(0) / (n * (n + 2))
    normal = log_normal_tail((gap - 0.5 * trace / n) / variance.sqrt()).exp()
    moments = torch.where(variance > 0, normal, (0.5 * trace / n > gap).double())
    products = order * (1 + bend.shape[1]) if bend.shape[1] > 1 else order + n
    return (first, moments, predicted, error), products, seen


def _measured(problem: Problem, radii: Tensor, samples: int, rare: bool, clip: bool, generator: Generator) -> Mass:
    """The measured fraction; standard normal draws are scaled to the radius."""
    lower, upper = problem.neuron.box.bounds(problem.start)
    free = replace(problem, neuron=replace(problem.neuron, box=Box()))

    def excess(z: Tensor, which: Tensor) -> Tensor:
        at = problem.start[which] + radii[which, None] * z / length(z, keepdim=True)
        return free.select(which).excess(torch.minimum(torch.maximum(at, lower), upper) if clip else at)

    if rare:
        return subset(excess, problem.start, samples, LEVELS, generator)
    parts = (draws(k, problem.start, generator) for k in blocks(samples, problem.start))
    return counted_mass(excess, parts, torch.arange(len(radii), device=radii.device))


def _soundness(jet: Jet) -> Tensor:
    """The jet's status, but a vanishing gradient is no failure here: the quadratic part decides."""
    return torch.where(jet.status == int(Status.FLAT), int(Status.DONE), jet.status)
