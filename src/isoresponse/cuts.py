"""The curvature of a contour inside a subspace: what a neuron looks like to somebody who can move in a few directions only.

A neuron cut by a subspace is a neuron with few inputs, the coordinates in it. So every way of measuring a jet measures the
cut one too, at the cost of those few.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse.geometry import Curvatures, subspace_curvatures
from isoresponse.jets import JetBuilder, exact_jet
from isoresponse.loop import Status, put, status_tensor, take
from isoresponse.neuron import Box, Neuron
from isoresponse.operators import length


def curvatures_within(
    neuron: Neuron,
    point: Float[Tensor, "case *shape"],
    basis: Float[Tensor, "case k n"],
    jet: JetBuilder = exact_jet,
) -> Curvatures:
    """The k - 1 principal curvatures of the contour through `point` inside the subspace that `basis` spans.

    The neuron is cut by the subspace and the normal, so that a jet at a scale costs gradients for few dimensions. Positive
    where the contour bends outward, round the higher response. Status UNDEFINED where fewer than two directions are known.

    Parameters
    ----------
    basis
        Orthonormal directions, on flattened inputs. They need not contain the normal. Those that are not known, NaN, come last.
    jet
        How curvatures are measured.
    """
    gradient = neuron.value_and_grad(point)[1].flatten(1)
    normal = torch.nan_to_num(gradient / length(gradient, keepdim=True))
    count = torch.isfinite(basis).all(2).sum(1)
    # --- a reflection that takes the normal's part in the subspace to its first axis leaves tangents on the others
    basis = torch.nan_to_num(basis)
    axis = torch.einsum("ckn,cn->ck", basis, normal)
    sign = torch.where(axis[:, :1] >= 0, torch.ones_like(axis[:, :1]), -torch.ones_like(axis[:, :1]))
    axis = torch.cat([axis[:, :1] + sign * length(axis, keepdim=True), axis[:, 1:]], 1)
    weight = 2 / axis.square().sum(1).clamp_min(torch.finfo(axis.dtype).tiny)
    along = torch.einsum("ck,ckn->cn", axis, basis)
    tangents = (basis - weight[:, None, None] * axis[:, :, None] * along[:, None])[:, 1:]
    cases, rank, _ = tangents.shape
    used = torch.arange(rank, device=count.device) < (count - 1)[:, None]
    frame = torch.cat([normal[:, None], torch.where(used[:, :, None], tangents, torch.zeros_like(tangents))], 1)

    def response(c: Tensor, origin: Tensor, directions: Tensor, *given: Tensor) -> Tensor:
        away = torch.einsum("ci,cin->cn", c, directions).reshape(origin.shape)
        return neuron.response(origin + away, *given)

    cut = Neuron(response, (rank + 1,), Box(), f"{neuron.name} in a subspace", (point, frame, *neuron.given))
    measured = jet(cut, frame.new_zeros((cases, rank + 1)))
    nothing = frame.new_full((cases, rank), torch.nan)
    undefined = status_tensor(Status.UNDEFINED, count)
    result = Curvatures(
        nothing, nothing, torch.full_like(tangents, torch.nan), nothing, torch.zeros_like(count), measured.scale,
        undefined, measured.estimator,
    )  # fmt: skip
    inputs = torch.eye(rank + 1, dtype=frame.dtype, device=frame.device)
    for size in range(1, rank + 1):
        some = torch.nonzero(count == size + 1).flatten()
        if len(some) == 0:
            continue
        part = subspace_curvatures(measured.select(some), inputs[1 : size + 1].expand(len(some), -1, -1))
        short = (0, rank - size)
        values, error, residuals = (
            torch.nn.functional.pad(t, short, value=torch.nan) for t in (part.values, part.error, part.residuals)
        )
        directions = torch.einsum("cri,cin->crn", part.directions, frame[some])
        directions = torch.nn.functional.pad(directions, (0, 0, *short), value=torch.nan)
        filled = replace(
            take(result, some), values=values, error=error, residuals=residuals, directions=directions,
            products=part.products, status=part.status,
        )  # fmt: skip
        result = put(result, some, filled)
    return result
