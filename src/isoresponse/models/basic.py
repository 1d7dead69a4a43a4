"""Neurons with known contours: straight, and bent outward with everything else equal.

The pair of the essay's figure 4. Both have the same most exciting direction, the same response along it, and
the same contour spacing there; only the bending differs, so whatever differs between them is due to bending.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Straight(nn.Module):
    """Response phi.x: contours are straight lines orthogonal to `phi`, one input unit apart per response unit."""

    phi: Tensor

    def __init__(self, phi: Tensor) -> None:
        super().__init__()
        self.register_buffer("phi", phi / phi.norm())

    def forward(self, x: Tensor) -> Tensor:
        """Responses (case,) to inputs (case, n)."""
        return x @ self.phi


class OutwardBent(nn.Module):
    """Response phi.x - bend * (sqrt(width^2 + |x_perp|^2) - width): contours bend away from the origin.

    Each contour is a hyperbola opening away from the origin with its tip on the axis of `phi`. There it has the
    curvature `bend / width` (1/input, positive: exo-origin); far from the axis it is a chevron of slope `bend`.
    Along the axis response and spacing are those of `Straight`.
    """

    phi: Tensor

    def __init__(self, phi: Tensor, *, bend: float = 1.0, width: float = 0.5) -> None:
        super().__init__()
        if not (bend >= 0 and width > 0):
            raise ValueError(f"OutwardBent needs bend >= 0 and width > 0, got bend={bend} and width={width}.")
        self.register_buffer("phi", phi / phi.norm())
        self.bend, self.width = bend, width

    def forward(self, x: Tensor) -> Tensor:
        """Responses (case,) to inputs (case, n)."""
        along = x @ self.phi
        across = (x - along[:, None] * self.phi).square().sum(1)
        return along - self.bend * (torch.sqrt(self.width**2 + across) - self.width)
