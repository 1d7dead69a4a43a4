"""Claim (e): what tangential curvature does to the smallest distance, and what to the number of ways that succeed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.stats
import torch
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.loop import moved
from isoresponse.neuron import Box, Neuron
from isoresponse.solve import closest_point
from isoresponse.studies.claims.findings import Finding
from isoresponse.studies.claims.pairs import axes_of, drive, side_by_side
from isoresponse.studies.claims.regions import in_directions, opposite
from isoresponse.studies.claims.subjects import Networks, twin
from isoresponse.studies.experiment import Claim, bootstrap
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent

GRID = (-3.0, -2.0, -1.25, -0.75, 0.0, 0.75, 2.0)  # distance x curvature
UNCHANGED, FOCUSED = (-0.75, 0.75, 2.0), -2.0
SLIGHT = 2.0  # sum of distance x curvature over all tangents, for the share of directions
TENTH = float(scipy.stats.norm.isf(0.1))  # the radius is such that a tenth of all directions crosses a straight contour
SAME = 0.01  # of the distance: counts as unchanged
SHRUNK = -0.05  # log of a distance that counts as smaller
SHIFT = 0.1  # of the share of directions: counts as changed
BUDGET, STARTS = 90, 3

Bender = Callable[[Neuron, Tensor, Tensor], Neuron]


def parabolas(neuron: Neuron, x: Tensor, curvature: Tensor) -> Neuron:
    """The neuron with contours of the given curvature (case,) round its gradient at `x`, parabolas."""
    return twin(neuron, x, curvature=curvature, slope=math.inf)


@dataclass(frozen=True, eq=False)
class Bent:
    """Smallest distance (curvature, case) and share of directions (sign, case), each over that of straight contours."""

    distance: Tensor
    share: Tensor
    grid: tuple[float, ...]


def toys(count: int, n: int, *, generator: Generator) -> tuple[Neuron, Tensor, Tensor]:
    """Linear neurons with random gradients of length 1, inputs, and levels that are 1 away."""
    x = torch.zeros(count, n, dtype=torch.float64)
    return Neuron(drive, (n,), Box(), "toy", (axes_of(count, n, generator),)), x, torch.ones(count, dtype=torch.float64)


def of_networks(nets: Networks) -> dict[str, tuple[Neuron, Tensor, Tensor]]:
    """The decisions of networks, from the side on which they rise to the boundary at 0."""
    zero = nets.x.new_zeros(len(nets.x))
    return {f"{n} on {nets.name}": (opposite(c.decision(nets.labels)), nets.x, zero) for n, c in nets.of.items()}


def bent(
    neuron: Neuron, x: Tensor, level: Tensor, *, samples: int, bender: Bender = parabolas, grid: tuple[float, ...] = GRID,
    seed: int = 0,
) -> Bent:  # fmt: skip
    """Twins of a neuron with contours bent by `bender`, in units of the distance that straight contours have."""
    neuron = replace(neuron, box=Box())
    zero = x.new_zeros(len(x))
    search = partial(closest_point, budget=BUDGET, starts=STARTS)
    flat = search(bender(neuron, x, zero), x, level, generator=Generator().manual_seed(seed)).distance
    known = flat.isfinite() & (flat > 0)
    scale = torch.where(known, flat, torch.ones_like(flat))
    found = [
        search(bender(neuron, x, c / scale), x, level, generator=Generator().manual_seed(seed)).distance / flat
        for c in grid
    ]
    n = x[0].numel()
    radius = scale * math.sqrt(n) / TENTH
    shares = [
        in_directions(
            bender(neuron, x, c / (n * scale)),
            x,
            level,
            radius,
            samples=samples,
            generator=Generator().manual_seed(seed),
        )
        for c in (-SLIGHT, 0.0, SLIGHT)
    ]
    share = torch.stack([shares[0], shares[2]]) / shares[1]
    return moved(
        Bent(torch.stack(found).masked_fill(~known, torch.nan), share.masked_fill(~known, torch.nan), grid), "cpu"
    )


def focused(product: np.ndarray) -> np.ndarray:
    """Distance of a paraboloid's closest point over that of its tip, by distance x curvature."""
    c = np.maximum(-product, 1.0)
    return np.sqrt(2 * c - 1) / c


def focusing(
    subjects: dict[str, tuple[Neuron, Tensor, Tensor]], *, samples: int, bender: Bender = parabolas, seed: int = 0,
    stage: Stage = silent,
) -> Finding:  # fmt: skip
    """Claim (e) on neurons, inputs and levels by name."""
    rows: dict[str, Bent] = {}
    with stage("e: bend contours", len(subjects), "subject") as on_done:
        for name, (neuron, x, level) in subjects.items():
            rows[name] = bent(neuron, x, level, samples=samples, bender=bender, seed=seed)
            on_done(1)
    tests = {}
    for name, row in rows.items():
        logs = row.distance.log()
        still = logs[[row.grid.index(c) for c in UNCHANGED]].abs().mean(0).numpy()
        tests[f"distance unchanged: {name}"] = Claim(
            f"{name}: above distance x curvature = -1 the smallest distance does not change",
            f"|log| of the distance over that of straight contours, mean over distance x curvature = {UNCHANGED} and cases",
            bootstrap(np.mean, still, seed=seed), SAME, "below",
        )  # fmt: skip
        tests[f"shrinks once focused: {name}"] = Claim(
            f"{name}: beyond -1 it shrinks",
            f"log of the distance over that of straight contours at distance x curvature = {FOCUSED:g}, mean over cases",
            bootstrap(np.mean, logs[row.grid.index(FOCUSED)].numpy(), seed=seed), SHRUNK, "below",
        )  # fmt: skip
        tests[f"share changes at once: {name}"] = Claim(
            f"{name}: the share of directions that cross changes at once",
            f"share of directions that cross, bent inward less bent outward by a sum of distance x curvature of {SLIGHT:g}, over "
            "that of straight contours; mean over cases",
            bootstrap(np.mean, (row.share[0] - row.share[1]).numpy(), seed=seed), SHIFT,
        )  # fmt: skip
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    line = np.linspace(min(GRID), max(GRID), 201)
    left.plot(line, focused(line), "-", color=plot.INK, lw=1, label="paraboloid, exact")
    for i, (name, row) in enumerate(rows.items()):
        color, marker = (plot.BLUE, plot.ORANGE, plot.GREEN, plot.PURPLE)[i % 4], "os^D"[i % 4]
        low, middle, high = np.nanquantile(row.distance.numpy(), [0.25, 0.5, 0.75], axis=1)
        at = np.asarray(row.grid) + 0.06 * (i - (len(rows) - 1) / 2)
        left.errorbar(
            at, middle, (middle - low, high - middle), fmt=marker, color=color, ms=6, mec=plot.INK, label=name
        )
        share = 100 * row.share.numpy() - 100
        low, middle, high = np.nanquantile(share, [0.25, 0.5, 0.75], axis=1)
        at = np.asarray([0, 1]) + 0.12 * (i - (len(rows) - 1) / 2)
        right.errorbar(at, middle, (middle - low, high - middle), fmt=marker, color=color, ms=6, mec=plot.INK)
    left.axvline(-1, color=plot.FAINT, ls="--", lw=1)
    left.set_xlabel("distance x curvature (straight contours' distance)")
    left.set_ylabel("smallest distance, over that of\nstraight contours")
    left.set_ylim(0, 1.15)
    left.legend(fontsize=8, loc="lower right")
    right.axhline(0, color=plot.INK, ls="--", lw=1)
    right.set_xticks([0, 1], ["bent inward", "bent outward"])
    right.set_xlim(-0.5, 1.5)
    right.set_ylabel("change of the share of\ndirections that cross (%)")
    return Finding(
        "e", "At equal gap and gradient, bending contours changes how many ways lead across at once, and how short the shortest "
        "is only when they focus on the input.",
        f"Above distance x curvature = -1 the smallest distance changes by less than {SAME:.0%}; at {FOCUSED:g} it is smaller; a "
        f"slight bending changes the share of directions that cross by more than {SHIFT:.0%}.",
        tests, figure,
        "Left: smallest distance over that of straight contours with the same gap and gradient (median, quartiles). Right: the "
        f"share of random directions that cross, where a tenth does, for a bending of ±{SLIGHT:g}/n along each of n tangents.",
        values={
            "e_distance": (("e_subject", "e_curvature", "e_case"), _padded(rows, "distance"), {
                "units": "1", "long_name": "smallest distance over that of straight contours",
            }),
            "e_share": (("e_subject", "e_sign", "e_case"), _padded(rows, "share"), {
                "units": "1", "long_name": "share of directions that cross over that of straight contours",
            }),
        },
        notes=(
            "This sharpens the essay: how far the nearest adversary is depends on gap and spacing, until contours focus; how "
            "easily one is met depends on curvature. A search that starts along the gradient stays on the line of symmetry of a "
            "focusing contour, so the search has several starts.",
        ),
    )  # fmt: skip


def _padded(rows: dict[str, Bent], key: str) -> np.ndarray:
    return side_by_side([getattr(row, key).T for row in rows.values()]).transpose(0, 2, 1)
