"""Measuring with somebody else's attack, so that ours is never its own referee.

An `Attack` is any function `(neuron, x, level) -> Solution`; `closest_point` is one. `from_foolbox` makes
one of a foolbox attack, and runs the same attack on a classifier's decision unchanged. Whatever an
attack returns is checked here, not believed: inside the box, truly across, its distance measured again; a
case it did not solve is NaN with a status. An attack that only asks whether a change of one size suffices is
asked again and again, at the sizes of a bisection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from isoresponse.classifier import Classifier
from isoresponse.crossing import Problem, Solution
from isoresponse.loop import Status, mark, status_tensor
from isoresponse.neuron import Box, Neuron
from isoresponse.norms import NORMS, size

HALVINGS = 8  # of the size of an attack that has a fixed one
Scores = Callable[[Tensor], Tensor]


class Attack(Protocol):
    """Anything that measures how far a response is from a level: returns a `Solution`, one case per input."""

    def __call__(self, neuron: Neuron, x: Tensor, level: float | Tensor) -> Solution:
        """The nearest input found across `level`, one case per input; NaN and a status where none was found."""
        ...


@dataclass(frozen=True, eq=False)
class FoolboxAttack:
    """A foolbox attack as a measuring device; make one with `from_foolbox`, which says what the fields mean."""

    attack: Any
    epsilon: float | None = None
    halvings: int = HALVINGS

    def __call__(
        self, neuron: Neuron, x: Float[Tensor, "case *shape"], level: float | Float[Tensor, " case"]
    ) -> Solution:
        """The smallest change the attack finds that takes the response of `neuron` across `level`.

        The attack sees a classifier with two scores, half the signed gap to the level and its negative.
        Attacks that reorder or subset the batch cannot be used with neurons that differ between cases.
        """
        problem = Problem.of(neuron, x, level)

        def scores_of(cases: Tensor) -> Scores:
            some, sign, levels = neuron.select(cases), problem.sign[cases], problem.level[cases]

            def scores(inputs: Tensor) -> Tensor:
                gap = 0.5 * sign * (levels - some(inputs))
                return torch.stack([gap, -gap], dim=1)

            return scores

        return self._run(scores_of, x, torch.zeros(len(x), dtype=torch.int64, device=x.device), neuron)

    def on_decision(
        self, classifier: Classifier, x: Float[Tensor, "case *shape"], labels: Int[Tensor, " case"]
    ) -> Solution:
        """The smallest change the attack finds that makes the decision differ from `labels`."""
        classifier.require_labelled(x, labels)
        return self._run(lambda _: classifier.logits, x, labels.long(), classifier.decision(labels.long()))

    def _run(self, scores_of: Callable[[Tensor], Scores], x: Tensor, labels: Tensor, response: Neuron) -> Solution:
        shots = _Shots(self.attack, scores_of, x, labels, response.box)
        every = torch.arange(len(x), device=x.device)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            if self.epsilon is None:
                shots.shoot(every, None)
            else:
                self._bisect(shots, every, self.epsilon)
        status = mark(
            status_tensor(Status.DONE, labels),
            (shots.distance.isinf(), Status.UNREACHABLE),
            (shots.already, Status.ALREADY),
        )
        distance = shots.distance.masked_fill(shots.already, 0.0)
        unknown = torch.full_like(distance, float("nan"))
        return Solution(
            shots.point, response.value(shots.point), distance, unknown, status, shots.gradients, shots.forwards
        ).blanked()

    def _bisect(self, shots: _Shots, every: Tensor, largest: float) -> None:
        """Shoot at ever closer sizes, those cases together that have one size in common."""
        low, high = (torch.full((len(every),), end, dtype=torch.float64) for end in (0.0, largest))
        hit = shots.shoot(every, largest).cpu()  # what withstands the largest size is given up
        hit &= ~shots.already.cpu()
        for _ in range(self.halvings):
            middle = 0.5 * (low + high)
            across = torch.zeros_like(hit)
            for epsilon in middle[hit].unique().tolist():
                some = hit & (middle == epsilon)
                across[some] = shots.shoot(every[some.to(every.device)], epsilon).cpu()
            low, high = torch.where(across, low, middle), torch.where(across, middle, high)


class _Shots:
    """The best point of every case over the runs of one attack, each checked, and what they cost."""

    def __init__(self, attack: Any, scores_of: Callable[[Tensor], Scores], x: Tensor, labels: Tensor, box: Box) -> None:
        self.attack, self.scores_of, self.x, self.labels, self.box = attack, scores_of, x, labels, box
        self.foolbox, self.bounds, self.norm = foolbox_module(), _bounds(box, x), _norm(attack)
        self.point = x.detach().clone()
        self.distance = torch.full_like(x.flatten(1)[:, 0], torch.inf)
        self.forwards, self.gradients = torch.zeros_like(labels), torch.zeros_like(labels)
        with torch.no_grad():
            self.already = scores_of(torch.arange(len(x), device=x.device))(x).argmax(1) != labels

    def shoot(self, cases: Tensor, epsilon: float | None) -> Tensor:
        """Run the attack on `cases`; which of them are across (case,)."""
        scores, x, labels = self.scores_of(cases), self.x[cases], self.labels[cases]
        counted = _Counted(scores)
        counted.eval()
        model = self.foolbox.PyTorchModel(counted, bounds=self.bounds, device=x.device)
        _, found, _ = self.attack(model, x, labels, epsilons=epsilon)
        point = found.detach()
        with torch.no_grad():
            changed = scores(point).argmax(1) != labels
        across = changed & self.box.contains(point, atol=1e-5) & torch.isfinite(point).flatten(1).all(1)
        distance = size((point - x).flatten(1), self.norm).masked_fill(~across, torch.inf)
        best = (distance < self.distance[cases]) & ~self.already[cases]
        self.point[cases[best]], self.distance[cases[best]] = point[best], distance[best]
        self.forwards[cases] += round(counted.forwards / len(cases))
        self.gradients[cases] += round(counted.gradients / len(cases))
        return across


def _norm(attack: Any) -> float:
    """The norm in which the attack's changes are measured: its own where it has one that we know, else L2."""
    try:
        own = float(attack.distance.p)
    except (AttributeError, ValueError):  # foolbox raises the latter where a distance can be chosen and was not
        return 2.0
    return own if own in NORMS else 2.0


def from_foolbox(attack: Any, *, epsilon: float | None = None, halvings: int = HALVINGS) -> FoolboxAttack:
    """A foolbox attack as an `Attack` on neurons and on a classifier's decision.

    Distances are measured in the attack's own norm if that is L1, L2 or L-infinity, otherwise in L2. The random state is
    left untouched.

    Parameters
    ----------
    attack
        An instance such as `foolbox.attacks.DDNAttack(steps=1000)`.
    epsilon
        Only for attacks of a fixed size, which do not look for the smallest change by themselves, such as
        `foolbox.attacks.LinfPGD()`: the largest size, in input units and the attack's norm. Cases that withstand it are
        UNREACHABLE, the others are attacked again.
    halvings
        How often, beside the first run: each halves the bracket of the smallest size that succeeds, so that it is known to
        `epsilon` / 2^halvings. 0 attacks at `epsilon` alone.

    Raises
    ------
    ImportError
        foolbox is not installed, or finds no `git` program (it needs one to be imported).
    TypeError
        Not a foolbox attack.
    ValueError
        An attack of fixed size without `epsilon`, another one with it; an `epsilon` that is not positive and finite, `halvings`
        below 0.

    Examples
    --------
    >>> import foolbox  # doctest: +SKIP
    >>> from_foolbox(foolbox.attacks.DDNAttack(steps=100)).on_decision(clf, x, labels)  # doctest: +SKIP
    >>> from_foolbox(foolbox.attacks.LinfPGD(), epsilon=0.3).on_decision(clf, x, labels)  # doctest: +SKIP
    """
    foolbox = foolbox_module()
    base = foolbox.attacks.base
    if not isinstance(attack, base.Attack):
        raise TypeError(
            f"expected a foolbox attack instance, got {type(attack).__name__}; e.g. foolbox.attacks.DDNAttack(steps=100)."
        )
    inner = attack
    while isinstance(inner, base.Repeated):
        inner = inner.attack
    name, fixed = type(inner).__name__, isinstance(inner, base.FixedEpsilonAttack)
    if fixed and epsilon is None:
        raise ValueError(
            f"{name} attacks at a fixed size; give the largest one to try, in its own norm, e.g. "
            "from_foolbox(attack, epsilon=1.0)."
        )
    if not fixed and epsilon is not None:
        raise ValueError(f"{name} looks for the smallest change by itself; leave epsilon out, got {epsilon}.")
    if epsilon is not None and not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}.")
    if halvings < 0:
        raise ValueError(f"halvings must be 0 or more, got {halvings}.")
    return FoolboxAttack(attack, epsilon, halvings)


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
