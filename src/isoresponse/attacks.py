"""Measuring with somebody else's attack, so that ours is never its own referee.

An `Attack` is any function `(neuron, x, level) -> Solution`; `closest_point` is one. `from_foolbox` makes
one of a foolbox attack, and runs the same attack on a classifier's decision unchanged. Whatever an
attack returns is checked here, not believed: inside the box, truly across, its distance measured again; a
case it did not solve is NaN with a status.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from isoresponse.classifier import Classifier
from isoresponse.crossing import Problem, Solution
from isoresponse.loop import Status, mark, status_tensor
from isoresponse.neuron import Box, Neuron


class Attack(Protocol):
    """Anything that measures how far a response is from a level: returns a `Solution`, one case per input."""

    def __call__(self, neuron: Neuron, x: Tensor, level: float | Tensor) -> Solution:
        """The nearest input found across `level`, one case per input; NaN and a status where none was found."""
        ...


@dataclass(frozen=True, eq=False)
class FoolboxAttack:
    """A foolbox attack as a measuring device; make one with `from_foolbox`."""

    attack: Any

    def __call__(
        self, neuron: Neuron, x: Float[Tensor, "case *shape"], level: float | Float[Tensor, " case"]
    ) -> Solution:
        """The smallest change the attack finds that takes the response of `neuron` across `level`.

        The attack sees a classifier with two scores, half the signed gap to the level and its negative.
        Attacks that reorder or subset the batch cannot be used with neurons that differ between cases.
        """
        problem = Problem.of(neuron, x, level)
        sign, levels = problem.sign, problem.level

        def scores(inputs: Tensor) -> Tensor:
            gap = 0.5 * sign * (levels - neuron(inputs))
            return torch.stack([gap, -gap], dim=1)

        return self._run(scores, x, torch.zeros(len(x), dtype=torch.int64, device=x.device), neuron.box, neuron)

    def on_decision(
        self, classifier: Classifier, x: Float[Tensor, "case *shape"], labels: Int[Tensor, " case"]
    ) -> Solution:
        """The smallest change the attack finds that makes the decision differ from `labels`."""
        classifier.require_labelled(x, labels)
        return self._run(classifier.logits, x, labels.long(), classifier.box, classifier.decision(labels.long()))

    def _run(self, scores: Any, x: Tensor, labels: Tensor, box: Box, response: Neuron) -> Solution:
        foolbox = foolbox_module()
        counted = _Counted(scores)
        counted.eval()
        model = foolbox.PyTorchModel(counted, bounds=_bounds(box, x), device=x.device)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            _, found, _ = self.attack(model, x, labels, epsilons=None)
        point = found.detach()
        with torch.no_grad():
            changed = scores(point).argmax(1) != labels
            already = scores(x).argmax(1) != labels
        valid = changed & box.contains(point, atol=1e-5) & torch.isfinite(point).flatten(1).all(1)
        status = mark(status_tensor(Status.DONE, labels), (~valid, Status.UNREACHABLE), (already, Status.ALREADY))
        distance = (point - x).flatten(1).norm(dim=1).masked_fill(already, 0.0)
        unknown = torch.full_like(distance, float("nan"))
        passes = torch.ones_like(labels)
        forwards, gradients = (round(n / len(x)) for n in (counted.forwards, counted.gradients))
        return Solution(
            point, response.value(point), distance, unknown, status, gradients * passes, forwards * passes
        ).blanked()


def from_foolbox(attack: Any) -> FoolboxAttack:
    """A foolbox minimum-norm attack as an `Attack` on neurons and on a classifier's decision.

    Parameters
    ----------
    attack
        An instance such as `foolbox.attacks.DDNAttack(steps=1000)`. The random state is left untouched.

    Raises
    ------
    ImportError
        foolbox is not installed, or finds no `git` program (it needs one to be imported).
    TypeError
        Not a foolbox attack.

    Examples
    --------
    >>> import foolbox  # doctest: +SKIP
    >>> from_foolbox(foolbox.attacks.DDNAttack(steps=100)).on_decision(clf, x, labels)  # doctest: +SKIP
    """
    foolbox = foolbox_module()
    if not isinstance(attack, foolbox.attacks.base.Attack):
        raise TypeError(
            f"expected a foolbox attack instance, got {type(attack).__name__}; e.g. foolbox.attacks.DDNAttack(steps=100)."
        )
    return FoolboxAttack(attack)


class _Counted(nn.Module):
    """Scores that count how many cases went forward and backward through them."""

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores, self.forwards, self.gradients = scores, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._count_gradient)
        return self.scores(x)

    def _count_gradient(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


def foolbox_module() -> Any:
    """foolbox, imported only where it is used: an optional extra that takes a second to load."""
    try:
        import foolbox
    except ImportError as error:
        raise ImportError(
            f"foolbox could not be imported ({error}); install it with pip install 'isoresponse[attacks]', "
            "and see that a `git` program is on the PATH, which foolbox needs."
        ) from error
    return foolbox


def _bounds(box: Box, x: Tensor) -> tuple[float, float]:
    lower, upper = box.bounds(x)
    low, high = float(lower.min()), float(upper.max())
    if not (torch.isfinite(torch.tensor([low, high])).all() and bool((lower == low).all() and (upper == high).all())):
        raise ValueError(
            "foolbox attacks need one finite range for all input elements, got an unbounded or per-element Box; "
            "give e.g. Box(0, 1)."
        )
    return low, high
