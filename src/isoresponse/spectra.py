"""What products alone tell of the spectrum of a symmetric operator: its extreme eigenvalues, and its density.

Everything is batched over cases and works on the complement of given directions (`deflate`), so that the
normal of a contour never leaks into the curvatures of the contour. Each answer has its own error: a
residual per eigenvalue, the spread over probes of a density. Random
vectors are shared by all cases and depend on the step only, so that a case alone equals itself in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from isoresponse.loop import Status, mark, status_tensor
from isoresponse.operators import SymmetricOperator, length

End = Literal["both", "outward", "inward"]  # which eigenvalues: largest in size, most positive, most negative


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs: `values` (case, k), `vectors` (case, k, n) orthonormal, `residuals` (case, k), each
    a bound on the distance of its value to the nearest eigenvalue, rounding included; `products` (case,) spent and how
    the case ended.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: Tensor
    status: Tensor


def lanczos(
    operator: SymmetricOperator,
    steps: int,
    *,
    start: Float[Tensor, "case n"],
    deflate: Float[Tensor, "case k n"] | None = None,
    generator: Generator | None = None,
) -> RitzPairs:
    """`steps` Ritz pairs, ascending, of `operator` on the complement of `deflate`, by Lanczos (1950).

    Full reorthogonalisation, also against `deflate` in every step: a projection inside the
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
    krylov = _Krylov(operator, start, deflate, generator, steps)
    for _ in range(steps):
        krylov.extend()
    values, small = krylov.ritz()
    return krylov.pairs(values, small, status_tensor(Status.DONE, start))


@dataclass(frozen=True)
class Wanted:
    """Which eigenpairs are wanted, how well, and at what cost at most.

    Parameters
    ----------
    rank
        How many.
    end
        "outward": the most positive, "inward": the most negative, "both": the largest in size.
    rtol
        Residual relative to the largest eigenvalue in size, by default the square root of the precision; the error of a
        value that is well apart from the others is about its square.
    max_steps
        Products at most (status MAX_STEPS, with the residuals reached); by default 20 * rank + 100 or all there are.
    """

    rank: int
    end: End = "both"
    rtol: float | None = None
    max_steps: int | None = None

    def places(self, values: Float[Tensor, "case k"]) -> Int[Tensor, "case rank"]:
        """Where the wanted ones are among ascending `values`, in descending order of value."""
        count = values.shape[1]
        if self.end == "both":
            order = values.abs().argsort(dim=1, descending=True, stable=True)[:, : self.rank]
            return order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))
        first = count - 1 if self.end == "outward" else self.rank - 1
        return (first - torch.arange(self.rank, device=values.device)).expand(len(values), self.rank)


def extreme_eigenpairs(
    operator: SymmetricOperator,
    wanted: Wanted,
    *,
    deflate: Float[Tensor, "case k n"] | None = None,
    generator: Generator,
) -> RitzPairs:
    """The wanted eigenpairs on the complement of `deflate`, in descending order of value.

    Lanczos until the residual of every wanted pair is small enough, checked per case; cases that are done leave the batch. A
    repeated eigenvalue is invisible to one Krylov space: where the space is exhausted the search goes on from fresh random
    vectors until one of them adds nothing to the wanted values.
    """
    rank = wanted.rank
    cases, n = operator.like.shape
    free = n - (0 if deflate is None else deflate.shape[1])
    limit = min(free, 20 * rank + 100 if wanted.max_steps is None else wanted.max_steps)
    rtol = torch.finfo(operator.like.dtype).eps ** 0.5 if wanted.rtol is None else wanted.rtol
    start = _shared_draw(operator.like, generator)
    krylov = _Krylov(operator, start, deflate, generator, min(limit, 2 * rank + 16))
    best = RitzPairs(
        start.new_full((cases, rank), float("nan")), start.new_zeros((cases, rank, n)),
        start.new_full((cases, rank), float("nan")), torch.zeros_like(start[:, 0], dtype=torch.int64),
        status_tensor(Status.RUNNING, start),
    )  # fmt: skip
    running = torch.arange(cases, device=start.device)  # rows of the batch that `krylov` still holds
    # In many dimensions a random start hardly meets a single large eigenvalue, and the bulk alone looks converged at once
    enough = min(2 * rank + 10, limit)
    check = rank
    while len(running) > 0:
        krylov.extend()
        if krylov.steps < min(check, limit):
            continue
        check = max(2 * rank, krylov.steps + max(2, krylov.steps // 6))
        values, small = krylov.ritz()
        order = wanted.places(values)
        finite = torch.isfinite(values).all(1)
        size = values.abs().amax(1, keepdim=True)
        residuals = krylov.residuals(small).gather(1, order)
        done = (residuals <= rtol * size + krylov.noise[:, None]).all(1) & krylov.nothing_new(wanted, rtol)
        done = done & ((krylov.seams[:, 0] > 0) | (krylov.steps >= enough))
        last = torch.full_like(done, krylov.steps >= limit)
        complete = torch.full_like(done, krylov.steps == free)
        ended = (done | last | ~finite) & (best.status[running] == int(Status.RUNNING))
        status = mark(
            status_tensor(Status.MAX_STEPS, values), (done | complete, Status.DONE), (~finite, Status.NOT_FINITE)
        )
        rows = torch.nonzero(ended).flatten()
        if len(rows) > 0:
            picked = krylov.pairs(values, small, status, order, rows)
            for held, new in zip(_fields(best), _fields(picked), strict=True):
                held[running[rows]] = new
        left = torch.nonzero(best.status[running] == int(Status.RUNNING)).flatten()
        if len(left) == 0:
            break
        if len(left) <= 0.8 * len(running):  # leaving cases out costs about two products of those that stay
            krylov, running = krylov.select(left), running[left]
    return best


def quadrature(
    operator: SymmetricOperator,
    probes: int,
    steps: int,
    *,
    deflate: Float[Tensor, "case k n"] | None = None,
    generator: Generator,
) -> tuple[Float[Tensor, "case probe node"], Float[Tensor, "case probe node"], Float[Tensor, "case probe node"]]:
    """Nodes, weights and residuals of the spectral density, by stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017).

    For each of `probes` random vectors the `steps` nodes with their weights (that sum to one) are the Gauss quadrature
    of the density seen by that vector; their mean over probes estimates the density, their spread its error. A residual bounds
    the distance from a node to the nearest eigenvalue. Where `probes` * `steps` products reach the dimension they are spent on
    one complete run instead, which gives every eigenvalue, with equal weights.
    """
    n = operator.size
    free = n - (0 if deflate is None else deflate.shape[1])
    nodes, weights, residuals = [], [], []
    complete = probes * steps >= free
    run = free if complete else steps
    for _ in range(1 if complete else probes):
        krylov = _Krylov(operator, _shared_draw(operator.like, generator), deflate, generator, run)
        for _ in range(run):
            krylov.extend()
        values, small = krylov.ritz()
        weight = small[:, 0, :].square()
        nodes.append(values)
        weights.append(torch.full_like(weight, 1 / free) if complete else weight)
        residuals.append(krylov.residuals(small))
    return torch.stack(nodes, 1), torch.stack(weights, 1), torch.stack(residuals, 1)


class _Krylov:
    """A growing orthonormal basis of a Krylov space per case, and the operator's tridiagonal matrix in it."""

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        deflate: Tensor | None,
        generator: Generator | None,
        capacity: int,
    ) -> None:
        cases, n = start.shape
        known = start.new_zeros((cases, 0, n)) if deflate is None else deflate
        self.operator, self.known, self.steps = operator, known.shape[1], 0
        self.rows = torch.cat([known, start.new_zeros((cases, capacity, n))], 1)  # deflated directions, then the basis
        self.diagonal: list[Tensor] = []  # (case, 1) each
        self.off: list[Tensor] = []
        self.seams = start.new_zeros((cases, 2), dtype=torch.int64)  # steps that exhausted the space: last, before
        self.scale, self.drift = start.new_zeros((cases, 1)), start.new_zeros((cases, 1))
        self.unit = start.new_ones((cases, 1))  # what the operator is divided by, so that squares stay in range
        self.next = _unit(self._outside(start, self.known))
        # draws depend on the step alone, not on which cases happen to need one
        self.seed = (
            None if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )

    @property
    def noise(self) -> Tensor:
        """How far rounding moves eigenvalues (case,): what products gave where symmetry and orthogonality ask for zero."""
        return ((self.drift + 8 * torch.finfo(self.scale.dtype).eps * self.scale) * self.unit)[:, 0]

    def extend(self) -> None:
        """One product and one more basis vector."""
        k, first = self.steps, self.known
        if first + k == self.rows.shape[1]:
            more = max(8, k // 2)
            self.rows = torch.cat([self.rows, self.rows.new_zeros((len(self.rows), more, self.rows.shape[2]))], 1)
        vector = self.next
        self.rows[:, first + k] = vector
        product = self.operator @ vector
        if k == 0:
            size = length(product, keepdim=True)
            self.unit = torch.where(size > 0, size, self.unit)
        product = product / self.unit
        self.scale = torch.maximum(self.scale, _size(product))
        # --- what the three-term recurrence says first; then one pass over everything removes what rounding, or an operator that
        # is not quite symmetric, has left, and measures it
        along = (vector * product).sum(1, keepdim=True)
        rest = torch.addcmul(product, along, vector, value=-1)
        if k > 0:
            rest.addcmul_(self.off[-1], self.rows[:, first + k - 1], value=-1)
        known = self.rows[:, : first + k + 1]
        weights = torch.bmm(known, rest[:, :, None])
        rest = torch.baddbmm(rest[:, None], weights.transpose(1, 2), known, alpha=-1)[:, 0]
        self.diagonal.append(along + weights[:, -1])
        self.drift = torch.hypot(self.drift, weights[:, first:-1].square().sum(1).sqrt())
        left = _size(rest)
        self.steps = k + 1
        exhausted = left <= 100 * torch.finfo(rest.dtype).eps * self.scale
        if bool(exhausted.any()):
            rest, left = self._restart(rest, left, exhausted)
        else:
            rest = rest / left
        self.off.append(left)
        self.next = rest

    def _restart(self, rest: Tensor, left: Tensor, exhausted: Tensor) -> tuple[Tensor, Tensor]:
        """Next vectors (case, n) and couplings (case, 1), where the space of some cases is exhausted."""
        self.drift = torch.hypot(self.drift, torch.where(exhausted, left, torch.zeros_like(left)))
        moved = torch.stack([torch.full_like(self.seams[:, 0], self.steps), self.seams[:, 0]], 1)
        self.seams = torch.where(exhausted, moved, self.seams)
        if self.seed is not None:
            source = Generator().manual_seed((self.seed + self.steps) % 2**63)
            draw = torch.randn(rest.shape[1], generator=source, dtype=rest.dtype).to(rest.device).expand_as(rest)
            rest = torch.where(exhausted, self._outside(draw, self.known + self.steps), rest)
        return _unit(rest), left.masked_fill(exhausted, 0.0)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values (case, steps) ascending, NaN where not finite, and their vectors (case, step, value) in the basis."""
        small = _tridiagonal(torch.cat(self.diagonal, 1), torch.cat(self.off, 1))
        finite = torch.isfinite(small).flatten(1).all(1)
        values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], small, torch.zeros_like(small)))
        return self.unit * values.masked_fill(~finite[:, None], float("nan")), vectors

    def residuals(self, small: Tensor) -> Tensor:
        """Bounds (case, steps) on the distance of each Ritz value to the nearest eigenvalue."""
        return self.unit * self.off[-1] * small[:, -1, :].abs() + self.noise[:, None]

    def pairs(
        self, values: Tensor, small: Tensor, status: Tensor, order: Tensor | None = None, rows: Tensor | None = None
    ) -> RitzPairs:
        """The Ritz pairs `order` (case, rank) of the cases `rows`; all of all cases where left out."""
        rows = torch.arange(len(values), device=values.device) if rows is None else rows
        order = torch.arange(values.shape[1], device=values.device).expand_as(values) if order is None else order
        order = order[rows]
        columns = small[rows].gather(2, order[:, None].expand(-1, small.shape[1], -1))
        basis = self.rows[rows, self.known : self.known + self.steps]
        vectors = torch.einsum("ckm,ckn->cmn", columns, basis)
        spent = torch.full_like(status[rows], self.steps)
        return RitzPairs(
            values[rows].gather(1, order), vectors, self.residuals(small)[rows].gather(1, order), spent, status[rows]
        )

    def nothing_new(self, wanted: Wanted, rtol: float) -> Tensor:
        """Whether a case may stop (case,): it never met the end of a Krylov space, or the last whole space from a
        fresh start added nothing to the wanted values.
        """
        never = self.seams[:, 0] == 0
        if bool(never.all()):
            return never
        unwanted = {"both": 0.0, "outward": -2.0, "inward": 2.0}[wanted.end] * (self.scale[:, 0] + 1)
        last, before = (self._leading(at, unwanted) for at in self.seams.unbind(1))
        last, before = (v.gather(1, wanted.places(v)) for v in (last, before))
        size = last.abs().amax(1)
        same = self.unit[:, 0] * (last - before).abs().amax(1) <= rtol * self.unit[:, 0] * size + self.noise
        return never | (same & (self.seams[:, 1] >= wanted.rank))

    def select(self, cases: Tensor) -> _Krylov:
        """The same state for some of the cases (indices)."""
        part = object.__new__(_Krylov)
        part.__dict__.update(self.__dict__)
        part.rows = self.rows[cases]
        part.diagonal, part.off = [d[cases] for d in self.diagonal], [o[cases] for o in self.off]
        part.seams, part.scale, part.drift = self.seams[cases], self.scale[cases], self.drift[cases]
        part.unit, part.next = self.unit[cases], self.next[cases]
        part.operator = self.operator.select(cases)
        return part

    def _outside(self, v: Tensor, count: int) -> Tensor:
        """`v` without its part along the first `count` rows; two passes are enough (Kahan, in Parlett 1980)."""
        rows = self.rows[:, :count]
        for _ in range(2):
            v = v - torch.bmm(torch.bmm(rows, v[:, :, None]).transpose(1, 2), rows)[:, 0]
        return v

    def _leading(self, sizes: Int[Tensor, " case"], fill: Tensor) -> Tensor:
        """Eigenvalues (case, steps) of the leading block of each case's tridiagonal matrix, the rest being `fill`."""
        place = torch.arange(self.steps, device=sizes.device)
        diagonal = torch.where(place < sizes[:, None], torch.cat(self.diagonal, 1), fill[:, None])
        small = _tridiagonal(diagonal, torch.cat(self.off, 1) * (place + 1 < sizes[:, None]))
        return torch.linalg.eigvalsh(torch.nan_to_num(small))


def _tridiagonal(diagonal: Tensor, off: Tensor) -> Tensor:
    side = torch.diag_embed(off[:, :-1], offset=1)
    return torch.diag_embed(diagonal) + side + side.transpose(1, 2)


def _fields(pairs: RitzPairs) -> tuple[Tensor, ...]:
    return pairs.values, pairs.vectors, pairs.residuals, pairs.products, pairs.status


def _shared_draw(like: Tensor, generator: Generator) -> Tensor:
    """One random direction for all cases (case, n)."""
    draw = torch.randn(like.shape[1], generator=generator, dtype=like.dtype, device=generator.device)
    return draw.to(like.device).expand_as(like)


def _size(v: Tensor) -> Tensor:
    """Euclidean norms (case, 1), summed pairwise; see `operators.length`, which guards against overflow too."""
    return v.square().sum(1, keepdim=True).sqrt()


def _unit(v: Tensor) -> Tensor:
    size = length(v, keepdim=True)
    return torch.where(size > 0, v / torch.where(size > 0, size, torch.ones_like(size)), torch.zeros_like(v))
