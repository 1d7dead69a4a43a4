"""Second axes of planes: what to cross a most exciting input with.

Random directions tell what a neuron does in general, directions towards other neurons' exciting inputs what its
neighbours do to it, a phase-shifted copy whether it is tolerant to phase, and an attack what an adversary sees.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from isoresponse.neuron import Neuron
from isoresponse.operators import length
from isoresponse.solve import closest_point


def random_directions(
    count: int, *, orthogonal_to: Float[Tensor, "*shape"], generator: Generator, mutually: bool = False
) -> Float[Tensor, "count *shape"]:
    """Unit vectors (count, *shape), uniform on the sphere of all directions orthogonal to one input.

    Parameters
    ----------
    mutually
        Whether the directions are orthogonal to each other too (each still uniform).

    Raises
    ------
    ValueError
        A count below 1, more mutually orthogonal directions than there are, an input that is zero or not finite.

    Examples
    --------
    >>> import torch
    >>> found = random_directions(3, orthogonal_to=torch.tensor([1.0, 0, 0, 0]), generator=torch.Generator())
    >>> bool(found[:, 0].abs().max() < 1e-6)
    True
    """
    axis = _unit(orthogonal_to, "orthogonal_to")
    n = axis.numel()
    limit = n - 1 if mutually else math.inf
    if not 1 <= count <= limit or n < 2:
        raise ValueError(f"count must be at least 1 and at most {limit} in {n} input elements, got {count}.")
    draw = torch.randn((count, n), generator=generator, dtype=axis.dtype, device=generator.device).to(axis.device)
    if mutually:
        draw = draw - (draw @ axis)[:, None] * axis
        q, r = torch.linalg.qr(draw.T)
        draw = (q * torch.diagonal(r).sign()).T
    for _ in range(2):
        draw = draw - (draw @ axis)[:, None] * axis
        draw = draw / length(draw, keepdim=True)
    return draw.reshape(count, *orthogonal_to.shape)


def comparison_directions(
    target: Float[Tensor, "*shape"],
    others: Float[Tensor, "other *shape"],
    *,
    count: int | None = None,
    min_angle: float = math.radians(15),
) -> tuple[Float[Tensor, "k *shape"], Int[Tensor, " k"]]:
    """Unit directions (k, *shape) towards other neurons' exciting inputs, orthogonal to the target's, and which they are (k,).

    The others in order of their angle to the target, closest first, leaving out those within `min_angle` (radians) of
    parallel or antiparallel; each made orthogonal to the target (Gram and Schmidt), as in Paiton et al. (2020).

    Parameters
    ----------
    count
        How many; all that qualify if left out.

    Raises
    ------
    ValueError
        Shapes that do not fit, zero inputs, fewer others that qualify than `count`, or none.
    """
    axis = _unit(target, "target")
    if others.shape[1:] != target.shape:
        raise ValueError(
            f"others must have shape (other, {', '.join(map(str, target.shape))}), got {tuple(others.shape)}."
        )
    rows = torch.stack([_unit(other, "each of others") for other in others])
    cosine = rows @ axis
    fits = torch.nonzero(cosine.abs() <= math.cos(min_angle)).flatten()
    wanted = len(fits) if count is None else count
    if not 1 <= wanted <= len(fits):
        raise ValueError(
            f"{len(fits)} of {len(others)} others are at least {math.degrees(min_angle):.3g} degrees from the target, got "
            f"count={count}; ask for fewer, or lower min_angle."
        )
    order = fits[cosine[fits].argsort(descending=True, stable=True)][:wanted]
    rest = rows[order]
    for _ in range(2):
        rest = rest - (rest @ axis)[:, None] * axis
        rest = rest / length(rest, keepdim=True)
    return rest.reshape(wanted, *target.shape), order


def phase_shifted(image: Float[Tensor, "*shape"], angle: float = math.pi / 2) -> Float[Tensor, "*shape"]:
    """The image (n,), (height, width) or (channel, height, width) with every frequency's phase shifted by `angle` (radians).

    Phase needs a sense of direction: frequencies on the side of the dominant one (that of greatest power, over all channels,
    the mean left out) lose `angle`, those on the other side gain it, which keeps the image real (the analytic signal in
    one dimension). A grating cos(k.x) becomes cos(k.x - angle), and so does the carrier of a Gabor patch. Frequencies
    orthogonal to the dominant one, and those that are their own mirror image (mean and Nyquist), have no side and stay.

    Raises
    ------
    ValueError
        Inputs of another number of axes, or without any frequency but the mean.

    Examples
    --------
    >>> import torch
    >>> t = torch.arange(8, dtype=torch.float64) * 2 * torch.pi / 8
    >>> bool(torch.allclose(phase_shifted(torch.cos(t)), torch.sin(t)))
    True
    """
    if image.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"image must be floating point, float32 or float64, got {image.dtype}; convert it, e.g. with .float()."
        )
    if image.ndim not in (1, 2, 3):
        raise ValueError(f"image must have shape (n,), (h, w) or (channel, h, w), got {tuple(image.shape)}.")
    axes = tuple(range(max(0, image.ndim - 2), image.ndim))
    sizes = [image.shape[a] for a in axes]
    spectrum = torch.fft.fftn(image, dim=axes)
    power = spectrum.abs().square()
    power = power.sum(0) if image.ndim == 3 else power
    whole = float(power.sum())
    power.flatten()[0] = 0.0
    if not bool(torch.isfinite(image).all()):
        raise ValueError("image must be finite, got NaN or infinity.")
    if not float(power.max()) > torch.finfo(image.dtype).eps ** 2 * whole:
        raise ValueError(
            "image has no frequency but its mean, so it has no phase to shift; give an image with structure."
        )
    places = [torch.arange(s, device=image.device) for s in sizes]
    # signed integer frequencies; those that are their own mirror image (0 and Nyquist) together get no side
    signed = torch.meshgrid(*[(p + s // 2) % s - s // 2 for p, s in zip(places, sizes, strict=True)], indexing="ij")
    mirror = torch.stack([(2 * f) % s == 0 for f, s in zip(signed, sizes, strict=True)]).all(0)
    nyquist = torch.stack([(f != 0) & ((2 * f) % s == 0) for f, s in zip(signed, sizes, strict=True)])
    top = int(power.argmax())
    along = torch.zeros_like(power)
    for f, s, at_nyquist in zip(signed, sizes, nyquist, strict=True):
        cycles = torch.where(at_nyquist, torch.zeros_like(f), f).to(power.dtype) / s
        along = along + cycles * cycles.flatten()[top]
    side = torch.where(mirror | (along.abs() < 1e-9), torch.zeros_like(along), along.sign())
    return torch.fft.ifftn(spectrum * torch.exp(-1j * angle * side), dim=axes).real.to(image.dtype)


def attack_directions(
    neuron: Neuron, x: Float[Tensor, "case *shape"], level: float | Float[Tensor, " case"]
) -> Float[Tensor, "case *shape"]:
    """The smallest perturbations (case, *shape) found that bring each response to `level`; NaN where none was.

    Raises ValueError for invalid inputs or levels, as `closest_point` does.
    """
    return closest_point(neuron, x, level).point - x


def _unit(v: Tensor, what: str) -> Tensor:
    if v.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{what} must be floating point, float32 or float64, got {v.dtype}; convert it, e.g. with .float()."
        )
    size = length(v.flatten())
    if not (bool(torch.isfinite(size)) and bool(size > 0)):
        raise ValueError(f"{what} must be finite and not zero.")
    return v.flatten() / size
