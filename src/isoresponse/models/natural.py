"""Patches of natural pictures, whitened: what models of the visual cortex learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def whiten(picture: Tensor, *, cutoff: float = 200 / 512, deviation: float = 1.0) -> Tensor:
    """A picture (height, width) with a flat spectrum up to about `cutoff`, mean zero and the given standard deviation.

    Parameters
    ----------
    picture
        Grey values. Natural pictures' amplitudes fall as 1 / frequency, which the filter undoes.
    cutoff
        Frequency in cycles per pixel at which the low-pass has fallen to 1/e; half of the sampling rate is 0.5.

    Raises
    ------
    ValueError
        Something else than one picture with finite values that vary; a cutoff or deviation that is not positive.

    Notes
    -----
    Amplitudes are multiplied by f exp(-(f / cutoff)^4), phases kept: Olshausen & Field (1997), Vision Research 37:3311,
    whose 200 cycles per picture of 512 pixels are the default. The picture is taken as periodic.

    Examples
    --------
    >>> import torch
    >>> white = whiten(torch.rand(32, 32, generator=torch.Generator().manual_seed(0)).cumsum(0))
    >>> bool(white.mean().abs() < 1e-6), round(float(white.std(correction=0)), 4)
    (True, 1.0)
    """
    if picture.ndim != 2 or not picture.is_floating_point() or not bool(picture.isfinite().all()):
        raise ValueError(
            f"whiten needs one picture (height, width) of finite floating-point numbers, got {picture.dtype} "
            f"{tuple(picture.shape)}."
        )
    if not (cutoff > 0 and deviation > 0):
        raise ValueError(f"whiten needs a positive cutoff and deviation, got {cutoff} and {deviation}.")
    wide = picture.double()
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64, device=picture.device) for size in picture.shape)
    frequency = torch.hypot(rows[:, None], columns[None, :])
    white = torch.fft.ifft2(torch.fft.fft2(wide) * frequency * torch.exp(-((frequency / cutoff) ** 4))).real
    size = white.std(correction=0)
    if not bool(size > 1e-12 * wide.abs().max()):
        raise ValueError("whiten needs a picture that varies, got a constant one.")
    return (white * deviation / size).to(picture.dtype)


def patches(
    pictures: Tensor | Sequence[Tensor],
    size: int,
    count: int,
    *,
    generator: Generator | None = None,
    centered: bool = True,
    least: float = 0.0,
) -> Tensor:
    """Square patches (count, size, size), from positions that are all equally likely, with replacement.

    Parameters
    ----------
    pictures
        Grey (picture, height, width), or a list of (height, width).
    generator
        Source of the positions; None stands for seed 0.
    centered
        Whether each patch's mean is subtracted.
    least
        Patches whose standard deviation is not above this are drawn anew: empty sky teaches nothing.

    Raises
    ------
    ValueError
        No pictures, pictures smaller than a patch, or hardly any patch that varies by `least`.

    Examples
    --------
    >>> import torch
    >>> patches(torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0)), 8, 100).shape
    torch.Size([100, 8, 8])
    """
    pictures = list(pictures)
    if not pictures or size < 1 or count < 1 or any(p.ndim != 2 or min(p.shape) < size for p in pictures):
        raise ValueError(
            f"patches needs pictures (height, width) of at least {size} x {size} and a positive count, got {count} of "
            f"{[tuple(p.shape) for p in pictures[:3]]}."
        )
    generator = generator or Generator().manual_seed(0)
    positions = torch.tensor([(p.shape[0] - size + 1) * (p.shape[1] - size + 1) for p in pictures])
    found: list[Tensor] = []
    have, tries = 0, 0
    while have < count:
        drawn = _draw(pictures, positions, size, count, generator)
        drawn = drawn[drawn.flatten(1).std(dim=1, correction=0) > least] if least > 0 else drawn
        have, tries = have + len(drawn), tries + 1
        found.append(drawn)
        if have < count and tries * count > 100 * max(have, 1):
            raise ValueError(
                f"patches found only {have} of {tries * count} patches whose standard deviation is above least={least}; "
                "lower it."
            )
    kept = torch.cat(found)[:count]
    return kept - kept.mean((1, 2), keepdim=True) if centered else kept


def _draw(pictures: list[Tensor], positions: Tensor, size: int, count: int, generator: Generator) -> Tensor:
    ends = positions.cumsum(0)
    place = torch.randint(int(ends[-1]), (count,), generator=generator)
    owner = torch.searchsorted(ends, place, right=True)
    within = place - (ends - positions)[owner]
    drawn = torch.empty(count, size, size, dtype=pictures[0].dtype, device=pictures[0].device)
    for k, picture in enumerate(pictures):
        mine = (owner == k).nonzero()[:, 0]
        across = picture.shape[1] - size + 1
        row, column = within[mine] // across, within[mine] % across
        drawn[mine.to(drawn.device)] = picture.unfold(0, size, 1).unfold(1, size, 1)[row, column]
    return drawn
