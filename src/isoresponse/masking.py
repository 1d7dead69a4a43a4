"""Does a defence resist, or does it hide its gradient? Alarms that tell the one from the other.

A search that follows gradients finds nothing where the gradient is zero, wrong, noisy or drowned in rounding, and
such a model looks robust. That shows in what the search does not use: in differences of the scores, in repeated
passes, in searches without gradients, in what a perturbation of unlimited size achieves (Athalye, Carlini and Wagner
2018; Carlini et al. 2019; Pintor et al. 2022). Each alarm is a share of cases with its interval, and is raised
only where the whole interval lies above a limit. That none is raised proves nothing (Popovic et al. 2022): a
defence may hide its gradient better than these probes look.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import normalize

from isoresponse._fields import axes
from isoresponse.classifier import Classifier
from isoresponse.crossing import Solution
from isoresponse.probes import Probe, search, transferred

PASSES = 4  # over the same inputs, to see whether the scores repeat
DIRECTIONS = 8  # random directions of the finite differences
LARGEST = 0.01  # largest step of these, relative to the box
SCALES = (0.1, 0.01, 0.001)  # of the steps that test a derivative, relative to the largest one
JITTER = 0.01  # of the place where they are taken, relative to the box
RESOLVED = 20.0  # times the rounding: a change that can be compared
WRONG = 0.25  # relative error of a gradient that is not the derivative ...
UNEXPLAINED = 0.5  # ... and of one that does not explain a finite change: off by a factor of two
VANISHED = 1e-3  # change over the whole box that a vanished gradient promises, relative to the margin
SMALLER, LARGER = 0.95, 1.01  # ratios of two perturbations below and above which they count as different


@dataclass(frozen=True)
class _Kind:
    """What an alarm counts, the share above which it is raised, and what it then means."""

    measured: str
    limit: float
    meaning: str


_KINDS = {
    "derivative": _Kind(
        "differences of the scores contradict the gradient", 0.1,
        "The gradient is not the derivative: cut off, replaced or turned round.",
    ),
    "finite step": _Kind(
        "at a finite step the gradient is off by a factor of two", 0.1,
        "The gradient says little of changes as large as a perturbation: shattered, a staircase, saturated or cut off.",
    ),
    "vanishing": _Kind(
        "the gradient is zero, negligible or not finite", 0.05,
        "A search that follows gradients has no direction: saturated scores, rounding inside the model, or dead units.",
    ),
    "repeatability": _Kind(
        "the same input gets different scores", 0.0,
        "The model is random and one pass says little: attack the mean of many.",
    ),
    "gradient-free": _Kind(
        "a search without gradients finds a smaller perturbation", 0.05,
        "The white-box perturbations are not the smallest, and robustness measured by them is overstated.",
    ),
    "unbounded": _Kind(
        "nothing is found by the white-box search though another class lies in the box", 0.01,
        "Where any perturbation is allowed every case must fall, so the search fails, not the perturbation.",
    ),
    "transfer": _Kind(
        "the way that misleads the surrogate is the shorter one", 0.05,
        "Another model's gradient misleads this model better than its own.",
    ),
    "budget": _Kind(
        "the longer search finds a larger perturbation", 0.01,
        "More steps must never do worse: the gradient leads the search astray, or the model is random.",
    ),
    "convergence": _Kind(
        "the longer search finds a smaller perturbation", 0.05,
        "The white-box search has not converged; give it a larger budget.",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Alarm:
    """One line of a `MaskingReport`: in how many cases something was seen that an open gradient rules out.

    Raised where the lower end of the share's 95 % Wilson interval is above `limit`. A case that could not be judged counts
    neither way; where none could, the share is NaN and the interval 0 to 1.
    """

    name: str = axes(about="what the alarm is about")
    flagged: Tensor = axes("case", about="where it was seen")
    judged: Tensor = axes("case", about="where it could be seen")

    @property
    def measured(self) -> str:
        """What is counted, in words."""
        return _KINDS[self.name].measured

    @property
    def limit(self) -> float:
        """The share above which the alarm is raised."""
        return _KINDS[self.name].limit

    @property
    def count(self) -> int:
        """Number of cases in which it was seen."""
        return int(self.flagged.sum())

    @property
    def cases(self) -> int:
        """Number of cases in which it could be seen."""
        return int(self.judged.sum())

    @property
    def share(self) -> float:
        """The one divided by the other."""
        return self.count / self.cases if self.cases else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share."""
        if not self.cases:
            return 0.0, 1.0
        found = scipy.stats.binomtest(self.count, self.cases).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    @property
    def raised(self) -> bool:
        """Whether the whole interval lies above the limit."""
        return self.interval[0] > self.limit

    @property
    def sentence(self) -> str:
        """What was seen and, where the alarm is raised, what that means."""
        if not self.cases:
            return "No case could be judged: too little changes, or nothing was found."
        seen = f"In {self.count} of {self.cases} cases {self.measured}."
        return f"{seen} {_KINDS[self.name].meaning}" if self.raised else seen

    def numbers(self) -> dict[str, Any]:
        """The line in plain values, for JSON."""
        return {
            "name": self.name, "raised": self.raised, "share": self.share, "interval95": list(self.interval),
            "limit": self.limit, "count": self.count, "cases": self.cases, "sentence": self.sentence,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class MaskingReport:
    """The alarms of `masking_alarms`, one line each, with the perturbations compared and the cost.

    `white_box` and `smallest` (the smallest found by any search, with or without gradients) are NaN in cases that are not
    decided as labelled, and infinite where nothing was found. `forwards` and `gradients` are passes per case, with those of
    the white-box search where it was run on the way. `report[name]` is one alarm.
    """

    alarms: tuple[Alarm, ...] = axes(about="one per property")
    white_box: Tensor = axes("case", units="input", about="size of the white-box perturbation")
    smallest: Tensor = axes("case", units="input", about="smallest perturbation found by any search")
    forwards: float = axes(about="forward passes per case")
    gradients: float = axes(about="backward passes per case")

    @property
    def raised(self) -> tuple[str, ...]:
        """Names of the alarms that are raised: empty, and so false, where none is."""
        return tuple(a.name for a in self.alarms if a.raised)

    def __getitem__(self, name: str) -> Alarm:
        for alarm in self.alarms:
            if alarm.name == name:
                return alarm
        raise KeyError(f"no alarm {name!r} here; there are {', '.join(a.name for a in self.alarms)}.")

    def __repr__(self) -> str:
        rows = [_HEAD, *(_cells(a) for a in self.alarms)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"MaskingReport({self._summary()})", *lines])

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(row(_cells(a), "td") for a in self.alarms)
        return f"<table><caption>{html.escape(self._summary())}</caption>{row(_HEAD, 'th')}{body}</table>"

    def _summary(self) -> str:
        return (
            f"{len(self.raised)} of {len(self.alarms)} alarms raised, {len(self.smallest)} cases, "
            f"{self.forwards:.1f} forward passes and {self.gradients:.1f} gradients per case"
        )


_HEAD = ("alarm", "raised", "share", "95 % interval", "limit", "what was seen")


def _cells(a: Alarm) -> tuple[str, ...]:
    low, high = a.interval
    share = f"{a.share:.1%}" if a.cases else "–"
    return a.name, "YES" if a.raised else "no", share, f"{low:.1%} to {high:.1%}", f"{a.limit:.0%}", a.sentence


def masking_alarms(
    classifier: Classifier,
    x: Float[Tensor, "case *shape"],
    labels: Int[Tensor, " case"],
    solution: Solution | None = None,
    *,
    generator: Generator,
    surrogate: Classifier | None = None,
    longer: Solution | None = None,
) -> MaskingReport:
    """Alarms that say whether perturbations of `classifier` that were found by following its gradient can be believed.

    Cases decided as labelled are judged, the others left out. The first four alarms look at the model, the others at the
    white-box `solution`:

    - *derivative*: at the smallest step that rounding lets be seen, differences of the margin, along the gradient or along
      random directions, contradict the gradient by more than a quarter.
    - *finite step*: half-way to where the gradient promises the boundary (no farther than a hundredth of the box), the
      margin changes by less than half or more than twice what the gradient says.
    - *vanishing*: the gradient is not finite, or promises less than a thousandth of the margin over the whole box.
    - *repeatability*: four passes give different scores.
    - *gradient-free*: a search without gradients finds a perturbation that is smaller by 5 %, or any where the white-box
      search found none. It begins at inputs of other classes, at noise, and at the white-box answer itself.
    - *unbounded*: the white-box search found nothing though an input of another class is known in the box.
    - *transfer*, with `surrogate`: the way that misleads the surrogate is shorter by 5 % than the white-box one.
    - *budget* and *convergence*, with `longer`: its perturbation is larger by 1 %, smaller by 5 %.

    An alarm is raised where the lower end of its share's 95 % Wilson interval passes its limit: a few cases raise few
    alarms. It means that the numbers are not to be believed, not that somebody cheats: an honest network of few inputs may
    have boundaries that a local search misses. Silence proves nothing.

    Parameters
    ----------
    x, labels
        Inputs of several classes; those of other classes are starts of the search without gradients.
    solution
        The white-box answer, of any attack, in the Euclidean norm; `classifier.closest_adversary(x, labels)` if left out.
    generator
        For directions, noise and probes.
    surrogate
        Another classifier of the same inputs, whose adversaries are tried here.
    longer
        The answer of the same attack with a larger budget, or from more starts.

    Raises
    ------
    ValueError, TypeError
        Invalid inputs or labels; no case decided as labelled; an answer for other inputs or in another norm; a surrogate
        for other inputs or classes; a box without room, or without bounds round inputs of one value only.

    Examples
    --------
    >>> import torch
    >>> seed = torch.Generator().manual_seed(0)
    >>> x = torch.rand(40, 2, generator=seed)
    >>> hidden = Classifier(lambda x: (64 * x).round() - 32, shape=(2,), classes=2)  # rounding has no gradient
    >>> masking_alarms(hidden, x, hidden.predict(x), generator=seed).raised
    ('derivative', 'finite step', 'vanishing', 'gradient-free')
    """
    classifier.require_labelled(x, labels)
    x, labels = x.detach(), labels.long()
    _require_euclidean(solution, x, "solution")
    _require_euclidean(longer, x, "longer")
    if surrogate is not None and (surrogate.shape, surrogate.classes) != (classifier.shape, classifier.classes):
        raise ValueError(f"surrogate must take the inputs and have the classes of {classifier!r}, got {surrogate!r}.")
    meter = _Meter(classifier.logits)
    classifier = replace(classifier, logits=meter)
    every = Probe.of(classifier, x, labels)
    right = every.decided == labels
    if not bool(right.any()):
        raise ValueError(f"none of the {len(x)} inputs is classified as labelled; are labels and input range right?")
    cases = torch.nonzero(right).flatten()
    probe = every.select(cases)
    if solution is None:
        solution = classifier.closest_adversary(x, labels)
    white = probe.answers(solution.point.flatten(1)[cases])
    gradient, vanished = _first_gradient(probe)
    corner = torch.where(gradient > 0, probe.lower, torch.where(gradient < 0, probe.upper, probe.x))
    free = search(probe, every, white, [corner], generator)
    wrong, unexplained = _differences(probe, generator)
    known, exists, all_of_them = white.size.isfinite(), free.size.isfinite(), torch.ones_like(vanished)
    seen = {
        "derivative": wrong,
        "finite step": unexplained,
        "vanishing": (vanished, all_of_them),
        "repeatability": (probe.unsteady(PASSES), all_of_them),
        "gradient-free": (free.size < SMALLER * white.size, exists | known),
        "unbounded": (~known, exists | known),
    }
    smallest = torch.minimum(free.size, white.size)
    if surrogate is not None:
        theirs = surrogate.closest_adversary(x, labels).point.flatten(1)[cases]
        carried, moved = transferred(probe, theirs)
        smallest = torch.minimum(smallest, carried.size)
        seen["transfer"] = carried.size < SMALLER * white.size, moved
    if longer is not None:
        more = probe.answers(longer.point.flatten(1)[cases])
        either = known | more.size.isfinite()
        smallest = torch.minimum(smallest, more.size)
        seen["budget"] = more.size > LARGER * white.size, either
        seen["convergence"] = more.size < SMALLER * white.size, either
    nothing, nan = torch.zeros_like(right), torch.full_like(every.x[:, 0], math.nan)
    alarms = tuple(
        Alarm(name, nothing.index_copy(0, cases, flagged & judged), nothing.index_copy(0, cases, judged))
        for name, (flagged, judged) in seen.items()
    )
    told, least = nan.index_copy(0, cases, white.size), nan.index_copy(0, cases, smallest)
    return MaskingReport(alarms, told, least, meter.forwards / len(x), meter.gradients / len(x))


def _require_euclidean(answer: Solution | None, x: Tensor, name: str) -> None:
    if answer is None:
        return
    if answer.point.shape != x.shape:
        raise ValueError(f"{name} must hold one point per input, {tuple(x.shape)}, got {tuple(answer.point.shape)}.")
    length = (answer.point - x).flatten(1).norm(dim=1)
    if bool(((length - answer.distance).abs() > 1e-3 * length + 1e-6).any()):
        raise ValueError(f"{name} must be of the Euclidean norm, but its distances are not those of its points.")


class _Meter:
    """Scores that count how many cases went forward and backward through them."""

    def __init__(self, scores: Callable[[Tensor], Tensor]) -> None:
        self.scores, self.forwards, self.gradients = scores, 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._count)
        return self.scores(x)

    def _count(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


def _first_gradient(probe: Probe) -> tuple[Tensor, Tensor]:
    """The gradient at the input (case, n), and where it promises nothing (case,)."""
    value, gradient = probe.gap_and_gradient(probe.x)
    promised = (gradient.abs() * probe.width).sum(1)
    return gradient, ~(torch.isfinite(promised) & (promised >= VANISHED * value.abs()))


def _differences(probe: Probe, generator: Generator) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Where the gradient is not the derivative, and where it does not explain a finite step; each with what could be judged.

    Taken beside the input, in a generic place: honest models too have ties at the input itself (pooled backgrounds).
    """
    at = probe.x + JITTER * (probe.uniform(generator) - probe.x)
    value, gradient = probe.gap_and_gradient(at)
    gradient = torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)
    slope, noise = gradient.norm(dim=1), probe.rounding(at, generator)
    farthest = (LARGEST * probe.width.norm()).expand_as(slope)
    reach = torch.where(slope > 0, torch.minimum(farthest, 0.5 * value.abs() / slope), farthest)
    # along a random direction the response changes less by the root of the dimension, so the step may be longer by as much
    reach_aside = torch.minimum(farthest, math.sqrt(at.shape[1]) * reach)
    steepest = torch.where((slope > 0)[:, None], normalize(gradient, dim=1), probe.directions(generator))

    def disagreement(directions: list[Tensor], length: Tensor) -> tuple[Tensor, Tensor]:
        """Root mean square error of the changes told, relative to the larger of told and seen; where it is resolved."""
        steps = [length[:, None] * direction for direction in directions]
        ends = [probe.clip(at + sign * step) for step in steps for sign in (1.0, -1.0)]
        gaps = torch.stack([probe.gap(scores) for _, scores in probe.each(ends)])
        changes = gaps[::2] - gaps[1::2]
        # told of the steps as they came out in floating point
        promises = torch.stack([(gradient * (a - b)).sum(1) for a, b in zip(ends[::2], ends[1::2], strict=True)])
        size = torch.maximum(changes.square().mean(0), promises.square().mean(0)).sqrt()
        off = (changes - promises).square().mean(0).sqrt() / size.clamp_min(torch.finfo(size.dtype).tiny)
        return off, size > RESOLVED * noise

    off, resolved = disagreement([steepest], reach)
    error, judged = torch.zeros_like(slope), torch.zeros_like(resolved)
    for scale in SCALES:  # small enough not to bend; of those that are resolved the smallest counts
        along, seen_along = disagreement([steepest], scale * reach)
        random = [probe.directions(generator) for _ in range(DIRECTIONS)]
        across, seen_across = disagreement(random, scale * reach_aside)
        both = seen_along & seen_across
        error, judged = torch.where(both, torch.maximum(along, across), error), judged | both
    return (error > WRONG, judged), (off > UNEXPLAINED, resolved)
