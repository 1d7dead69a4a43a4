"""Claim (i): a greedy path can lose to a detour, on a landscape where every way is known and on networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.grid import closest_point_on_grid
from isoresponse.loop import Status, moved
from isoresponse.models.elevation import ElevationMap
from isoresponse.neuron import Box, Neuron
from isoresponse.paths import gradient_path
from isoresponse.studies.claims.findings import Finding
from isoresponse.studies.claims.pairs import side_by_side
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import Claim, share
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.terrain import draw_terrain, zoom

LONGER = 1.1  # times the shortest way: what counts as lost
SOMETIMES = 0.05  # of the starts
HIGHER = 0.25  # of the landscape's range: what is to be climbed
RESOLUTION = 64
STEPS, FEWER = 150, 60  # of a steepest path at most, on landscapes and on networks


@dataclass(frozen=True, eq=False)
class Ways:
    """Length (case,) of the steepest path to a level, infinite where it never gets there, and of the shortest way known."""

    greedy: Tensor
    best: Tensor

    @property
    def lost(self) -> Tensor:
        """Whether (case,) the steepest path is longer than it need be, NaN where no way is known."""
        known = self.best.isfinite() & (self.best > 0) & ~self.greedy.isnan()
        return (self.greedy > LONGER * self.best).double().masked_fill(~known, torch.nan)


def steepest(neuron: Neuron, x: Tensor, level: Tensor | float, *, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Length (case,) of the steepest path, infinite where it ends on the way, NaN where the steps ran out; its points
    (case, knot, *shape).
    """
    path = gradient_path(neuron, x, level, knots=21, rtol=0.1, max_steps=steps)
    length = path.arclength[:, -1].masked_fill(path.status != int(Status.DONE), torch.nan)
    ended = (path.status == int(Status.FLAT)) | (path.status == int(Status.BLOCKED))
    return length.masked_fill(ended, torch.inf), path.points


def on_landscape(
    terrain: ElevationMap, starts: int, *, generator: Generator, resolution: int = RESOLUTION
) -> tuple[Ways, tuple[Tensor, Tensor, Tensor]]:
    """Ways from random places to a given height above them; and start, steepest path and nearest place of the worst case."""
    size = torch.tensor(terrain.extent, dtype=torch.float64)
    neuron = Neuron(terrain, (2,), Box(torch.zeros(2, dtype=torch.float64), size), "elevation")
    low, high = float(terrain.grid.min()), float(terrain.grid.max())
    x = size * torch.rand(3 * starts, 2, generator=generator, dtype=torch.float64)
    x = x[neuron.value(x) + HIGHER * (high - low) < high][:starts]
    level = neuron.value(x) + HIGHER * (high - low)
    length, points = steepest(neuron, x, level)
    nearest = closest_point_on_grid(neuron, x, level, resolution=resolution)
    ratio = (length / nearest.distance).nan_to_num(0, posinf=0)
    worst = int(ratio.argmax())
    return Ways(length, nearest.distance), (x[worst], points[worst], nearest.point[worst])


def on_networks(nets: Networks, best: dict[str, Tensor], *, stage: Stage = silent) -> dict[str, Ways]:
    """Steepest paths of the decision to its boundary, against the smallest distance known."""
    found = {}
    with stage("i: steepest paths", len(nets.of), "network") as on_done:
        for name, classifier in nets.of.items():
            length, _ = steepest(classifier.decision(nets.labels), nets.x, 0.0, steps=FEWER)
            found[f"{name} on {nets.name}"] = moved(Ways(length, best[name]), "cpu")
            on_done(1)
    return found


def detours(
    land: dict[str, Ways], networks: dict[str, Ways], *, terrain: ElevationMap | None = None,
    example: tuple[Tensor, Tensor, Tensor] | None = None, seed: int = 0,
) -> Finding:  # fmt: skip
    """Claim (i) on landscapes, by name; how often it happens on networks is told beside it."""

    def claim(name: str, ways: Ways) -> Claim:
        return Claim(
            f"{name}: the steepest path loses to another way",
            f"share of starts from which the steepest path is over {LONGER:g} times as long as the shortest way known, or never "
            "arrives", share(ways.lost), SOMETIMES,
        )  # fmt: skip

    rows = {**land, **networks}
    figure = new_figure(10.4, 4.2)
    left, right = figure.subplots(1, 2)
    if terrain is not None and example is not None:
        _example(left, terrain, example)
    else:
        left.set_visible(False)
    for i, (name, ways) in enumerate(rows.items()):
        ratio = (ways.greedy / ways.best)[ways.lost.isfinite()].nan_to_num(posinf=torch.inf).numpy()
        order = np.sort(ratio)
        color = (plot.VERMILION, plot.BLUE, plot.GREEN, plot.ORANGE, plot.PURPLE)[i % 5]
        right.plot(
            np.minimum(order, 1e3), np.arange(1, len(order) + 1) / max(1, len(order)), drawstyle="steps-post", lw=2, color=color,
            ls=("-", "--", "-.", ":")[i % 4], label=name,
        )  # fmt: skip
    right.axvline(LONGER, color=plot.INK, ls="--", lw=1)
    right.set_xscale("log")
    right.set_xlim(0.95, 12)
    right.set_ylim(0, 1.02)
    right.set_xlabel("length of the steepest path over the shortest way known")
    right.set_ylabel("share of starts")
    right.legend(fontsize=8, loc="lower right")
    return Finding(
        "i", "Where contours are unequally spaced, a path that is steepest everywhere can lose to a detour.",
        f"From more than {SOMETIMES:.0%} of random starts on a landscape the steepest path to a height is over {LONGER:g} times "
        "as long as the shortest way, or ends on a lower hill. Every place of the landscape is looked at.",
        {name: claim(name, w) for name, w in land.items()}, figure,
        "Left: the start whose steepest path (arrows) arrives and loses most, with the nearest place of the same height (cross). "
        "Right: how much longer steepest paths are; curves that end below 1 have starts from which they never arrive.",
        contrast={name: claim(name, w) for name, w in networks.items()},
        values={
            f"i_{key}": (
                ("i_subject", "i_start"), side_by_side([getattr(w, key) for w in rows.values()]),
                {"units": "input", "long_name": text},
            )
            for key, text in (
                ("greedy", "length of the steepest path"), ("best", "length of the shortest way known")
            )
        },
        notes=(
            "On networks nobody can look everywhere: the shortest way known is an upper bound, so how often a greedy path loses "
            "there is a lower bound.",
        ),
    )  # fmt: skip


def _example(ax: Axes, terrain: ElevationMap, example: tuple[Tensor, Tensor, Tensor]) -> None:
    start, points, nearest = example
    draw_terrain(ax, terrain)
    zoom(ax, torch.cat([points[points.isfinite().all(1)], nearest[None]]), terrain.extent)
    plot.path(ax, points[points.isfinite().all(1)])
    ax.plot(*start.tolist(), "o", color=plot.INK, ms=7, zorder=6)
    ax.plot(*nearest.tolist(), "X", color=plot.VERMILION, mec=plot.INK, ms=10, zorder=7)
    ax.plot([start[0], nearest[0]], [start[1], nearest[1]], "--", color=plot.VERMILION, lw=1.5, zorder=6)
