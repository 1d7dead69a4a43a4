"""Pairs of neurons that differ in how their contours bend and in nothing else, and arrays of unequal length side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from isoresponse.neuron import Box, Neuron
from isoresponse.studies.claims.subjects import SparseUnits, twin

START = (30.0, 75.0)  # degrees between the toys' starts and their MEI
CURVATURE = (0.5, 2.0)  # of the toys' bent contours on the axis of the MEI, 1/input


@dataclass(frozen=True, eq=False)
class Pair:
    """In every case a neuron, one with other contours, and an input `x` (case, n) from which both gain `gain` (case,).

    `axis` (case, n) is the most exciting input of both, of length 1; cases of one `group` (case,) are not independent.
    """

    bent: Neuron
    straight: Neuron
    x: Tensor
    axis: Tensor
    gain: Tensor
    group: Tensor


def drive(x: Tensor, axis: Tensor) -> Tensor:
    """Response (case,) of linear neurons, each with its own axis (case, n)."""
    return (x * axis).sum(1)


def axes_of(count: int, n: int, generator: Generator) -> Tensor:
    """Random directions (count, n)."""
    drawn = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    """Uniform numbers (count,)."""
    return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)


def toys(count: int, n: int, *, generator: Generator, curvature: tuple[float, float] = CURVATURE) -> Pair:
    """Pairs as in the essay's figure 4, in n dimensions: equal in MEI, and in response, gradient and spacing along it.

    Every pair has a random MEI, a random curvature where contours cross its axis, and a start of length 1 that is well away
    from the axis. Both gain one response unit, what a step of length 1 along the axis gives.
    """
    axis = axes_of(count, n, generator)
    side = axes_of(count, n, generator)
    side = side - (side * axis).sum(1, keepdim=True) * axis
    angle = torch.deg2rad(uniform(*START, count, generator))[:, None]
    x = angle.cos() * axis + angle.sin() * side / side.norm(dim=1, keepdim=True)
    line = Neuron(drive, (n,), Box(), "toy", (axis,))
    bend = uniform(*curvature, count, generator)
    return Pair(
        twin(line, axis, curvature=bend), twin(line, axis), x, axis, torch.ones(count, dtype=torch.float64), torch.arange(count)
    )  # fmt: skip


def against_pointwise(units: SparseUnits) -> Pair:
    """Units of sparse coding, and pointwise ones with the same weights and threshold."""
    gain = units.x.new_full((len(units.x),), units.norm)
    return Pair(units.sparse(), units.pointwise(), units.x, units.axis(), gain, units.unit)


def against_twins(units: SparseUnits) -> Pair:
    """Units of sparse coding, and their twins with straight contours: the same response, gradient and spacing at the start."""
    pair = against_pointwise(units)
    return Pair(pair.bent, twin(pair.bent, pair.x), pair.x, pair.axis, pair.gain, pair.group)


def degrees(x: Tensor, axis: Tensor) -> Tensor:
    """Angle (case, ...) in degrees between vectors (case, ..., n) and an axis (case, n); NaN where there is no vector."""
    along = axis.reshape(len(axis), *[1] * (x.ndim - 2), axis.shape[-1])
    cosine = (x * along).sum(-1) / (x.norm(dim=-1) * along.norm(dim=-1))
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def side_by_side(rows: Sequence[Tensor | np.ndarray]) -> np.ndarray:
    """Arrays (row, case, ...) whose first axes differ in length, the shorter ones ending in NaN."""
    arrays = [np.asarray(r, dtype=np.float64) for r in rows]
    most = max((len(a) for a in arrays), default=0)
    return np.stack([
        np.pad(a, [(0, most - len(a)), *[(0, 0)] * (a.ndim - 1)], constant_values=math.nan) for a in arrays
    ])  # fmt: skip
