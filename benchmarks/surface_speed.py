"""Throughput of a response surface beside the bare model on the same batches, taking turns.

    python benchmarks/surface_speed.py [--turns 9] [--out benchmarks/results/surface_speed.json]

The bare model gets batches that were made before the clock started, and its output is thrown away: what remains is what
making the inputs, picking the unit, checking the box and collecting the responses cost. The least ratio that matters is for
the smallest network; the box is [0, 1].
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from isoresponse import Box, Neuron, Plane, response_surface

SIZE, BATCH = 101, 1024


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    def convolutions(channels: int, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(32 * width, 10),
        )  # fmt: skip

    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return {
        "MLP 784-512-512-10": (mlp, (1, 28, 28)),
        "CNN 1x28x28": (convolutions(1, 16), (1, 28, 28)),
        "CNN 3x32x32": (convolutions(3, 32), (3, 32, 32)),
    }


def main(turns: int, out: Path | None) -> None:
    torch.manual_seed(0)
    rows = []
    print("network               bare inputs/s   surface inputs/s   ratio (median, least, most of paired turns)")
    for name, (net, shape) in networks().items():
        net = net.eval().requires_grad_(False)
        neuron = Neuron.of(net, unit=3, shape=shape, box=Box(0.0, 1.0))
        plane = Plane.spanning(torch.full(shape, 0.5), torch.randn(shape), torch.randn(shape))
        ticks = torch.linspace(-2, 2, SIZE)
        grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).reshape(-1, 2)
        batches = [plane.inject(part) for part in grid.split(BATCH)]

        def bare(net: nn.Module = net, batches: list[torch.Tensor] = batches) -> None:
            with torch.no_grad():
                for batch in batches:
                    net(batch)

        def surface(neuron: Neuron = neuron, plane: Plane = plane) -> None:
            response_surface(neuron, plane, x=(-2.0, 2.0), y=(-2.0, 2.0), size=SIZE, batch_size=BATCH)

        bare()
        surface()
        times = []
        for turn in range(turns):
            pair = {}
            for what in ((bare, surface), (surface, bare))[turn % 2]:
                start = time.perf_counter()
                what()
                pair[what.__name__] = time.perf_counter() - start
            times.append(pair)
        ratios = [t["bare"] / t["surface"] for t in times]
        speed = {k: len(grid) / statistics.median(t[k] for t in times) for k in ("bare", "surface")}
        rows.append(
            {"network": name, **speed, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        )
        print(
            f"{name:20s} {speed['bare']:14.0f} {speed['surface']:18.0f}   {statistics.median(ratios):.3f} ({min(ratios):.3f}, "
            f"{max(ratios):.3f})"
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file for the page `docs/accuracy.md`")
    options = parser.parse_args()
    main(options.turns, options.out)
