"""Curvature against the scale at which it is measured: what "the" curvature of a contour is, for three kinds of response.

A network of ReLUs and a unit of a sparse code are piecewise affine: their exact curvature is zero wherever it exists, and
all bending sits in kinks that only a finite scale sees. A network of GELUs has a curvature of its own, which every small
scale returns. In all three the curvature falls once the scale exceeds the distance over which contours bend.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.classifier import Classifier
from isoresponse.directions import random_directions
from isoresponse.geometry import Curvatures, FlatHessianWarning, subspace_curvatures
from isoresponse.jets import exact_jet, secant_jet, smoothed_jet
from isoresponse.models import digits as zoo
from isoresponse.models.lca import LCA
from isoresponse.neuron import Box, Neuron
from isoresponse.studies.figures import new_figure
from isoresponse.studies.subject import load_subject
from isoresponse.susceptibility import predict_distance

SCALES = tuple(10 ** (k / 3) for k in range(-9, 2))  # three a decade, 0.001 to 2.15 input units
DIRECTIONS, SAMPLES = 8, 32  # tangent directions per case; pairs of draws (at least 2 * (DIRECTIONS + 5) are needed)
LOOKS = {"secant": (plot.BLUE, "-", "o"), "smoothed": (plot.VERMILION, "--", "s")}
WHAT = {"secant": "scale: half-width", "smoothed": "scale: standard deviation per direction"}
CLASSES = 10


@dataclass(frozen=True, eq=False)
class Question:
    """One response at some inputs, and how far each of them is from the level that is asked about."""

    title: str
    asked: str
    neuron: Neuron
    x: Tensor
    proposed: Tensor  # (case,), input units: the first-order predicted perturbation


@dataclass(frozen=True, eq=False)
class Sweep:
    """The curvature largest in size, (case,) or (scale, case), within one tangent subspace per case, in 1/input unit.

    `proposed` and `proposed_error` (case,) are secants at each case's own proposed scale. NaN: not measured.
    """

    exact: Tensor
    value: dict[str, Tensor]
    error: dict[str, Tensor]
    proposed: Tensor
    proposed_error: Tensor


def scale(*, cases: int = 12, seed: int = 0) -> tuple[Figure, dict[str, Any]]:
    """Curvature against scale for a network of ReLUs, one of GELUs and a unit of a sparse code, at `cases` digits each.

    Per case the principal curvature that is largest in size within a fixed, random tangent subspace of eight dimensions,
    exactly, by secants and by smoothing. Lines are medians over cases, bands their quartiles, thin lines the median of the
    stated error. The proposed scale is the first-order predicted perturbation.
    """
    figure = new_figure(12.6, 4.6)
    axes = figure.subplots(1, 3)
    numbers: dict[str, Any] = {}
    questions = {"relu": network("digits-mlp", cases, seed), "gelu": network("digits-cnn", cases, seed)}
    questions["lca"] = sparse_unit(cases)
    for ax, (name, question) in zip(axes, questions.items(), strict=True):
        sweep = measure(question, seed=seed)
        numbers[name] = _numbers(question, sweep)
        _panel(ax, question, sweep, numbers[name])
    axes[0].set_ylabel("largest curvature in size (1/input unit)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure, numbers


def network(name: str, cases: int, seed: int = 0) -> Question:
    """The built-in digits network `name`: margins to the nearest rival, by first order, of its first correct test digits."""
    subject = load_subject(name, seed=seed)
    classifier = Classifier.of(
        copy.deepcopy(subject.module).double(), shape=subject.classifier.shape, box=subject.classifier.box, name=name
    )
    images = subject.images.double()
    right = torch.nonzero(classifier.predict(images) == subject.labels).flatten()[:cases]
    x, labels = images[right], subject.labels[right]
    distances = torch.stack(
        [
            predict_distance(classifier.margin(labels, torch.full_like(labels, k)), x, 0.0, predictor=1).distance
            for k in range(CLASSES)
        ],
        dim=1,
    )
    rivals = torch.nan_to_num(distances, nan=torch.inf).scatter(1, labels[:, None], torch.inf).argmin(1)
    told = classifier.predict_distance(x, labels, predictor=1).distance
    kind = {"digits-mlp": "ReLU network", "digits-cnn": "GELU network"}[name]
    return Question(f"{kind} ({name})", "margin to the nearest rival", classifier.margin(labels, rivals), x, told)


def sparse_unit(cases: int, *, units: int = 128, sparsity: float = 0.1) -> Question:
    """A unit of an LCA whose dictionary are training digits: the unit that is active most often, where it is most active."""
    data = zoo.digits()
    model = LCA(data.train[0][:units].flatten(1).double().T, sparsity=sparsity)
    images = data.test[0].double()
    with torch.no_grad():
        activity = model(images)
    unit = int((activity > 0).sum(0).argmax())
    x = images[activity[:, unit].argsort(descending=True, stable=True)[:cases]]
    neuron = Neuron.of(model, unit, shape=tuple(x.shape[1:]), box=Box(0.0, 1.0), name=f"LCA unit {unit}")
    told = predict_distance(neuron, x, 0.5 * neuron.value(x), predictor=1).distance
    return Question(f"LCA unit (1 of {units}, sparsity {sparsity:g})", "half of its activity", neuron, x, told)


def measure(question: Question, *, scales: tuple[float, ...] = SCALES, samples: int = SAMPLES, seed: int = 0) -> Sweep:
    """Curvatures at every scale, in eight random tangent directions per case that are the same at all scales.

    A case whose probes would be wider than the box is NaN; so is all smoothing at a scale wider than the box.
    """
    neuron, x = question.neuron, question.x
    generator = Generator().manual_seed(seed)
    gradients = neuron.value_and_grad(x)[1].flatten(1)
    basis = torch.stack(
        [random_directions(DIRECTIONS, orthogonal_to=g, generator=generator, mutually=True) for g in gradients]
    )
    lower, upper = neuron.box.bounds(x)
    room = float((upper - lower).min()) * (1 + 1e-9)
    nothing = torch.full_like(question.proposed, torch.nan)
    value: dict[str, list[Tensor]] = {name: [] for name in LOOKS}
    error: dict[str, list[Tensor]] = {name: [] for name in LOOKS}
    for h in scales:
        jets = {"secant": secant_jet(neuron, x, scale=h, basis=basis)}
        if h <= room:
            draws = Generator().manual_seed(seed)
            jets["smoothed"] = smoothed_jet(neuron, x, scale=h, samples=samples, generator=draws, basis=basis)
        for name in LOOKS:
            found = _largest(subspace_curvatures(jets[name], basis)) if name in jets else (nothing, nothing)
            value[name].append(found[0])
            error[name].append(found[1])
    with warnings.catch_warnings():  # that the exact Hessian vanishes is what the figure shows
        warnings.simplefilter("ignore", FlatHessianWarning)
        exact, _ = _largest(subspace_curvatures(exact_jet(neuron, x), basis))
    proposed = secant_jet(neuron, x, scale=question.proposed, basis=basis)
    return Sweep(
        exact,
        {name: torch.stack(rows) for name, rows in value.items()},
        {name: torch.stack(rows) for name, rows in error.items()},
        *_largest(subspace_curvatures(proposed, basis)),
    )


def _largest(found: Curvatures) -> tuple[Tensor, Tensor]:
    """Size (case,) of the curvature that is largest in size, and its error."""
    which = torch.nan_to_num(found.values).abs().argmax(1, keepdim=True)
    return found.values.gather(1, which)[:, 0].abs(), found.error.gather(1, which)[:, 0]


def _numbers(question: Question, sweep: Sweep) -> dict[str, Any]:
    """What the panel shows, for `figures.json`: medians over the cases, None where nothing was measured."""
    medians: dict[str, Any] = {}
    for name in LOOKS:
        medians[name] = _plain(_median(sweep.value[name]))
        medians[f"{name}_quartiles"] = [_plain(q) for q in _quartiles(sweep.value[name])]
        medians[f"{name}_cases"] = sweep.value[name].isfinite().sum(1).tolist()
        medians[f"{name}_error"] = _plain(_median(sweep.error[name]))
    return {
        "question": question.asked, "cases": len(question.x), "directions": DIRECTIONS, "samples": SAMPLES,
        "scale": list(SCALES), **medians,
        "exact": float(_median(sweep.exact)), "proposed_scale": float(_median(question.proposed)),
        "at_proposed_scale": {
            "secant": float(_median(sweep.proposed)), "error": float(_median(sweep.proposed_error)),
            "cases_above_error": int((sweep.proposed > sweep.proposed_error).sum()),
        },
    }  # fmt: skip


def _panel(ax: Axes, question: Question, sweep: Sweep, numbers: dict[str, Any]) -> None:
    """Both estimators with their errors against scale, the exact value and the proposed scale."""
    for name, (color, dash, marker) in LOOKS.items():
        low, high = (q.numpy() for q in _quartiles(sweep.value[name]))
        middle, error = (_median(t[name]).numpy() for t in (sweep.value, sweep.error))
        ax.fill_between(SCALES, low, high, color=color, alpha=0.18, lw=0)
        ax.plot(
            SCALES,
            middle,
            dash,
            marker=marker,
            ms=4,
            lw=1.8,
            color=color,
            label=f"{name} ({WHAT[name]}): median, quartiles",
        )
        ax.plot(
            SCALES,
            error,
            ":",
            marker=marker,
            ms=3,
            mfc="none",
            mew=0.7,
            lw=1,
            color=color,
            label=f"{name}: median of its error",
        )
    exact, at = numbers["exact"], numbers["at_proposed_scale"]
    ax.axhline(exact, color=plot.INK, ls="-.", lw=1.2, label="exact (scale 0): median", zorder=1)
    ax.axvline(numbers["proposed_scale"], color=plot.INK, ls=(0, (1, 1)), lw=1.5, label="proposed scale: median")
    ax.set_xscale("log")
    ax.set_xlabel("scale (input units)")
    ax.set_title(f"{question.title}, {len(question.x)} inputs\n{question.asked}", fontsize=10)
    top = 1.22 * ax.get_ylim()[1]  # room for what is written at the proposed scale
    ax.set_ylim(-0.06 * top, top)
    ax.annotate(
        f"secants at the proposed\nscale ({numbers['proposed_scale']:.2f}): {at['secant']:.2f} ± {at['error']:.2f}",
        (numbers["proposed_scale"], top), xytext=(-4, -4), textcoords="offset points", ha="right", va="top", fontsize=8,
    )  # fmt: skip
    said = "exact: 0 (affine here)" if exact == 0 else f"exact: {exact:.3f}"
    side, va = (-3, "top") if exact == 0 else (3, "bottom")
    ax.annotate(said, (SCALES[0], exact), xytext=(0, side), textcoords="offset points", va=va, fontsize=8)


def _quartiles(values: Tensor) -> tuple[Tensor, Tensor]:
    """First and third quartile (scale,) of values (scale, case)."""
    return values.nanquantile(0.25, dim=1), values.nanquantile(0.75, dim=1)


def _median(values: Tensor) -> Tensor:
    """Median over the last axis, the cases, of those that were measured."""
    return values.nanquantile(0.5, dim=-1)


def _plain(values: Tensor) -> list[float | None]:
    return [None if v != v else float(v) for v in values.tolist()]
