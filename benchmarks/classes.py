"""What the search for the closest adversary costs as the number of classes grows, and what following few of them loses.

    python benchmarks/classes.py --data FOLDER [--classes 10 100 1000] [--cases 100] [--budget 44]

The classes are cells of natural pictures: patches of 12 x 12 pixels (FOLDER/natural_images/kodak_gray.npz), k of which are
prototypes, and a network (144-256-256-k, ReLU) learns which prototype a patch is nearest to. So the task stays the same
while k grows. Per k: the network's accuracy on new patches; gradients, propagations and milliseconds per case of
`closest_adversary`, which follows the boundaries that can still win; the same when every other class in turn is the
target, of which the smallest is kept; and how much farther the first is (mean ratio, and the share of cases that
are more than 1 % farther, which can also be a case where the many searches were luckier).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from isoresponse import Box, Classifier
from isoresponse.models.data import load_pictures
from isoresponse.models.natural import patches
from isoresponse.models.training import fit

SIDE, TRAINED, HELD_OUT, EPOCHS = 12, 60_000, 2_000, 12


def cells(folder: Path, classes: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Patches in [0, 1] and the prototype each is nearest to, to learn from and held out."""
    pictures = load_pictures(folder / "natural_images" / "kodak_gray.npz")
    count, generator = TRAINED + HELD_OUT + classes, Generator().manual_seed(0)
    drawn = patches(pictures, SIDE, count, centered=False, generator=generator).flatten(1).float()
    prototypes, images = drawn[:classes], drawn[classes:]
    labels = torch.cat([torch.cdist(part, prototypes).argmin(1) for part in images.split(5_000)])
    return (images[:TRAINED], labels[:TRAINED]), (images[TRAINED:], labels[TRAINED:])


def row(folder: Path, classes: int, cases: int, budget: int) -> str:
    """One line of the table."""
    (images, labels), (new, truth) = cells(folder, classes)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(SIDE**2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes)
    )  # fmt: skip
    fit(net, images, labels, epochs=EPOCHS, batch=256, generator=Generator().manual_seed(0))
    net.requires_grad_(False)
    right = net(new).argmax(1) == truth
    x, label = new[right][:cases], truth[right][:cases]
    clf = Classifier.of(net, shape=(SIDE**2,), box=Box(0.0, 1.0))
    began = time.perf_counter()
    found = clf.closest_adversary(x, label, budget=budget)
    seconds = time.perf_counter() - began
    cost, forwards, nearest, spent = 0.0, 0.0, torch.full((len(x),), torch.inf), 0.0
    began = time.perf_counter()
    for step in range(1, classes):
        each = clf.closest_adversary(x, label, targets=(label + step) % classes, budget=budget)
        nearest = nearest.minimum(torch.where(each.success, each.distance, torch.inf))
        cost += float(each.gradients.double().mean())
        forwards += float(each.forwards.double().mean())
    spent = time.perf_counter() - began
    ratio = torch.where(found.success, found.distance, torch.inf) / nearest
    own = found.gradients.double().mean(), found.forwards.double().mean()
    return (
        f"| {classes} | {float(right.double().mean()):.1%} | {own[0]:.1f} / {own[0] + own[1]:.0f} / "
        f"{1e3 * seconds / len(x):.1f} ms | {cost:.0f} / {cost + forwards:.0f} / {1e3 * spent / len(x):.0f} ms | "
        f"{float(ratio.mean()):.4f} | {float((ratio > 1.01).double().mean()):.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--budget", type=int, default=44)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| classes | accuracy | gradients / propagations / time per case | every class in turn | ratio | > 1 % farther |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for classes in options.classes:
        print(row(options.data, classes, options.cases, options.budget), flush=True)


if __name__ == "__main__":
    main()
