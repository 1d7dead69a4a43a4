"""The trace of a symmetric operator from a few products, with its standard error: XTrace."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse.operators import SymmetricOperator, complement, length


def trace(
    operator: SymmetricOperator,
    probes: int,
    *,
    deflate: Float[Tensor, "case k n"] | None = None,
    generator: Generator,
) -> tuple[Float[Tensor, " case"], Float[Tensor, " case"]]:
    """Trace (case,) on the complement of `deflate`, and its standard error: XTrace (Epperly, Tropp, Webber 2024).

    `probes` random vectors and as many products more: every probe's image joins a basis on which the trace is exact, and
    estimates what the other images' basis leaves over, so the error falls with the spectrum and not only with the root
    of the number. Where 2 * `probes` reaches the dimension the trace is taken exactly, and its error is rounding.
    """
    cases, n = operator.like.shape
    known = operator.like.new_zeros((cases, 0, n)) if deflate is None else deflate
    free = n - known.shape[1]
    eps = torch.finfo(operator.like.dtype).eps
    if 2 * probes >= free:
        full = complement(known)
        terms = torch.stack([(q * (operator @ q)).sum(1) for q in full.unbind(1)], 1)
        return terms.sum(1), eps * terms.abs().sum(1)
    draws = torch.randn((probes, n), generator=generator, dtype=known.dtype, device=generator.device).to(known.device)
    omega = draws.expand(cases, probes, n)
    omega = omega - torch.einsum("cpk,ckn->cpn", torch.einsum("cpn,ckn->cpk", omega, known), known)
    images = torch.stack([operator @ w for w in omega.unbind(1)], 1)
    finite = torch.isfinite(images).flatten(1).all(1)
    images = torch.where(finite[:, None, None], images, torch.zeros_like(images))
    # --- an orthonormal basis of the images; the jitter only matters where they are dependent and multiply to zero
    size = length(images.flatten(1)).clamp_min(torch.finfo(known.dtype).tiny)
    basis, upper = torch.linalg.qr((images / size[:, None, None]).transpose(1, 2))
    basis = basis.transpose(1, 2)
    upper = upper + 10 * eps * torch.eye(probes, dtype=upper.dtype, device=upper.device)
    basis = basis - torch.einsum("cpk,ckn->cpn", torch.einsum("cpn,ckn->cpk", basis, known), known)
    again = torch.stack([operator @ q for q in basis.unbind(1)], 1)
    # --- leave one out: without probe i the basis loses the direction s_i (columns of the inverse transpose of R)
    eye = torch.eye(probes, dtype=upper.dtype, device=upper.device).expand_as(upper)
    out = torch.linalg.solve_triangular(upper.transpose(1, 2), eye, upper=False)
    out = out / out.norm(dim=1, keepdim=True)
    inner = torch.einsum("cpn,cqn->cpq", basis, again)
    captured = torch.diagonal(inner, dim1=1, dim2=2).sum(1, keepdim=True)
    captured = captured - torch.einsum("cpi,cpq,cqi->ci", out, inner, out)
    seen = torch.einsum("cpn,cin->cpi", basis, omega)
    seen = seen - out * (out * seen).sum(1, keepdim=True)
    rest = omega - torch.einsum("cpi,cpn->cin", seen, basis)
    rest_image = images - torch.einsum("cpi,cpn->cin", seen, again)
    ratio = (free - probes + 1) / rest.square().sum(2)  # probes of equal length have less variance
    each = captured + ratio * (rest * rest_image).sum(2)
    value = each.mean(1).masked_fill(~finite, float("nan"))
    spread = each.std(1) / probes**0.5 + eps * size
    return value, spread.masked_fill(~finite, float("nan"))
