"""Claims (a) and (h): attacks step across contours, and walking along one changes the least."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.attacks import foolbox_module, from_foolbox
from isoresponse.crossing import Problem, Solution
from isoresponse.loop import Status
from isoresponse.neuron import Neuron
from isoresponse.paths import iso_walk
from isoresponse.solve import closest_point
from isoresponse.studies.claims.findings import Finding
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import Claim, bootstrap, share
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent
from isoresponse.trace import trace_attack

DIAGONAL = math.cos(math.pi / 4)  # nearer to the normal than to the contour
QUARTER = 0.25  # of the gap that a step of the textbook attacks promises to close
STEPS = 40
BUDGET = 20  # gradients of our search: the way there, not the last digits
WALK = 0.5  # length of the walk along a contour, in median distances to the boundary
KNOTS = 11
MOSTLY = 0.8  # share of images
RIVALS = 32  # random ways that the walk is compared with
MARKERS = "os^Dv"

Rule = Literal["gradient", "sign", "coordinate"]
Attack = Callable[[Neuron, Tensor, float | Tensor], Solution]


def textbook(rule: Rule) -> Attack:
    """The three attacks of every textbook, until they are across: steps along the gradient, its sign, its largest element.

    Each closes a quarter of the gap at the start, to first order. They are steepest in L2 (Cauchy 1847), L-infinity
    (Goodfellow, Shlens & Szegedy 2015) and L1 (Papernot et al. 2016, one element at a time).
    """

    def attack(neuron: Neuron, x: Tensor, level: float | Tensor) -> Solution:
        problem = Problem.of(neuron, x, level)
        every = torch.arange(len(x), device=x.device)
        point, count = problem.start.clone(), torch.zeros_like(every)
        gap = problem.excess(point).abs()
        going = every
        for _ in range(STEPS):
            excess, gradient = problem.select(going).excess_and_grad(point[going])
            count[going] += 1
            on = excess < 0
            going, gradient = going[on], gradient[on]
            if not len(going):
                break
            way = _way(rule, gradient * problem.neuron.box.free(point[going], gradient))
            slope = (way * gradient).sum(1).clamp_min(torch.finfo(x.dtype).tiny)
            step = (QUARTER * gap[going] / slope)[:, None] * way
            point = point.index_copy(0, going, problem.clip(point[going] + step))
        across = problem.excess(point) >= 0
        status = torch.where(across, int(Status.DONE), int(Status.MAX_STEPS))
        distance = (point - problem.start).norm(dim=1)
        value = problem.neuron.value(point)
        return Solution(
            point.reshape(x.shape), value, distance, torch.full_like(distance, torch.nan), status, count, count
        )

    return attack


def _way(rule: Rule, gradient: Tensor) -> Tensor:
    """Direction (case, n) of the next step."""
    if rule == "gradient":
        return gradient
    if rule == "sign":
        return gradient.sign()
    largest = gradient.abs().argmax(1, keepdim=True)
    return torch.zeros_like(gradient).scatter(1, largest, gradient.gather(1, largest).sign())


def attacks() -> dict[str, Attack]:
    """Attacks to be watched, by name; a published one where foolbox is installed."""
    found: dict[str, Attack] = {
        "ours (L2)": partial(closest_point, budget=BUDGET), "gradient (L2)": textbook("gradient"), "sign (L∞)": textbook("sign"),
        "one element (L1)": textbook("coordinate"),
    }  # fmt: skip
    try:
        foolbox = foolbox_module()
    except ImportError:
        return found
    return {"DDN (L2)": from_foolbox(foolbox.attacks.DDNAttack(steps=20)), **found}


def alignment(attack: Attack, neuron: Neuron, x: Tensor, level: float | Tensor) -> Tensor:
    """Mean cosine (case,) between the steps that `attack` takes short of the level and the contours' normals, in the box."""
    trace = trace_attack(attack, neuron, x, level)
    return trace.cosine_in_box.masked_fill(trace.across, torch.nan).nanmean(1)


def steps_across(nets: Networks, *, attacks: dict[str, Attack], seed: int = 0, stage: Stage = silent) -> Finding:
    """Claim (a) on all networks and attacks."""
    found = np.full((len(nets.of), len(attacks), len(nets.x)), np.nan)
    with stage("a: watch attacks", len(nets.of) * len(attacks), "attack") as on_done:
        for i, classifier in enumerate(nets.of.values()):
            for j, watched in enumerate(attacks.values()):
                found[i, j] = alignment(watched, classifier.decision(nets.labels), nets.x, 0.0).cpu().numpy()
                on_done(1)
    tests = {
        f"{attack}: {net}": Claim(
            f"steps of the attack “{attack}” on the {net} align with the contours' normal",
            "mean cosine between step and normal, in the box, over the steps short of the boundary; mean over images",
            bootstrap(np.mean, found[i, j], seed=seed), DIAGONAL,
        )
        for j, attack in enumerate(attacks) for i, net in enumerate(nets.of)
    }  # fmt: skip
    figure = new_figure(7.6, 3.6)
    ax = figure.subplots()
    for j, attack in enumerate(attacks):
        for i, net in enumerate(nets.of):
            effect = tests[f"{attack}: {net}"].effect
            where = j + 0.18 * (i - (len(nets.of) - 1) / 2)
            ax.plot([effect.low, effect.high], [where, where], "-", color=plot.INK, lw=1.5)
            ax.plot(
                effect.value, where, MARKERS[i], color=(plot.BLUE, plot.ORANGE, plot.GREEN, plot.PURPLE)[i % 4],
                mec=plot.INK, ms=7, label=net if j == 0 else None,
            )  # fmt: skip
    ax.axvline(DIAGONAL, color=plot.INK, ls="--", lw=1, label="45°")
    ax.axvline(1 / math.sqrt(nets.x[0].numel()), color=plot.FAINT, ls=":", lw=1.5, label="random steps (r.m.s.)")
    ax.set_yticks(range(len(attacks)), list(attacks))
    ax.set_ylim(len(attacks) - 0.5, -0.5)
    ax.set_xlim(0, 1.03)
    ax.set_xlabel("cosine between steps and the contours' normal (95 % interval)")
    ax.legend(fontsize=8, loc="center left")
    return Finding(
        "a", "Attacks look different, but all step across the contours: along the normal.",
        "The mean cosine between a step and the normal of the contour it starts from, short of the boundary, is above that of "
        f"45°; random steps have {1 / math.sqrt(nets.x[0].numel()):.2f}.",
        tests, figure,
        f"Every marker is one attack on one network ({nets.name}). Elements held by the box are left out of step and normal.",
        values={"a_cosine": (
            ("a_network", "a_attack", "a_case"), found, {"units": "1", "long_name": "mean cosine of steps and normal"},
        )},
        notes=(
            "An attack that is steepest in another norm cannot follow the normal of L2: one element at a time is as far from it "
            "as gradients are spread over elements.",
        ),
    )  # fmt: skip


# --- (h) -------------------------------------------------------------------------------------------------


def change_over(neuron: Neuron, x: Tensor, end: Tensor) -> Tensor:
    """How much (case,) the response changes from `x` to `end`, without sign."""
    return (neuron.value(end) - neuron.value(x)).abs()


Walker = Callable[[Neuron, Tensor, Tensor, float], Tensor]


def along_contour(neuron: Neuron, x: Tensor, direction: Tensor, length: float) -> Tensor:
    """Where a walk of the given length along the contour ends, (case, *shape); NaN where the box ends it."""
    return iso_walk(neuron, x, direction, step=length / (KNOTS - 1), knots=KNOTS).points[:, -1]


def compared(
    neuron: Neuron,
    x: Tensor,
    length: float,
    *,
    walker: Walker = along_contour,
    rivals: int = RIVALS,
    generator: Generator,
) -> dict[str, Tensor]:
    """Changes (case,) of the response over a walk along the contour, and over straight ways as long as where it leads.

    Straight along the gradient; along the contour's tangent, straight on; and along `rivals` random directions, of which the
    smallest and the mean change are told. All stay in the box.
    """
    draw = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    end = walker(neuron, x, draw, length)
    known = torch.isfinite(end.flatten(1)).all(1)
    end = torch.where(known.reshape(-1, *[1] * (x.ndim - 1)), end, x)
    far = (end - x).flatten(1).norm(dim=1)
    _, gradient = neuron.value_and_grad(x)
    flat = gradient.flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    first = draw.flatten(1)
    tangent = first - (first * unit).sum(1, keepdim=True) * unit

    def straight(way: Tensor) -> Tensor:
        way = way.reshape(x.shape)
        way = way * neuron.box.free(x, way)
        size = way.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        reached = neuron.box.clip(x + way * (far / size).reshape(-1, *[1] * (x.ndim - 1)))
        return change_over(neuron, x, reached)

    down = -unit * torch.sign(neuron.value(x))[:, None]  # towards the boundary
    random = torch.stack(
        [straight(torch.randn(first.shape, generator=generator, dtype=x.dtype).to(x)) for _ in range(rivals)]
    )
    every = {
        "contour": change_over(neuron, x, end), "tangent": straight(tangent), "random, least": random.amin(0),
        "random": random.mean(0), "gradient": straight(down),
    }  # fmt: skip
    return {k: v.masked_fill(~known, torch.nan).cpu() for k, v in every.items()}


def least_along(
    nets: Networks, distance: dict[str, Tensor], *, walker: Walker = along_contour, seed: int = 0, stage: Stage = silent
) -> Finding:
    """Claim (h) on all networks; `distance` (case,) to the boundary by network."""
    rows: dict[str, dict[str, Tensor]] = {}
    with stage("h: walk along contours", len(nets.of), "network") as on_done:
        for name, classifier in nets.of.items():
            length = WALK * float(distance[name].nanmedian())
            generator = Generator().manual_seed(seed)
            rows[name] = compared(classifier.decision(nets.labels), nets.x, length, walker=walker, generator=generator)
            on_done(1)
    tests, contrast = {}, {}
    for name, row in rows.items():
        least = (row["contour"] < row["random, least"]).double().masked_fill(row["contour"].isnan(), torch.nan)
        tests[name] = Claim(
            f"{name}: a walk along the contour changes the response less than any straight way of the same length",
            f"share of images for which it changes less than every one of {RIVALS} random directions", share(least), MOSTLY,
        )  # fmt: skip
        logs = (row["contour"].clamp_min(1e-300) / row["tangent"]).log10()
        contrast[name] = Claim(
            f"{name}: and less than straight on along the tangent, because contours bend",
            "median over images of log10 of the change along the contour over that along its tangent",
            bootstrap(np.median, logs.numpy(), seed=seed), 0.0, "below",
        )  # fmt: skip
    ways = ("gradient", "random", "random, least", "tangent", "contour")
    figure = new_figure(3.6 * len(rows), 3.4)
    for ax, (name, row) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows.items(), strict=True):
        changes = [row[w].numpy() for w in ways]
        changes = [np.maximum(c[np.isfinite(c)], 1e-9) for c in changes]
        boxes = ax.boxplot(changes, whis=(5, 95), showfliers=False, patch_artist=True)
        for box, color in zip(
            boxes["boxes"], (plot.VERMILION, plot.SKY, plot.SKY, plot.ORANGE, plot.BLUE), strict=True
        ):
            box.set(facecolor=color, alpha=0.6)
        for line in boxes["medians"]:
            line.set(color=plot.INK)
        ax.set_yscale("log")
        ax.set_xticks(range(1, len(ways) + 1), [w.replace(", ", ",\n") for w in ways], fontsize=7)
        ax.set_title(name, fontsize=10)
        ax.set_ylabel("change of the response (response units)")
    return Finding(
        "h", "To change the response least, follow the contour.",
        f"A walk along the contour, half as long as the boundary is far (median), changes the response less than each of "
        f"{RIVALS} random straight ways to points as far away, in more than four of five images.",
        tests, figure,
        f"Change of the response over ways of equal length ({nets.name}; box: quartiles, whiskers: 5 and 95 %): towards the "
        "boundary, random directions (mean and least), straight on along the contour's tangent, and along the contour.",
        contrast=contrast,
        values={"h_change": (
            ("h_network", "h_way", "h_case"), np.stack([np.stack([r[w].numpy() for w in ways]) for r in rows.values()]),
            {"units": "response", "long_name": "change of the response over a way of equal length"},
        )},
    )  # fmt: skip
