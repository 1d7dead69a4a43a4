"""The local geometry of iso-response contours, from a 2-jet: value, gradient and Hessian at a point.

One sign convention: the normal N = g/|g| points to rising response, and a curvature is
kappa = -t'Ht/|g| for a unit tangent t. Positive: the contour bends outward, round the region of higher
response (exo-origin, selective); the set {f >= c} of a ball of radius r has every kappa = +1/r. Negative:
it bends inward (endo-origin, tolerant). Curvature does not change under any increasing rescaling of the
response: it belongs to the contour, not to the numbers written on it.

No matrix is ever formed: one product with the Hessian and two projections multiply with the shape operator
-PHP/|g| (P removes the normal), and `spectra` does the rest. Every result carries the scale and the estimator
of its jet, a status per case, and a band: what the computation left over (residual, standard error, rounding)
and what the jet itself is uncertain of at its scale.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.jets import Jet
from isoresponse.loop import Status, count_statuses, failed, mark
from isoresponse.operators import SymmetricOperator, complement, length
from isoresponse.spectra import End, Wanted, extreme_eigenpairs

SCALE = {"units": "input", "about": "scale of the jet, 0 for exact"}
STATUS = {"about": "how the case ended"}
ESTIMATOR = {"about": "estimator of the jet"}


class FlatHessianWarning(UserWarning):
    """The exact Hessian vanished: an affine piece, whose curvature needs a finite scale."""


@dataclass(frozen=True, eq=False)
class Curvatures:
    """Principal curvatures of the iso-response hypersurface, most positive (most selective) first.

    `error` is the whole band of a value at the stated scale: its residual, and the error of the jet.
    """

    values: Tensor = axes("case", "rank", units="1/input", about="principal curvature, descending")
    error: Tensor = axes("case", "rank", units="1/input", about="error of the value at the stated scale")
    directions: Tensor = axes("case", "rank", "n", about="principal directions, orthonormal tangents")
    residuals: Tensor = axes(
        "case", "rank", units="1/input", about="bound on the error of the eigenvalue, with rounding"
    )
    products: Tensor = axes("case", about="Hessian products spent")
    scale: Tensor = axes("case", **SCALE)
    status: Tensor = axes("case", **STATUS)
    estimator: str = axes(**ESTIMATOR)

    def __repr__(self) -> str:
        return summary("Curvatures", self.values[:, 0], f"largest of {self.values.shape[1]}", self)


@dataclass(frozen=True, eq=False)
class NormalCurvature:
    """Curvature of the contour along one tangent direction per case."""

    value: Tensor = axes("case", units="1/input", about="normal curvature")
    error: Tensor = axes("case", units="1/input", about="error of the value at the stated scale")
    scale: Tensor = axes("case", **SCALE)
    status: Tensor = axes("case", **STATUS)
    estimator: str = axes(**ESTIMATOR)

    def __repr__(self) -> str:
        return summary("NormalCurvature", self.value, "value", self)


@dataclass(frozen=True, eq=False)
class LocalGeometry:
    """The four meanings of one 2-jet, in the frame of the gradient: spacing, spacing rate, turning, curvatures."""

    spacing: Tensor = axes("case", units="input/response", about="distance between contours, 1/|g|")
    spacing_rate: Tensor = axes(
        "case", units="1/input", about="N'HN/|g|: contours crowd along the attack where positive"
    )
    turning: Tensor = axes("case", "n", units="1/input", about="PHN/|g|: how the steepest path turns, a tangent vector")
    normal: Tensor = axes("case", "n", about="unit normal towards rising response")
    spacing_error: Tensor = axes("case", units="input/response", about="error of the spacing at the stated scale")
    error: Tensor = axes("case", units="1/input", about="error of spacing rate and turning at the stated scale")
    scale: Tensor = axes("case", **SCALE)
    status: Tensor = axes("case", **STATUS)
    estimator: str = axes(**ESTIMATOR)
    curvatures: Curvatures | None = axes(about="principal curvatures, where a rank was asked for", default=None)

    def __repr__(self) -> str:
        return summary("LocalGeometry", self.spacing, "spacing", self)


# --- the four blocks --------------------------------------------------------------------------------------


def local_geometry(jet: Jet, *, rank: int | None = None, generator: Generator | None = None) -> LocalGeometry:
    """Spacing, spacing rate and turning of the contours at the jet's point, by one Hessian product; with `rank` the
    `curvatures` of largest size too.

    NaN in the cases whose jet has no geometry, with their status.

    Raises
    ------
    ValueError
        A rank without a generator, or one that `principal_curvatures` refuses.
    """
    if rank is not None and generator is None:
        raise ValueError(f"curvatures of rank {rank} need a generator; give generator=torch.Generator().")
    normal, steepness = jet.normal, jet.steepness
    bent = (jet.hessian @ normal) / steepness[:, None]
    rate = (normal * bent).sum(1)
    rounding = torch.finfo(rate.dtype).eps * length(bent)
    tilt = jet.gradient_error / steepness
    return LocalGeometry(
        spacing=1 / steepness,
        spacing_rate=rate,
        turning=bent - rate[:, None] * normal,
        normal=normal,
        spacing_error=(tilt + torch.finfo(rate.dtype).eps) / steepness,
        error=jet.error / steepness + 3 * tilt * length(bent) + rounding,
        scale=jet.scale,
        status=jet.status,
        estimator=jet.estimator,
        curvatures=None if rank is None or generator is None else principal_curvatures(jet, rank, generator=generator),
    )


def shape_operator(jet: Jet) -> SymmetricOperator:
    """The shape operator -PHP/|g| of the contour, on flattened inputs; P removes the normal."""
    normal, steepness = jet.normal, jet.steepness

    def product(v: Tensor) -> Tensor:
        tangent = v - (normal * v).sum(1, keepdim=True) * normal
        bent = jet.hessian @ tangent
        return -(bent - (normal * bent).sum(1, keepdim=True) * normal) / steepness[:, None]

    return SymmetricOperator(product, jet.gradient, lambda cases: shape_operator(jet.select(cases)))


def normal_curvature(jet: Jet, direction: Float[Tensor, "case *shape"]) -> NormalCurvature:
    """Curvature, in 1/input, of the contour along the tangential part of `direction`. One Hessian product.

    NaN with status UNDEFINED where the direction has no tangential part, or leaves the directions that the jet measured.
    Warns as `principal_curvatures` does.

    Raises ValueError for directions of another size than the jet's inputs.
    """
    flat = direction.flatten(1)
    if flat.shape != jet.gradient.shape:
        raise ValueError(
            f"direction must have the shape of the inputs, {tuple(jet.point.shape)}, got {tuple(direction.shape)}."
        )
    normal, eps = jet.normal, torch.finfo(flat.dtype).eps
    tangent = flat - (normal * flat).sum(1, keepdim=True) * normal
    size = length(tangent)
    tangent = tangent / size[:, None]
    defined = size > 100 * eps * length(flat)
    if jet.basis is not None:
        inside = length(torch.einsum("ckn,cn->ck", jet.basis, tangent))
        defined = defined & (inside > 1 - 1e-6)
    bent = (jet.hessian @ tangent) / jet.steepness[:, None]
    value = -(tangent * bent).sum(1)
    warn_where_flat(jet, (bent == 0).all(1))
    status = mark(jet.status, (~defined & ~failed(jet.status), Status.UNDEFINED))
    error = jet_error(jet, value) + 4 * eps * length(bent)
    bad = failed(status)
    return NormalCurvature(
        value.masked_fill(bad, torch.nan), error.masked_fill(bad, torch.nan), jet.scale, status, jet.estimator
    )


# --- the curvatures of the whole contour, or of a part of it ----------------------------------------------


def principal_curvatures(
    jet: Jet,
    rank: int,
    *,
    generator: Generator,
    end: End = "both",
    rtol: float | None = None,
    max_steps: int | None = None,
) -> Curvatures:
    """The `rank` principal curvatures of largest size, or at one end of the spectrum, with directions and residuals.

    Lanczos with the normal deflated, until every residual is below `rtol` times the largest curvature of the case. A case
    that does not get there has status MAX_STEPS, and its residuals say how far it got. A curvature that is repeated exactly
    amid many different ones may be found once only; `rtol=0` goes on until every direction has been seen. Where the jet
    measured some directions only, these are the curvatures of the contour within them.

    Parameters
    ----------
    end
        "both": the largest in size; "outward": the most positive (selective); "inward": the most negative (tolerant).
    rtol
        Relative residual; by default the square root of the precision, 1.5e-8 in float64 and 3.5e-4 in float32. Values that
        are well apart from their neighbours are about its square off.
    max_steps
        Hessian products at most, by default 20 * rank + 100, or as many as there are directions.

    Raises
    ------
    ValueError
        A rank that is not between 1 and the number of tangent directions, `max_steps` below the rank, an unknown end.

    Warns
    -----
    FlatHessianWarning
        An exact jet whose Hessian vanishes in some case: zero then says "affine here", not "straight".

    Examples
    --------
    >>> import torch
    >>> from isoresponse import Neuron, exact_jet
    >>> cell = Neuron(lambda x: -(x[:, 0] ** 2 + 4 * x[:, 1] ** 2).sqrt() , shape=(3,))
    >>> jet = exact_jet(cell, torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64))
    >>> found = principal_curvatures(jet, 1, generator=torch.Generator())   # of an ellipse at its vertex: a / b^2
    >>> round(found.values.item(), 6), bool(found.error < 1e-6)
    (2.0, True)
    """
    part = tangents(jet)
    if not 1 <= rank <= part.size:
        raise ValueError(f"rank must be between 1 and {part.size} ({part.why}), got {rank}.")
    if max_steps is not None and max_steps < rank:
        raise ValueError(f"max_steps must be at least the rank {rank}, got {max_steps}.")
    if end not in ("both", "outward", "inward"):
        raise ValueError(f"end must be 'both', 'outward' or 'inward', got {end!r}.")
    if rtol is not None and not rtol >= 0:
        raise ValueError(f"rtol must not be negative, got {rtol}.")
    wanted = Wanted(rank, end, rtol, max_steps)
    pairs = extreme_eigenpairs(part.operator, wanted, deflate=part.deflate, generator=generator)
    warn_where_flat(jet, (pairs.values == 0).all(1))
    status = torch.where(failed(part.status), part.status, pairs.status)
    bad = failed(status)[:, None]
    values, residuals = (t.masked_fill(bad, torch.nan) for t in (pairs.values, pairs.residuals))
    directions = part.lift(pairs.vectors).masked_fill(bad[:, :, None], torch.nan)
    products = pairs.products.masked_fill(bad[:, 0], 0)
    error = residuals + jet_error(jet, values)
    return Curvatures(values, error, directions, residuals, products, jet.scale, status, jet.estimator)


def subspace_curvatures(jet: Jet, basis: Float[Tensor, "case k *direction"]) -> Curvatures:
    """All k principal curvatures of the contour within the tangential parts of the directions in `basis` (case, k, *shape).

    The shape operator is compressed to them by k Hessian products. NaN with status UNDEFINED where the tangential parts are
    dependent, e.g. because the basis contains the gradient, or leave the directions that the jet measured. Warns as
    `principal_curvatures` does.

    Raises ValueError for a basis of another shape, or of n or more directions (there are n - 1 tangents).
    """
    cases, n = jet.gradient.shape
    basis = basis.flatten(2) if basis.ndim > 3 else basis
    if basis.ndim != 3 or basis.shape[0] != cases or basis.shape[2] != n or not 1 <= basis.shape[1] < n:
        raise ValueError(f"basis must have shape ({cases}, k, {n}) with k below {n}, got {tuple(basis.shape)}.")
    normal = torch.nan_to_num(jet.normal)
    unit = torch.nan_to_num(basis / length(basis, keepdim=True))
    tangent = unit - torch.einsum("ckn,cn->ck", unit, normal)[:, :, None] * normal[:, None]
    known = torch.linalg.qr(tangent.transpose(1, 2))
    defined = torch.diagonal(known.R, dim1=1, dim2=2).abs().amin(1) > 1e-6
    rows = known.Q.transpose(1, 2)
    if jet.basis is not None:
        inside = length(torch.einsum("cjn,ckn->cjk", rows, jet.basis))
        defined = defined & (inside > 1 - 1e-6).all(1)
    images = torch.stack([jet.hessian @ r for r in rows.unbind(1)], 1)
    small = -torch.einsum("cjn,ckn->cjk", rows, images) / jet.steepness[:, None, None]
    warn_where_flat(jet, (images == 0).flatten(1).all(1))
    finite = torch.isfinite(small).flatten(1).all(1)
    status = mark(
        jet.status,
        (~finite & ~failed(jet.status), Status.NOT_FINITE),
        (~defined & ~failed(jet.status), Status.UNDEFINED),
    )
    bad = failed(status)[:, None]
    even = 0.5 * (small + small.transpose(1, 2))
    values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], even, torch.zeros_like(even)))
    values, vectors = values.flip(1), vectors.flip(2)
    rounding = torch.finfo(values.dtype).eps * values.abs().amax(1) + (small - even).flatten(1).norm(dim=1)
    residuals = rounding[:, None].expand_as(values).masked_fill(bad, torch.nan)
    directions = torch.einsum("ckj,ckn->cjn", vectors, rows).masked_fill(bad[:, :, None], torch.nan)
    values = values.masked_fill(bad, torch.nan)
    spent = torch.full_like(status, basis.shape[1])
    error = residuals + jet_error(jet, values)
    return Curvatures(values, error, directions, residuals, spent, jet.scale, status, jet.estimator)


# --- what they share --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tangents:
    """The shape operator on the tangent directions that a jet knows, in coordinates that suit it."""

    operator: SymmetricOperator
    deflate: Tensor | None
    lift: Callable[[Tensor], Tensor]  # (case, rank, coordinates) to (case, rank, n)
    size: int
    why: str
    status: Tensor  # that of the jet, UNDEFINED where fewer directions were measured


def tangents(jet: Jet) -> Tangents:
    """The tangent directions of the contour that `jet` knows: all, or those among the measured ones."""
    n = jet.gradient.shape[1]
    if jet.basis is None:
        normal = torch.nan_to_num(jet.normal)
        _require_tangents(n - 1, n)
        why = "input elements minus the normal"
        return Tangents(_bending(jet), normal[:, None], lambda v: v, n - 1, why, jet.status)
    # --- the measured directions that are tangent: exactly known, whatever the Hessian does elsewhere
    inside = torch.nan_to_num(torch.einsum("ckn,cn->ck", jet.basis, jet.normal))
    rows = torch.einsum(
        "cjk,ckn->cjn", complement(torch.nan_to_num(inside / length(inside, keepdim=True))[:, None]), jet.basis
    )
    _require_tangents(rows.shape[1], n)
    lost = (length(rows) < 0.5).any(1) & ~failed(jet.status)
    images = torch.stack([jet.hessian @ r for r in rows.unbind(1)], 1)
    small = -torch.einsum("cjn,ckn->cjk", rows, images) / jet.steepness[:, None, None]
    return Tangents(
        _small_operator(0.5 * (small + small.transpose(1, 2))), None, lambda v: torch.einsum("crj,cjn->crn", v, rows),
        rows.shape[1], "measured directions minus the normal", mark(jet.status, (lost, Status.UNDEFINED)),
    )  # fmt: skip


def _require_tangents(size: int, n: int) -> None:
    if size < 1:
        raise ValueError(
            f"no tangent directions are known: a contour needs at least 2 input elements (there are {n}), and a measured jet at "
            "least one direction beside the normal."
        )


def _bending(jet: Jet) -> SymmetricOperator:
    """The shape operator on vectors that are tangent already, which saves a projection."""
    normal, slope = jet.normal, -1 / jet.steepness[:, None]

    def product(v: Tensor) -> Tensor:
        bent = jet.hessian @ v
        return torch.addcmul(bent, (normal * bent).sum(1, keepdim=True), normal, value=-1) * slope

    return SymmetricOperator(product, jet.gradient, lambda cases: _bending(jet.select(cases)))


def _small_operator(matrix: Tensor) -> SymmetricOperator:
    return SymmetricOperator(
        lambda v: torch.einsum("cij,cj->ci", matrix, v), matrix[:, 0], lambda cases: _small_operator(matrix[cases])
    )


def jet_error(jet: Jet, curvature: Tensor) -> Tensor:
    """What the jet's own errors can do to `curvature` (case,) or (case, rank), in 1/input."""
    many = (slice(None), *[None] * (curvature.ndim - 1))
    return (jet.error[many] + jet.gradient_error[many] * curvature.abs()) / jet.steepness[many]


def warn_where_flat(jet: Jet, zero: Tensor) -> None:
    """Warn where an exact answer is `zero` (case,) because the Hessian vanishes, in other directions too; called by what a user
    calls.
    """
    zero = zero & ~failed(jet.status)
    if jet.estimator != "exact" or not bool(zero.any()):
        return
    ripple = torch.cos(torch.arange(jet.gradient.shape[1], dtype=jet.gradient.dtype, device=jet.gradient.device))
    if bool((zero & ((jet.hessian @ ripple.expand_as(jet.gradient)) == 0).all(1)).any()):
        warnings.warn(
            "the exact Hessian vanishes: the response is affine here (a linear neuron, or one piece of a "
            "ReLU network), so curvature 0 says nothing about bending; measure it at a finite scale with "
            "secant_jet(neuron, x, scale=...).",
            FlatHessianWarning,
            stacklevel=3,
        )


def summary(name: str, values: Tensor, what: str, result: Any) -> str:
    """One line on a result with `status`, `scale`, `estimator`: how many cases, the median of `values`, what went wrong."""
    sound = ~failed(result.status)
    median = float(values[sound].median()) if bool(sound.any()) else float("nan")
    scale = f"at scale {float(result.scale[sound].median()):.3g}" if result.estimator != "exact" else "exact"
    ended = count_statuses(result.status)
    ended.pop("DONE", None)
    rest = f", {ended}" if ended else ""
    return f"{name}({int(sound.sum())} of {len(sound)} cases, median {what} {median:.4g}, {result.estimator} {scale}{rest})"
