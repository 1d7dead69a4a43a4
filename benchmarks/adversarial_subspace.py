"""How many ways lead across the boundary, how far each is, and how the boundary bends among them.

    python benchmarks/adversarial_subspace.py --data FOLDER [--models mnist-mlp ...] [--cases 30] [--dims 10] [--out FOLDER]

`adversarial_subspace` of the decision, networks of benchmarks/zoo.py, correctly classified test images: successive closest
perturbations, each orthogonal to those before. Per network: the median distance in each dimension over the first one; the
exponent of its growth, distance ~ dimension ** exponent, by least squares on logarithms, median over cases with its 95 %
bootstrap interval (below 1: sub-linear); the mean curvature of the boundary inside that subspace and inside a random
one of equal dimension, times the distance, so without units, and in how many cases the first is larger. Curvatures are those
at the scale of half the distance, for networks of ReLUs have none at a point. With `--out`, a figure.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from closest import cases_of
from torch import Generator, Tensor

from isoresponse import AdversarialSubspace, Box, Classifier, adversarial_subspace, secant_jet

MODELS = ["mnist-mlp", "mnist-softplus", "mnist-gelu", "mnist-adversarial", "cifar-cnn", "cifar-adversarial"]


def exponents(found: AdversarialSubspace) -> np.ndarray:
    """Slope (case,) of log distance against log dimension, of the cases that have at least three dimensions."""
    log_dim = np.log(np.arange(1, found.distance.shape[1] + 1))
    slopes = []
    for row in found.distance.double().numpy():
        known = np.isfinite(row) & (row > 0)
        if known.sum() >= 3:
            slopes.append(np.polyfit(log_dim[known], np.log(row[known]), 1)[0])
    return np.array(slopes)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def row(name: str, found: AdversarialSubspace) -> str:
    """One line of the table."""
    relative = (found.distance / found.distance[:, :1]).double()
    far = ", ".join(f"{q:.2f}" for q in relative.nanmedian(0).values.tolist())
    near = found.distance[:, 0]
    inside, among_random = found.mean_curvature * near, found.random_mean_curvature * near
    both = inside.isfinite() & among_random.isfinite()
    more = (inside > among_random)[both].double().mean()
    exponent = interval(exponents(found))
    return (
        f"| {name} | {float(found.reached.double().mean()):.1f} of {found.distance.shape[1]} | {far} | "
        f"{exponent[0]:.2f} ({exponent[1]:.2f} to {exponent[2]:.2f}) | {float(inside[both].median()):+.3f} | "
        f"{float(among_random[both].median()):+.3f} | {float(more):.0%} of {int(both.sum())} | "
        f"{float(found.gradients.double().sum(1).mean()):.0f} |"
    )


def draw(told: dict[str, AdversarialSubspace], out: Path) -> None:
    """Distance against dimension, median and quartiles, one panel per network, drawn with the line of equal steps."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(told), figsize=(2.6 * len(told), 2.8), squeeze=False, layout="constrained")
    for panel, (name, found) in zip(panels[0], told.items(), strict=True):
        dims = np.arange(1, found.distance.shape[1] + 1)
        low, middle, high = np.nanquantile(found.distance.double().numpy(), [0.25, 0.5, 0.75], axis=0)
        panel.fill_between(dims, low, high, color="0.8", label="quartiles")
        panel.plot(dims, middle, "k.-", label="median")
        panel.plot(dims, middle[0] * np.sqrt(dims), "k:", lw=1, label=r"$\propto \sqrt{\mathrm{dimension}}$")
        panel.set(title=name, xlabel="dimension of the subspace", ylim=(0, None))
    panels[0, 0].set_ylabel("L2 distance to the boundary")
    panels[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(out / "adversarial_subspace.png", dpi=150)


def measured(name: str, folder: Path, cases: int, dims: int, budget: int) -> AdversarialSubspace:
    """The adversarial subspace of a network of the zoo at some of its test images."""
    net, x, labels = cases_of(name, folder, cases)
    x = x.double()
    clf = Classifier.of(net.double(), shape=tuple(x.shape[1:]), box=Box(0, 1))
    scale: Tensor = clf.closest_adversary(x, labels, budget=44).distance.nanmedian() / 2
    return adversarial_subspace(
        clf.decision(labels), x, 0.0, dims=dims, budget=budget, generator=Generator().manual_seed(0),
        jet=partial(secant_jet, scale=float(scale)),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--dims", type=int, default=10)
    parser.add_argument("--budget", type=int, default=200, help="gradients per case and dimension")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| network | dimensions | distance over the nearest | growth exponent | distance x curvature inside | in a random "
        "one | larger inside | gradients |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    told = {}
    for name in options.models:
        told[name] = measured(name, options.data, options.cases, options.dims, options.budget)
        print(row(name, told[name]), flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        draw(told, options.out)


if __name__ == "__main__":
    main()
