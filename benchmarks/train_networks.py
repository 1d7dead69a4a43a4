"""Classifiers of MNIST and grey CIFAR-10, trained, with their accuracies: one command.

    python benchmarks/train_networks.py --data FOLDER [--only NAME ...] [--quick] [--threads 2] [--out FILE.json]

FOLDER holds `mnist/` (the four idx files) and `cifar10/`. Per network: test accuracy, accuracy under 20 steps of projected
gradient ascent in L-infinity at the radius in the table (1,000 images), and seconds. `*-lca` networks read out the sparse
code of the whole image: the dictionary is learnt first, then all images are coded once, and only the read-out is trained.
`--quick` learns and codes less; its accuracies are lower. Weights are cached as those of the zoo are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from isoresponse.models import data as loaders
from isoresponse.models import digits
from isoresponse.models.data import Data
from isoresponse.models.dictionary import learn_dictionary
from isoresponse.models.networks import behind_lca, cnn, mlp, train_head
from isoresponse.models.robustness import Adversarial, robust_accuracy
from isoresponse.models.training import cached, fit, natural

VERSION = 1  # raised whenever a recipe changes, so that old caches are not used
RADIUS = {"mnist": 0.1, "cifar": 4 / 255}


@dataclass(frozen=True)
class Recipe:
    """`build` makes the network, from a dictionary if `code` says how to learn one; `adversarial` is a radius or 0."""

    build: Callable[..., nn.Sequential]
    code: dict[str, Any] = field(default_factory=dict)
    adversarial: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


def shifted(most: int, mirrored: bool, images: Tensor, generator: Generator) -> Tensor:
    """The whole batch moved by up to `most` pixels, zeros following; every second image mirrored if asked."""
    if mirrored:
        images = torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, images.flip(3), images)
    row, column = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    padded = nn.functional.pad(images, (most,) * 4)
    return padded[:, :, row : row + height, column : column + width]


MNIST, CIFAR = (1, 28, 28), (1, 32, 32)
STROKES = {"units": 768, "sparsity": 0.3, "steps": 400}  # a digit has a norm of about 9
TEXTURES = {"units": 1568, "sparsity": 0.3, "steps": 300}  # an image, less its mean, has a norm of about 7
JITTER = {"augment": partial(shifted, 2, False)}
FLIP = {"augment": partial(shifted, 3, True)}
RECIPES = {
    "mnist-mlp": Recipe(partial(mlp, MNIST, (768,)), settings={"epochs": 10, "rate": 1e-3}),
    "mnist-cnn": Recipe(partial(cnn, MNIST), settings={"epochs": 8, **JITTER}),
    "mnist-cnn-adversarial": Recipe(partial(cnn, MNIST), adversarial=0.1, settings={"epochs": 5}),
    "mnist-lca": Recipe(behind_lca, code=STROKES, settings={"epochs": 20}),
    "mnist-lca-mlp": Recipe(
        partial(behind_lca, hidden=(256,)), code=STROKES, settings={"epochs": 12, "rate": 1e-3}
    ),
    "cifar-mlp": Recipe(partial(mlp, CIFAR, (768,)), settings={"epochs": 10, "rate": 1e-3, **FLIP}),
    "cifar-cnn": Recipe(partial(cnn, CIFAR, (32, 64, 64)), settings={"epochs": 12, **FLIP}),
    "cifar-lca": Recipe(behind_lca, code=TEXTURES, settings={"epochs": 10, "rate": 1e-3}),
}  # fmt: skip


@once
def load(family: str, folder: Path) -> Data:
    """The data of a network's family, "mnist" or "cifar"."""
    return loaders.mnist(folder / "mnist") if family == "mnist" else loaders.cifar10(folder / "cifar10", grey=True)


@once
def dictionary(family: str, folder: Path, units: int, sparsity: float, steps: int) -> Tensor:
    begin = time.perf_counter()

    def tell(done: int, of: int, objective: float) -> None:
        if done % 50 == 0:
            say(f"{family} dictionary: step {done} of {of}, objective {objective:.3f}", begin)

    return learn_dictionary(load(family, folder).train[0], units, sparsity=sparsity, steps=steps, on_step=tell)


def say(what: str, begin: float) -> None:
    print(f"{what}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


def trained(name: str, folder: Path, quick: bool) -> tuple[nn.Sequential, Data, float]:
    """Network, data and seconds; none where the cache had it."""
    recipe, family, begin = RECIPES[name], name.split("-")[0], time.perf_counter()
    data = load(family, folder)
    code = recipe.code | ({"steps": 100} if quick and recipe.code else {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # the dictionary's place is kept by any one of its shape until it is learnt or read from the cache
        net = (
            recipe.build(torch.eye(data.train[0][0].numel(), code["units"]) + 1e-3, sparsity=code["sparsity"])
            if code
            else recipe.build()
        )

    def train() -> None:
        settings = {
            "generator": Generator().manual_seed(0),
            "on_epoch": lambda done, of: say(f"{name}: epoch {done} of {of}", begin),
            **recipe.settings,
        }
        images, labels = data.train
        if code:
            net[0] = type(net[0])(dictionary(family, folder, **code), sparsity=code["sparsity"])
            most = 10_000 if quick else len(images)
            train_head(net, images[:most], labels[:most], **settings)
        else:
            loss = (
                Adversarial(recipe.adversarial, 3, generator=Generator().manual_seed(1), ramp=0.3)
                if recipe.adversarial
                else natural
            )
            fit(net, images, labels, loss, **settings)

    key = f"networks{VERSION}-{name}{'-quick' if quick and code else ''}"
    found = cached(net, key, data, train)
    return net, data, 0.0 if found else time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and cifar10/")
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer steps for dictionaries, 10,000 images coded")
    parser.add_argument("--cases", type=int, default=1000, help="test images that are attacked; 0: none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file for the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'network':24s} {'accuracy':>8s} {'radius':>7s} {'PGD-20':>8s} {'seconds':>8s}")
    for name in options.only:
        net, data, seconds = trained(name, options.data, options.quick)
        images, labels = data.test
        row = {"network": name, "accuracy": digits.accuracy(net, images, labels), "seconds": seconds or None}
        text = f"{name:24s} {row['accuracy']:8.4f}"
        if options.cases:
            attacked = images[: options.cases], labels[: options.cases]
            row["radius"] = RADIUS[name.split("-")[0]]
            row["robust"] = robust_accuracy(
                net, *attacked, row["radius"], steps=20, generator=Generator().manual_seed(2)
            )
            text += f" {row['radius']:7.4f} {row['robust']:8.4f}"
        else:
            text += f" {'':7s} {'':8s}"
        print(text + (f" {seconds:8.0f}" if seconds else f" {'cached':>8s}"), flush=True)
        rows.append(row)
    if options.out:
        options.out.write_text(json.dumps({"quick": options.quick, "networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
