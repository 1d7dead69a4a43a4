"""Sparse coding by competition: units inhibit one another until few of them explain the input."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

BURST, GROWTH = 20, 3 / 2  # accelerated steps before the first attempt to finish, and how they grow between attempts


class LCA(nn.Module):
    """Sparse codes (case, units) of inputs (case, *shape): the steady state of the locally competitive algorithm.

    With one input flattened to x (n,) and unit columns D (n, units), the code is the minimiser a of
    1/2 |x - D a|^2 + sparsity |a|_1, non-negative if `rectified`. It is continuous and piecewise linear in x: gradients
    are exact (implicit differentiation on the active set), second derivatives zero wherever they exist. A case does
    not depend on its neighbours. dtype and device follow the input; the search is in float64, as float32 cannot tell
    which units are active once they are almost as many as n.

    Parameters
    ----------
    dictionary
        (n, units), one receptive field per column; columns are scaled to norm 1. It is a buffer and gets no gradient.
    sparsity
        Threshold of every unit, in input units: no activity where |D'x| stays below it.
    rectified
        Whether activities are rates, which cannot be negative.
    tolerance
        Largest violation of the optimality conditions, relative to the largest drive |D'x| (or `sparsity`, if that is
        more). What is left is rounding, about 1e-15, unless the active columns are nearly dependent.
    max_steps
        Accelerated steps, in whole bursts, after which a case is given up: activities NaN; `residual` says how far off.

    Raises
    ------
    ValueError
        Dictionary not (n, units), not finite, or with a zero column; numbers not positive; inputs of another size.

    Notes
    -----
    Rozell, Johnson, Baraniuk & Olshausen (2008), Neural Computation 20:2526, with the soft threshold. Found by FISTA
    (Beck & Teboulle 2009) with adaptive restart (O'Donoghue & Candes 2015) and, last, a solve on the active set. Equal
    columns, whose activities are not unique, share them equally.

    Examples
    --------
    >>> import torch
    >>> LCA(torch.eye(3), sparsity=0.5)(torch.tensor([[2.0, 0.25, -1.0]]))
    tensor([[1.5000, 0.0000, 0.0000]])
    """

    dictionary: Tensor
    lipschitz: Tensor

    def __init__(
        self, dictionary: Tensor, *, sparsity: float, rectified: bool = True,
        tolerance: float = 1e-11, max_steps: int = 20_000,
    ) -> None:  # fmt: skip
        super().__init__()
        if dictionary.ndim != 2 or 0 in dictionary.shape or not dictionary.is_floating_point():
            raise ValueError(
                f"LCA needs a floating-point dictionary of shape (n, units), got {dictionary.dtype} "
                f"{tuple(dictionary.shape)}; give one flattened receptive field per column."
            )
        norm = dictionary.detach().norm(dim=0)
        if bad := int((~(norm > 0) | ~norm.isfinite()).sum()):
            raise ValueError(
                f"LCA needs dictionary columns that are finite and not zero, got {bad} of {len(norm)} that hold NaN or "
                "infinity or are zero; remove them."
            )
        for name, value in (("sparsity", sparsity), ("tolerance", tolerance), ("max_steps", max_steps)):
            if not 0 < value < float("inf"):
                raise ValueError(f"LCA needs a positive, finite {name}, got {name}={value}; give a number above zero.")
        self.register_buffer("dictionary", dictionary.detach() / norm)
        self.register_buffer("lipschitz", torch.linalg.matrix_norm(self.dictionary, ord=2).square())
        self.sparsity, self.rectified, self.tolerance, self.max_steps = sparsity, rectified, tolerance, max_steps

    def forward(self, x: Tensor) -> Tensor:
        """Activities (case, units), in input units, of inputs (case, *shape)."""
        drive, gram = self._drive(x)
        activity, violation = self._minimise(drive.detach(), gram)
        activity[~(violation <= self._allowed(drive.detach()))] = torch.nan
        if drive.requires_grad:  # add zero, with the gradient of the activity
            activity = activity + _solve_active(gram, activity.abs() > 0, drive - drive.detach())
        return activity.to(x)

    def residual(self, x: Tensor) -> Tensor:
        """Largest violation (case,) of the optimality conditions before rounding to the dtype of `x`, in input units.

        They are: D'(x - D a) is `sparsity` times the sign of an active unit, and no more than that for a silent one.
        """
        return self._minimise(*self._drive(x.detach()))[1].to(x)

    def _drive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Drive D'x (case, units) and inhibition D'D (units, units), in float64 on the device of `x`."""
        n = len(self.dictionary)
        if x.dtype not in (torch.float32, torch.float64) or x.ndim < 2 or prod(x.shape[1:]) != n:
            raise ValueError(
                f"LCA needs float32 or float64 inputs (case, ...) of {n} numbers each, as its dictionary has rows, got "
                f"{x.dtype} {tuple(x.shape)}; convert or reshape the input, or give another dictionary."
            )
        dictionary = self.dictionary.to(x.device, torch.float64)
        return x.double().reshape(len(x), n) @ dictionary, dictionary.T @ dictionary

    def _allowed(self, drive: Tensor) -> Tensor:
        """Violation (case,) at which a case is finished."""
        return self.tolerance * drive.abs().amax(1).clamp_min(self.sparsity)

    @torch.no_grad()
    def _minimise(self, drive: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Activities (case, units) and their violation (case,); a case that is within tolerance rests."""
        activity, violation = torch.zeros_like(drive), torch.full_like(drive[:, 0], torch.inf)
        moving, momentum = torch.arange(len(drive), device=drive.device), torch.ones_like(drive[:, :1])
        a = ahead = activity
        steps, burst = 0, BURST
        while len(moving) and steps < self.max_steps:
            for _ in range(burst):
                before, a = a, self._step(ahead, drive, gram)
                restart = ((ahead - a) * (a - before)).sum(1, keepdim=True) > 0
                following = torch.where(restart, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
                ahead = a + torch.where(restart, 0.0, (momentum - 1) / following) * (a - before)
                momentum = following
            steps, burst = steps + burst, int(burst * GROWTH)
            code = self._polish(a, drive, gram)
            activity[moving], violation[moving] = code, self._violation(code, drive, gram)
            on = violation[moving] > self._allowed(drive)
            moving, momentum, drive, a, ahead = (rows[on] for rows in (moving, momentum, drive, a, ahead))
        return activity, violation

    def _step(self, a: Tensor, drive: Tensor, gram: Tensor) -> Tensor:
        """One proximal gradient step from `a`."""
        rate = 1 / self.lipschitz.to(a)
        v, threshold = a + rate * torch.addmm(drive, a, gram, alpha=-1), self.sparsity * rate
        return (v - threshold).relu() if self.rectified else v - v.clamp(-threshold, threshold)

    def _polish(self, a: Tensor, drive: Tensor, gram: Tensor) -> Tensor:
        """A semismooth Newton step: the units active after a proximal step are solved for, wrong signs silenced."""
        a = self._step(a, drive, gram)
        sign = a.sign()
        solved = a + _solve_active(gram, a.abs() > 0, drive - self.sparsity * sign - a @ gram)
        return torch.where(solved * sign < 0, 0.0, solved)

    def _violation(self, a: Tensor, drive: Tensor, gram: Tensor) -> Tensor:
        """What `residual` returns, for given activities."""
        remains = drive - a @ gram
        excess = (remains if self.rectified else remains.abs()) - self.sparsity
        return torch.where(a == 0, excess.relu(), (remains - self.sparsity * a.sign()).abs()).amax(1)


def _solve_active(gram: Tensor, active: Tensor, right: Tensor) -> Tensor:
    """Solution z (case, units) of gram z = right among the active units of each case, zero elsewhere.

    Differentiable in `right`. Where the active columns are dependent, the solution of least norm.
    """
    most = max(active.sum(1).tolist(), default=0)
    unit = active.byte().argsort(dim=1, descending=True, stable=True)[:, :most]  # the active ones first
    used, identity = active.gather(1, unit), torch.eye(most).to(gram)
    system = torch.where(used[:, :, None] & used[:, None, :], gram[unit[:, :, None], unit[:, None, :]], identity)
    factor, info = torch.linalg.cholesky_ex(system)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    dependent = (info != 0) | (pivots < 10 * len(gram) * torch.finfo(gram.dtype).eps).any(1)
    factor[dependent] = identity
    inverse = torch.cholesky_inverse(factor)
    if bool(dependent.any()):
        inverse[dependent] = torch.linalg.pinv(system[dependent], hermitian=True)
    z = (inverse @ (right.gather(1, unit) * used)[:, :, None])[:, :, 0] * used
    return torch.zeros_like(right).scatter(1, unit, z)
