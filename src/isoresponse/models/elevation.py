"""A landscape as a neuron: input a position, response the elevation, smooth enough to have contours.

Cubic B-spline interpolation of a grid (twice continuously differentiable), so gradient and curvature of the
landscape are exact derivatives of one function and not of pixels.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor, nn


class ElevationMap(nn.Module):
    """Elevation at positions (case, 2) = (east, north) in kilometres from the south-west corner.

    Parameters
    ----------
    elevation
        Grid (row, column) in metres, row 0 in the north, at least 4 x 4, finite.
    cell
        Size of a grid cell (east, north) in kilometres.
    smoothing
        Standard deviation of a Gaussian applied first, in cells. Terraced or noisy data need 1 to 3.

    Raises
    ------
    ValueError
        A grid that is too small or not finite, a cell that is not positive.
    """

    grid: Tensor
    coefficients: Tensor

    def __init__(self, elevation: np.ndarray, cell: tuple[float, float], *, smoothing: float = 0.0) -> None:
        super().__init__()
        grid = np.asarray(elevation, dtype=np.float64)
        if grid.ndim != 2 or min(grid.shape) < 4:
            raise ValueError(f"an elevation model is a grid of at least 4 x 4 numbers, got shape {grid.shape}.")
        if not np.isfinite(grid).all():
            raise ValueError(
                f"an elevation model is finite, got {(~np.isfinite(grid)).sum()} NaN or infinite cells; fill them."
            )
        if not all(0 < size < float("inf") for size in cell):
            raise ValueError(f"cell must be two positive lengths in kilometres, got {cell}.")
        if smoothing > 0:
            grid = scipy.ndimage.gaussian_filter(grid, smoothing, mode="nearest")
        south_first = grid[::-1]
        self.cell, self.smoothing = cell, smoothing
        self.register_buffer("grid", torch.as_tensor(south_first.copy()))
        coefficients = scipy.ndimage.spline_filter(south_first, order=3, mode="mirror")
        self.register_buffer("coefficients", torch.as_tensor(coefficients))

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height in kilometres, between the outermost grid points."""
        rows, columns = self.coefficients.shape
        return (columns - 1) * self.cell[0], (rows - 1) * self.cell[1]

    def forward(self, x: Tensor) -> Tensor:
        """Elevations (case,) in metres; positions outside are taken at the nearest edge."""
        rows, columns = self.coefficients.shape
        table = self.coefficients.to(x.dtype)
        result = torch.zeros_like(x[:, 0])
        (i, across), (j, along) = _weights(x[:, 0] / self.cell[0], columns), _weights(x[:, 1] / self.cell[1], rows)
        for a in range(4):
            for b in range(4):
                node = table[_mirror(j + b - 1, rows), _mirror(i + a - 1, columns)]
                result = result + across[:, a] * along[:, b] * node
        return result


def _weights(t: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First node (case,) and the four cubic B-spline weights (case, 4) at grid coordinate `t`."""
    t = t.clamp(0, size - 1)
    first = t.detach().floor().clamp(max=size - 2)
    u = t - first
    weights = [(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3]
    return first.long(), torch.stack(weights, 1) / 6


def _mirror(index: Tensor, size: int) -> Tensor:
    """Index reflected at both ends, as the spline's coefficients are."""
    index = index.abs()
    return torch.where(index > size - 1, 2 * (size - 1) - index, index)
