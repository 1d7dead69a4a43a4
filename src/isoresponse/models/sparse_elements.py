"""What sparse codes are made of: thresholds, and elements whose weighted sum is the input, a matrix or shifted over a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Shrinkage:
    """The soft threshold (), rectified or of both signs."""

    sparsity: float
    rectified: bool

    def __call__(self, v: Tensor, threshold: Tensor) -> Tensor:
        """The activities that v turns into; v is overwritten."""
        return v.sub_(threshold).clamp_min_(0) if self.rectified else v.sub_(v.clamp(-threshold, threshold))

    def excess(self, remains: Tensor) -> Tensor:
        """By how much each unit is driven above the threshold."""
        return (remains if self.rectified else remains.abs()) - self.sparsity


@runtime_checkable
class Elements(Protocol):
    """A linear map from codes (case, count) to inputs (case, n), and what a solver needs to know about it."""

    @property
    def count(self) -> int:
        """Numbers in a code."""

    @property
    def n(self) -> int:
        """Numbers in an input."""

    def drive(self, x: Tensor) -> Tensor:
        """Inner product (case, count) of every element with x (case, n)."""

    def climb(self, activity: Tensor, x: Tensor) -> Tensor:
        """A new tensor, the activity (case, count) plus the drive of x (case, n)."""

    def sum(self, activity: Tensor) -> Tensor:
        """Sum (case, n) of the elements, weighted by their activity (case, count)."""

    def inhibition(self, unit: Tensor) -> Tensor:
        """Inner products (case, k, k) among the elements named by unit (case, k), in float64."""

    def largest(self) -> Tensor:
        """Largest eigenvalue () of all inner products, or a number that is not below it."""

    def to(self, dtype: torch.dtype) -> Elements:
        """The same elements in another dtype."""


@dataclass(frozen=True)
class Columns:
    """The columns of a matrix (n, count); `squared_norm` () is its largest squared singular value."""

    matrix: Tensor
    gram: Tensor
    squared_norm: Tensor

    @classmethod
    def of(cls, matrix: Tensor, squared_norm: Tensor) -> Columns:
        """Elements from a matrix in float64."""
        return cls(matrix, matrix.T @ matrix, squared_norm)

    @property
    def count(self) -> int:
        """Numbers in a code."""
        return self.matrix.shape[1]

    @property
    def n(self) -> int:
        """Numbers in an input."""
        return self.matrix.shape[0]

    def drive(self, x: Tensor) -> Tensor:
        """Inner products (case, count) with x (case, n)."""
        return x @ self.matrix

    def climb(self, activity: Tensor, x: Tensor) -> Tensor:
        """Activity plus the drive of x, in a new tensor."""
        return torch.addmm(activity, x, self.matrix)

    def sum(self, activity: Tensor) -> Tensor:
        """Weighted sum (case, n)."""
        return activity @ self.matrix.T

    def inhibition(self, unit: Tensor) -> Tensor:
        """Inner products (case, k, k) among units (case, k)."""
        pair = (unit[:, :, None] * self.count + unit[:, None, :]).flatten()
        # index_select is several times faster than indexing with two tensors
        return self.gram.flatten().index_select(0, pair).view(*unit.shape, unit.shape[1])

    def largest(self) -> Tensor:
        """Bound () on the eigenvalues of all inner products."""
        return self.squared_norm.to(self.matrix)

    def to(self, dtype: torch.dtype) -> Columns:
        """The same in another dtype."""
        return Columns(self.matrix.to(dtype), self.gram, self.squared_norm)


@dataclass(frozen=True)
class Shifted:
    """Kernels (unit, channel, height, width) at every position of a picture (channel, *size) where they fit inside it.

    Codes are (unit, row, column), flattened. `correlation` (unit, unit, 2 height - 1, 2 width - 1) holds the inner products
    of two kernels by the shift from the first to the second: no matrix of the size of the picture is ever needed.
    """

    kernels: Tensor
    stride: int
    size: tuple[int, int]
    correlation: Tensor

    @classmethod
    def of(cls, kernels: Tensor, stride: int, size: tuple[int, int]) -> Shifted:
        """Elements from kernels in float64 and the height and width of the pictures."""
        height, width = kernels.shape[2:]
        return cls(kernels, stride, size, F.conv2d(kernels, kernels, padding=(height - 1, width - 1)))

    @property
    def positions(self) -> tuple[int, int]:
        """Rows and columns of positions."""
        rows, columns = ((a - b) // self.stride + 1 for a, b in zip(self.size, self.kernels.shape[2:], strict=True))
        return rows, columns

    @property
    def count(self) -> int:
        """Numbers in a code."""
        rows, columns = self.positions
        return len(self.kernels) * rows * columns

    @property
    def n(self) -> int:
        """Numbers in an input."""
        return self.kernels.shape[1] * self.size[0] * self.size[1]

    def drive(self, x: Tensor) -> Tensor:
        """Inner products (case, count) with x (case, n)."""
        pictures = x.view(len(x), self.kernels.shape[1], *self.size)
        return F.conv2d(pictures, self.kernels, stride=self.stride).reshape(len(x), self.count)

    def climb(self, activity: Tensor, x: Tensor) -> Tensor:
        """Activity plus the drive of x, in a new tensor."""
        return self.drive(x).add_(activity)

    def sum(self, activity: Tensor) -> Tensor:
        """Weighted sum (case, n)."""
        codes = activity.view(len(activity), len(self.kernels), *self.positions)
        covered = F.conv_transpose2d(codes, self.kernels, stride=self.stride)
        rows, columns = (a - b for a, b in zip(self.size, covered.shape[2:], strict=True))
        whole = F.pad(covered, (0, columns, 0, rows))  # pixels that no position reaches
        return whole.reshape(len(activity), self.n)

    def inhibition(self, unit: Tensor) -> Tensor:
        """Inner products (case, k, k) among units (case, k)."""
        _, _, high, wide = self.correlation.shape
        rows, columns = self.positions
        kernel, place = unit // (rows * columns), unit % (rows * columns)
        down, right = (
            self.stride * (at[:, None, :] - at[:, :, None]) + middle // 2
            for at, middle in ((place // columns, high), (place % columns, wide))
        )
        apart = (down < 0) | (down >= high) | (right < 0) | (right >= wide)
        pair = kernel[:, :, None] * len(self.kernels) + kernel[:, None, :]
        entry = (pair * high + down.clamp(0, high - 1)) * wide + right.clamp(0, wide - 1)
        products = self.correlation.flatten().index_select(0, entry.flatten()).view(entry.shape)
        return torch.where(apart, 0.0, products)

    def largest(self) -> Tensor:
        """Bound () on the eigenvalues of all inner products."""
        # on a torus of the picture's size every position is allowed and the eigenvalues are those of each frequency;
        # leaving out positions makes none larger
        waves = torch.fft.fft2(self.kernels.double(), s=self.size).permute(2, 3, 1, 0)
        return torch.linalg.matrix_norm(waves, ord=2).square().amax().to(self.kernels)

    def to(self, dtype: torch.dtype) -> Shifted:
        """The same in another dtype."""
        return Shifted(self.kernels.to(dtype), self.stride, self.size, self.correlation)
