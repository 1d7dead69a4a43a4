"""Does the truth lie within the reported band? 200 random neurons, every finite-scale estimator, at three scales.

    python benchmarks/coverage.py [--neurons 200] [--out benchmarks/results/coverage.json]

Fifty random networks each with ReLU, GELU and tanh, and fifty units of sparse coding (LCA) with random dictionaries. The truth
at the stated scale is measured in another way and far more densely:

- secant: for each principal direction found, the mean of the curvature along that very direction over the stretch, from one
  long difference (exact for any response);
- smoothed: the same jet from 64 times the samples, its principal curvatures, in float64;
- mean curvature (XTrace) at 8 probes: the exact trace.

A band that always holds because it is wide says nothing, so its median width relative to the value is reported too.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from isoresponse import Neuron, exact_jet, mean_curvature, principal_curvatures, secant_jet, smoothed_jet
from isoresponse.geometry import Curvatures
from isoresponse.models.lca import LCA

N, DIRECTIONS = 32, 8
SCALES = (0.03, 0.3, 1.0)
KINDS = ("relu", "gelu", "tanh", "lca")


def random_neuron(kind: str, generator: Generator) -> Neuron:
    """A unit of a random network of two hidden layers, or of sparse coding with a random dictionary."""
    if kind == "lca":
        dictionary = torch.randn(N, 2 * N, generator=generator, dtype=torch.float64)
        return Neuron.of(
            LCA(dictionary, sparsity=0.2), unit=int(torch.randint(2 * N, (), generator=generator)), shape=(N,)
        )
    act = {"relu": nn.ReLU(), "gelu": nn.GELU(), "tanh": nn.Tanh()}[kind]
    net = nn.Sequential(nn.Linear(N, 64), act, nn.Linear(64, 64), act, nn.Linear(64, 1)).double()
    for parameter in net.parameters():
        gain = math.sqrt(2 / parameter.shape[-1]) if parameter.ndim > 1 else 0.3
        parameter.data = gain * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return Neuron.of(net, shape=(N,), name=kind)


def point_of(neuron: Neuron, generator: Generator) -> Tensor:
    """The first of random inputs at which the neuron responds and has a gradient."""
    for x in torch.randn(200, 1, N, generator=generator, dtype=torch.float64):
        value, gradient = neuron.value_and_grad(x)
        if float(value[0]) != 0 and float(gradient.norm()) > 0:
            return x
    raise ValueError(f"{neuron.name} is silent everywhere.")


def along(neuron: Neuron, x: Tensor, found: Curvatures, scale: float) -> Tensor:
    """Mean curvature over the stretch along each direction that was found (case, rank)."""
    gradient = neuron.value_and_grad(x)[1]
    out = []
    for t in found.directions.unbind(1):
        ahead, behind = (neuron.value_and_grad(x + s * scale * t)[1] for s in (1, -1))
        out.append(-((ahead - behind) * t).sum(1) / (2 * scale) / gradient.norm(dim=1))
    return torch.stack(out, 1)


def hold(
    rows: dict[str, list[tuple[float, float, float]]], name: str, value: Tensor, error: Tensor, truth: Tensor
) -> None:
    pairs = zip(value.flatten().tolist(), error.flatten().tolist(), truth.flatten().tolist(), strict=True)
    rows.setdefault(name, []).extend(pairs)


def main(neurons: int, out: Path | None) -> None:
    rows: dict[str, list[tuple[float, float, float]]] = {}
    generator = Generator().manual_seed(0)
    for i in range(neurons):
        kind = KINDS[i % len(KINDS)]
        neuron = random_neuron(kind, generator)
        x = point_of(neuron, generator)
        basis = torch.linalg.qr(torch.randn(1, N, DIRECTIONS, generator=generator, dtype=torch.float64)).Q.transpose(
            1, 2
        )
        for scale in SCALES:
            jet = secant_jet(neuron, x, scale=scale, basis=basis)
            found = principal_curvatures(jet, 4, generator=generator)
            hold(rows, f"secant/{kind}/{scale}", found.values, found.error, along(neuron, x, found, scale))
            settings = {"scale": scale, "basis": basis, "generator": generator}
            jet = smoothed_jet(neuron, x, samples=6 * (DIRECTIONS + 5), **settings)
            dense = smoothed_jet(neuron, x, samples=64 * 6 * (DIRECTIONS + 5), **settings)
            found, truth = (principal_curvatures(j, 4, end="outward", generator=generator) for j in (jet, dense))
            hold(rows, f"smoothed/{kind}/{scale}", found.values, found.error, truth.values)
        if kind in ("gelu", "tanh"):
            jet = exact_jet(neuron, x)
            told = mean_curvature(jet, probes=8, generator=generator)
            exact = mean_curvature(jet, probes=N, generator=generator)
            hold(rows, f"mean/{kind}/0", told.value, told.error, exact.value)
        if (i + 1) % 20 == 0:
            print(f"\r{i + 1} of {neurons} neurons", end="", flush=True)
    print()
    table: list[dict[str, Any]] = []
    for name, pairs in rows.items():
        estimator, kind, scale = name.split("/")
        value, error, truth = torch.tensor(pairs, dtype=torch.float64).T
        inside = ((value - truth).abs() <= error).double()
        size = truth.abs().clamp_min(1e-12)
        table.append({
            "estimator": estimator, "kind": kind, "scale": float(scale), "values": len(pairs), "inside": float(inside.mean()),
            "relative_width": float((error / size).median()), "relative_error": float(((value - truth).abs() / size).median()),
        })  # fmt: skip
    print("estimator  kind   scale  values  truth inside band  median band / |truth|  median |error| / |truth|")
    for r in table:
        print(
            f"{r['estimator']:9s}  {r['kind']:5s} {r['scale']:6.2f} {r['values']:7d} {r['inside']:18.1%} "
            f"{r['relative_width']:22.2g} {r['relative_error']:24.2g}"
        )
    for estimator in ("secant", "smoothed", "mean"):
        same = [r for r in table if r["estimator"] == estimator]
        total = sum(r["values"] for r in same)
        print(
            f"{estimator}: {sum(r['inside'] * r['values'] for r in same) / total:.1%} of {total} truths inside the band"
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"neurons": neurons, "rows": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON file for the page `docs/accuracy.md`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.neurons, options.out)
