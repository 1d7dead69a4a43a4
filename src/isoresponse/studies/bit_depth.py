"""Bit depth: how large smallest perturbations are in grey levels, and what storing them with 8 bits makes of them.

The essay's footnote says that the perturbations of Szegedy et al. (2013) had a root-mean-square size of 0.006 of the range,
1.5 grey levels, so that many pixels change by less than an image file can keep. Three distances answer what that means:
of the smallest perturbation in floating point (`d_float`), of the same rounded to the levels (`d_round`, where it is still
across), and of the nearest point across that is on the levels (`d_lattice`).

Without data: scikit-learn's digits, whose pixels have 17 values. `data` with folders `mnist` and `cifar10` gives MNIST,
CIFAR-10, and natural pictures cut from scikit-learn's two photographs. `--quick`: 40 images per network, minutes on 2 cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from isoresponse import plot
from isoresponse.lattice import LatticeSolution, on_lattice
from isoresponse.models import digits as zoo
from isoresponse.models.data import Data, mnist
from isoresponse.studies.claims import subjects
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import Cell, Claim, Outcome, Table, bootstrap, share
from isoresponse.studies.figures import new_figure
from isoresponse.studies.materials import require_folder
from isoresponse.studies.measure import Stage, silent

NAME = "bit-depth"
FOOTNOTE = 0.006  # of the range, root-mean-square
BITS8, DIGITS = 256, 17  # values of a pixel: of an 8-bit image, and of scikit-learn's digits
FARTHER = 0.05  # what storage may cost, relatively


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment: images per network, gradients per search, and how networks on pictures are trained."""

    cases: int = 300
    budget: int = 200
    lattice_budget: int = 60
    train: int = 60_000
    pictures: int = 20_000
    picture_epochs: int = 12


QUICK = Settings(cases=40, budget=60, lattice_budget=30, train=10_000, pictures=2400)


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` as in the module's docstring."""
    settings = QUICK if quick else Settings()
    conditions = subjects_of(data, settings, seed=seed, device=device, stage=stage)
    return outcome(stored(conditions, settings, stage=stage), seed=seed).about(
        data=str(data), seed=seed, quick=quick, **asdict(settings)
    )


def subjects_of(
    data: Path | None, settings: Settings, *, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> list[Networks]:
    """Networks with images that they decide right, by data set.

    Raises FileNotFoundError for a folder that is not there.
    """
    every = [on_digits(data, train=settings.train, cases=settings.cases, seed=seed, device=device, stage=stage)]
    if data is not None:
        of_pictures = subjects.Settings(
            cases=settings.cases,
            train=settings.train,
            pictures=settings.pictures,
            picture_epochs=settings.picture_epochs,
        )
        every += subjects.pictures(data, of_pictures, seed=seed, device=device, stage=stage).values()
    return every


def on_digits(
    data: Path | None, *, train: int, cases: int, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Networks:
    """The built-in networks on MNIST, where `data` has it, or else on scikit-learn's digits.

    Raises FileNotFoundError for a folder that is not there.
    """
    found = _scanned(data).to(device)
    some = Data((found.train[0][:train], found.train[1][:train]), found.test, found.name)
    nets = {}
    for kind in zoo.NETWORKS:
        with stage(f"train {kind} on {found.name}", 1, "network") as on_done:
            nets[kind.upper()] = zoo.trained(kind, some, seed=seed).double()
            on_done(1)
    return subjects.judged(nets, some, cases, seed)


def images_for(data: Path | None, count: int) -> Tensor:
    """The first training images (case, *shape) of `on_digits`."""
    return _scanned(data).train[0][:count]


def _scanned(data: Path | None) -> Data:
    if data is not None:
        require_folder(data)
    return zoo.digits() if data is None or not (data / "mnist").is_dir() else mnist(data / "mnist")


def stored(conditions: list[Networks], settings: Settings, *, stage: Stage = silent) -> xr.Dataset:
    """Distances by network and number of levels, dims (condition, case); shorter conditions are padded with NaN."""
    tables = []
    for nets in conditions:
        for name, classifier in nets.of.items():
            with stage(f"{nets.name}, {name}: search", len(nets.x)) as on_cases:
                found = classifier.closest_adversary(nets.x, nets.labels, budget=settings.budget, on_cases=on_cases)
            for levels in (BITS8, DIGITS) if nets.name == "digits" else (BITS8,):
                with stage(f"{nets.name}, {name}: {levels} levels", 1, "search") as on_done:
                    decision = classifier.decision(nets.labels)
                    kept = on_lattice(decision, nets.x, found, 0.0, levels=levels, budget=settings.lattice_budget)
                    on_done(1)
                tables.append(described(kept, f"{nets.name}: {name}", levels, nets.x[0].numel()))
    return xr.concat(tables, "condition", combine_attrs="override", join="outer")


def described(kept: LatticeSolution, title: str, levels: int, elements: int) -> xr.Dataset:
    """One condition as a dataset; `grey` is the root-mean-square size in 255ths of the range, for boxes of width 1."""
    grey = 255 * kept.d_float / elements**0.5
    inputs = {"units": "input"}
    return xr.Dataset(
        {
            "grey": ("case", grey.cpu().numpy(), {"units": "grey level", "long_name": "r.m.s. size of the smallest change"}),
            "d_float": ("case", kept.d_float.cpu().numpy(), {**inputs, "long_name": "distance in floating point"}),
            "d_round": ("case", kept.d_round.cpu().numpy(), {**inputs, "long_name": "distance after rounding, where across"}),
            "d_lattice": ("case", kept.d_lattice.cpu().numpy(), {**inputs, "long_name": "distance of the nearest on the levels"}),
            "survives": ("case", kept.survives.double().cpu().numpy(), {"units": "1", "long_name": "across after rounding"}),
            "status": ("case", kept.status.cpu().numpy(), {"units": "1", "long_name": "how the lattice search ended"}),
            "levels": ((), levels, {"units": "1", "long_name": "values that a pixel can have"}),
        },
        coords={"condition": title if levels == BITS8 else f"{title}, {levels} levels", "case": np.arange(len(kept))},
    )  # fmt: skip


def outcome(dataset: xr.Dataset, *, seed: int = 0) -> Outcome:
    """Claims, table and figure of the distances."""
    return Outcome(
        NAME, "Smallest perturbations in grey levels, and what 8 bits make of them", claims(dataset, seed=seed),
        table(dataset), {NAME: (figure(dataset), _CAPTION)}, dataset, _DIFFERENCES, {}, _NOTES,
    )  # fmt: skip


def claims(dataset: xr.Dataset, *, seed: int = 0) -> tuple[Claim, ...]:
    """The footnote, what rounding leaves, and what storage costs, for every condition with 256 levels."""
    made = []
    for condition in dataset.condition.values:
        one = dataset.sel(condition=condition)
        if int(one.levels) != BITS8:
            continue
        made += [
            Claim(
                f"(the essay's footnote) {condition}: the smallest perturbation is no larger than in Szegedy et al. (2013)",
                "root-mean-square size as a part of the range, median over images",
                bootstrap(np.median, one.grey.values / 255, seed=seed), FOOTNOTE, "below",
            ),
            Claim(
                f"(ours) {condition}: rounding to 8 bits undoes most of them", "share that is still across after rounding",
                share(one.survives.where(one.d_float > 0).values), 0.5, "below",
            ),
            Claim(
                f"(ours) {condition}: one that survives storage is hardly larger",
                "d_lattice over d_float less 1, median over images",
                bootstrap(np.median, (one.d_lattice / one.d_float).values - 1, seed=seed), FARTHER, "below",
            ),
        ]  # fmt: skip
    return tuple(made)


def table(dataset: xr.Dataset) -> Table:
    """One row per condition."""
    columns = (
        "data and network", "levels", "images", "r.m.s. size, median (grey levels of 255)", "of the range",
        "over the footnote's 0.006", "share below one grey level", "survives rounding", "d_float, median", "d_round, median",
        "d_lattice, median", "d_lattice / d_float, median", "95 % quantile", "d_round / d_lattice, median",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for condition in dataset.condition.values:
        one = dataset.sel(condition=condition).where(lambda d: np.isfinite(d.d_float), drop=True)
        grey, ratio = one.grey.values, (one.d_lattice / one.d_float).values
        rows.append((
            str(condition), int(dataset.levels.sel(condition=condition)), len(grey), float(np.median(grey)),
            float(np.median(grey)) / 255, float(np.median(grey)) / 255 / FOOTNOTE, float((grey < 1).mean()),
            float(one.survives.mean()), float(np.median(one.d_float)), _median(one.d_round.values),
            _median(one.d_lattice.values), _median(ratio), _quantile(ratio, 0.95),
            _median((one.d_round / one.d_lattice).values),
        ))  # fmt: skip
    return Table(columns, tuple(rows))


def figure(dataset: xr.Dataset) -> Figure:
    """Sizes in grey levels, and how much farther the stored adversary is, against them."""
    drawn = new_figure(11.6, 4.8)
    left, right = drawn.subplots(1, 2)
    eight = [c for c in dataset.condition.values if int(dataset.levels.sel(condition=c)) == BITS8]
    for i, condition in enumerate(eight):
        grey = dataset.grey.sel(condition=condition).values
        least, low, middle, high, most = np.nanquantile(grey, [0.05, 0.25, 0.5, 0.75, 0.95])
        left.plot([least, most], [i, i], color=plot.INK, lw=0.9)
        left.plot([low, high], [i, i], color=plot.BLUE, lw=7, solid_capstyle="butt", alpha=0.6)
        left.plot(middle, i, "|", color=plot.INK, ms=14, mew=2)
    left.axvline(1, color=plot.INK, ls="--", lw=1, label="one grey level")
    left.axvline(255 * FOOTNOTE, color=plot.VERMILION, ls=":", lw=1.6, label="the footnote's 0.006 of the range")
    left.set_yticks(range(len(eight)), [str(c) for c in eight])
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xlabel("root-mean-square size of the smallest perturbation (grey levels)")
    left.legend(fontsize=7)
    for i, condition in enumerate(dataset.condition.values):
        one = dataset.sel(condition=condition)
        excess = (one.d_lattice / one.d_float).values - 1
        color = plot.HUES[i % len(plot.HUES)]
        right.plot(one.grey.values, np.maximum(excess, 1e-5), ".", ms=4, color=color, label=str(condition))
        rounded = (one.d_round / one.d_float).values - 1
        right.plot(one.grey.values, np.maximum(rounded, 1e-5), "x", ms=4, mew=0.7, color=color, alpha=0.6)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("root-mean-square size in floating point (grey levels)")
    right.set_ylabel("how much farther, relatively")
    right.set_title("dots: nearest on the levels; crosses: rounded, where that survives", fontsize=9)
    right.legend(fontsize=7)
    return drawn


def _median(values: np.ndarray) -> float:
    return _quantile(values, 0.5)


def _quantile(values: np.ndarray, q: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, q)) if len(finite) else float("nan")


_CAPTION = (
    "Left: sizes of the smallest L2 perturbations found, in grey levels of an 8-bit image (quartiles; whiskers 5 and 95 %). "
    "Right: how much farther the adversarial image is once its pixels must have storable values; below 1e-5 at the edge."
)
_NOTES = (
    "All perturbations are the smallest found by a search inside the box of allowed values; the images of Szegedy et al. were "
    "targeted, and so larger than needed for any change of the decision.",
    "A root-mean-square size below one grey level does not mean that no pixel changes by one: nearest on the levels are images "
    "in which few pixels change by whole levels and most do not change.",
)
_DIFFERENCES = (
    "The footnote is about ImageNet networks of 2013; here are small networks on small images, each data set for itself.",
    "The footnote's number is a mean over examples of one attack; the effect here is a median over images of the smallest found.",
    "scikit-learn's digits have 17 values, so they are asked twice: with 256 levels, and with their own.",
)
