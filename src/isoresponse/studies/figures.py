"""The essay's figures, computed: every line in them is a measurement of a response function.

`triptych` (1) original, perturbation, adversarial image; `neurons` (4) straight and outward-bent contours and the
paths across them; `region` (5) the part of the pixel box in which the response increases. The landscapes (2, 3) are
in `terrain`. Each function returns a figure and the numbers in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from isoresponse import plot
from isoresponse.classifier import Classifier
from isoresponse.models.basic import OutwardBent, Straight
from isoresponse.neuron import Box, Neuron
from isoresponse.paths import gradient_path
from isoresponse.planes import Plane, contours, response_surface
from isoresponse.studies.sizes import perturbation_sizes


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches, without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


# --- 1: the adversarial example ---------------------------------------------------------------------------


def triptych(
    classifier: Classifier,
    x: Tensor,
    labels: Tensor,
    adversarial: Tensor,
    rows: list[tuple[str, int]],
    *,
    index: Tensor | None = None,
) -> tuple[Figure, dict[str, Any]]:
    """Original, magnified perturbation and adversarial image of some cases, one row each.

    Parameters
    ----------
    rows
        Name and case of each row.
    index
        Positions (case,) of the cases in the data, for the numbers; the cases' own if left out.
    """
    sizes = perturbation_sizes(classifier, x, adversarial, labels)
    lower, upper = (float(b.min()) for b in classifier.box.bounds(x))
    with torch.no_grad():
        before, after = (torch.softmax(classifier.logits(t), 1) for t in (x, torch.nan_to_num(adversarial)))
    figure = new_figure(8.4, 2.7 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    numbers = {}
    for row, (name, i) in zip(axes, rows, strict=True):
        change = adversarial[i] - x[i]
        factor = _round_factor(0.5 * (upper - lower) / float(change.abs().max()))
        was, now = int(before[i].argmax()), int(after[i].argmax())
        plot.image(
            row[0], x[i], bounds=(lower, upper), title=f"{name}: original\n“{was}”, confidence {before[i, was]:.2f}"
        )
        half = 0.5 * (upper - lower)
        plot.image(row[1], change * factor, bounds=(-half, half), signed=True, title=(
            f"perturbation × {factor:g}\nL2 {change.norm():.3f}, r.m.s. {sizes.rms[i]:.4f} = "
                f"{sizes.grey_levels[i]:.1f} grey levels"
        ))  # fmt: skip
        rounded = "survives" if bool(sizes.survives_8bit[i]) else "does not survive"
        plot.image(row[2], adversarial[i], bounds=(lower, upper), title=(
            f"adversarial: “{now}”, confidence {after[i, now]:.2f}\n{rounded} rounding to 8 bits"
        ))  # fmt: skip
        numbers[name] = {
            "case": i if index is None else int(index[i]), "label": int(labels[i]), "answer": now,
            "confidence_before": float(before[i, was]),
            "confidence_after": float(after[i, now]), "l2": float(change.norm()), "rms": float(sizes.rms[i]),
            "grey_levels": float(sizes.grey_levels[i]), "survives_8bit": bool(sizes.survives_8bit[i]), "magnified": factor,
        }  # fmt: skip
    return figure, numbers


def smallest_median_largest(distance: Tensor) -> list[tuple[str, int]]:
    """Names and indices of the cases with the smallest, the median and the largest finite distance."""
    ascending = torch.nan_to_num(distance, nan=torch.inf).argsort()
    order = [int(i) for i in ascending[: int(torch.isfinite(distance).sum())]]
    if not order:
        return []
    picks = [("smallest", order[0]), ("median", order[(len(order) - 1) // 2]), ("largest", order[-1])]
    return picks if len(order) >= 3 else [picks[0], picks[2]][: len(order)]


# --- 4: two neurons ---------------------------------------------------------------------------------------


def neurons(*, bend: float = 0.8, width: float = 0.6, knots: int = 21) -> tuple[Figure, dict[str, Any]]:
    """A straight and an outward-bent neuron with one MEI: contours, gradients, the optimal path and its angle to the MEI."""
    phi = torch.tensor([1.0, 0.0], dtype=torch.float64)
    start = torch.tensor([[1.0, 2.2]], dtype=torch.float64)
    pair = {
        "straight": Straight(phi),
        f"outward bent ({bend / width:.2g} per unit at its tip)": OutwardBent(phi, bend=bend, width=width),
    }
    figure = new_figure(12.4, 3.8)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 0.75))
    numbers: dict[str, Any] = {}
    styles = {"straight": (plot.ORANGE, "--"), "bent": (plot.BLUE, "-")}
    for ax, (title, model) in zip(axes, pair.items(), strict=False):
        key = "straight" if title == "straight" else "bent"
        neuron = Neuron.of(model, shape=(2,), name=title)
        here = float(neuron.value(start)[0])
        goal = here + 7.0
        walk = gradient_path(neuron, start, goal, knots=knots)
        color, style = styles[key]
        plane = Plane.spanning(torch.zeros(2, dtype=torch.float64), phi, torch.tensor([0.0, 1.0], dtype=torch.float64))
        view = response_surface(neuron, plane, x=(-0.5, 9.0), y=(-2.9, 3.3), size=161)
        plot.surface(ax, view, levels=[here + k for k in range(-1, 9)], fmt="%.1f", fill=False)
        _gradient_arrows(ax, neuron)
        plot.path(ax, walk.points[0], color=color)
        ax.axhline(0, color=plot.INK, lw=0.8)
        ax.axvline(0, color=plot.INK, lw=0.8)
        ax.text(
            8.9,
            -0.12,
            r"$\Phi_k$ (MEI)",
            fontsize=9,
            ha="right",
            va="top",
            bbox={"fc": "white", "ec": "none", "pad": 1},
            zorder=7,
        )
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("along the MEI (input units)")
        ax.set_ylabel("orthogonal to it (input units)")
        angle = torch.rad2deg(torch.arccos(walk.alignment(phi)[0, 1:].clamp(-1, 1)))
        image_angle = torch.rad2deg(torch.atan2(walk.points[0, :, 1].abs(), walk.points[0, :, 0]))
        axes[2].plot(
            walk.responses[0, :].numpy() - here, image_angle.numpy(), style, color=color, lw=2, label=f"input, {key}"
        )
        axes[2].plot(
            walk.responses[0, 1:].numpy() - here,
            angle.numpy(),
            style,
            color=color,
            lw=1,
            marker=".",
            label=f"perturbation, {key}",
        )
        numbers[key] = {
            "response_start": here, "response_end": goal, "path_length": float(walk.arclength[0, -1]),
            "angle_input_to_mei_start_deg": float(image_angle[0]), "angle_input_to_mei_end_deg": float(image_angle[-1]),
            "angle_perturbation_to_mei_end_deg": float(angle[-1]), "largest_drift": float(walk.drift.abs().max()),
        }  # fmt: skip
    axes[2].set_xlabel("response gained")
    axes[2].set_ylabel("angle to the MEI (degrees)")
    axes[2].set_title("along the optimal path", fontsize=10)
    axes[2].legend(fontsize=7)
    return figure, numbers


def _gradient_arrows(ax: Any, neuron: Neuron) -> None:
    at = (
        torch.stack(torch.meshgrid(torch.linspace(0, 8.5, 10), torch.linspace(-2.4, 2.8, 8), indexing="ij"), -1)
        .reshape(-1, 2)
        .double()
    )
    _, gradient = neuron.value_and_grad(at)
    unit = gradient / gradient.norm(dim=1, keepdim=True)
    ax.quiver(*at.T.numpy(), *unit.T.numpy(), color=plot.FAINT, width=0.004, scale=24, headwidth=4)


# --- 5: the region of more excitement ---------------------------------------------------------------------


def region(*, bend: float = 1.0, width: float = 0.35, size: int = 800) -> tuple[Figure, dict[str, Any]]:
    """The part of the pixel box in which the response increases, for a straight and a bent contour through one input."""
    phi = torch.tensor([1.0, 0.0], dtype=torch.float64)
    box = Box(-1.0, 1.0)
    models = {"straight": Straight(phi), "bent": OutwardBent(phi, bend=bend, width=width)}
    origin = torch.zeros(2, dtype=torch.float64)
    plane = Plane.spanning(origin, phi, torch.tensor([0.0, 1.0], dtype=torch.float64))
    figure = new_figure(10.0, 3.9)
    axes = figure.subplots(1, 3, sharey=True)
    looks = {"straight": (plot.YELLOW, "//"), "bent": (plot.GREEN, "..")}
    numbers: dict[str, Any] = {}
    views = {}
    for key, model in models.items():
        neuron = Neuron.of(model, shape=(2,), box=box, name=key)
        half_cell = 1.0 / size
        view = response_surface(
            neuron, plane, x=(half_cell - 1, 1 - half_cell), y=(half_cell - 1, 1 - half_cell), size=size
        )
        views[key] = view
        above = view.response > float(neuron.value(origin[None])[0])
        cut = (above[1:, 1:] != above[:-1, :-1]) | (above[1:, :-1] != above[:-1, 1:])  # cells that the contour crosses
        numbers[key] = {"share_of_box": float(above.double().mean()), "error": 0.5 * float(cut.double().mean())}
    numbers["bent_over_straight"] = numbers["bent"]["share_of_box"] / numbers["straight"]["share_of_box"]
    for ax, keys in zip(axes, (["straight"], ["bent"], ["straight", "bent"]), strict=True):
        for key in keys:
            color, hatch = looks[key]
            view = views[key]
            ax.contourf(
                view.x.numpy(),
                view.y.numpy(),
                view.response.numpy(),
                levels=[0.0, 1e9],
                colors=[color],
                alpha=0.75,
                hatches=[hatch],
            )
            for line in contours(view, 0.0):
                ax.plot(*line.T.numpy(), color=plot.INK, lw=1.5)
        ax.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], ":", color=plot.INK, lw=1.5)
        ax.annotate("", (1.35, 0), (-1.3, 0), arrowprops={"arrowstyle": "->", "lw": 0.8})
        ax.annotate("", (0, 1.3), (0, -1.3), arrowprops={"arrowstyle": "->", "lw": 0.8})
        ax.text(1.32, -0.14, r"$\Phi_k$", ha="center")
        ax.text(0.1, 1.24, "v")
        ax.plot(0, 0, "o", color=plot.INK, ms=5)
        ax.set_aspect("equal")
        ax.set_xlim(-1.4, 1.5)
        ax.set_ylim(-1.4, 1.4)
        ax.set_xlabel("input units")
        share = [f"{numbers[k]['share_of_box']:.1%}" for k in keys]
        title = (
            f"{keys[0]}: {share[0]} of the box" if len(keys) == 1 else f"overlaid: {share[1]} is a part of {share[0]}"
        )
        ax.set_title(title, fontsize=10)
    axes[0].set_ylabel("input units")
    return figure, numbers


def save(figure: Figure, stem: Path) -> None:
    """`figure` as ``stem.png`` and ``stem.svg``; the same figure gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "isoresponse"}):
        figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def nice_step(step: float) -> float:
    """The nearest of 1, 2, 2.5, 5 and 10 times a power of ten."""
    base = 10.0 ** np.floor(np.log10(step))
    return float(min((m * base for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - step)))


def _round_factor(factor: float) -> float:
    if not np.isfinite(factor) or factor <= 1:
        return 1.0
    return float(nice_step(factor))
