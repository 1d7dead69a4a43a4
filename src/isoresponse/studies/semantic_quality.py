"""Semantic quality: what smallest perturbations look like, beside those of a unit that cannot mean anything.

Every measure of `isoresponse.quality` is taken of smallest perturbations, of those of a matched pointwise unit (same most
exciting input, gap and gradient) and of random ones. The most exciting inputs (MEI) are those of the network's own class
scores; the data's directions are those near each image, and a dictionary learnt on the training images; the independent
model is the other network.

Without data: scikit-learn's digits. `data` with a folder `mnist`: MNIST. `--quick`: some tens of images; minutes on 2 cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.classifier import Classifier
from isoresponse.exciting import most_exciting_input
from isoresponse.neuron import Neuron
from isoresponse.paths import gradient_path
from isoresponse.quality import (
    Measure,
    Quality,
    agreement,
    alignment,
    coded_share,
    compare_quality,
    growth,
    low_frequency_share,
    on_manifold_share,
    pointwise_control,
)
from isoresponse.records import to_dataset
from isoresponse.studies.bit_depth import images_for, on_digits
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import Cell, Claim, Outcome, Table, bootstrap
from isoresponse.studies.figures import new_figure
from isoresponse.studies.materials import trained_dictionary
from isoresponse.studies.measure import Stage, silent

NAME = "semantic-quality"
SPARSITY = 0.3
ACTIVE, DIMS, NEIGHBOURS = 5, 10, 50
MEI_STEPS, MEI_STARTS = 200, 4
LIKED, DIFFERENCE, GROWTH = "alignment, rival's MEI", "alignment, difference of MEIs", "growth along the path"


@dataclass(frozen=True)
class Settings:
    """Images per network, gradients per search, and how the dictionary is learnt."""

    cases: int = 200
    train: int = 60_000
    budget: int = 200
    units: int = 512
    dictionary_steps: int = 2000


QUICK = Settings(cases=40, train=10_000, budget=60, units=128, dictionary_steps=200)


@dataclass(frozen=True, eq=False)
class Looked:
    """One network's perturbations with what was measured of them."""

    name: str
    quality: Quality
    growth: Tensor  # (case,): of the steepest path's alignment with the difference of MEIs
    x: Tensor
    perturbation: Tensor
    control: Tensor
    toward: Tensor  # (case, *shape): MEI of the rival less that of the label


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` as in the module's docstring."""
    settings = QUICK if quick else Settings()
    nets = on_digits(data, train=settings.train, cases=settings.cases, seed=seed, device=device, stage=stage)
    samples = images_for(data, settings.train).to(device).double()
    dictionary = trained_dictionary(
        samples, settings.units, sparsity=SPARSITY, steps=settings.dictionary_steps, seed=seed, stage=stage
    )
    looks = looked(nets, samples, dictionary, settings, seed=seed, stage=stage)
    return outcome(looks, seed=seed).about(data=nets.name, seed=seed, quick=quick, **asdict(settings))


def looked(
    nets: Networks, samples: Tensor, dictionary: Tensor, settings: Settings, *, seed: int = 0, stage: Stage = silent
) -> list[Looked]:
    """Every network's smallest perturbations; the network that follows it in the list is its independent model."""
    made = []
    names = list(nets.of)
    for k, name in enumerate(names):
        with stage(f"{nets.name}, {name}: search and look", len(nets.x)) as on_cases:
            other = nets.of[names[(k + 1) % len(names)]]
            made.append(_look(f"{nets.name}: {name}", nets.of[name], other, nets, samples, dictionary, settings, seed))
            on_cases(len(nets.x))
    return made


def _look(
    title: str, own: Classifier, other: Classifier, nets: Networks, samples: Tensor, dictionary: Tensor, settings: Settings,
    seed: int,
) -> Looked:  # fmt: skip
    generator = Generator().manual_seed(seed)
    x, labels = nets.x, nets.labels
    found = own.closest_adversary(x, labels, budget=settings.budget)
    rivals = own.predict(torch.where(torch.isfinite(found.point), found.point, x))
    liked = class_meis(own, samples.mean(0), generator)
    toward = liked[rivals] - liked[labels]
    margin = own.margin(labels, rivals)
    matched = pointwise_control(margin, x, 0.0, mei=-toward, budget=settings.budget)
    change, control = found.point - x, matched.point - x
    measures: dict[str, Measure] = {
        LIKED: lambda d: alignment(d, liked[rivals] - x),
        DIFFERENCE: lambda d: alignment(d, toward),
        f"local PCA, {DIMS} of {x[0].numel()}": lambda d: on_manifold_share(
            d, x, samples, neighbours=min(NEIGHBOURS, len(samples)), dims=DIMS
        ),
        f"sparse code, {ACTIVE} of {dictionary.shape[1]}": lambda d: coded_share(d, dictionary, active=ACTIVE),
        "the other network's margin": lambda d: agreement(d, x, other, labels, rivals),
    }
    if x.ndim >= 4:
        measures["low frequencies"] = lambda d: low_frequency_share(d)
    told = compare_quality(measures, change, control, generator=generator)
    path = gradient_path(margin, x, 0.0, knots=11, rtol=0.1, max_steps=settings.budget)
    return Looked(title, told, growth(path, toward), x, change, control, toward)


def class_meis(classifier: Classifier, center: Tensor, generator: Generator) -> Tensor:
    """The most exciting input (class, *shape) of every class score in the box, searched for round `center`."""
    found = []
    for c in range(classifier.classes):
        score = Neuron(lambda z, c=c: classifier.logits(z)[:, c], classifier.shape, classifier.box, f"class {c}")
        mei = most_exciting_input(score, generator=generator, center=center, starts=MEI_STARTS, max_steps=MEI_STEPS)
        found.append(mei.point)
    return torch.stack(found)


def outcome(looks: list[Looked], *, seed: int = 0) -> Outcome:
    """Claims, table, figures and every case."""
    tables = []
    for look in looks:
        one = to_dataset(look.quality, coords=look.quality.coords)
        one["growth"] = ("case", look.growth.cpu().numpy(), {"units": "1", "long_name": GROWTH})
        tables.append(one.expand_dims(network=[look.name]))
    dataset = xr.concat(tables, "network", combine_attrs="override", join="outer")
    figures = {NAME: (figure(looks), _CAPTION), "examples": (examples(looks[0]), _EXAMPLES)}
    return Outcome(
        NAME, "Do smallest perturbations mean anything?", claims(looks, seed=seed), table(looks), figures, dataset,
        _DIFFERENCES, {}, _NOTES,
    )  # fmt: skip


def claims(looks: list[Looked], *, seed: int = 0) -> tuple[Claim, ...]:
    """For every network: each measure but alignment, of which the unit has most by construction, is above that of the
    matched unit; and alignment grows along the path.
    """
    made = []
    for look in looks:
        for name, gain in zip(look.quality.measures, look.quality.gain.cpu().numpy(), strict=True):
            if name in (LIKED, DIFFERENCE):
                continue
            made.append(
                Claim(
                    f"(ours) {look.name}: {name}: more than the matched pointwise unit's",
                    "median over images of the difference", bootstrap(np.median, gain, seed=seed), 0.0, "above",
                )
            )  # fmt: skip
        made.append(
            Claim(
                f"(the essay) {look.name}: along the steepest path, the change looks more and more like the MEI",
                "last less first alignment with the difference of MEIs, median over images",
                bootstrap(np.median, look.growth.cpu().numpy(), seed=seed), 0.0, "above",
            )
        )  # fmt: skip
    return tuple(made)


def table(looks: list[Looked]) -> Table:
    """One row per network and measure."""
    columns = (
        "network", "measure", "images", "perturbation, median", "matched unit, median", "chance", "difference, median",
        "share above its control", "95 % interval",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for look in looks:
        q = look.quality
        for k, name in enumerate(q.measures):
            share, low, high = q.share_above(name)
            rows.append((
                look.name, name, int(torch.isfinite(q.gain[k]).sum()), float(q.value[k].nanmedian()),
                float(q.control[k].nanmedian()), float(q.chance[k].nanmedian()), float(q.gain[k].nanmedian()), share,
                f"{low:.2f} to {high:.2f}",
            ))  # fmt: skip
        known = int(torch.isfinite(look.growth).sum())
        middle = float(look.growth.nanmedian())
        rows.append((look.name, GROWTH, known, middle, 0.0, None, middle, None, "–"))
    return Table(columns, tuple(rows))


def figure(looks: list[Looked]) -> Figure:
    """All measures, one panel per network."""
    drawn = new_figure(6.6 * len(looks), 4.4)
    for ax, look in zip(drawn.subplots(1, len(looks), squeeze=False)[0], looks, strict=True):
        plot.quality(ax, look.quality)
        ax.set_title(look.name, fontsize=10)
    return drawn


def examples(look: Looked, *, rows: int = 4) -> Figure:
    """Input, its perturbation, that of the matched unit, and the difference of MEIs, for some cases."""
    some = torch.nonzero(torch.isfinite(look.perturbation.flatten(1)).all(1)).flatten()[:rows].tolist()
    drawn = new_figure(8.4, 2.1 * max(1, len(some)))
    for axes, i in zip(drawn.subplots(max(1, len(some)), 4, squeeze=False), some, strict=False):
        plot.image(axes[0], look.x[i], title="input")
        for ax, change, title in (
            (axes[1], look.perturbation[i], "smallest perturbation"), (axes[2], look.control[i], "of the matched unit"),
            (axes[3], look.toward[i], "rival's MEI less the label's"),
        ):  # fmt: skip
            top = float(torch.nan_to_num(change).abs().max()) or 1.0
            plot.image(ax, torch.nan_to_num(change), title=title, bounds=(-top, top), signed=True)
    return drawn


_CAPTION = (
    "Measures of smallest perturbations, of those of a matched pointwise unit, and of random ones (quartiles; whiskers 5 and "
    "95 %). What is above chance but not above the matched unit is no sign of meaning."
)
_EXAMPLES = "Inputs with what changes their class; each change on its own scale, grey is none."
_NOTES = (
    "The matched unit answers to one direction alone, the difference of the two classes' MEIs, with the margin's own gap and "
    "gradient. Inside the box its perturbation is as aligned with that direction as one can be: alignment alone is no meaning.",
    "No measure is one of meaning by itself; they are meant to disagree.",
)
_DIFFERENCES = ("The essay says that there is no good measure of semantic quality, and offers none.",)
