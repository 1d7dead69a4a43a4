"""Sparse coding by competition: units inhibit one another until few of them explain the input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from isoresponse.models.basic import is_float, kind_of
from isoresponse.models.sparse_active import Coded, Systems
from isoresponse.models.sparse_elements import Columns, Elements, Shifted, Shrinkage
from isoresponse.models.sparse_exchange import exchange, missed_hard
from isoresponse.models.sparse_solver import minimise, missed

WIDE = (torch.float32, torch.float64)
TWIN = 1e-12  # less than this below 1, the cosine of two elements makes them the same


@dataclass(frozen=True, eq=False)
class Code:
    """Sparse codes and how far they are from what defines them.

    `activity` (case, units) or (case, unit, row, column), in input units, is NaN where `converged` (case,) is not true;
    `residual` (case,) is the largest violation of the optimality conditions, in input units, before rounding to the dtype.
    """

    activity: Tensor
    residual: Tensor
    converged: Tensor


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Potentials and activities (time, case, units) or (time, case, unit, row, column) of units from rest, in input units."""

    potential: Tensor
    activity: Tensor


class SparseCoder(nn.Module):
    """What dense and convolutional codes have in common; a subclass says what the elements are."""

    def __init__(self, sparsity: float, threshold: str, rectified: bool, tolerance: float, max_steps: int) -> None:
        super().__init__()
        name = type(self).__name__
        for what, value in (("sparsity", sparsity), ("tolerance", tolerance), ("max_steps", max_steps)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise ValueError(
                    f"{name} needs a positive, finite {what}, got {what}={value}; give a number above zero."
                )
        if threshold not in ("soft", "hard"):
            raise ValueError(f"{name} has a threshold that is 'soft' or 'hard', got threshold={threshold!r}.")
        self.sparsity, self.threshold, self.rectified = sparsity, threshold, rectified
        self.tolerance, self.max_steps = tolerance, max_steps
        self._known: tuple[object, Tensor, Elements] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Activities (case, units), or (case, unit, row, column), in input units, of inputs (case, *shape)."""
        return self.code(x).activity

    def code(self, x: Tensor) -> Code:
        """Activities of inputs (case, *shape), with their residuals and whether they converged."""
        flat, elements = self._flat(x), self._elements(x)
        activity, missing = Coded.apply(flat, self._finder(elements), Systems(elements))
        done = ~activity.detach().isnan().any(1)
        return Code(self._shaped(activity, x).to(x.dtype), missing.detach().to(x.dtype), done)

    def residual(self, x: Tensor) -> Tensor:
        """Largest violation (case,) of the optimality conditions before rounding to the dtype of `x`, in input units.

        They are, with a soft threshold: D'(x - D a) is `sparsity` times the sign of an active unit, and no more than that for
        a silent one. With a hard one: it is zero for an active unit, whose activity is no less than `sparsity`.
        """
        return self.code(x.detach()).residual

    def dynamics(self, x: Tensor, steps: int, tau: float) -> Trajectory:
        """Potentials u and activities a of the neurons over `steps` Euler steps from rest, beginning with rest itself.

        Each step adds (D'(x - D a) + a - u) / tau to u, where a is u beyond the threshold. It is what neurons do, not how
        codes are found: far from the code after few steps, and autograd unrolls it.

        Parameters
        ----------
        x
            Inputs (case, *shape).
        steps, tau
            Number of steps, and the time constant in steps; the published 1/30 of a time constant per step is tau=30.

        Raises
        ------
        ValueError
            Steps below zero, or a time constant below one step.

        Notes
        -----
        Rozell, Johnson, Baraniuk & Olshausen (2008), Neural Computation 20:2526.

        Examples
        --------
        >>> import torch
        >>> way = LCA(torch.eye(2), sparsity=0.5).dynamics(torch.tensor([[2.0, 0.25]]), 3, tau=2.0)
        >>> way.potential[:, 0, 0].tolist(), way.activity[:, 0, 0].tolist()
        ([0.0, 1.0, 1.5, 1.75], [0.0, 0.5, 1.0, 1.25])
        """
        if not isinstance(steps, int) or steps < 0 or not 1 <= tau < float("inf"):
            raise ValueError(
                f"dynamics needs steps >= 0 and a tau of at least one step, got steps={steps} and tau={tau}."
            )
        elements, x_flat = self._elements(x), self._flat(x)
        drive = elements.drive(x_flat)
        u, a = torch.zeros_like(drive), torch.zeros_like(drive)
        way = [(u, a)]
        for _ in range(steps):
            u = u + (drive - elements.drive(elements.sum(a)) + a - u) / tau
            a = self._activation(u)
            way.append((u, a))
        potential, activity = (torch.stack([self._shaped(t, x) for t in ts]) for ts in zip(*way, strict=True))
        return Trajectory(potential.to(x.dtype), activity.to(x.dtype))

    def _activation(self, u: Tensor) -> Tensor:
        if self.threshold == "hard":
            return torch.where((u if self.rectified else u.abs()) > self.sparsity, u, 0.0)
        above = (u - self.sparsity).relu()
        return above if self.rectified else above - (-u - self.sparsity).relu()

    def _finder(self, elements: Elements) -> Finder:
        return Finder(
            elements, Shrinkage(self.sparsity, self.rectified), self.threshold, self.tolerance, self.max_steps
        )

    def _flat(self, x: Tensor) -> Tensor:
        """Inputs (case, n) in float64, or the reason why they are none."""
        raise NotImplementedError

    def _elements(self, x: Tensor) -> Elements:
        """Elements in float64 on the device of `x`."""
        raise NotImplementedError

    def _shaped(self, activity: Tensor, x: Tensor) -> Tensor:
        """Activities (case, count) in the shape of the answer to `x`."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_known": None}  # can be computed again


class LCA(SparseCoder):
    """Sparse codes (case, units) of inputs (case, *shape): the steady state of the locally competitive algorithm.

    With one input flattened to x (n,) and unit columns D (n, units), the code is the minimiser a of
    1/2 |x - D a|^2 + sparsity |a|_1, non-negative if `rectified`. It is continuous and piecewise linear in x: gradients
    are exact (implicit differentiation on the active set), second derivatives zero wherever they exist, in reverse and
    forward mode and under `torch.func`. A case does not depend on its neighbours. dtype and device follow the input; what
    is active is decided in float64, as float32 cannot tell once active units are almost as many as n.

    With a hard threshold the code is a steady state of neurons that pass all of their potential or nothing: the
    active units alone explain the input in least squares, each by more than `sparsity`, and what remains drives no silent
    unit above it. There are many such states; the code is the one in which, from rest, the most driven unit enters at a
    time. It jumps where units change, and is linear in x elsewhere.

    Parameters
    ----------
    dictionary
        (n, units), one receptive field per column; columns are scaled to norm 1. It is a buffer and gets no gradient.
    sparsity
        Threshold of every unit, in input units: no activity where |D'x| stays below it.
    threshold
        "soft" or "hard".
    rectified
        Whether activities are rates, which cannot be negative.
    tolerance
        Largest violation of the optimality conditions, relative to the largest drive |D'x| (or `sparsity`, if that is
        more). What is left is rounding, about 1e-15, unless the active columns are nearly dependent.
    max_steps
        Accelerated steps, in whole bursts, after which a case is given up (hard: exchanges of a unit): activities NaN;
        `residual` says how far off.

    Raises
    ------
    ValueError
        Dictionary not (n, units), not finite, with a zero column, or (hard) with equal ones; numbers not positive; inputs of
        another size.

    Notes
    -----
    Rozell, Johnson, Baraniuk & Olshausen (2008), Neural Computation 20:2526. Found by accelerated proximal steps (Beck &
    Teboulle 2009) with adaptive restart (O'Donoghue & Candes 2015) and solves on sets of active units. Equal columns, whose
    activities with a soft threshold are not unique, share them equally.

    Examples
    --------
    >>> import torch
    >>> LCA(torch.eye(3), sparsity=0.5)(torch.tensor([[2.0, 0.25, -1.0]]))
    tensor([[1.5000, 0.0000, 0.0000]])
    >>> LCA(torch.eye(3), sparsity=0.5, threshold="hard", rectified=False)(torch.tensor([[2.0, 0.25, -1.0]]))
    tensor([[ 2.,  0., -1.]])
    """

    dictionary: Tensor
    lipschitz: Tensor

    def __init__(
        self, dictionary: Tensor, *, sparsity: float, rectified: bool = True, threshold: str = "soft",
        tolerance: float = 1e-11, max_steps: int = 20_000,
    ) -> None:  # fmt: skip
        super().__init__(sparsity, threshold, rectified, tolerance, max_steps)
        if not is_float(dictionary) or dictionary.ndim != 2 or 0 in dictionary.shape:
            raise ValueError(
                f"LCA needs a floating-point dictionary of shape (n, units), got {kind_of(dictionary)}; give one flattened "
                "receptive field per column."
            )
        columns = _of_norm_one(dictionary.detach(), "LCA", "dictionary columns", threshold, rectified)
        self.register_buffer("dictionary", columns)
        self.register_buffer("lipschitz", torch.linalg.matrix_norm(columns, ord=2).square())

    def _flat(self, x: Tensor) -> Tensor:
        n = len(self.dictionary)
        if not is_float(x) or x.dtype not in WIDE or x.ndim < 2 or prod(x.shape[1:]) != n:
            raise ValueError(
                f"LCA needs float32 or float64 inputs (case, ...) of {n} numbers each, as its dictionary has rows, got "
                f"{kind_of(x)}; convert or reshape the input, or give another dictionary."
            )
        return x.double().reshape(len(x), n)

    def _elements(self, x: Tensor) -> Elements:
        if self._known is None or self._known[0] != x.device or not torch.equal(self._known[1], self.dictionary):
            elements = Columns.of(self.dictionary.to(x.device, torch.float64), self.lipschitz.to(x.device))
            self._known = (x.device, self.dictionary.clone(), elements)
        return self._known[2]

    def _shaped(self, activity: Tensor, x: Tensor) -> Tensor:
        return activity


class ConvLCA(SparseCoder):
    """Sparse codes (case, unit, row, column) of pictures (case, channel, height, width), by kernels at every position.

    As `LCA`, with the shifted kernels as columns: same objective, thresholds, tolerance, derivatives. Kernels are used
    where they lie within the picture, every `stride` pixels; pictures of any size that holds a kernel can be coded.

    Parameters
    ----------
    kernels
        (unit, channel, height, width), scaled to norm 1. They are a buffer and get no gradient.
    stride
        Pixels between positions, in both directions.
    sparsity, threshold, rectified, tolerance, max_steps
        As in `LCA`.

    Raises
    ------
    ValueError
        Kernels not (unit, channel, height, width), not finite, zero, or (hard) equal; numbers not positive; pictures
        of other channels, or smaller than a kernel.

    Notes
    -----
    Heavily overlapping kernels make many active units; a case's system of k of them takes k x k numbers.

    Examples
    --------
    >>> import torch
    >>> edge = torch.tensor([[[[1.0, -1.0]]]])
    >>> ConvLCA(edge, sparsity=0.2)(torch.tensor([[[[0.0, 0.0, 1.0, 0.0, 0.0]]]]))
    tensor([[[[0.0000, 0.0000, 0.5428, 0.0714]]]])
    """

    kernels: Tensor

    def __init__(
        self, kernels: Tensor, *, sparsity: float, stride: int = 1, rectified: bool = True, threshold: str = "soft",
        tolerance: float = 1e-11, max_steps: int = 20_000,
    ) -> None:  # fmt: skip
        super().__init__(sparsity, threshold, rectified, tolerance, max_steps)
        if not is_float(kernels) or kernels.ndim != 4 or 0 in kernels.shape:
            raise ValueError(
                f"ConvLCA needs floating-point kernels (unit, channel, height, width), got {kind_of(kernels)}; give one "
                "receptive field per unit."
            )
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f"ConvLCA needs a stride of at least one pixel, got stride={stride}.")
        columns = _of_norm_one(kernels.detach().flatten(1).T, "ConvLCA", "kernels", threshold, rectified)
        self.register_buffer("kernels", columns.T.reshape(kernels.shape).contiguous())
        self.stride = stride

    def _flat(self, x: Tensor) -> Tensor:
        _, channels, height, width = self.kernels.shape
        if (
            not is_float(x) or x.dtype not in WIDE
            or x.ndim != 4 or x.shape[1] != channels or x.shape[2] < height or x.shape[3] < width
        ):  # fmt: skip
            raise ValueError(
                f"ConvLCA needs float32 or float64 pictures (case, {channels}, height, width) of at least {height} x "
                f"{width} pixels, as its kernels are, got {kind_of(x)}; convert or reshape them."
            )
        return x.double().reshape(len(x), prod(x.shape[1:]))

    def _elements(self, x: Tensor) -> Elements:
        key, size = (x.device, *x.shape[2:]), (x.shape[2], x.shape[3])
        if self._known is None or self._known[0] != key or not torch.equal(self._known[1], self.kernels):
            elements = Shifted.of(self.kernels.to(x.device, torch.float64), self.stride, size)
            self._known = (key, self.kernels.clone(), elements)
        return self._known[2]

    def _shaped(self, activity: Tensor, x: Tensor) -> Tensor:
        elements = self._elements(x)
        assert isinstance(elements, Shifted)
        return activity.reshape(len(x), len(self.kernels), *elements.positions)


@dataclass(frozen=True)
class Finder:
    """Codes of flat inputs, NaN where they miss the optimality conditions by too much."""

    elements: Elements
    shrinkage: Shrinkage
    threshold: str
    tolerance: float
    max_steps: int

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activities (case, count), and by how much (case,) they miss."""
        hard = self.threshold == "hard"
        solver, misses = (partial(exchange, hard=True), missed_hard) if hard else (minimise, missed)
        activity, missing = solver(self.elements, self.shrinkage, x, tolerance=self.tolerance, max_steps=self.max_steps)
        allowed = self.tolerance * self.elements.drive(x).abs().amax(1).clamp_min(self.shrinkage.sparsity)
        failed = ~(missing <= allowed)
        if bool(failed.any()):
            missing[failed] = misses(self.elements, self.shrinkage, x[failed], activity[failed])
            activity[failed] = torch.nan
        return activity, missing


def _of_norm_one(columns: Tensor, asker: str, what: str, threshold: str, rectified: bool) -> Tensor:
    """Columns (n, units) of norm 1, or the reason why they cannot be used."""
    norm = columns.norm(dim=0)
    if bad := int((~(norm > 0) | ~norm.isfinite()).sum()):
        raise ValueError(
            f"{asker} needs {what} that are finite and not zero, got {bad} of {len(norm)} that hold NaN or "
            "infinity or are zero; remove them."
        )
    columns = columns / norm
    if threshold == "hard":
        wide = columns.double() / columns.double().norm(dim=0)
        cosine = wide.T @ wide
        twins = ((cosine if rectified else cosine.abs()) > 1 - TWIN).triu(1).any(0)
        if bool(twins.any()):
            raise ValueError(
                f"{asker} with a hard threshold needs {what} that differ, got {int(twins.sum())} that repeat an earlier "
                "one; remove them, as nothing decides which of two equal units is active."
            )
    return columns
