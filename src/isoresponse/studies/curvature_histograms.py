"""How contours bend, over many planes: sparse coding at several overcompletenesses against pointwise units.

For units of an LCA and for pointwise units with the same weights and threshold, contours are cut by planes that contain the
weight vector and a second direction: towards other units' weights (comparison) or random. Bending is measured three times:
the two measures that Paiton et al. (2020) published, in their units, and the curvature of the contour line in 1/input unit at
a stated scale.

**Full settings are meant for a GPU**: patches of 16 x 16, 2x, 4x and 10x overcomplete, 100 units, 300 comparison and 255
random planes each, 900 inputs per plane. That is 50 million sparse codes for each of three dictionaries, and was not run
on CPUs. `--quick`: patches of 10 x 10, 2x and 4x, some units and planes; minutes on 2 cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from isoresponse import plot
from isoresponse.directions import comparison_directions, random_directions
from isoresponse.jets import secant_jet
from isoresponse.models.basic import LinearNonlinear
from isoresponse.models.lca import LCA
from isoresponse.neuron import Neuron
from isoresponse.planes import Plane, response_surface
from isoresponse.records import to_dataset
from isoresponse.sections import plane_basis, section_curvature
from isoresponse.studies.experiment import Claim, Outcome, Table, bootstrap, share
from isoresponse.studies.figures import new_figure
from isoresponse.studies.materials import natural_patches, trained_dictionary, units_of
from isoresponse.studies.measure import Stage, silent
from isoresponse.survey import SurveyGrid, survey_planes

NAME = "curvature-histograms"
MEASURES = {  # variable, axis label
    "curvature": "curvature (1/input unit)",
    "iso_response": "iso-response coefficient (1/grid index)",
    "attenuation": "response attenuation (1/plane unit²)",
}
WIDER = 4.0  # the second scale of curvature is so many times smaller than the first
FLAT = 1e-6  # of the largest bending of an LCA: below, a contour counts as straight
ALMOST_ALL = 0.9
OTHER_HALF = "comparison, other half"  # the same planes turned round: the published fits look at one half only
PUBLISHED_END = {  # upper ends of the histograms' support, measured on the author's slides
    ("iso_response", "comparison"): {2: 0.024, 4: 0.036, 10: 0.05},
    ("iso_response", "random"): {2: 0.02, 4: 0.027, 10: 0.038},
    ("attenuation", "comparison"): {2: 0.06, 4: 0.06, 10: 0.098},
    ("attenuation", "random"): {2: 0.03, 4: 0.05, 10: 0.073},
}


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment; lengths in plane units, of which one is the mean length of a patch, as in the paper."""

    size: int = 16
    overcompleteness: tuple[float, ...] = (2, 4, 10)
    sparsity: float = 0.5  # standard deviations of a pixel
    patches: int = 1_000_000
    steps: int = 20_000
    neurons: int = 100
    comparison: int = 300
    random: int = 255
    grid: int = 30
    reach: float = 2.0
    scale: float = 0.5


QUICK = Settings(  # enough units that a share of all of them is above `ALMOST_ALL` with its interval
    size=10, overcompleteness=(2, 4), patches=50_000, steps=400, neurons=40, comparison=3, random=3,
)  # fmt: skip


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` as for `materials.natural_patches`."""
    settings = QUICK if quick else Settings()
    found = natural_patches(data, settings.size, settings.patches, seed=seed, device=device)
    dictionaries = {
        o: trained_dictionary(
            found.x,
            units_of(o, settings.size**2),
            sparsity=settings.sparsity,
            steps=settings.steps,
            seed=seed,
            stage=stage,
        )
        for o in settings.overcompleteness
    }
    parts, examples = [], []
    for o, dictionary in dictionaries.items():
        for kind, module in models(dictionary, settings.sparsity).items():
            name = f"{kind} {o:g}x"
            table = measure(name, module, dictionary, settings, unit=found.norm, seed=seed, stage=stage)
            parts.append(table.assign_coords(overcompleteness=("model", [float(o)]), kind=("model", [kind])))
        examples.append((f"{o:g}x", models(dictionary, settings.sparsity), dictionary))
    dataset = xr.concat(parts, "model", combine_attrs="override")
    return outcome(dataset, examples, settings, unit=found.norm, seed=seed).about(
        data=found.name, seed=seed, quick=quick, **asdict(settings), input_units_per_plane_unit=found.norm
    )


def models(dictionary: Tensor, sparsity: float) -> dict[str, nn.Module]:
    """Sparse coding, and pointwise units with the same weights and threshold: on the line of a weight both respond alike."""
    return {
        "LCA": LCA(dictionary, sparsity=sparsity),
        "pointwise": LinearNonlinear(dictionary.T.contiguous(), torch.relu, bias=-sparsity),
    }


def measure(
    name: str,
    module: nn.Module,
    weights: Tensor,
    settings: Settings,
    *,
    unit: float,
    seed: int = 0,
    stage: Stage = silent,
) -> xr.Dataset:
    """Bending of the contours of random units of one model in all planes, dims (model, neuron, plane).

    Parameters
    ----------
    module
        From inputs (case, n) to responses (case, units).
    weights
        (n, units), the first axes of the planes and, made orthogonal, the second ones of the comparison planes.
    unit
        Input units per plane unit.
    """
    generator = Generator().manual_seed(seed)
    chosen = torch.randperm(weights.shape[1], generator=generator)[: settings.neurons].tolist()
    grid = SurveyGrid(reach=settings.reach * unit, size=settings.grid, unit=unit)
    scale = settings.scale * unit
    rows = []
    planes = 2 * settings.comparison + settings.random
    with stage(f"planes of {name}", len(chosen) * planes, "plane") as on_done:
        for k in chosen:
            neuron = Neuron.of(module, k, shape=(weights.shape[0],), name=f"unit {k}")
            first = weights[:, k]
            seconds = _second_directions(weights, k, settings, generator)
            survey = survey_planes(
                [neuron], first[None], {f: s[None] for f, s in seconds.items()}, grid=grid,
                jet=partial(secant_jet, scale=scale), progress=False,
            )  # fmt: skip
            table = to_dataset(survey, coords=survey.coords).assign_coords(neuron=[0])
            at = (first / first.norm() * survey.distance.nan_to_num(1.0))[None]
            every = torch.cat(list(seconds.values()))
            finer = section_curvature(
                neuron, at.expand_as(every), plane_basis(first.expand_as(every), every),
                jet=partial(secant_jet, scale=scale / WIDER),
            )  # fmt: skip
            attrs = {"units": "1/input", "long_name": f"curvature at a scale {WIDER:g} times smaller"}
            rows.append(table.assign(
                curvature_finer=(("neuron", "plane"), finer.curvature[None].cpu().numpy(), attrs),
                unit=("neuron", [k], {"units": "1", "long_name": "number of the unit"}),
            ))  # fmt: skip
            on_done(planes)
    found = xr.concat(rows, "neuron", combine_attrs="override").assign_coords(neuron=np.arange(len(rows)))
    return found.expand_dims(model=[name])


def _second_directions(weights: Tensor, k: int, settings: Settings, generator: Generator) -> dict[str, Tensor]:
    others = torch.cat([weights[:, :k], weights[:, k + 1 :]], 1).T
    available = int((torch.nn.functional.cosine_similarity(others, weights[:, k][None]).abs() <= 0.9659).sum())
    near, _ = comparison_directions(weights[:, k], others, count=min(settings.comparison, available))
    if len(near) < settings.comparison:  # fewer units than planes: the rest are planes already seen
        near = near[torch.arange(settings.comparison) % len(near)]
    count = min(settings.random, weights.shape[0] - 1)
    random = random_directions(count, orthogonal_to=weights[:, k], generator=generator, mutually=True)
    return {"comparison": near, "random": random, OTHER_HALF: -near}


# --- what it says -----------------------------------------------------------------------------------------


def outcome(
    dataset: xr.Dataset,
    examples: Sequence[tuple[str, dict[str, nn.Module], Tensor]],
    settings: Settings,
    *,
    unit: float,
    seed: int = 0,
) -> Outcome:
    """Claims, table and figures of what was measured."""
    figures = {
        NAME: (histograms(dataset), _CAPTION),
        "planes": (planes(examples, dataset, settings, unit=unit), _PLANES),
    }
    return Outcome(
        NAME, "How the contours of sparse coding and of pointwise units bend", claims(dataset, seed=seed), table(dataset, seed),
        figures, dataset, _differences(settings, unit), {},
    )  # fmt: skip


def claims(dataset: xr.Dataset, *, seed: int = 0) -> tuple[Claim, ...]:
    """The paper's three claims, each on the paper's measures and on the curvature, and one of ours on what the fits leave out."""
    paper = dataset.isel(plane=np.asarray(dataset.family.values != OTHER_HALF))
    other = dataset.isel(plane=np.asarray(dataset.family.values == OTHER_HALF))
    lca, pointwise = (np.asarray(dataset.kind == k) for k in ("LCA", "pointwise"))
    made = []
    for key, words in _GROWING[:2]:
        flat = FLAT * float(np.nanmax(np.abs(dataset[key].isel(model=lca)), initial=0.0))
        made += [
            _outward(f"{m}: almost all bending is exo-origin ({words})", paper[key].sel(model=m), flat)
            for m in dataset.model.values[lca].tolist()
        ]
        for model in dataset.model.values[pointwise].tolist():
            worst = _of_neurons(paper[key].sel(model=model), _largest) / (flat / FLAT)
            made.append(Claim(
                f"{model}: contours are exactly flat ({words})",
                "largest bending in any plane, relative to the largest of the LCAs", bootstrap(np.max, worst, seed=seed),
                FLAT, "below",
            ))  # fmt: skip
        if key == "iso_response":
            for model in dataset.model.values[lca].tolist():
                says = f"(ours) {model}: exo-origin too on the half of the comparison planes that the published fit leaves out"
                made.append(_outward(says, other[key].sel(model=model), flat))
    order = sorted(dataset.model.values[lca].tolist(), key=lambda m: float(dataset.overcompleteness.sel(model=m)))
    for key, words in _GROWING:
        for family in dict.fromkeys(paper.family.values.tolist()):
            part = paper[key].isel(plane=np.asarray(paper.family.values == family))
            for fewer, more in pairwise(order):
                some = [_of_neurons(part.sel(model=m), np.median) for m in (fewer, more)]
                made.append(Claim(
                    f"{words} grows with overcompleteness, {family} planes: {more} above {fewer}",
                    "ratio of the means over units of a unit's median over planes", bootstrap(_ratio, *some, seed=seed), 1.0,
                ))  # fmt: skip
    return tuple(made)


def _outward(says: str, values: xr.DataArray, flat: float) -> Claim:
    exo = _of_neurons(values, lambda v: _exo(v, flat))
    measured = (
        f"share of the bent planes that bend outward, mean over units; bent: more than {FLAT:g} of the largest bending"
    )
    return Claim(says, measured, share(exo, each=values.shape[1]), ALMOST_ALL)


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


_GROWING = (
    ("curvature", "curvature"), ("iso_response", "iso-response coefficient"), ("attenuation", "response attenuation"),
)  # fmt: skip


def _of_neurons(values: xr.DataArray, statistic: Callable[[np.ndarray], Any]) -> np.ndarray:
    """One number per neuron (neuron,) from its planes (neuron, plane), those without a number left out."""
    rows = [row[np.isfinite(row)] for row in values.values]
    return np.asarray([float(statistic(row)) if len(row) else np.nan for row in rows])


def _exo(values: np.ndarray, flat: float) -> float:
    bent = np.abs(values) > flat
    return float((values[bent] > 0).mean()) if bent.any() else np.nan


def _ratio(fewer: np.ndarray, more: np.ndarray) -> float:
    return float(more.mean() / fewer.mean()) if fewer.any() else np.nan  # all of them flat: no ratio


def table(dataset: xr.Dataset, seed: int = 0) -> Table:
    """One row per model and family."""
    columns = (
        "model", "planes", "units x planes", "curvature, median (1/input)", "95 % interval", "the same, finer scale",
        "exo-origin", "endo-origin", "iso-response c2, median (1/index)", "c2, largest", "paper: end of support",
        "attenuation, median (1/unit²)", "attenuation, largest", "paper: end of support (att.)",
    )  # fmt: skip
    size = float(np.nanmax(np.abs(dataset.curvature)))
    rows = []
    for model in dataset.model.values.tolist():
        one = dataset.sel(model=model)
        for family in dict.fromkeys(dataset.family.values.tolist()):
            part = one.isel(plane=np.asarray(dataset.family.values == family))
            bent = part.curvature.values
            median = bootstrap(np.median, _of_neurons(part.curvature, np.median), seed=seed)
            ends = [
                PUBLISHED_END[m, family].get(int(one.overcompleteness))
                if str(one.kind.values) == "LCA" and (m, family) in PUBLISHED_END
                else None
                for m in ("iso_response", "attenuation")
            ]
            rows.append((
                model, family, f"{bent.shape[0]} x {bent.shape[1]}", median.value, f"{median.low:.3g} to {median.high:.3g}",
                float(np.nanmedian(part.curvature_finer)), float((bent > FLAT * size).mean()),
                float((bent < -FLAT * size).mean()), float(np.nanmedian(part.iso_response)),
                float(np.nanmax(part.iso_response)), ends[0], float(np.nanmedian(part.attenuation)),
                float(np.nanmax(part.attenuation)), ends[1],
            ))  # fmt: skip
    return Table(columns, tuple(rows))


def histograms(dataset: xr.Dataset) -> Figure:
    """One row of panels per family of planes, one column per measure."""
    families = [f for f in dict.fromkeys(dataset.family.values.tolist()) if f != OTHER_HALF]
    figure = new_figure(13.0, 3.7 * len(families))
    shown = [m for m in dataset.model.values.tolist() if str(dataset.sel(model=m).kind.values) == "LCA"]
    shown += [m for m in dataset.model.values.tolist() if m not in shown][-1:]
    for row, family in zip(figure.subplots(len(families), len(MEASURES), squeeze=False), families, strict=True):
        part = dataset.isel(plane=np.asarray(dataset.family.values == family))
        for ax, (key, label) in zip(row, MEASURES.items(), strict=True):
            values = {m: torch.as_tensor(part[key].sel(model=m).values) for m in shown}
            plot.curvature_histograms(ax, values, bins=31, xlabel=label)
            ax.axvline(0.0, color=plot.FAINT, lw=0.8, zorder=0)
            ax.set_title(f"{family} planes (above zero: outward)", fontsize=10)
    return figure


def planes(
    examples: Sequence[tuple[str, dict[str, nn.Module], Tensor]],
    dataset: xr.Dataset,
    settings: Settings,
    *,
    unit: float,
) -> Figure:
    """Contours of one unit of every model, in the comparison plane in which it bends most like the median."""
    panels = [(kind, o, module, weights) for o, modules, weights in examples for kind, module in modules.items()]
    figure = new_figure(3.0 * len(panels), 6.0)
    for ax, (kind, o, module, weights) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        here = np.asarray(dataset.family.values == "comparison")
        bent = dataset.curvature.sel(model=f"LCA {o}").isel(plane=here).values
        where = np.unravel_index(np.nanargmin(np.abs(bent - np.nanmedian(bent))), bent.shape)
        found = float(dataset.curvature.sel(model=f"{kind} {o}").isel(plane=here).values[where])
        k = int(dataset.unit.sel(model=f"{kind} {o}").values[where[0]])
        second = _second_directions(weights, k, settings, Generator())["comparison"][int(where[1])]
        plane = Plane.spanning(torch.zeros_like(second), weights[:, k], second)
        neuron = Neuron.of(module, k, shape=(len(weights),), name=f"unit {k}")
        reach = (-0.2 * unit, settings.reach * unit), (-settings.reach * unit, settings.reach * unit)
        view = response_surface(neuron, plane, x=reach[0], y=reach[1], size=81)
        top = float(view.response.max())
        plot.surface(ax, view, levels=[top * s for s in (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)], fmt="%.1f")
        ax.axhline(0, color=plot.INK, lw=0.6, ls=":")
        ax.set_title(
            f"{kind} {o}, unit {k}\ncurvature {abs(found) if found == 0 else found:.2g} per input unit", fontsize=9
        )
        ax.set_xlabel("along the weight (input units)")
    figure.axes[0].set_ylabel("towards another unit's weight (input units)")
    return figure


_CAPTION = (
    "Shares of planes by how the contour of a unit bends in them; positive is outward, away from the origin. Left: curvature of "
    "the contour line where the weight vector meets it, in 1/input unit, at the stated scale. Middle and right: the measures of "
    "Paiton et al. (2020), in their units (the first is a coefficient in grid indices, not a curvature). Pointwise units have "
    "the same weights and threshold as the LCA of the largest overcompleteness. One bin is centred on zero."
)
_PLANES = (
    "Responses (numbers on the lines) of one unit, in the comparison plane in which the LCA bends as in the median one. LCA and "
    "pointwise unit respond alike on the dotted axis. In the upper half the other unit competes. In the lower half it is silent, "
    "so what happens there is due to other units; the published fits do not look there."
)


def _differences(settings: Settings, unit: float) -> tuple[str, ...]:
    return (
        "Images: the whitened pictures named below instead of van Hateren's, which are not at hand; patches of "
        f"{settings.size} x {settings.size} pixels have a mean length of {unit:.3g} (31.8 in the paper). One plane unit is that "
        "length in both.",
        f"Sparsity over mean length is {settings.sparsity / unit:.3f} here and 0.015 in the paper: with less, dictionaries of "
        "these pictures take far more steps to become localised edges. Contours bend where competition sets in, which is at a "
        "distance of about the sparsity from the weight vector, far below one plane unit in both.",
        "Codes solve the optimality conditions to rounding here; the paper takes 120 Euler steps, whose error is not small.",
        "Dictionaries are learnt by block coordinate descent on averaged statistics, not by stochastic gradient steps.",
        "Random second directions are uniform on the sphere and orthogonal to one another; in the paper's code they come from "
        "uniform numbers in [0, 1), so that the first one leans towards constant images, and no more than n - 1 are orthogonal.",
        "The published fits keep the half of a plane on the side of the second direction and mirror it, so they cannot see a "
        "contour that is merely tilted. Here the other half of every comparison plane is fitted as well, and reported apart. The "
        "curvature sees both halves at once.",
        "The contour of the published fit is at half of each plane's own range, so its level differs from plane to plane; the "
        "curvature is taken at one level per unit, half of what the unit gains along its weight up to 2 plane units.",
        "The paper gives no curvature. An LCA is piecewise linear, so its curvature is zero almost everywhere and a scale is "
        f"needed: {settings.scale:g} plane units here, and {settings.scale / WIDER:g} beside it. A contour that is a wedge has a "
        "curvature that falls as one over the scale, so compare only at one scale.",
        "The paper shows histograms without intervals; “almost all” is taken as more than 90 %.",
    )
