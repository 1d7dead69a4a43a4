"""The local geometry of iso-response contours, from a 2-jet: value, gradient and Hessian at a point.

One sign convention: the normal N = g/|g| points to rising response, and a curvature is
kappa = -t'Ht/|g| for a unit tangent t. Positive: the contour bends outward, round the region of higher
response (exo-origin, selective); the set {f >= c} of a ball of radius r has every kappa = +1/r. Negative:
it bends inward (endo-origin, tolerant). Curvature does not change under any increasing rescaling of the
response: it belongs to the contour, not to the numbers written on it.

Networks of ReLUs, and sparse coding, are piecewise affine: their exact Hessian is zero almost everywhere
and says nothing about bending. `secant_jet` and `krylov_secants` measure it at a stated scale instead.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.neuron import Neuron
from isoresponse.operators import SecantOperator, SymmetricOperator, from_secants, lanczos


class FlatHessianWarning(UserWarning):
    """The exact Hessian vanished: an affine piece, whose curvature needs a finite scale."""


@dataclass(frozen=True, eq=False)
class Jet:
    """Second-order description of a response at one point per case; all that geometry sees of it.

    `scale` is 0 for an exact jet, otherwise the distance (input units) over which the Hessian was
    measured; `error` is then the relative asymmetry of the measured Hessian.
    """

    point: Tensor = axes("case", "*shape", units="input", about="where the jet was taken")
    value: Tensor = axes("case", units="response", about="response at the point")
    gradient: Tensor = axes("case", "n", units="response/input", about="gradient, flattened")
    hessian: SymmetricOperator = axes(about="Hessian as an operator on flattened inputs")
    scale: Tensor = axes("case", units="input", about="finite-difference scale, 0 for exact")
    error: Tensor = axes("case", about="relative asymmetry of the measured Hessian, 0 for exact")
    estimator: str = axes(about="how the Hessian was measured")

    @property
    def steepness(self) -> Float[Tensor, " case"]:
        """|g| (case,), response per input unit; NaN where it vanishes and contours have no normal."""
        norm = self.gradient.norm(dim=1)
        return norm.masked_fill(norm == 0, float("nan"))

    @property
    def normal(self) -> Float[Tensor, "case n"]:
        """Unit normal N = g/|g| of the contour, towards rising response; NaN where g vanishes."""
        return self.gradient / self.steepness[:, None]


@dataclass(frozen=True, eq=False)
class LocalGeometry:
    """The four meanings of one 2-jet, in the frame of the gradient."""

    spacing: Tensor = axes("case", units="input/response", about="distance between contours, 1/|g|")
    spacing_rate: Tensor = axes(
        "case", units="1/input", about="N'HN/|g|: contours crowd along the attack where positive"
    )
    turning: Tensor = axes("case", "n", units="1/input", about="PHN/|g|: how the steepest path turns, a tangent vector")
    normal: Tensor = axes("case", "n", about="unit normal towards rising response")
    scale: Tensor = axes("case", units="input", about="scale of the jet, 0 for exact")


@dataclass(frozen=True, eq=False)
class Curvatures:
    """Principal curvatures of the iso-response hypersurface, most positive (most selective) first."""

    values: Tensor = axes("case", "rank", units="1/input", about="principal curvature, descending")
    directions: Tensor = axes("case", "rank", "n", about="principal directions, orthonormal tangents")
    residuals: Tensor = axes("case", "rank", units="1/input", about="bound on the error of the eigenvalue")
    scale: Tensor = axes("case", units="input", about="scale of the jet, 0 for exact")
    error: Tensor = axes("case", about="relative asymmetry of the jet's Hessian")


def exact_jet(neuron: Neuron, x: Float[Tensor, "case *shape"]) -> Jet:
    """The 2-jet by automatic differentiation; each Hessian product costs about one more backward pass.

    Raises ValueError for invalid inputs. Holds the autograd graph as long as the jet lives.

    Examples
    --------
    >>> import torch
    >>> sphere = Neuron(lambda x: -x.square().sum(1).sqrt(), shape=(3,))   # super-level sets are balls
    >>> jet = exact_jet(sphere, torch.tensor([[0.0, 0.0, 2.0]]))
    >>> normal_curvature(jet, torch.tensor([[1.0, 0.0, 0.0]]))
    tensor([0.5000])
    """
    neuron.require_inputs(x)
    value, gradient, product = neuron.linearise(x)
    flat = gradient.flatten(1)
    hessian = SymmetricOperator(lambda v: product(v.reshape(x.shape)).flatten(1), flat)
    zero = torch.zeros_like(value)
    return Jet(x, value, flat, hessian, zero, zero, "exact")


def secant_jet(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    *,
    scale: float | Tensor,
    basis: Float[Tensor, "case k n"] | None = None,
) -> Jet:
    """The 2-jet at a finite scale: central gradient differences along an orthonormal basis.

    Costs one gradient and two per basis direction. Exact where the response is quadratic at that scale;
    the asymmetry of the measured Hessian is returned as its error (it says how far from quadratic).

    Parameters
    ----------
    scale
        Half-width of the differences in input units, a number or one per case. A good one is the size
        of the perturbation that is asked about, e.g. `predict_distance(..., order=1).distance`.
    basis
        Orthonormal directions (case, k, n) in which curvature is measured; all n axes if left out,
        which stores n x n numbers per case. Probes may leave the box by `scale`.

    Raises
    ------
    ValueError
        Invalid inputs, a scale that is not positive or of the wrong shape, a basis of the wrong shape.
    """
    neuron.require_inputs(x)
    value, gradient = neuron.value_and_grad(x)
    gradient = gradient.flatten(1)
    cases, n = gradient.shape
    scales = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    if scales.shape not in ((), (cases,)):
        raise ValueError(f"scale must be a number or have shape ({cases},), got {tuple(scales.shape)}.")
    scales = scales.expand(cases)
    if not bool((scales > 0).all()):
        raise ValueError(f"scale must be positive, got {scale}; 0 is what exact_jet measures.")
    if basis is None:
        basis = torch.eye(n, dtype=x.dtype, device=x.device).expand(cases, n, n)
    if basis.shape[0] != cases or basis.shape[2:] != (n,):
        raise ValueError(f"basis must have shape ({cases}, k, {n}), got {tuple(basis.shape)}.")
    changes = torch.empty_like(basis)
    for k in range(basis.shape[1]):
        probe = (scales[:, None] * basis[:, k]).reshape(x.shape)
        ahead, behind = neuron.value_and_grad(x + probe)[1], neuron.value_and_grad(x - probe)[1]
        changes[:, k] = (ahead - behind).flatten(1) / (2 * scales[:, None])
    measured = from_secants(basis, changes)
    return Jet(x, value, gradient, measured.operator(), scales, measured.asymmetry, "secant")


def krylov_secants(
    neuron: Neuron,
    x: Float[Tensor, "case n"],
    value: Float[Tensor, " case"],
    gradient: Float[Tensor, "case n"],
    displacement: Float[Tensor, "case n"],
    steps: int,
) -> SecantOperator:
    """The Hessian at the scale of `displacement`, in the `steps`-dimensional Krylov space it spans.

    `value` and `gradient` are those of the flat `neuron` at `x`.

    The first secant runs along the displacement itself, each next one along what the last change of the
    gradient added, all of the same length, clipped to the box and restricted to the elements that the
    displacement moves. One gradient each. Each change is corrected along its own step so that the
    quadratic passes through the response at every probe: the value there is known anyway, and it holds
    the curvature weighted as a prediction over that distance needs it (with it the median error of the
    second-order prediction falls fivefold, `benchmarks/digits.py`).
    """
    moving = displacement != 0
    length = displacement.norm(dim=1, keepdim=True)
    tried, changes = [], []
    step = displacement
    for _ in range(steps):
        ahead, behind = neuron.box.clip(x + step) - x, neuron.box.clip(x - step) - x
        roomier = ahead.norm(dim=1, keepdim=True) >= 0.5 * behind.norm(dim=1, keepdim=True)
        step = torch.where(roomier, ahead, behind)
        reached, there = neuron.value_and_grad(x + step)
        change = there - gradient
        along = 2 * (reached - value - (gradient * step).sum(1)) - (change * step).sum(1)
        change = change + _divide(along[:, None] * step, (step * step).sum(1, keepdim=True))
        tried.append(step)
        changes.append(change)
        hessian = from_secants(torch.stack(tried, 1), torch.stack(changes, 1))
        rest = torch.where(moving, hessian.images[:, -1], torch.zeros_like(step))
        for _ in range(2):
            rest = rest - torch.einsum("ck,ckn->cn", torch.einsum("ckn,cn->ck", hessian.basis, rest), hessian.basis)
        step = _divide(rest, rest.norm(dim=1, keepdim=True)) * length
    return hessian


def local_geometry(jet: Jet) -> LocalGeometry:
    """Spacing, spacing rate and turning of the contours at the jet's point: one Hessian product."""
    normal, steepness = jet.normal, jet.steepness
    bent = (jet.hessian @ normal) / steepness[:, None]
    rate = (normal * bent).sum(1)
    return LocalGeometry(1 / steepness, rate, bent - rate[:, None] * normal, normal, jet.scale)


def shape_operator(jet: Jet) -> SymmetricOperator:
    """The shape operator -PHP/|g| of the contour, on flattened inputs; P removes the normal."""
    normal, steepness = jet.normal, jet.steepness

    def product(v: Tensor) -> Tensor:
        tangent = v - (normal * v).sum(1, keepdim=True) * normal
        bent = jet.hessian @ tangent
        return -(bent - (normal * bent).sum(1, keepdim=True) * normal) / steepness[:, None]

    return SymmetricOperator(product, jet.gradient)


def normal_curvature(jet: Jet, direction: Float[Tensor, "case *shape"]) -> Float[Tensor, " case"]:
    """Curvature (case,), in 1/input, of the contour along the tangential part of `direction`.

    NaN where the direction has no tangential part or the gradient vanishes. One Hessian product.

    Raises ValueError for directions of another size than the jet's inputs.
    """
    flat = direction.flatten(1)
    if flat.shape != jet.gradient.shape:
        raise ValueError(
            f"direction must have the shape of the inputs, {tuple(jet.point.shape)}, got {tuple(direction.shape)}."
        )
    normal = jet.normal
    tangent = flat - (normal * flat).sum(1, keepdim=True) * normal
    length = tangent.norm(dim=1, keepdim=True)
    seen = length > 100 * torch.finfo(flat.dtype).eps * flat.norm(dim=1, keepdim=True)
    tangent = torch.where(seen, tangent / length, torch.full_like(tangent, float("nan")))
    return -(tangent * (jet.hessian @ tangent)).sum(1) / jet.steepness


def principal_curvatures(jet: Jet, rank: int, *, generator: Generator, steps: int | None = None) -> Curvatures:
    """The `rank` principal curvatures of largest size, positive ones first, with directions and residuals.

    Lanczos with the normal deflated. With `steps` = n - 1 every curvature is found; the default is
    4 * rank + 20 products or n - 1, whichever is smaller.

    Raises
    ------
    ValueError
        A rank that is not between 1 and n - 1, or steps below the rank.

    Warns
    -----
    FlatHessianWarning
        An exact jet whose Hessian vanishes in some case: zero then says "affine here", not "straight".
    """
    n = jet.gradient.shape[1]
    if not 1 <= rank <= n - 1:
        raise ValueError(f"rank must be between 1 and {n - 1} (input elements minus the normal), got {rank}.")
    steps = min(n - 1, 4 * rank + 20) if steps is None else min(steps, n - 1)
    if steps < rank:
        raise ValueError(f"steps must be at least the rank {rank}, got {steps}.")
    normal = torch.nan_to_num(jet.normal)
    start = torch.randn(jet.gradient.shape, generator=generator, dtype=normal.dtype, device=generator.device)
    pairs = lanczos(
        shape_operator(jet), steps, start=start.to(normal.device), deflate=normal[:, None], generator=generator
    )
    if jet.estimator == "exact" and bool((pairs.values == 0).all(1).any()):
        warnings.warn(
            "the exact Hessian vanishes: the response is affine here (a linear neuron, or one piece of a "
            "ReLU network), so curvature 0 says nothing about bending; measure it at a finite scale with "
            "secant_jet(neuron, x, scale=...).",
            FlatHessianWarning,
            stacklevel=2,
        )
    order = pairs.values.abs().argsort(dim=1, descending=True)[:, :rank]
    order = order.gather(1, pairs.values.gather(1, order).argsort(dim=1, descending=True))
    directions = pairs.vectors.gather(1, order[:, :, None].expand(-1, -1, n))
    return Curvatures(pairs.values.gather(1, order), directions, pairs.residuals.gather(1, order), jet.scale, jet.error)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """The quotient a / b, zero where b is."""
    return torch.where(b > 0, a / torch.where(b > 0, b, torch.ones_like(b)), torch.zeros_like(a))
