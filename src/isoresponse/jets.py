"""The 2-jet of a response, value, gradient and Hessian at a point: exact, or measured at a stated scale.

All that geometry ever sees of a neuron is a `Jet`. What makes one is a `JetBuilder`, any function from a
neuron and inputs to a jet, and there are four:

- `exact_jet`: derivatives. On networks of ReLUs, and on sparse coding, the response is piecewise affine,
  its Hessian zero almost everywhere, and says nothing about bending.
- `secant_jet`: differences of gradients over a scale, along given directions. The curvature along a measured
  direction is then exactly the mean of the curvature over that stretch.
- `smoothed_jet`: the jet of the response averaged over Gaussian noise of that scale, which does not care
  where the kinks lie.
- `krylov_jet` (in `krylov`): differences along the directions that matter for one displacement only; two of them predict a
  perturbation.

Nothing switches from one to another silently: a jet carries its estimator, its scale, and its error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.loop import Status, mark, status_tensor, take
from isoresponse.neuron import Neuron
from isoresponse.operators import SecantOperator, SymmetricOperator, from_secants, length, spectral_norm

ALL_AXES = 4096  # more input elements than this are not measured along every axis
PROBES_AT_ONCE = 2**22  # input elements evaluated together when gradients are taken at many points


@dataclass(frozen=True, eq=False)
class Jet:
    """Second-order description of a response at one point per case; all that geometry sees of it.

    `scale` is 0 for an exact jet, otherwise the distance (input units) over which the Hessian was measured. `error` bounds
    the error of the Hessian at that scale in any direction (its spectral norm), `gradient_error` that of the gradient;
    both are 0 for exact jets, whose rounding is part of what is computed from them. `basis` holds the orthonormal directions
    that were measured; None: all of them. A case whose status is a failure has no geometry, and is NaN in all that follows.
    """

    point: Tensor = axes("case", "*shape", units="input", about="where the jet was taken")
    value: Tensor = axes("case", units="response", about="response at the point")
    gradient: Tensor = axes("case", "n", units="response/input", about="gradient, flattened")
    hessian: SymmetricOperator = axes(about="Hessian as an operator on flattened inputs")
    scale: Tensor = axes("case", units="input", about="scale of the measurement, 0 for exact")
    error: Tensor = axes("case", units="response/input^2", about="bound on the error of the Hessian at that scale")
    gradient_error: Tensor = axes("case", units="response/input", about="error of the gradient at that scale")
    status: Tensor = axes("case", about="whether the contour has a geometry here")
    estimator: str = axes(about="how the Hessian was measured")
    basis: Tensor | None = axes("case", "k", "n", about="measured directions, None for all", default=None)

    @property
    def steepness(self) -> Float[Tensor, " case"]:
        """|g| (case,), response per input unit; NaN where it vanishes and contours have no normal."""
        return length(self.gradient).masked_fill(self.status != int(Status.DONE), float("nan"))

    @property
    def normal(self) -> Float[Tensor, "case n"]:
        """Unit normal N = g/|g| of the contour, towards rising response; NaN where g vanishes."""
        return self.gradient / self.steepness[:, None]

    def select(self, cases: Tensor) -> Jet:
        """The jet of some of the cases (indices)."""
        return replace(take(self, cases), hessian=self.hessian.select(cases))


@runtime_checkable
class JetBuilder(Protocol):
    """Any function from a neuron and inputs (case, *shape) to a `Jet`: `exact_jet`, or `partial(secant_jet, scale=0.5)`.

    The jet must have one case per input; a case that has no geometry gets a status, and does not raise.
    """

    def __call__(self, neuron: Neuron, x: Tensor, /) -> Jet:
        """The jets of `neuron` at `x`."""
        ...


def exact_jet(neuron: Neuron, x: Float[Tensor, "case *shape"]) -> Jet:
    """The 2-jet by automatic differentiation; each Hessian product costs about one more backward pass.

    Raises ValueError for invalid inputs and for responses that cannot be differentiated twice. Holds the autograd graph as
    long as the jet lives.

    Examples
    --------
    >>> import torch
    >>> from isoresponse import normal_curvature
    >>> sphere = Neuron(lambda x: -x.square().sum(1).sqrt(), shape=(3,))   # super-level sets are balls
    >>> jet = exact_jet(sphere, torch.tensor([[0.0, 0.0, 2.0]]))
    >>> normal_curvature(jet, torch.tensor([[1.0, 0.0, 0.0]])).value
    tensor([0.5000])
    """
    neuron.require_inputs(x)
    x = x.detach()
    value, hessian = _linearised(neuron, x)
    zero = torch.zeros_like(value)
    return Jet(x, value, hessian.like, hessian, zero, zero, zero, jet_status(value, hessian.like), "exact")


def secant_jet(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    *,
    scale: float | Tensor,
    basis: Float[Tensor, "case k *direction"] | None = None,
) -> Jet:
    """The 2-jet at a finite scale: central gradient differences along orthonormal directions, symmetrised.

    What it measures along a unit vector t is the mean of t'Ht over the points x + s t with |s| <= scale. Along the
    measured directions themselves that is exact at any scale and for any response; between them it is what the response
    would have if it were quadratic, and the asymmetry of the measured Hessian tells how far from that it is: every mixed
    derivative was measured twice, and the spectral norm of the differences is the `error`. Differences along two random
    mixtures of the directions are held against it too: a response that is a sum of kinks or powers along the directions has no
    asymmetry at all. Two gradients per direction, four to check, and one at the point. On a piecewise affine response a scale
    that meets no kink gives zero with error zero, which is true at that scale and says nothing of a larger one.

    Parameters
    ----------
    scale
        Half-width of the differences in input units, a number or one per case. A good one is the size of the
        perturbation that is asked about (`propose_scale`). A case whose scale is NaN or wider than the box ends with a status.
    basis
        Directions (case, k, *shape) in which curvature is measured; the normal is measured too. All n axes if left out, which
        stores n x n numbers per case. Probes may leave the box by `scale`.

    Raises
    ------
    ValueError
        Invalid inputs, a scale that is not positive or of the wrong shape, a basis of the wrong shape or of dependent
        directions.
    """
    neuron.require_inputs(x)
    x = x.detach()
    scales = _scales(scale, x)
    value, gradient = neuron.value_and_grad(x)
    gradient = gradient.flatten(1)
    directions = _directions(basis, gradient)
    reach = (scales[:, None, None] * directions).abs().amax(1)
    status = _scale_status(neuron, x, scales, reach, jet_status(value, gradient))
    measured = from_secants(*_differences(neuron, x, scales, directions))
    # --- asymmetry tells how far from quadratic the response is, but for what is separable along the directions
    mixtures = _mixtures(directions)
    steps, changes = _differences(neuron, x, scales, mixtures)
    told = torch.stack([measured @ step for step in steps.unbind(1)], 1)
    missed = length(torch.einsum("ckn,cmn->cmk", directions, changes - told))
    # half of what is missed in all directions together
    missed = 0.5 * (missed.square().mean(1) * directions.shape[1]).sqrt()
    curved = length(measured.images).amax(1) * length(x.flatten(1))
    rounding = 4 * torch.finfo(x.dtype).eps * (length(gradient) + curved) / scales
    error = torch.maximum(2 * measured.skew, missed) + rounding
    status = finite_status(status, measured)
    known = None if basis is None else measured.basis
    zero = torch.zeros_like(value)
    return Jet(x, value, gradient, measured.operator(), scales, error, zero, status, "secant", known)


def smoothed_jet(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    *,
    scale: float | Tensor,
    samples: int,
    generator: Generator,
    basis: Float[Tensor, "case k *direction"] | None = None,
) -> Jet:
    """The 2-jet of the response averaged over Gaussian noise of standard deviation `scale` in every measured direction.

    Pairs of opposite draws (antithetic), two gradients a pair. The Hessian is the least-squares fit of the gradients'
    differences to the draws (by Stein's identity it tends to that of the averaged response), so it is exact, not only
    unbiased, where the response is quadratic, however few the samples. It is fitted on each half of the samples; the estimate
    is the mean of the halves, and their disagreement is the error. What none of the draws meets, a rare but sharp kink, is
    missing from both.

    Parameters
    ----------
    scale
        Standard deviation in input units, a number or one per case; the length of a typical draw is `scale` times the square
        root of the number of directions, so for draws as long as a perturbation divide its size (`propose_scale`) by that root.
    samples
        Pairs of draws, shared by all cases; at least 2 * (k + 4) for k measured directions, the normal being one.
    basis
        Directions (case, k, *shape) within which the response is averaged, and in which curvature is known; the normal is
        measured too. The gradient is then the one within them. All n axes if left out, which stores n x n numbers per case.

    Raises
    ------
    ValueError
        As for `secant_jet`; too few samples.
    """
    neuron.require_inputs(x)
    x = x.detach()
    scales = _scales(scale, x)
    first = neuron.value_and_grad(x)[1].flatten(1)
    directions = _directions(basis, first)
    k = directions.shape[1]
    if samples < 2 * (k + 4):
        raise ValueError(f"samples must be at least {2 * (k + 4)} for {k} measured directions, got {samples}.")
    draws = torch.randn((samples, k), generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    halves = [
        _fit(neuron, x, torch.nan_to_num(scales, nan=1.0), directions, part) for part in draws.split((samples + 1) // 2)
    ]
    value, gradient, changes = (0.5 * (a + b) for a, b in zip(*halves, strict=True))
    _, gradient_gap, gap = (0.5 * (a - b) for a, b in zip(*halves, strict=True))
    if basis is not None:
        gradient, gradient_gap = (_within(directions, g) for g in (gradient, gradient_gap))
    measured = from_secants(directions, changes)
    disagreement = from_secants(directions, gap)
    reach = torch.nan_to_num(scales)[:, None] * length(
        directions.transpose(1, 2)
    )  # standard deviation of every element
    status = _scale_status(neuron, x, scales, reach, jet_status(value, gradient))
    # --- the disagreement of the halves has the law of the error of their mean; the normal's own error tilts the tangents
    even = torch.einsum("ckn,cln->ckl", directions, disagreement.images)
    gradient_error = length(gradient_gap)
    tilt = gradient_error / length(gradient)
    turning = length(measured @ gradient) / length(gradient)
    curved = length(measured.images).amax(1) * length(x.flatten(1))
    rounding = 4 * torch.finfo(x.dtype).eps * (length(first) + curved) / scales
    error = spectral_norm(even) + 2 * tilt * turning + rounding
    known = None if basis is None else measured.basis
    return Jet(
        x, value, gradient, measured.operator(), scales, error, gradient_error, finite_status(status, measured),
        "smoothed", known,
    )  # fmt: skip


# --- what the builders share ------------------------------------------------------------------------------


def _linearised(neuron: Neuron, x: Tensor) -> tuple[Tensor, SymmetricOperator]:
    """Value (case,) and the exact Hessian, whose `like` is the gradient (case, n); cases can be left out later."""
    value, gradient, product = neuron.linearise(x)
    hessian = SymmetricOperator(
        lambda v: product(v.reshape(x.shape)).flatten(1),
        gradient.flatten(1),
        lambda cases: _linearised(neuron.select(cases), x[cases])[1],
    )
    return value, hessian


def _scales(scale: float | Tensor, x: Tensor) -> Tensor:
    """One scale per case (case,), NaN where it is not known."""
    scales = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    if scales.shape not in ((), (len(x),)):
        raise ValueError(f"scale must be a number or have shape ({len(x)},), got {tuple(scales.shape)}.")
    if bool((scales <= 0).any()) or bool(scales.isinf().any()):
        raise ValueError(f"scale must be positive, got {scale}; 0 is what exact_jet measures.")
    return scales.expand(len(x))


def _scale_status(neuron: Neuron, x: Tensor, scales: Tensor, reach: Tensor, status: Tensor) -> Tensor:
    """`status`, with failures where the scale is unknown or its `reach` (case, n) is wider than the box in an element.

    Raises ValueError where it is too wide in every case: then the setting is wrong, not a case.
    """
    lower, upper = (bound.expand(x.shape[1:]).flatten() for bound in neuron.box.bounds(x))
    width = (upper - lower).masked_fill(upper == lower, torch.inf)  # frozen elements have no width to exceed
    too_wide = (reach > width).any(1)
    if bool(too_wide.all()):
        raise ValueError(
            f"the scale {float(scales.min()):.4g} is wider than the box ({float(width.amin()):.4g}), so every probe would leave "
            "it; choose a smaller one, e.g. propose_scale(neuron, x, level), or other directions."
        )
    return mark(status, (too_wide, Status.TOO_WIDE), (scales.isnan(), Status.NOT_FINITE))


def _directions(basis: Tensor | None, gradient: Tensor) -> Tensor:
    """Orthonormal directions to be measured: the normal and then what is tangential of the given ones (case, k + 1, n); all
    axes (case, n, n) where none are given.
    """
    cases, n = gradient.shape
    if basis is None:
        if n > ALL_AXES:
            raise ValueError(
                f"along all {n} axes {n} x {n} numbers per case would be stored; give a basis of at most some hundred "
                "directions, or use krylov_jet."
            )
        return torch.eye(n, dtype=gradient.dtype, device=gradient.device).expand(cases, n, n)
    basis = basis.flatten(2) if basis.ndim > 3 else basis
    if basis.ndim != 3 or basis.shape[0] != cases or basis.shape[2] != n or not 1 <= basis.shape[1] <= n:
        raise ValueError(f"basis must have shape ({cases}, k, {n}), got {tuple(basis.shape)}.")
    unit = torch.nan_to_num(basis / length(basis, keepdim=True))
    normal = gradient / length(gradient, keepdim=True)
    flat = ~torch.isfinite(normal).all(1)
    normal = torch.where(flat[:, None], torch.zeros_like(normal), normal)
    rows = torch.cat([normal[:, None], unit], 1)
    if basis.shape[1] == n:  # with the normal one more than there are
        rows = unit
    known = torch.linalg.qr(rows.transpose(1, 2))
    dependent = (torch.diagonal(known.R, dim1=1, dim2=2).abs() < 1e-6).any(1) & ~flat
    if bool(dependent.any()):
        raise ValueError(
            f"the directions of basis must be independent of each other and of the gradient, which is measured anyway; got "
            f"(nearly) dependent ones in {int(dependent.sum())} of {cases} cases."
        )
    return known.Q.transpose(1, 2)


def _differences(neuron: Neuron, x: Tensor, scales: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Steps (case, m, n) along unit directions as they came out in floating point, and the gradient's mean change along each."""
    offsets = torch.nan_to_num(scales, nan=1.0)[:, None, None] * directions
    flat = x.flatten(1)[:, None]
    steps = ((flat + offsets) - (flat - offsets)) / (2 * scales)[:, None, None]
    ahead, behind = (_gradients_near(neuron, x, sign * offsets)[1] for sign in (1.0, -1.0))
    return steps, (ahead - behind) / (2 * scales)[:, None, None]


def _mixtures(directions: Tensor) -> Tensor:
    """Two unit mixtures (case, 2, n) of the directions, random but always the same."""
    draw = torch.randn((2, directions.shape[1]), generator=Generator().manual_seed(0), dtype=directions.dtype)
    draw = (draw / draw.norm(dim=1, keepdim=True)).to(directions.device)
    return torch.einsum("mk,ckn->cmn", draw, directions)


def _gradients_near(neuron: Neuron, x: Tensor, offsets: Float[Tensor, "case m n"]) -> tuple[Tensor, Tensor]:
    """Responses (case, m) and gradients (case, m, n) at `x` plus each of the offsets, many at a time."""
    cases, _, n = offsets.shape
    chunk = max(1, PROBES_AT_ONCE // (cases * n))
    values, gradients = [], []
    for part in offsets.split(chunk, dim=1):
        count = part.shape[1]
        at = (x.flatten(1)[:, None] + part).reshape(cases * count, *x.shape[1:])
        which = torch.arange(cases, device=x.device).repeat_interleave(count)
        value, gradient = neuron.select(which).value_and_grad(at)
        values.append(value.reshape(cases, count))
        gradients.append(gradient.reshape(cases, count, n))
    return torch.cat(values, 1), torch.cat(gradients, 1)


def _fit(neuron: Neuron, x: Tensor, scales: Tensor, directions: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean response (case,) and gradient (case, n) over x +- scale * draw, and the Hessian's images (case, k, n) of
    `directions` by least squares over draws (sample, k).
    """
    cases, k, n = directions.shape
    total, level = torch.zeros_like(directions[:, 0]), torch.zeros_like(scales)
    moments = torch.zeros_like(directions)
    for part in draws.split(max(1, PROBES_AT_ONCE // (cases * n))):
        step = scales[:, None, None] * torch.einsum("sk,ckn->csn", part, directions)
        ahead_value, ahead = _gradients_near(neuron, x, step)
        behind_value, behind = _gradients_near(neuron, x, -step)
        total = total + 0.5 * (ahead + behind).sum(1)
        level = level + 0.5 * (ahead_value + behind_value).sum(1)
        moments = moments + torch.einsum("sk,csn->ckn", part, ahead - behind) / (2 * scales)[:, None, None]
    images = torch.linalg.solve((draws.T @ draws).expand(cases, k, k), moments)
    return level / len(draws), total / len(draws), images


def _within(directions: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("ck,ckn->cn", torch.einsum("ckn,cn->ck", directions, v), directions)


def jet_status(value: Tensor, gradient: Tensor) -> Tensor:
    """DONE, or FLAT where the gradient vanishes, or NOT_FINITE where it or its length is too large for the dtype."""
    finite = torch.isfinite(value) & torch.isfinite(length(gradient))
    return mark(status_tensor(Status.DONE, value), ((gradient == 0).all(1), Status.FLAT), (~finite, Status.NOT_FINITE))


def finite_status(status: Tensor, measured: SecantOperator) -> Tensor:
    """`status`, NOT_FINITE where a probe of a sound case was not, UNDEFINED where a step was lost in rounding."""
    sound = status == int(Status.DONE)
    lost = (measured.basis.square().sum(2) < 0.5).any(1)
    bad = ~torch.isfinite(measured.images).flatten(1).all(1)
    return mark(status, (lost & sound, Status.UNDEFINED), (bad & sound, Status.NOT_FINITE))
