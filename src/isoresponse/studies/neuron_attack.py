"""Where the steepest path of a neuron leads: a toy of three elements in the plane, and units learnt on natural patches.

The steepest path raises a response as fast as the contours allow. For a pointwise unit it is a straight line along the weight,
and what is not along the weight stays as it is. For a unit of sparse coding it bends where contours bend. Both kinds of units
have the same weights and threshold, start at the same input where both respond, and gain the same response. Units start
twice: from inputs as near to the weight as the toy's start, away from it towards a neighbouring unit's weight; and from
natural patches.

**Full settings are meant for a GPU**: patches of 16 x 16, 2x overcomplete, 100 units with 10 patches each. `--quick`: patches
of 10 x 10, some units and patches; minutes on 2 cores.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Generator, Tensor, nn

from isoresponse.directions import comparison_directions
from isoresponse.exciting import most_exciting_input
from isoresponse.models.basic import LinearNonlinear
from isoresponse.models.lca import LCA
from isoresponse.neuron import Neuron
from isoresponse.paths import Path as Walk
from isoresponse.paths import gradient_path
from isoresponse.records import STATUS_FLAGS
from isoresponse.studies.experiment import Outcome
from isoresponse.studies.materials import natural_patches, trained_dictionary, units_of
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.natural_selectivity import responses
from isoresponse.studies.neuron_results import NEAR, PATCH, POINTWISE, SPARSE, Example, outcome

NAME = "neuron-attack"
TOY_SPARSITY, TOY_LEVEL = 0.05, 0.2  # as in the paper, and the response on the axis at 0.25
TOY_START = (0.10, 0.05)
LEAK = 1e-3  # of the weight's own drive, added in search of the MEI: a silent unit has no way up
MEI_STEPS = 100
NEAR_START = (0.5, 0.25)  # mean lengths along the weight and across it: the angle of the toy's start


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment; the gain is in mean lengths of a patch."""

    size: int = 16
    overcompleteness: float = 2
    sparsity: float = 0.5  # standard deviations of a pixel
    patches: int = 1_000_000
    steps: int = 20_000
    neurons: int = 100
    starts: int = 10
    gain: float = 1.0
    knots: int = 21
    shown: int = 20_000
    mei_starts: int = 8


QUICK = Settings(size=10, patches=50_000, steps=400, neurons=20, starts=3, shown=3000, mei_starts=3)


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` as for `materials.natural_patches`."""
    settings = QUICK if quick else Settings()
    found = natural_patches(data, settings.size, settings.patches, seed=seed, device=device)
    dictionary = trained_dictionary(
        found.x, units_of(settings.overcompleteness, settings.size**2), sparsity=settings.sparsity, steps=settings.steps,
        seed=seed, stage=stage,
    )  # fmt: skip
    shown = natural_patches(data, settings.size, settings.shown, seed=seed + 1, device=device).x.double().flatten(1)
    dataset, examples = real_paths(
        models(dictionary, settings.sparsity), dictionary, shown, settings, unit=found.norm, seed=seed, stage=stage
    )
    toy_data, toy_example = toy()
    both = xr.merge([dataset, toy_data.rename({v: f"toy_{v}" for v in toy_data.data_vars})], join="outer")
    return outcome(both, {"toy": toy_example, **examples}, seed=seed).about(
        data=found.name, seed=seed, quick=quick, **asdict(settings), input_units_per_mean_length=found.norm
    )


def models(dictionary: Tensor, sparsity: float) -> dict[str, nn.Module]:
    """Sparse coding, and pointwise units with the same weights and threshold."""
    return {
        SPARSE: LCA(dictionary, sparsity=sparsity),
        POINTWISE: LinearNonlinear(dictionary.T.contiguous(), torch.relu, bias=-sparsity),
    }


def toy_dictionary() -> Tensor:
    """The paper's three elements in the plane: along the first axis, and 45 degrees to both sides of it."""
    half = math.sqrt(0.5)
    return torch.tensor([[1.0, half, half], [0.0, half, -half]], dtype=torch.float64)


def toy() -> tuple[xr.Dataset, Example]:
    """Paths of the first of three elements in the plane from one start to one level, and what its figure needs."""
    dictionary = toy_dictionary()
    start = torch.tensor([TOY_START], dtype=torch.float64)
    neurons, walks, rows = {}, {}, []
    for kind, module in models(dictionary, TOY_SPARSITY).items():
        neurons[kind] = Neuron.of(module, 0, shape=(2,), name=f"{kind}, element 0")
        walks[kind] = gradient_path(neurons[kind], start, TOY_LEVEL, knots=21)
        rows.append(described(walks[kind], dictionary[:, 0], dictionary[:, 0]).expand_dims(model=[kind]))
    table = xr.concat(rows, "model", combine_attrs="override").isel(start=0).rename({"knot": "toy_knot"})
    return table, Example(
        neurons, {k: w.points[0] for k, w in walks.items()}, dictionary[:, 0], "three elements in the plane"
    )


def real_paths(
    units: dict[str, nn.Module],
    weights: Tensor,
    patches: Tensor,
    settings: Settings,
    *,
    unit: float,
    seed: int = 0,
    stage: Stage = silent,
) -> tuple[xr.Dataset, dict[str, Example]]:
    """Paths of random units, dims (model, neuron, start, knot), and one of each family of starts for the figure.

    Starts are half a mean length along the weight and a quarter towards the weights of the nearest other units (`family`
    "near the weight"), and the patches to which the LCA unit responds most like its median response, of those it responds
    to ("natural patches").

    Parameters
    ----------
    units
        `LCA` and `pointwise`, modules from inputs (case, n) to responses (case, units).
    weights
        (n, units).
    unit
        Input units of one mean length.

    Raises
    ------
    ValueError
        Fewer units that respond to enough patches than are needed for one path.
    """
    generator = Generator().manual_seed(seed)
    activity = responses(units[SPARSE], patches, stage=stage, title="patches")
    usable = torch.nonzero((activity > 0).sum(0) >= settings.starts).flatten()
    chosen = usable[torch.randperm(len(usable), generator=generator)[: settings.neurons]].tolist()
    if not chosen:
        raise ValueError(f"no unit responds to {settings.starts} of {len(patches)} patches; give more patches.")
    rows, drawn = [], []
    gain, kinds = settings.gain * unit, (SPARSE, POINTWISE)
    with stage("steepest paths", len(chosen), "unit") as on_done:
        for k in chosen:
            weight, own = weights[:, k], activity[:, k]
            middle = own[own > 0].median()
            natural = patches[(own - middle).abs().masked_fill(own <= 0, torch.inf).argsort()[: settings.starts]]
            x = torch.cat([_near(weights, k, settings.starts, unit), natural])
            both, walks = [], {}
            for kind in kinds:
                neuron = Neuron.of(units[kind], k, shape=(len(weights),), name=f"{kind} unit {k}")
                walk = gradient_path(neuron, x, neuron.value(x) + gain, knots=settings.knots)
                mei, above = _mei(neuron, weight, unit, settings, seed)
                both.append(described(walk, weight, mei).assign(
                    mei_to_weight=((), _angle(mei, weight).item(), {
                        "units": "degree", "long_name": "angle between the measured MEI and the weight",
                    }),
                    mei_gain=((), above, {"units": "1", "long_name": "response to the measured MEI over that to the weight"}),
                ).expand_dims(model=[kind]))  # fmt: skip
                walks[kind] = (neuron, walk.points)
            rows.append(
                xr.concat(both, "model", combine_attrs="override").assign(
                    unit=((), k, {"units": "1", "long_name": "number of the unit"})
                )
            )
            drawn.append(walks)
            on_done(1)
    family = [NEAR] * settings.starts + [PATCH] * settings.starts
    dataset = xr.concat(rows, "neuron", combine_attrs="override").assign_coords(
        gained=("knot", np.linspace(0, gain, settings.knots), {"units": "response", "long_name": "response gained"}),
        family=("start", family),
    )  # fmt: skip
    examples = {}
    for name, at in ((NEAR, 0), (PATCH, settings.starts)):
        turned = dataset.off_axis.sel(model=SPARSE).isel(knot=-1, start=at).values
        typical = int(np.nanargmin(np.abs(turned - np.nanmedian(turned)))) if np.isfinite(turned).any() else 0
        examples[name] = Example(
            {kind: drawn[typical][kind][0] for kind in kinds}, {kind: drawn[typical][kind][1][at] for kind in kinds},
            weights[:, chosen[typical]], f"unit {chosen[typical]}, {name}",
        )  # fmt: skip
    return dataset, examples


def _near(weights: Tensor, k: int, count: int, unit: float) -> Tensor:
    """Inputs (count, n) near the weight of unit k, away from it towards the nearest other weights, one after another."""
    others, _ = comparison_directions(weights[:, k], torch.cat([weights[:, :k], weights[:, k + 1 :]], 1).T)
    second = others[torch.arange(count) % len(others)]
    along, across = NEAR_START
    return unit * (along * weights[:, k] / weights[:, k].norm() + across * second)


def _mei(neuron: Neuron, weight: Tensor, norm: float, settings: Settings, seed: int) -> tuple[Tensor, float]:
    """The input of the given length that excites most, found from random places, or the weight if that excites as much;
    and its response over that to the weight.
    """
    axis = weight / weight.norm()
    audible = Neuron(lambda x: neuron(x) + LEAK * (x @ axis), neuron.shape, name=neuron.name)
    point = most_exciting_input(
        audible, norm=norm, generator=Generator().manual_seed(seed), starts=settings.mei_starts, max_steps=MEI_STEPS,
        center=torch.zeros_like(weight),
    ).point  # fmt: skip
    both = torch.stack([point.nan_to_num(0.0), norm * axis])
    found, own = neuron.value(both).tolist()
    return (both[0], found / own) if found > own > 0 else (both[1], 1.0)


def described(walk: Walk, weight: Tensor, mei: Tensor) -> xr.Dataset:
    """Where the paths (start, knot) lead, relative to a weight and an MEI."""
    axis = weight / weight.norm()
    points = walk.points.flatten(2)
    liked = mei / mei.norm()
    away, off = ((points - (points @ a)[..., None] * a).norm(dim=2) for a in (axis, liked))
    moved = points - points[:, :1]
    degree = {"units": "degree"}
    return xr.Dataset({
        "off_axis": (("start", "knot"), (away / away[:, :1]).cpu().numpy(), {
            "units": "1", "long_name": "distance from the axis of the weight, relative to the start",
        }),
        "off_mei": (("start", "knot"), (off / off[:, :1]).cpu().numpy(), {
            "units": "1", "long_name": "distance from the axis of the measured MEI, relative to the start",
        }),
        "input_angle": (("start", "knot"), _angle(points, axis).cpu().numpy(), {**degree, "long_name": "input and weight"}),
        "mei_angle": (("start", "knot"), _angle(points, mei).cpu().numpy(), {**degree, "long_name": "input and measured MEI"}),
        "change_angle": (("start", "knot"), _angle(moved, axis).cpu().numpy(), {
            **degree, "long_name": "perturbation and weight",
        }),
        "change_mei_angle": (("start", "knot"), _angle(moved, mei).cpu().numpy(), {
            **degree, "long_name": "perturbation and measured MEI",
        }),
        "length": (("start", "knot"), walk.arclength.cpu().numpy(), {"units": "input", "long_name": "length of the path"}),
        "response": (("start", "knot"), walk.responses.cpu().numpy(), {"units": "response", "long_name": "response"}),
        "status": ("start", walk.status.cpu().numpy(), {"units": "1", "long_name": "how the path ended", **STATUS_FLAGS}),
    })  # fmt: skip


def _angle(x: Tensor, axis: Tensor) -> Tensor:
    """Angle (...) in degrees between vectors (..., n) and an axis (n,); NaN where there is no vector."""
    size = x.norm(dim=-1) * axis.norm()
    cosine = torch.where(size > 0, (x @ axis) / size, torch.full_like(size, torch.nan))
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
