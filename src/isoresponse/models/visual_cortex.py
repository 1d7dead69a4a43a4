"""The textbook neurons of early visual cortex: Gabor filters, complex cells, divisive normalisation.

Complex cells bend their contours inward (tolerant), normalised ones outward (selective). The stages stack::

    simple = nn.Sequential(Linear(filters), DivisiveNormalization())
    complex = nn.Sequential(EnergyModel(pairs), DivisiveNormalization(exponent=1.0))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from isoresponse.models.basic import Linear, is_float, kind_of


def gabor(
    shape: tuple[int, int],
    *,
    wavelength: float,
    orientation: float = 0.0,
    phase: float = 0.0,
    width: float | None = None,
    center: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A Gabor filter (height, width) of norm 1 and mean 0: bars under a round Gaussian envelope.

    Two filters a quarter of a period apart (`phase` and `phase + pi/2`) are a quadrature pair; in the middle of the
    grid, at phases 0 and pi/2, they are orthogonal as well.

    Parameters
    ----------
    shape
        (height, width) in pixels.
    wavelength
        Period of the bars in pixels, at least 2.
    orientation
        Angle of the bars, in radians anticlockwise from horizontal.
    phase
        In radians; a bright bar at the center for 0. Growing phase moves vertical bars to the right, horizontal ones down.
    width
        Standard deviation of the envelope in pixels; half a wavelength if left out.
    center
        (row, column) of the envelope in pixels, the first pixel being (0, 0); the middle if left out.
    dtype
        That of the filter; torch's default if left out.

    Raises
    ------
    ValueError
        A shape of other axes, a dtype without fractions, a wavelength below 2, a width that is not positive, a filter that
        vanishes on the grid.

    Notes
    -----
    exp(-r^2 / 2 width^2) (cos(2 pi u / wavelength - phase) - m), with u across the bars, r from the center and m such
    that the mean vanishes (Daugman 1985, JOSA A 2:1160; the correction is Morlet's).

    Examples
    --------
    >>> import torch
    >>> even, odd = (gabor((16, 16), wavelength=6.0, phase=p) for p in (0.0, torch.pi / 2))
    >>> bool((even * odd).sum().abs() < 1e-6)
    True
    """
    if len(shape) != 2 or (dtype is not None and not dtype.is_floating_point):
        raise ValueError(
            f"gabor needs a shape (height, width) and a floating-point dtype, got shape={tuple(shape)} and dtype={dtype}."
        )
    width = wavelength / 2 if width is None else width
    if not (2 <= wavelength < math.inf and 0 < width < math.inf):
        raise ValueError(
            f"gabor needs a wavelength of at least 2 pixels and a positive width, got wavelength={wavelength} and "
            f"width={width}."
        )
    middle = ((shape[0] - 1) / 2, (shape[1] - 1) / 2) if center is None else center
    down, right = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float64) - m for size, m in zip(shape, middle, strict=True)), indexing="ij"
    )
    envelope = torch.exp(-(down.square() + right.square()) / (2 * width**2))
    across = math.sin(orientation) * right + math.cos(orientation) * down
    wave = envelope * torch.cos(2 * math.pi * across / wavelength - phase)
    wave = wave - wave.sum() / envelope.sum() * envelope
    size, whole = float(wave.norm()), float(envelope.norm())
    if not size > 1e-6 * whole:
        raise ValueError(
            f"this Gabor filter vanishes on a grid of {tuple(shape)} pixels; give a larger grid or wavelength, a center "
            "on the grid, or another phase."
        )
    return (wave / size).to(dtype or torch.get_default_dtype())


class EnergyModel(nn.Module):
    """Responses (case, units) of complex cells to inputs (case, *shape): the energy |Px|^2 in a subspace, or its root |Px|.

    P projects orthogonally onto the span of the unit's filters. A quadrature pair of Gabor filters is the classical
    complex cell, tolerant to phase; more filters make a general subspace cell.

    Parameters
    ----------
    filters
        (units, k, *shape), k filters per unit. Only their span matters: they are replaced by the nearest orthonormal
        ones (`basis`), which orthonormal filters are themselves.
    root
        Whether to answer with |Px|. The contours are the same, the spacing is constant; no second derivatives where Px = 0.

    Raises
    ------
    ValueError
        Filters without both axes, of integers or not finite, filters of one unit that are linearly dependent, inputs
        that do not fit.

    Notes
    -----
    The gradient is 2 Px, or Px/|Px|. Contours are cylinders round the orthogonal complement of the subspace: at radius
    r = |Px| there are k - 1 principal curvatures of -1/r (inward: tolerant) and n - k of zero. Where Px = 0 the
    gradient is zero. Every input of the subspace with the allowed norm is most exciting: there is no single MEI.
    Adelson & Bergen (1985), JOSA A 2:284; subspaces: Hyvärinen & Hoyer (2000), Neural Computation 12:1705.

    Examples
    --------
    >>> import torch
    >>> pair = torch.stack([gabor((16, 16), wavelength=6.0, phase=p) for p in (0.0, torch.pi / 2)])
    >>> gratings = torch.stack([gabor((16, 16), wavelength=6.0, phase=p) for p in (0.3, 2.0)])
    >>> EnergyModel(pair[None])(gratings)  # whatever the phase
    tensor([[1.0000],
            [1.0000]])
    """

    def __init__(self, filters: Tensor, *, root: bool = False) -> None:
        super().__init__()
        if not is_float(filters) or filters.ndim < 3 or 0 in filters.shape:
            raise ValueError(
                f"EnergyModel needs floating-point filters of shape (units, k, *shape), got {kind_of(filters)}; a single "
                "quadrature pair is pair[None]."
            )
        if not bool(filters.isfinite().all()):
            raise ValueError("EnergyModel needs finite filters, got NaN or infinity; remove them.")
        left, sizes, right = torch.linalg.svd(filters.detach().double().flatten(2), full_matrices=False)
        precision = 10 * torch.finfo(filters.dtype).eps * max(sizes.shape[1], right.shape[2])
        dependent = sizes[:, -1] <= precision * sizes[:, 0]
        if sizes.shape[1] < filters.shape[1] or bool(dependent.any()):
            raise ValueError(
                f"EnergyModel needs linearly independent filters for every unit, got {filters.shape[1]} per unit in "
                f"{right.shape[2]} dimensions, dependent in {int(dependent.sum())} of {len(filters)} units; leave some out."
            )
        basis = (left @ right).to(filters.dtype).reshape(filters.shape)
        self.linear, self.root = Linear(basis.flatten(0, 1)), root
        self.units = len(filters)

    @property
    def basis(self) -> Tensor:
        """Orthonormal filters (units, k, *shape) of every unit's subspace."""
        return self.linear.filters.unflatten(0, (self.units, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Responses (case, units) to inputs (case, *shape)."""
        parts = self.linear(x).unflatten(1, (self.units, -1))
        return torch.linalg.vector_norm(parts, dim=2) if self.root else parts.square().sum(2)


class DivisiveNormalization(nn.Module):
    """Normalised responses (case, units) to drives (case, units): d_i^p / (s^p + sum_j pool_ij |d_j|^p), where d_i > 0.

    A stage, to be put behind what computes the drives: `Linear` for simple cells, `EnergyModel` for complex ones; energies
    are squares already, so exponent 1 does for them what 2 does for filters. A negative drive gives no response but
    takes part in the pool, as it drives the neuron of opposite sign.

    Parameters
    ----------
    exponent
        p, at least 1.
    semi_saturation
        s, in units of the drive: a unit that is normalised by itself alone, with weight 1, answers one half to it.
    pool
        Weights, not negative, one number for all or (units, units): with [i, j] unit j normalises unit i.

    Raises
    ------
    ValueError
        Numbers outside these ranges, drives that are not (case, units) or that the pool does not fit.

    Notes
    -----
    Heeger (1992), Visual Neuroscience 9:181 (p = 2); Carandini & Heeger (2012), Nature Reviews Neuroscience 13:51.
    With drives d_j = a_j . x and S = s^p + sum_j pool_ij |d_j|^p, where unit i responds,

        gradient of log response = p a_i / d_i - p/S sum_j pool_ij |d_j|^(p-1) sign(d_j) a_j =: G,
        curvature along a unit tangent t = p (p-1) [1/S sum_j pool_ij |d_j|^(p-2) (a_j.t)^2 - (a_i.t / d_i)^2] / |G|.

    It is never negative: the contour is d_i proportional to the p-norm of (s, pool drives), which is convex. It is zero
    for p = 1, where contours are polyhedra with edges where a drive of the pool vanishes; for 1 < p < 2 it is infinite there.

    With p = 2, m orthonormal filters and one weight w, at the response c < 1/w, contours are hyperboloids of revolution
    round a_i with semi-axes A = s / sqrt(1/c - w) and B = s / sqrt(w). At d_i = A cosh(e), the other drives having the
    norm B sinh(e), one principal curvature is A B / (A^2 sinh^2 e + B^2 cosh^2 e)^(3/2), m - 2 are
    1 / (B^2 sqrt(cosh^2 e / A^2 + sinh^2 e / B^2)), n - m are zero. With the energies of orthogonal
    subspaces of k filters each, p = 1 and s^2 for s, the same holds for the root of the energy in the place of d_i, but k - 1 of
    the m - 2 are -1 / (A^2 sqrt(..)): tolerant within its subspace, selective against the others.

    Examples
    --------
    >>> import torch
    >>> DivisiveNormalization(semi_saturation=5.0)(torch.tensor([[3.0, -4.0]]))
    tensor([[0.1800, 0.0000]])
    """

    pool: float | Tensor

    def __init__(self, *, exponent: float = 2.0, semi_saturation: float = 1.0, pool: float | Tensor = 1.0) -> None:
        super().__init__()
        if not (1 <= exponent < math.inf and 0 < semi_saturation < math.inf):
            raise ValueError(
                f"DivisiveNormalization needs an exponent of at least 1 and a positive semi_saturation, got "
                f"exponent={exponent} and semi_saturation={semi_saturation}."
            )
        weights = torch.as_tensor(pool).detach()
        shaped = weights.ndim == 0 or (weights.ndim == 2 and 0 < len(weights) == weights.shape[1])
        if not shaped or not bool((weights >= 0).all() and weights.isfinite().all()):
            raise ValueError(
                f"DivisiveNormalization needs a pool of finite weights that are not negative, one number or (units, "
                f"units), got shape {tuple(weights.shape)}" + (f" down to {float(weights.min())}." if shaped else ".")
            )
        if weights.ndim:
            self.register_buffer("pool", weights)
        else:
            self.pool = float(pool)  # a number has no dtype; `weights` may have rounded it
        self.exponent, self.semi_saturation = exponent, semi_saturation

    def forward(self, drive: Tensor) -> Tensor:
        """Normalised responses (case, units), between 0 and 1/pool_ii, to drives (case, units)."""
        pool = self.pool
        units = len(pool) if isinstance(pool, Tensor) else None
        if drive.ndim != 2 or not drive.is_floating_point() or units not in (None, drive.shape[1]):
            raise ValueError(
                f"DivisiveNormalization expected floating-point drives of shape (case, {units or 'units'}), got "
                f"{drive.dtype} {tuple(drive.shape)}; put Linear or EnergyModel before it, with one unit per row of the pool."
            )
        relative = drive / self.semi_saturation
        largest = relative.detach().abs().amax(1, keepdim=True).clamp_min(1)  # so that no power overflows
        relative = relative / largest
        power = _power(relative, self.exponent)
        total = power @ pool.to(drive).T if isinstance(pool, Tensor) else pool * power.sum(1, keepdim=True)
        return _power(relative.clamp_min(0), self.exponent) / (largest**-self.exponent + total)


def _power(x: Tensor, exponent: float) -> Tensor:
    """|x|^exponent, with the right second derivative at x = 0 too, where a pool often is.

    torch's abs and relu have the slope 0 there: |x|^2 would lose its curvature, and so would an energy, which touches zero.
    """
    return x.square() if exponent == 2 else torch.where(x < 0, -x, x).pow(exponent)
