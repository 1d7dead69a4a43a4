"""The local and the global: how often a search from one place misses the closest point, and by how much.

    python benchmarks/global_search.py [--cases 200] [--starts 10] [--budget 100] [--data ../shared/data --models mnist-mlp ...]

prints two markdown tables. The first is of landscapes, where inputs have two elements and a grid is the referee
(`closest_point_on_grid`): random hills in a box that ends at them or far from them, the elevation model that ships with
matplotlib and, with `--data`, those in FOLDER/dem. Starts are uniform in the middle of the box, levels those of other
places there. The second, with `--models`, is of networks of the zoo, where nobody knows the truth: what is lost is lost to
the nearest point that any search of the row's model found.

One start has `budget` gradients, several have as many each. "one start, longer" has all of these gradients and a single
start: what it loses is not for want of gradients. A case is lost where the answer is more than 1 % too far, or none;
the interval is Wilson's of 95 %; the ratio is to the smallest distance, "none" where nothing was found.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import closest
import torch
from torch import Generator, Tensor

from isoresponse import Box, Classifier, Neuron, closest_point
from isoresponse.crossing import Solution
from isoresponse.grid import GridSolution, closest_point_on_grid
from isoresponse.multistart import LocalGlobal
from isoresponse.studies.terrain import load_elevation

HILLS, NARROWEST, WIDEST = 12, 0.05, 0.2  # of a random landscape in the unit square: their number and widths
INF = float("inf")

Question = tuple[Neuron, Tensor, Tensor]  # a neuron, starts (case, 2), levels (case,)
Search = Callable[[int, int], Solution]  # given a budget of gradients per case and a number of starts


def uniform(*size: int, generator: Generator) -> Tensor:
    return torch.rand(*size, generator=generator, dtype=torch.float64)


def hills(cases: int, margin: float, generator: Generator) -> Question:
    """A sum of Gaussians of either sign, another one in each case, in a box that goes `margin` beyond the unit square."""
    centre, there, x = (uniform(cases, k, 2, generator=generator) for k in (HILLS, 1, 1))
    height = 2 * uniform(cases, HILLS, generator=generator) - 1
    width = NARROWEST + (WIDEST - NARROWEST) * uniform(cases, HILLS, generator=generator)

    def response(x: Tensor, centre: Tensor, height: Tensor, width: Tensor) -> Tensor:
        return (height * torch.exp(-(x[:, None] - centre).square().sum(2) / (2 * width**2))).sum(1)

    neuron = Neuron(response, (2,), Box(-margin, 1 + margin), given=(centre, height, width))
    return neuron, x[:, 0], neuron.value(there[:, 0])


def mountains(cases: int, path: Path | None, generator: Generator) -> Question:
    """Another place on a real landscape in each case."""
    terrain, _ = load_elevation(path)
    extent = torch.tensor(terrain.extent, dtype=torch.float64)
    neuron = Neuron(terrain, (2,), Box(0.0, extent))
    x, there = (extent * uniform(cases, 2, generator=generator) for _ in range(2))
    return neuron, x, neuron.value(there)


def landscapes(cases: int, data: Path | None) -> dict[str, Question]:
    """Questions in two dimensions, the same each time."""
    maps = {"Jacksboro fault": None}
    if data is not None:
        maps |= {path.stem: path for path in sorted((data / "dem").glob("*.npz")) if "tile" not in path.stem}
    found = {f"random hills, margin {m:g}": hills(cases, m, Generator().manual_seed(1)) for m in (0.0, 1.0)}
    return found | {name: mountains(cases, path, Generator().manual_seed(2)) for name, path in maps.items()}


def against(found: Solution, truth: GridSolution | Solution) -> str:
    """Cells of a table: what a search lost, and what it spent."""
    seen = LocalGlobal.of(found, truth)
    low, high = seen.loss_rate_interval

    def told(q: float) -> str:
        ratio = seen.ratio_quantile(q)
        return f"{ratio:.3f}" if math.isfinite(ratio) else "none"

    return (
        f"{int(seen.judged.sum())} | {100 * seen.loss_rate:.1f} % ({100 * low:.0f} to {100 * high:.0f}) | "
        f"{int((~found.success & seen.judged).sum())} | {told(0.5)} | {told(0.95)} | {float(found.gradients.double().mean()):.0f}"
    )


HEAD = """
| {} | search | cases | lost | nothing found | median ratio | 95 % quantile | gradients |
|---|---|--:|--:|--:|--:|--:|--:|"""


def searches(search: Search, starts: int, budget: int) -> dict[str, Solution]:
    return {
        "one start": search(budget, 1),
        "one start, longer": search(budget * starts, 1),
        f"{starts} starts": search(budget * starts, starts),
    }


def two_dimensions(questions: dict[str, Question], norm: float, starts: int, budget: int, resolution: int) -> None:
    print(HEAD.format("landscape"), flush=True)
    for name, (neuron, x, level) in questions.items():
        begin = time.perf_counter()
        truth = closest_point_on_grid(neuron, x, level, norm=norm, resolution=resolution)
        seconds = time.perf_counter() - begin

        def search(budget: int, starts: int, neuron: Neuron = neuron, x: Tensor = x, level: Tensor = level) -> Solution:
            seed = Generator().manual_seed(0)
            return closest_point(neuron, x, level, norm=norm, budget=budget, starts=starts, generator=seed)

        for how, found in searches(search, starts, budget).items():
            if bool((found.distance < truth.lower * (1 - 1e-9)).any()):
                raise SystemExit(f"{name}: a search found a point nearer than the referee's bound.")
            print(f"| {name} | {how} | {against(found, truth)} |", flush=True)
        worst = float((truth.error / truth.distance)[truth.distance > 0].max())
        print(f"| {name} | grid, {resolution}² cells: right to {worst:.1e}, {seconds:.1f} s | | | | | | |", flush=True)


def networks(names: list[str], data: Path, norm: float, cases: int, starts: int, budget: int) -> None:
    print(HEAD.format("network"), flush=True)
    for name in names:
        net, x, labels = closest.cases_of(name, data, cases)
        classifier = Classifier.of(net, shape=tuple(x.shape[1:]), box=Box(0, 1))

        def search(
            budget: int, starts: int, classifier: Classifier = classifier, x: Tensor = x, labels: Tensor = labels
        ) -> Solution:
            seed = Generator().manual_seed(0)
            return classifier.closest_adversary(x, labels, norm=norm, budget=budget, starts=starts, generator=seed)

        found = searches(search, starts, budget)
        smallest = torch.stack([s.distance.nan_to_num(nan=INF) for s in found.values()]).amin(0)
        for how, solution in found.items():
            # the nearest point known, in the place of a truth
            known = replace(solution, distance=smallest)
            print(f"| {name} | {how} | {against(solution, known)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with dem/, mnist/ and cifar10/")
    parser.add_argument("--models", nargs="+", default=[], help="networks of benchmarks/zoo.py; they need --data")
    parser.add_argument("--norm", choices=closest.NORMS, default="2")
    parser.add_argument("--cases", type=int, default=200, help="of every landscape")
    parser.add_argument("--network-cases", type=int, default=50)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--budget", type=int, default=100, help="gradients per case and start")
    parser.add_argument("--resolution", type=int, default=128, help="cells of the referee's grid along each axis")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.models and options.data is None:
        parser.error("--models need --data, the folder with mnist/ and cifar10/.")
    torch.set_num_threads(options.threads)
    norm, starts, budget = closest.NORMS[options.norm], options.starts, options.budget
    two_dimensions(landscapes(options.cases, options.data), norm, starts, budget, options.resolution)
    if options.models:
        networks(options.models, options.data, norm, options.network_cases, starts, budget)


if __name__ == "__main__":
    main()
