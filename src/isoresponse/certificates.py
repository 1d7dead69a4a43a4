"""Certificates: distances below which there is provably no point across.

A search that fails proves nothing; a certificate does, and it bounds the smallest perturbation from below as a search
bounds it from above. It can be had in closed form where contours are straight (`certify_pointwise`, and affine
networks), and for small smooth networks from a bound of the Hessian (`certify_decision`, `certify_level`; Singla and
Feizi 2020, "Second-order provable defenses against adversarial attacks"). Networks of other kinds: `lirpa.lirpa_bound`.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from isoresponse._fields import axes
from isoresponse.crossing import Problem, as_levels
from isoresponse.loop import Status, failed, mark, status_tensor
from isoresponse.neuron import Box, Neuron, require_inputs
from isoresponse.norms import INF, nearest_in_plane, require_norm, size
from isoresponse.second_order import Margins, lower_bounds
from isoresponse.smooth import SmoothNet

RADII = 8  # balls of different size that are tried for each boundary
BISECTIONS = 80
PROBES = 33  # of a pointwise neuron's response on the way to the level
AGREES = 1e-8  # difference allowed between the module and the layers read from it, relatively: both in float64
SLACK = 1e-9  # by which every bound is shortened, relatively: rounding in float64


@dataclass(frozen=True, eq=False)
class Certificate:
    """Proved lower bounds of the smallest perturbation, one per case.

    A bound is infinite where no point of the box is across. A case without a certificate is NaN and says why in `status`;
    that says nothing about its robustness. The proof is of the network in exact arithmetic, and good to rounding in float64.
    """

    lower: Tensor = axes("case", units="input", about="no point across is nearer than this, in the norm asked for")
    rival: Tensor = axes("case", about="class whose boundary has the smallest bound, -1 for a level")
    exact: Tensor = axes("case", about="whether the bound is the distance itself")
    status: Tensor = axes("case", about="how the case ended")
    method: str = axes(about="how it was proved")

    @property
    def success(self) -> Tensor:
        """Which cases (case,) have a certificate."""
        return ~failed(self.status)

    def contradicted(self, measured: Float[Tensor, " case"], rtol: float = 1e-6) -> Bool[Tensor, " case"]:
        """Where a point across was found nearer than is certified: one of the two must be wrong."""
        return self.lower > (1 + rtol) * torch.nan_to_num(measured, nan=INF)

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        median = float(self.lower[self.success].median()) if bool(self.success.any()) else math.nan
        return (
            f"Certificate({int(self.success.sum())} of {len(self)} cases by {self.method}, median lower bound {median:.4g}, "
            f"{int(self.exact.sum())} exact)"
        )


def certify_pointwise(
    neuron: Neuron,
    weight: Float[Tensor, "*shape"],
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    norm: float = 2.0,
) -> Certificate:
    """The exact distance to `level` of a neuron whose response is a rising function of the drive `weight` . x alone.

    Contours are planes across the weight whatever the nonlinearity, so the drive at which the level is crossed, found by
    bisection, gives the distance in closed form in every norm and inside the box. That the response depends on the drive
    alone and rises with it is the caller's statement; it is tested at the inputs and on the way, not proved. (The neuron is
    asked about inputs outside its box too, along the weight.)

    Returns
    -------
    Certificate
        Status DONE (infinite where the box ends before the level), ALREADY, NOT_FINITE, or UNDEFINED where there is no
        bound to the drive and the level was not met.

    Raises
    ------
    ValueError
        Invalid inputs, level or norm, a weight of another shape or zero, a response that contradicts the statement.

    Examples
    --------
    >>> import torch
    >>> w = torch.tensor([3.0, 4.0])
    >>> f = Neuron(lambda x: torch.sigmoid(x @ w), shape=(2,))
    >>> certify_pointwise(f, w, torch.zeros(1, 2), level=0.75).lower
    tensor([0.2197])
    """
    problem = Problem.of(neuron, x, level, norm)
    if tuple(weight.shape) != neuron.shape or not bool(torch.isfinite(weight).all()) or not bool(weight.any()):
        raise ValueError(
            f"weight must have the shape of one input, {neuron.shape}, be finite and not zero, got {tuple(weight.shape)}."
        )
    w = weight.detach().to(problem.start).flatten()
    unit = w / w.square().sum()
    below = problem.excess(problem.start)
    along = problem.excess((problem.start @ w)[:, None] * unit)
    scale = torch.maximum(problem.level.abs(), (problem.level + problem.sign * below).abs())
    sound = torch.isfinite(below)
    eps = torch.finfo(below.dtype).eps
    if bool((sound & ((along - below).abs() > eps**0.5 * (scale + below.abs()))).any()):
        raise ValueError(
            f"{neuron.name} does not depend on the drive weight . x alone: it answers otherwise to the same drive."
        )
    toward = problem.sign[:, None] * w
    down, up = problem.room(problem.start)
    most = torch.where(toward > 0, up * toward, down * toward).nan_to_num(nan=0.0, posinf=INF).sum(1)
    far = most.clamp_max(torch.finfo(below.dtype).max ** 0.25)

    def excess(drive: Tensor) -> Tensor:
        return problem.excess(problem.start + (problem.sign * drive)[:, None] * unit)

    low, high = torch.zeros_like(below), torch.minimum(far, torch.ones_like(far))
    for _ in range(BISECTIONS):  # outwards by doubling, so that small drives keep their digits
        across = excess(high) > 0
        if bool((across | (high >= far)).all()):
            break
        low = torch.where(across, low, high)
        high = torch.where(across, high, torch.minimum(2 * high, far))
    across = excess(high) > 0
    probes = [excess(part * high) for part in torch.linspace(0, 1, PROBES).tolist()]
    falls = [b < a - eps**0.5 * (scale + a.abs()) for a, b in itertools.pairwise(probes)]
    if bool((sound & torch.stack(falls).any(0)).any()):
        raise ValueError(f"{neuron.name} does not rise with the drive weight . x; no certificate.")
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        f = excess(middle)
        low, high = torch.where(f > 0, low, middle), torch.where(f > 0, middle, high)
    d, exists = nearest_in_plane(low, toward, down, up, problem.norm)
    lower = size(d, problem.norm).masked_fill(~across | ~exists, INF)
    already = below >= 0
    status = mark(
        status_tensor(Status.DONE, below),
        (~across & ~(most <= far), Status.UNDEFINED),
        (already, Status.ALREADY),
        (~sound, Status.NOT_FINITE),
    )
    return _certificate(
        lower.masked_fill(already, 0.0), torch.full_like(status, -1), ~failed(status), status, "straight contours"
    )


def certify_decision(
    module: nn.Module,
    x: Float[Tensor, "case *shape"],
    labels: Int[Tensor, " case"],
    *,
    norm: float = 2.0,
    box: Box | None = None,
    radii: int = RADII,
) -> Certificate:
    """A distance within which `module` provably decides as labelled: the least over all rivals.

    Exact for affine modules. For smooth ones, the margin's curvature is bounded in balls of several sizes round each input, as
    the preactivations that can occur in them allow; a bound K below gives the concave dual problem
    max over s of min over y of |y - x|^2 / 2 + s margin(y), whose inner problem is convex for s < 1/K. Any s and any y prove
    something by strong convexity, so nothing depends on convergence. In the other norms the quadratic lower bound at x
    is used directly.

    Parameters
    ----------
    module
        Read by `SmoothNet.of`: a Sequential of affine layers and Sigmoid, Tanh, Softplus or GELU, evaluated in eval mode.
    norm
        2 (Euclidean), 1 or infinity.
    box
        Where inputs may live; unbounded if left out. Points outside count for nothing, so a box makes bounds larger.
    radii
        Sizes of balls tried for each boundary; 0 bounds the curvature in the whole box only, as in the paper.

    Returns
    -------
    Certificate
        Status DONE, ALREADY (decided otherwise already: 0), or NOT_FINITE (an input is so large that the scores overflow).

    Raises
    ------
    ValueError, TypeError
        Invalid inputs or labels, an unknown norm, a negative number of radii, a module for which no bound is known, whose
        weights are not finite, or that does not answer as its layers do one after the other.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.eye(2))
    >>> certify_decision(net, torch.tensor([[3.0, 1.0]]), torch.tensor([0])).lower
    tensor([1.4142])
    """
    net, start, room = _read(module, x, box, norm, radii)
    classes = len(net.biases[-1])
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor of {len(x)} integers, got {type(labels).__name__}.")
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != x.shape[:1]:
        raise TypeError(f"labels must be {len(x)} integers, one per input, got {labels.dtype} {tuple(labels.shape)}.")
    if classes < 2 or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"labels must lie in 0..{classes - 1} for a module with {classes} scores, at least 2.")
    labels = labels.long()
    rivals = torch.arange(classes - 1, device=x.device).expand(len(x), -1)
    rivals = rivals + (rivals >= labels[:, None])
    owner = torch.arange(len(x), device=x.device).repeat_interleave(classes - 1)
    w, b = net.weights[-1], net.biases[-1]
    own, rival = labels[owner], rivals.flatten()
    down, up = (r[owner] for r in room)
    ask = Margins(net, start[owner], w[own] - w[rival], b[own] - b[rival], down, up, norm)
    lower, exact = (t.reshape(len(x), -1) for t in lower_bounds(ask, radii))
    scores = net.scores(start)
    best, which = lower.min(1)
    status = mark(
        status_tensor(Status.DONE, best),
        (scores.argmax(1) != labels, Status.ALREADY),
        (~torch.isfinite(scores).all(1), Status.NOT_FINITE),
    )
    already = status == int(Status.ALREADY)
    method = "Hessian bound" if net.activations else "straight contours"
    exact = exact.all(1) | already
    return _certificate(
        best.to(x.dtype).masked_fill(already, 0.0), rivals.gather(1, which[:, None])[:, 0], exact, status, method
    )


def certify_level(
    module: nn.Module,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    unit: int = 0,
    norm: float = 2.0,
    box: Box | None = None,
    radii: int = RADII,
) -> Certificate:
    """A distance within which output `unit` of `module` provably stays on its side of `level`; as `certify_decision`.

    Raises
    ------
    ValueError, TypeError
        As `certify_decision`; a unit that there is not, a level that is not finite.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Tanh(), torch.nn.Linear(1, 1, bias=False))
    >>> _ = [p.data.fill_(1.0) for p in net.parameters()]
    >>> proved, truth = certify_level(net, torch.zeros(1, 2), 0.4).lower, torch.atanh(torch.tensor(0.4)) / 2**0.5
    >>> round(proved.item(), 4), round(truth.item(), 4)
    (0.2996, 0.2996)
    """
    net, start, room = _read(module, x, box, norm, radii)
    if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < len(net.biases[-1]):
        raise ValueError(f"unit must be a whole number in 0..{len(net.biases[-1]) - 1}, got {unit!r}.")
    levels = as_levels(level, len(x), start)
    unknown = levels.isnan()
    here = net.scores(start)[:, unit]
    sign = torch.where(
        levels >= here, -torch.ones_like(here), torch.ones_like(here)
    )  # the margin falls towards the level
    read = sign[:, None] * net.weights[-1][unit]
    offset = sign * (net.biases[-1][unit] - torch.where(unknown, here, levels))
    lower, exact = lower_bounds(Margins(net, start, read, offset, *room, norm), radii)
    status = mark(
        status_tensor(Status.DONE, here), (here == levels, Status.ALREADY),
        (~torch.isfinite(here) | unknown, Status.NOT_FINITE),
    )  # fmt: skip
    already = status == int(Status.ALREADY)
    method = "Hessian bound" if net.activations else "straight contours"
    return _certificate(
        lower.to(x.dtype).masked_fill(already, 0.0), torch.full_like(status, -1), exact | already, status, method
    )


def _certificate(lower: Tensor, rival: Tensor, exact: Tensor, status: Tensor, method: str) -> Certificate:
    """With NaN where a case failed, shortened by rounding."""
    bad = failed(status)
    slack = SLACK + 4 * torch.finfo(lower.dtype).eps
    lower = (lower * (1 - slack)).masked_fill(bad, math.nan)
    return Certificate(lower, rival.masked_fill(bad, -1), exact & ~bad, status, method)


def _read(
    module: nn.Module, x: Tensor, box: Box | None, norm: float, radii: int
) -> tuple[SmoothNet, Tensor, tuple[Tensor, Tensor]]:
    """The network, flat inputs and the room round them, in float64, after the checks of a public call."""
    box = box or Box()
    box.require_fits(tuple(x.shape[1:]))
    require_inputs(x, tuple(x.shape[1:]), box)
    require_norm(norm)
    if radii < 0:
        raise ValueError(f"radii must be at least 0, got {radii}.")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, whose weights can be read, got {type(module).__name__}.")
    start = x.detach().double()
    try:
        with torch.no_grad():
            told = copy.deepcopy(module).double().eval()(start)
    except RuntimeError as error:
        raise ValueError(f"the module does not take inputs of shape {tuple(x.shape[1:])}: {error}") from error
    net = SmoothNet.of(module, tuple(x.shape[1:]))
    read = net.scores(start.flatten(1))
    off = (read - told).abs() if read.shape == told.shape else torch.full_like(read, INF)
    if bool((off > AGREES * (1 + read.abs())).any()):  # NaN is told by the status
        raise ValueError(
            "the module does not answer as its layers do one after the other; nothing can be proved about it."
        )
    lower, upper = box.bounds(start)
    return net, start.flatten(1), ((lower - start).flatten(1).clamp_max(0), (upper - start).flatten(1).clamp_min(0))
