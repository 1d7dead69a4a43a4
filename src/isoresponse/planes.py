"""Cross-sections of a response surface: a plane through input space, responses on it, their contours.

A response surface cannot be seen whole. A plane through an origin (the grey image, or a real input), with
one axis towards the neuron's most exciting input and the other along any second direction, shows the
spacing and the bending of its contours in that cut. A cut that misses the gradient overstates curvature:
in-plane curvature times the cosine between normal and plane is the curvature of the hypersurface
(Meusnier), so `tilt` is part of every surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import contourpy
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.neuron import Box, Neuron
from isoresponse.operators import length


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane origin + a * basis[0] + b * basis[1], with a and b in input units.

    Make one with `Plane.spanning`, which orthonormalises and refuses nearly parallel directions.
    """

    origin: Tensor = axes("*shape", units="input", about="point (0, 0) of the plane")
    basis: Tensor = axes("axis", "n", about="orthonormal pair of directions, flattened")

    @classmethod
    def spanning(
        cls,
        origin: Float[Tensor, "*shape"],
        first: Float[Tensor, "*shape"],
        second: Float[Tensor, "*shape"],
        *,
        min_angle: float = 1e-3,
    ) -> Plane:
        """The plane through `origin` with its x-axis along `first` and `second` in its upper half.

        Parameters
        ----------
        min_angle
            Smallest accepted angle between the directions, in radians.

        Raises
        ------
        ValueError
            Different shapes, a zero direction, or (anti)parallel directions.

        Examples
        --------
        >>> import torch
        >>> plane = Plane.spanning(torch.zeros(3), torch.tensor([2.0, 0, 0]), torch.tensor([1.0, 1.0, 0]))
        >>> plane.basis
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
        """
        if not origin.shape == first.shape == second.shape:
            raise ValueError(
                f"origin and directions must have one shape, got {tuple(origin.shape)}, {tuple(first.shape)} and "
                f"{tuple(second.shape)}."
            )
        u, v = first.flatten(), second.flatten()
        lengths = length(u), length(v)
        if not all(bool(length > 0) and bool(torch.isfinite(length)) for length in lengths):
            raise ValueError("both directions must be finite and not zero; give two different directions.")
        u, v = u / lengths[0], v / lengths[1]
        v = v - (u @ v) * u
        v = v - (u @ v) * u
        if not bool(length(v) > np.sin(min_angle)):
            raise ValueError(
                f"the two directions are within {min_angle} rad of parallel and span no plane; choose a second one "
                "that differs, e.g. a random direction."
            )
        return cls(origin, torch.stack([u, v / length(v)]))

    def inject(self, coordinates: Float[Tensor, "case 2"]) -> Float[Tensor, "case *shape"]:
        """Inputs at plane coordinates (a, b)."""
        return self.origin + (coordinates @ self.basis).reshape(-1, *self.origin.shape)

    def project(self, x: Float[Tensor, "case *shape"]) -> Float[Tensor, "case 2"]:
        """Plane coordinates of the foot points of inputs."""
        return (x - self.origin).flatten(1) @ self.basis.T


@dataclass(frozen=True, eq=False)
class ResponseSurface:
    """Responses on a grid of a plane, in response units (never rescaled)."""

    plane: Plane
    x: Tensor = axes("x", units="input", about="coordinate along the first direction")
    y: Tensor = axes("y", units="input", about="coordinate along the second direction")
    response: Tensor = axes("y", "x", units="response", about="response at the grid point")
    inside: Tensor = axes("y", "x", about="whether the grid point lies in the box")
    tilt: Tensor = axes(units="rad", about="angle between the gradient at the origin and the plane")


def response_surface(
    neuron: Neuron,
    plane: Plane,
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    size: int = 101,
    batch_size: int = 1024,
) -> ResponseSurface:
    """Responses of one neuron on a `size` x `size` grid of `plane`, evaluated in batches.

    Parameters
    ----------
    x, y
        First and last coordinate along each axis, in input units.

    Raises
    ------
    ValueError
        An empty range, a size below 2, a plane of another shape than the neuron's inputs.
    """
    if tuple(plane.origin.shape) != neuron.shape:
        raise ValueError(f"the plane has inputs of shape {tuple(plane.origin.shape)}, the neuron of {neuron.shape}.")
    if size < 2 or not (x[0] < x[1] and y[0] < y[1]):
        raise ValueError(f"a surface needs size >= 2 and increasing ranges, got size={size}, x={x}, y={y}.")
    xs, ys = (torch.linspace(low, high, size).to(plane.origin) for low, high in (x, y))
    response = plane_responses(neuron, plane.origin, plane.basis[None], grid_of(xs, ys), batch_size=batch_size)
    response, inside = response.reshape(size, size), inside_box(neuron.box, plane, xs, ys)
    gradient = neuron.value_and_grad(plane.origin[None])[1].flatten()
    share = length(plane.basis @ gradient) / length(gradient)
    return ResponseSurface(plane, xs, ys, response, inside, torch.arccos(share.clamp(max=1.0)))


def grid_of(x: Float[Tensor, " x"], y: Float[Tensor, " y"]) -> Float[Tensor, "point 2"]:
    """All pairs (a, b) of the two coordinates, row by row of constant y."""
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def plane_responses(
    neuron: Neuron,
    origin: Float[Tensor, "*shape"],
    bases: Float[Tensor, "plane 2 n"],
    coordinates: Float[Tensor, "point 2"],
    *,
    batch_size: int = 1024,
) -> Float[Tensor, "plane point"]:
    """Responses (plane, point) at the same coordinates of many planes through one origin.

    Inputs are made a batch at a time, whole planes together where they fit.
    """
    responses = []
    for group in bases.split(max(1, batch_size // len(coordinates))):
        parts = []
        for part in coordinates.split(batch_size):
            inputs = torch.baddbmm(origin.reshape(1, 1, -1), part.expand(len(group), -1, -1), group)
            parts.append(neuron.value(inputs.reshape(-1, *origin.shape)).reshape(len(group), len(part)))
        responses.append(torch.cat(parts, 1))
    return torch.cat(responses)


def inside_box(box: Box, plane: Plane, x: Float[Tensor, " x"], y: Float[Tensor, " y"], atol: float = 1e-6) -> Tensor:
    """Which grid points (y, x) of a plane lie in the box, allowing `atol` (input units) beyond each bound.

    On every row of the grid the box leaves one interval of x, so no input has to be made.
    """
    first, second = plane.basis
    lower, upper = ((bound - plane.origin).flatten() for bound in box.bounds(plane.origin))
    rows = y[:, None] * second
    room = torch.stack([lower - atol - rows, upper + atol - rows]) / first  # NaN where the first direction is zero
    still = first == 0
    fits = ((lower - atol <= rows) & (rows <= upper + atol) | ~still).all(1)
    least = room.amin(0).masked_fill(still, -torch.inf).amax(1)
    most = room.amax(0).masked_fill(still, torch.inf).amin(1)
    return (x >= least[:, None]) & (x <= most[:, None]) & fits[:, None]


def contours(surface: ResponseSurface, level: float) -> list[Float[Tensor, "point 2"]]:
    """The iso-response lines at `level` in plane coordinates (input units), one tensor per connected piece.

    Linear interpolation between grid points; empty where the level is not met on the grid.
    """
    as_numpy = [t.detach().double().cpu().numpy() for t in (surface.x, surface.y, surface.response)]
    lines = contourpy.contour_generator(*as_numpy).lines(float(level))
    return [torch.as_tensor(np.asarray(line), dtype=surface.x.dtype, device=surface.x.device) for line in lines]
