"""Is the answer where geometry says the closest point is? The perturbation against the normal, and at kinks against their cone.

    python benchmarks/cone.py --data FOLDER [--models ...] [--cases 50] [--budget 500]

At a smooth closest point in L2 the perturbation is parallel to the contour's normal, up to what the box takes up. On a kink
there are several normals, those of the pieces that meet there, and the perturbation lies in the cone that they span. The
pieces are those that forbid a shorter way: what is left of the perturbation outside the cone of the pieces known says where to
look for the next one, three per cent of the distance away, 60 times. Per network the median and the 5 % quantile of the
cosine to the one gradient at the answer, and to the cone (non-negative least squares, bounds included). An element within
1e-3 of a bound counts as held by it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.optimize
import torch
from closest import cases_of
from closest_table import MODELS
from torch import Tensor

from isoresponse import Box, Classifier

PIECES, NEAR = 60, 0.03
BOUND = 1e-3  # an answer is drawn back along its ray to just across, so its elements at a bound end a little inside


def nearest_in_cone(moved: Tensor, normals: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The point (n,) nearest to `moved` of the cone of `normals` (k, n) and of the bounds that hold (masks (n,))."""
    inward = torch.cat([torch.diag(low.double())[low], -torch.diag(high.double())[high]])
    columns = torch.cat([normals / normals.norm(dim=1, keepdim=True), inward]).T.numpy()
    weights, _ = scipy.optimize.nnls(columns, moved.numpy(), maxiter=20 * columns.shape[1])
    return torch.from_numpy(columns @ weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--budget", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | cosine to the normal, median (5 %) | to the cone, median (5 %) |\n|---|---|---|", flush=True)
    for name in options.models:
        net, x, labels = cases_of(name, options.data, options.cases)
        clf = Classifier.of(net.double(), shape=tuple(x.shape[1:]), box=Box(0, 1))
        x = x.double()
        decision = clf.decision(labels)
        found = clf.closest_adversary(x, labels, budget=options.budget)
        one, cone = [], []
        for k in torch.nonzero(found.success).flatten().tolist():
            moved, point = (found.point[k] - x[k]).flatten(), found.point[k].flatten()
            low, high = point <= BOUND, point >= 1 - BOUND
            pieces, at, cosines = torch.empty(0, len(point), dtype=x.dtype), point, []
            for _ in range(1 + PIECES):
                _, gradient = decision.select(torch.tensor([k])).value_and_grad(at.reshape(1, *x.shape[1:]))
                pieces = torch.cat([pieces, -gradient.flatten(1)])
                nearest = nearest_in_cone(moved, pieces, low, high)
                cosines.append(float(nearest.norm() / moved.norm()))
                rest = moved - nearest
                at = (point - NEAR * moved.norm() * rest / rest.norm().clamp_min(1e-30)).clamp(0, 1)
            one.append(cosines[0])
            cone.append(cosines[-1])
        told = (f"{np.median(values):.4f} ({np.quantile(values, 0.05):.3f})" for values in (one, cone))
        print(f"| {name} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
