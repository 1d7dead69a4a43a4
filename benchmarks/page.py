"""Write docs/accuracy.md and its figure from the JSON files of the other benchmarks; the words are in accuracy.md.jinja.

python benchmarks/page.py [--results benchmarks/results] [--docs docs]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAMES = {
    "ours": "isoresponse", "eigsh": "SciPy eigsh, same product", "dense": "torch.func.hessian + eigvalsh",
    "sr1": "SR1 from 2 n gradients",
}  # fmt: skip


def ratios(rows: dict[tuple[str, int, int], dict[str, Any]]) -> list[dict[str, str]]:
    """How many times faster ours is per case; the dense methods are timed on one case."""
    found = []
    for n, cases in ((784, 1), (3072, 1), (150528, 1), (784, 64), (3072, 64)):
        if ("ours", n, cases) not in rows:
            continue
        mine = rows["ours", n, cases]["seconds"] / cases
        line = {"n": f"{n:,}", "cases": str(cases)}
        for other, theirs in (("dense", 1), ("sr1", 1), ("eigsh", cases)):
            row = rows.get((other, n, theirs))
            line[other] = "does not fit" if row is None else f"{row['seconds'] / theirs / mine:.1f}"
        found.append(line)
    return found


def inside(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of all truths inside the band, by estimator."""
    values, held = {}, {}
    for r in rows:
        values[r["estimator"]] = values.get(r["estimator"], 0) + r["values"]
        held[r["estimator"]] = held.get(r["estimator"], 0.0) + r["inside"] * r["values"]
    return {name: held[name] / values[name] for name in values}


def cost_figure(lines: dict[str, list[list[float]]], path: Path) -> None:
    figure = Figure(figsize=(10, 3.2), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    labels = {"elements": "input elements", "rank": "rank", "cases": "cases"}
    for ax, (what, points) in zip(figure.subplots(1, 3), lines.items(), strict=True):
        xs, seconds = [p[0] for p in points], [p[1] for p in points]
        ax.plot(xs, seconds, "o-", color="#0072B2", label="measured")
        ax.plot([0, xs[-1]], [0, seconds[-1]], "--", color="#222222", lw=1, label="proportional")
        ax.set_xlabel(labels[what])
        ax.set_ylim(bottom=0)
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path)


def main(results: Path, docs: Path) -> None:
    exact, coverage, speed, surface = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("curvature_exact", "coverage", "curvature_speed", "surface_speed")
    )
    rows = {(r["method"], r["n"], r["cases"]): r for r in speed["rows"]}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string((Path(__file__).parent / "accuracy.md.jinja").read_text(encoding="utf-8"))
    page = template.render(
        exact=exact, coverage=coverage, speed=speed, surface=surface, ratios=ratios(rows), names=NAMES,
        inside=inside(coverage["rows"]), memory={m: rows[m, 3072, 1]["memory_mb"] for m in ("ours", "dense")},
        sci=lambda v: f"{v:.0e}", pct=lambda v: f"{100 * v:.1f} %",
        per_case=lambda r: f"{r['products'] / (r['cases'] if r['method'] == 'eigsh' else 1):.0f}" if r["products"] else "–",
        share=lambda r: f"{r['in_products']:.0%} ({r['in_network']:.0%})" if r["in_products"] else "–",
    )  # fmt: skip
    (docs / "accuracy.md").write_text(page, encoding="utf-8")
    cost_figure(speed["curves"], docs / "accuracy-cost.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    main(options.results, options.docs)
