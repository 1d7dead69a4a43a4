"""Spacing, local and global: how often a greedy path is longer than it need be, and the cliff on the other side of the valley.

The essay ends on it: "If you wish to climb a mountain in as few steps as possible, you might need to walk in a sub-optimal
direction for a little while to get to a cliff face". On landscapes every way is known: the closest place that is so much
higher is found by branch and bound, with a bound for what it can miss, and fast marching agrees. On networks the closest
point known is that of a search from several places, so what greed costs there is a lower bound.

Without data: the landscape that comes with matplotlib, and networks on scikit-learn's digits. `data` with a folder `dem` gives
its elevation models, with a folder `mnist` networks on MNIST. `--quick`: some tens of starts; minutes on 2 cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.grid import GridSolution, closest_point_on_grid
from isoresponse.marching import marching_distance
from isoresponse.models.elevation import ElevationMap
from isoresponse.neuron import Box, Neuron
from isoresponse.spacing import Detours, SpacingProfile, greedy_against_closest, spacing_profile, straight_way
from isoresponse.studies.bit_depth import on_digits
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import Cell, Claim, Outcome, Table, share
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.terrain import draw_terrain, load_elevation, zoom

NAME = "spacing"
LONGER, LOST = 1.1, 1.01  # times the closest: when a greedy path is too long, when a local search has lost
SOMETIMES = 0.05
DOWN = 0.02  # of the climb: a way that falls by more leads through a valley


@dataclass(frozen=True)
class Settings:
    """Starts on each landscape and how much they are to climb (of its range), images per network, gradients per search."""

    starts: int = 400
    climb: float = 0.25
    example_climb: float = 0.08
    resolution: int = 96
    steps: int = 300
    cases: int = 200
    train: int = 60_000
    budget: int = 100
    places: int = 10


QUICK = Settings(starts=40, resolution=64, steps=150, cases=30, train=10_000, budget=60, places=5)


@dataclass(frozen=True, eq=False)
class Example:
    """One start on a landscape whose closest way leads through a valley to a cliff, with spacing along both ways."""

    terrain: ElevationMap
    name: str
    start: Tensor
    greedy: Tensor  # (knot, 2)
    closest: Tensor
    level: float
    profiles: dict[str, SpacingProfile]
    numbers: dict[str, float]


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` as in the module's docstring."""
    settings = QUICK if quick else Settings()
    tables, examples = [], []
    for path in landscapes(data):
        terrain, name = load_elevation(path)
        table, example = on_landscape(terrain, name, settings, seed=seed, stage=stage)
        tables.append(table)
        examples.append(example)
    nets = on_digits(data, train=settings.train, cases=settings.cases, seed=seed, device=device, stage=stage)
    tables += on_networks(nets, settings, seed=seed, stage=stage)
    dataset = xr.concat(tables, "subject", combine_attrs="override", join="outer")
    found = [e for e in examples if e is not None]
    best = max(found, key=_telling) if found else None
    return outcome(dataset, best, seed=seed).about(data=str(data), seed=seed, quick=quick, **asdict(settings))


def _telling(example: Example) -> tuple[bool, float]:
    """A greedy path that arrives says more than one that does not; then a longer one, or a deeper valley."""
    excess = example.numbers["greedy_over_closest"]
    arrives = bool(np.isfinite(excess))
    return arrives, excess if arrives else example.numbers["dip_m"] / example.numbers["climb_m"]


def landscapes(data: Path | None) -> list[Path | None]:
    """The elevation models of the folder `dem` of `data`, or None for the one that ships with matplotlib."""
    if data is None or not (data / "dem").is_dir():
        return [None]
    return [*sorted((data / "dem").glob("*.npz"))] or [None]


def on_landscape(
    terrain: ElevationMap, name: str, settings: Settings, *, seed: int = 0, stage: Stage = silent
) -> tuple[xr.Dataset, Example | None]:
    """Greedy and closest ways from random places, and the most telling one through a valley, if there is one.

    Examples are looked for with a smaller climb, which more starts can make, and whose ways are short enough to be drawn.
    """
    generator = Generator().manual_seed(seed)
    with stage(f"{name}: closest places and greedy paths", 2, "climb") as on_done:
        ways = _ways(terrain, name, settings, settings.climb, generator)
        on_done(1)
        table = described(ways.found, name, "landscape", ways.dip)
        example = _most_telling(terrain, _ways(terrain, name, settings, settings.example_climb, generator))
        on_done(1)
    return table, example


@dataclass(frozen=True, eq=False)
class _Ways:
    """Greedy and closest ways of some starts on a landscape."""

    neuron: Neuron
    x: Tensor
    level: Tensor
    climb: float
    exact: GridSolution
    found: Detours
    dip: Tensor  # (case,): over the climb


def _ways(terrain: ElevationMap, name: str, settings: Settings, part: float, generator: Generator) -> _Ways:
    """From random places on land, up by a part of the landscape's range."""
    extent = torch.tensor(terrain.extent, dtype=torch.float64)
    neuron = Neuron(terrain, (2,), Box(0.0, extent), name)
    low, high = float(terrain.grid.min()), float(terrain.grid.max())
    climb = part * (high - low)
    places = extent * torch.rand(40 * settings.starts, 2, generator=generator, dtype=torch.float64)
    here = neuron.value(places)
    usable = torch.nonzero((here > low + 0.005 * (high - low)) & (here + climb < high)).flatten()[: settings.starts]
    x, level = places[usable], here[usable] + climb
    exact = closest_point_on_grid(neuron, x, level, resolution=settings.resolution)
    found = greedy_against_closest(
        neuron, x, level, known=exact, budget=settings.budget, max_steps=settings.steps, knots=41
    )
    end = torch.where(found.closest.isfinite(), found.closest, x)
    straight = spacing_profile(neuron, straight_way(x, end, knots=101))
    dip = (straight.dip / climb).masked_fill(~torch.isfinite(found.d_global), torch.nan)
    return _Ways(neuron, x, level, climb, exact, found, dip)


def _most_telling(terrain: ElevationMap, ways: _Ways) -> Example | None:
    """The worst greedy path that arrives although the closest way leads through a valley; or else the nearest such way
    to a level that the greedy path never reaches.
    """
    found, x = ways.found, ways.x
    through = (ways.dip > DOWN) & ~found.greedy_excess.isnan()
    arrives = through & torch.isfinite(found.greedy_excess) & (found.greedy_excess > LONGER)
    if not bool(through.any()):
        return None
    near = torch.where(through & torch.isinf(found.greedy_excess), -found.d_global, -torch.inf)
    if not bool(arrives.any() | torch.isfinite(near).any()):
        return None
    i = int((torch.where(arrives, found.greedy_excess, -torch.inf) if bool(arrives.any()) else near).argmax())
    greedy = spacing_profile(ways.neuron, found.points[i : i + 1])
    way = spacing_profile(ways.neuron, straight_way(x[i : i + 1], found.closest[i : i + 1], knots=101))
    level = float(ways.level[i])
    marched = marching_distance(terrain.grid.numpy(), level, terrain.cell)
    column, row = (round(float(x[i, k]) / terrain.cell[k]) for k in (0, 1))
    numbers = {
        "start_m": level - ways.climb, "climb_m": ways.climb, "greedy_km": float(found.greedy[i]),
        "closest_km": float(found.d_global[i]), "local_km": float(found.d_local[i]),
        "closest_error_km": float(ways.exact.error[i]), "marching_km": float(marched[row, column]),
        "cell_km": max(terrain.cell), "greedy_over_closest": float(found.greedy_excess[i]), "dip_m": float(way.dip[0]),
        "narrowest_spacing_greedy_m_per_m": 1000 * float(greedy.narrowest[0]),
        "narrowest_spacing_closest_m_per_m": 1000 * float(way.narrowest[0]),
    }  # fmt: skip
    profiles = {"greedy": greedy, "closest": way}
    return Example(terrain, ways.neuron.name, x[i], found.points[i], found.closest[i], level, profiles, numbers)


def on_networks(nets: Networks, settings: Settings, *, seed: int = 0, stage: Stage = silent) -> list[xr.Dataset]:
    """Steepest paths of the margin to the boundary, against the closest adversaries found from one place and from many."""
    tables = []
    for name, classifier in nets.of.items():
        generator = Generator().manual_seed(seed)
        with stage(f"{nets.name}, {name}: paths and searches", len(nets.x)) as on_cases:
            local = classifier.closest_adversary(nets.x, nets.labels, budget=settings.budget)
            known = classifier.closest_adversary(
                nets.x,
                nets.labels,
                budget=settings.budget * settings.places,
                starts=settings.places,
                generator=generator,
            )
            neuron = classifier.decision(nets.labels)
            found = greedy_against_closest(
                neuron, nets.x, 0.0, known=known, local=local, max_steps=settings.steps, knots=11
            )
            on_cases(len(nets.x))
        closest = torch.where(torch.isfinite(found.closest), found.closest, nets.x)
        way = spacing_profile(neuron, straight_way(nets.x, closest, knots=11))
        gap = way.response[:, 0]
        rise = (way.response.amax(1) - gap) / gap  # towards a boundary the margin is to fall
        tables.append(described(found, f"{nets.name}: {name}", "network", rise))
    return tables


def described(found: Detours, name: str, kind: str, dip: Tensor) -> xr.Dataset:
    """Excesses of one subject; `dip` (case,) is how far its closest way leads back first, as a part of the gap."""
    rows = {
        "greedy_excess": (found.greedy_excess, "length of the greedy path over the closest distance known"),
        "reach_excess": (
            (found.reach / found.d_global),
            "straight distance to the greedy path's end over the closest known",
        ),
        "local_excess": (found.local_excess, "distance of the local search's answer over the closest known"),
        "d_global": (found.d_global, "closest distance known"),
        "dip": (dip, "how far the closest way leads back first, over the gap"),
    }
    made = {
        k: ("case", v.cpu().numpy(), {"units": "input" if k == "d_global" else "1", "long_name": about})
        for k, (v, about) in rows.items()
    }
    told = xr.Dataset(made, coords={"subject": name, "case": np.arange(len(found))})
    return told.assign(kind=((), kind, {"units": "1", "long_name": "landscape or network"}))


def outcome(dataset: xr.Dataset, example: Example | None, *, seed: int = 0) -> Outcome:
    """Claims, table and figures."""
    figures = {NAME: (figure(dataset), _CAPTION)}
    if example is not None:
        figures["cliff"] = (cliff(example), _CLIFF)
    numbers = {} if example is None else {"cliff": {"landscape": example.name, **example.numbers}}
    return Outcome(
        NAME, "Spacing, local and global: what greed costs", claims(dataset), table(dataset), figures, dataset,
        _DIFFERENCES, {}, _NOTES, numbers,
    )  # fmt: skip


def _lost(values: np.ndarray, limit: float) -> np.ndarray:
    """1 where a ratio is above the limit, 0 where not, NaN where it is not known."""
    return np.where(np.isnan(values), np.nan, values > limit)


def claims(dataset: xr.Dataset) -> tuple[Claim, ...]:
    """For every subject: greedy paths that are too long, closest ways that lead back first, local searches that lose."""
    made = []
    for name in dataset.subject.values:
        one = dataset.sel(subject=name)
        made += [
            Claim(
                f"(the essay) {name}: a greedy path is sometimes longer than need be",
                f"share of starts whose steepest path is more than {LONGER - 1:.0%} longer than the closest way, or ends",
                share(_lost(one.greedy_excess.values, LONGER)), SOMETIMES, "above",
            ),
            Claim(
                f"(the essay) {name}: sometimes the closest way leads the wrong way first",
                f"share of starts whose closest way first loses more than {DOWN:.0%} of what is to be gained",
                share(_lost(one.dip.values, DOWN)), SOMETIMES, "above",
            ),
            Claim(
                f"(ours) {name}: a local search for the closest point rarely misses a nearer one",
                f"share of starts whose local answer is more than {LOST - 1:.0%} farther than the closest known",
                share(_lost(one.local_excess.values, LOST)), SOMETIMES, "below",
            ),
        ]  # fmt: skip
    return tuple(made)


def table(dataset: xr.Dataset) -> Table:
    """One row per subject."""
    columns = (
        "subject", "kind", "starts", "greedy path over closest, median", "95 % quantile", "greedy more than 10 % longer",
        "greedy path never arrives", "end of the greedy path over closest, median", "local search more than 1 % farther",
        "local over closest, 95 % quantile", "closest way leads back first",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for name in dataset.subject.values:
        one = dataset.sel(subject=name)
        greedy, local, reach = (one[k].values for k in ("greedy_excess", "local_excess", "reach_excess"))
        rows.append((
            str(name), str(one.kind.values), int(np.isfinite(one.d_global.values).sum()), _quantile(greedy, 0.5),
            _quantile(greedy, 0.95), float(np.nanmean(_lost(greedy, LONGER))), float(np.nanmean(_lost(greedy, 1e300))),
            _quantile(reach, 0.5), float(np.nanmean(_lost(local, LOST))), _quantile(local, 0.95),
            float(np.nanmean(_lost(one.dip.values, DOWN))),
        ))  # fmt: skip
    return Table(columns, tuple(rows))


def _quantile(values: np.ndarray, q: float) -> float:
    """The value that a share `q` does not exceed; infinite values count."""
    known = np.sort(values[~np.isnan(values)])
    return float(known[max(0, int(np.ceil(q * len(known))) - 1)]) if len(known) else float("nan")


def figure(dataset: xr.Dataset) -> Figure:
    """How many starts lose how much, for greedy paths and for local searches."""
    drawn = new_figure(11.0, 4.4)
    left, right = drawn.subplots(1, 2, sharey=True)
    for ax, key, what in ((left, "greedy_excess", "steepest path"), (right, "local_excess", "local search")):
        for i, name in enumerate(dataset.subject.values):
            values = dataset[key].sel(subject=name).values
            known = np.sort(values[~np.isnan(values)])
            if not len(known):
                continue
            part = 1 - np.arange(len(known)) / len(known)
            finite = np.isfinite(known)
            ax.step(
                np.maximum(known[finite] - 1, 1e-4), part[finite], where="pre", color=plot.HUES[i % len(plot.HUES)],
                lw=1.5, ls="-" if str(dataset.kind.sel(subject=name).values) == "landscape" else "--", label=str(name),
            )  # fmt: skip
        ax.set_xscale("log")
        ax.set_xlabel(f"excess of the {what} over the closest known")
        ax.grid(alpha=0.3)
    left.axvline(LONGER - 1, color=plot.FAINT, lw=0.8)
    right.axvline(LOST - 1, color=plot.FAINT, lw=0.8)
    left.set_ylabel("share of starts that lose at least as much")
    left.legend(fontsize=7)
    return drawn


def cliff(example: Example) -> Figure:
    """The landscape with both ways, and height and spacing along them."""
    drawn = new_figure(12.6, 5.0)
    first, second, third = drawn.subplots(1, 3, width_ratios=(1.3, 1, 1))
    _map(first, example)
    for name, color, dash in (("greedy", plot.VERMILION, "-"), ("closest", plot.BLUE, "--")):
        told = example.profiles[name]
        length = told.arclength[0].numpy()
        second.plot(length, told.response[0].numpy(), color=color, ls=dash, lw=1.8, label=name)
        third.plot(length, 1000 * told.spacing[0].numpy(), color=color, ls=dash, lw=1.8, label=name)
    second.axhline(example.level, color=plot.INK, lw=0.8, ls=":")
    second.set_ylabel("height along the way (m)")
    third.set_ylabel("spacing of contours (m per m of height)")
    third.set_yscale("log")
    for ax in (second, third):
        ax.set_xlabel("length of the way (km)")
        ax.legend(fontsize=8)
    return drawn


def _map(ax: Axes, example: Example) -> None:
    draw_terrain(ax, example.terrain)
    rows, columns = example.terrain.grid.shape
    width, height = example.terrain.extent
    ax.contour(
        np.linspace(0, width, columns), np.linspace(0, height, rows), example.terrain.grid.numpy(), levels=[example.level],
        colors=plot.INK, linewidths=2,
    )  # fmt: skip
    plot.path(ax, example.greedy, label="greedy")
    ends = torch.stack([example.start, example.closest])
    plot.path(ax, ends, color=plot.BLUE, label="closest")
    zoom(ax, torch.cat([example.greedy[torch.isfinite(example.greedy).all(1)], ends]), example.terrain.extent)
    n = example.numbers
    greedily = f"in {n['greedy_km']:.3g} km greedily" if np.isfinite(n["greedy_km"]) else "which greed never reaches"
    ax.set_title(
        f"{example.name}: {n['climb_m']:.3g} m up {greedily},\nin {n['closest_km']:.3g} km through a "
        f"valley {n['dip_m']:.2g} m deep", fontsize=10,
    )  # fmt: skip


_CAPTION = (
    "Share of starts whose steepest path (left) and whose local search for the closest point (right) are at least so much "
    "longer than the closest way known. Lines that end above zero: the others never arrive. Grey: what counts as lost."
)
_CLIFF = (
    "The cliff on the other side of the valley: from one start, the steepest path to the thick contour, and the closest place "
    "on it. Contours are crossed at right angles by the one; the other first loses height and then crosses many contours in a "
    "short way."
)
_NOTES = (
    "On landscapes the closest place is that of a branch and bound over the whole map, exact to a stated error; a first-order "
    "fast marching from the contour agrees to about a cell (both are in the summary, for the example).",
    "On networks the closest point known is the best of a search from several places: the shares are lower bounds.",
    "A steepest path that ends on a summit below the level or at the edge of the box counts as infinitely long. The end of "
    "a path is nearer than the path is long: an attack that follows it is judged by the former.",
)
_DIFFERENCES = (
    "The essay counts steps; here ways are measured by length in the input.",
    "The essay's mountain is a thought; here are elevation models, smoothed a little, and a quarter of their range to climb.",
)
