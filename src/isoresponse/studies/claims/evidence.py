"""All findings, from the machine's data to the verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from isoresponse.crossing import Solution
from isoresponse.masking import masking_alarms
from isoresponse.studies.claims import causes, coding, detours, ensembles, focusing, pairs, regions, steps, turning
from isoresponse.studies.claims.findings import Finding
from isoresponse.studies.claims.subjects import (
    CNN,
    FULL,
    Networks,
    Settings,
    SparseUnits,
    networks,
    pictures,
    sparse_units,
)
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.network_results import LCA_NET, MLP
from isoresponse.studies.terrain import load_elevation

WATCHED = 0.4  # share of the images on which attacks are watched and directions tried: they cost the most
FEWEST_ASKED = 16  # images that alarms are asked about
DIMENSIONS = 16  # of the toys
CLASSIFIERS = 12  # toy networks, each with some inputs


def findings(
    data: Path | None, *, full: bool = False, seed: int = 0, device: str = "cpu", stage: Stage = silent
) -> list[Finding]:
    """Every claim of the essay, tested; `data` as for `subjects`. Networks and sparse codes are on `device`, toys on the CPU."""
    settings = FULL if full else Settings()
    nets = networks(data, settings, seed=seed, device=device, stage=stage)
    seen = pictures(data, settings, seed=seed, device=device, stage=stage)
    units = sparse_units(data, settings, seed=seed, device=device, stage=stage)
    found = coding.closest(nets, budget=settings.budget, stage=stage)
    distance = {name: s.distance for name, s in found.items()}
    some = nets.some(max(5, round(WATCHED * len(nets.x))))
    made = [
        steps.steps_across(some, attacks=steps.attacks(), seed=seed, stage=stage),
        *turning.turning(_pairs(units, settings, seed), seed=seed, stage=stage),
        regions.fewer_inputs(_shares(some, distance, units, settings, seed, stage), seed=seed),
        _ensembles(units, settings, seed, stage),
        focusing.focusing(
            {"toys": focusing.toys(settings.toys, DIMENSIONS, generator=_draws(seed, 5)), **focusing.of_networks(
                some.only(MLP, CNN)
            )}, samples=settings.samples // 2, seed=seed, stage=stage,
        ),
        causes.causes(causes.factors(nets, distance, stage=stage), seed=seed),
        _grey(nets, found, seen, settings, seed, stage),
        steps.least_along(nets, distance, seed=seed, stage=stage),
        _detours(some, distance, settings, seed, stage),
        coding.coded(nets, found, doubt=_doubts(some, settings, seed, stage), seed=seed),
    ]  # fmt: skip
    return sorted(made, key=lambda f: f.letter)


def _draws(seed: int, which: int) -> Generator:
    return Generator().manual_seed(1000 * seed + which)


def _pairs(units: SparseUnits, settings: Settings, seed: int) -> dict[str, pairs.Pair]:
    return {
        "toys in the plane": pairs.toys(settings.toys, 2, generator=_draws(seed, 1)),
        f"toys in {DIMENSIONS} dimensions": pairs.toys(settings.toys, DIMENSIONS, generator=_draws(seed, 2)),
        "LCA against pointwise": pairs.against_pointwise(units),
        "LCA against straight twin": pairs.against_twins(units),
    }


def _shares(
    some: Networks, distance: dict[str, Tensor], units: SparseUnits, settings: Settings, seed: int, stage: Stage
) -> dict[str, regions.Shares]:
    near = {name: d[: len(some.x)] for name, d in distance.items()}
    with stage("c: shares of the box", 3, "subject") as on_done:
        made = {}
        for name, n in (("toys in the plane", 2), (f"toys in {DIMENSIONS} dimensions", DIMENSIONS)):
            made[name] = regions.of_toys(settings.toys, n, settings.samples, generator=_draws(seed, 10 + n))
            on_done(1)
        made["LCA units"] = regions.of_units(units, settings.samples // 5, generator=_draws(seed, 3))
        on_done(1)
    return made | regions.of_networks(some, near, settings.samples // 10, generator=_draws(seed, 4), stage=stage)


def _ensembles(units: SparseUnits, settings: Settings, seed: int, stage: Stage) -> Finding:
    few = max(5, settings.units // 3)
    kept = torch.isin(units.unit, units.unit.unique_consecutive()[:few])
    part = replace(units, x=units.x[kept], unit=units.unit[kept])
    with stage("d: ensembles", len(ensembles.SIZES) + 2, "ensemble") as on_done:
        toys = {}
        for size in ensembles.SIZES:
            toys[size] = ensembles.of_toys(settings.toys, size, n=DIMENSIONS, generator=_draws(seed, 20 + size))
            on_done(1)
        decided, excited = ensembles.of_classes(CLASSIFIERS, settings.toys // 2, generator=_draws(seed, 6))
        on_done(1)
        raised = ensembles.of_units(part, budget=settings.budget // 4)
        on_done(1)
    others = {"decision of bent neurons": decided, "excitement of bent neurons": excited, "pairs of LCA units": raised}
    return ensembles.larger(toys, others, seed=seed)


def _grey(
    nets: Networks, found: dict[str, Solution], seen: dict[str, Networks], settings: Settings, seed: int, stage: Stage
) -> Finding:
    natural: dict[str, Tensor] = {}
    survives: dict[str, Tensor] = {}
    for pictured in seen.values():
        grey, left = coding.sizes(pictured, coding.closest(pictured, budget=settings.budget, stage=stage))
        natural |= grey
        survives |= left
    return coding.below_a_level(natural, survives, coding.sizes(nets, found)[0], seed=seed)


def _detours(some: Networks, distance: dict[str, Tensor], settings: Settings, seed: int, stage: Stage) -> Finding:
    terrain, name = load_elevation(None)
    with stage("i: ways on a landscape", 1, "landscape") as on_done:
        land, example = detours.on_landscape(terrain, settings.landscape, generator=_draws(seed, 7))
        on_done(1)
    near = {n: d[: len(some.x)] for n, d in distance.items()}
    return detours.detours(
        {name: land},
        detours.on_networks(some.only(MLP, CNN), near, stage=stage),
        terrain=terrain,
        example=example,
        seed=seed,
    )


def _doubts(some: Networks, settings: Settings, seed: int, stage: Stage) -> dict[str, str]:
    """What alarms for hidden gradients say of the network whose advantage may be due to them; with `alarms`, of every one."""
    asked = some if settings.alarms else some.only(LCA_NET).some(FEWEST_ASKED)
    raised = {}
    with stage("j: alarms for hidden gradients", len(asked.of), "network") as on_done:
        for name, classifier in asked.of.items():
            report = masking_alarms(classifier, asked.x, asked.labels, generator=_draws(seed, 8))
            if report.raised:
                raised[name] = f"Alarms for hidden gradients of the {name} network: {', '.join(report.raised)}."
            on_done(1)
    return raised
