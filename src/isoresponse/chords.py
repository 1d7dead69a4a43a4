"""The 2-jet at the scale of noise, one product at a time: for many directions of which none is singled out.

`secant_jet` measures every direction beforehand, which in n dimensions takes 2 n gradients. What noise of length h does to a
response is a question about its mean over directions, and the traces and spectra that answer it need some tens of products.
`chord_jet` measures each product when it is asked for, over a chord of length 2 h.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse.jets import Jet, jet_status
from isoresponse.loop import Status, mark
from isoresponse.neuron import Neuron, flatten
from isoresponse.operators import SymmetricOperator, length


def chord_jet(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    *,
    scale: float | Float[Tensor, " case"],
    pairs: int = 8,
    generator: Generator,
) -> Jet:
    """The 2-jet over chords: H v from gradients and responses at x + h v / |v| and x - h v / |v|, two gradients a product.

    Along v itself the product holds the second difference of the response over the chord, what noise of length h along v adds to
    it on average; across v the difference of the gradients. So v'Hv is exact at that scale for every v. The product is
    linear in v only as far as the response is quadratic at that scale. The gradient is the mean over both ends of `pairs` random
    chords. `error` is estimated from the asymmetry between two pairs of random directions.

    Parameters
    ----------
    scale
        Half the length of the chords, h, in input units, a number or one per case. That of Gaussian noise of standard deviation
        sigma in n dimensions is sigma * sqrt(n). Chords may leave the box.
    pairs
        Chords over which the gradient is averaged; 0 takes the gradient at x.

    Raises
    ------
    ValueError
        Invalid inputs, a scale that is not positive or of the wrong shape, negative `pairs`.

    Examples
    --------
    >>> import torch
    >>> from isoresponse import Neuron, mean_curvature
    >>> ball = Neuron(lambda x: -x.square().sum(1), shape=(3,))
    >>> jet = chord_jet(ball, torch.tensor([[2.0, 0.0, 0.0]]), scale=0.5, generator=torch.Generator().manual_seed(0))
    >>> round(mean_curvature(jet, generator=torch.Generator()).value.item(), 3)
    0.5
    """
    neuron.require_inputs(x)
    x = x.detach()
    scales = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    if scales.shape not in ((), (len(x),)) or not bool(((scales > 0) & torch.isfinite(scales)).all()):
        raise ValueError(f"scale must be positive, a number or of shape ({len(x)},), got {scale}.")
    if pairs < 0:
        raise ValueError(f"pairs must not be negative, got {pairs}.")
    start, flat, scales = x.flatten(1), flatten(neuron, x), scales.expand(len(x))
    value, gradient = flat.value_and_grad(start)
    scatter = torch.zeros_like(value)
    unit = torch.randn((pairs + 4, start.shape[1]), generator=generator, dtype=x.dtype, device=generator.device)
    unit = (unit / unit.norm(dim=1, keepdim=True)).to(x.device)
    if pairs > 0:
        ends = [flat.value_and_grad(start + h * scales[:, None] * u)[1] for u in unit[:pairs] for h in (1.0, -1.0)]
        means = torch.stack(ends, 1).unflatten(1, (pairs, 2)).mean(2)
        gradient = means.mean(1)
        scatter = length(means - gradient[:, None]).square().sum(1).sqrt() / max(pairs - 1, 1) ** 0.5 / pairs**0.5
    hessian = _chords(flat, start, value, scales)
    a, b, c, d = (u.expand_as(start) for u in unit[pairs:])
    gap = torch.stack([(p * (hessian @ q) - q * (hessian @ p)).sum(1) for p, q in ((a, b), (c, d))], 1)
    # of an antisymmetric matrix with entries of one size, the spectral norm is this many times a random entry
    error = gap.square().mean(1).sqrt() * start.shape[1] ** 0.5
    curved = length(hessian @ a) * length(start)
    rounding = 4 * torch.finfo(x.dtype).eps * ((length(gradient) + curved) / scales + 4 * value.abs() / scales**2)
    status = jet_status(value, gradient)
    status = mark(status, (~torch.isfinite(error) & (status == int(Status.DONE)), Status.NOT_FINITE))
    return Jet(x, value, gradient, hessian, scales, error + rounding, scatter, status, "chord")


def _chords(flat: Neuron, start: Tensor, value: Tensor, scales: Tensor) -> SymmetricOperator:
    def product(v: Tensor) -> Tensor:
        size = length(v, keepdim=True)
        unit = torch.where(size > 0, v / size, torch.zeros_like(v))
        step = scales[:, None] * unit
        (up, ahead), (down, behind) = flat.value_and_grad(start + step), flat.value_and_grad(start - step)
        change = (ahead - behind) / (2 * scales[:, None])
        bent = (up + down - 2 * value) / scales.square()
        return size * (change + (bent - (unit * change).sum(1))[:, None] * unit)

    return SymmetricOperator(
        product, start, lambda cases: _chords(flat.select(cases), start[cases], value[cases], scales[cases])
    )
