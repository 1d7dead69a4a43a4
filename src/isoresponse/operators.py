"""Symmetric operators, one per case, that are only ever multiplied with; nothing here knows a neuron.

Three tools: the operator itself, Lanczos with deflation (eigenvalues at both ends, with residuals), and
what a handful of *secants* (steps and the changes of a gradient along them) say about an operator or
about its inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class SymmetricOperator:
    """One symmetric n x n operator per case, known by its products.

    Parameters
    ----------
    matvec
        Maps (case, n) to (case, n); row i is the product of case i's operator.
    like
        Any tensor (case, n) with the operator's sizes, dtype and device.
    """

    matvec: Callable[[Tensor], Tensor]
    like: Tensor

    def __matmul__(self, v: Float[Tensor, "case n"]) -> Float[Tensor, "case n"]:
        return self.matvec(v)

    @property
    def size(self) -> int:
        """n, the number of input elements."""
        return self.like.shape[1]

    def dense(self) -> Float[Tensor, "case n n"]:
        """All entries, by n products; for tests and tiny problems."""
        eye = torch.eye(self.size, dtype=self.like.dtype, device=self.like.device)
        columns = [self.matvec(e.expand_as(self.like)) for e in eye]
        return torch.stack(columns, dim=2)


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs: `values` (case, k) ascending, `vectors` (case, k, n) orthonormal,
    `residuals` (case, k), each a bound on the distance of its value to the nearest eigenvalue.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def lanczos(
    operator: SymmetricOperator,
    steps: int,
    *,
    start: Float[Tensor, "case n"],
    deflate: Float[Tensor, "case k n"] | None = None,
    generator: Generator | None = None,
) -> RitzPairs:
    """`steps` Ritz pairs of `operator` on the complement of `deflate`, by Lanczos (1950).

    Two-pass full reorthogonalisation, also against `deflate` in every step: a projection inside the
    operator alone lets rounding drift the basis into the deflated directions and invents eigenvalues.
    Where the Krylov space of a case is exhausted it goes on with a random vector, so that multiple
    eigenvalues are found; those draws come from `generator` (required where that can happen).

    Parameters
    ----------
    steps
        Number of products; at most n minus the deflated directions.
    start
        First direction per case; only its part outside `deflate` counts.
    deflate
        Orthonormal directions (case, k, n) to leave out.
    """
    cases, n = start.shape
    known = start.new_zeros((cases, 0, n)) if deflate is None else deflate
    basis = start.new_zeros((cases, steps, n))
    diagonal, off = start.new_zeros((cases, steps)), start.new_zeros((cases, steps))
    tiny = torch.finfo(start.dtype).eps * 10
    vector = _unit(_orthogonalise(_orthogonalise(start, known), known))
    scale = start.new_zeros(cases)
    for k in range(steps):
        basis[:, k] = vector
        product = operator @ vector
        scale = torch.maximum(scale, product.norm(dim=1))
        diagonal[:, k] = (vector * product).sum(1)
        rest = product
        for _ in range(2):
            rest = _orthogonalise(_orthogonalise(rest, known), basis[:, : k + 1])
        length = rest.norm(dim=1)
        exhausted = length <= tiny * scale.clamp_min(torch.finfo(start.dtype).tiny)
        off[:, k] = length.masked_fill(exhausted, 0.0)
        if k + 1 < steps:
            fresh = rest
            if generator is not None:
                draw = torch.randn(start.shape, generator=generator, dtype=start.dtype, device=generator.device)
                draw = draw.to(start.device)
                for _ in range(2):
                    draw = _orthogonalise(_orthogonalise(draw, known), basis[:, : k + 1])
                fresh = torch.where(exhausted[:, None], draw, rest)
            vector = _unit(fresh)
    tridiagonal = torch.diag_embed(diagonal)
    if steps > 1:
        side = torch.diag_embed(off[:, :-1], offset=1)
        tridiagonal = tridiagonal + side + side.transpose(1, 2)
    finite = torch.isfinite(tridiagonal).flatten(1).all(1)
    values, small = torch.linalg.eigh(torch.where(finite[:, None, None], tridiagonal, torch.zeros_like(tridiagonal)))
    values = values.masked_fill(~finite[:, None], float("nan"))
    vectors = torch.einsum("ckm,ckn->cmn", small, basis)
    residuals = off[:, -1:] * small[:, -1, :].abs()
    return RitzPairs(values, vectors, residuals)


@dataclass(frozen=True, eq=False)
class SecantOperator:
    """The symmetric operator that a few secants determine, and how far they were from symmetric.

    `basis` (case, k, n) is orthonormal, `images` (case, k, n) the operator's products with it; on the
    complement of the basis the operator is as small as symmetry allows. `asymmetry` (case,) is the
    Frobenius norm of the antisymmetric part that was averaged away, relative to the symmetric part.
    """

    basis: Tensor
    images: Tensor
    asymmetry: Tensor

    def __matmul__(self, v: Tensor) -> Tensor:
        """Product (case, n): H v = Q W'v + W Q'v - Q (Q'W) Q'v, with Q the basis and W its images."""
        return secant_product(self.basis, self.images, v)

    def operator(self) -> SymmetricOperator:
        """The same thing as a `SymmetricOperator`."""
        return SymmetricOperator(lambda v: self @ v, like=self.basis.sum(1))


def secant_product(basis: Tensor, images: Tensor, v: Tensor) -> Tensor:
    """Product of the least symmetric operator with H basis_i = images_i; see `SecantOperator`."""
    inside = torch.einsum("ckn,cn->ck", basis, v)
    coupled = torch.einsum("ckn,cn->ck", images, v)
    small = torch.einsum("ckn,cln->ckl", basis, images)
    correction = torch.einsum("ckl,cl->ck", small, inside)
    return torch.einsum("ckn,ck->cn", basis, coupled - correction) + torch.einsum("ckn,ck->cn", images, inside)


def from_secants(steps: Float[Tensor, "case k n"], changes: Float[Tensor, "case k n"]) -> SecantOperator:
    """The least symmetric operator that maps each step to the gradient's change along it.

    Steps that are (nearly) combinations of earlier ones are left out for that case. Where the changes
    are not those of any symmetric operator (a finite step across a kink), the antisymmetric part is
    averaged away and reported.
    """
    basis, images = torch.zeros_like(steps), torch.zeros_like(changes)
    tiny = 100 * torch.finfo(steps.dtype).eps
    for k in range(steps.shape[1]):  # Gram-Schmidt, carrying the images along
        step, change = steps[:, k], changes[:, k]
        length = step.norm(dim=1, keepdim=True)
        for _ in range(2):
            weights = torch.einsum("ckn,cn->ck", basis, step)
            step = step - torch.einsum("ck,ckn->cn", weights, basis)
            change = change - torch.einsum("ck,ckn->cn", weights, images)
        left = step.norm(dim=1, keepdim=True)
        keep = left > tiny * length.clamp_min(torch.finfo(steps.dtype).tiny)
        safe = torch.where(keep, left, torch.ones_like(left))
        basis[:, k] = torch.where(keep, step / safe, torch.zeros_like(step))
        images[:, k] = torch.where(keep, change / safe, torch.zeros_like(change))
    small = torch.einsum("ckn,cln->ckl", basis, images)
    skew = 0.5 * (small - small.transpose(1, 2))
    even = 0.5 * (small + small.transpose(1, 2))
    size = even.flatten(1).norm(dim=1)
    asymmetry = skew.flatten(1).norm(dim=1) / size.clamp_min(torch.finfo(steps.dtype).tiny)
    images = images - torch.einsum("clk,cln->ckn", skew, basis)
    return SecantOperator(basis, images, torch.where(size > 0, asymmetry, torch.zeros_like(asymmetry)))


def inverse_secant_product(
    steps: Float[Tensor, "case m n"], changes: Float[Tensor, "case m n"], scale: Float[Tensor, " case"], v: Tensor
) -> Float[Tensor, "case n"]:
    """Product with the inverse operator learnt from secants: the two-loop recursion of L-BFGS.

    Pairs are ordered from old to new; a pair of zeros is an empty place. `scale` multiplies the identity
    that stands for all directions not yet seen (Nocedal 1980).
    """
    overlap = (steps * changes).sum(2)
    weight = torch.where(
        overlap > 0, 1 / torch.where(overlap > 0, overlap, torch.ones_like(overlap)), torch.zeros_like(overlap)
    )
    memory = steps.shape[1]
    along = [overlap[:, 0]] * memory
    for k in reversed(range(memory)):
        along[k] = weight[:, k] * (steps[:, k] * v).sum(1)
        v = v - along[k][:, None] * changes[:, k]
    v = scale[:, None] * v
    for k in range(memory):
        back = weight[:, k] * (changes[:, k] * v).sum(1)
        v = v + (along[k] - back)[:, None] * steps[:, k]
    return v


def _orthogonalise(v: Tensor, basis: Tensor) -> Tensor:
    return v - torch.einsum("ckn,ck->cn", basis, torch.einsum("ckn,cn->ck", basis, v))


def _unit(v: Tensor) -> Tensor:
    length = v.norm(dim=1, keepdim=True)
    return torch.where(length > 0, v / torch.where(length > 0, length, torch.ones_like(length)), torch.zeros_like(v))
