"""Claim (d): an ensemble of neurons with bent contours needs a larger perturbation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import scipy.optimize
import torch
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.classifier import Classifier
from isoresponse.loop import moved
from isoresponse.neuron import Box, Neuron
from isoresponse.solve import closest_point
from isoresponse.studies.claims.findings import Finding, averaged
from isoresponse.studies.claims.pairs import axes_of, drive, side_by_side, uniform
from isoresponse.studies.claims.subjects import SparseUnits, twin
from isoresponse.studies.experiment import Claim, bootstrap
from isoresponse.studies.figures import new_figure

CURVATURE = (0.5, 2.0)  # times the smallest distance
SLOPE = 0.3  # of contours far from the line: four neurons can still be raised together
SIZES = (1, 2, 3, 4)  # neurons that have to be raised together
DECIDING = 4
SEEN = 0.01  # of the distance: below that it is the search and not the contours
CLASSES, BENT = 8, 1.0  # neurons of a toy network, and the curvature of their contours where they cross the MEI
SURE = 0.9  # response to be reached: that to so much of the MEI
AWAY = 0.3  # length of the inputs' way from the MEI of their class
TOLERANCE = 1e-6  # of a gain
BUDGET = 100  # gradients of a search


@dataclass(frozen=True, eq=False)
class Distances:
    """Smallest perturbation (case,) that does it, with bent contours and with straight ones."""

    bent: Tensor
    straight: Tensor
    group: Tensor

    @property
    def growth(self) -> np.ndarray:
        """log(bent / straight), mean per group."""
        return averaged((self.bent / self.straight).log(), self.group)


def together_raised(parts: Sequence[Neuron], x: Tensor) -> Neuron:
    """The least of the gains that several neurons have made since `x`: at a level once all of them are."""
    given: list[Tensor] = []
    ends = [0]
    for part in parts:
        given += [*part.given, part.value(x)]
        ends.append(len(given))

    def response(z: Tensor, *given: Tensor) -> Tensor:
        gains = []
        for part, (first, last) in zip(parts, pairwise(ends), strict=True):
            *own, before = given[first:last]
            gains.append(part.response(z, *own) - before)
        return torch.stack(gains).amin(0)

    return replace(parts[0], response=response, name="all of them", given=tuple(given))


def raised(
    bent: Sequence[Neuron], straight: Sequence[Neuron], x: Tensor, gain: Tensor, group: Tensor, *, budget: int = BUDGET
) -> Distances:
    """How far to where all of the neurons have gained `gain` (case,), for bent ones and for straight ones."""
    one, other = (closest_point(together_raised(f, x), x, gain, budget=budget).distance for f in (bent, straight))
    return moved(Distances(one, other, group), "cpu")


def of_toys(
    count: int, size: int, *, n: int = 16, generator: Generator, curvature: tuple[float, float] = CURVATURE
) -> Distances:
    """Neurons with random gradients of length 1, which are all to gain 1; their bent twins have the same gap and gradient."""
    x = torch.zeros(count, n, dtype=torch.float64)
    lines = [Neuron(drive, (n,), Box(), "toy", (axes_of(count, n, generator),)) for _ in range(size)]
    bent = [twin(f, x, curvature=uniform(*curvature, count, generator), slope=SLOPE) for f in lines]
    gain = torch.ones(count, dtype=torch.float64)
    if size == 1:
        return raised(bent, lines, x, gain, torch.arange(count))
    return Distances(refined(bent, x, gain), refined(lines, x, gain), torch.arange(count))


def refined(parts: Sequence[Neuron], x: Tensor, gain: Tensor) -> Tensor:
    """Distance (case,) to where all of the neurons have gained `gain`, by sequential quadratic programming (Kraft 1988).

    For gains whose contours are convex and that are smooth one by one: where they meet is a kink, on which it is at home. NaN
    where it finds no feasible point.
    """
    found = []
    for i in range(len(x)):
        one, here = [p.select(torch.tensor([i])) for p in parts], x[i : i + 1]
        before = torch.cat([p.value(here) for p in one])

        def look(z: np.ndarray, one: list[Neuron] = one, here: Tensor = here) -> tuple[np.ndarray, np.ndarray]:
            both = [p.value_and_grad(here + torch.as_tensor(z)) for p in one]
            return torch.cat([v for v, _ in both]).numpy(), torch.cat([g for _, g in both]).numpy()

        aim, slopes = (before + gain[i]).numpy(), look(np.zeros(x.shape[1]))[1]
        best = scipy.optimize.minimize(
            lambda z: z @ z, np.linalg.pinv(slopes) @ np.full(len(one), float(gain[i])), jac=lambda z: 2 * z, method="SLSQP",
            constraints={
                "type": "ineq", "fun": lambda z, look=look, aim=aim: look(z)[0] - aim, "jac": lambda z, look=look: look(z)[1],
            },
            options={"maxiter": 100},
        )  # fmt: skip
        met = best.success and bool((look(best.x)[0] >= aim - TOLERANCE).all())
        found.append(float(np.linalg.norm(best.x)) if met else math.nan)
    return x.new_tensor(found)


def of_units(units: SparseUnits, *, gain: float = 0.5, budget: int = BUDGET) -> Distances:
    """Two units of sparse coding raised at once, by `gain` mean lengths of a patch, against their straight twins."""
    pair = [units.sparse(), units.second()[0]]
    gains = units.x.new_full((len(units.x),), gain * units.norm)
    return raised(pair, [twin(f, units.x) for f in pair], units.x, gains, units.unit, budget=budget)


def scores(axes: Tensor, curvature: float) -> Callable[[Tensor], Tensor]:
    """Responses (case, unit) of neurons with MEIs `axes` (unit, n) and contours bent round them as in `OutwardBent`."""

    def response(x: Tensor) -> Tensor:
        along = x @ axes.T
        across = x.square().sum(1, keepdim=True) - along.square()
        return along - curvature * across / (1 + torch.sqrt(1 + curvature**2 * across.clamp_min(0)))

    return response


def of_classes(
    networks: int, each: int, *, n: int = 16, generator: Generator, curvature: float = BENT
) -> tuple[Distances, Distances]:
    """Networks of one neuron per class, as the essay has them: the smallest change of the decision, and of the response.

    Neurons have the same MEIs and the same response along them, whichever way contours bend; inputs lie round their class's
    MEI. The first result is how far another neuron is from responding most, the second how far the one that responds second
    is from responding as to `SURE` of its MEI.
    """
    decided: tuple[list[Tensor], list[Tensor]] = ([], [])
    excited: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(networks):
        axes = axes_of(CLASSES, n, generator)
        labels = torch.arange(CLASSES).repeat(-(-each // CLASSES))[:each]
        x = axes[labels] + AWAY * axes_of(each, n, generator)
        nets = [Classifier(scores(axes, c), (n,), CLASSES, Box(), "toy") for c in (curvature, 0.0)]
        sound = torch.stack([net.predict(x) == labels for net in nets]).all(0)
        other = scores(axes, 0.0)(x).scatter(1, labels[:, None], -torch.inf).argmax(1)
        for net, far, sure in zip(nets, decided, excited, strict=True):
            far.append(net.closest_adversary(x, labels, budget=BUDGET).distance.masked_fill(~sound, torch.nan))
            sure.append(
                closest_point(_of_class(net, other), x, SURE, budget=BUDGET).distance.masked_fill(~sound, torch.nan)
            )
    group = torch.arange(networks).repeat_interleave(each)
    first, second = (Distances(torch.cat(b), torch.cat(s), group) for b, s in (decided, excited))
    return first, second


def _of_class(net: Classifier, which: Tensor) -> Neuron:
    """The score of one class per case."""
    return Neuron(lambda x, k: net.logits(x).gather(1, k[:, None])[:, 0], net.shape, net.box, "score", (which,))


def larger(toys: dict[int, Distances], others: dict[str, Distances], *, seed: int = 0) -> Finding:
    """Claim (d) from toys by the size of the ensemble, and others by name."""
    what = "log of the smallest perturbation with bent contours over that with straight ones, mean over ensembles"

    def claim(says: str, d: Distances) -> Claim:
        return Claim(says, what, bootstrap(np.mean, d.growth, seed=seed), SEEN)

    deciding = max((k for k in toys if k <= DECIDING), default=max(toys))
    tests = {
        f"{deciding} toy{'s' * (deciding > 1)} at once": claim(
            f"{deciding} neurons of equal gap and gradient are farther from being raised together where contours are bent",
            toys[deciding],
        ),
        **{name: claim(f"{name}: a larger perturbation is needed where contours are bent", d) for name, d in others.items()},
    }  # fmt: skip
    contrast = {f"{k} toy{'s' * (k > 1)} at once": claim(f"{k} of them", d) for k, d in toys.items() if k != deciding}
    rows = {**{f"{k} toy{'s' * (k > 1)} at once": d for k, d in toys.items()}, **others}
    figure = new_figure(7.6, 0.55 * len(rows) + 1.2)
    ax = figure.subplots()
    for i, (name, d) in enumerate(rows.items()):
        growth = np.exp(d.growth[np.isfinite(d.growth)])
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(growth))
        ax.plot(growth, i + spread, "o", ms=3, color=plot.SKY, mec="none")
        effect = (tests.get(name) or contrast[name]).effect
        ends = np.exp([effect.low, effect.value, effect.high])
        ax.plot([ends[0], ends[2]], [i, i], "-", color=plot.INK, lw=2)
        ax.plot(ends[1], i, "s", color=plot.BLUE, mec=plot.INK, ms=7)
    ax.axvline(1, color=plot.INK, ls="--", lw=1)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xscale("log")
    ax.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    ax.set_xlabel("smallest perturbation, bent over straight contours")
    return Finding(
        "d", "An ensemble of neurons with bent contours constrains the adversary: it takes a larger perturbation.",
        f"The smallest perturbation is larger, by more than {SEEN:.0%}, than for the same neurons with straight contours.",
        tests, figure,
        "How many times as far the adversary has to go where contours are bent: every ensemble, mean and 95 % interval. One "
        "neuron alone is as near as before, at equal gap and gradient; several that have to be raised together are not.",
        contrast=contrast,
        values={
            f"d_{key}": (
                ("d_subject", "d_case"), side_by_side([getattr(d, key) for d in rows.values()]),
                {"units": "input", "long_name": f"smallest perturbation, {key} contours"},
            )
            for key in ("bent", "straight")
        },
        notes=(
            "Toys and units of sparse coding agree with their straight matches in response and gradient at the input, so only "
            "bending is left to explain a difference.",
            "Pairs of LCA units are searched for the same number of gradients as their twins; their distances are upper bounds.",
            "Classes of bent neurons agree in their MEIs and the response along them. If all bend alike, the boundary between "
            "two of them is where both are equally near their MEIs, bent or straight: the decision is as far. To excite the "
            "other neuron as much as its MEI does is farther.",
        ),
    )  # fmt: skip
