"""Figures of results: axes in, axes out; nothing is computed here and no global state is touched.

Lines differ in colour *and* in dash or marker, colours are those of Okabe and Ito (2008) and the map
"cividis", so that figures survive grey print and colour-blind eyes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from torch import Tensor

from isoresponse.certificates import Certificate
from isoresponse.distribution import CurvatureSpectrum
from isoresponse.explanation import Explanation
from isoresponse.planes import ResponseSurface
from isoresponse.quality import Quality
from isoresponse.susceptibility import Comparison
from isoresponse.trace import AttackTrace

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip
INK, FAINT = "#222222", "#9a9a9a"


def surface(
    ax: Axes, result: ResponseSurface, *, levels: Sequence[float] | int = 9, fmt: str = "%.3g", fill: bool = True
) -> Axes:
    """Contours of a response surface with their levels written on them; outside the box they are faded."""
    x, y, z = (_numpy(t) for t in (result.x, result.y, result.response))
    if isinstance(levels, int):
        low, high = np.nanpercentile(z, [2, 98])
        levels = [float(v) for v in np.linspace(low, high, levels)]
    if fill:
        ax.contourf(x, y, z, levels=_widened(levels, z), cmap="cividis", alpha=0.55)
    lines = ax.contour(x, y, z, levels=list(levels), colors=INK, linewidths=0.8, linestyles="-")
    ax.clabel(lines, fmt=fmt, fontsize=7)
    inside = _numpy(result.inside)
    if not inside.all():
        ax.contourf(x, y, inside.astype(float), levels=[-0.5, 0.5], colors=["white"], alpha=0.65)
        ax.contour(x, y, inside.astype(float), levels=[0.5], colors=INK, linewidths=1.2, linestyles=":")
    ax.set_aspect("equal")
    return ax


def path(ax: Axes, points: Tensor, *, color: str = VERMILION, label: str | None = None, arrow: bool = True) -> Axes:
    """A walk (knot, 2) with its knots, a dot at its start and an arrow at its end."""
    p = _numpy(points)
    p = p[np.isfinite(p).all(1)]
    outline = [withStroke(linewidth=4.5, foreground="white")]  # a mid-grey line must stand out on mid-grey in print
    ax.plot(p[:, 0], p[:, 1], "-", color=color, lw=2, label=label, zorder=4, path_effects=outline)
    ax.plot(p[:, 0], p[:, 1], ".", color=color, ms=4, zorder=5)
    ax.plot(*p[0], "o", color=INK, ms=6, zorder=6)
    if arrow and len(p) > 1:
        ax.annotate("", p[-1], p[-2], arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2}, zorder=6)
    return ax


def prediction(
    ax: Axes, measured: Tensor, predicted: Tensor, comparison: Comparison, *, name: str, same_units: bool = True
) -> Axes:
    """Predicted against measured distance, one point per case, with the identity line and the agreement.

    `same_units` False: the prediction is a margin, and only ranks can be compared.
    """
    found, told = _numpy(measured), _numpy(predicted)
    both = np.isfinite(found) & np.isfinite(told) & (found > 0) & (told > 0)
    ax.plot(found[both], told[both], "o", ms=3.5, mfc="none", mec=BLUE, mew=0.8, alpha=0.8)
    if both.any():
        low, high = found[both].min() * 0.8, found[both].max() * 1.25
        if same_units:
            ax.plot([low, high], [low, high], "--", color=INK, lw=1, label="identity")
        ax.set_xlim(low, high)
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.set_xlabel("measured distance (input units)")
    ax.set_ylabel("predicted (input units)" if same_units else "margin (response units)")
    ax.set_title(name, fontsize=10)
    if not both.any():
        ax.set_xticks([])
        ax.set_yticks([])
    lines = [f"Spearman {comparison.spearman:.4f}", f"Kendall {comparison.kendall:.3f}", f"cases {comparison.cases}"]
    if same_units:
        lines[2:2] = [f"R² {_short(comparison.r2)}", f"|log error| {comparison.median_abs_log_error:.4f}"]
    text = "\n".join(lines) if both.any() else "no case has both a prediction\nand a measurement"
    ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize=8)
    return ax


def image(
    ax: Axes, picture: Tensor, *, title: str = "", bounds: tuple[float, float] = (0.0, 1.0), signed: bool = False
) -> Axes:
    """An input as a picture; one- and three-channel images as such, any other shape as a curve over its elements.

    `signed` centres grey at zero, for perturbations; `bounds` are the values shown black and white.
    """
    p = _numpy(picture)
    if p.ndim == 3 and p.shape[0] in (1, 3):
        p = p[0] if p.shape[0] == 1 else np.moveaxis(p, 0, -1)
    low, high = (-max(map(abs, bounds)), max(map(abs, bounds))) if signed else bounds
    if p.ndim == 2:
        ax.imshow(p, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    elif p.ndim == 3 and p.shape[-1] == 3:
        ax.imshow(np.clip((p - low) / (high - low), 0, 1), interpolation="nearest")
    else:
        ax.plot(p.ravel(), color=INK, lw=0.8)
        ax.set_xlabel("element", fontsize=7)
        ax.set_ylabel("input units", fontsize=7)
        ax.tick_params(labelsize=7)
    ax.set_title(title, fontsize=8)
    if p.ndim >= 2:
        ax.set_xticks([])
        ax.set_yticks([])
    return ax


def curvature_histograms(
    ax: Axes, values: Mapping[str, Tensor], *, bins: int = 50, xlabel: str = "curvature (1/input unit)"
) -> Axes:
    """Curvatures by name as overlaid histograms: shares of each name's own values, on a logarithmic axis.

    All share one range and its bins, of which one is centred on zero, so that the flat count as flat and not as either
    sign (as in Paiton et al. 2020). Values that are not finite are left out, and counted in the legend.

    Parameters
    ----------
    values
        Curvatures of any shape for each name (a family of directions, a model).

    Raises
    ------
    ValueError
        No names, fewer than two bins.
    """
    if not values:
        raise ValueError("curvature_histograms needs at least one name with its curvatures, got none.")
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}.")
    everything = {name: _numpy(v).ravel() for name, v in values.items()}
    finite = {name: v[np.isfinite(v)] for name, v in everything.items()}
    edges = _edges_around_zero(np.concatenate(list(finite.values())), bins)
    smallest = 1.0
    for i, (name, v) in enumerate(finite.items()):
        shares = np.histogram(v, edges)[0] / max(1, len(v))
        smallest = min([smallest, *shares[shares > 0]])
        lost = len(everything[name]) - len(v)
        label = f"{name} ({len(v)}" + (f", {lost} not finite)" if lost else ")")
        color, dash = HUES[i % len(HUES)], _DASHES[(i + i // len(HUES)) % len(_DASHES)]
        ax.stairs(shares, edges, color=color, ls=dash, lw=1.6, label=label)
    ax.set_ylim(0.5 * smallest, 1.5)
    ax.set_yscale("log")
    ax.set_xlim(edges[0], edges[-1])
    ax.locator_params(axis="x", nbins=6)  # longer numbers run into each other in narrow panels
    ax.set_xlabel(xlabel)
    ax.set_ylabel("share of the values per bin")
    ax.legend(fontsize=7)
    return ax


def curvature_spectrum(ax: Axes, spectrum: CurvatureSpectrum, *, case: int = 0, bins: int = 41) -> Axes:
    """The distribution of one contour's principal curvatures as a histogram with its standard errors, and the flat band.

    Raises ValueError for a case that failed, or fewer than two bins.
    """
    nodes = _numpy(spectrum.nodes[case])
    if bins < 2 or not np.isfinite(nodes).all():
        raise ValueError(f"case {case} needs finite curvatures and at least 2 bins, got {bins} bins; look at .status.")
    edges = _edges_around_zero(nodes.ravel(), bins)
    shares, errors = (_numpy(t[case]) for t in spectrum.histogram(torch.as_tensor(edges)))
    ax.stairs(shares, edges, color=BLUE, lw=1.6, label=f"{spectrum.directions} directions")
    middle = 0.5 * (edges[1:] + edges[:-1])
    if errors.any():
        ax.errorbar(middle, shares, errors, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5, label="standard error")
    band = float(spectrum.error[case])
    ax.axvspan(-band, band, color=ORANGE, alpha=0.35, label=f"flat within ±{band:.2g}")
    ax.set_yscale("symlog", linthresh=1 / max(1, spectrum.directions))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("principal curvature (1/input unit)")
    ax.set_ylabel("share of the directions per bin")
    ax.legend(fontsize=7)
    return ax


HUES = (BLUE, VERMILION, GREEN, INK, ORANGE, PURPLE, SKY)
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
_DASHES: tuple[Any, ...] = (
    "-", (0, (5, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (10, 3)), (0, (2, 4)),
)  # fmt: skip


def _edges_around_zero(values: np.ndarray, bins: int) -> np.ndarray:
    """Edges of `bins` equal bins that hold all `values`, one of them centred on zero."""
    low, high = min(0.0, values.min(initial=0.0)), max(0.0, values.max(initial=0.0))
    below = round((bins - 1) * -low / (high - low)) if high > low else (bins - 1) // 2
    width = max(-low / (below + 0.5), high / (bins - 1 - below + 0.5)) * (1 + 1e-9)
    return (np.arange(bins + 1) - below - 0.5) * (width if width > 0 else 1.0)


def _widened(levels: Sequence[float], z: np.ndarray) -> list[float]:
    low, high = float(np.nanmin(z)), float(np.nanmax(z))
    inner = [v for v in levels if low < v < high]
    return [low, *inner, high] if high > low else [low, low + 1.0]


def _short(value: float) -> str:
    return "n/a" if not np.isfinite(value) else (f"{value:.3f}" if value > -10 else "< -10")


def _numpy(value: Any) -> np.ndarray:
    return (
        value.detach().cpu().double().numpy()
        if isinstance(value, Tensor) and value.dtype.is_floating_point
        else (value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value))
    )


def traces(ax: Axes, results: Mapping[str, AttackTrace], *, in_box: bool = True) -> Axes:
    """How attacks step, by name: the cosine between step and contour normal, median over cases with quartiles.

    1: along the gradient, 0: along the contour, -1: back. A dot marks where half of the cases have reached the level.
    Steps that are undefined are left out; a line ends where fewer than half of the cases have a step.

    Raises
    ------
    ValueError
        No trace.
    """
    if not results:
        raise ValueError("traces needs at least one name with its AttackTrace, got none.")
    for i, (name, result) in enumerate(results.items()):
        cosine = _numpy(result.cosine_in_box if in_box else result.cosine)
        shown = np.isfinite(cosine).sum(0) * 2 >= len(cosine)
        last = len(shown) if shown.all() else int(np.argmin(shown))
        if last == 0:
            continue
        low, middle, high = np.nanpercentile(cosine[:, :last], [25, 50, 75], axis=0)
        color, dash = HUES[i % len(HUES)], _DASHES[(i + i // len(HUES)) % len(_DASHES)]
        steps = np.arange(1, last + 1)
        ax.fill_between(steps, low, high, color=color, alpha=0.12, lw=0)
        ax.plot(steps, middle, color=color, ls=dash, lw=1.6, label=f"{name} ({len(cosine)})")
        there = _numpy(result.across)[:, :last].cumsum(1).astype(bool).mean(0) >= 0.5
        if there.any():
            first = int(np.argmax(there))
            ax.plot(steps[first], middle[first], "o", color=color, ms=5, mec=INK, mew=0.6)
    ax.axhline(0.0, color=FAINT, lw=0.8)
    ax.set_xscale("log")
    ax.set_ylim(-1.05, 1.05)
    ax.set_xlabel("step")
    ax.set_ylabel("cosine of step and contour normal" + (", in the box" if in_box else ""))
    ax.legend(fontsize=7)
    return ax


def certified(
    ax: Axes,
    certificate: Certificate,
    measured: Tensor,
    *,
    low: Tensor | None = None,
    high: Tensor | None = None,
    name: str = "",
    relative: bool = False,
) -> Axes:
    """Certified bound, predicted interval and measured distance of every case, cases sorted by what was measured.

    The true distance lies between the certified bound and the measured distance. Where the bound is above the measurement,
    one of them is wrong: such cases are crossed out in red and counted in the title.

    Parameters
    ----------
    measured
        Distances (case,) of points across, NaN where none was found (such cases come last, without a dot).
    low, high
        Ends (case,) of predicted intervals, as a calibrated predictor gives them; left out: none are drawn.
    relative
        Everything over the measured distance, on a linear axis: where bounds and intervals are too near to be told apart.

    Raises
    ------
    ValueError
        Different numbers of cases, or one end of the intervals without the other.
    """
    rows = [t for t in (certificate.lower, measured, low, high) if t is not None]
    if any(r.shape != measured.shape for r in rows) or (low is None) != (high is None):
        raise ValueError(
            f"certified needs one number per case in each row, got shapes {[tuple(r.shape) for r in rows]}."
        )
    order = torch.nan_to_num(measured, nan=float("inf")).argsort()
    place = np.arange(1, len(order) + 1)
    unit = measured[order] if relative else torch.ones_like(measured)
    proved, found = _numpy(certificate.lower[order] / unit), _numpy(measured[order] / unit)
    if low is not None and high is not None:
        ends = _numpy(low[order] / unit), _numpy(high[order] / unit)
        ax.vlines(place, *ends, color=ORANGE, lw=2.5, alpha=0.7, label="predicted interval")
    shown = np.isfinite(proved) & (proved > 0)
    ax.plot(place[shown], proved[shown], "^", ms=3.5, color=BLUE, label=f"certified: none nearer ({shown.sum()})")
    there = np.isfinite(found)
    ax.plot(place[there], found[there], ".", ms=5, color=INK, label=f"measured: one as near ({there.sum()})")
    wrong = _numpy(certificate.contradicted(measured)[order])
    if wrong.any():
        ax.plot(place[wrong], found[wrong], "X", ms=9, color=VERMILION, mec="white", zorder=6, label="contradiction")
    if not relative:
        ax.set_yscale("log")
    ax.set_xlabel("case, by its measured distance")
    ax.set_ylabel("over the measured distance" if relative else "distance (input units)")
    ax.set_title(
        f"{name}: certified > measured in {wrong.sum()} of {len(wrong)}" if name else
        f"certified > measured in {wrong.sum()} of {len(wrong)}", fontsize=10,
    )  # fmt: skip
    ax.legend(fontsize=7)
    return ax


def quality(ax: Axes, result: Quality) -> Axes:
    """Every measure's quartiles over cases (whiskers: 5 and 95 %), of perturbations, their matched controls, and chance."""
    rows = (
        ("perturbation", result.value, BLUE),
        ("matched pointwise unit", result.control, ORANGE),
        ("chance", result.chance, FAINT),
    )
    for k, (name, values, color) in enumerate(rows):
        for i, row in enumerate(_numpy(values)):
            row = row[np.isfinite(row)]
            if not len(row):
                continue
            least, low, middle, high, most = np.quantile(row, [0.05, 0.25, 0.5, 0.75, 0.95])
            y = i + 0.25 * (k - 1)
            ax.plot([least, most], [y, y], color=color, lw=1)
            ax.plot([low, high], [y, y], color=color, lw=5, solid_capstyle="butt", alpha=0.7, label="" if i else name)
            ax.plot(middle, y, "|", color=INK, ms=9, mew=1.6)
    ax.set_yticks(range(len(result.measures)), list(result.measures))
    ax.invert_yaxis()
    ax.axvline(0.0, color=FAINT, lw=0.8)
    ax.set_xlabel("measure (1)")
    ax.legend(fontsize=7)
    return ax


def explanation(ax: Axes, results: Mapping[str, Explanation]) -> Axes:
    """For how much of the variance of log distances each factor accounts, by model, in per cent, and what is left.

    Filled: mean over all orders of switching factors on (Shapley); open: the one fixed order; whiskers are the bootstrap
    intervals. The axis is linear up to 5 % and logarithmic beyond, so that small shares can be read beside large ones.

    Raises
    ------
    ValueError
        No explanation, or explanations by different factors.
    """
    if len({r.order for r in results.values()}) != 1:
        raise ValueError(
            "explanation needs one or more results with the same factors in the same order, got "
            f"{[r.order for r in results.values()]}."
        )
    names = [*next(iter(results.values())).names, "left"]
    width = 0.8 / len(results)
    for i, (name, result) in enumerate(results.items()):
        color, marker = HUES[i % len(HUES)], _MARKS[i % len(_MARKS)]
        left = [_numpy(t).reshape(1) for t in (result.unexplained, result.unexplained_low, result.unexplained_high)]
        mean = [
            np.concatenate([_numpy(t), end])
            for t, end in zip((result.share, result.share_low, result.share_high), left, strict=True)
        ]
        fixed = [_numpy(t) for t in (result.in_order, result.in_order_low, result.in_order_high)]
        for (value, low, high), shift, face, label in ((mean, 0.27, color, name), (fixed, 0.73, "white", "")):
            at = np.arange(len(value)) - 0.4 + width * (i + shift)
            ax.vlines(at, 100 * low, 100 * high, color=color, lw=0.9)
            ax.plot(at, 100 * value, marker, color=color, mfc=face, ms=4, mew=0.8, ls="", label=label)
    for k in range(1, len(names)):
        ax.axvline(k - 0.5, color=FAINT, lw=0.5)
    ax.axhline(0.0, color=INK, lw=0.8)
    ax.set_yscale("symlog", linthresh=5, linscale=1.5)
    ticks = [-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50, 100]
    bottom, top = ax.get_ylim()
    shown = [t for t in ticks if bottom <= t <= top]
    ax.set_yticks(shown, [str(t) for t in shown])
    ax.minorticks_off()
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel("share of the variance of log distances (%)")
    title = "filled: mean over all orders; open: in this order"
    ax.legend(
        fontsize=7, title=title, title_fontsize=7, ncols=min(6, len(results)), loc="lower center", bbox_to_anchor=(0.5, 1.0),
        frameon=False, handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
    return ax
