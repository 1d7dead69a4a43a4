"""How narrowly units are tuned to the orientation of gratings: linear units, a sparse autoencoder and sparse coding.

All models are learnt on the same whitened natural patches, with the same number of units. Every unit sees full-field gratings
of its own spatial frequency at many orientations and phases, as long as a natural patch is on average. Its tuning curve is
the mean over phases of its absolute response. Three numbers describe it: circular variance (0 for a response to one
orientation only, 1 for none preferred), half-width at half height, and the index (best - orthogonal) / (best + orthogonal).
A fourth model has pointwise units with the weights and threshold of the LCA: it tells competition from weights.

**Full settings are meant for a GPU**: patches of 16 x 16, 768 units, a million patches. `--quick`: patches of 10 x 10, 200
units; minutes on 2 cores.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from isoresponse import plot
from isoresponse.models.basic import Linear, LinearNonlinear
from isoresponse.models.dictionary import mosaic
from isoresponse.models.lca import LCA
from isoresponse.models.receptive_fields import fit_gabors
from isoresponse.studies.experiment import Claim, Outcome, Table, bootstrap
from isoresponse.studies.figures import new_figure
from isoresponse.studies.materials import (
    natural_patches,
    trained_autoencoder,
    trained_dictionary,
    trained_ica,
    units_of,
)
from isoresponse.studies.measure import Stage, silent

NAME = "orientation-selectivity"
LINEAR, AUTOENCODER, SPARSE, POINTWISE = "linear (ICA)", "sparse autoencoder", "LCA", "pointwise (LCA's weights)"
LOOKS = {
    LINEAR: (plot.ORANGE, (0, (5, 2))), AUTOENCODER: (plot.GREEN, (0, (1, 1))), SPARSE: (plot.BLUE, "-"),
    POINTWISE: (plot.INK, (0, (6, 2, 1, 2))),
}  # fmt: skip
FINE = 64  # points of the spectrum per axis
CHUNK = 2000  # gratings shown together
SEEN = 1000  # natural patches on which activity is counted
MEASURES = {
    "circular_variance": ("circular variance", -1), "half_width": ("half-width at half height", -1),
    "orientation_index": ("orientation index", 1),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    size: int = 16
    overcompleteness: float = 3
    sparsity: float = 0.5  # standard deviations of a pixel; twice as much for the autoencoder
    patches: int = 1_000_000
    steps: int = 20_000
    autoencoder_steps: int = 50_000
    ica_steps: int = 200
    orientations: int = 16
    phases: int = 8


QUICK = Settings(
    size=10, overcompleteness=2, patches=50_000, steps=400, autoencoder_steps=4000, ica_steps=60
)  # fmt: skip


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` as for `materials.natural_patches`."""
    settings = QUICK if quick else Settings()
    found = natural_patches(data, settings.size, settings.patches, seed=seed, device=device)
    units = units_of(settings.overcompleteness, settings.size**2)
    dictionary = trained_dictionary(
        found.x, units, sparsity=settings.sparsity, steps=settings.steps, seed=seed, stage=stage
    )
    autoencoder = trained_autoencoder(
        found.x, units, sparsity=2 * settings.sparsity, steps=settings.autoencoder_steps, seed=seed, stage=stage
    )
    filters = trained_ica(found.x, units, steps=settings.ica_steps, seed=seed, stage=stage)
    models: dict[str, tuple[nn.Module, Tensor]] = {
        LINEAR: (Linear(filters.T.contiguous()), filters),
        AUTOENCODER: (autoencoder, autoencoder.encoder),
        SPARSE: (LCA(dictionary, sparsity=settings.sparsity), dictionary),
        POINTWISE: (LinearNonlinear(dictionary.T.contiguous(), torch.relu, bias=-settings.sparsity), dictionary),
    }
    tables, seen = [], found.x[:SEEN].double().flatten(1)
    active = [float((module(seen).detach() > 0).double().mean()) for module, _ in models.values()]
    for name, (module, weights) in models.items():
        tables.append(tuning(name, module, weights, settings, length=found.norm, stage=stage))
    dataset = xr.concat(tables, "model", combine_attrs="override")
    with stage("fit Gabor functions", len(models), "model") as on_done:
        shares = []
        for _, weights in models.values():
            shares.append(float(fit_gabors(weights, (settings.size,) * 2).edges().double().mean()))
            on_done(1)
    edges = ("model", shares, {"units": "1", "long_name": "share of oriented, localised weights"})
    shown = {n: w for n, (_, w) in models.items() if n != POINTWISE}
    activity = (
        "model",
        active,
        {"units": "1", "long_name": "share of units with a positive response to a natural patch"},
    )
    return outcome(dataset.assign(edges=edges, active=activity), shown, settings, seed=seed).about(
        data=found.name, seed=seed, quick=quick, **asdict(settings), grating_length=found.norm
    )


def tuning(
    name: str, module: nn.Module, weights: Tensor, settings: Settings, *, length: float, stage: Stage = silent
) -> xr.Dataset:
    """Tuning curves and what describes them, dims (model, unit, orientation).

    Parameters
    ----------
    module
        From inputs (case, n) to responses (case, units).
    weights
        (n, units), from which each unit's spatial frequency is read.
    length
        L2 length of every grating, in input units.
    """
    size, units = math.isqrt(weights.shape[0]), weights.shape[1]
    frequency = peak_frequency(weights)
    angle = torch.arange(settings.orientations).to(weights) * (torch.pi / settings.orientations)
    phase = torch.arange(settings.phases).to(weights) * (2 * torch.pi / settings.phases)
    each = settings.orientations * settings.phases
    curves = []
    with stage(f"gratings for {name}", units, "unit") as on_done, torch.no_grad():
        for some in torch.arange(units).split(max(1, CHUNK // each)):
            shown = gratings(size, frequency[some], angle, phase, length=length)
            response = module(shown.reshape(-1, size * size)).reshape(len(some), len(angle), len(phase), units)
            own = response[torch.arange(len(some)), :, :, some]
            curves.append(own.abs().mean(2))
            on_done(len(some))
    return described(torch.cat(curves), angle).assign(
        frequency=("unit", frequency.cpu().numpy(), {"units": "cycles/pixel", "long_name": "frequency of the gratings"})
    ).expand_dims(model=[name])  # fmt: skip


def peak_frequency(weights: Tensor) -> Tensor:
    """Frequency (units,) in cycles per pixel of the largest amplitude of each weight (n, units), at least one per patch."""
    size = math.isqrt(weights.shape[0])
    images = weights.T.reshape(-1, size, size)
    spectrum = torch.fft.rfft2(images - images.mean((1, 2), keepdim=True), s=(FINE, FINE)).abs()
    rows, columns = torch.fft.fftfreq(FINE), torch.fft.rfftfreq(FINE)
    frequency = torch.hypot(rows[:, None], columns[None, :]).to(weights)
    allowed = (frequency >= 1 / size) & (frequency <= 0.5)
    top = spectrum.masked_fill(~allowed, -1.0).flatten(1).argmax(1)
    return frequency.flatten()[top]


def gratings(size: int, frequency: Tensor, angle: Tensor, phase: Tensor, *, length: float) -> Tensor:
    """Full-field gratings (unit, orientation, phase, size, size) with mean zero and the given L2 length.

    Examples
    --------
    >>> import torch
    >>> shown = gratings(8, torch.tensor([0.25]), torch.tensor([0.0]), torch.tensor([0.0]), length=2.0)
    >>> shown.shape, round(float(shown.norm()), 4), bool(shown.mean().abs() < 1e-6)
    (torch.Size([1, 1, 1, 8, 8]), 2.0, True)
    """
    at = torch.arange(size, dtype=frequency.dtype, device=frequency.device) - (size - 1) / 2
    down, right = torch.meshgrid(at, at, indexing="ij")
    across = torch.sin(angle)[:, None, None] * right + torch.cos(angle)[:, None, None] * down
    wave = torch.cos(2 * torch.pi * frequency[:, None, None, None, None] * across[:, None] - phase[:, None, None])
    wave = wave - wave.mean((-2, -1), keepdim=True)
    return wave * (length / wave.flatten(-2).norm(dim=-1)[..., None, None])


def described(curves: Tensor, angle: Tensor) -> xr.Dataset:
    """Circular variance, half-width and index of tuning curves (unit, orientation) over [0, pi).

    A unit that answers to no grating is `silent`, and counts as not selective: variance 1, half-width 90 degrees, index 0.
    """
    total, best = curves.sum(1), curves.amax(1)
    silent_unit = best <= 0
    axis = torch.polar(torch.ones_like(angle), 2 * angle)
    variance = 1 - (curves.to(axis.dtype) @ axis).abs() / total.clamp_min(torch.finfo(total.dtype).tiny)
    across = curves.gather(1, ((curves.argmax(1) + len(angle) // 2) % len(angle))[:, None])[:, 0]
    index = (best - across) / (best + across).clamp_min(torch.finfo(total.dtype).tiny)
    values = {
        "circular_variance": (variance.masked_fill(silent_unit, 1.0), "1"),
        "half_width": (half_width(curves).masked_fill(silent_unit, 90.0), "degree"),
        "orientation_index": (index.masked_fill(silent_unit, 0.0), "1"),
    }
    curve, unheard = curves.cpu().numpy(), silent_unit.cpu().numpy()
    return xr.Dataset(
        {
            "curve": (("unit", "orientation"), curve, {"units": "response", "long_name": "tuning curve"}),
            "silent": ("unit", unheard, {"units": "1", "long_name": "whether no grating is answered"}),
            **{k: ("unit", v.cpu().numpy(), {"units": u, "long_name": MEASURES[k][0]}) for k, (v, u) in values.items()},
        },
        coords={"orientation": ("orientation", torch.rad2deg(angle).cpu().numpy(), {"units": "degree"})},
    )


def half_width(curves: Tensor) -> Tensor:
    """Half of the width (unit,) in degrees at which tuning curves (unit, orientation) are above half their height, at most 90.

    Examples
    --------
    >>> import torch
    >>> half_width(torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    tensor([22.5000, 90.0000])
    """
    count = curves.shape[1]
    step, middle = 180.0 / count, count // 2
    turned = torch.stack([c.roll(middle - int(c.argmax())) for c in curves])
    half = 0.5 * turned[:, middle : middle + 1]
    sides = []
    for side in (turned[:, middle:], turned[:, : middle + 1].flip(1)):
        below = side < half
        first = torch.where(below.any(1), below.byte().argmax(1), torch.ones_like(below[:, 0], dtype=torch.long))
        high, low = side.gather(1, first[:, None] - 1)[:, 0], side.gather(1, first[:, None])[:, 0]
        met = (first - 1 + (high - half[:, 0]) / (high - low).clamp_min(torch.finfo(side.dtype).tiny)) * step
        sides.append(torch.where(below.any(1), met, torch.full_like(met, 90.0)))
    return (0.5 * (sides[0] + sides[1])).clamp_max(90.0)


# --- what it says -----------------------------------------------------------------------------------------


def outcome(dataset: xr.Dataset, weights: dict[str, Tensor], settings: Settings, *, seed: int = 0) -> Outcome:
    """Claims, table and figures of the tuning curves."""
    figures = {NAME: (figure(dataset), _CAPTION), "weights": (weight_figure(weights, settings.size), _WEIGHTS)}
    return Outcome(
        NAME, "How narrowly units are tuned to orientation", claims(dataset, seed=seed), table(dataset, seed), figures, dataset,
        _differences(settings), {},
    )  # fmt: skip


def claims(dataset: xr.Dataset, *, seed: int = 0) -> tuple[Claim, ...]:
    """The LCA is more selective than each other model, by each measure."""
    made = []
    for rival in (m for m in dataset.model.values.tolist() if m != SPARSE):
        same = rival == POINTWISE
        for key, (words, sign) in MEASURES.items():
            values = [dataset[key].sel(model=m).values for m in (SPARSE, rival)]
            made.append(Claim(
                f"{'(ours) ' if same else ''}LCA units are more selective than {rival} units ({words})",
                f"difference of the means over units{', pairs of units with the same weight' if same else ''}",
                bootstrap(_difference, *values, paired=same, seed=seed), 0.0, "below" if sign < 0 else "above",
            ))  # fmt: skip
    return tuple(made)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() - b.mean())


def table(dataset: xr.Dataset, seed: int = 0) -> Table:
    """One row per model."""
    columns = (
        "model", "units", "silent", "circular variance, mean", "95 % interval", "mean without silent units",
        "half-width, median (degrees)", "orientation index, mean", "units below 0.2 in circular variance",
        "weights that are oriented edges",
        "positive responses to natural patches",
    )  # fmt: skip
    rows = []
    for model in dataset.model.values.tolist():
        one = dataset.sel(model=model)
        variance, quiet = one.circular_variance.values, one.silent.values
        mean = bootstrap(np.mean, variance, seed=seed)
        rows.append((
            model, one.sizes["unit"], float(quiet.mean()), mean.value, f"{mean.low:.3g} to {mean.high:.3g}",
            float(variance[~quiet].mean()) if (~quiet).any() else None, float(np.median(one.half_width)),
            float(one.orientation_index.mean()), float((variance < 0.2).mean()), float(one.edges), float(one.active),
        ))  # fmt: skip
    return Table(columns, tuple(rows))


def figure(dataset: xr.Dataset) -> Figure:
    """Histograms of circular variance and half-width, and the mean tuning curve about its maximum."""
    drawn = new_figure(13.2, 4.4)
    variance, width, curve = drawn.subplots(1, 3)
    step = 180 / dataset.sizes["orientation"]
    for model in dataset.model.values.tolist():
        color, dash = LOOKS[model]
        one = dataset.sel(model=model)
        look: dict[str, object] = {"color": color, "ls": dash, "lw": 1.8}
        for ax, key, edges in (
            (variance, "circular_variance", np.linspace(0, 1, 31)),
            (width, "half_width", np.linspace(0, 90, 31)),
        ):
            ax.stairs(np.histogram(one[key].values, edges)[0], edges, label=model, **look)
        heard = one.curve.values[~one.silent.values]
        middle = heard.shape[1] // 2
        turned = np.stack([np.roll(c / c.max(), middle - int(c.argmax())) for c in heard]) if len(heard) else heard
        if len(turned):
            curve.plot((np.arange(heard.shape[1]) - middle) * step, turned.mean(0), label=model, **look)
    variance.set_xlabel("circular variance (left: selective)")
    width.set_xlabel("half-width at half height (degrees)")
    for ax in (variance, width):
        ax.set_ylabel("number of units")
    curve.set_xlabel("orientation from the best one (degrees)")
    curve.set_ylabel("response over the best, mean over units")
    curve.set_ylim(0, 1.05)
    handles, labels = variance.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return drawn


def weight_figure(weights: dict[str, Tensor], size: int, *, most: int = 100) -> Figure:
    """The first weights of every model as pictures."""
    drawn = new_figure(4.2 * len(weights), 4.5)
    for ax, (name, w) in zip(drawn.subplots(1, len(weights), squeeze=False)[0], weights.items(), strict=True):
        picture = mosaic(w[:, :most], (size, size)).cpu().numpy()
        ax.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        ax.set_title(f"{name}: {min(most, w.shape[1])} of {w.shape[1]} weights", fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    return drawn


_CAPTION = (
    "Left: circular variance of every unit, 0 for units that answer to one orientation only. Middle: half-width of "
    "the tuning curves. Right: tuning curves, each over its best response and turned to its best orientation, mean "
    "over the units that answer at all. Units that answer to no grating count as not selective (variance 1, "
    "half-width 90 degrees)."
)
_WEIGHTS = "Weights learnt on the same patches, each scaled by its largest value; light is positive."


def _differences(settings: Settings) -> tuple[str, ...]:
    return (
        f"{settings.orientations} different orientations; the paper's 16 include 0 and 180 degrees, which are the "
        "same.",
        "Gratings have the mean length of a natural patch. In the paper they have contrast 0.5, are whitened like "
        "the patches and divided by their largest value; length matters, as the LCA is not linear.",
        "A grating's frequency is where the weight's spectrum is largest, at least one cycle per patch; the paper "
        "fits a Gabor.",
        f"{settings.size} x {settings.size} pixels and {settings.overcompleteness:g} units per pixel, models learnt "
        "on the patches named below, by other algorithms: linear units by fixed-point ICA (RICA in the paper), the "
        "autoencoder with rectified units and the objective of sparse coding (sigmoid units with a penalty on their "
        "mean activity in the paper).",
        "Pointwise units with the weights and threshold of the LCA are added: what they lack is competition only.",
    )
