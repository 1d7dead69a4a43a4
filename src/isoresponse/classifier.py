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

from isoresponse.crossing import Problem, Solution
from isoresponse.hooks import as_shape, forward_of, probe
from isoresponse.loop import Status, join, put, status_tensor
from isoresponse.neuron import Box, Neuron, flatten, gradient_of, require_inputs
from isoresponse.norms import require_norm
from isoresponse.prediction import Boundaries, Prediction, Predictor
from isoresponse.predictors import as_predictor
from isoresponse.rivals import CANDIDATES, Ranked, nearest_of_all, rank
from isoresponse.solve import require_search

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

    def decision(self, labels: Int[Tensor, " case"], targets: Int[Tensor, " case"] | None = None) -> Neuron:
        """Score of the label minus the largest other score: negative exactly where the decision differs.

        With `targets`, the largest other score minus that of the target: negative exactly where the target is decided.
        """

        def left(x: Tensor, label: Tensor) -> Tensor:
            scores = self.logits(x)
            own = scores.gather(1, label[:, None])
            return own[:, 0] - scores.scatter(1, label[:, None], -torch.inf).amax(1)

        if targets is None:
            return Neuron(left, self.shape, self.box, f"{self.name} decision", (labels,))
        return Neuron(lambda x, target: -left(x, target), self.shape, self.box, f"{self.name} target", (targets,))

    def require_labelled(self, x: Tensor, labels: Tensor, what: str = "labels") -> None:
        """Raise ValueError (TypeError for a wrong kind) unless `x` and `labels` are a valid labelled batch."""
        require_inputs(x, self.shape, self.box)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"{what} must be an integer tensor, got {got}; use torch.as_tensor({what}).long().")
        if labels.shape != x.shape[:1]:
            raise ValueError(f"{what} must have shape ({len(x)},), one per input, got {tuple(labels.shape)}.")
        if not bool(((labels >= 0) & (labels < self.classes)).all()):
            raise ValueError(
                f"{what} must lie in 0..{self.classes - 1} for this model of {self.classes} classes, got values "
                f"from {int(labels.min())} to {int(labels.max())}."
            )

    def closest_adversary(
        self,
        x: Float[Tensor, "case *shape"],
        labels: Int[Tensor, " case"],
        *,
        norm: float = 2.0,
        targets: Int[Tensor, " case"] | None = None,
        budget: int = 100,
        starts: int = 1,
        generator: torch.Generator | None = None,
        batch_size: int = 256,
        on_cases: OnCases | None = None,
    ) -> Solution:
        """The smallest change found, inside the box, that makes the decision differ from `labels`.

        One gradient per candidate rival ranks them by first-order distance; the nearest few are approached, the best
        of those for longest (`rivals.nearest_of_all`). A success is an upper bound on the true distance; a failure
        certifies nothing.

        Parameters
        ----------
        labels
            The classes to be left. A case already decided otherwise gets status ALREADY and distance 0.
        norm
            In which the change is to be small: 2 (Euclidean), 1 or infinity.
        targets
            The classes to be reached, where any other than the label will not do.
        budget
            Gradients per case at most: 10 for a glance, 44 for a hundred propagations, 500 for the last per cent.
        starts
            Above 1, further places at the far end of random directions are approached beside the rivals.
        generator
            For the directions of further starts; needed where `starts` is above 1.
        batch_size
            Cases searched together; changes memory, not results.
        on_cases
            Called after each batch with the number of cases done, e.g. `tqdm(...).update`.

        Raises
        ------
        ValueError, TypeError
            Invalid inputs, labels or targets, an unknown norm, `budget` or `starts` below 1, starts without a generator.
        """
        self.require_labelled(x, labels)
        require_norm(norm)
        require_search(budget, 0.0, starts, generator, 3)
        if targets is not None:
            self.require_labelled(x, targets, "targets")
            if bool((targets == labels).any()):
                raise ValueError("targets must differ from labels, got the label itself as target in some cases.")
        settings = _Settings(float(norm), budget, starts, generator)
        aims = labels if targets is None else targets

        def closest(some: Tensor, theirs: Tensor) -> Solution:
            mine, wanted = theirs.unbind(1)
            return self._closest(some, mine, None if targets is None else wanted, settings)

        return _batched(closest, x.detach(), torch.stack([labels, aims], 1).long(), batch_size, on_cases)

    def predict_distance(
        self,
        x: Float[Tensor, "case *shape"],
        labels: Int[Tensor, " case"],
        *,
        predictor: Predictor | int = 4,
        norm: float = 2.0,
        batch_size: int = 256,
        on_cases: OnCases | None = None,
    ) -> Prediction:
        """Predicted size of the smallest change, inside the box, that makes the decision differ from `labels`.

        Told from geometry, without a search, for the nearest of the boundaries with the nine best rivals. A case that is
        decided otherwise already has distance 0. See `susceptibility.predict_distance` for what can be asked.

        Raises
        ------
        ValueError, TypeError
            Invalid inputs or labels, an unknown norm or tier, something that cannot be asked.
        """
        self.require_labelled(x, labels)
        require_norm(norm)
        asked = as_predictor(predictor)

        def predicted(some: Tensor, theirs: Tensor) -> Prediction:
            ask = self._boundaries(some, theirs, norm)
            told = ask.put_to(asked, ask.below > 0)
            return replace(told, displacement=told.displacement.reshape(some.shape), forwards=told.forwards + 1)

        return _batched(predicted, x.detach(), labels.long(), batch_size, on_cases)

    def _boundaries(self, x: Tensor, labels: Tensor, norm: float) -> Boundaries:
        """The boundaries between the class of each case and its rivals; one forward pass."""
        start = x.flatten(1)
        with torch.no_grad():
            scores = self.logits(x)
        own = scores.gather(1, labels[:, None])
        others = scores.scatter(1, labels[:, None], -torch.inf)
        best, rivals = others.topk(min(self.classes - 1, CANDIDATES), dim=1)
        owner = torch.arange(len(x), device=x.device).repeat_interleave(rivals.shape[1])
        gaps, rival = (best - own).flatten(), rivals.flatten()

        def problem(neuron: Neuron, at: Tensor) -> Problem:
            zero = torch.zeros_like(at[:, 0])
            return Problem(flatten(neuron, at), at, zero, zero - 1, float(norm))

        each = problem(self.margin(labels[owner], rival), start[owner])
        below = gaps[:: rivals.shape[1]]
        return Boundaries(problem(self.decision(labels), start), each, owner, rival, below, gaps)

    def _closest(self, x: Tensor, labels: Tensor, targets: Tensor | None, settings: _Settings) -> Solution:
        """Solutions of the cases still decided as labelled; the others are there already, for one forward pass."""
        none, nothing = torch.zeros_like(labels), torch.zeros_like(x.flatten(1)[:, 0])
        there = status_tensor(Status.ALREADY, labels)
        decision = self.decision(labels, targets)
        solution = Solution(x, decision.value(x), nothing, nothing, there, none, none + 2)
        to_go = torch.nonzero(self._undecided(x, labels, targets)).flatten()
        if len(to_go) == 0:
            return solution
        wanted = None if targets is None else targets[to_go]
        ranked = self._rank(
            x[to_go], labels[to_go], min(CANDIDATES, max(1, settings.budget // 4)), settings.norm, wanted
        )
        start, slack = x[to_go].flatten(1), ranked.slack[:, 0]
        problem = Problem(
            flatten(decision.select(to_go), start), start, -slack, -torch.ones_like(slack), settings.norm
        )  # fmt: skip
        found = nearest_of_all(problem, ranked, settings.budget, settings.starts - 1, settings.generator)
        point = found.point.reshape(len(to_go), *x.shape[1:])
        return put(solution, to_go, replace(found, point=point, forwards=found.forwards + 3))

    def _undecided(self, x: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        told = self.predict(x)
        return told == labels if targets is None else told != targets

    def _rank(self, x: Tensor, labels: Tensor, most: int, norm: float = 2.0, targets: Tensor | None = None) -> Ranked:
        """First-order feet and distances of the candidate rivals: one forward pass, one gradient per rival.

        With targets there is one candidate, whose margin is the target's score below the largest other one.
        """
        count = min(self.classes - 1, most)
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            scores = self.logits(point)
            if targets is None:
                own = scores.gather(1, labels[:, None])
                rivals = scores.detach().scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices
                gaps = own - scores.gather(1, rivals)
            else:
                own, rivals = scores.scatter(1, targets[:, None], -torch.inf).amax(1, keepdim=True), targets[:, None]
                gaps = own - scores.gather(1, rivals)
            gradients = [
                gradient_of(gaps[:, k], point, keep=k + 1 < gaps.shape[1]).detach().flatten(1)
                for k in range(gaps.shape[1])
            ]
        lower, upper = ((bound - x).flatten(1) for bound in self.box.bounds(x))
        # across by more than the rounding of the two scores, so that an answer holds in a batch of another size too
        compared = torch.maximum(scores.gather(1, rivals).abs(), own.abs()).detach()
        slack = (32 * torch.finfo(x.dtype).eps * compared).clamp_min(torch.finfo(x.dtype).tiny)
        return rank(gaps.detach(), gradients, rivals, slack, lower, upper, norm)


@dataclass(frozen=True)
class _Settings:
    norm: float
    budget: int
    starts: int
    generator: torch.Generator | None


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
