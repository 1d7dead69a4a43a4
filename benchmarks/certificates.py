"""Certified beside measured: how much of the distance to the closest adversary can be proved, in one run.

    python benchmarks/certificates.py [--cases 100] [--out FILE.json]

Small networks trained on scikit-learn's digits; 100 correctly classified test images in the box [0, 1], L2 and L-infinity.
"certified" is `certify_decision`: exact for the affine network, from a bound of the Hessian for smooth ones (Singla and
Feizi 2020), with balls of eight sizes and, "whole box", with the one bound of the paper. "auto_LiRPA" is `lirpa_bound` (CROWN)
at 60 radii, where that package can be imported. Ratios are to the distance that our search measures with 300 gradients:
median and smallest over cases. A certificate above a measured distance would be a contradiction; they are counted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from isoresponse import Box, Certificate, Classifier, certify_decision, lirpa_bound
from isoresponse.models.digits import digits
from isoresponse.models.training import fit

NORMS = {"2": 2.0, "inf": float("inf")}
RADII = 60


def networks() -> dict[str, nn.Sequential]:
    """The untrained networks, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "affine": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            "64-32-10 softplus": nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10)),
            "64-32-10 tanh": nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
            "64-24-24-10 tanh": nn.Sequential(
                nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10)
            ),
        }


def proved(certify: Callable[[], Certificate], far: Tensor) -> dict:
    """Ratios of certified to measured distances, contradictions, and milliseconds per case."""
    begin = time.perf_counter()
    told = certify()
    seconds = time.perf_counter() - begin
    ratio = (told.lower / far)[told.success & torch.isfinite(far)]
    return {
        "median": float(ratio.median()) if len(ratio) else float("nan"),
        "least": float(ratio.min()) if len(ratio) else float("nan"),
        "cases": len(ratio),
        "contradictions": int(told.contradicted(far).sum()),
        "ms": 1e3 * seconds / len(far),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--out", type=Path, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, table = digits(), []
    box = Box(0.0, 1.0)
    print(
        f"{'network':18s} {'accuracy':>8s} norm {'method':12s} {'median':>7s} {'least':>7s} {'cases':>6s} "
        f"{'above':>6s} {'ms':>8s}"
    )
    for name, net in networks().items():
        fit(net, *data.train, epochs=30, generator=Generator().manual_seed(0))
        net = net.double().eval().requires_grad_(False)
        images, labels = data.test[0].double(), data.test[1]
        right = net(images).argmax(1) == labels
        x, y = images[right][: options.cases], labels[right][: options.cases]
        single = deepcopy(net).float()  # that package's tables of tanh are in float32
        clf = Classifier.of(net, shape=tuple(x.shape[1:]), box=box)
        for key, norm in NORMS.items():
            far = clf.closest_adversary(x, y, norm=norm, budget=300).distance
            most = float(far.nan_to_num().max())
            radii = (most * torch.linspace(1 / RADII, 1.0, RADII, dtype=torch.float64)).tolist()
            ask = (net, x, y)
            methods = {
                "certified": partial(certify_decision, *ask, norm=norm, box=box),
                "whole box": partial(certify_decision, *ask, norm=norm, box=box, radii=0),
                "auto_LiRPA": partial(lirpa_bound, single, x.float(), y, radii, norm=norm, box=box),
            }
            for method, certify in methods.items():
                try:
                    row = proved(certify, far)
                except (ImportError, ValueError) as error:  # not there, or it does not know a layer
                    print(
                        f"{name:18s} {right.double().mean():8.4f} {key:4s} {method:12s} {str(error).splitlines()[0][:60]}"
                    )
                    continue
                table.append({"network": name, "norm": key, "method": method, **row})
                print(
                    f"{name:18s} {right.double().mean():8.4f} {key:4s} {method:12s} {row['median']:7.3f} "
                    f"{row['least']:7.3f} {row['cases']:6d} {row['contradictions']:6d} {row['ms']:8.2f}", flush=True,
                )  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
