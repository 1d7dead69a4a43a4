"""The mass of Gaussian noise beyond a level, along lines through the closest point: rare events at the price of common ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from isoresponse.crossing import Problem, Solution
from isoresponse.loop import Status, mark, status_tensor
from isoresponse.neuron import Box, Neuron
from isoresponse.noise import Excess, Mass, chunked, draws, evaluate, gaussian_problem, noisy
from isoresponse.solve import closest_point
from isoresponse.tails import log_normal_tail, root

FIRST = 0.25  # share of the lines that are drawn by the curvatures as told; the others, as these have shown
LOOKS = 12  # evaluations along one line at most
BEYOND = 8.0  # standard deviations behind the closest point at which a line that has not crossed is given up
USUAL = 2.0  # standard deviations from the median crossing within which lines tell where the next will cross
ENOUGH = 10  # lines' worth of weight that a probability must rest on
SHARP = 2e-2  # last secant step along a line, over beta; what is left after it is of the order of its square


def line_mass(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    sigma: float | Float[Tensor, " case"],
    *,
    lines: int = 150,
    pilot: int = 16,
    design: Solution | None = None,
    curvatures: tuple[Tensor, Tensor] | None = None,
    budget: int = 30,
    generator: Generator,
) -> Mass:
    """The same by line sampling through the closest point (Hohenbichler and Rackwitz 1988; Koutsourelakis 2004).

    Noise is drawn at random across an axis, and integrated along it: every line adds the normal tail beyond its crossing, so
    for a flat contour one line is exact. The axis is the mean gradient over noise at the closest point (`pilot` gradients), which
    sees the contour at the scale of the noise. Where contours are bent, so that the noise across is distributed otherwise beyond
    the level than in general, `curvatures` at the closest point tell how: lines are drawn with variance 1 / (1 + distance x
    curvature) and weighted (importance sampling), the factor on the curvatures being fitted to the first quarter of the lines.
    With wrong curvatures the answer is right all the same, only less precise, as long as they leave enough lines to go by: where
    fewer than ten lines' worth carry it all, the status is MAX_STEPS, the probability is likely too small, and so is its error.

    What lies in front of a line's crossing is missed, and so are regions that no line meets: `subset_mass` sees them. Where no
    line meets any, the status is UNREACHABLE.

    Parameters
    ----------
    lines
        Number of lines; each takes three to six forward passes, two to four where `curvatures` tell where it will cross.
    pilot
        Gradients averaged for the axis; 0 takes the direction to the closest point.
    design
        The closest point, unboxed, if known; otherwise it is searched for with `budget` gradients.
    curvatures
        Values (case, k), of {response beyond the level}: positive where it is locally convex, 1/input; and orthonormal directions
        (case, k, n). `Curvatures.values` and `.directions` where the level is above, with the values negated where it is below.

    Raises
    ------
    ValueError
        Invalid inputs, levels or noise; fewer than two lines; curvatures of the wrong shape.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x.sum(1), shape=(4,))
    >>> x = torch.zeros(1, 4, dtype=torch.float64)
    >>> line_mass(f, x, 12.0, 1.0, lines=8, generator=torch.Generator().manual_seed(0)).probability   # 6 standard deviations
    tensor([9.8659e-10], dtype=torch.float64)
    """
    if lines < 2 or pilot < 0:
        raise ValueError(f"lines must be at least 2 and pilot not negative, got {lines} and {pilot}.")
    problem, scale = gaussian_problem(neuron, x, level, sigma)
    cases, n = problem.start.shape
    if design is None:
        design = closest_point(replace(neuron, box=Box()), x, level, budget=budget)
    if curvatures is not None and not (
        curvatures[0].shape == curvatures[1].shape[:2] and curvatures[1].shape[::2] == (cases, n)
    ):
        raise ValueError(
            f"curvatures must be values ({cases}, k) and directions ({cases}, k, {n}), got "
            f"{tuple(curvatures[0].shape)} and {tuple(curvatures[1].shape)}."
        )
    sound = design.success
    point = torch.where(sound[:, None], torch.nan_to_num(design.point.flatten(1)), problem.start)
    axis, slope, gradients = _axis(problem, point, scale, pilot, generator)
    beta = ((point - problem.start) * axis).sum(1) / scale
    look = partial(_looked, noisy(problem, scale), axis, beta, slope * scale)
    draw = draws(lines, problem.start, generator)
    again = torch.rand(lines, generator=generator, dtype=torch.float64, device=generator.device).to(x.device)
    if curvatures is None:
        none = beta[:, None][:, :0]
        found = look(draw, again, axis[:, None, :][:, :0], none, _Expected(beta, none))
        log, looks, finite = found.tail, found.looks, found.finite
    else:
        basis, bending = _tangents(*curvatures, axis)
        bent = bending * torch.nan_to_num(design.distance)[:, None]
        part = max(2, round(FIRST * lines))
        expected = _Expected(beta, bending * scale[:, None])
        first = look(draw[:part], again[:part], basis, _variance(bent, torch.ones_like(beta)), expected)
        second = look(draw[part:], again[part:], basis, _variance(bent, _refit(first, bent)), expected.as_seen(first))
        log = _balanced(first, second)
        looks, finite = first.looks + second.looks, first.finite & second.finite
    worth = (2 * torch.logsumexp(log, 1) - torch.logsumexp(2 * log, 1)).exp()  # NaN where there is no line at all
    status = mark(
        torch.where(sound, status_tensor(Status.DONE, scale), design.status),
        (sound & (worth < min(ENOUGH, lines / 2)), Status.MAX_STEPS),
        (sound & torch.isneginf(log).all(1), Status.UNREACHABLE),
        (sound & (~finite | ~torch.isfinite(axis).all(1)), Status.NOT_FINITE),
    )
    grads = design.gradients + gradients
    forwards = design.forwards + gradients + looks
    each = log.exp()
    p, error = each.mean(1), each.std(1) / lines**0.5
    return Mass.of(p.to(x.dtype), error.to(x.dtype), (grads, forwards), status, "line sampling")


def _axis(
    problem: Problem, point: Tensor, scale: Tensor, pilot: int, generator: Generator
) -> tuple[Tensor, Tensor, int]:
    """Unit axis (case, n) towards the far side, the slope along it (case,), and the gradients it took."""
    n = point.shape[1]
    total = torch.zeros_like(point)
    if pilot == 0:
        total = problem.excess_and_grad(point)[1]
    else:
        half = torch.randn(((pilot + 1) // 2, n), generator=generator, dtype=point.dtype, device=generator.device)
        half = half.to(point.device)
        for draw in torch.cat([half, -half])[:pilot]:  # in pairs, so that a quadratic's gradient is that of the point
            total = total + problem.excess_and_grad(point + scale[:, None] * draw)[1] / pilot
    way = point - problem.start
    steepness = total.norm(dim=1)
    flat = ~(steepness > 0)
    axis = torch.where(flat[:, None], way / way.norm(dim=1, keepdim=True), total / steepness[:, None])
    return axis, steepness.clamp_min(torch.finfo(point.dtype).tiny), max(pilot, 1)


@dataclass(frozen=True, eq=False)
class _Expected:
    """Where lines are expected to cross, in standard deviations along the axis: a paraboloid.

    Only where the search along a line begins: the nearer to the crossing, the fewer evaluations.
    """

    ahead: Tensor  # (case,) on the axis itself
    bend: Tensor  # (case, k) curvature x standard deviation along the bent directions

    def at(self, along: Tensor) -> Tensor:
        """For lines (case, line, k) that lie so along the bent directions: (case, line)."""
        return self.ahead[:, None] + self._rise(along)

    def as_seen(self, first: _Looked) -> _Expected:
        """The same paraboloid moved and flattened to where most of the first lines have crossed (least squares)."""
        rise, crossing = self._rise(first.along.to(self.ahead.dtype)), first.crossing.to(self.ahead.dtype)
        usual = (crossing - crossing.median(1, keepdim=True).values).abs() < USUAL
        seen = (first.found & usual).to(rise.dtype)
        count = seen.sum(1).clamp_min(1)
        middle, level = (rise * seen).sum(1) / count, (crossing * seen).sum(1) / count
        spread = ((rise - middle[:, None]).square() * seen).sum(1)
        both = ((rise - middle[:, None]) * (crossing - level[:, None]) * seen).sum(1)
        factor = torch.where(spread > 1e-6, both / spread.clamp_min(1e-6), 1.0).clamp(0.0, 2.0)
        usable = count >= 3
        return _Expected(
            torch.where(usable, level - factor * middle, self.ahead),
            self.bend * torch.where(usable, factor, 1.0)[:, None],
        )

    def _rise(self, along: Tensor) -> Tensor:
        return 0.5 * (self.bend[:, None] * along.square()).sum(2)


@dataclass(frozen=True, eq=False)
class _Looked:
    """Lines drawn with one set of variances, and what was seen along them."""

    along: Tensor  # (case, line, k) where they lie along the bent directions
    variance: Tensor  # (case, k) with which that was drawn
    crossing: Tensor  # (case, line) in standard deviations along the axis
    found: Tensor  # (case, line) whether there is one
    tail: Tensor  # (case, line) logarithm of the normal tail beyond the crossing, -inf where there is none
    looks: Tensor  # (case,)
    finite: Tensor  # (case,)

    def weight(self, variance: Tensor) -> Tensor:
        """Logarithm (case, line) of the normal density over that of a draw with `variance` (case, k)."""
        v = variance.double()[:, None]
        return 0.5 * (self.along.square() * (1 / v - 1) + v.log()).sum(2)


def _looked(
    excess: Excess,
    axis: Tensor,
    beta: Tensor,
    slope: Tensor,
    draw: Tensor,
    again: Tensor,
    basis: Tensor,
    variance: Tensor,
    expected: _Expected,
) -> _Looked:
    """What lies beyond along lines at draws (line, n) across the axis, stretched along `basis` (case, k, n) to `variance`."""
    offset = draw - torch.einsum("ln,cn->cl", draw, axis)[:, :, None] * axis[:, None]
    along = torch.einsum("cln,ckn->clk", offset, basis)
    stretched = along * variance.sqrt()[:, None]
    offset = offset + torch.einsum("clk,ckn->cln", stretched - along, basis)
    crossing, found, looks, finite = _crossings(excess, offset, axis, beta, slope, expected.at(stretched))
    # --- one look beyond each crossing: a line that leaves the region again must not count whole
    tail = log_normal_tail(crossing)
    deeper = -torch.special.ndtri((again * tail.exp()).clamp_min(1e-300)).to(draw.dtype)
    deeper = torch.where(found, torch.maximum(deeper, crossing.to(draw.dtype)), crossing.to(draw.dtype))
    every = torch.arange(len(axis), device=axis.device)
    inside = evaluate(excess, offset + deeper[:, :, None] * axis[:, None], every) > 0
    counts = found & (inside | (deeper - crossing < 1e-3))
    tail = tail.masked_fill(~counts, -torch.inf)
    return _Looked(stretched.double(), variance, crossing, found, tail, looks + draw.shape[0], finite)


def _tangents(bending: Tensor, directions: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Directions across the axis (case, k, n), orthonormal, and the curvatures along them (case, k)."""
    directions, bending = torch.nan_to_num(directions.flatten(2)), torch.nan_to_num(bending)
    inside = torch.einsum("ckn,cn->ck", directions, axis)
    basis = torch.linalg.qr((directions - inside[:, :, None] * axis[:, None]).transpose(1, 2)).Q.transpose(1, 2)
    across = torch.einsum("ckn,cn->ck", basis, axis).abs() < 1e-4  # lost where the axis lies in their span
    return torch.where(across[:, :, None], basis, torch.zeros_like(basis)), torch.where(across, bending, 0.0)


def _variance(bent: Tensor, factor: Tensor) -> Tensor:
    """Variance (case, k) that noise has beyond a contour whose distance x curvature is `factor` * `bent`."""
    return 1 / (1 + factor[:, None].to(bent.dtype) * bent).clamp(0.1, 100.0)


def _refit(first: _Looked, bent: Tensor) -> Tensor:
    """The factor (case,) on the curvatures with which the lines seen so far are best described (cross-entropy).

    One number, because fifty lines do not tell more. It is 1 for a paraboloid far out; near by, and where the curvature of the
    contour itself changes, it is not.
    """
    log = first.weight(first.variance) + first.tail
    share = torch.nan_to_num((log - log.amax(1, keepdim=True)).exp())
    share = share / share.sum(1, keepdim=True).clamp_min(1e-300)
    moment = (share[:, :, None] * first.along.square()).sum(1)
    bent = bent.double()
    most = torch.minimum(0.95 / (-bent).amax(1).clamp_min(1e-12), torch.full_like(bent[:, 0], 3.0))

    def falling(factor: Tensor) -> Tensor:
        return (bent * moment - bent / (1 + factor[:, None] * bent)).sum(1)

    return root(falling, torch.full_like(most, 0.1), most.clamp_min(0.1))


def _balanced(first: _Looked, second: _Looked) -> Tensor:
    """Logarithm (case, line) of what each line adds, weighted by the mixture they came from (Veach and Guibas 1995)."""
    counts = first.tail.shape[1], second.tail.shape[1]
    shares = [math.log(c / sum(counts)) for c in counts]
    each = []
    for part in (first, second):
        mixed = [share - part.weight(of.variance) for share, of in zip(shares, (first, second), strict=True)]
        each.append(part.tail - torch.logaddexp(mixed[0], mixed[1]))
    return torch.cat(each, 1)


def _crossings(
    excess: Excess, offset: Tensor, axis: Tensor, beta: Tensor, slope: Tensor, begin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each line (case, line) first is known to be across, in standard deviations; whether; looks, finite (case,).

    The search begins at `begin` (case, line), or half way to where it is given up.
    """
    cases, lines, _ = offset.shape
    which = torch.arange(cases, device=axis.device).repeat_interleave(lines)
    flat = offset.reshape(cases * lines, -1)
    end = (beta.abs() + BEYOND)[which]
    low, high = -end, torch.full_like(end, torch.inf)  # known not to be, and to be, across
    width = SHARP / (1 + beta.abs())[which]
    t, rate = beta[which] + (begin.flatten() - beta[which]).clamp(-BEYOND / 2, BEYOND / 2), slope[which]
    at, value = torch.full_like(end, torch.nan), torch.full_like(end, torch.nan)
    looks, finite = torch.zeros_like(beta, dtype=torch.int64), torch.ones_like(beta, dtype=torch.bool)
    crossing, open_ = torch.full_like(end, torch.inf), torch.ones_like(end, dtype=torch.bool)
    for count in range(LOOKS):
        active = torch.nonzero(open_).flatten()
        if len(active) == 0:
            break
        now = chunked(excess, flat[active] + t[active, None] * axis[which[active]], which[active])
        looks = looks.index_add(0, which[active], torch.ones_like(active))
        bad = ~torch.isfinite(now)
        finite = finite.index_fill(0, which[active[bad]], False)
        here, last, before = t[active], at[active], value[active]
        across = now > 0
        low = low.index_copy(0, active, torch.where(across, low[active], here))
        high = high.index_copy(0, active, torch.where(across, here, high[active]))
        # --- secant through the last two looks, or the slope that was expected
        chord = (now - before) / (here - last)
        usable = torch.isfinite(chord) & (chord > 0.05 * rate[active])
        step = -now / torch.where(usable, chord, rate[active])
        target = here + step
        done = (step.abs() < width[active]) | (high[active] - low[active] < width[active])
        beyond = ~across & (here >= end[active])
        crossing = crossing.index_copy(
            0, active, torch.where(done & ~beyond, target, torch.where(across, here, crossing[active]))
        )
        # --- inside what is known; halved where the secant leaves it, or has had its chance
        bracketed = torch.isfinite(high[active])
        middle = 0.5 * (low[active] + torch.where(bracketed, high[active], end[active]))
        outside = bracketed & ((target <= low[active]) | (target >= high[active]))
        late = bracketed & (count % 4 == 3)
        target = torch.where(outside | late, middle, torch.minimum(torch.maximum(target, low[active]), end[active]))
        open_ = open_.index_copy(0, active, ~(done | beyond | bad))
        at, value = at.index_copy(0, active, here), value.index_copy(0, active, now)
        t = t.index_copy(0, active, target)
    crossing = crossing.reshape(cases, lines).double()
    found = torch.isfinite(crossing)
    return torch.where(found, crossing, end.reshape(cases, lines).double()), found, looks, finite
