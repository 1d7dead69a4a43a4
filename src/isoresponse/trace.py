"""What an attack does on its way, whoever wrote it: where it looks, and whether it follows the gradient.

All attacks that use gradients seek the same thing, the smallest change of the input with the largest
change of the response, and the response's contours tell where that lies: along their normal. `trace_attack`
runs an attack on a neuron and writes down every point at which the attack asks for a gradient, with the
angle between its next step and the contour's normal there. The attack sees the neuron it would see
otherwise, and gives the same answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isoresponse._fields import axes
from isoresponse.crossing import Problem, Solution
from isoresponse.exciting import MostExciting
from isoresponse.neuron import Neuron, gradient_of
from isoresponse.operators import length


@dataclass(frozen=True, eq=False)
class AttackTrace:
    """The way of an attack, one row per case and one column per iterate; NaN behind the last iterate of a case.

    An iterate is a point at which the attack asked for a gradient; asking again without having moved makes no
    new one. The contour's normal points to the side of the level that the attack is to reach, so a step
    along the gradient has cosine 1 whether the response is to rise or to fall, and a step back has cosine -1. "In the
    box": without the elements that end at a bound which the normal would cross, where no attack can follow it. A
    projected gradient step has cosine 1 there. Undefined cosines (a zero step, gradient or perturbation) are NaN.
    """

    response: Tensor = axes("case", "step", units="response", about="response at the iterate")
    distance: Tensor = axes("case", "step", units="input", about="Euclidean distance of the iterate from the start")
    cosine: Tensor = axes("case", "step", about="between the step taken next and the contour's normal")
    cosine_in_box: Tensor = axes("case", "step", about="the same in the box")
    alignment: Tensor = axes("case", "step", about="cosine between the perturbation and the normal at the iterate")
    alignment_in_box: Tensor = axes("case", "step", about="the same in the box")
    mei_alignment: Tensor | None = axes("case", "step", about="cosine between the perturbation and the MEI")
    across: Tensor = axes("case", "step", about="whether the iterate is at the level, up to rounding, or across")
    points: Tensor | None = axes("case", "step", "*shape", units="input", about="the iterates, where kept")
    steps: Tensor = axes("case", about="number of iterates")
    gradients: Tensor = axes("case", about="evaluations with gradient")
    forwards: Tensor = axes("case", about="all evaluations, those with gradient included")
    status: Tensor = axes("case", about="how the case ended, as the attack says")
    solution: Solution = axes(about="what the attack answered")

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        short = float(self.cosine_in_box[~self.across].nanmedian())
        return (
            f"AttackTrace({len(self)} cases, {int(self.steps.min())} to {int(self.steps.max())} steps, median cosine "
            f"with the normal short of the level {short:.3f} in the box)"
        )


def trace_attack(
    attack: Callable[[Neuron, Tensor, float | Tensor], Solution],
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    mei: MostExciting | Tensor | None = None,
    keep_points: bool = False,
) -> AttackTrace:
    """The way of `attack` on `neuron` from `x` to `level`, and its answer, which is the same as without a trace.

    The normal at each iterate costs one backward pass through the graph that the attack has made; no
    evaluation is added to those of the attack. Only the last iterate of each case is held, unless `keep_points`.

    The step taken next leads from an iterate to the next one; from the last one to the attack's answer, if that
    is a new point and not an iterate again (the best one, mostly).

    Parameters
    ----------
    attack
        Any `attacks.Attack`, a function (neuron, x, level) -> Solution: `closest_point`, `from_foolbox(...)`, your own.
        It may leave cases out on the way if it takes the others along with `neuron.select`, and follows one point
        of each case at a time.
    level
        Response to reach, in response units; a number, or one per case.
    mei
        The most exciting input as `most_exciting_input` gives it, seen from the middle of its starts; or any
        direction, of the shape of one input or of all of them.
    keep_points
        Whether to store the iterates: (case, step) inputs.

    Raises
    ------
    TypeError
        A foolbox attack that is not wrapped, an attack that does not answer with a `Solution`.
    ValueError
        Invalid inputs, level or `mei`; an attack that leaves out cases without telling the neuron, follows several
        points of one case, or answers for another number of cases.

    Examples
    --------
    >>> import torch
    >>> from isoresponse.solve import closest_point
    >>> f = Neuron(lambda x: x @ torch.tensor([3.0, 4.0]), shape=(2,))
    >>> trace = trace_attack(closest_point, f, torch.zeros(1, 2), level=10.0)
    >>> trace.distance, trace.steps
    (tensor([[0.0000, 2.0000]]), tensor([2]))
    >>> trace.cosine[:, 0]
    tensor([1.])
    """
    foolbox = sys.modules.get("foolbox")
    if foolbox is not None and isinstance(attack, foolbox.attacks.base.Attack):
        raise TypeError(f"expected a function (neuron, x, level) -> Solution, got {attack}; use from_foolbox(attack).")
    problem = Problem.of(neuron, x, level)
    recorder = _Recorder(neuron, problem, _direction(mei, x), keep_points)
    cases = torch.arange(len(x), device=x.device)
    solution = attack(replace(neuron, response=recorder, given=(*neuron.given, cases)), x, level)
    if not isinstance(solution, Solution):
        raise TypeError(f"an attack must answer with a Solution, got {type(solution).__name__} from {attack!r}.")
    if solution.point.shape != x.shape:
        raise ValueError(
            f"an attack must answer with one point per case, shape {tuple(x.shape)}, got {tuple(solution.point.shape)}."
        )
    return recorder.trace(solution)


class _Recorder:
    """The response of a neuron that writes down, case by case, where it is asked for with a gradient."""

    def __init__(self, neuron: Neuron, problem: Problem, mei: Tensor | None, keep_points: bool) -> None:
        self.neuron, self.problem, self.mei, self.keep_points = neuron, problem, mei, keep_points
        self.last = torch.full_like(problem.start, float("nan"))  # iterate of each case ...
        self.normal = self.last.clone()  # ... and the normal there
        self.steps = torch.zeros(len(self.last), dtype=torch.int64, device=self.last.device)
        self.gradients, self.forwards = self.steps.clone(), self.steps.clone()
        # (cases, place, numbers) of what was seen at an iterate, of the step that led to a place, and the points
        self.looks: list[tuple[Tensor, Tensor, Tensor]] = []
        self.moves: list[tuple[Tensor, Tensor, Tensor]] = []
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x: Tensor, *given: Tensor) -> Tensor:
        *own, cases = given
        if len(cases) != len(x):
            raise ValueError(
                f"the attack asked about {len(x)} points, but the neuron stands for {len(cases)} cases; an attack that leaves "
                "cases out can be traced if it takes the others along with neuron.select(cases)."
            )
        one = torch.ones_like(cases)
        self.forwards.index_add_(0, cases, one)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self.neuron.response(x, *own)
        if len(cases.unique()) != len(cases):
            raise ValueError(
                "the attack follows several points of one case at a time, so its steps are no single way; trace it with one "
                "start per case."
            )
        self.gradients.index_add_(0, cases, one)
        at = x.view_as(x)  # the attack may have hooks on its own tensor, which are not to hear of our gradient
        value = replace(self.neuron, given=tuple(own))(at)
        gradient = gradient_of(value, at, keep=True)
        with torch.no_grad():
            self._look(cases, x.detach().flatten(1), value.detach(), gradient.detach().flatten(1))
        return value

    def _look(self, cases: Tensor, x: Tensor, value: Tensor, gradient: Tensor) -> None:
        moved = (x != self.last[cases]).any(1)  # also where there is no last one: NaN
        cases, x, value, gradient = cases[moved], x[moved], value[moved], gradient[moved]
        self._move(cases, x)
        normal = self.problem.sign[cases, None] * gradient
        start = self.problem.start[cases]
        away = x - start
        numbers = [value, length(away), *self._both_cosines(start, x, normal)]
        if self.mei is not None:
            numbers.append(_cosine(away, self.mei[cases]))
        self.looks.append((cases, self.steps[cases], torch.stack(numbers, 1)))
        if self.keep_points:
            self.kept.append((cases, self.steps[cases], x.clone()))
        self.last[cases], self.normal[cases] = x, normal
        self.steps[cases] += 1

    def _move(self, cases: Tensor, x: Tensor) -> None:
        """Write down the steps that lead to `x`; NaN where there is none before."""
        cosines = torch.stack(self._both_cosines(self.last[cases], x, self.normal[cases]), 1)
        self.moves.append((cases, self.steps[cases], cosines))

    def _both_cosines(self, begin: Tensor, end: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines between the way from `begin` to `end` and `normal`, of all elements and in the box."""
        way = end - begin
        ahead = torch.where(((way * normal).sum(1) < 0)[:, None], -normal, normal)
        lower, upper = self.problem.neuron.box.bounds(end)
        # attacks that keep x and perturbation apart end beside the bound by the rounding of their sum
        rounding = 4 * torch.finfo(end.dtype).eps * torch.maximum(begin.abs(), end.abs())
        held = ((end <= lower + rounding) & (ahead < 0)) | ((end >= upper - rounding) & (ahead > 0))
        return _cosine(way, normal), _cosine(way.masked_fill(held, 0.0), normal.masked_fill(held, 0.0))

    def trace(self, solution: Solution) -> AttackTrace:
        """Everything written down, as arrays (case, step)."""
        count = int(self.steps.max())
        seen = self._table(self.looks, count, 4 + (self.mei is not None))
        response, distance = seen[..., 0], seen[..., 1]
        answer = solution.point.detach().flatten(1)
        old = self._met(response, distance, solution, answer)
        cases = torch.nonzero(~old & torch.isfinite(answer).all(1)).flatten()
        self._move(cases, answer[cases])
        turns = self._table(self.moves, count + 1, 2)[:, 1:]
        points = None
        if self.keep_points:
            shape = solution.point.shape
            points = self._table(self.kept, count, self.last.shape[1]).reshape(shape[0], count, *shape[1:])
        excess = self.problem.sign[:, None] * (response - self.problem.level[:, None])
        rounding = self._close(response)
        return AttackTrace(
            response, distance, turns[..., 0], turns[..., 1], seen[..., 2], seen[..., 3],
            None if self.mei is None else seen[..., 4], excess > -rounding, points,
            self.steps, self.gradients, self.forwards, solution.status, solution,
        )  # fmt: skip

    def _met(self, response: Tensor, distance: Tensor, solution: Solution, answer: Tensor) -> Tensor:
        """Which answers (case,) are iterates already: told by response and distance, because points are not kept."""
        away = length(answer - self.problem.start)[:, None]
        same = (distance - away).abs() <= 64 * torch.finfo(answer.dtype).eps * away
        same &= (response - solution.value.detach()[:, None]).abs() <= self._close(response)
        return same.any(1)

    def _close(self, response: Tensor) -> Tensor:
        """By how much (case, 1) two evaluations of one response may differ, in batches of different size say."""
        size = torch.nan_to_num(torch.cat([response, self.problem.level[:, None]], 1)).abs().amax(1, keepdim=True)
        return 64 * torch.finfo(size.dtype).eps * size

    def _table(self, entries: list[tuple[Tensor, Tensor, Tensor]], count: int, width: int) -> Tensor:
        table = self.last.new_full((len(self.last), count, width), float("nan"))
        for cases, place, numbers in entries:
            table[cases, place] = numbers
        return table


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine (case,) of the angle between rows, NaN where one is zero."""
    unit = a / length(a, keepdim=True), b / length(b, keepdim=True)
    return (unit[0] * unit[1]).sum(1).clamp(-1.0, 1.0)


def _direction(mei: MostExciting | Tensor | None, x: Tensor) -> Tensor | None:
    """The axis towards the MEI (case, n)."""
    if mei is None:
        return None
    axis = mei.point - mei.center if isinstance(mei, MostExciting) else mei
    if axis.shape not in (x.shape, x.shape[1:]):
        raise ValueError(f"mei must have the shape of one input, {tuple(x.shape[1:])}, got {tuple(axis.shape)}.")
    if not bool(torch.isfinite(axis).all()):
        raise ValueError("mei must be finite, got NaN or infinity.")
    return axis.to(x).expand_as(x).flatten(1)
