"""What every search for a contour is made of: the question, one ray, one answer.

`Problem` is "reach this level from here, inside the box, with the smallest change in this norm" on flat
inputs. `norms.nearest_in_plane` answers it exactly where the contour is a plane, `cross_ray` along one ray,
with forward passes only. A `Solution` is the answer, one point per case, with its quality, its cost and,
where there is none, the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.loop import Status, failed
from isoresponse.neuron import Neuron, flatten
from isoresponse.norms import require_norm

EVALUATIONS = 80  # of one ray search at most; five to eight are usual


@dataclass(frozen=True, eq=False)
class Solution:
    """One point per case, how far it is from the start, how good it is, and what it cost.

    A failed case holds NaN in `point`, `value`, `distance` and `optimality`, and says why in `status`.
    `forwards` counts every forward pass, those inside gradients included. `optimality` is, in L2, the distance to the
    nearest point of the tangent plane inside the box, over the distance: the sine of the angle between perturbation and
    (projected) normal. In L1 and L-infinity, where that point is not unique, it is by how much it is nearer, over the distance.
    """

    point: Tensor = axes("case", "*shape", units="input", about="the point found")
    value: Tensor = axes("case", units="response", about="response at the point")
    distance: Tensor = axes("case", units="input", about="distance from the start, in the norm asked for")
    optimality: Tensor = axes("case", about="how far from closest, relative to the distance: 0 at a closest point")
    status: Tensor = axes("case", about="how the case ended")
    gradients: Tensor = axes("case", about="gradients spent")
    forwards: Tensor = axes("case", about="forward passes spent")

    @property
    def propagations(self) -> Tensor:
        """Forward and backward passes together (case,), as attacks are compared (Cina et al. 2025)."""
        return self.forwards + self.gradients

    @property
    def success(self) -> Tensor:
        """Which cases (case,) have an answer."""
        return ~failed(self.status)

    def blanked(self) -> Solution:
        """The same with NaN for every number of a failed case, and for an optimality that was never measured."""
        bad, nan = failed(self.status), float("nan")
        return replace(
            self,
            point=self.point.masked_fill(bad.reshape(-1, *[1] * (self.point.ndim - 1)), nan),
            value=self.value.masked_fill(bad, nan),
            distance=self.distance.masked_fill(bad, nan),
            optimality=self.optimality.masked_fill(bad | torch.isinf(self.optimality), nan),
        )

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        found = int(self.success.sum())
        median = float(self.distance[self.success].median()) if found else float("nan")
        cost = float(self.gradients.double().mean())
        return f"Solution({found} of {len(self)} cases, median distance {median:.4g}, {cost:.1f} gradients per case)"

    def raise_if_failed(self) -> Solution:
        """Itself, or ValueError naming the first failed cases and why they failed."""
        bad = torch.nonzero(~self.success).flatten().tolist()
        if bad:
            reasons = "; ".join(f"case {i}: {Status(int(self.status[i])).sentence}" for i in bad[:5])
            raise ValueError(f"{len(bad)} of {len(self)} cases failed ({reasons}); look at .status.")
        return self


@dataclass(frozen=True, eq=False)
class Problem:
    """Flat view of "reach `level` from `start`": `excess` is positive exactly where a point is across.

    `neuron` and `start` (case, n) are flat, `level` and `sign` (case,): sign +1 to rise above the level, -1 to fall
    below it. `norm` (1, 2 or infinity) is the one in which the change is to be small.
    """

    neuron: Neuron
    start: Tensor
    level: Tensor
    sign: Tensor
    norm: float = 2.0

    @classmethod
    def of(cls, neuron: Neuron, x: Tensor, level: object, norm: float = 2.0) -> Problem:
        """The problem on flattened inputs, after the checks of a public call."""
        neuron.require_inputs(x)
        require_norm(norm)
        x = x.detach()
        start, levels = x.flatten(1), as_levels(level, len(x), x)
        flat = flatten(neuron, start)
        here = flat.value(start)
        if here.dtype != x.dtype:
            raise ValueError(
                f"{neuron.name} answers in {here.dtype} to inputs in {x.dtype}; keep the dtype of the input."
            )
        sign = torch.where(levels >= here, torch.ones_like(here), -torch.ones_like(here))
        return cls(flat, start, levels, sign, float(norm))

    def select(self, cases: Tensor) -> Problem:
        """The problem of some of the cases."""
        return replace(
            self,
            neuron=self.neuron.select(cases),
            start=self.start[cases],
            level=self.level[cases],
            sign=self.sign[cases],
        )

    def rising(self) -> Neuron:
        """The excess as a neuron: below zero at the start, whichever side of the level that is."""
        inner = self.neuron

        def response(x: Tensor, sign: Tensor, level: Tensor, *given: Tensor) -> Tensor:
            return sign * (inner.response(x, *given) - level)

        return Neuron(response, inner.shape, inner.box, inner.name, (self.sign, self.level, *inner.given))

    def excess(self, x: Tensor) -> Tensor:
        """Signed response beyond the level (case,), positive across; one forward pass."""
        return self.sign * (self.neuron.value(x) - self.level)

    def excess_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same with its gradient (case, n); one gradient."""
        value, gradient = self.neuron.value_and_grad(x)
        return self.sign * (value - self.level), self.sign[:, None] * gradient

    def clip(self, x: Tensor) -> Tensor:
        """The nearest point inside the box."""
        return self.neuron.box.clip(x)

    def room(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How far each element (case, n) can move down and up from `x`: bounds of a displacement."""
        lower, upper = self.neuron.box.bounds(x)
        return lower - x, upper - x


def rounding(like: Tensor) -> Tensor:
    """The smallest relative width that a bracket can reach in the dtype of `like`, in its shape."""
    return torch.full_like(like, 8 * torch.finfo(like.dtype).eps)


def cross_ray(
    problem: Problem, below: Tensor, candidate: Tensor, width: Tensor, *, expansions: int = 12
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the ray from the start through `candidate`, bent along the box, first is known to be across.

    Returns the far side of a bracket of relative `width` (case, n), whether one was found (case,), and
    the forward passes spent (case,). Expands beyond the candidate if needed, then an Illinois search, which
    falls back to bisection where it has not halved the bracket in three steps or the far side is not finite.

    Parameters
    ----------
    below
        Excess (case,) at the start, not positive.
    width
        Relative width (case,) of the bracket at which to stop.
    expansions
        How many times to look beyond a candidate that is not across.
    """
    direction = candidate - problem.start

    def at(t: Tensor, cases: Tensor) -> Tensor:
        part = problem.select(cases)
        return part.excess(part.clip(part.start + t[cases, None] * direction[cases]))

    low, high = torch.zeros_like(below), torch.ones_like(below)
    f_low, f_high = below, problem.excess(problem.clip(candidate))
    spent = torch.ones_like(below, dtype=torch.int64)
    side, turns, last_bracket = torch.zeros_like(below), torch.zeros_like(below), torch.full_like(below, torch.inf)
    down, up = problem.room(problem.start)
    reach = torch.maximum(down.abs(), up.abs()) / direction.abs()
    farthest = torch.nan_to_num(reach.masked_fill(direction == 0, 0.0), posinf=1e30).amax(1).clamp(1.0, 1e6)
    for count in range(EVALUATIONS):
        expanding = ~(f_high > 0)
        active = torch.where(
            expanding, (high < farthest) & torch.isfinite(f_high) & (count < expansions), high - low > width * high
        )
        cases = torch.nonzero(active).flatten()
        if len(cases) == 0:
            break
        # --- beyond a candidate that is not across: where the secant points, and a little farther
        secant = high - f_high * (high - low) / torch.where(f_high == f_low, torch.ones_like(f_high), f_high - f_low)
        beyond = torch.where(f_high > f_low, high + 1.1 * (secant - high), 4 * high)
        beyond = torch.minimum(torch.maximum(beyond, 1.02 * high), torch.minimum(4 * high, farthest))
        # --- inside a bracket: the secant, kept off both ends so that each step shortens it
        within = torch.minimum(
            torch.maximum(secant, low + 0.02 * (high - low)), high - 0.25 * torch.minimum(width * high, high - low)
        )
        # --- bisect where three steps have not halved it (responses that grow by orders of magnitude defeat secants),
        # geometrically while the ends differ in scale
        bracket, checked = high - low, ~expanding & (turns % 3 == 2)
        slow = (checked & (bracket > 0.5 * last_bracket)) | ~torch.isfinite(f_high)
        last_bracket = torch.where(checked, bracket, last_bracket)
        turns = turns + (~expanding).to(turns.dtype)
        geometric = torch.sqrt(torch.maximum(low, 1e-3 * high) * high)
        middle = torch.where(torch.isfinite(f_high) & (high < 4 * low), 0.5 * (low + high), geometric)
        t = torch.where(expanding, beyond, torch.where(slow, middle, within))
        f = f_high.index_copy(0, cases, at(t, cases))
        spent = spent.index_add(0, cases, torch.ones_like(cases))
        across = f > 0
        shrinking = active & ~expanding
        # --- Illinois (Dowell and Jarratt 1971): an end that stays twice in a row counts half, so both ends move
        f_low = torch.where(shrinking & across & (side > 0), 0.5 * f_low, f_low)
        f_high = torch.where(shrinking & ~across & (side < 0), 0.5 * f_high, f_high)
        side = torch.where(shrinking, torch.where(across, torch.ones_like(side), -torch.ones_like(side)), side)
        to_high = active & (across | expanding)
        to_low = active & ~across & ~expanding
        low = torch.where(active & expanding, high, torch.where(to_low, t, low))
        f_low = torch.where(active & expanding, f_high, torch.where(to_low, f, f_low))
        high, f_high = torch.where(to_high, t, high), torch.where(to_high, f, f_high)
    found = f_high > 0
    point = problem.clip(problem.start + high[:, None] * direction)
    return point, found, spent


def as_levels(level: object, cases: int, like: Tensor) -> Tensor:
    """Levels (case,) in the dtype and on the device of `like`, from a number or one per case.

    NaN in some cases only, as where a model has no answer, is theirs to report. Raises ValueError for infinite levels, or NaN in
    every case, or another shape; TypeError for what is no number.
    """
    try:
        levels = torch.as_tensor(level, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"level must be a number or a tensor of shape ({cases},), got {type(level).__name__}; give the response to reach, "
            "in response units."
        ) from error
    if levels.ndim > 1 or (levels.ndim == 1 and len(levels) not in (1, cases)):
        raise ValueError(f"level must be a number or have shape ({cases},), got {tuple(levels.shape)}.")
    if bool(torch.isinf(levels).any()):
        raise ValueError("level must be finite, got infinity; give a response that can be reached.")
    if bool(torch.isnan(levels).all()):
        raise ValueError("level must be finite, got NaN in every case; does the model answer to these inputs?")
    return levels.expand(cases)


def require_settings(name: str, most: int, rtol: float) -> None:
    """Raise ValueError unless `most` gradients, the setting `name`, and `rtol` make sense."""
    if most < 1:
        raise ValueError(f"{name} must be at least 1 gradient per case, got {most}.")
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol must be at least 0 and below 1, got {rtol}.")
