"""How edge-like the elements of a dictionary are: the Gabor function nearest to each."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from isoresponse.models.dictionary import elements

STEPS, RATE = 200, 0.1  # of Adam on the six parameters; positions in pixels, lengths and frequency as logarithms
STARTS = (1.2, 2.5)  # standard deviations of the first envelopes, in pixels; the better end is kept
FINE = 64  # points of the spectrum per axis, from whose maximum the frequency starts


@dataclass(frozen=True, eq=False)
class GaborFit:
    """Gabor functions nearest to elements, one per row of every tensor.

    Attributes
    ----------
    explained
        (units,) share of an element's energy that is the Gabor's: 1 for a Gabor, 0 for nothing alike.
    center
        (units, 2) row and column in pixels from the centre of the first pixel.
    spread
        (units, 2) standard deviations of the envelope in pixels, across the bars and along them.
    orientation
        (units,) angle of the bars, in radians anticlockwise from horizontal, in [0, pi), as of `visual_cortex.gabor`.
    frequency
        (units,) cycles per pixel across the bars; near 0 for a single edge, which is then the slope of the envelope.
    phase
        (units,) radians in [0, 2 pi): a bright bar at the center for 0, to its right (if horizontal: below) for pi / 2.
    fitted
        (units, height, width) the Gabor functions.
    """

    explained: Tensor
    center: Tensor
    spread: Tensor
    orientation: Tensor
    frequency: Tensor
    phase: Tensor
    fitted: Tensor

    def edges(self, *, explained: float = 0.5) -> Tensor:
        """Whether each element (units,) is an oriented, localised edge.

        The Gabor explains at least that share, its centre lies in the element, its envelope (two standard deviations to
        each side) is smaller than the element, and light and dark nearly cancel: the square of its sum is less
        than half of what the envelope alone would have. A blob, which has no orientation, has all of it.
        """
        height, width = self.fitted.shape[1:]
        size = torch.tensor([height - 0.5, width - 0.5]).to(self.center)
        inside = ((self.center > -0.5) & (self.center < size)).all(1)
        small = 4 * pi * self.spread.prod(1) < height * width
        energy = self.fitted.square().sum((1, 2))
        oriented = self.fitted.sum((1, 2)).square() < 0.5 * 4 * pi * self.spread.prod(1) * energy
        return (self.explained >= explained) & inside & small & oriented


def fit_gabors(dictionary: Tensor, shape: tuple[int, int]) -> GaborFit:
    """Gabor functions of least squared difference from the elements of a dictionary (n, units), found by descent.

    Amplitude and phase are solved for at every step; position, envelope, orientation and frequency start at the centre of
    the energy and at the spectrum's maximum. A minimum may be local: `explained` is a lower bound. A zero element
    gets NaN.

    Parameters
    ----------
    shape
        Height and width of an element; their product is n.

    Raises
    ------
    ValueError
        A shape that does not hold n numbers, a dictionary without elements.

    Notes
    -----
    The description of simple cells as Gabor functions: Marcelja (1980), J. Opt. Soc. Am. 70:1297; fitted to cells by
    Jones & Palmer (1987), J. Neurophysiol. 58:1233.

    Examples
    --------
    >>> import torch
    >>> from isoresponse.models.visual_cortex import gabor
    >>> found = fit_gabors(gabor((16, 16), wavelength=5.0, orientation=0.7, phase=2.0).reshape(-1, 1), (16, 16))
    >>> bool(found.explained[0] > 0.999), [round(float(v[0]), 1) for v in (1 / found.frequency, found.orientation, found.phase)]
    (True, [5.0, 0.7, 2.0])
    """
    tiles = elements(dictionary.detach(), shape)
    tiles = tiles / tiles.flatten(1).norm(dim=1)[:, None, None]
    fits = [_descend(tiles, spread) for spread in STARTS]
    best = torch.stack([explained for _, explained, _, _ in fits]).argmax(0)
    pick = torch.arange(len(tiles), device=tiles.device)
    free, explained, weights, fitted = (torch.stack(part)[best, pick] for part in zip(*fits, strict=True))
    down, right = free[:, 2], free[:, 3]
    forward = torch.where((right < 0) | ((right == 0) & (down < 0)), -1.0, 1.0)  # the two directions are one wave
    return GaborFit(
        explained=explained, center=free[:, :2], spread=free[:, 4:].exp(),
        orientation=torch.atan2(right * forward, down * forward) % pi,
        frequency=torch.hypot(down, right) / (2 * pi),
        phase=torch.atan2(weights[:, 1] * forward, weights[:, 0]) % (2 * pi), fitted=fitted,
    )  # fmt: skip


@torch.enable_grad()
def _descend(tiles: Tensor, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameters (units, 6), and what `_project` makes of them, from one first envelope."""
    free = _start(tiles, spread).requires_grad_()
    optimizer = torch.optim.Adam([free], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (-_project(tiles, free)[0].sum()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return free.detach(), *_project(tiles, free)


def _start(tiles: Tensor, spread: float) -> Tensor:
    """Row, column, wave vector in radians per pixel (row, column) and two logarithms of spreads, (units, 6)."""
    units, _, width = tiles.shape
    energy = tiles.square()
    around = torch.nn.functional.avg_pool2d(energy[:, None], 5, 1, 2)[:, 0]
    peak = around.flatten(1).argmax(1)
    spectrum = torch.fft.rfft2(tiles, s=(FINE, FINE)).abs()
    spectrum[:, 0, 0] = 0
    top = spectrum.flatten(1).argmax(1)
    columns = spectrum.shape[2]
    row, column = top // columns, top % columns
    row = torch.where(row > FINE // 2, row - FINE, row)
    wave = 2 * pi / FINE * torch.stack([row, column], 1).to(tiles)
    log = torch.full((units, 2), spread, dtype=tiles.dtype, device=tiles.device).log()
    return torch.cat([torch.stack([peak // width, peak % width], 1).to(tiles), wave, log], 1)


def _project(tiles: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share (units,) of unit elements in the span of an even and an odd Gabor, weights (units, 2), and the projection."""
    row, column = (
        torch.arange(size, dtype=tiles.dtype, device=tiles.device) - free[:, k, None]
        for k, size in enumerate(tiles.shape[1:])
    )
    row, column = row[:, :, None], column[:, None, :]
    wave = free[:, 2:4]
    length = wave.norm(dim=1).clamp_min(1e-6)
    down, right = (wave / length[:, None]).T[:, :, None, None]
    across, along = down * row + right * column, down * column - right * row
    wide, long = free[:, 4:].exp().T[:, :, None, None]
    envelope = torch.exp(-(across / wide).square() / 2 - (along / long).square() / 2)
    phase = length[:, None, None] * across
    even, odd = (envelope * phase.cos()).flatten(1), (envelope * phase.sin()).flatten(1)
    flat = tiles.flatten(1)
    a, b, c = (even * even).sum(1), (even * odd).sum(1), (odd * odd).sum(1)
    p, q = (even * flat).sum(1), (odd * flat).sum(1)
    ridge = 1e-6 * (a + c) + torch.finfo(tiles.dtype).tiny  # a wave of frequency zero has no odd part
    a, c = a + ridge, c + ridge
    determinant = a * c - b * b
    u, v = (c * p - b * q) / determinant, (a * q - b * p) / determinant
    fitted = u[:, None] * even + v[:, None] * odd
    return 1 - (flat - fitted).square().sum(1), torch.stack([u, v], 1), fitted.reshape(tiles.shape)
