"""The two measures of bending that Paiton et al. (2020, Journal of Vision 20(12):10) published, and what they mean.

Both start from responses on a square grid in a plane, scaled to [0, 1] plane by plane. *Iso-response*: the contour at half
height, mirrored at the x-axis, is fitted with x = c0 + c1 y + c2 y^2; the measure is c2. *Attenuation*: the right-most
column is fitted with a quadratic in y; the measure is minus its coefficient. Positive is bent outward, away from the origin.

Neither is a curvature. c2 is a coefficient in *grid indices*: it changes with the grid, and its level with the plane's own
maximum. A parabola x = c2 y^2 has curvature 2 c2 at its apex, so with dx and dy input units between grid points the
curvature is 2 c2 dx / dy^2, which is exact where the contour is a parabola with its apex on the axis (the mirroring sees to
that), and an average over the plane elsewhere. Attenuation mixes bending with the spacing of contours and has no conversion.
"""

from __future__ import annotations

from dataclasses import dataclass

import contourpy
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.loop import Status


@dataclass(frozen=True, eq=False)
class PublishedCurvatures:
    """The published measures of one plane each, and the iso-response fit as a curvature."""

    iso_response: Tensor = axes("plane", units="1/index", about="quadratic coefficient of the contour, in grid indices")
    attenuation: Tensor = axes("plane", units="1/unit^2", about="minus the quadratic coefficient of the last column")
    curvature: Tensor = axes("plane", units="1/input", about="curvature at the apex of the fitted contour")
    residual: Tensor = axes(
        "plane", units="index", about="root-mean-square residual of the contour fit, in grid indices"
    )
    status: Tensor = axes("plane", about="how the plane ended")


def published_curvatures(
    response: Float[Tensor, "plane y x"],
    *,
    x: Float[Tensor, " x"],
    y: Float[Tensor, " y"],
    level: float = 0.5,
    unit: float = 1.0,
) -> PublishedCurvatures:
    """Iso-response coefficient, response attenuation and converted curvature of each plane, as published in 2020.

    Parameters
    ----------
    response
        Responses on grids; x runs along the neuron's exciting direction, the origin is at (0, 0).
    x, y
        Coordinates of the grid, equally spaced, in input units; y symmetric about 0.
    level
        Share of the plane's own range at which the contour is taken.
    unit
        Input units per plane unit, 31.773287 in the paper (the mean length of a whitened patch).

    Raises
    ------
    ValueError
        Grids that are not equally spaced, of fewer than three points, or not symmetric in y; a level outside (0, 1).

    Examples
    --------
    >>> import torch
    >>> ticks = torch.linspace(-2, 2, 31, dtype=torch.float64)
    >>> bent = ticks[None, :] - 0.3 * ticks[:, None] ** 2        # contours x = c + 0.3 y^2
    >>> round(published_curvatures(bent[None], x=ticks, y=ticks, level=0.6).curvature.item(), 2)
    0.6
    """
    dx, dy = _spacing(x, "x"), _spacing(y, "y")
    if response.shape[1:] != (len(y), len(x)):
        raise ValueError(f"response must have shape (plane, {len(y)}, {len(x)}), got {tuple(response.shape)}.")
    if abs(float(y[0] + y[-1])) > 1e-3 * dy:
        raise ValueError(
            f"y must be symmetric about 0, since the upper half is mirrored; got {float(y[0])} to {float(y[-1])}."
        )
    if not (0 < level < 1 and unit > 0):
        raise ValueError(f"level must be between 0 and 1 and unit positive, got {level} and {unit}.")
    grid = response.detach().double().cpu().numpy()
    heights = y.detach().double().cpu().numpy() / unit
    rows = np.full((len(grid), 3), np.nan)
    status = np.full(len(grid), int(Status.DONE))
    for i, surface in enumerate(grid):
        low, high = surface.min(), surface.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            status[i] = int(Status.NOT_FINITE)
        elif low == high:
            status[i] = int(Status.FLAT)
        else:
            scaled = _mirrored((surface - low) / (high - low))
            fit = _contour_fit(scaled, level)
            if fit is None:
                status[i] = int(Status.UNREACHABLE)
            else:
                rows[i] = (*fit, -_quadratic_fit(heights, scaled[:, -1])[0])
    iso, residual, attenuation = (
        torch.as_tensor(c, dtype=response.dtype, device=response.device) for c in rows.T.copy()
    )
    return PublishedCurvatures(
        iso, attenuation, 2 * iso * dx / dy**2, residual, torch.as_tensor(status, device=response.device)
    )


def _mirrored(surface: np.ndarray) -> np.ndarray:
    """The upper half plane (rows of y >= 0), and below it its mirror image."""
    upper = surface[len(surface) // 2 :]
    below = upper[::-1] if len(surface) % 2 == 0 else upper[:0:-1]
    return np.concatenate([below, upper])


def _contour_fit(surface: np.ndarray, level: float) -> tuple[float, float] | None:
    """Coefficient c2 and residual of x(y) on the first contour, in grid indices; None without a contour of three points.

    First is, of the contours that span three rows, the one that holds the smallest (row, column).
    """
    lines = [np.asarray(line)[:, ::-1] for line in contourpy.contour_generator(z=surface).lines(level)]
    lines = [line for line in lines if len(np.unique(line[:, 0])) >= 3]
    if not lines:
        return None
    first = min(lines, key=lambda line: tuple(min(map(tuple, line))))
    return _quadratic_fit(first[:, 0], first[:, 1])


def _quadratic_fit(t: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Quadratic coefficient and root-mean-square residual of values(t), by least squares."""
    fit = np.polynomial.Polynomial.fit(t, values, 2)
    return float(fit.convert().coef[2]) if len(fit.convert().coef) > 2 else 0.0, float(
        np.sqrt(np.mean((fit(t) - values) ** 2))
    )


def _spacing(ticks: Tensor, name: str) -> float:
    steps = ticks[1:] - ticks[:-1]
    if len(ticks) < 3 or not bool((steps > 0).all()) or float(steps.max() - steps.min()) > 1e-3 * float(steps.mean()):
        raise ValueError(
            f"{name} must hold at least three equally spaced, increasing coordinates, got {ticks.tolist()[:6]}."
        )
    return float(steps.mean())
