"""Looking at a decision without believing its gradient: scores, differences of scores, a search without gradients.

`Probe` holds labelled inputs as flat cases and sends every pass through one place. `search` looks for the smallest
perturbation with forward passes only, and is no rival of a search that follows an honest gradient; where it wins, the
gradient was not honest, or the other search not good.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from isoresponse.classifier import Classifier
from isoresponse.neuron import flatten

CHUNK = 256  # cases that go through the model at once
FROM_OTHERS, FROM_NOISE = 6, 6  # places where the search begins
HALVINGS, REFINED = 10, 5  # of a ray: from such a place, and in a round
ROUNDS, PROBES = 8, 24  # of the search, and probes of the normal in each
RADIUS = 0.2  # of the probes, relative to the distance
TREND = 0.7  # share of the earlier rounds in the normal
STRETCHES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)  # of another model's perturbation
ANGLES = tuple(1.2 * 0.6**k for k in range(8))  # turns of the perturbation towards the normal, radians


@dataclass(frozen=True, eq=False)
class Found:
    """A point (case, n), and its distance from the input (case,): infinite where there is none."""

    point: Tensor
    size: Tensor

    def or_smaller(self, other: Found) -> Found:
        """The nearer of both, case by case."""
        nearer = other.size < self.size
        return Found(torch.where(nearer[:, None], other.point, self.point), torch.minimum(self.size, other.size))

    def select(self, cases: Tensor) -> Found:
        """Some of the cases (indices)."""
        return Found(self.point[cases], self.size[cases])


@dataclass(frozen=True, eq=False)
class Probe:
    """Labelled inputs as flat cases (case, n), and a range (n,) in which other inputs live."""

    classifier: Classifier
    x: Tensor
    labels: Tensor
    decided: Tensor  # -1 where the scores are not numbers
    rivals: Tensor  # the strongest other class at the input
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, classifier: Classifier, x: Tensor, labels: Tensor) -> Probe:
        """Of all inputs; where the box has no bounds, thrice the range of the inputs stands in for it."""
        flat = x.flatten(1)
        lower, upper = (b.expand(x.shape[1:]).flatten() for b in classifier.box.bounds(x))
        spread = flat.max() - flat.min()
        lower = torch.where(torch.isfinite(lower), lower, flat.min() - spread)
        upper = torch.where(torch.isfinite(upper), upper, flat.max() + spread)
        if not bool((upper > lower).any()):
            raise ValueError("the box leaves no room, or has no bounds while x holds one value only; give another box.")
        bare = cls(classifier, flat, labels, labels, labels, lower, upper)
        scores = bare.scores(flat)
        rivals = scores.scatter(1, labels[:, None], -torch.inf).argmax(1)
        return replace(bare, decided=scores.argmax(1).masked_fill(scores.isnan().any(1), -1), rivals=rivals)

    def select(self, cases: Tensor) -> Probe:
        """Some of the cases (indices)."""
        return replace(self, **{k: getattr(self, k)[cases] for k in ("x", "labels", "decided", "rivals")})

    @property
    def width(self) -> Tensor:
        """How far inputs range (n,)."""
        return self.upper - self.lower

    def scores(self, points: Tensor) -> Tensor:
        """Scores (case, classes), without a graph."""
        if len(points) == 0:
            return points.new_zeros((0, self.classifier.classes))
        with torch.no_grad():
            parts = [self.classifier.logits(p.reshape(len(p), *self.classifier.shape)) for p in points.split(CHUNK)]
        return torch.cat(parts)

    def each(self, points: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Points (case, n) of each kind with their scores (case, classes); as many kinds at once as fit a chunk."""
        kinds, left = max(1, CHUNK // len(self.x)), iter(points)
        while some := list(itertools.islice(left, kinds)):
            yield from zip(some, self.scores(torch.cat(some)).split(len(self.x)), strict=True)

    def margin(self, scores: Tensor) -> Tensor:
        """Score of the label minus the largest other one (case,): negative where the decision differs."""
        own = self.labels[:, None]
        return scores.gather(1, own)[:, 0] - scores.scatter(1, own, -torch.inf).amax(1)

    def gap(self, scores: Tensor) -> Tensor:
        """Score of the label minus that of the rival (case,): no kink where another class comes second."""
        return (scores.gather(1, self.labels[:, None]) - scores.gather(1, self.rivals[:, None]))[:, 0]

    def gap_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The gap at `points` with its gradient (case, n)."""
        parts = [
            flatten(self.classifier.margin(own, rival), p).value_and_grad(p)
            for p, own, rival in zip(*(t.split(CHUNK) for t in (points, self.labels, self.rivals)), strict=True)
        ]
        return torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts])

    def clip(self, points: Tensor) -> Tensor:
        """The nearest points in the range."""
        return torch.minimum(torch.maximum(points, self.lower), self.upper)

    def normals(self, generator: Generator) -> Tensor:
        """Standard normal numbers (case, n); zero where the box leaves no room."""
        drawn = torch.randn(self.x.shape, generator=generator, dtype=self.x.dtype, device=generator.device)
        return drawn.to(self.x.device) * (self.width > 0)

    def directions(self, generator: Generator) -> Tensor:
        """Random unit vectors (case, n)."""
        return normalize(self.normals(generator), dim=1)

    def uniform(self, generator: Generator) -> Tensor:
        """Inputs (case, n) drawn uniformly from the range."""
        return self.lower + self.width * torch.special.ndtr(self.normals(generator))

    def across(self, points: Iterable[Tensor]) -> Iterator[Found]:
        """The points of each kind, of size infinity where the decision is that of the label."""
        for point, scores in self.each(points):
            yield Found(point, (point - self.x).norm(dim=1).masked_fill(~(self.margin(scores) < 0), torch.inf))

    def answers(self, points: Tensor) -> Found:
        """Other people's answers, NaN where there is none, checked: in the box and across, but for rounding."""
        shaped, room = points.reshape(len(points), *self.classifier.shape), float(self.width.max())
        inside = torch.isfinite(points).all(1) & self.classifier.box.contains(shaped, atol=1e-5 * room)
        points = torch.where(inside[:, None], points, self.x)
        scores = self.scores(points)
        slack = 32 * torch.finfo(points.dtype).eps * scores.abs().amax(1)
        good = inside & (self.margin(scores) < slack) & (points != self.x).any(1)
        return Found(points, (points - self.x).norm(dim=1).masked_fill(~good, torch.inf))

    def rounding(self, at: Tensor, generator: Generator) -> Tensor:
        """By how much the gap (case,) changes over a few units of rounding, and at least that of the scores."""
        eps = torch.finfo(at.dtype).eps
        here, unit = self.scores(at), 4 * eps * (at.abs() + self.width)
        near = [self.clip(at + unit * self.normals(generator).sign()) for _ in range(3)]
        shaken = torch.stack([self.gap(scores) - self.gap(here) for _, scores in self.each(near)])
        return torch.maximum(shaken.abs().amax(0), 4 * eps * here.abs().amax(1))

    def unsteady(self, passes: int) -> Tensor:
        """Where (case,) the scores of one input differ between passes, by more than the order of additions explains."""
        first = self.scores(self.x)
        spread = torch.stack([(self.scores(self.x) - first).abs().amax(1) for _ in range(passes - 1)]).amax(0)
        return ~(spread <= 1e-4 * first.abs().amax(1) + 1e-7)

    def others(self, every: Probe) -> Iterator[Tensor]:
        """Inputs (case, n) of other classes among `every`, the nearest first; the case's own where there are no more."""
        far = torch.cdist(self.x, every.x).masked_fill(self.labels[:, None] == every.decided, torch.inf)
        near = far.topk(min(FROM_OTHERS, len(every.x)), dim=1, largest=False)
        for distance, index in zip(near.values.unbind(1), near.indices.unbind(1), strict=True):
            yield torch.where(torch.isfinite(distance)[:, None], every.x[index], self.x)

    def noise(self, generator: Generator) -> Iterator[Tensor]:
        """Uniform noise and random corners of the range (case, n), in turns."""
        for k in range(FROM_NOISE):
            drawn = self.uniform(generator)
            yield torch.where(2 * drawn > self.lower + self.upper, self.upper, self.lower) if k % 2 else drawn


def halved(probe: Probe, far: Tensor, halvings: int) -> Found:
    """The nearer far side of a bracket of the boundary, on the ray to `far`, which is across."""
    low, high = torch.zeros_like(far[:, 0]), torch.ones_like(far[:, 0])
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        across = probe.margin(probe.scores(probe.x + middle[:, None] * (far - probe.x))) < 0
        low, high = torch.where(across, low, middle), torch.where(across, middle, high)
    point = probe.x + high[:, None] * (far - probe.x)
    return Found(point, (point - probe.x).norm(dim=1))


def transferred(probe: Probe, points: Tensor) -> tuple[Found, Tensor]:
    """Where the ways to another model's adversaries (NaN: none) cross the boundary here, stretched if need be, and where
    there are such ways.
    """
    moved = torch.isfinite(points).all(1) & (points != probe.x).any(1)
    way = torch.where(moved[:, None], points - probe.x, torch.zeros_like(points))
    best = Found(probe.x, torch.full_like(way[:, 0], torch.inf))
    for end in probe.across(probe.clip(probe.x + stretch * way) for stretch in STRETCHES):
        best = best.or_smaller(end)
    cases = torch.nonzero(best.size.isfinite()).flatten()
    return _put(best, cases, halved(probe.select(cases), best.point[cases], HALVINGS)), moved


def search(probe: Probe, every: Probe, known: Found, more: Iterable[Tensor], generator: Generator) -> Found:
    """The smallest perturbation that forward passes find: about 450 per case.

    Begins at inputs of other classes among those of `every`, at noise and corners of the box, at the points of `more`, and at
    perturbations that are known already. The best start is refined. `size` is infinite where nothing is across.
    """
    safe, best = Found(probe.x, torch.full_like(known.size, torch.inf)), known
    for end in probe.across(itertools.chain(probe.others(every), probe.noise(generator), more)):
        safe = safe.or_smaller(end)
        cases = torch.nonzero(end.size < torch.inf).flatten()
        best = best.or_smaller(_put(end, cases, halved(probe.select(cases), end.point[cases], HALVINGS)))
    cases = torch.nonzero(best.size < torch.inf).flatten()
    if len(cases) == 0:
        return best
    part = probe.select(cases)
    found = refined(part, best.select(cases), generator)
    (again,) = part.across([found.point])  # some models are random
    return safe.or_smaller(_put(best, cases, again))


def _put(whole: Found, cases: Tensor, part: Found) -> Found:
    return Found(whole.point.index_copy(0, cases, part.point), whole.size.index_copy(0, cases, part.size))


def refined(probe: Probe, best: Found, generator: Generator) -> Found:
    """A nearer point across, from a point across in every case, with about 40 passes a round.

    Probes round the point tell by their margins where the boundary's normal points, as in HopSkipJump (Chen, Jordan and
    Wainwright 2020), whose probes see decisions only. Then the perturbation turns towards that normal along the circle
    on which a flat boundary has its nearest point (Maho, Furon and Le Merrer 2021), as far as it stays across.
    """
    trend = torch.zeros_like(probe.x)
    for _ in range(ROUNDS):
        # --- where the normal points: the covariance of margins and ways
        radius, center = RADIUS * best.size[:, None], best.point
        total, ways, products = torch.zeros_like(best.size), torch.zeros_like(trend), torch.zeros_like(trend)
        around = (probe.clip(center + radius * probe.directions(generator)) for _ in range(PROBES))
        for point, scores in probe.each(around):
            margin = torch.nan_to_num(probe.margin(scores), posinf=0.0, neginf=0.0)
            total, ways = total + margin, ways + (point - center)
            products = products + margin[:, None] * (point - center)
        trend = TREND * trend - normalize(products - total[:, None] / PROBES * ways, dim=1)
        # --- the turn towards it, and the ray
        away, length = normalize(center - probe.x, dim=1), best.size[:, None]
        aside = normalize(trend - (trend * away).sum(1, keepdim=True) * away, dim=1)
        turned = (math.cos(a) * length * (math.cos(a) * away + math.sin(a) * aside) for a in ANGLES)
        for end in probe.across(probe.clip(probe.x + way) for way in turned):
            best = best.or_smaller(end)
        best = best.or_smaller(halved(probe, best.point, REFINED))
    return best
