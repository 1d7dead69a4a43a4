"""How many natural patches excite a unit, and how much they look like its weight: sparse coding against the same weights.

A patch excites a unit if its response is above half of the unit's largest one over all patches. Three kinds of units share
one dictionary: linear ones, rectified ones with the threshold of the LCA (pointwise), and those of the LCA. The angle between
patch and weight is taken where the weight is: both are masked by the envelope of the weight.

**Full settings are meant for a GPU**: patches of 16 x 16, 2x, 4x and 10x overcomplete, 100,000 patches. `--quick`: patches of
10 x 10, 2x and 4x, 10,000 patches; a minute or two on 2 cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from isoresponse import plot
from isoresponse.directions import phase_shifted
from isoresponse.models.basic import Linear, LinearNonlinear
from isoresponse.models.lca import LCA
from isoresponse.studies.experiment import Cell, Claim, Outcome, Table, bootstrap
from isoresponse.studies.figures import new_figure
from isoresponse.studies.materials import natural_patches, trained_dictionary, units_of
from isoresponse.studies.measure import Stage, silent

NAME = "natural-selectivity"
SPARSE, POINTWISE, LINEAR = "LCA", "pointwise", "linear"
LOOKS = {SPARSE: (plot.BLUE, "-"), POINTWISE: (plot.INK, (0, (6, 2, 1, 2))), LINEAR: (plot.ORANGE, (0, (5, 2)))}
SHARE = 0.5  # of the largest response, above which a patch excites
ENVELOPE = 0.5  # of the envelope's maximum, above which a pixel counts
CHUNK = 1000  # patches shown together
PER = 100_000  # patches to which counts are converted, as many as in the paper
PUBLISHED = {2: (57, 75), 4: (53, 72), 10: (50, 73)}  # median counts, LCA and linear, measured on the author's slides
GUTTER = 0.25  # pictures wide, between the groups of pictures


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    size: int = 16
    overcompleteness: tuple[float, ...] = (2, 4, 10)
    sparsity: float = 0.5  # standard deviations of a pixel
    patches: int = 1_000_000
    steps: int = 20_000
    shown: int = 100_000


QUICK = Settings(size=10, overcompleteness=(2, 4), patches=50_000, steps=400, shown=10_000)


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` as for `materials.natural_patches`."""
    settings = QUICK if quick else Settings()
    found = natural_patches(data, settings.size, settings.patches, seed=seed, device=device)
    shown = natural_patches(data, settings.size, settings.shown, seed=seed + 1, device=device).x.double()
    tables, example = [], None
    for o in settings.overcompleteness:
        dictionary = trained_dictionary(
            found.x,
            units_of(o, settings.size**2),
            sparsity=settings.sparsity,
            steps=settings.steps,
            seed=seed,
            stage=stage,
        )
        table_of = excitation(models(dictionary, settings.sparsity), dictionary, shown, stage=stage, title=f"{o:g}x")
        tables.append(table_of.expand_dims(overcompleteness=[float(o)]))
        example = dictionary
    dataset = xr.concat(tables, "overcompleteness", combine_attrs="override", join="outer")
    result = outcome(dataset, settings, seed=seed)
    if example is not None:
        last = models(example, settings.sparsity)
        result.figures["patches"] = (patch_figure(last, example, shown, dataset, settings.size), _PATCHES)
    return result.about(data=found.name, seed=seed, quick=quick, **asdict(settings))


def models(dictionary: Tensor, sparsity: float) -> dict[str, nn.Module]:
    """Three kinds of units with the same weights."""
    filters = dictionary.T.contiguous()
    return {
        SPARSE: LCA(dictionary, sparsity=sparsity), POINTWISE: LinearNonlinear(filters, torch.relu, bias=-sparsity),
        LINEAR: Linear(filters),
    }  # fmt: skip


@torch.no_grad()
def responses(module: nn.Module, patches: Tensor, *, stage: Stage = silent, title: str = "patches") -> Tensor:
    """Responses (patch, unit), some hundreds of patches at a time."""
    parts = []
    with stage(title, len(patches), "patch") as on_done:
        for some in patches.flatten(1).split(CHUNK):
            parts.append(module(some))
            on_done(len(some))
    return torch.cat(parts)


def excitation(
    units: dict[str, nn.Module], weights: Tensor, patches: Tensor, *, stage: Stage = silent, title: str = "patches"
) -> xr.Dataset:
    """Number of exciting patches and their mean angle to the weight, dims (model, unit).

    Parameters
    ----------
    units
        Modules from inputs (case, n) to responses (case, units), by name.
    weights
        (n, units).
    patches
        (patch, size, size).
    """
    images = patches.flatten(1)
    mask = envelope_mask(weights, patches.shape[-1])
    rows = []
    for name, module in units.items():
        activity = responses(module, patches, stage=stage, title=f"{name} {title}")
        top = activity.amax(0)
        exciting = (activity > SHARE * top) & (top > 0)
        angles = torch.full_like(top, torch.nan)
        for k in torch.nonzero(top > 0).flatten().tolist():
            some, weight = images[exciting[:, k]][:, mask[:, k]], weights[mask[:, k], k]
            cosine = (some @ weight) / (some.norm(dim=1) * weight.norm())
            angles[k] = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).nanmean()
        count = exciting.sum(0).double().masked_fill(top <= 0, torch.nan)
        rows.append(xr.Dataset({
            "count": ("unit", count.cpu().numpy(), {"units": "1", "long_name": "number of patches that excite the unit"}),
            "angle": ("unit", angles.cpu().numpy(), {"units": "degree", "long_name": "mean angle of these to the weight"}),
            "largest": ("unit", top.cpu().numpy(), {"units": "response", "long_name": "largest response"}),
        }).expand_dims(model=[name]))  # fmt: skip
    found = xr.concat(rows, "model", combine_attrs="override")
    number = found.assign_coords(unit=np.arange(weights.shape[1]))
    return number.assign(patches=((), len(patches), {"units": "1"}))


def envelope_mask(weights: Tensor, size: int) -> Tensor:
    """Where (n, units) the envelope of each weight is above a share of its maximum; the envelope is the length of weight and
    phase-shifted weight, the analytic signal along the dominant frequency.
    """
    images = weights.T.reshape(-1, size, size)
    envelope = torch.stack([torch.hypot(w, phase_shifted(w)) for w in images]).flatten(1)
    return (envelope > ENVELOPE * envelope.amax(1, keepdim=True)).T


# --- what it says -----------------------------------------------------------------------------------------


def outcome(dataset: xr.Dataset, settings: Settings, *, seed: int = 0) -> Outcome:
    """Claims, table and figure of the excitation."""
    return Outcome(
        NAME, "How many natural patches excite a unit, and how much they look like its weight", claims(dataset, seed=seed),
        table(dataset, seed), {NAME: (figure(dataset), _CAPTION)}, dataset, _differences(settings), {}, _NOTES,
    )  # fmt: skip


def claims(dataset: xr.Dataset, *, seed: int = 0) -> tuple[Claim, ...]:
    """Fewer patches, and patches that are more alike, for the LCA than for the others."""
    made = []
    for o in dataset.overcompleteness.values.tolist():
        one = dataset.sel(overcompleteness=o)
        for rival in (m for m in dataset.model.values.tolist() if m != SPARSE):
            ours = "" if rival == LINEAR else "(ours) "
            count, angle = ([one[k].sel(model=m).values for m in (SPARSE, rival)] for k in ("count", "angle"))
            made += [
                Claim(
                    f"{ours}{o:g}x: fewer natural patches excite an LCA unit than a {rival} unit with the same weight",
                    "ratio of the medians over units, LCA over the other, pairs of units", bootstrap(
                        lambda a, b: np.median(a) / np.median(b), *count, paired=True, seed=seed
                    ), 1.0, "below",
                ),
                Claim(
                    f"{ours}{o:g}x: these patches are closer to the weight than those of a {rival} unit",
                    "difference of the mean angles in degrees, pairs of units", bootstrap(
                        lambda a, b: a.mean() - b.mean(), *angle, paired=True, seed=seed
                    ), 0.0, "below",
                ),
            ]  # fmt: skip
    return tuple(made)


def table(dataset: xr.Dataset, seed: int = 0) -> Table:
    """One row per overcompleteness and kind of unit."""
    columns = (
        "overcompleteness", "units", "number", "exciting patches, median", "95 % interval", f"per {PER:,} patches",
        f"paper, per {PER:,}", "angle, mean (degrees)", "95 % interval of the angle", "never excited",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for o in dataset.overcompleteness.values.tolist():
        for model in dataset.model.values.tolist():
            one = dataset.sel(overcompleteness=o, model=model)
            there = np.isfinite(dataset.largest.sel(overcompleteness=o).values).any(0)
            count = bootstrap(np.median, one["count"].values, seed=seed)
            angle = bootstrap(np.mean, one.angle.values, seed=seed)
            shown = float(np.ravel(one.patches.values)[0])
            published = dict(zip((SPARSE, LINEAR), PUBLISHED.get(int(o), ()), strict=False)).get(model)
            rows.append((
                f"{o:g}x", model, int(there.sum()), count.value, f"{count.low:.3g} to {count.high:.3g}",
                count.value * PER / shown, published, angle.value, f"{angle.low:.3g} to {angle.high:.3g}",
                int((there & ~np.isfinite(one["count"].values)).sum()),
            ))  # fmt: skip
    return Table(columns, tuple(rows))


def figure(dataset: xr.Dataset) -> Figure:
    """Distributions of counts and angles, one row of panels per overcompleteness."""
    several = dataset.overcompleteness.values.tolist()
    drawn = new_figure(12.0, 3.6 * len(several))
    top = float(np.nanmax(dataset["count"]))
    for (number, angle), o in zip(drawn.subplots(len(several), 2, squeeze=False), several, strict=True):
        for model in dataset.model.values.tolist():
            one = dataset.sel(overcompleteness=o, model=model)
            color, dash = LOOKS[model]
            look: dict[str, object] = {"color": color, "ls": dash, "lw": 1.8}
            for ax, values, edges in (
                (number, one["count"].values, np.geomspace(1, max(top, 2), 26)),
                (angle, one.angle.values, np.linspace(0, 90, 31)),
            ):
                kept = values[np.isfinite(values)]
                label = f"{model}, median {np.median(kept):.3g}" if len(kept) else model
                ax.stairs(np.histogram(kept, edges)[0], edges, label=label, **look)
        number.set_xscale("log")
        number.set_xlabel(f"number of exciting patches, of {float(np.ravel(dataset.patches.values)[0]):.0f}")
        angle.set_xlabel("mean angle of these to the weight (degrees)")
        for ax in (number, angle):
            ax.set_ylabel("number of units")
            ax.set_title(f"{o:g}x overcomplete", fontsize=10)
            ax.legend(fontsize=8)
    return drawn


def patch_figure(
    units: dict[str, nn.Module], weights: Tensor, patches: Tensor, dataset: xr.Dataset, size: int, *, rows: int = 4
) -> Figure:
    """The weight of some units and the patches that excite them most, LCA and linear."""
    count = dataset["count"].isel(overcompleteness=-1)
    gap = (count.sel(model=LINEAR) - count.sel(model=SPARSE)).values[: weights.shape[1]]
    order = np.argsort(np.nan_to_num(gap, nan=-np.inf))
    picks = [int(order[int(i)]) for i in np.linspace(0.2, 0.95, rows) * (len(order) - 1)]
    most = 6
    drawn = new_figure(12.0, 1.0 * rows + 0.4)
    widths = (1.0, GUTTER, *[1.0] * most, GUTTER, *[1.0] * most)
    axes = drawn.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for gutter in axes[:, [1, most + 2]].ravel():
        gutter.remove()
    axes = np.delete(axes, [1, most + 2], 1)
    activity = {n: responses(units[n], patches) for n in (SPARSE, LINEAR)}
    for row, k in zip(axes, picks, strict=True):
        shown = [weights[:, k].reshape(size, size)]
        for name in (SPARSE, LINEAR):
            shown += list(patches[activity[name][:, k].topk(most).indices])
        for ax, picture in zip(row, shown, strict=True):
            bound = float(picture.abs().max())
            plot.image(ax, picture, bounds=(-bound, bound), signed=True)
        row[0].set_ylabel(f"unit {k}", fontsize=8)
    axes[0][0].set_title("weight", fontsize=9)
    for first, name in ((1, "LCA"), (most + 1, "linear")):
        ax = axes[0][first]
        text = ax.text(0, 1.07, f"{name}: most exciting patches", fontsize=9, transform=ax.transAxes)
        text.set_in_layout(False)  # it is wider than its picture
    return drawn


_CAPTION = (
    "Left: how many patches drive a unit above half of its largest response. Right: the mean angle of these patches "
    "to the unit's weight, within the weight's envelope. LCA, pointwise (rectified, with the LCA's threshold) and "
    "linear units have the same weights."
)
_PATCHES = (
    "Some units of the largest dictionary: their weight, and the six patches to which they respond most as units of "
    "the LCA and as linear units, each scaled by its largest value."
)
_NOTES = (
    "The count is relative to the unit's largest response in the set, so it shrinks or grows with how extreme that "
    "one patch is; it compares models on the same patches, not one set of patches with another.",
)


def _differences(settings: Settings) -> tuple[str, ...]:
    return (
        f"{settings.shown:,} patches, others than the models were learnt on, of the pictures named below; the paper "
        "has 100,000 of van Hateren's. Counts per 100,000 are given beside it, but a larger set has larger maxima, "
        "so they are not the same quantity.",
        "The weight's envelope is that of the analytic signal along its dominant frequency.",
        "Rectified units with the LCA's threshold are added: a threshold alone makes a unit more selective by this "
        "measure, and what is left is due to competition.",
        "Codes solve the optimality conditions to rounding; the paper takes Euler steps.",
    )
