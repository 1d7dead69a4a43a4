"""What the paths of `neuron_attack` say: claims, table and figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from isoresponse import plot
from isoresponse.neuron import Neuron
from isoresponse.planes import Plane, response_surface
from isoresponse.studies.experiment import Cell, Claim, Effect, Outcome, Table, bootstrap
from isoresponse.studies.figures import new_figure

SPARSE, POINTWISE = "LCA", "pointwise"
LOOKS = {SPARSE: (plot.BLUE, "-"), POINTWISE: (plot.INK, (0, (6, 2, 1, 2)))}
EXACT = 1e-6
NEAR, PATCH = "near the weight", "natural patches"  # families of starts


@dataclass(frozen=True, eq=False)
class Example:
    """One path per kind of unit, from one start, to be drawn in the plane of the weight and the start."""

    neurons: dict[str, Neuron]
    points: dict[str, Tensor]  # (knot, n)
    weight: Tensor
    title: str


def outcome(dataset: xr.Dataset, examples: dict[str, Example], *, seed: int = 0) -> Outcome:
    """Claims, table and figure of the paths; dims (model, neuron, start, knot), and `toy_` variables (model, toy_knot)."""
    return Outcome(
        "neuron-attack", "Where the steepest path of a neuron leads", claims(dataset, seed=seed), table(dataset),
        {"neuron-attack": (figure(dataset, examples), _CAPTION)}, dataset, _DIFFERENCES, {}, _NOTES,
    )  # fmt: skip


def at_end(dataset: xr.Dataset, key: str, model: str) -> np.ndarray:
    """Mean over starts (neuron,) of a variable at the last knot, over the starts from which both paths got there."""
    there = np.isfinite(dataset.off_axis.isel(knot=-1)).all("model")
    return dataset[key].sel(model=model).isel(knot=-1).where(there).mean("start").values


def claims(dataset: xr.Dataset, *, seed: int = 0) -> tuple[Claim, ...]:
    """The path turns towards the weight, to the MEI; the pointwise one does not; and what the essay says of perturbations."""
    toy = {m: float(dataset.toy_off_axis.sel(model=m).isel(toy_knot=-1)) for m in (SPARSE, POINTWISE)}
    straight = abs(toy[POINTWISE] - 1)
    made = [
        Claim(
            "toy: the path of the LCA neuron turns towards its weight", "distance from the weight's axis at the end over that "
            "at the start (computed, not sampled)", Effect(toy[SPARSE], toy[SPARSE], toy[SPARSE], 1), 1.0, "below",
        ),
        Claim(
            "toy: the path of the pointwise neuron does not", "the same, how far from 1",
            Effect(straight, straight, straight, 1), EXACT, "below",
        ),
    ]  # fmt: skip
    for family in (NEAR, PATCH):
        made += _of_units(starting(dataset, family), family, seed)
    return tuple(made)


def starting(dataset: xr.Dataset, family: str) -> xr.Dataset:
    """The paths from one family of starts."""
    return dataset.isel(start=np.asarray(dataset.family.values == family))


def _of_units(dataset: xr.Dataset, family: str, seed: int) -> list[Claim]:
    where, units = f"units, from inputs {family}" if family == NEAR else f"units, from {family}", "mean over units"
    away = {m: at_end(dataset, "off_axis", m) for m in (SPARSE, POINTWISE)}

    def difference(key: str) -> Effect:
        both = (at_end(dataset, key, m) for m in (SPARSE, POINTWISE))
        return bootstrap(lambda a, b: a.mean() - b.mean(), *both, paired=True, seed=seed)

    return [
        Claim(
            f"{where}: the path of an LCA unit turns towards its weight",
            f"distance from the weight's axis at the end over that at the start, {units}",
            bootstrap(np.mean, away[SPARSE], seed=seed), 1.0, "below",
        ),
        Claim(
            f"(ours) {where}: it turns towards the unit's measured MEI",
            f"distance from the MEI's axis at the end over that at the start, {units}",
            bootstrap(np.mean, at_end(dataset, "off_mei", SPARSE), seed=seed), 1.0, "below",
        ),
        Claim(
            f"{where}: the path of a pointwise unit is straight along its weight", "the same, how far from 1, largest",
            bootstrap(lambda v: np.abs(v - 1).max(), away[POINTWISE], seed=seed), EXACT, "below",
        ),
        Claim(
            f"{where}: after the same gain the input is closer to the weight on the path of the LCA unit",
            f"difference of the angles between input and weight in degrees, LCA less pointwise, {units}",
            difference("input_angle"), 0.0, "below",
        ),
        Claim(
            f"{where}: and closer to the unit's measured MEI",
            f"difference of the angles between input and the unit's own MEI, in degrees, {units}",
            difference("mei_angle"), 0.0, "below",
        ),
        Claim(
            f"(the essay) {where}: the perturbation of the LCA unit is more aligned with its MEI than that of the pointwise one",
            f"difference of the angles between perturbation and the unit's own MEI, in degrees, {units}",
            difference("change_mei_angle"), 0.0, "below",
        ),
    ]  # fmt: skip


def table(dataset: xr.Dataset) -> Table:
    """One row per model, for the toy and for the units."""
    columns = (
        "neurons", "model", "paths", "reached the end", "off the weight's axis, end over start",
        "off the MEI's axis, end over start", "angle of the input to the weight, start", "the same, end (degrees)",
        "angle of the perturbation to the weight", "angle of the perturbation to the MEI", "angle of the MEI to the weight",
        "response to the MEI over that to the weight", "length over gain",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for model in (SPARSE, POINTWISE):
        one = dataset.sel(model=model)
        first, last = one.isel(toy_knot=0), one.isel(toy_knot=-1)
        gain = float(last.toy_response - first.toy_response)
        rows.append((
            "toy", model, 1, float(np.isfinite(last.toy_off_axis)), float(last.toy_off_axis), float(last.toy_off_mei),
            float(first.toy_input_angle), float(last.toy_input_angle), float(last.toy_change_angle),
            float(last.toy_change_mei_angle), 0.0, 1.0, float(last.toy_length) / gain,
        ))  # fmt: skip
    for family in (NEAR, PATCH):
        part = starting(dataset, family)
        for model in (SPARSE, POINTWISE):
            one = part.sel(model=model)
            start = float(np.nanmean(one.input_angle.isel(knot=0)))
            end = {
                k: float(np.nanmean(at_end(part, k, model)))
                for k in ("off_axis", "off_mei", "input_angle", "change_angle", "change_mei_angle", "length")
            }
            rows.append((
                f"units, {family}", model, one.sizes["neuron"] * one.sizes["start"],
                float(np.isfinite(one.off_axis.isel(knot=-1)).mean()), end["off_axis"], end["off_mei"], start,
                end["input_angle"], end["change_angle"], end["change_mei_angle"], float(one.mei_to_weight.mean()),
                float(one.mei_gain.mean()), end["length"] / float(dataset.gained.values[-1]),
            ))  # fmt: skip
    return Table(columns, tuple(rows))


def figure(dataset: xr.Dataset, examples: dict[str, Example]) -> Figure:
    """Toy and units, one row per start: contours, gradient field and paths of both kinds, and how far from the axis they are."""
    drawn = new_figure(13.2, 12.6)
    grid = drawn.subplots(3, 3)
    _row(grid[0], examples["toy"], x=(0.0, 0.29), y=(-0.16, 0.2))
    gains = dataset.toy_response.sel(model=SPARSE) - dataset.toy_response.sel(model=SPARSE).isel(toy_knot=0)
    curves = [(grid[0][2], dataset.toy_off_axis, gains.values, "toy", None)]
    for row, family in zip(grid[1:], (NEAR, PATCH), strict=True):
        example, part = examples[family], starting(dataset, family)
        points = example.points[POINTWISE].nan_to_num()
        size = float(points.norm(dim=1).max())
        _row(row, example, x=(-0.1 * size, 1.15 * size), y=(-0.4 * size, 0.85 * size))
        title = f"{dataset.sizes['neuron'] * part.sizes['start']} paths of units, {family}"
        curves.append((row[2], part.off_axis, dataset.gained.values, title, part.off_mei))
    for ax, away, gained, title, off_mei in curves:
        for kind, (color, dash) in LOOKS.items():
            low, middle, high = _quartiles(away.sel(model=kind).values)
            ax.plot(gained, middle, ls=dash, color=color, lw=2, label=f"{kind}: axis of the weight")
            ax.fill_between(gained, low, high, color=color, alpha=0.2, lw=0)
        if off_mei is not None:
            low, liked, high = _quartiles(off_mei.sel(model=SPARSE).values)
            ax.plot(gained, liked, ls=":", color=plot.PURPLE, lw=2, label=f"{SPARSE}: axis of its measured MEI")
            ax.fill_between(gained, low, high, color=plot.PURPLE, alpha=0.2, lw=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("response gained (response units)")
        ax.set_ylabel("distance from the axis, over that at the start")
        ax.set_ylim(0, 1.1 * max(float(np.nanmax(line.get_ydata())) for line in ax.get_lines()))
        ax.legend(fontsize=8, loc="best")
    return drawn


def _row(axes: np.ndarray, example: Example, *, x: tuple[float, float], y: tuple[float, float]) -> None:
    start = example.points[SPARSE][0]
    plane = Plane.spanning(torch.zeros_like(start), example.weight, start)
    highest = max(float(plane.project(p).nan_to_num()[:, 1].max()) for p in example.points.values())
    y = (y[0], max(y[1], 1.1 * highest))  # a path nearly orthogonal to the weight is not to be cut off
    for ax, kind in zip(axes, (SPARSE, POINTWISE), strict=False):
        color, _ = LOOKS[kind]
        neuron = example.neurons[kind]
        view = response_surface(neuron, plane, x=x, y=y, size=101)
        top = float(view.response.max())
        plot.surface(
            ax, view, levels=[top * s for s in (0.02, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)], fmt="%.2g", fill=False
        )
        _arrows(ax, neuron, plane, x, y)
        plot.path(ax, plane.project(example.points[kind]), color=color)
        ax.axhline(0, color=plot.INK, lw=0.8, ls=":")
        ax.set_xlim(*x)
        ax.set_ylim(*y)
        ax.set_title(f"{kind}: {example.title}", fontsize=10)
        ax.set_xlabel(r"along the weight $\Phi_k$ (input units)")
        ax.set_ylabel("orthogonal, towards the start (input units)")


def _quartiles(values: np.ndarray) -> np.ndarray:
    """First quartile, median and third quartile (3, knot) of values (..., knot)."""
    return np.nanquantile(values.reshape(-1, values.shape[-1]), [0.25, 0.5, 0.75], axis=0)


def _arrows(ax: Axes, neuron: Neuron, plane: Plane, x: tuple[float, float], y: tuple[float, float]) -> None:
    """The gradient's direction within the plane, where there is a gradient."""
    ticks = [torch.linspace(a + 0.05 * (b - a), b - 0.05 * (b - a), 11, dtype=plane.basis.dtype) for a, b in (x, y)]
    at = torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 2).to(plane.basis)
    _, gradient = neuron.value_and_grad(plane.inject(at))
    within = gradient.flatten(1) @ plane.basis.T
    size = within.norm(dim=1, keepdim=True)
    some = size[:, 0] > 1e-9
    where, unit = at[some].T.cpu().numpy(), (within / size)[some].T.cpu().numpy()
    ax.quiver(*where, *unit, color=plot.FAINT, width=0.004, scale=26, headwidth=4, zorder=2)


_CAPTION = (
    "From above: the paper's toy, three elements in the plane; a unit learnt on natural patches, from an input near its "
    "weight; and a unit from a natural patch. Planes hold the weight and the start; paths of units leave them and are "
    "drawn by their projection, arrows are the gradient's part within the plane. Left: sparse coding, middle: a pointwise "
    "unit with the same weight and threshold. Right: how far the input is from the axis of the weight while the response "
    "grows, median and quartiles."
)
_NOTES = (
    "A pointwise unit's steepest path is along its weight, which is its most exciting input (MEI): its perturbation is "
    "aligned with the MEI perfectly, and no other neuron's can be more so. What bent contours may change is the input "
    "itself: whether it comes to look like the weight, or like the unit's own MEI, is measured here.",
    "The MEI is searched for among inputs of the mean length of a patch. That of a rectified LCA unit is not its weight "
    "where its angle to the weight, in the table, is above zero: elements that point away from the unit's own raise its "
    "response when they become active, since it then has to make up for them.",
    "A start near the weight is away from it towards one other weight, as in the toy. A natural patch to which the unit "
    "responds is far from the weight (the angle is in the table) and made of many elements.",
)
_DIFFERENCES = (
    "Both neurons start at one input; in the paper's figure the LCA neuron starts at (0.10, 0.05) and the pointwise "
    "one at (0.10, 0.15).",
    "The pointwise neuron has the LCA's threshold, so that both respond alike along the weight; the paper's is a "
    "ReLU of the product.",
    "The toy's code is rectified and solved to rounding (50 Euler steps and a threshold on the absolute value in the "
    "paper). The path integrates the gradient and ends at a response; the paper takes steps of 1e-4 until a "
    "coordinate leaves a range.",
    "Instead of one trajectory of a classifier, paths of many units from two kinds of starts, with intervals over units.",
)
