"""The networks on which the search for the closest adversary is developed and measured.

    python benchmarks/zoo.py --data FOLDER [--only NAME ...]

trains what is not in the cache yet and prints, per network: accuracy, accuracy under 40 steps of projected gradient
ascent at the radius of its training (L-infinity), certified accuracy at that radius by interval bounds where the network
was trained for them, and seconds to train. FOLDER holds `mnist/` (the four idx files) and `cifar10/` (images after JPEG,
stored as second differences; so accuracies are not comparable with published ones).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from isoresponse.models import digits
from isoresponse.models.digits import Data
from isoresponse.models.lca import LCA
from isoresponse.models.robustness import Adversarial, IntervalBound, certified_accuracy, robust_accuracy
from isoresponse.models.training import Loss, cached, fit, natural

VERSION = 1  # raised whenever a recipe changes, so that old caches are not used
UNITS, SPARSITY = 256, 0.5  # of the sparse code: units that compete, and their threshold (an image has length 9)
CODED = 30_000  # images of which a sparse code is read out: coding them is what takes the time


# ------------------------------------------------------------------------------------------------------------ networks


def mlp(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """784-256-256-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), activation(), nn.Linear(256, 256), activation(), nn.Linear(256, 10)
    )


def small() -> nn.Sequential:
    """The small ReLU network of Wong, Rice & Kolter (2020) for MNIST: two strided convolutions, 100 units, 10."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def colour() -> nn.Sequential:
    """A ReLU network for 3x32x32: three convolutions, two of them strided, and 128 units."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def sparse() -> nn.Sequential:
    """An LCA on the whole image and one hidden layer that reads its code; `learn_dictionary` learns the dictionary."""
    return nn.Sequential(
        LCA(torch.eye(784, UNITS), sparsity=SPARSITY), nn.Linear(UNITS, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def learn_dictionary(front: LCA, images: Tensor, batches: int = 150, batch: int = 100) -> None:
    """Receptive fields under which `images` have sparse codes, written into `front`.

    Batch by batch the codes' second moments are averaged, the past forgotten slowly, and every column is moved towards
    the one that explains them best (Mairal, Bach, Ponce & Sapiro 2010, JMLR 11:19, here half a step for all columns at
    once). It starts from images.
    """
    x, units = images.flatten(1), front.dictionary.shape[1]
    order = torch.randperm(len(x), generator=Generator().manual_seed(0))
    moment, match = torch.zeros(units, units), torch.zeros(len(front.dictionary), units)
    dictionary = x[order[-units:]].T
    for k, index in enumerate(order[: batches * batch].split(batch)):
        front.load_state_dict(LCA(dictionary, sparsity=SPARSITY).state_dict())
        code, past = front(x[index]), k / (k + 4)
        moment, match = past * moment + code.T @ code, past * match + x[index].T @ code
        often = moment.diagonal()
        dictionary = front.dictionary + (match - front.dictionary @ moment) / (2 * often.clamp_min(0.01 * often.mean()))
    front.load_state_dict(LCA(dictionary, sparsity=SPARSITY).state_dict())


def coded(front: LCA, images: Tensor) -> Tensor:
    """Sparse codes (case, units), a few hundred images at a time."""
    with torch.no_grad():
        return torch.cat([front(x) for x in images.split(200)])


# ---------------------------------------------------------------------------------------------------------------- data


@once
def mnist(folder: Path) -> Data:
    return digits.mnist(folder / "mnist")


@once
def cifar10(folder: Path) -> Data:
    """CIFAR-10 after JPEG: 30,000 images to train, 10,000 to test, (case, 3, 32, 32) in [0, 1]."""

    def read(*files: str) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for file in files:
            with np.load(folder / "cifar10" / file) as stored:
                x = np.cumsum(np.cumsum(stored["delta"], 2, dtype=np.uint8), 3, dtype=np.uint8)
                x[:, 0] += x[:, 1]
                x[:, 2] += x[:, 1]
                images.append(torch.from_numpy(x.astype(np.float32) / 255))
                labels.append(torch.from_numpy(stored["label"].astype(np.int64)))
        return torch.cat(images), torch.cat(labels)

    return Data(read(*(f"jpeg_train_{k}.npz" for k in range(3))), read("jpeg_test.npz"), "cifar10")


def flipped_and_shifted(images: Tensor, generator: Generator) -> Tensor:
    """Every second image mirrored, and the whole batch moved by up to three pixels, zeros following."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    row, column = torch.randint(7, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    return nn.functional.pad(images, (3, 3, 3, 3))[:, :, row : row + height, column : column + width]


# ------------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """How one network is built and trained; `loss` is made anew for each training.

    `eps` is the radius (L-infinity) at which it is to be robust.
    """

    build: Callable[[], nn.Sequential]
    loss: Callable[[], Loss] = lambda: natural
    data: Callable[[Path], Data] = mnist
    eps: float = 0.0
    settings: dict[str, Any] = field(default_factory=lambda: {"epochs": 8})


def against(eps: float, steps: int, size: float) -> Loss:
    """Adversarial training; one step alone breaks down here at eps = 0.3 (catastrophic overfitting)."""
    return Adversarial(eps, steps, size, ramp=0.3, generator=Generator().manual_seed(1))


ROBUST = {"epochs": 7, "rate": 2e-3, "hold": 0.4}
BOUNDED = {"epochs": 16, "rate": 3e-3, "batch": 256}
COLOUR = {"rate": 2e-3, "hold": 0.3, "augment": flipped_and_shifted}
RECIPES = {
    "mnist-mlp": Recipe(lambda: mlp(nn.ReLU)),
    "mnist-softplus": Recipe(lambda: mlp(nn.Softplus)),
    "mnist-gelu": Recipe(lambda: digits.cnn(28), settings={"epochs": 3}),
    "mnist-adversarial": Recipe(small, partial(against, 0.3, 4, 0.5), eps=0.3, settings=ROBUST),
    "mnist-interval": Recipe(small, partial(IntervalBound, 0.33, ramp=(0.05, 0.6)), eps=0.3, settings=BOUNDED),
    "mnist-lca": Recipe(sparse, settings={"epochs": 20}),
    "cifar-cnn": Recipe(colour, data=cifar10, settings={"epochs": 16, **COLOUR}),
    "cifar-adversarial": Recipe(
        colour, partial(against, 8 / 255, 2, 0.75), data=cifar10, eps=8 / 255, settings={"epochs": 9, **COLOUR}
    ),
    "mnist-adversarial-0.1": Recipe(small, partial(against, 0.1, 2, 0.75), eps=0.1, settings={**ROBUST, "epochs": 5}),
    "mnist-interval-0.1": Recipe(small, partial(IntervalBound, 0.12, ramp=(0.05, 0.6)), eps=0.1, settings=BOUNDED),
}


# ------------------------------------------------------------------------------------------------------------- the door


def untrained(name: str) -> nn.Sequential:
    """The network with its random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RECIPES[name].build()


def load(name: str, data_folder: Path, cache: Path | None = None) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Network in eval mode, test images in [0, 1] and their labels; trained at the first call, then read from the cache.

    Raises
    ------
    ValueError
        An unknown name.
    """
    net, data, _ = prepared(name, data_folder, cache)
    return net, *data.test


def prepared(name: str, data_folder: Path, cache: Path | None = None) -> tuple[nn.Sequential, Data, float]:
    """Network, data and the seconds that training took; 0 where the cache had it."""
    if name not in RECIPES:
        raise ValueError(f"no network {name!r} in this zoo; there are {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    net, data = untrained(name), recipe.data(Path(data_folder))
    begin = time.perf_counter()

    def tell(done: int, of: int) -> None:
        print(f"{name}: epoch {done} of {of}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)

    def train() -> None:
        settings = {"generator": Generator().manual_seed(0), "on_epoch": tell, **recipe.settings}
        if isinstance(net[0], LCA):
            learn_dictionary(net[0], data.train[0])
            codes = coded(net[0], data.train[0][:CODED])  # once: the front end is not trained with the read-out
            fit(net[1:], codes, data.train[1][:CODED], recipe.loss(), **settings)
        else:
            fit(net, *data.train, recipe.loss(), **settings)

    found = cached(net, f"zoo{VERSION}-{name}", data, train, cache=cache)
    return net.requires_grad_(False), data, 0.0 if found else time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and cifar10/")
    parser.add_argument("--only", nargs="+", default=list(RECIPES), metavar="NAME")
    parser.add_argument("--cases", type=int, default=1000, help="test images that are attacked")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'network':22s} {'accuracy':>8s} {'eps':>6s} {'PGD-40':>8s} {'certified':>9s} {'seconds':>8s}")
    for name in options.only:
        net, data, seconds = prepared(name, options.data)
        images, labels = data.test
        recipe, share = RECIPES[name], digits.accuracy(net, images, labels)
        row = f"{name:22s} {share:8.4f}"
        if recipe.eps:
            generator = Generator().manual_seed(2)
            attacked = images[: options.cases], labels[: options.cases]
            row += f" {recipe.eps:6.3f} {robust_accuracy(net, *attacked, recipe.eps, generator=generator):8.4f}"
        else:
            row += f" {'':6s} {'':8s}"
        proven = isinstance(recipe.loss(), IntervalBound)
        row += f" {certified_accuracy(net, images, labels, recipe.eps):9.4f}" if proven else f" {'':9s}"
        print(row + (f" {seconds:8.0f}" if seconds else f" {'cached':>8s}"), flush=True)


if __name__ == "__main__":
    main()
