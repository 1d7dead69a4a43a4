"""How much Gaussian noise takes a response beyond a level, predicted from the closest point and the curvature there.

With the closest point at distance d, noise of standard deviation sigma per element and beta = d / sigma, a flat contour would
leave the mass Phi(-beta) beyond it. A contour with principal curvatures kappa is to second order a paraboloid, and the
formulas of structural reliability say what is beyond that. Their sign is that of the library, for the region beyond the level:
kappa is positive where {response beyond the level} is locally convex, bent away from x, and makes the mass smaller. For a
level above these are the curvatures of `principal_curvatures`; for a level below, whose region is {f <= level}, their negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Solution
from isoresponse.distribution import curvature_spectrum
from isoresponse.geometry import ESTIMATOR, SCALE
from isoresponse.jets import JetBuilder, exact_jet
from isoresponse.loop import Status, failed, mark, status_tensor
from isoresponse.neuron import Box, Neuron
from isoresponse.noise import Mass, gaussian_problem
from isoresponse.solve import closest_point
from isoresponse.tails import log_normal_tail, orthant_tail, paraboloid_tail, pooled


@dataclass(frozen=True, eq=False)
class SecondOrderMass:
    """The mass beyond a paraboloid, by the formulas in use; NaN where one does not apply (focusing contours, no probability)."""

    first_order: Tensor = axes("case", about="Phi(-beta), as if the contour were flat")
    breitung: Tensor = axes("case", about="asymptotic, for large beta (Breitung 1984)")
    hohenbichler_rackwitz: Tensor = axes(
        "case", about="the same, better for moderate beta (Hohenbichler, Rackwitz 1988)"
    )
    tvedt: Tensor = axes("case", about="three terms (Tvedt 1983)")
    paraboloid: Tensor = axes("case", about="exact for the paraboloid (the integral of Tvedt 1990)")


@dataclass(frozen=True, eq=False)
class PredictedMass(SecondOrderMass):
    """Predicted probability that noise takes the response beyond a level, one per case, from geometry alone."""

    standard_error: Tensor = axes(
        "case", about="of paraboloid, from the sampling of the spectrum alone; 0: all curvatures known"
    )
    doubt: Tensor = axes(
        "case", about="by how much the logarithm of paraboloid would be wrong were the contour round; inf: focusing"
    )
    beta: Tensor = axes("case", about="distance of the tangent plane over sigma")
    focus: Tensor = axes("case", about="smallest distance x curvature; contours focus at -1")
    bending: Tensor = axes("case", about="sum of distance x curvature over all directions")
    gradients: Tensor = axes("case", about="gradients spent: two per Hessian product (the jet's own not counted)")
    forwards: Tensor = axes("case", about="forward passes spent, those inside gradients included")
    scale: Tensor = axes("case", **SCALE)
    status: Tensor = axes("case", about="how the case ended")
    estimator: str = axes(**ESTIMATOR)

    def __repr__(self) -> str:
        sound = ~failed(self.status)
        flat, bent, doubt = (
            float(t[sound].median()) if bool(sound.any()) else float("nan")
            for t in (self.first_order, self.paraboloid, self.doubt)
        )
        return (
            f"PredictedMass({int(sound.sum())} of {len(sound)} cases, median {bent:.3g} (factor {1 + doubt:.2g} if contours "
            f"are round), {flat:.3g} if they were flat, {self.estimator})"
        )


def second_order_mass(
    beta: Float[Tensor, " case"],
    curvature: Float[Tensor, "case node"],
    count: Float[Tensor, "case node"] | None = None,
) -> SecondOrderMass:
    """The mass beyond the paraboloid y = beta + sum_i curvature_i z_i^2 / 2 of standard normal noise, by five formulas.

    Parameters
    ----------
    beta
        Distance to the closest point over the noise's standard deviation, not negative.
    curvature
        Principal curvatures times the standard deviation, positive where the region beyond is convex.
    count
        How many curvatures lie at each node; one if left out.

    Raises
    ------
    ValueError
        A negative `beta`, shapes that do not fit.

    Examples
    --------
    >>> import torch
    >>> told = second_order_mass(torch.tensor([4.0]), torch.full((1, 10), 0.1))
    >>> [f"{p.item():.3g}" for p in (told.first_order, told.breitung, told.hohenbichler_rackwitz, told.tvedt, told.paraboloid)]
    ['3.17e-05', '5.89e-06', '5.44e-06', '5e-06', '5.07e-06']
    """
    if count is None:
        count = torch.ones_like(curvature)
    if curvature.shape != count.shape or curvature.shape[0] != len(beta):
        raise ValueError(
            f"curvature and count must have shape ({len(beta)}, node), got {tuple(curvature.shape)} and {tuple(count.shape)}."
        )
    if bool((beta < 0).any()):
        raise ValueError(
            "beta, the distance over sigma, must not be negative; for the other side take one minus the mass."
        )
    kind = beta.dtype
    beta, curvature, count = beta.double(), curvature.double(), count.double()
    flat = log_normal_tail(beta)
    density = torch.exp(-0.5 * beta.square()) / (2 * torch.pi) ** 0.5

    def product(at: Tensor) -> Tensor:
        inside = 1 + at[:, None] * curvature
        focused = (inside.real <= 0).any(1) if inside.is_complex() else (inside <= 0).any(1)
        safe = torch.where(focused[:, None], torch.ones_like(inside), inside)
        return (-0.5 * (count * safe.log()).sum(1)).exp().masked_fill(focused, torch.nan)

    breitung = product(beta)
    sharper = product((-0.5 * beta.square() - flat).exp() / (2 * torch.pi) ** 0.5)
    rest = beta * flat.exp() - density
    second = rest * (breitung - product(beta + 1))
    # the third term is analytic in beta, so it may be taken at a complex place
    third = (beta + 1) * rest * (breitung - product(torch.complex(beta, torch.ones_like(beta))).real)
    exact = paraboloid_tail(beta, torch.nan_to_num(curvature), count)
    exact = exact.masked_fill(~torch.isfinite(curvature).all(1), torch.nan)
    three = flat.exp() * breitung + second + third
    told = (flat.exp(), flat.exp() * breitung, flat.exp() * sharper, three, exact)
    return SecondOrderMass(*(t.masked_fill((t < 0) | (t > 1), torch.nan).to(kind) for t in told))


def predicted_mass(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    sigma: float | Float[Tensor, " case"],
    *,
    jet: JetBuilder = exact_jet,
    probes: int = 16,
    steps: int = 16,
    budget: int = 100,
    design: Solution | None = None,
    generator: Generator,
) -> PredictedMass:
    """The probability that Gaussian noise of standard deviation `sigma` per element takes the response beyond `level`.

    Beyond is the far side as seen from `x`. The closest point is searched for outside the box too, because noise goes there.
    Curvatures are those of `jet` there: exact, or at the scale of the noise (`chord_jet`, scale sigma * sqrt(n)), which is what
    counts for networks whose exact Hessian is zero or holds at small scales only. The spectrum of curvatures is complete where
    `probes` * `steps` products reach the number of directions, and estimated otherwise (`curvature_spectrum`).

    A contour is a paraboloid near the closest point only, and in many directions noise goes far: `doubt` is the error that the
    formula would make of a ball's surface bent alike. For balls in 2 to 300 dimensions it is right within a factor of two while
    below 0.5, and too large where the mass is above 0.1. Where it is larger, measure (`line_mass`, `subset_mass`).

    Parameters
    ----------
    budget
        Gradients of the search for the closest point.
    design
        The closest point, unboxed, if known.

    Raises
    ------
    ValueError
        Invalid inputs, levels, or noise; too few probes or steps.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: -x.square().sum(1).sqrt(), shape=(5,))     # {f >= -1}: the unit ball, seen from outside
    >>> x = torch.tensor([[2.0, 0, 0, 0, 0]], dtype=torch.float64)
    >>> told = predicted_mass(f, x, -1.0, 0.25, generator=torch.Generator().manual_seed(0))
    >>> f"{told.first_order.item():.2e} {told.breitung.item():.2e} {told.paraboloid.item():.2e}"
    '3.17e-05 7.92e-06 7.19e-06'
    """
    problem, scale = gaussian_problem(neuron, x, level, sigma)
    free = replace(neuron, box=Box())
    if design is None:
        design = closest_point(free, x, level, budget=budget)
    sound = design.success
    point = torch.where(sound[:, None], torch.nan_to_num(design.point.flatten(1)), problem.start)
    seen = jet(free, point.reshape(x.shape))
    spectrum = curvature_spectrum(seen, probes=probes, steps=steps, generator=generator)
    # the region beyond a level below is {-f >= -level}: its contours bend the other way
    bent = problem.sign[:, None, None] * spectrum.nodes
    normal = problem.sign[:, None] * seen.normal
    beta = torch.nan_to_num(((point - problem.start) * normal).sum(1) / scale).clamp_min(0)
    status = torch.where(sound, status_tensor(Status.DONE, beta), design.status)
    status = torch.where(sound & failed(spectrum.status), spectrum.status, status)
    counts = spectrum.directions * spectrum.weights
    bent, counts = torch.nan_to_num(bent), torch.nan_to_num(counts)
    bad = failed(status)

    def tail(node: Tensor, count: Tensor) -> Tensor:
        times = len(node) // len(beta)
        return paraboloid_tail(beta.repeat(times), node * scale.repeat(times)[:, None], count)

    every = bent.flatten(1) * scale[:, None], counts.flatten(1) / bent.shape[1]
    told = second_order_mass(beta, *every)
    names = ("first_order", "breitung", "hohenbichler_rackwitz", "tvedt", "paraboloid")
    _, error = pooled(tail, bent, counts)
    reach = torch.where(bad, torch.nan, beta * scale)
    products = bent.shape[1] * bent.shape[2]
    return PredictedMass(
        **{name: getattr(told, name).masked_fill(bad, torch.nan) for name in names},
        standard_error=error.to(beta.dtype).masked_fill(bad, torch.nan),
        doubt=_roundness(beta, *every).masked_fill(bad, torch.nan),
        beta=beta.masked_fill(bad, torch.nan),
        focus=reach * bent.amin((1, 2)),
        bending=reach * (counts * bent).sum(2).mean(1),
        gradients=design.gradients + 1 + 2 * products,
        forwards=design.forwards + 1 + 2 * products,
        scale=seen.scale,
        status=status,
        estimator=seen.estimator,
    )


def _roundness(beta: Tensor, bent: Tensor, count: Tensor) -> Tensor:
    """What the next term of a round contour, curvature^3 |w|^4 / 8, does to the logarithm of the mass (case,), to first order.

    For unequal curvatures that term is taken as the product of (sum bent w^2) and (sum bent^2 w^2), root mean square over the
    noise w beyond the contour, whose variance is 1 / (1 + beta bent).
    """
    left = 1 + beta[:, None] * bent
    v = 1 / left.clamp_min(torch.finfo(left.dtype).tiny)

    def size(power: int) -> Tensor:
        term = bent**power * v
        return ((count * term).sum(1).square() + 2 * (count * term.square()).sum(1)).sqrt()

    return (beta / 8 * size(1) * size(2)).masked_fill((left <= 0).any(1), torch.inf)


def predicted_joint_mass(
    neurons: Sequence[Neuron],
    x: Float[Tensor, "case *shape"],
    levels: Float[Tensor, "case neuron"],
    sigma: float | Float[Tensor, " case"],
    *,
    budget: int = 100,
    samples: int = 2000,
    generator: Generator,
) -> Mass:
    """The probability that noise takes *every* one of several neurons to its level or above, to first order.

    Every neuron is linearised at the closest point of the intersection, and the mass of the resulting orthant is that of
    correlated normal numbers (Hohenbichler and Rackwitz 1983), integrated as Genz (1992) does. The standard error is that of the
    integration only.

    Raises ValueError as `jointly` does, and for invalid noise.
    """
    joint = jointly(neurons, levels)
    problem, scale = gaussian_problem(joint, x, 0.0, sigma)
    if not bool((problem.sign > 0).all()):
        raise ValueError("every case must start where not all neurons are at their levels; got one where they are.")
    design = closest_point(replace(joint, box=Box()), x, 0.0, budget=budget)
    sound = design.success
    point = torch.where(sound[:, None], torch.nan_to_num(design.point.flatten(1)), problem.start)
    betas, normals = [], []
    for k, neuron in enumerate(neurons):
        value, gradient = replace(neuron, box=Box()).value_and_grad(point.reshape(x.shape))
        gradient = gradient.flatten(1)
        steepness = gradient.norm(dim=1)
        gap = levels[:, k] - value + (gradient * (point - problem.start)).sum(1)
        betas.append(gap / (steepness * scale))
        normals.append(gradient / steepness[:, None])
    beta, normal = torch.stack(betas, 1), torch.stack(normals, 1)
    defined = torch.isfinite(beta).all(1)
    status = mark(torch.where(sound, status_tensor(Status.DONE, scale), design.status), (sound & ~defined, Status.FLAT))
    normal, beta = torch.nan_to_num(normal), torch.nan_to_num(beta)
    correlation = torch.einsum("ckn,cjn->ckj", normal, normal)
    p, error = orthant_tail(beta, correlation, samples=samples, generator=generator)
    spent = design.gradients + len(neurons), design.forwards + len(neurons)
    return Mass.of(p.to(x.dtype), error.to(x.dtype), spent, status, "first order, intersection")


def jointly(neurons: Sequence[Neuron], levels: Float[Tensor, "case neuron"]) -> Neuron:
    """The neuron that is at or above 0 exactly where every one of `neurons` is at its level or above: the least of the excesses.

    With it every function of a neuron and a level answers for an ensemble: mass, fraction, closest point. For neurons that are
    to fall below a level, negate both. Divide a neuron and its level by its steepness to make excesses comparable; the event does
    not change.

    Parameters
    ----------
    levels
        One column per neuron; one row per case.

    Raises
    ------
    ValueError
        No neurons, neurons of different input shapes, levels of the wrong shape.

    Examples
    --------
    >>> import torch
    >>> pair = [Neuron(lambda x: x[:, 0], (2,)), Neuron(lambda x: x[:, 1], (2,))]
    >>> jointly(pair, torch.tensor([[1.0, 2.0]]))(torch.tensor([[3.0, 3.0]]))
    tensor([1.])
    """
    if not neurons or any(other.shape != neurons[0].shape for other in neurons):
        raise ValueError(
            f"an ensemble needs neurons of one input shape, got {len(neurons)} of shapes {[n.shape for n in neurons]}."
        )
    if levels.ndim != 2 or levels.shape[1] != len(neurons):
        raise ValueError(
            f"levels must have one row per case and {len(neurons)} columns, one per neuron, got {tuple(levels.shape)}."
        )
    ends = [0]
    for neuron in neurons:
        ends.append(ends[-1] + len(neuron.given))

    def response(x: Tensor, levels: Tensor, *given: Tensor) -> Tensor:
        each = [n.response(x, *given[a:b]) for n, a, b in zip(neurons, ends, ends[1:], strict=False)]
        return (torch.stack(each, 1) - levels).amin(1)

    given = tuple(g for neuron in neurons for g in neuron.given)
    return Neuron(response, neurons[0].shape, neurons[0].box, "ensemble", (levels, *given))
