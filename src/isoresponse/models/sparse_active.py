"""The equations of active units, and derivatives of sparse codes that follow from them.

Where units neither enter nor leave, a code is linear in the input: its derivative is one solution of the equations of the
active units, whichever way the code was found. Second derivatives are zero, and are taken as such by everything in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isoresponse.models.sparse_elements import Elements

GROUP = 32  # cases whose systems are factored together: they have about the same number of active units
ENTRIES = 2**24  # of the systems in a group at most, unless one alone has more

Dims = tuple[int | None, ...]


class ActiveSystem:
    """The equations of the active units of every case, factored: `solve` is linear and symmetric.

    Parameters
    ----------
    active
        (case, count), which units are active. Where their elements are dependent, solutions are those of least norm.
    hasty
        Whether cases whose elements are dependent are left alone, which saves time; `dependent` (case,) says which.
    """

    def __init__(self, elements: Elements, active: Tensor, *, hasty: bool = False) -> None:
        size, order = active.sum(1).sort(descending=True)
        case, unit = active[order].nonzero(as_tuple=True)  # by case
        rank = torch.arange(len(case), device=case.device) - (size.cumsum(0) - size)[case]
        sizes = size.tolist()
        units = torch.zeros(len(active), max(sizes, default=0), dtype=torch.long, device=active.device)
        units[case, rank] = unit
        used = torch.arange(units.shape[1], device=active.device) < size[:, None]
        self.order, self.back = order, order.argsort()
        self.groups: list[_Group] = []
        self.lengths: list[int] = []
        first = 0
        while first < len(sizes):
            most = sizes[first]
            last = min(len(sizes), first + max(1, min(GROUP, ENTRIES // max(1, most * most))))
            self.groups.append(_Group(elements, units[first:last, :most], used[first:last, :most], hasty))
            self.lengths.append(last - first)
            first = last
        found = [group.dependent for group in self.groups]
        self.dependent = torch.cat(found)[self.back] if found else active.any(1)

    def solve(self, right: Tensor) -> Tensor:
        """Solution z of D'D z = right (case, count) or (many, case, count) among the active units, zero elsewhere."""
        if not self.groups:
            return torch.zeros_like(right)
        parts = right.index_select(-2, self.order).split(self.lengths, -2)
        solved = [group.solve(part) for group, part in zip(self.groups, parts, strict=True)]
        return torch.cat(solved, -2).index_select(-2, self.back)


class _Group:
    """Systems of a few cases, padded to one size; units (case, k) are those `used` (case, k), then any."""

    def __init__(self, elements: Elements, units: Tensor, used: Tensor, hasty: bool) -> None:
        self.units, self.used = units, used
        ones = used.to(torch.float64)
        system = elements.inhibition(units).mul_(ones[:, :, None]).mul_(ones[:, None, :])
        system.diagonal(dim1=1, dim2=2).add_(~used)
        self.factor, info = torch.linalg.cholesky_ex(system)
        pivots = self.factor.diagonal(dim1=1, dim2=2).square()
        few = 10 * elements.count * torch.finfo(system.dtype).eps
        self.dependent = (info != 0) | (pivots < few * system.diagonal(dim1=1, dim2=2)).any(1)
        self.special = self.dependent.nonzero()[:, 0]
        if len(self.special):
            self.factor[self.special] = torch.eye(units.shape[1]).to(system)
            if hasty:
                self.special = self.special[:0]
            else:
                self.inverse = torch.linalg.pinv(system[self.special], hermitian=True)

    def solve(self, right: Tensor) -> Tensor:
        units = self.units.expand(*right.shape[:-1], -1)
        among = (right.gather(-1, units) * self.used).movedim(-3, -1) if right.ndim == 3 else (
            right.gather(-1, units) * self.used
        )[:, :, None]  # fmt: skip
        # torch.cholesky_solve copies the factor, which takes longer than solving
        half = torch.linalg.solve_triangular(self.factor, among, upper=False)
        z = torch.linalg.solve_triangular(self.factor.mT, half, upper=True)
        if len(self.special):
            z = z.index_copy(0, self.special, self.inverse @ among[self.special])
        z = z.movedim(-1, 0) if right.ndim == 3 else z[:, :, 0]
        return torch.zeros_like(right).scatter_add(-1, units, z * self.used)


class Systems:
    """The system of the active units that were asked for last: a gradient and the products after it share one."""

    def __init__(self, elements: Elements) -> None:
        self.elements = elements
        self.active: Tensor | None = None

    def of(self, active: Tensor) -> ActiveSystem:
        """The system of these active units (case, count)."""
        if self.active is None or not torch.equal(self.active, active):
            self.active, self.system = active, ActiveSystem(self.elements, active)
        return self.system


class Solve(torch.autograd.Function):
    """`ActiveSystem.solve` as a function of its right side, in every mode of differentiation and under vmap."""

    @staticmethod
    def forward(right: Tensor, active: Tensor, systems: Systems) -> Tensor:
        """Solution, of the shape of `right`: (case, count) or (many, case, count)."""
        return systems.of(active).solve(right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Systems], output: Tensor) -> None:
        """Keep which units are active."""
        _, active, ctx.systems = inputs
        ctx.save_for_backward(active)
        ctx.save_for_forward(active)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        """The system is symmetric."""
        return Solve.apply(slope, *ctx.saved_tensors, ctx.systems), None, None

    @staticmethod
    def jvp(ctx: Any, change: Tensor, *_: None) -> Tensor:
        """Linear in the right side."""
        return Solve.apply(change, *ctx.saved_tensors, ctx.systems)

    @staticmethod
    def vmap(info: Any, in_dims: Dims, right: Tensor, active: Tensor, systems: Systems) -> tuple[Tensor, int]:
        """Many right sides of one system where only they are many, else more cases."""
        right_dim, active_dim, _ = in_dims
        many = info.batch_size
        right = right.expand(many, *right.shape) if right_dim is None else right.movedim(right_dim, 0)
        if active_dim is None:
            return Solve.apply(right.reshape(-1, *right.shape[-2:]), active, systems).reshape(right.shape), 0
        cases, count = right.shape[-2:]
        active = active.movedim(active_dim, 0).reshape(many * cases, count)
        folded = right.movedim(0, -3).reshape(*right.shape[1:-2], many * cases, count)
        solved = Solve.apply(folded, active, systems)
        return solved.reshape(*right.shape[1:-2], many, cases, count).movedim(-3, 0), 0


class Coded(torch.autograd.Function):
    """Codes as a function of the input, with the derivative of what they are the solution of."""

    @staticmethod
    def forward(x: Tensor, find: Callable[[Tensor], tuple[Tensor, Tensor]], systems: Systems) -> tuple[Tensor, Tensor]:
        """Activities (case, count), NaN where none were found, and by how much (case,) they miss, of inputs x (case, n)."""
        return find(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any, Systems], output: tuple[Tensor, Tensor]) -> None:
        """Keep which units are active; the unfinished have none."""
        ctx.systems = inputs[2]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        active, failed = output[0].abs() > 0, output[0].isnan().any(-1, keepdim=True)
        ctx.save_for_backward(active, failed)
        ctx.save_for_forward(active, failed)

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
        """What sums of the elements of active units do to them."""
        if slope is None:
            return None, None, None
        active, failed = ctx.saved_tensors
        gradient = ctx.systems.elements.sum(Solve.apply(slope, active, ctx.systems))
        return gradient.masked_fill(failed, torch.nan), None, None

    @staticmethod
    def jvp(ctx: Any, change: Tensor, *_: None) -> tuple[Tensor, None]:
        """What the drive's change does to active units."""
        active, failed = ctx.saved_tensors
        moved = Solve.apply(ctx.systems.elements.drive(change), active, ctx.systems)
        return moved.masked_fill(failed, torch.nan), None

    @staticmethod
    def vmap(
        info: Any, in_dims: Dims, x: Tensor, find: Any, systems: Systems
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """More cases."""
        many, (cases, n) = info.batch_size, x.movedim(in_dims[0] or 0, 0).shape[1:]
        activity, missing = Coded.apply(x.movedim(in_dims[0] or 0, 0).reshape(many * cases, n), find, systems)
        return (activity.reshape(many, cases, -1), missing.reshape(many, cases)), (0, 0)
