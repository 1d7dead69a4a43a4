"""Certificates from auto_LiRPA (Xu et al. 2020), for those who have it: linear relaxations of networks of many kinds.

An adapter, no dependency. The package's release on the package index asks for a torch of 2022 and does not resolve with a
current one; from its own repository (Verified-Intelligence/auto_LiRPA) it works with one, where its pin of torch is left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from isoresponse.certificates import Certificate
from isoresponse.loop import Status, mark, status_tensor
from isoresponse.neuron import Box, require_inputs
from isoresponse.norms import INF, require_norm


def lirpa_bound(
    module: nn.Module,
    x: Float[Tensor, "case *shape"],
    labels: Int[Tensor, " case"],
    radii: Sequence[float],
    *,
    norm: float = 2.0,
    box: Box | None = None,
    method: str = "CROWN",
) -> Certificate:
    """The largest of `radii` within which auto_LiRPA proves that `module` decides as labelled.

    One call of the package per radius: the lower bounds of all margins must be positive. The box is used in L-infinity; in
    the other norms the whole ball counts, which is as valid and somewhat smaller.

    Parameters
    ----------
    radii
        In input units, rising. A finer list gives tighter certificates: the bound is one of them.
    method
        Of `BoundedModule.compute_bounds`: "IBP", "CROWN-IBP", "CROWN" or "alpha-CROWN", say.

    Returns
    -------
    Certificate
        Status DONE, ALREADY (decided otherwise already: 0), UNDEFINED where not even the smallest radius could be proved.

    Raises
    ------
    ImportError
        The package auto_LiRPA is not installed.
    ValueError, TypeError
        Invalid inputs or labels, an unknown norm, radii that are not positive and rising, a layer without a bound there.
    """
    box = box or Box()
    require_inputs(x, tuple(x.shape[1:]), box)
    require_norm(norm)
    sizes = [float(r) for r in radii]
    if not sizes or sizes[0] <= 0 or sizes != sorted(set(sizes)) or not math.isfinite(sizes[-1]):
        raise ValueError(f"radii must be positive, finite and rising, got {sizes}.")
    lirpa = _package()
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        scores = module(x)
    classes = scores.shape[1]
    if labels.is_floating_point() or labels.shape != x.shape[:1]:
        raise TypeError(f"labels must be {len(x)} integers, one per input, got {labels.dtype} {tuple(labels.shape)}.")
    rivals = torch.arange(classes - 1, device=x.device).expand(len(x), -1)
    rivals = rivals + (rivals >= labels[:, None])
    unit = torch.eye(classes, dtype=x.dtype, device=x.device)
    margins = unit[labels][:, None] - unit[rivals]  # (case, rival, class)
    bounded = lirpa.BoundedModule(module, torch.empty_like(x), device=x.device)
    lower, weakest = torch.zeros_like(scores[:, 0]), torch.full_like(labels, -1)
    proved = torch.ones_like(labels, dtype=torch.bool)
    for radius in sizes:
        if norm == INF:
            ends = box.clip(x - radius), box.clip(x + radius)
            ball = lirpa.PerturbationLpNorm(norm=norm, eps=radius, x_L=ends[0], x_U=ends[1])
        else:
            ball = lirpa.PerturbationLpNorm(norm=norm, eps=radius)
        try:
            least, _ = bounded.compute_bounds(
                x=(lirpa.BoundedTensor(x, ball),), C=margins, method=method, bound_upper=False
            )  # fmt: skip
        except RuntimeError as error:  # NotImplementedError among them
            raise ValueError(
                f"auto_LiRPA cannot bound this network for inputs in {x.dtype}; it knows some layers in float32 only, and "
                f"others not at all ({error})."
            ) from error
        worst, which = least.detach().min(1)
        weakest = torch.where(proved, rivals.gather(1, which[:, None])[:, 0], weakest)
        proved = proved & (worst > 0)
        lower = torch.where(proved, radius, lower)
        if not bool(proved.any()):
            break
    status = mark(
        status_tensor(Status.DONE, lower),
        (lower == 0, Status.UNDEFINED),
        (scores.argmax(1) != labels, Status.ALREADY),
        (~torch.isfinite(scores).all(1), Status.NOT_FINITE),
    )
    already = status == int(Status.ALREADY)
    bad = (status == int(Status.UNDEFINED)) | (status == int(Status.NOT_FINITE))
    lower = lower.masked_fill(already, 0.0).masked_fill(bad, math.nan)
    return Certificate(lower, weakest.masked_fill(bad, -1), already, status, f"auto_LiRPA {method}")


def _package() -> Any:
    try:
        return import_module("auto_LiRPA")
    except ImportError as error:
        raise ImportError(
            "lirpa_bound needs the package auto_LiRPA, which cannot be imported here "
            f"({error}); its release on the package index does not resolve with a current torch, so install it from its own "
            "repository, Verified-Intelligence/auto_LiRPA, with what it imports but without its pin of torch; or use "
            "certify_decision."
        ) from error
