"""Our search as a foolbox attack, so that whoever uses foolbox calls it unchanged.

The way back from `attacks`: there foolbox measures for us, here we attack for foolbox. The foolbox model is
called as it stands, with its preprocessing and its bounds; what is handed back is the smallest change found,
or the clean input where none was, and foolbox judges the success by itself.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from isoresponse.attacks import foolbox_module
from isoresponse.classifier import Classifier
from isoresponse.neuron import Box
from isoresponse.norms import require_norm


def closest_adversary_attack(*, norm: float = 2, budget: int = 100) -> Any:
    """`Classifier.closest_adversary` as a foolbox attack: an instance of `foolbox.attacks.base.MinimizationAttack`.

    Call it like any of foolbox's own: `attack(model, images, labels, epsilons=...)`, or with the criteria
    `Misclassification` and `TargetedMisclassification`. Images are PyTorch tensors, raw or in eagerpy; the model is any
    foolbox model of PyTorch scores. The search is deterministic and leaves the random state alone.

    Parameters
    ----------
    norm
        In which the change is smallest: 1, 2 or infinity; the attack's `distance`.
    budget
        Gradients per case at most; the search ends by itself where it has converged.

    Raises
    ------
    ImportError
        foolbox is not installed, or finds no `git` program (it needs one to be imported).
    ValueError
        Another norm, a budget below 1. When called: another criterion, inputs that are no PyTorch tensors, `starting_points`.

    Examples
    --------
    >>> import foolbox  # doctest: +SKIP
    >>> model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1))  # doctest: +SKIP
    >>> raw, clipped, success = closest_adversary_attack()(model, x, labels, epsilons=[0.5, 1.0])  # doctest: +SKIP
    """
    require_norm(norm)
    if budget < 1:
        raise ValueError(f"budget must be at least 1 gradient per case, got {budget}.")
    return _attack_class()(float(norm), budget)


@cache
def _attack_class() -> type:
    """The class, made when foolbox is first needed: foolbox is an optional extra."""
    foolbox = foolbox_module()
    base = foolbox.attacks.base

    minimization: Any = base.MinimizationAttack

    class ClosestAdversaryAttack(minimization):
        """The closest adversary, found by the geometry of the decision's contours (isoresponse)."""

        def __init__(self, norm: float, budget: int) -> None:
            self.norm, self.budget = norm, budget

        @property
        def distance(self) -> Any:
            """In which foolbox measures and clips the change."""
            return foolbox.distances.LpDistance(self.norm)

        def run(
            self,
            model: Any,
            inputs: Any,
            criterion: Any,
            *,
            early_stop: float | None = None,
            starting_points: Any = None,
            **kwargs: Any,
        ) -> Any:
            """The closest adversaries found, of the kind of `inputs`; a clean input where none was found.

            `early_stop` is not needed: the search ends by itself. `starting_points` are refused: it starts at the input.
            """
            base.raise_if_kwargs(kwargs)
            if starting_points is not None:
                raise ValueError("this attack starts at the inputs themselves; leave starting_points out.")
            x, restore = base.ep.astensor_(inputs)
            if not isinstance(x.raw, Tensor):
                raise ValueError(
                    f"this attack works on PyTorch tensors, got {type(x.raw).__name__}; use foolbox.PyTorchModel and tensors."
                )
            base.verify_input_bounds(x, model)
            start = x.raw.detach()
            classifier = _classifier(model, start)
            labels, targets = _classes(foolbox, base.get_criterion(criterion), classifier.classes)
            solution = classifier.closest_adversary(
                start, labels, norm=self.norm, targets=targets, budget=self.budget
            )  # fmt: skip
            found = solution.success.reshape(-1, *[1] * (start.ndim - 1))
            return restore(base.ep.astensor(torch.where(found, solution.point, start)))

    return ClosestAdversaryAttack


def _classifier(model: Any, x: Tensor) -> Classifier:
    """The foolbox model as our classifier: preprocessing and bounds are its own."""
    with torch.no_grad():
        scores = model(x)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"the model must give scores of shape (case, classes), got {tuple(scores.shape)}.")
    lower, upper = model.bounds
    return Classifier(model, tuple(x.shape[1:]), scores.shape[1], Box(lower, upper), "foolbox model")


def _classes(foolbox: Any, criterion: Any, classes: int) -> tuple[Tensor, Tensor | None]:
    """Labels to leave, and targets to reach if there are any."""
    if isinstance(criterion, foolbox.criteria.TargetedMisclassification):
        targets = criterion.target_classes.raw.long()
        return (targets + 1) % classes, targets  # whatever the input is decided as now, if not the target
    if isinstance(criterion, foolbox.criteria.Misclassification):
        return criterion.labels.raw.long(), None
    raise ValueError(
        f"expected a foolbox Misclassification or TargetedMisclassification (or labels), got {criterion!r}."
    )
