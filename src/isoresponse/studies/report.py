"""The report: a study drawn, written and explained in one folder that opens offline.

`index.html` holds everything a reader needs and loads nothing; `summary.json` the numbers, `results.zarr` every
case, `figures/` the pictures. Where it is written to is `folder`'s business.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import torch
from matplotlib.figure import Figure
from torch import Tensor

from isoresponse import plot
from isoresponse.classifier import OnCases
from isoresponse.exciting import most_exciting_input
from isoresponse.neuron import Neuron
from isoresponse.paths import gradient_path
from isoresponse.planes import Plane, response_surface
from isoresponse.records import provenance, to_plain, write_store
from isoresponse.studies.figures import new_figure, save, smallest_median_largest, triptych
from isoresponse.studies.measure import OURS, THEIRS, Stage, Study, comparisons, dataset, failures, silent, summary
from isoresponse.studies.proof import PROOF_CAPTION, proof, proof_figure

TIER_NAMES = {
    0: "tier 0: margin (response gap)", 1: "tier 1: spacing", 3: "tier 3: spacing and curvature",
    4: "tier 4: foot points",
}  # fmt: skip
ATTACK_NAMES = {OURS: "isoresponse", THEIRS: "foolbox DDN"}


def write_report(study: Study, folder: Path, *, stage: Stage = silent) -> dict[str, Any]:
    """Write the whole report on `study` into the empty `folder`; returns what `summary.json` holds."""
    with stage("draw and write", 5, "part") as on_part:
        return _write(study, folder, on_part)


def _write(study: Study, folder: Path, on_part: OnCases) -> dict[str, Any]:
    numbers = summary(study)
    on_part(1)
    figures = folder / "figures"
    figures.mkdir()
    drawn: dict[str, tuple[Figure, str]] = {}
    rows = smallest_median_largest(study.smallest)
    if rows:  # with nothing measured there is nothing to draw
        drawn["prediction"] = (prediction_figure(study), _prediction_caption(study))
        if (certificate := proof(study)) is not None:
            bounds, proved = proof_figure(study, certificate)
            numbers["certificate"] = proved
            drawn["certificate"] = (bounds, PROOF_CAPTION)
        picture, sizes = triptych(
            study.subject.classifier, study.x, study.labels, study.adversarial, rows, index=study.index
        )
        numbers["triptych"] = sizes
        drawn["triptych"] = (picture, _TRIPTYCH_CAPTION)
        case = dict(rows).get("median", rows[0][1])
        view, seen = plane_figure(study, case)
        numbers["plane"] = seen
        drawn["plane"] = (view, _plane_caption(seen))
    on_part(1)
    for name, (figure, _) in drawn.items():
        save(figure, figures / name)
    on_part(1)
    settings = asdict(study.settings) | {"model": study.subject.model_name, "data": study.subject.data_name}
    numbers["provenance"] = provenance(settings)
    plain = to_plain(numbers)
    (folder / "summary.json").write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_store(dataset(study), folder / "results.zarr", settings=settings)
    on_part(1)
    pictures = {n: (_embedded(figures / f"{n}.png"), caption) for n, (_, caption) in drawn.items()}
    (folder / "index.html").write_text(_html(study, numbers, pictures), encoding="utf-8")
    on_part(1)
    return plain


def prediction_figure(study: Study) -> Figure:
    """Predicted against measured distance, one panel per tier."""
    figure = new_figure(14.4, 3.9)
    agreement = comparisons(study)
    for ax, (tier, told) in zip(figure.subplots(1, len(study.predicted)), study.predicted.items(), strict=True):
        plot.prediction(ax, study.smallest, told.distance, agreement[tier], name=TIER_NAMES[tier], same_units=tier > 0)
    return figure


def plane_figure(study: Study, case: int, *, size: int = 121) -> tuple[Figure, dict[str, Any]]:
    """Contours of the decision in a plane through one case, with the steepest path and what was predicted.

    The x-axis runs to the smallest adversary measured, the y-axis towards the input that excites the winning
    rival most against the label. A path that leaves the plane is drawn by its projection.
    """
    classifier = study.subject.classifier
    x, label = study.x[case], study.labels[case : case + 1]
    adversary = study.adversarial[case]
    rival = classifier.predict(adversary[None])
    margin = classifier.margin(label, rival)
    rise = Neuron(lambda z: -margin.response(z, *(g.expand(len(z)) for g in margin.given)), margin.shape, margin.box)
    generator = torch.Generator().manual_seed(study.settings.seed)
    mei = most_exciting_input(rise, generator=generator, starts=4, center=x)
    distance = float((adversary - x).norm())
    toward = (adversary - x) / distance
    plane = _spanning(x, toward, mei.point - x, generator)
    walk = gradient_path(margin, x[None], 0.0, knots=17)
    decision = classifier.decision(label)
    one = Neuron(lambda z: decision.response(z, label.expand(len(z))), decision.shape, decision.box, "margin")
    view = response_surface(
        one, plane, x=(-0.6 * distance, 1.8 * distance), y=(-1.2 * distance, 1.2 * distance), size=size
    )
    figure = new_figure(10.2, 5.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    here = float(one.value(x[None])[0])
    plot.surface(left, view, levels=sorted({here * k / 4 for k in range(-3, 7)} - {0.0}), fmt="%.2g")
    left.contour(
        view.x.cpu().numpy(),
        view.y.cpu().numpy(),
        view.response.cpu().numpy(),
        levels=[0.0],
        colors=plot.INK,
        linewidths=2.5,
    )
    plot.path(left, plane.project(walk.points[0]), label="steepest path (projected)")
    left.plot(
        distance, 0, "X", color=plot.BLUE, ms=9, mec="white", zorder=7, label=f"smallest measured, {distance:.3f}"
    )
    told = {k: float(study.predicted[k].distance[case]) for k in (1, 4)}
    for (k, d), marker in zip(told.items(), ("|", "d"), strict=True):
        if d == d:
            left.plot(d, 0, marker, color=plot.PURPLE, ms=9, mew=2, zorder=6, label=f"predicted, tier {k}: {d:.3f}")
    left.plot([], [], color=plot.INK, lw=2.5, label="decision boundary")
    left.plot([], [], ":", color=plot.INK, lw=1.2, label="edge of the box; faded: outside")
    left.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    left.set_xlabel("towards the smallest adversary (input units)")
    left.set_ylabel(f"orthogonal, towards what excites “{int(rival)}” (input units)")
    left.set_title(f"margin of “{int(label)}” round one input (case {int(study.index[case])})", fontsize=10)
    alignment = walk.alignment(mei.point - x)[0, 1:]
    response = walk.responses[0, 1:].cpu()
    right.plot(
        response, alignment.cpu(), "-", color=plot.BLUE, marker=".", label="perturbation and direction to the MEI"
    )
    right.plot(
        response,
        torch.cos(walk.orthogonality[0, 1:]).cpu(),
        "--",
        color=plot.VERMILION,
        marker="x",
        ms=4,
        label="path and normal of the contour",
    )
    right.invert_xaxis()
    right.set_xlabel("margin along the steepest path (response units)")
    right.set_ylabel("cosine of the angle")
    right.set_ylim(min(0.0, float(alignment.nan_to_num(0).min()) - 0.05), 1.05)
    right.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    right.set_title("angles along the steepest path", fontsize=10)
    length = float(walk.arclength[0].nan_to_num(0).max())
    return figure, {
        "case": int(study.index[case]), "label": int(label), "rival": int(rival), "distance": distance,
        "path_length": length, "path_status": int(walk.status[0]), "mei_alignment_end": float(alignment[-1]),
        "tilt_degrees": float(torch.rad2deg(view.tilt)),
    }  # fmt: skip


def _spanning(origin: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> Plane:
    try:
        return Plane.spanning(origin, first, second)
    except ValueError:  # the two directions coincide, or there is no MEI: any other direction shows the bending
        draw = torch.randn(origin.shape, generator=generator, dtype=origin.dtype).to(origin.device)
        return Plane.spanning(origin, first, draw)


def _prediction_caption(study: Study) -> str:
    return (
        f"Each circle is one of {len(study.x)} correctly classified inputs: across, the smallest perturbation that any "
        "attack here found; upwards, what the geometry of the contours at the input predicts without attacking it. Tier 0 "
        "is the bare margin, in response units; tier 1 divides it by the slope (contour spacing) inside the box; tier 3 "
        "adds how the contours bend and crowd along the way, measured at the scale of the tier-1 distance; tier 4 looks three "
        "times where the last look said the contour is."
    )


_TRIPTYCH_CAPTION = (
    "Smallest, median and largest of the measured perturbations. Grey in the middle column is no change. The adversarial "
    "input lies on the decision boundary, so its confidence is near the rival's; “survives 8 bits” says whether the answer "
    "stays changed when the image is stored with 256 levels."
)


def _plane_caption(seen: dict[str, Any]) -> str:
    return (
        "Contours of equal margin in one plane; the thick line is the decision boundary, dots mark the edge of the box. "
        "The steepest path crosses the contours at right angles in full space (cosine 1 on the right; less where it slides "
        "along a kink of a "
        f"piecewise linear network) and has length {seen['path_length']:.3f}; the straight line to the "
        f"closest adversary, {seen['distance']:.3f}, is never longer. The gradient at the input leaves the plane by "
        f"{seen['tilt_degrees']:.0f} degrees, so curvature seen here overstates that of the hypersurface accordingly."
    )


def _embedded(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode("ascii")


def _html(study: Study, numbers: dict[str, Any], pictures: dict[str, tuple[str, str]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isoresponse.studies", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html").render(
        numbers=numbers, pictures=pictures, failures=failures(study), attack_names=ATTACK_NAMES, tier_names=TIER_NAMES,
        check=study.check, settings=study.settings,
    )  # fmt: skip


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table, "–" where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.3g}"
