"""Claim (f): spacing and curvature explain how susceptible an input is, and by how much each does."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.explanation import Explanation, explain, pool_factors
from isoresponse.factors import Factors, adversary_factors
from isoresponse.loop import moved, take
from isoresponse.studies.claims.findings import Finding
from isoresponse.studies.claims.pairs import side_by_side
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import Claim, Effect
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent

LEFT = 0.1  # of the variance of log distances: what may be left unexplained
PART = 0.01  # of the variance: what counts as a part of the story
SPACING, CURVATURE = ("spacing",), ("rate", "turning", "bending")
RESAMPLES = 100  # each is a whole explanation
TOGETHER = "all together"
COLORS = (plot.VERMILION, plot.BLUE, plot.SKY, plot.GREEN, plot.ORANGE, plot.PURPLE, plot.YELLOW)


def factors(nets: Networks, distance: dict[str, Tensor], *, stage: Stage = silent) -> dict[str, Factors]:
    """What geometry at the images says of the distance to the nearest boundary, beside the measured one, by network."""
    found = {}
    with stage("f: parts of the distance", len(nets.of), "network") as on_done:
        for name, classifier in nets.of.items():
            found[name] = moved(adversary_factors(classifier, nets.x, nets.labels, distance[name]), "cpu")
            on_done(1)
    return found


def explained(found: dict[str, Factors], *, seed: int = 0) -> dict[str, Explanation | None]:
    """Shares of the variance by network, and for all together; None where there are too few cases, or all are alike."""
    every = {**found, TOGETHER: pool_factors(list(found.values()))} if len(found) > 1 else found
    told: dict[str, Explanation | None] = {}
    for name, one in every.items():
        try:
            told[name] = explain(one, generator=Generator().manual_seed(seed))
        except ValueError:
            told[name] = None
    return told


def part_of(found: Factors, names: tuple[str, ...], *, seed: int = 0, resamples: int = RESAMPLES) -> Effect:
    """Share of the variance that several factors account for together, with its bootstrap interval."""
    generator = Generator().manual_seed(seed)

    def share(some: Factors) -> float:
        try:
            told = explain(some, generator=Generator().manual_seed(seed), resamples=2)
        except ValueError:
            return math.nan
        return float(sum(s for name, s in zip(told.names, told.share.tolist(), strict=True) if name in names))

    cases = len(found)
    value = share(found)
    again = [share(take(found, torch.randint(cases, (cases,), generator=generator))) for _ in range(resamples)]
    if math.isnan(value) or np.isnan(again).mean() > 0.5:
        return Effect(value, math.nan, math.nan, cases)
    low, high = np.nanquantile(again, [0.025, 0.975])
    return Effect(value, float(low), float(high), cases)


def causes(found: dict[str, Factors], *, seed: int = 0, resamples: int = RESAMPLES) -> Finding:
    """Claim (f) from the factors of networks by name."""
    told = explained(found, seed=seed)
    tests = {}
    for name, one in told.items():
        left = Effect(math.nan, math.nan, math.nan, len(found[name]) if name in found else 0)
        if one is not None:
            left = Effect(float(one.unexplained), float(one.unexplained_low), float(one.unexplained_high), one.cases)
        tests[name] = Claim(
            f"{name}: response gap, spacing, curvature and the box explain how far the nearest adversary is",
            "share of the variance of log distances that geometry at the input leaves unexplained", left, LEFT, "below",
        )  # fmt: skip
    whole = pool_factors(list(found.values()))
    for part, names in (("spacing", SPACING), ("curvature", CURVATURE)):
        tests[f"{part} is a part of it"] = Claim(
            f"{part} accounts for a part of how susceptible inputs are", f"Shapley share of the variance of {', '.join(names)}",
            part_of(whole, names, seed=seed, resamples=resamples), PART,
        )  # fmt: skip
    known = {name: one for name, one in told.items() if one is not None}
    figure = new_figure(7.6, 0.6 * max(1, len(known)) + 1.5)
    ax = figure.subplots()
    for row, one in enumerate(known.values()):
        ends = [0.0, 0.0]
        for k, (factor, share) in enumerate(zip(one.names, one.share.tolist(), strict=True)):
            side = int(share < 0)
            ax.barh(
                row, 100 * share, 0.7, left=100 * ends[side], color=COLORS[k % len(COLORS)], edgecolor=plot.INK,
                label=factor if row == 0 else None,
            )  # fmt: skip
            ends[side] += share
        ax.barh(
            row, 100 * float(one.unexplained), 0.7, left=100 * ends[0], color="white", edgecolor=plot.INK, hatch="//",
            label="unexplained" if row == 0 else None,
        )  # fmt: skip
    ax.axvline(100, color=plot.INK, ls="--", lw=1)
    ax.axvline(0, color=plot.INK, lw=1)
    ax.set_yticks(range(len(known)), list(known))
    ax.set_ylim(max(1, len(known)) - 0.5, -0.5)
    ax.set_xlabel("share of the variance of log distances (%)")
    if known:
        figure.legend(fontsize=8, loc="outside right upper")
    shares = "; ".join(
        f"{name}: " + ", ".join(f"{f} {s:.0%}" for f, s in zip(one.names, one.share.tolist(), strict=True))
        for name, one in known.items()
    )
    return Finding(
        "f", "Contour spacing is one part of susceptibility and contour curvature another, and together they explain it.",
        "Response gap, spacing, its rate, turning, bending and the box, measured at the input and with nothing fitted, leave "
        f"less than {LEFT:.0%} of the variance of log distances unexplained; spacing and curvature each account for more than "
        f"{PART:.0%} of it.",
        tests, figure,
        "For how much of the variance of log distances each part of the geometry accounts (Shapley, mean over all orders of "
        "switching them on; a part that makes it worse has a negative share).",
        values={"f_measured": (
            ("f_network", "f_case"), side_by_side([f.measured for f in found.values()]),
            {"units": "input", "long_name": "smallest perturbation found"},
        )},
        notes=(
            f"Shares of the variance: {shares or 'none'}.",
            "Rate, turning and bending are the three parts of the curvature of the response: how spacing changes on the way, how "
            "the steepest path turns, how the contour bends.",
        ),
    )  # fmt: skip
