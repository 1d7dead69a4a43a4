"""Figures 2 and 3 of the essay: a landscape as a response function, its iso-elevation lines and steepest paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from torch import Tensor

from isoresponse import plot
from isoresponse.loop import Status
from isoresponse.models.elevation import ElevationMap
from isoresponse.neuron import Box, Neuron
from isoresponse.paths import gradient_path
from isoresponse.studies.figures import new_figure, nice_step
from isoresponse.studies.subject import read_arrays

EARTH_DEGREE = 111.32  # kilometres per degree of latitude


def load_elevation(path: Path | None) -> tuple[ElevationMap, str]:
    """An elevation model and its name: from an ``.npz`` with ``elevation``, or the one that ships with matplotlib.

    Cell sizes are taken from ``lat`` and ``lon`` (degrees), or in metres from ``dx`` and ``dy``, ``cell`` or ``pixel_size_m``;
    rows run north to south unless ``lat`` increases. Without any of these a cell counts as 10 metres, and the name says
    so. The map is smoothed by two cells, but no more than 0.5 % of its width.

    Raises
    ------
    ValueError
        No array ``elevation``, or one that is no finite grid.
    """
    if path is None:
        shipped: Any = get_sample_data("jacksboro_fault_dem.npz")
        with shipped as z:
            north = np.deg2rad((z["ymin"] + z["ymax"]) / 2)
            cell = (float(z["dx"]) * EARTH_DEGREE * float(np.cos(north)), float(z["dy"]) * EARTH_DEGREE)
            return ElevationMap(z["elevation"], cell, smoothing=4.0), "Jacksboro fault, Tennessee"
    arrays = read_arrays(path)
    if "elevation" not in arrays:
        raise ValueError(f"{path} has no array 'elevation'; it has {', '.join(arrays) or 'none'}.")
    if np.ptp(arrays["elevation"]) == 0:
        raise ValueError(f"{path} holds a flat landscape, which has no contours; give one with heights.")
    grid, name = arrays["elevation"].astype(np.float64), path.stem.replace("_", " ")
    if "lat" in arrays and "lon" in arrays:
        lat, lon = arrays["lat"].astype(float), arrays["lon"].astype(float)
        if lat[0] < lat[-1]:
            grid = grid[::-1]
        step = abs(lat[1] - lat[0]), abs(lon[1] - lon[0])
        cell = (step[1] * EARTH_DEGREE * float(np.cos(np.deg2rad(lat.mean()))), step[0] * EARTH_DEGREE)
    elif "dx" in arrays and "dy" in arrays:
        cell = (arrays["dx"].item() / 1000, arrays["dy"].item() / 1000)
    elif {"cell", "pixel_size_m"} & set(arrays):
        cell = (arrays["cell" if "cell" in arrays else "pixel_size_m"].item() / 1000,) * 2
    else:
        cell, name = (0.01, 0.01), f"{name} (cells of 10 m assumed)"
    return ElevationMap(grid, cell, smoothing=min(2.0, 0.005 * min(grid.shape, default=0))), name


def topography(terrain: ElevationMap, name: str) -> tuple[Figure, dict[str, Any]]:
    """Iso-elevation lines of a landscape, as of any response function."""
    figure = new_figure(6.4, 5.6)
    ax = figure.subplots()
    step = draw_terrain(ax, terrain)
    smoothed = f" (smoothed by {terrain.smoothing:.2g} cells)" if terrain.smoothing else ""
    ax.set_title(f"{name}: iso-elevation lines every {step:g} m{smoothed}", fontsize=10)
    grid = terrain.grid
    return figure, {
        "name": name,
        "smoothing_cells": terrain.smoothing,
        "step_m": step,
        "lowest_m": float(grid.min()),
        "highest_m": float(grid.max()),
    }


def ascent(terrain: ElevationMap, name: str, *, starts: int = 48, knots: int = 41) -> tuple[Figure, dict[str, Any]]:
    """The steepest path to the highest point it can reach, crossing every iso-elevation line at a right angle.

    Many starts are tried in all directions round the summit, and the longest path drawn; the share of starts whose path
    reaches the summit at all, and does not end on a lower hill, is among the numbers.
    """
    neuron, summit, top = _summit(terrain)
    width, height = terrain.extent
    angle = torch.linspace(0, 2 * torch.pi, starts + 1, dtype=torch.float64)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    radii = torch.linspace(0.25, 0.95, 6, dtype=torch.float64)
    reach = torch.tensor([width, height], dtype=torch.float64)
    room = (torch.where(ring > 0, reach - summit, summit) / ring.abs()).nan_to_num(posinf=1e9).amin(1)
    points = (summit + radii[:, None, None] * (room[None, :, None] * ring)).reshape(-1, 2)
    bottom = neuron.value(points)
    span = top - terrain.grid.min()
    points = points[(bottom < top - 0.3 * span) & (bottom > terrain.grid.min() + 0.005 * span)]  # no start in the sea
    base = neuron.value(points)
    goal = base + 0.98 * (top - base)
    paths = gradient_path(neuron, points, goal, knots=knots)
    near = (paths.points[:, -1] - summit).norm(dim=1) < 0.1 * min(width, height)
    high = paths.status == int(Status.DONE)
    arrived = high & near
    figure = new_figure(6.4, 6.1)
    ax = figure.subplots()
    step = draw_terrain(ax, terrain)
    numbers: dict[str, Any] = {
        "name": name, "summit_km": summit.tolist(), "summit_m": float(top), "starts": len(points),
        "smoothing_cells": terrain.smoothing,
        "share_reaching_the_summit": float(arrived.double().mean()) if len(points) else 0.0,
        "share_as_high_elsewhere": float((high & ~near).double().mean()) if len(points) else 0.0,
    }  # fmt: skip
    if bool(arrived.any()):
        best = int(torch.where(arrived, paths.arclength[:, -1], -torch.inf).argmax())
        track = paths.points[best]
        plot.path(ax, track, label="steepest path")
        error = paths.orthogonality[best, 1:-1]
        zoom(ax, torch.cat([track, summit[None]]), terrain.extent)
        numbers |= {
            "start_m": float(base[best]), "end_m": float(paths.responses[best, -1]),
            "length_km": float(paths.arclength[best, -1]), "straight_line_km": float((track[-1] - track[0]).norm()),
            "median_angle_error_deg": float(torch.rad2deg(error.median())),
            "largest_drift_m": float(paths.drift[best].abs().max()),
        }  # fmt: skip
        ax.set_title(
            f"{name}: steepest path from {numbers['start_m']:.0f} m to {numbers['end_m']:.0f} m,\nlines every {step:g} m; "
            f"crossed at 90° to within {max(numbers['median_angle_error_deg'], 0.01):.2f}° (median of {knots - 2} knots).\n"
            f"Of {len(points)} starts {numbers['share_reaching_the_summit']:.0%} get there; the other paths end elsewhere",
            fontsize=10,
        )  # fmt: skip
    else:
        ax.set_title(f"{name}: no steepest path from {len(points)} starts reaches the summit", fontsize=10)
    ax.plot(*summit.tolist(), "^", color=plot.INK, ms=8, zorder=6)
    return figure, numbers


def zoom(ax: Any, points: Tensor, extent: tuple[float, float]) -> None:
    """Show the points with a margin, and at least half of the map."""
    low, high = points.amin(0), points.amax(0)
    middle = 0.5 * (low + high)
    half = torch.maximum(0.65 * (high - low), 0.25 * torch.tensor(extent)).max()
    for limits, center, size in ((ax.set_xlim, middle[0], extent[0]), (ax.set_ylim, middle[1], extent[1])):
        at = min(max(float(center), float(half)), size - float(half)) if size > 2 * half else size / 2
        limits(max(0.0, at - float(half)), min(size, at + float(half)))


def _summit(terrain: ElevationMap) -> tuple[Neuron, Tensor, Tensor]:
    width, height = terrain.extent
    neuron = Neuron(terrain, (2,), Box(0.0, torch.tensor([width, height], dtype=torch.float64)), "elevation")
    columns = terrain.grid.shape[1]
    flat = int(terrain.grid.argmax())
    summit = torch.tensor(
        [(flat % columns) * terrain.cell[0], (flat // columns) * terrain.cell[1]], dtype=torch.float64
    )
    return neuron, summit, neuron.value(summit[None])[0]


def draw_terrain(ax: Any, terrain: ElevationMap) -> float:
    """The landscape with its contours, on axes in kilometres; returns the contours' distance in metres."""
    width, height = terrain.extent
    rows, columns = terrain.grid.shape
    x, y = np.linspace(0, width, columns), np.linspace(0, height, rows)
    grid = terrain.grid.numpy()
    low, high = float(grid.min()), float(grid.max())
    step = nice_step((high - low) / 12)
    levels = np.arange(np.floor(low / step) * step, high + step, step)
    ax.contourf(x, y, grid, levels=levels, cmap="cividis", alpha=0.6)
    lines = ax.contour(x, y, grid, levels=levels, colors=plot.INK, linewidths=0.5)
    ax.clabel(lines, levels[::2], fmt="%g", fontsize=6)
    ax.set_aspect("equal")
    ax.set_xlabel("east (km)")
    ax.set_ylabel("north (km)")
    return step
