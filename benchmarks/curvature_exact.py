"""Curvature in closed form, its invariances, and the dense eigendecomposition: the largest errors, in float64 and float32.

    python benchmarks/curvature_exact.py [--cases 100] [--out benchmarks/results/curvature_exact.json]

Every contour is that of a different neuron per case, rotated at random. Errors are relative to the largest curvature of the
case (absolute where all vanish).
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the neurons with known geometry are those of the tests

import analytic
import test_curvatures

from isoresponse import FlatHessianWarning, Neuron, exact_jet, principal_curvatures

Made = tuple[Neuron, Tensor, Tensor]  # neuron, points (case, n), curvatures (case, n - 1) descending


def of_zoo(make: Callable[..., analytic.Known]) -> Callable[[int, Generator], Made]:
    def made(cases: int, generator: Generator) -> Made:
        known = make(cases, generator=generator)
        return known.neuron, known.point, known.curvatures

    return made


FAMILIES: dict[str, Callable[[int, Generator], Made]] = {
    "linear, tanh of linear": of_zoo(analytic.tanh),
    "sphere": of_zoo(analytic.sphere),
    "sphere from inside": of_zoo(analytic.hollow),
    "cylinder": of_zoo(analytic.cylinder),
    "rotated anisotropic quadric": of_zoo(analytic.quadric),
    "rotated saddle": lambda cases, g: test_curvatures.saddle(cases, generator=g),
    "hyperboloid of one sheet": lambda cases, g: test_curvatures.hyperboloid(cases, generator=g),
    "torus": lambda cases, g: test_curvatures.torus(cases, generator=g),
    "energy model": of_zoo(analytic.energy),
    "divisive normalisation": of_zoo(analytic.divisive),
    "maximum over planes": of_zoo(analytic.planes),
}


def measured(neuron: Neuron, x: Tensor) -> Tensor:
    return principal_curvatures(exact_jet(neuron, x), x.shape[1] - 1, generator=Generator().manual_seed(0)).values


def relative(seen: Tensor, truth: Tensor) -> float:
    size = truth.abs().amax(1, keepdim=True)
    return float(((seen.double() - truth).abs() / torch.where(size > 1e-12, size, torch.ones_like(size))).max())


def main(cases: int, out: Path | None) -> None:
    warnings.simplefilter("ignore", FlatHessianWarning)
    rows = []
    print("contour                         closed form   float32   rotated   shifted   rescaled response")
    for name, make in FAMILIES.items():
        generator = Generator().manual_seed(1)
        neuron, x, truth = make(cases, generator)
        n = x.shape[1]
        here = measured(neuron, x)
        single = Neuron(neuron.response, neuron.shape, given=tuple(g.float() for g in neuron.given))
        turn = analytic.frames(1, n, generator=generator)[0]
        shift = analytic.normal(n, generator=generator)
        moved = {
            "rotated": (lambda z, *g, f=neuron, turn=turn: f.response(z @ turn, *g), x @ turn.T),
            "shifted": (lambda z, *g, f=neuron, shift=shift: f.response(z - shift, *g), x + shift),
            "rescaled": (lambda z, *g, f=neuron: torch.sinh(0.1 * f.response(z, *g)) + 2, x),
        }
        row = {"name": name, "float64": relative(here, truth), "float32": relative(measured(single, x.float()), truth)}
        for what, (response, at) in moved.items():
            row[what] = relative(measured(Neuron(response, (n,), given=neuron.given), at), here)
        rows.append(row)
        print(
            f"{name:30s} {row['float64']:12.1e} {row['float32']:9.1e} {row['rotated']:9.1e} {row['shifted']:9.1e} "
            f"{row['rescaled']:12.1e}"
        )
    dense = []
    for n in (50, 200, 784):
        generator = Generator().manual_seed(n)
        net = torch.nn.Sequential(torch.nn.Linear(n, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)).double()
        for parameter in net.parameters():
            parameter.data = analytic.normal(*parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        jet = exact_jet(Neuron.of(net, shape=(n,)), analytic.normal(3, n, generator=generator))
        p = torch.eye(n, dtype=torch.float64) - jet.normal[:, :, None] * jet.normal[:, None]
        values = torch.linalg.eigvalsh(-p @ jet.hessian.dense() @ p / jet.steepness[:, None, None])
        found = [principal_curvatures(jet, 10, end=end, generator=generator) for end in ("outward", "inward")]
        error = max(
            relative(found[0].values, values.flip(1)[:, :10]), relative(found[1].values, values[:, :10].flip(1))
        )
        products = max(int(f.products.max()) for f in found)
        dense.append({"n": n, "error": error, "products": products})
        print(
            f"dense eigendecomposition, n = {n}: 10 at either end, largest relative error {error:.1e}, {products} products"
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"cases": cases, "rows": rows, "dense": dense}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--out", type=Path, help="JSON file for the page `docs/accuracy.md`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.cases, options.out)
