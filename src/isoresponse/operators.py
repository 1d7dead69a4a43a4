"""Symmetric operators, one per case, that are only ever multiplied with; nothing here knows a neuron.

The operator itself, and what a handful of *secants* (steps and the changes of a gradient along them) say
about an operator or about its inverse. What products alone tell of its spectrum is in `spectra`, of its trace in `xtrace`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SymmetricOperator:
    """One symmetric n x n operator per case, known by its products.

    Parameters
    ----------
    matvec
        Maps (case, n) to (case, n); row i is the product of case i's operator.
    like
        Any tensor (case, n) with the operator's sizes, dtype and device.
    restrict
        Makes the operator of some of the cases (indices), so that cases that are done cost nothing. Left out, `select` goes on
        multiplying all of them and keeps the rows that are asked for.
    """

    matvec: Callable[[Tensor], Tensor]
    like: Tensor
    restrict: Callable[[Tensor], SymmetricOperator] | None = None

    def __matmul__(self, v: Float[Tensor, "case n"]) -> Float[Tensor, "case n"]:
        return self.matvec(v)

    @property
    def size(self) -> int:
        """n, the number of input elements."""
        return self.like.shape[1]

    def select(self, cases: Tensor) -> SymmetricOperator:
        """The operator of some of the cases (indices)."""
        if self.restrict is not None:
            return self.restrict(cases)

        def product(v: Tensor) -> Tensor:
            return self.matvec(torch.zeros_like(self.like).index_copy(0, cases, v))[cases]

        return SymmetricOperator(product, self.like[cases])

    def dense(self) -> Float[Tensor, "case n n"]:
        """All entries, by n products; for tests and tiny problems."""
        eye = torch.eye(self.size, dtype=self.like.dtype, device=self.like.device)
        columns = [self.matvec(e.expand_as(self.like)) for e in eye]
        return torch.stack(columns, dim=2)


@dataclass(frozen=True, eq=False)
class SecantOperator:
    """The symmetric operator that a few secants determine, and how far they were from symmetric.

    `basis` (case, k, n) is orthonormal, `images` (case, k, n) the operator's products with it; on the
    complement of the basis the operator is as small as symmetry allows. `asymmetry` (case,) is the
    Frobenius norm of the antisymmetric part that was averaged away, relative to the symmetric part; `skew`
    (case,) the largest singular value of that antisymmetric part, in the operator's own units.
    """

    basis: Tensor
    images: Tensor
    asymmetry: Tensor
    skew: Tensor

    def __matmul__(self, v: Tensor) -> Tensor:
        """Product (case, n): H v = Q W'v + W Q'v - Q (Q'W) Q'v, with Q the basis and W its images."""
        return secant_product(self.basis, self.images, v)

    def operator(self) -> SymmetricOperator:
        """The same thing as a `SymmetricOperator`."""
        return SymmetricOperator(
            lambda v: self @ v, like=self.basis.sum(1), restrict=lambda c: self.select(c).operator()
        )

    def select(self, cases: Tensor) -> SecantOperator:
        """The operator of some of the cases (indices)."""
        return SecantOperator(self.basis[cases], self.images[cases], self.asymmetry[cases], self.skew[cases])


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
    asymmetry = torch.where(size > 0, asymmetry, torch.zeros_like(asymmetry))
    return SecantOperator(basis, images, asymmetry, spectral_norm(skew))


def length(v: Tensor, *, keepdim: bool = False) -> Tensor:
    """Euclidean norm along the last axis: without overflow or underflow, and summed pairwise.

    In float32 `torch.linalg.vector_norm` loses up to 5e-5 at the size of an image (150,528 elements).
    """
    top = v.abs().amax(-1, keepdim=True)
    unit = torch.where((top > 0) & torch.isfinite(top), top, torch.ones_like(top))
    norm = (v / unit).square().sum(-1, keepdim=True).sqrt() * unit
    return norm if keepdim else norm[..., 0]


def spectral_norm(matrices: Float[Tensor, "case k k"]) -> Float[Tensor, " case"]:
    """The largest singular value of each matrix, NaN where one is not finite."""
    finite = torch.isfinite(matrices).flatten(1).all(1)
    norms = torch.linalg.matrix_norm(torch.where(finite[:, None, None], matrices, torch.zeros_like(matrices)), 2)
    return norms.masked_fill(~finite, float("nan"))


def complement(known: Float[Tensor, "case k n"]) -> Float[Tensor, "case m n"]:
    """An orthonormal basis (case, n - k, n) of the complement of orthonormal rows (case, k, n)."""
    k = known.shape[1]
    if k == 0:
        n = known.shape[2]
        return torch.eye(n, dtype=known.dtype, device=known.device).expand(len(known), n, n)
    full = torch.linalg.qr(torch.nan_to_num(known).transpose(1, 2), mode="complete").Q
    return full[:, :, k:].transpose(1, 2)


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
