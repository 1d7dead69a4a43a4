"""Claims (g) and (j): perturbations below a grey level, and sparse coding against pointwise networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from isoresponse import plot
from isoresponse.crossing import Solution
from isoresponse.studies.claims.findings import Finding
from isoresponse.studies.claims.pairs import side_by_side
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import Claim, bootstrap
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.network_results import LCA_NET, MLP, POINTWISE
from isoresponse.studies.sizes import perturbation_sizes

LOOKS = {
    MLP: (plot.VERMILION, ":"),
    LCA_NET: (plot.BLUE, "-"),
    POINTWISE: (plot.INK, "--"),
    "CNN": (plot.GREEN, "-."),
}
FOOTNOTE = 0.006 * 255  # grey levels: what the essay's footnote has for the examples of Szegedy et al. (2013)


def closest(nets: Networks, *, budget: int, stage: Stage = silent) -> dict[str, Solution]:
    """The closest adversaries of all networks."""
    found = {}
    with stage(f"closest adversaries, {nets.name}", len(nets.of), "network") as on_done:
        for name, classifier in nets.of.items():
            found[name] = classifier.closest_adversary(nets.x, nets.labels, budget=budget)
            on_done(1)
    return found


def sizes(nets: Networks, found: dict[str, Solution]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Root-mean-square size (case,) in grey levels of an 8-bit image by network, and whether rounding leaves the decision."""
    grey, survives = {}, {}
    for name, classifier in nets.of.items():
        told = perturbation_sizes(classifier, nets.x, found[name].point, nets.labels)
        grey[f"{nets.name}: {name}"] = told.grey_levels.cpu()
        survives[f"{nets.name}: {name}"] = told.survives_8bit.double().masked_fill(told.rms.isnan(), torch.nan).cpu()
    return grey, survives


def below_a_level(
    natural: dict[str, Tensor], survives: dict[str, Tensor], others: dict[str, Tensor], *, seed: int = 0
) -> Finding:
    """Claim (g) from sizes (case,) in grey levels on natural images, what rounding leaves of them, and sizes on other images."""

    def claim(name: str, grey: Tensor) -> Claim:
        return Claim(
            f"{name}: the smallest perturbation is below a grey level",
            "root-mean-square size in grey levels of an 8-bit image, median over images",
            bootstrap(np.median, grey.numpy(), seed=seed), 1.0, "below",
        )  # fmt: skip

    every = {**natural, **others}
    figure = new_figure(7.6, 0.5 * len(every) + 1.5)
    ax = figure.subplots()
    for i, grey in enumerate(every.values()):
        least, low, middle, high, most = np.nanquantile(grey.numpy(), [0.05, 0.25, 0.5, 0.75, 0.95])
        ax.plot([least, most], [i, i], "-", color=plot.INK, lw=1)
        color = plot.BLUE if i < len(natural) else plot.SKY
        ax.barh(i, high - low, 0.6, left=low, color=color, edgecolor=plot.INK, alpha=0.8)
        ax.plot([middle, middle], [i - 0.3, i + 0.3], "-", color=plot.INK, lw=2)
    ax.axvline(1, color=plot.INK, ls="--", lw=1, label="one grey level")
    ax.axvline(FOOTNOTE, color=plot.FAINT, ls=":", lw=2, label="the essay's footnote")
    ax.set_xscale("log")
    ax.set_yticks(range(len(every)), list(every))
    ax.set_ylim(len(every) - 0.5, -0.5)
    ax.set_xlabel("root-mean-square size of the smallest perturbation (grey levels)")
    ax.legend(fontsize=8)
    shares = ", ".join(f"{name} {float(s.nanmean()):.0%}" for name, s in survives.items())
    return Finding(
        "g", "Adversarial perturbations of natural images are smaller than what a display can show.",
        "The median root-mean-square size of the smallest perturbation found is below one grey level of an 8-bit image.",
        {name: claim(name, g) for name, g in natural.items()}, figure,
        "Size of the smallest perturbations in L2, in grey levels (quartiles; whiskers 5 and 95 %): natural images, and digits.",
        contrast={name: claim(name, g) for name, g in others.items()},
        values={"g_grey_levels": (
            ("g_subject", "g_case"), side_by_side(list(every.values())),
            {"units": "grey level", "long_name": "root-mean-square size of the smallest perturbation"},
        )},
        notes=(
            f"The decision is still another one after rounding to 256 levels in: {shares}.",
            "The size per pixel falls with the number of pixels, so small pictures, as here, make the claim harder to meet.",
        ),
    )  # fmt: skip


def coded(nets: Networks, found: dict[str, Solution], *, doubt: dict[str, str] | None = None, seed: int = 0) -> Finding:
    """Claim (j): distances with a sparse code in front, against those of its pointwise control and of a perceptron.

    `doubt` says by network why its distances are not to be believed, where alarms for hidden gradients were raised.
    """
    raised = doubt or {}
    far = {name: s.distance.cpu() for name, s in found.items()}
    tests = {
        f"against the {other}": Claim(
            f"the network of sparse codes needs larger perturbations than the {other}",
            "log of the smallest L2 perturbation found, LCA less the other, median over images",
            bootstrap(np.median, (far[LCA_NET] / far[other]).log().numpy(), seed=seed), 0.0,
            doubt=" ".join(filter(None, (raised.get(LCA_NET, ""), raised.get(other, "")))),
        )
        for other in (POINTWISE, MLP) if other in far
    }  # fmt: skip
    figure = new_figure(6.4, 3.6)
    ax = figure.subplots()
    for name, d in far.items():
        sound = np.sort(d[d.isfinite()].numpy())
        color, dash = LOOKS.get(name, (plot.PURPLE, "-"))
        ax.plot(
            sound,
            np.arange(1, len(sound) + 1) / len(sound),
            ls=dash,
            color=color,
            lw=2,
            drawstyle="steps-post",
            label=name,
        )
    ax.set_xlabel("smallest perturbation found, L2 (input units)")
    ax.set_ylabel("share of images")
    ax.set_xlim(left=0)
    ax.legend(fontsize=8)
    rates = ", ".join(f"{name} {rate:.1%}" for name, rate in nets.accuracy.items())
    return Finding(
        "j", "Networks of neurons with bent contours, sparse codes, are harder to attack than pointwise ones.",
        "Per image the smallest perturbation found is larger for the network of sparse codes (LCA) than for the same read-out of "
        "pointwise units with its weights and threshold, and than for a multilayer perceptron.",
        tests, figure, f"Share of images whose decision changes within a distance ({nets.name}).",
        values={"j_distance": (
            ("j_network", "j_case"), side_by_side(list(far.values())),
            {"units": "input", "long_name": "smallest L2 perturbation found"},
        )},
        notes=(
            f"Accuracy on test images: {rates}. Distances are upper bounds; `isoresponse study network-attack` adds published "
            "attacks, the paper's protocol and alarms for hidden gradients.",
        ),
    )  # fmt: skip
