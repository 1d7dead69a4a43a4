"""Points that can be stored, and the nearest of them beyond a plane: a knapsack.

On a lattice an element moves by whole levels. Each level has its price in distance, which rises from level to
level in L2 and stays in L1, and its gain in response. The point of the lattice nearest to a start beyond a plane is
the cheapest set of levels that gains enough. Levels are bought in the order of price per gain until the gap is filled;
those around the last price are then tried in all combinations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse.neuron import Box
from isoresponse.norms import INF

MOST_LEVELS = 65_536  # of a 16-bit image; float32 counts that far exactly
NEGLIGIBLE = 1e-6  # an element whose gain is this part of the largest one stays where it is
CHEAP = 1e-9  # the price at which nothing is bought, relative to the one at which everything is
BISECTIONS = 26  # of the price, over those nine orders of magnitude: to 1e-6
CORE = 12  # levels around the last price that are bought or not in all combinations, ...
CHOICE = 36  # ... chosen from at least so many: the next and the last ones of each element
# weight of a level's own price in that choice: many levels of one element at the very same price must not fill the core
VARIETY = 0.3


@dataclass(frozen=True, eq=False)
class Lattice:
    """`levels` equally spaced values from the lower to the upper bound of each element of flat inputs."""

    lower: Tensor  # (n,)
    upper: Tensor
    levels: int

    @classmethod
    def of(cls, box: Box, levels: int, like: Tensor) -> Lattice:
        """The lattice of a box for flat inputs like `like` (case, n).

        Raises
        ------
        ValueError
            A box without finite bounds; `levels` not a whole number from 2 to 65,536.
        """
        if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= MOST_LEVELS:
            raise ValueError(f"levels must be a whole number from 2 to {MOST_LEVELS}, got {levels!r}.")
        lower, upper = (bound.expand(like.shape[1:]) for bound in box.bounds(like))
        if not bool(torch.isfinite(upper - lower).all()):
            raise ValueError(f"a lattice needs a box with finite bounds, got {box}; give e.g. Box(0, 1).")
        return cls(lower, upper, levels)

    @property
    def step(self) -> Tensor:
        """Distance (n,) of neighbouring levels, zero in a frozen element."""
        return (self.upper - self.lower) / (self.levels - 1)

    def place(self, x: Tensor) -> Tensor:
        """Where `x` (case, n) lies, in levels from the lower bound; whole numbers on the lattice, up to rounding."""
        span = self.upper - self.lower
        free = span > 0
        part = (x - self.lower) / torch.where(free, span, torch.ones_like(span))
        return torch.where(free, part.clamp(0, 1) * (self.levels - 1), torch.zeros_like(x))

    def point(self, index: Tensor) -> Tensor:
        """The lattice points (case, n) with these levels, in the box; for a box of 0 and 1 exactly index / (levels - 1)."""
        inner = index * (self.upper - self.lower) / (self.levels - 1) + self.lower
        return torch.where(index >= self.levels - 1, self.upper, torch.minimum(inner, self.upper))


def cheapest(
    lattice: Lattice,
    start: Float[Tensor, "case n"],
    gradient: Float[Tensor, "case n"],
    need: Float[Tensor, " case"],
    low: Float[Tensor, "case n"],
    high: Float[Tensor, "case n"],
    norm: float = 2.0,
) -> Float[Tensor, "case n"]:
    """Levels (case, n) of the lattice point k nearest to `start` with gradient.(k - start) >= need and low <= k <= high.

    In L-infinity exact. In L1 and L2 a knapsack whose prices rise with each further level of an element: exact but for the
    last few levels, of which those around the price that fills the gap are tried in all combinations (a core, as
    in Balas and Zemel 1980). Where no such point exists, the farthest along the gradient's signs.

    Parameters
    ----------
    need
        In response units.
    low, high
        Bounds of the levels.
    """
    sack = _Knapsack.of(lattice, start, gradient, low, high, norm)
    need = need - sack.before
    cheap, dear = sack.prices()
    fewer, more = sack.units(cheap), sack.units(dear)
    for _ in range(BISECTIONS):
        middle = 0.5 * (cheap + dear) if norm == INF else (cheap * dear).sqrt()
        units = sack.units(middle)
        enough = (units * sack.gain).sum(1) >= need
        cheap, dear = torch.where(enough, cheap, middle), torch.where(enough, middle, dear)
        fewer, more = torch.where(enough[:, None], fewer, units), torch.where(enough[:, None], units, more)
    if norm != INF:  # there an element more or less at the same price changes nothing
        more = sack.exchanged(sack.filled(fewer, more, need), need, dear)
    return sack.base + torch.where((need > 0)[:, None], sack.sign * more, torch.zeros_like(more))


@dataclass(frozen=True, eq=False)
class _Knapsack:
    """Levels to be bought, element by element along the gradient; `offset` is where the first one starts, from the start."""

    base: Tensor  # (case, n): levels of the nearest point
    sign: Tensor  # (case, n): way of the gradient
    offset: Tensor  # (case, n): from the start to the base along that way, in levels, above -1/2 where there is room
    room: Tensor  # (case, n): levels on sale
    step: Tensor  # (n,)
    gain: Tensor  # (case, n): of response, per level
    before: Tensor  # (case,): response gained at the base
    least: Tensor  # (case,): largest change of an element at the base
    norm: float

    @classmethod
    def of(cls, lattice: Lattice, start: Tensor, gradient: Tensor, low: Tensor, high: Tensor, norm: float) -> _Knapsack:
        place = lattice.place(start)
        place = torch.where((place - place.round()).abs() < 1e-3, place.round(), place)
        base = torch.minimum(torch.maximum(place.round(), low), high)
        gain = gradient.abs() * lattice.step
        useful = gain > NEGLIGIBLE * gain.amax(1, keepdim=True)
        sign = torch.where(useful, gradient.sign(), torch.zeros_like(gradient))
        room = torch.where(sign > 0, high - base, torch.where(sign < 0, base - low, torch.zeros_like(base)))
        before = (gradient * lattice.step * (base - place)).sum(1)
        least = ((base - place).abs() * lattice.step).amax(1)
        return cls(base, sign, sign * (base - place), room, lattice.step, gain, before, least, norm)

    def units(self, price: Tensor) -> Tensor:
        """Levels bought (case, n) where each unit of response may cost up to `price` (case,); in L-infinity, the length."""
        on_sale = self.room > 0
        step = torch.where(on_sale, self.step, torch.ones_like(self.room))
        if self.norm == INF:
            bought = (price[:, None] / step - self.offset).floor()
        elif self.norm == 2.0:
            bought = (0.5 * (price[:, None] * self.gain / step.square() + 1) - self.offset).floor()
        else:
            affordable = price[:, None] * self.gain / step
            first = (self.offset < 0) & (affordable >= 1 + 2 * self.offset)  # it crosses the start, and so costs less
            bought = torch.where(affordable >= 1, self.room, first.to(self.room.dtype))
        return torch.minimum(bought.clamp_min(0), self.room)

    def prices(self) -> tuple[Tensor, Tensor]:
        """A price (case,) at which (next to) nothing is bought, and one at which everything is."""
        if self.norm == INF:
            return self.least, torch.maximum(self.least, ((self.offset + self.room) * self.step).amax(1)) * 1.001
        dearest = self.price(self.room) / torch.where(self.room > 0, self.gain, torch.ones_like(self.gain))
        dear = torch.where(self.room > 0, dearest, torch.zeros_like(dearest)).amax(1) * 1.001
        return dear * CHEAP, dear

    def price(self, unit: Tensor) -> Tensor:
        """What the `unit`-th level (case, n) of each element costs: change of |d|^2 in L2, of |d| in L1."""
        after = self.offset + unit
        if self.norm == 2.0:
            return self.step.square() * (2 * after - 1)
        return self.step * (after.abs() - (after - 1).abs())

    def filled(self, fewer: Tensor, more: Tensor, need: Tensor) -> Tensor:
        """As many of the levels that `more` has beyond `fewer`, all of one price, as fill the gap."""
        extra = more - fewer
        each = extra * self.gain
        left = need[:, None] - (fewer * self.gain).sum(1, keepdim=True) - (each.cumsum(1) - each)
        wanted = (left / torch.where(extra > 0, self.gain, torch.ones_like(self.gain))).ceil().clamp_min(0)
        return fewer + torch.minimum(wanted, extra)

    def exchanged(self, units: Tensor, need: Tensor, price: Tensor) -> Tensor:
        """The cheapest of all combinations of the `CORE` levels, bought or not, whose price is nearest to `price`."""
        n = units.shape[1]
        costs, gains, ranks = [], [], []
        for ahead in range(1, 1 + max(1, CHOICE // (2 * n))):
            for way, unit in ((1, units + ahead), (-1, units + 1 - ahead)):
                valid = (unit >= 1) & (unit <= self.room)
                costs.append(torch.where(valid, way * self.price(unit), torch.full_like(unit, torch.inf)))
                gains.append(torch.where(valid, way * self.gain, torch.zeros_like(unit)))
                ranks.append(torch.full_like(unit, ahead))
        cost, gain, rank = (torch.cat(parts, 1) for parts in (costs, gains, ranks))
        # far from the price, an exchange loses more than the last level can cost
        loss = rank * ((cost - price[:, None] * gain).abs() + VARIETY * cost.abs())
        core = loss.sort(dim=1, stable=True).indices[:, :CORE]  # among equals the first, in any batch
        cost, gain = cost.gather(1, core), gain.gather(1, core)
        cost = cost.nan_to_num(posinf=float(torch.finfo(cost.dtype).max) / (2 * CORE))
        bits = torch.arange(2 ** core.shape[1], device=core.device)[:, None] >> torch.arange(
            core.shape[1], device=core.device
        )
        chosen = (bits % 2).to(cost.dtype)
        left = (units * self.gain).sum(1) - need
        enough = gain @ chosen.T + left[:, None] >= 0
        enough[:, 0] = True  # where nothing fills the gap, nothing is exchanged
        best = torch.where(enough, cost @ chosen.T, torch.full_like(left, torch.inf)[:, None]).argmin(1)
        change = torch.where(gain > 0, chosen[best], -chosen[best])
        return units.scatter_add(1, core % n, change)
