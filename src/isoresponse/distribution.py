"""How all the curvatures of a contour are distributed: their mean, their spectrum, and the kinds of directions.

A contour in n dimensions has n - 1 principal curvatures, too many to compute one by one. Their mean is a trace, their
distribution a spectral density, and both are estimated from products with random vectors, with an error each. Counting how
many are above, within and below the error of a curvature tells to how many directions a neuron is selective,
indifferent and tolerant.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import scipy.stats
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.geometry import ESTIMATOR, SCALE, STATUS, jet_error, summary, tangents, warn_where_flat
from isoresponse.jets import Jet
from isoresponse.loop import Status, failed, mark
from isoresponse.spectra import quadrature
from isoresponse.xtrace import trace

_QUANTILE = (
    1.4  # times Student's: the estimates that leave one probe out are not independent, and spread a little too little
)


@dataclass(frozen=True, eq=False)
class MeanCurvature:
    """Mean of all principal curvatures that the jet knows."""

    value: Tensor = axes(
        "case", units="1/input", about="mean curvature, trace of the shape operator over its dimension"
    )
    standard_error: Tensor = axes("case", units="1/input", about="standard error of the trace estimate")
    error: Tensor = axes(
        "case", units="1/input", about="error at the stated scale: 95 % of the sampling, and the jet's"
    )
    scale: Tensor = axes("case", **SCALE)
    status: Tensor = axes("case", **STATUS)
    estimator: str = axes(**ESTIMATOR)

    def __repr__(self) -> str:
        return summary("MeanCurvature", self.value, "value", self)


@dataclass(frozen=True, eq=False)
class CurvatureSpectrum:
    """The distribution of all principal curvatures: nodes with weights that sum to one for each probe."""

    nodes: Tensor = axes("case", "probe", "node", units="1/input", about="curvature")
    residuals: Tensor = axes(
        "case", "probe", "node", units="1/input", about="distance to the nearest curvature at most"
    )
    weights: Tensor = axes("case", "probe", "node", about="share of the tangent directions with about that curvature")
    error: Tensor = axes("case", units="1/input", about="error of a curvature at the stated scale, rounding included")
    scale: Tensor = axes("case", **SCALE)
    status: Tensor = axes("case", **STATUS)
    directions: int = axes(about="number of tangent directions")
    estimator: str = axes(**ESTIMATOR)

    def share(self, low: Tensor | float, high: Tensor | float) -> tuple[Float[Tensor, " case"], Float[Tensor, " case"]]:
        """Share (case,) of the directions whose curvature is in [low, high), numbers or (case,), and its standard error
        over the probes; the error is 0 where all curvatures were computed, and so counted.
        """
        nodes = self.nodes.double()  # bounds are not rounded to the dtype of the nodes
        low, high = (torch.as_tensor(b, dtype=nodes.dtype, device=nodes.device).reshape(-1, 1, 1) for b in (low, high))
        return self._share((nodes >= low) & (nodes < high))

    def kinds(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
        """Shares (case,), with standard errors, of the directions bent outward for certain, flat or not for certain, and inward
        for certain; and the band (case,) within which the second are: a curvature's error and the largest residual among them.
        """
        band = self.error[:, None, None] + self.residuals
        above, below = self.nodes > band, self.nodes < -band
        flat = ~(above | below)
        widest = torch.maximum(torch.where(flat, band, torch.zeros_like(band)).amax((1, 2)), self.error)
        return self._share(above), self._share(flat), self._share(below), widest

    def _share(self, inside: Tensor) -> tuple[Tensor, Tensor]:
        each = (self.weights * inside).sum(2)
        probes = each.shape[1]
        spread = each.std(1) / probes**0.5 if probes > 1 else torch.zeros_like(each[:, 0])
        bad = failed(self.status)
        return each.mean(1).masked_fill(bad, torch.nan), spread.masked_fill(bad, torch.nan)

    def histogram(self, edges: Float[Tensor, " edge"]) -> tuple[Float[Tensor, "case bin"], Float[Tensor, "case bin"]]:
        """Shares (case, bin) of the directions between increasing `edges` (1/input), and their standard errors."""
        pairs = [self.share(low, high) for low, high in pairwise(edges.unbind())]
        return torch.stack([share for share, _ in pairs], 1), torch.stack([error for _, error in pairs], 1)

    def __repr__(self) -> str:
        return summary("CurvatureSpectrum", self.nodes.amax((1, 2)), "largest node", self)


@dataclass(frozen=True, eq=False)
class Taxonomy:
    """How many tangent directions a neuron is selective, indifferent and tolerant to.

    Curvature above the band is exo-origin (selective), below minus the band endo-origin (tolerant), within it flat as
    far as the estimator can tell. The three add up to the number of tangent directions.
    """

    selective: Tensor = axes("case", about="directions with contours bent outward")
    flat: Tensor = axes("case", about="directions in which bending is below the band")
    tolerant: Tensor = axes("case", about="directions with contours bent inward")
    selective_error: Tensor = axes("case", about="standard error of selective; 0 where all curvatures were counted")
    tolerant_error: Tensor = axes("case", about="standard error of tolerant; 0 where all curvatures were counted")
    band: Tensor = axes("case", units="1/input", about="half-width of the flat band: the error of a curvature")
    scale: Tensor = axes("case", **SCALE)
    status: Tensor = axes("case", **STATUS)
    estimator: str = axes(**ESTIMATOR)

    def __repr__(self) -> str:
        return summary("Taxonomy", self.selective, "selective directions", self)


def mean_curvature(jet: Jet, *, probes: int = 16, generator: Generator) -> MeanCurvature:
    """The mean of all principal curvatures, with its standard error: XTrace (Epperly, Tropp, Webber 2024).

    Two Hessian products per probe; exact, by one product per direction, where that is no more.

    Raises ValueError for fewer than two probes. Warns as `principal_curvatures` does.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}.")
    part = tangents(jet)
    total, spread = trace(part.operator, probes, deflate=part.deflate, generator=generator)
    warn_where_flat(jet, total == 0)
    status = mark(part.status, (~torch.isfinite(total) & ~failed(part.status), Status.NOT_FINITE))
    bad = failed(status)
    value, standard_error = ((t / part.size).masked_fill(bad, torch.nan) for t in (total, spread))
    error = _QUANTILE * float(scipy.stats.t.ppf(0.975, probes - 1)) * standard_error + jet_error(jet, value)
    return MeanCurvature(value, standard_error, error, jet.scale, status, jet.estimator)


def curvature_spectrum(jet: Jet, *, probes: int = 8, steps: int = 40, generator: Generator) -> CurvatureSpectrum:
    """The whole distribution of principal curvatures, by stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017).

    `probes` times `steps` Hessian products, and no matrix. Where that many reach the number of tangent directions every
    curvature is computed, once, and counted.

    Raises ValueError for fewer than two probes or steps. Warns as `principal_curvatures` does.
    """
    if probes < 2 or steps < 2:
        raise ValueError(f"probes and steps must be at least 2, got {probes} and {steps}.")
    part = tangents(jet)
    nodes, weights, residuals = quadrature(part.operator, probes, steps, deflate=part.deflate, generator=generator)
    warn_where_flat(jet, (nodes == 0).flatten(1).all(1))
    finite = torch.isfinite(nodes).flatten(1).all(1)
    status = mark(part.status, (~finite & ~failed(part.status), Status.NOT_FINITE))
    bad = failed(status)
    nodes, residuals, weights = (t.masked_fill(bad[:, None, None], torch.nan) for t in (nodes, residuals, weights))
    error = residuals.amin((1, 2)) + jet_error(jet, nodes.abs().amax((1, 2)))  # the least residual is rounding
    return CurvatureSpectrum(nodes, residuals, weights, error, jet.scale, status, part.size, jet.estimator)


def taxonomy(jet: Jet, *, probes: int = 8, steps: int = 40, generator: Generator) -> Taxonomy:
    """How many directions are exo-origin (selective), flat, and endo-origin (tolerant), for each case.

    Counted where `probes` * `steps` products reach the number of tangent directions, estimated with a standard error beyond.
    The band within which a direction counts as flat is the error of a curvature: that of the jet at its scale, rounding, and
    where the spectrum is estimated the residual of its nodes. So more steps leave a narrower band.

    Examples
    --------
    >>> import torch
    >>> from isoresponse import Neuron, exact_jet
    >>> cell = Neuron(lambda x: (x[:, 0] ** 2 + x[:, 1] ** 2).sqrt(), shape=(9,))   # a complex cell
    >>> jet = exact_jet(cell, torch.ones(1, 9, dtype=torch.float64))
    >>> kind = taxonomy(jet, generator=torch.Generator())
    >>> kind.selective.item(), kind.flat.item(), kind.tolerant.item()
    (0.0, 7.0, 1.0)
    """
    spectrum = curvature_spectrum(jet, probes=probes, steps=steps, generator=generator)
    (selective, up), (flat, _), (tolerant, down), band = spectrum.kinds()
    n = spectrum.directions
    return Taxonomy(
        n * selective, n * flat, n * tolerant, n * up, n * down, band, jet.scale, spectrum.status, jet.estimator
    )
