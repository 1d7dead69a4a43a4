"""Beyond images: the same geometry of sounds, tables and texts.

Adversarial examples are not about pictures (the essay names texts, speech and devices that listen). Three small networks are
asked the same questions: how far is the nearest adversary, in units that mean something there (decibels, standard deviations,
distances between words); does an attack step along the contours' normal; how well do gap and spacing alone, the first-order
distance, rank how susceptible an input is; and how are the contours bent, on the way to the boundary.

Sounds are spoken digits from `fsdd/` of the data folder, or the tones of telephone keys, made here; the table is scikit-learn's
breast cancer; the texts are the descriptions of scikit-learn's data sets, attacked in the space of learnt word vectors.
`--quick`: some tens of inputs each, a minute on 2 cores; otherwise some hundreds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.stats
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.chords import chord_jet
from isoresponse.classifier import Classifier
from isoresponse.geometry import normal_curvature
from isoresponse.solve import closest_point
from isoresponse.studies.beyond_data import Domain, sounds, table, texts, trained
from isoresponse.studies.claims.regions import in_directions, opposite
from isoresponse.studies.claims.steps import DIAGONAL, alignment
from isoresponse.studies.experiment import Cell, Claim, Outcome, Table, bootstrap
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent

NAME = "beyond-images"
RANKED = 0.9  # rank correlation that first order is to reach
PROBES = 8  # random tangents per input
BUDGET = 100


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    cases: int = 200
    samples: int = 400
    sounds: int = 3000
    sound_epochs: int = 40
    table_epochs: int = 60
    passages: int = 3000
    text_epochs: int = 40


QUICK = Settings(cases=40, samples=200, sounds=900, sound_epochs=30, table_epochs=40, passages=1500, text_epochs=20)


@dataclass(frozen=True, eq=False)
class Looked:
    """What is found in one domain: inputs and adversaries (case, *shape), and numbers (case,)."""

    domain: Domain
    x: Tensor
    adversary: Tensor
    distance: Tensor
    size: Tensor
    first_order: Tensor
    cosine: Tensor
    share: Tensor
    bending: Tensor
    gradients: Tensor
    accuracy: float


def study(
    data: Path | None, *, quick: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> Outcome:
    """The whole experiment; `data` with a folder `fsdd` gives spoken digits."""
    settings = QUICK if quick else Settings()
    makers = {
        "sounds": partial(sounds, data, count=settings.sounds, epochs=settings.sound_epochs, seed=seed),
        "table": partial(table, epochs=settings.table_epochs, seed=seed),
        "text": partial(texts, epochs=settings.text_epochs, passages=settings.passages, seed=seed),
    }
    found = {}
    for name, maker in makers.items():
        with stage(f"{name}: train and look", 1, "domain") as on_done:
            found[name] = look(maker().to(device), cases=settings.cases, samples=settings.samples, seed=seed)
            on_done(1)
    return outcome(found, seed=seed).about(
        data=None if data is None else data.name, seed=seed, quick=quick, **asdict(settings),
        sources={name: seen.domain.source for name, seen in found.items()},
    )  # fmt: skip


def look(domain: Domain, *, cases: int, samples: int = 200, seed: int = 0) -> Looked:
    """Train the domain's network and look at test inputs that it decides right.

    Raises
    ------
    ValueError
        No such input.
    """
    net = trained(domain, seed=seed)
    x, labels = domain.test[0].double(), domain.test[1]
    classifier = Classifier.of(net, shape=tuple(x.shape[1:]), box=domain.box, name=domain.name)
    right = classifier.predict(x) == labels
    if not bool(right.any()):
        raise ValueError(f"no test input of the {domain.name} is decided right; train longer.")
    x, labels = x[right][:cases], labels[right][:cases]
    decision = classifier.decision(labels)
    answer = classifier.closest_adversary(x, labels, budget=BUDGET)
    away = answer.distance.isfinite() & (answer.distance > 0)
    scale = torch.where(away, answer.distance, torch.ones_like(answer.distance))
    gap, gradient = decision.value_and_grad(x)
    generator = Generator().manual_seed(seed)
    rising = opposite(decision)
    share = in_directions(rising, x, -gap, scale, samples=samples, generator=generator)
    jet = chord_jet(rising, x, scale=scale, generator=generator)
    bent = torch.stack([
        normal_curvature(jet, torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)).value for _ in range(PROBES)
    ])  # fmt: skip
    lost = float("nan")
    return Looked(
        domain, x, answer.point, answer.distance, domain.size(answer.point - x, x),
        gap / gradient.flatten(1).norm(dim=1), alignment(partial(closest_point, budget=BUDGET), decision, x, 0.0),
        share.masked_fill(~away, lost), (bent.nanmean(0) * scale).masked_fill(~away, lost), answer.gradients,
        float(right.double().mean()),
    )  # fmt: skip


def outcome(found: dict[str, Looked], *, seed: int = 0) -> Outcome:
    """Claims, table and figure of what was found, by domain."""
    names = list(found)
    most = max(len(seen.x) for seen in found.values())

    def rows(key: str) -> np.ndarray:
        made = np.full((len(found), most), np.nan)
        for i, seen in enumerate(found.values()):
            values = getattr(seen, key).double().cpu().numpy()
            made[i, : len(values)] = values
        return made

    variables = {
        key: (("domain", "case"), rows(key), {"units": units, "long_name": about})
        for key, units, about in (
            ("distance", "input", "smallest L2 perturbation found"),
            ("size", "see the settings", "its size in the domain's units"),
            ("first_order", "input", "gap over the gradient's length"), ("cosine", "1", "mean cosine of steps and normal"),
            ("share", "1", "share of directions, as far as the boundary, in which the other class gains"),
            ("bending", "1", "distance x mean normal curvature, positive where directions are fewer"),
            ("gradients", "1", "gradients spent"),
        )
    }  # fmt: skip
    claims = tuple(claim for name, seen in found.items() for claim in _claims(name, seen, seed))
    return Outcome(
        NAME, "Beyond images: sounds, a table, texts", claims, _table(found), {NAME: (_figure(found), _CAPTION)},
        xr.Dataset(variables, coords={"domain": names}), (), {}, _NOTES,
    )  # fmt: skip


def _claims(name: str, seen: Looked, seed: int) -> list[Claim]:
    def rank(told: np.ndarray, measured: np.ndarray) -> float:
        return float(scipy.stats.spearmanr(told, measured).statistic)

    domain = seen.domain
    return [
        Claim(
            f"{name}: the nearest adversary is small, under {domain.smaller}", f"size in {domain.unit}, median over inputs",
            bootstrap(np.median, seen.size.cpu().numpy(), seed=seed), domain.small, "below",
        ),
        Claim(
            f"{name}: steps of a search for it align with the contours' normal",
            "mean cosine of steps and normal, mean over inputs",
            bootstrap(np.mean, seen.cosine.cpu().numpy(), seed=seed), DIAGONAL,
        ),
        Claim(
            f"{name}: gap and spacing alone rank how susceptible inputs are",
            "Spearman correlation over inputs of the first-order distance and the smallest perturbation found",
            bootstrap(rank, seen.first_order.cpu().numpy(), seen.distance.cpu().numpy(), paired=True, seed=seed), RANKED,
        ),
        Claim(
            f"{name}: contours are bent so that fewer directions raise the other class than straight ones would leave",
            "share of random directions, as far as the boundary, in which the best other class gains on the label; straight "
            "contours leave one half; mean over inputs", bootstrap(np.mean, seen.share.cpu().numpy(), seed=seed), 0.5, "below",
        ),
    ]  # fmt: skip


def _table(found: dict[str, Looked]) -> Table:
    columns = (
        "domain", "data", "input", "inputs looked at", "accuracy", "smallest perturbation, L2, median", "size, median", "in",
        "first order over measured, median", "directions that gain", "distance x curvature, mean", "gradients",
    )  # fmt: skip
    made: list[tuple[Cell, ...]] = []
    for name, seen in found.items():
        sound = seen.distance.isfinite() & (seen.distance > 0)
        made.append((
            name, seen.domain.source, " x ".join(map(str, seen.x.shape[1:])), len(seen.x), seen.accuracy,
            float(seen.distance.nanmedian()), float(seen.size.nanmedian()), seen.domain.unit,
            float((seen.first_order / seen.distance)[sound].median()), float(seen.share.nanmean()), float(seen.bending.nanmean()),
            float(seen.gradients.double().mean()),
        ))  # fmt: skip
    return Table(columns, tuple(made))


def _figure(found: dict[str, Looked]) -> Figure:
    """Measured against first order, and one input with its adversary, per domain."""
    figure = new_figure(4.2 * len(found), 6.4)
    axes = figure.subplots(2, len(found), squeeze=False)
    for (upper, lower), (name, seen) in zip(axes.T, found.items(), strict=True):
        plot_measured(upper, seen)
        upper.set_title(f"{name}: {seen.domain.source}", fontsize=9)
        sound = torch.nonzero(seen.distance.isfinite()).flatten()
        typical = int(sound[seen.distance[sound].argsort()[len(sound) // 2]])
        _example(lower, seen, typical)
    return figure


def plot_measured(ax: Axes, seen: Looked) -> None:
    """First-order distances against measured ones."""
    told, measured = seen.first_order.cpu().numpy(), seen.distance.cpu().numpy()
    top = float(np.nanmax([told.max(), np.nanmax(measured)]))
    ax.plot([0, top], [0, top], "--", color=plot.INK, lw=1)
    ax.plot(told, measured, "o", ms=4, color=plot.BLUE, mec=plot.INK, mew=0.4)
    ax.set_xlabel("gap over gradient (input units)")
    ax.set_ylabel("smallest perturbation found")


def _example(ax: Axes, seen: Looked, case: int) -> None:
    """One input and its change, as suits its shape: a sound over time, named quantities, places of a passage."""
    x, change = seen.x[case], seen.adversary[case] - seen.x[case]
    size = float(seen.size[case])
    if x.ndim == 2 and x.shape[0] == 1:
        ax.plot(x[0].cpu().numpy(), color=plot.SKY, lw=0.6, label="sound")
        ax.plot(change[0].cpu().numpy(), color=plot.VERMILION, lw=0.6, label="change")
        ax.set_xlabel("sample")
        ax.set_ylabel("amplitude")
    else:
        values, marks = (change, seen.domain.names) if x.ndim == 1 else (change.norm(dim=1), ())
        base = x if x.ndim == 1 else x.norm(dim=1)
        at = np.arange(len(values))
        ax.bar(at - 0.2, base.cpu().numpy(), 0.4, color=plot.SKY, label="input")
        ax.bar(at + 0.2, values.cpu().numpy(), 0.4, color=plot.VERMILION, label="change")
        ax.set_xlabel("quantity" if marks else "word of the passage")
        ax.set_ylabel("standard deviations" if marks else "length of the vector")
    ax.set_title(f"a typical case: {size:.2g} {seen.domain.unit.partition(',')[0]}", fontsize=9)
    ax.legend(fontsize=8)


_CAPTION = (
    "Above: smallest perturbation found against the first-order distance, gap over gradient; on the dashed line contours would "
    "be straight and equally spaced. Below: an input of median distance, and the change that makes the decision another one."
)
_NOTES = (
    "The decision's contour is that of the nearest of several classes: where boundaries meet it is bent towards the input, which "
    "leaves more directions than one half, not fewer.",
    "A passage is attacked in the space of word vectors; no words belong to what is found. Whether a change of words could do "
    "it is another question.",
    "Curvature is that over a chord as long as the way to the boundary, mean of random tangents; positive where it takes "
    "directions from an adversary.",
)
