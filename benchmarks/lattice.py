"""The smallest change that survives storage beside the one in floating point, and what plain rounding makes of it.

    python benchmarks/lattice.py [--models digits-mlp digits-cnn] [--mnist FOLDER] [--cases 200] [--budget 100]

Correctly classified test images, pixels on a lattice of 256 or 16 values from 0 to 1. Per network, norm and number of values:
the share of smallest perturbations that rounding to the lattice leaves across; how much longer those are then (median over
them); how much longer the one found on the lattice is (median, 95 % quantile, maximum, over all); what it cost on top.
`rms` is the root-mean-square size of the one found on the lattice, in steps of 1/255 whatever the number of values.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from isoresponse import Box, Classifier, on_lattice
from isoresponse.models.digits import digits, mnist, trained

NORMS = {"2": 2.0, "inf": float("inf"), "1": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["digits-mlp", "digits-cnn"])
    parser.add_argument("--mnist", type=Path, help="folder with the MNIST files: adds mnist-mlp and mnist-cnn")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--levels", type=int, nargs="+", default=[256, 16])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--budget", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = {"digits": digits()}
    if options.mnist:
        sets["mnist"] = mnist(options.mnist)
    names = options.models + (["mnist-mlp", "mnist-cnn"] if options.mnist else [])
    print(
        "| network | norm | values | found | rounding survives | d_round / d_float | d_lattice / d_float: median, 95 %, most | "
        "rms, grey levels | gradients + forwards more |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name in names:
        data = sets[name.partition("-")[0]]
        net = trained(name.partition("-")[2], data)
        x, labels = (part[: options.cases] for part in data.test)
        clf = Classifier.of(net, shape=tuple(x.shape[1:]), box=Box(0.0, 1.0))
        right = clf.predict(x) == labels
        x, labels = x[right], labels[right]
        for norm in options.norms:
            nearest = clf.closest_adversary(x, labels, norm=NORMS[norm], budget=options.budget)
            for levels in options.levels:
                kept = on_lattice(clf.decision(labels), x, nearest, 0.0, levels=levels, norm=NORMS[norm])
                rms = (kept.point - x).flatten(1).square().mean(1).sqrt().nanmedian() * 255
                print(
                    f"| {name} | {norm} | {levels} | {int(kept.success.sum())} of {len(x)} | {kept.survival_rate:.0%} | "
                    f"{float((kept.d_round / kept.d_float).nanmedian()):.4f} | {kept.median_ratio:.4f}, "
                    f"{kept.ratio_quantile(0.95):.4f}, {kept.ratio_quantile(1.0):.3f} | {float(rms):.2f} | "
                    f"{float(kept.gradients.double().mean()):.1f} + {float(kept.forwards.double().mean()):.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
