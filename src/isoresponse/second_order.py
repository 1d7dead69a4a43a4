"""How near a margin of a smooth network can provably vanish: lower bounds of distances from a bound of the Hessian.

Singla and Feizi (2020): where curvatures are at most K, max over s of min over y of |y - x|^2 / 2 + s margin(y) is a
concave problem whose inner one is convex for s < 1 / K. Here any y and any s prove something: by strong convexity the
inner minimum is not below what value and gradient at y allow, taken over the box, in closed form. And curvatures are bounded
in balls of several sizes: the bound from a ball holds up to its radius.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isoresponse.norms import INF, nearest_in_plane, size
from isoresponse.smooth import SmoothNet

STEPS = 60  # gradients of the dual problem for each ball
EVERY = 3  # steps on one multiplier before the next
NEAR = 0.98  # of the multiplier at which the dual problem stops to be convex
BISECTIONS = 80
SLACK = 1e-9  # by which curvatures are enlarged, relatively: rounding in float64
AT_ONCE = 20_000_000  # numbers in the matrices of one call


@dataclass(frozen=True, eq=False)
class Margins:
    """Functions read . activity + offset, positive at the start. Asked is for the nearest point at which each is not."""

    net: SmoothNet
    start: Tensor  # (margin, n)
    read: Tensor  # (margin, units)
    offset: Tensor  # (margin,)
    down: Tensor  # (margin, n): room in the box, on both sides
    up: Tensor
    norm: float

    def select(self, some: Tensor) -> Margins:
        """Some of them (indices)."""
        kept = {f: getattr(self, f)[some] for f in ("start", "read", "offset", "down", "up")}
        return replace(self, **kept)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (margin,) and gradients (margin, n)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            active = self.net.activations[-1].value(self.net.hidden(x)[-1]) if self.net.activations else x
            value = (active * self.read).sum(1) + self.offset
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    def bends(self, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds (margin,) of negative and positive curvature within `radius`."""
        most = size(torch.maximum(-self.down, self.up), self.norm)
        down, up = self.net.bends(
            self.read, self.net.ranges(self.start, torch.minimum(radius, most), self.norm, self.down, self.up)
        )
        return down * (1 + SLACK), up * (1 + SLACK)


def lower_bounds(ask: Margins, radii: int) -> tuple[Tensor, Tensor]:
    """`_best` for as many margins at a time as memory allows."""
    widest = max(w.numel() for w in ask.net.weights)
    every = torch.arange(len(ask.start), device=ask.start.device)
    found = [_best(ask.select(some), radii) for some in every.split(max(1, AT_ONCE // widest))]
    lower, exact = zip(*found, strict=True)
    return torch.cat(lower), torch.cat(exact)


def _best(ask: Margins, radii: int) -> tuple[Tensor, Tensor]:
    """Proved distances (margin,), and where they are exact.

    A bound that holds for curvatures within a ball is worth no more than the ball's radius; the larger the ball, the smaller
    the bound. So the best radius is where the two meet, and is bracketed by bisection.
    """
    f, g = ask.value_and_grad(ask.start)
    f = f.clamp_min(0)
    if not ask.net.activations:
        d, exists = nearest_in_plane(f, -g, ask.down, ask.up, ask.norm)
        return size(d, ask.norm).masked_fill(~exists, INF), torch.ones_like(exists)
    everywhere = torch.full_like(f, INF)
    best = _within(ask, f, g, everywhere)
    dual = {1.0: INF, 2.0: 2.0, INF: 1.0}[ask.norm]
    slope = g.norm(dual, dim=1)
    low, high = best, 4 * f / slope  # no ball larger than this is worth a look
    for _ in range(radii):
        live = torch.isfinite(high) & (high > low)
        radius = torch.where(live, 0.5 * (low + high), torch.ones_like(low))
        proved = _within(ask, f, g, radius)
        best = torch.where(live, torch.maximum(best, torch.minimum(proved, radius)), best)
        more = proved >= radius
        low, high = torch.where(live & more, radius, torch.maximum(low, best)), torch.where(live & ~more, radius, high)
    return best, torch.zeros_like(best, dtype=torch.bool)


def _within(ask: Margins, f: Tensor, g: Tensor, radius: Tensor) -> Tensor:
    """The bound (margin,) that follows from the curvatures possible within `radius`."""
    down, up = ask.bends(radius)
    if ask.norm == 2.0:
        return torch.maximum(_dual(ask, f, g, down, up, radius), _root(f, g.norm(dim=1), down))
    if ask.norm == 1.0:
        return _root(f, g.abs().amax(1), down)  # |d|_2 <= |d|_1
    low, high = torch.zeros_like(f), torch.maximum(-ask.down, ask.up).amax(1)
    high = torch.where(torch.isfinite(high), high, f / g.abs().sum(1).clamp_min(torch.finfo(f.dtype).tiny))
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        ends = [end * g - 0.5 * down[:, None] * end.square() for end in _ends(ask, middle)]
        safe = f + torch.minimum(*ends).sum(1) > 0  # concave in each element: least at an end
        low, high = torch.where(safe, middle, low), torch.where(safe, high, middle)
    return low


def _ends(ask: Margins, radius: Tensor) -> tuple[Tensor, Tensor]:
    return torch.maximum(ask.down, -radius[:, None]), torch.minimum(ask.up, radius[:, None])


def _root(f: Tensor, slope: Tensor, down: Tensor) -> Tensor:
    """The smallest r >= 0 where f - slope r - down r^2 / 2 is not positive, infinite where there is none."""
    below = slope + (slope.square() + 2 * down * f).sqrt()
    return torch.where(below > 0, 2 * f / below, torch.where(f > 0, INF, 0.0))


def _dual(ask: Margins, f: Tensor, g: Tensor, down: Tensor, up: Tensor, radius: Tensor) -> Tensor:
    """The best bound (margin,) that the dual problem proved on its way; see `certify_decision`."""
    first = _root(f, g.norm(dim=1), down)
    tiny = torch.finfo(f.dtype).tiny
    slope = g.norm(dim=1)
    s = torch.where(torch.isfinite(first), first / (slope + down * first).clamp_min(tiny), torch.zeros_like(first))
    most = torch.minimum(NEAR / down.clamp_min(tiny), 1e3 * s.clamp_min(tiny))
    s = torch.minimum(s, most)
    low, high = torch.zeros_like(s), most
    y, best = ask.start, torch.zeros_like(f)
    for step in range(STEPS):
        value, gradient = ask.value_and_grad(y)
        way = y - ask.start
        phi = 0.5 * way.square().sum(1) + s * value
        slope_phi = way + s[:, None] * gradient
        convex = (1 - s * down)[:, None]
        room = (ask.down - way, ask.up - way)
        d = torch.minimum(torch.maximum(-slope_phi / convex, room[0]), room[1])
        proved = phi + (slope_phi * d + 0.5 * convex * d.square()).sum(1)
        best = torch.maximum(best, proved)
        y = y + torch.minimum(torch.maximum(-slope_phi / (1 + s * up)[:, None], room[0]), room[1])
        away = y - ask.start  # curvatures are known within the ball only
        shrunk = (radius / size(away).clamp_min(tiny)).clamp_max(1.0)
        y = ask.start + shrunk[:, None] * away
        if step % EVERY == EVERY - 1:  # the dual function's slope in s is the margin at y
            rising = value > 0
            low, high = torch.where(rising, s, low), torch.where(rising, high, s)
            s = torch.where(rising & (high == most), torch.minimum(2 * s, 0.5 * (s + most)), 0.5 * (low + high))
    return (2 * best).clamp_min(0).sqrt()
