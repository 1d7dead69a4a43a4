"""Distances over a whole landscape at once, by fast marching: from a region outwards, or at any local speed.

The distance to a region grows with |grad T| = 1 / speed. Fast marching (Sethian 1996) visits the nodes of a grid in the order
of their distance, so each is settled once. It is an independent referee for what searches find in two dimensions.
"""

from __future__ import annotations

import heapq
import math

import numpy as np


def marching_distance(
    height: np.ndarray, level: float, cell: tuple[float, float], *, speed: np.ndarray | None = None
) -> np.ndarray:
    """Distance (row, column) from every node of a grid to where its `height` is at `level` or above.

    Zero inside the region, infinite everywhere if there is none. First order in the cell: right to about a cell.

    Parameters
    ----------
    height
        (row, column), finite.
    cell
        Distance between neighbours along a row and along a column, in input units.
    speed
        (row, column), positive: the time that is needed at this speed, instead of the distance.

    Raises
    ------
    ValueError
        A grid that is not two-dimensional or not finite, cells or speeds that are not positive.

    Examples
    --------
    >>> import numpy as np
    >>> marching_distance(np.array([[0.0, 1.0, 2.0, 3.0]]), 2.5, (1.0, 1.0))
    array([[2.5, 1.5, 0.5, 0. ]])
    """
    if height.ndim != 2 or not np.isfinite(height).all() or not np.isfinite(level):
        raise ValueError(f"marching needs a finite grid (row, column) and level, got shape {height.shape}.")
    if not all(0 < c < math.inf for c in cell):
        raise ValueError(f"cell must be two positive lengths, got {cell}.")
    pace = np.ones(height.shape) if speed is None else np.asarray(speed, dtype=np.float64)
    if pace.shape != height.shape or not (np.isfinite(pace).all() and (pace > 0).all()):
        raise ValueError("speed must be positive and finite, one number per node.")
    rows, columns = height.shape
    time = _first(height - level, cell, pace)
    settled = np.zeros(height.shape, dtype=bool)
    heap = [(float(time[i, j]), int(i), int(j)) for i, j in np.argwhere(np.isfinite(time))]
    heapq.heapify(heap)
    while heap:
        _, i, j = heapq.heappop(heap)
        if settled[i, j]:
            continue
        settled[i, j] = True
        for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if 0 <= a < rows and 0 <= b < columns and not settled[a, b]:
                across = min(_at(time, settled, a, b - 1), _at(time, settled, a, b + 1))
                along = min(_at(time, settled, a - 1, b), _at(time, settled, a + 1, b))
                later = _update(across, along, cell, float(pace[a, b]))
                if later < time[a, b]:
                    time[a, b] = later
                    heapq.heappush(heap, (later, a, b))
    return time


def _first(over: np.ndarray, cell: tuple[float, float], pace: np.ndarray) -> np.ndarray:
    """Zero in the region; beside it, by where the height between two nodes meets the level."""
    time = np.where(over >= 0, 0.0, np.inf)
    parts = []
    for axis, size in ((1, cell[0]), (0, cell[1])):
        best = np.full(over.shape, np.inf)
        for shift in (-1, 1):
            beside = np.roll(over, shift, axis)
            edge = [slice(None), slice(None)]
            edge[axis] = slice(0, 1) if shift == 1 else slice(-1, None)
            beside[tuple(edge)] = -1.0
            meets = (over < 0) & (beside >= 0)
            gap = np.divide(over, over - beside, out=np.full(over.shape, np.inf), where=meets)
            best = np.minimum(best, np.where(meets, gap * size, np.inf))
        parts.append(best)
    with np.errstate(divide="ignore"):  # the distance to the line through both meeting points
        slant = 1 / np.sqrt(1 / parts[0] ** 2 + 1 / parts[1] ** 2)
    beside = np.isfinite(parts[0]) | np.isfinite(parts[1])
    return np.where(beside & (over < 0), slant / pace, time)


def _at(time: np.ndarray, settled: np.ndarray, i: int, j: int) -> float:
    inside = 0 <= i < time.shape[0] and 0 <= j < time.shape[1]
    return float(time[i, j]) if inside and settled[i, j] else math.inf


def _update(across: float, along: float, cell: tuple[float, float], pace: float) -> float:
    """The time at a node whose earliest settled neighbours along the two axes have these times."""
    one = min(across + cell[0] / pace, along + cell[1] / pace)
    if math.isinf(across) or math.isinf(along):
        return one
    a, b = 1 / cell[0] ** 2, 1 / cell[1] ** 2
    mean = (a * across + b * along) / (a + b)
    under = mean**2 - (a * across**2 + b * along**2 - 1 / pace**2) / (a + b)
    both = mean + math.sqrt(under) if under >= 0 else math.inf
    return both if both >= max(across, along) else one
