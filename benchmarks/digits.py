"""Digits (and MNIST where its folder is given): our search beside foolbox's DDN, and the predictions, in one run.

    python benchmarks/digits.py [--cases 200] [--mnist FOLDER] [--ablate]

One table per model: success, mean ratio to the per-case best of all attacks in the run, gradients and forward
passes per case, time relative to ours, and the share of our time that is spent inside the network. Then the
predictions of every tier of cost against that best. `--ablate` adds the choices behind two constants.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import foolbox
import torch
from torch import Tensor

import isoresponse.contour
from isoresponse import Box, Classifier, FootPoints, Krylov, Solution, compare, from_foolbox
from isoresponse.models import digits as zoo
from isoresponse.predictors import TIERS


def timed(run: Callable[[], Solution]) -> tuple[Solution, float]:
    """The result and the best of three wall-clock times."""
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - begin)
    return result, best


class Clocked(torch.nn.Module):
    """A network that adds up the time its forward and backward passes take (backward: as much as forward again)."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.seconds = net, 0.0

    def forward(self, x: Tensor) -> Tensor:
        begin = time.perf_counter()
        scores = self.net(x)
        elapsed = time.perf_counter() - begin
        self.seconds += elapsed * (2 if x.requires_grad else 1)
        return scores


def row(name: str, s: Solution, best: Tensor, seconds: float, ours: float) -> None:
    won = s.success
    ratio = (s.distance / best)[won]
    print(
        f"  {name:22s} success {won.double().mean():6.1%}  mean ratio {ratio.mean():.4f}  max {ratio.max():.3f}  "
        f"gradients {s.gradients.double().mean():7.1f} (max {int(s.gradients.max())})  "
        f"forwards {s.forwards.double().mean():7.1f}  time / ours {seconds / ours:6.1f}"
    )


def bench(name: str, data: zoo.Data, cases: int, ablate: bool) -> None:
    net = zoo.trained(name, data)
    shape = tuple(data.test[0].shape[1:])
    clf = Classifier.of(net, shape=shape, box=Box(0, 1), name=name)
    right = torch.nonzero(clf.predict(data.test[0]) == data.test[1]).flatten()
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(0))[:cases]
    x, labels = data.test[0][right[order]], data.test[1][right[order]]
    print(f"\n{data.name}-{name}: accuracy {zoo.accuracy(net, *data.test):.4f}, {len(x)} correct cases")
    ours, seconds = timed(lambda: clf.closest_adversary(x, labels))
    peers = {"isoresponse": (ours, seconds)}
    for steps in (100, 1000):
        attack = from_foolbox(foolbox.attacks.DDNAttack(steps=steps))
        begin = time.perf_counter()
        peers[f"foolbox DDN x {steps}"] = (attack.on_decision(clf, x, labels), time.perf_counter() - begin)
    attack = from_foolbox(foolbox.attacks.L2DeepFoolAttack(steps=50))
    begin = time.perf_counter()
    peers["foolbox DeepFool x 50"] = (attack.on_decision(clf, x, labels), time.perf_counter() - begin)
    best = torch.stack([torch.nan_to_num(s.distance, nan=torch.inf) for s, _ in peers.values()]).amin(0)
    for peer, (solution, spent) in peers.items():
        row(peer, solution, best, spent, seconds)
    clocked = Clocked(net)
    begin = time.perf_counter()
    Classifier.of(clocked, shape=shape, box=Box(0, 1)).closest_adversary(x, labels)
    print(f"  share of our time inside the network: {clocked.seconds / (time.perf_counter() - begin):.0%}")
    for tier, predictor in enumerate(TIERS):
        told = clf.predict_distance(x, labels, predictor=predictor)
        predicted_row(f"tier {tier}, {type(predictor).__name__}", told, best, clf.classes - 1)
    if ablate:
        ablation(clf, x, labels, best)


def predicted_row(name: str, told: isoresponse.Prediction, best: Tensor, rivals: int) -> None:
    c = compare(told.distance, best)
    print(
        f"  {name:22s} Spearman {c.spearman:.4f}  Kendall {c.kendall:.4f}  R2 {c.r2:10.4f}  |log error| "
        f"{c.median_abs_log_error:.4f}  gradients {told.gradients.double().mean():5.1f} per case, "
        f"{told.gradients.double().mean() / rivals:.1f} per case and class"
    )


def ablation(clf: Classifier, x: Tensor, labels: Tensor, best: Tensor) -> None:
    """Krylov steps and foot points of the prediction, and secant memory of the search, whose default is restored."""
    for kind in (Krylov, FootPoints):
        for steps in (1, 2, 4, 8):
            told = clf.predict_distance(x, labels, predictor=kind(steps))
            predicted_row(f"{kind.__name__}({steps})", told, best, clf.classes - 1)
    memory = isoresponse.contour.MEMORY
    for pairs in (1, 3, 6, 12):
        isoresponse.contour.MEMORY = pairs
        found = clf.closest_adversary(x, labels)
        ratio = (found.distance / best).mean()
        print(f"  secant memory {pairs:2d}: mean ratio {ratio:.5f}, gradients {found.gradients.double().mean():.1f}")
    isoresponse.contour.MEMORY = memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--mnist", type=Path, help="folder with the four MNIST files")
    parser.add_argument("--ablate", action="store_true")
    options = parser.parse_args()
    sets = [zoo.digits()] + ([zoo.mnist(options.mnist)] if options.mnist else [])
    for data in sets:
        torch.set_num_threads(1 if data.name == "digits" else 2)
        for name in zoo.NETWORKS:
            bench(name, data, options.cases, options.ablate)
