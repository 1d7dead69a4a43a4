"""A classifier's decision as neurons: one margin per wrong class, and the nearest boundary over all.

The decision at an input changes where some margin (score of the label minus score of a rival) falls
below zero. Each margin is a `Neuron` like any other; what is particular here is only the choice among
many boundaries. Rivals are ranked by their first-order distance (the contour spacing), the few that can
still win get a short trial, and the best of those are searched to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from isoresponse.crossing import Problem, Solution, cross_ray, nearest_in_plane, rounding
from isoresponse.hooks import as_shape, forward_of, probe
from isoresponse.loop import Status, failed, join, mark, put, status_tensor, take
from isoresponse.neuron import Box, Neuron, flatten, gradient_of, require_inputs
from isoresponse.solve import require_settings, search
from isoresponse.susceptibility import Prediction, first_order_status, predict_distance

CANDIDATES = 10  # rivals, by score, whose first-order distance is computed
FOLLOWED = 4  # of those, by first-order distance, the ones that get a trial
FINALISTS = 2  # of those, by distance after the trial, the ones searched to the end
TRIAL_STEPS = 2
HOPELESS = 2.0  # a rival this many times farther than the nearest, to first order, is not followed
UNLIKELY = 1.5  # ... and not predicted to second order

Result = TypeVar("Result")
OnCases = Callable[[int], object]  # told how many cases have just been finished


@dataclass(frozen=True, eq=False)
class Classifier:
    """Class scores of an input, and the geometry of the decision made from them.

    Parameters
    ----------
    logits
        Differentiable callable from inputs (case, *shape) to scores (case, classes); the largest wins.
    shape, box, name
        As for `Neuron`.
    classes
        Number of classes, at least two.
    """

    logits: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    classes: int
    box: Box = Box()
    name: str = "classifier"

    def __post_init__(self) -> None:
        as_shape(self.shape)
        self.box.require_fits(self.shape)

    def __repr__(self) -> str:
        return f"Classifier({self.name!r}, shape={self.shape}, classes={self.classes}, box={self.box})"

    @classmethod
    def of(
        cls, module: nn.Module, *, shape: tuple[int, ...], box: Box | None = None, name: str | None = None
    ) -> Classifier:
        """The classifier whose scores are the outputs of `module` (evaluated in eval mode, left as it was).

        Raises
        ------
        ValueError
            A module that does not run on inputs of `shape`, or does not give (case, classes) scores.

        Examples
        --------
        >>> import torch
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> clf = Classifier.of(net, shape=(2,))
        >>> clf.closest_adversary(torch.tensor([[3.0, 1.0]]), torch.tensor([0])).distance
        tensor([1.4142])
        """
        shape = as_shape(shape)
        forward = forward_of(module, None)
        output = probe(forward, module, shape, "the model")
        if output.ndim != 2 or output.shape[1] < 2:
            raise ValueError(
                "a classifier must give scores of shape (case, classes) with at least 2 classes, got "
                f"{tuple(output.shape)} for 2 inputs; for a single response use Neuron.of."
            )
        return cls(forward, shape, output.shape[1], box or Box(), name or type(module).__name__)

    def predict(self, x: Float[Tensor, "case *shape"]) -> Int[Tensor, " case"]:
        """The class with the largest score (case,)."""
        with torch.no_grad():
            return self.logits(x).argmax(1)

    def margin(self, labels: Int[Tensor, " case"], rivals: Int[Tensor, " case"]) -> Neuron:
        """Score of the label minus score of the rival, for each case its own pair; falls through 0 at the boundary."""

        def response(x: Tensor, label: Tensor, rival: Tensor) -> Tensor:
            scores = self.logits(x)
            return scores.gather(1, label[:, None])[:, 0] - scores.gather(1, rival[:, None])[:, 0]

        return Neuron(response, self.shape, self.box, f"{self.name} margin", (labels, rivals))

    def decision(self, labels: Int[Tensor, " case"]) -> Neuron:
        """Score of the label minus the largest other score: negative exactly where the decision differs."""

        def response(x: Tensor, label: Tensor) -> Tensor:
            scores = self.logits(x)
            own = scores.gather(1, label[:, None])
            return own[:, 0] - scores.scatter(1, label[:, None], -torch.inf).amax(1)

        return Neuron(response, self.shape, self.box, f"{self.name} decision", (labels,))

    def require_labelled(self, x: Tensor, labels: Tensor) -> None:
        """Raise ValueError (TypeError for a wrong kind) unless `x` and `labels` are a valid labelled batch."""
        require_inputs(x, self.shape, self.box)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be an integer tensor, got {got}; use torch.as_tensor(labels).long().")
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels must have shape ({len(x)},), one per input, got {tuple(labels.shape)}.")
        if not bool(((labels >= 0) & (labels < self.classes)).all()):
            raise ValueError(
                f"labels must lie in 0..{self.classes - 1} for this model of {self.classes} classes, got values "
                f"from {int(labels.min())} to {int(labels.max())}."
            )

    def closest_adversary(
        self,
        x: Float[Tensor, "case *shape"],
        labels: Int[Tensor, " case"],
        *,
        max_steps: int = 16,
        batch_size: int = 256,
        on_cases: OnCases | None = None,
    ) -> Solution:
        """The smallest Euclidean change found, inside the box, that makes the decision differ from `labels`.

        A local search from each likely rival, not a global one. One gradient per candidate rival ranks them,
        four get a trial of two steps, two are searched to the end: at most 9 + 8 + 2 * `max_steps` gradients per
        case with ten classes. A success is an upper bound on the true distance; a failure certifies nothing.

        Parameters
        ----------
        labels
            The classes to be left. A case already decided otherwise gets status ALREADY and distance 0.
        max_steps
            Steps of the final search per rival.
        batch_size
            Cases searched together; changes memory, not results.
        on_cases
            Called after each batch with the number of cases done, e.g. `tqdm(...).update`.

        Raises
        ------
        ValueError, TypeError
            Invalid inputs or labels.
        """
        self.require_labelled(x, labels)
        require_settings(max_steps, 0.0)
        return _batched(lambda a, b: self._closest(a, b, max_steps), x.detach(), labels.long(), batch_size, on_cases)

    def predict_distance(
        self,
        x: Float[Tensor, "case *shape"],
        labels: Int[Tensor, " case"],
        *,
        order: int = 2,
        batch_size: int = 256,
        on_cases: OnCases | None = None,
    ) -> Prediction:
        """Predicted distance to the nearest decision boundary, from geometry at the input, without a search.

        The smallest prediction over the rival classes; see `susceptibility.predict_distance` for the
        orders. Order 2 is computed for the rivals that order 1 leaves in the running.

        Raises
        ------
        ValueError, TypeError
            Invalid inputs or labels, an unknown order.
        """
        self.require_labelled(x, labels)
        if order not in (0, 1, 2):
            raise ValueError(f"order must be 0 (margin), 1 (spacing) or 2 (curvature), got {order}.")
        return _batched(lambda a, b: self._predict(a, b, order), x.detach(), labels.long(), batch_size, on_cases)

    def _predict(self, x: Tensor, labels: Tensor, order: int) -> Prediction:
        if order == 0:
            gap = predict_distance(self.decision(labels), x, 0.0, order=0)
            below = self.predict(x) == labels
            distance = torch.where(below, gap.distance, torch.zeros_like(gap.distance))
            status = mark(gap.status, (~below, Status.ALREADY))
            return replace(gap, distance=distance, status=status, forwards=gap.forwards + 1)
        ranked = self._rank(x, labels)
        cases, rivals = ranked.pairs(ranked.in_running(ranked.distance.shape[1], UNLIKELY))
        spent = torch.full_like(labels, ranked.distance.shape[1])
        if order == 1:
            nearest = ranked.distance.argmin(1)
            first = ranked.feet[torch.arange(len(x), device=x.device), nearest]
            status = ranked.status.gather(1, nearest[:, None])[:, 0]
            zero = torch.zeros_like(first[:, 0])
            told = Prediction.of(
                1, first.reshape(x.shape), status,
                scale=zero, error=zero * torch.nan, gradients=spent, forwards=torch.ones_like(spent),
            )  # fmt: skip
        else:
            each = predict_distance(self.margin(labels[cases], rivals), x[cases], 0.0, order=2)
            best = _first_smallest(each.distance, cases, len(x))
            gradients = spent.index_add(0, cases, each.gradients)
            forwards = torch.ones_like(spent).index_add(0, cases, each.forwards)
            told = replace(take(each, best), gradients=gradients, forwards=forwards)
        already = self.predict(x) != labels
        shaped = already.reshape(-1, *[1] * (x.ndim - 1))
        return replace(
            told,
            distance=told.distance.masked_fill(already, 0.0),
            displacement=told.displacement.masked_fill(shaped, 0.0),
            status=mark(told.status, (already, Status.ALREADY)),
            forwards=told.forwards + 1,
        )

    def _closest(self, x: Tensor, labels: Tensor, max_steps: int) -> Solution:
        """Solutions of the cases still decided as labelled; the others are there already, for one forward pass."""
        none, nothing = torch.zeros_like(labels), torch.zeros_like(x.flatten(1)[:, 0])
        there = status_tensor(Status.ALREADY, labels)
        margin = self.decision(labels).value(x)
        solution = Solution(x, margin, nothing, nothing, there, none, none + 2)
        right = torch.nonzero(self.predict(x) == labels).flatten()
        if len(right) == 0:
            return solution
        found = self._search(x[right], labels[right], max_steps)
        return put(solution, right, replace(found, forwards=found.forwards + 2))

    def _search(self, x: Tensor, labels: Tensor, max_steps: int) -> Solution:
        ranked = self._rank(x, labels)
        gradients = torch.full_like(labels, ranked.distance.shape[1])
        forwards, flat_x = torch.ones_like(labels), x.flatten(1)

        def searched(chosen: Tensor, first: Tensor, steps: int) -> tuple[Solution, Tensor]:
            """Solutions of the chosen (case, place) pairs and their cases; adds up the costs."""
            cases, rivals = ranked.pairs(chosen)
            slack = ranked.slack[chosen]
            start = flat_x[cases]
            problem = Problem(
                flatten(self.margin(labels[cases], rivals), start), start, -slack, -torch.ones_like(slack)
            )
            found = search(problem, problem.clip(first), steps, 1e-4)
            gradients.index_add_(0, cases, found.gradients)
            forwards.index_add_(0, cases, found.forwards)
            return found, cases

        chosen = ranked.in_running(FOLLOWED, HOPELESS)
        tried = ranked.pairs(chosen)[0]
        trial, _ = searched(chosen, flat_x[tried] + ranked.feet[chosen], TRIAL_STEPS)
        after = torch.full_like(ranked.distance, torch.inf)
        after[chosen] = torch.nan_to_num(trial.distance, nan=torch.inf)
        points = torch.zeros_like(ranked.feet)
        points[chosen] = torch.where(torch.isfinite(trial.point), trial.point, flat_x[tried] + ranked.feet[chosen])
        order = after.masked_fill(~chosen, torch.inf).argsort(dim=1, stable=True)
        last = torch.zeros_like(chosen).scatter(1, order[:, :FINALISTS], True) & chosen
        final, finalists = searched(last, points[last], max_steps)
        everything = join([final, trial])
        best = _first_smallest(everything.distance, torch.cat([finalists, tried]), len(x))
        return self._decided(x, labels, ranked.slack[:, 0], take(everything, best), gradients, forwards)

    def _decided(
        self, x: Tensor, labels: Tensor, slack: Tensor, best: Solution, gradients: Tensor, forwards: Tensor
    ) -> Solution:
        """`best` moved to where the *decision* changes along its ray: another class may come first."""
        start = x.flatten(1)
        problem = Problem(flatten(self.decision(labels), start), start, -slack, -torch.ones_like(slack))
        below = problem.excess(problem.start)
        aim = torch.where(failed(best.status)[:, None], problem.start, best.point)
        point, found, spent = cross_ray(problem, below, aim, rounding(below))
        distance = (point - problem.start).norm(dim=1)
        status = mark(best.status, (~found & ~failed(best.status), Status.UNREACHABLE))
        value = problem.neuron.value(point)
        point = point.reshape(x.shape)
        return Solution(point, value, distance, best.optimality, status, gradients, forwards + spent + 2).blanked()

    def _rank(self, x: Tensor, labels: Tensor) -> _Ranked:
        """First-order feet and distances of the candidate rivals: one forward pass, one gradient per rival."""
        count = min(self.classes - 1, CANDIDATES)
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            scores = self.logits(point)
            own = scores.gather(1, labels[:, None])
            rivals = scores.detach().scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices
            gaps = own - scores.gather(1, rivals)
            lower, upper = ((bound - x).flatten(1) for bound in self.box.bounds(x))
            feet, status = [], []
            for k in range(count):
                gradient = gradient_of(gaps[:, k], point, keep=k + 1 < count).detach().flatten(1)
                gap = gaps[:, k].detach()
                foot, exists = nearest_in_plane(gap, -gradient, lower, upper)
                feet.append(foot)
                status.append(first_order_status(-gap, gradient, exists))
        corners = torch.stack(feet, 1)
        how = torch.stack(status, 1)
        distance = corners.norm(dim=2).masked_fill(failed(how), torch.inf)
        # across by more than the rounding of the two scores, so that an answer holds in a batch of another size too
        compared = torch.maximum(scores.gather(1, rivals).abs(), own.abs()).detach()
        slack = (8 * torch.finfo(x.dtype).eps * compared).clamp_min(torch.finfo(x.dtype).tiny)
        return _Ranked(rivals, corners, distance, how, slack)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Candidate rivals of each case, in places 0, 1, ... by score."""

    rivals: Tensor  # (case, place)
    feet: Tensor  # (case, place, n): first-order displacement, the box's corner where it does not exist
    distance: Tensor  # (case, place): its length, infinite where it does not exist
    status: Tensor  # (case, place)
    slack: Tensor  # (case, place): rounding of the margin, in response units

    def in_running(self, most: int, factor: float) -> Tensor:
        """Mask (case, place) of at most `most` rivals, none more than `factor` times as far as the nearest."""
        order = self.distance.argsort(dim=1, stable=True)[:, :most]
        near = torch.zeros_like(self.distance, dtype=torch.bool).scatter(1, order, True)
        best = self.distance.amin(1, keepdim=True)
        return near & ((self.distance <= factor * best) | torch.isinf(best))

    def pairs(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Case index and rival of every chosen place, in order."""
        return torch.nonzero(chosen)[:, 0], self.rivals[chosen]


def _first_smallest(values: Tensor, cases: Tensor, count: int) -> Tensor:
    """For each of `count` cases the index of its smallest value; failed (NaN) ones come last."""
    clean = torch.nan_to_num(values, nan=torch.inf)
    by_value = clean.argsort(stable=True)
    order = by_value[cases[by_value].argsort(stable=True)]
    _, counts = torch.unique_consecutive(cases[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    return order[starts]


def _batched(
    run: Callable[[Tensor, Tensor], Result], x: Tensor, labels: Tensor, batch_size: int, on_cases: OnCases | None
) -> Result:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 case, got {batch_size}.")
    parts = []
    for some, theirs in zip(x.split(batch_size), labels.split(batch_size), strict=True):
        parts.append(run(some, theirs))
        if on_cases is not None:
            on_cases(len(some))
    return join(parts)
