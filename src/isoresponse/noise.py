"""How often Gaussian noise takes a response beyond a level: what is asked, what is answered, and the answer by counting.

Counting (`sampled_mass`) sees nothing of an event that is rarer than one in the number of samples. Two methods do, and they
fail for different reasons. `line_mass` (in `lines`) looks along lines through the closest point, each of which contributes the
whole tail beyond the contour: a few hundred forward passes for any probability, provided that most of the mass lies behind
the closest point. `subset_mass` (in `subset`) climbs through the levels in between, a thousand forward passes for every power
of ten or so, and assumes nothing about where the mass lies.

The event is always "on the far side of `level` as seen from `x`", strictly: where the response equals the level it has not
happened, so that a plateau at the level counts for nothing, whichever method looks. Noise leaves the box, and the response is
asked for there: bounds are ignored. Draws are shared by all cases, so a case alone equals itself in a batch, and the errors of
different cases are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Problem
from isoresponse.jets import PROBES_AT_ONCE
from isoresponse.loop import Status, failed, mark, status_tensor
from isoresponse.neuron import Box, Neuron

Excess = Callable[[Tensor, Tensor], Tensor]  # standard normal z (k, n) of the cases (k,): how far beyond the level (k,)


@dataclass(frozen=True, eq=False)
class Mass:
    """Probability of an event under a known distribution, one per case, estimated with a standard error."""

    probability: Tensor = axes("case", about="probability of the event")
    standard_error: Tensor = axes("case", about="standard error of the probability")
    gradients: Tensor = axes("case", about="gradients spent")
    forwards: Tensor = axes("case", about="forward passes spent, those inside gradients included")
    status: Tensor = axes("case", about="how the case ended; MAX_STEPS: not settled, as the method's text says")
    method: str = axes(about="how it was estimated")

    def __repr__(self) -> str:
        unsettled = self.status == int(Status.MAX_STEPS)
        sound = ~failed(self.status) & ~unsettled
        median = float(self.probability[sound].median()) if bool(sound.any()) else float("nan")
        relative = (self.standard_error / self.probability)[sound & (self.probability > 0)]
        error = float(relative.median()) if len(relative) else float("nan")
        rest = f", {int(unsettled.sum())} not settled" if bool(unsettled.any()) else ""
        return (
            f"Mass({int(sound.sum())} of {len(sound)} cases{rest}, median {median:.3g} +- {100 * error:.2g} %, {self.method}, "
            f"{float(self.forwards.double().mean()):.0f} forward passes per case)"
        )

    @classmethod
    def of(
        cls, probability: Tensor, standard_error: Tensor, spent: tuple[Tensor, Tensor], status: Tensor, method: str
    ) -> Mass:
        """The result with NaN where the status is a failure; `spent` are gradients and forward passes (case,)."""
        bad = failed(status)
        p, error = probability.masked_fill(bad, torch.nan), standard_error.masked_fill(bad, torch.nan)
        return cls(p, error, spent[0], spent[1], status, method)


def sampled_mass(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    sigma: float | Float[Tensor, " case"],
    *,
    samples: int,
    generator: Generator,
) -> Mass:
    """The share of `samples` draws of Gaussian noise, of standard deviation `sigma` per element, that are beyond the level.

    The standard error is that of a share; 0 where no draw is beyond, or all are: then the probability is below about
    3 / `samples`, and another method is needed.

    Raises ValueError for invalid inputs, levels, or noise, and fewer than two samples.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x[:, 0], shape=(2,))
    >>> found = sampled_mass(f, torch.zeros(1, 2), 1.0, 1.0, samples=10_000, generator=torch.Generator().manual_seed(0))
    >>> bool((found.probability - 0.1587).abs() < 4 * found.standard_error)
    True
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}.")
    problem, scale = gaussian_problem(neuron, x, level, sigma)
    excess = noisy(problem, scale)
    every = torch.arange(len(scale), device=x.device)
    return counted_mass(excess, (draws(k, problem.start, generator) for k in blocks(samples, problem.start)), every)


# --- what they share --------------------------------------------------------------------------------------


def gaussian_problem(neuron: Neuron, x: Tensor, level: float | Tensor, sigma: float | Tensor) -> tuple[Problem, Tensor]:
    """The question without a box, on flat inputs, and the noise's standard deviation (case,)."""
    problem = Problem.of(neuron, x, level)
    scale = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if scale.shape not in ((), (len(x),)):
        raise ValueError(f"sigma must be a number or have shape ({len(x)},), got {tuple(scale.shape)}.")
    if not bool(((scale > 0) & torch.isfinite(scale)).all()):
        raise ValueError("sigma, the noise's standard deviation in input units, must be positive and finite.")
    return replace(problem, neuron=replace(problem.neuron, box=Box())), scale.expand(len(x))


def noisy(problem: Problem, scale: Tensor) -> Excess:
    """How far beyond the level the start of each case is after a standard normal z, times the scale, was added."""
    return lambda z, cases: problem.select(cases).excess(problem.start[cases] + scale[cases, None] * z)


def draws(count: int, like: Tensor, generator: Generator) -> Tensor:
    """`count` standard normal vectors (count, n), for all cases."""
    z = torch.randn((count, like.shape[1]), generator=generator, dtype=like.dtype, device=generator.device)
    return z.to(like.device)


def evaluate(excess: Excess, z: Float[Tensor, "case k n"], cases: Tensor) -> Float[Tensor, "case k"]:
    """The excess at k points per case, many at a time."""
    running, k, n = z.shape
    return chunked(excess, z.reshape(running * k, n), cases.repeat_interleave(k)).reshape(running, k)


def chunked(excess: Excess, z: Tensor, cases: Tensor) -> Tensor:
    """The excess (k,) at points (k, n) of the cases (k,), as many at a time as memory likes."""
    most = max(1, PROBES_AT_ONCE // z.shape[1])
    return torch.cat([excess(a, b) for a, b in zip(z.split(most), cases.split(most), strict=True)])


def blocks(count: int, like: Tensor) -> list[int]:
    """`count` draws in parts that fit into memory; of one size whatever the batch, so that a case alone meets the same draws."""
    most = max(1, PROBES_AT_ONCE // like.shape[1])
    return [min(most, count - done) for done in range(0, count, most)]


def counted_mass(excess: Excess, parts: Iterable[Tensor], cases: Tensor) -> Mass:
    """The share of the points in `parts` (k, n), the same for all cases, whose excess is positive."""
    above, sound, samples = torch.zeros_like(cases), torch.ones_like(cases, dtype=torch.bool), 0
    for part in parts:
        samples += len(part)
        for some in part.split(max(1, len(part) // len(cases))):
            value = evaluate(excess, some.expand(len(cases), *some.shape), cases)
            above, sound = above + (value > 0).sum(1), sound & torch.isfinite(value).all(1)
    p = (above.double() / samples).to(value.dtype)
    status = mark(status_tensor(Status.DONE, p), (~sound, Status.NOT_FINITE))
    nothing = torch.zeros_like(cases)
    return Mass.of(p, (p * (1 - p) / samples).sqrt(), (nothing, nothing + samples + 1), status, "sampling")
