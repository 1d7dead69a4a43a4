"""Predicted distances beside measured ones: a table per model and the frontier of accuracy against gradients, in one run.

    python benchmarks/prediction.py --data ../shared/data --models mnist-mlp mnist-lca --out FOLDER \
        [--norm 2] [--cases 100] [--closest FOLDER] [--deep 2] [--device cuda]

The measured distance of a case is the smallest that anything found: the results of `closest.py` where its folder is given
with `--closest` (same cases), our search with 150 gradients, and `--deep` longer looks at several scales with other random
patterns. It is kept in `reference-MODEL-LNORM.json` and only ever becomes smaller; no predictor here is told about it. What
predictors said is kept too, but for displacements (`told-MODEL-LNORM-PREDICTOR.safetensors`): where the reference has
improved, the same command makes the table again.

Columns: Spearman and Kendall rank correlation; median |log(predicted / measured)|, raw and on the scale learned from the
other half of the cases (so that a margin, which has response units, can be compared); AUROC and false positive rate at 95 %
true positives for "nearer than the median distance"; gradients per wrong class; forward passes per case; doubtful cases; how
often the 90 % interval holds, and the ratio of its ends (median), both on the half it was not learned from, over random halves.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields, replace
from pathlib import Path

import closest
import matplotlib as mpl
import scipy.stats
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from isoresponse import Box, Classifier
from isoresponse.calibration import calibrate
from isoresponse.loop import failed
from isoresponse.prediction import Prediction, Predictor
from isoresponse.predictors import AlongTheWay, Clever, FirstOrder, FootPoints, Krylov, Margin
from isoresponse.scales import ManyScales

mpl.use("agg")
from matplotlib import pyplot as plt

INF = float("inf")
HALVES = 40  # random halves over which coverage is averaged
PREDICTORS: dict[str, Predictor] = {
    "margin": Margin(),
    "margin / gradient norm": FirstOrder(inside_box=False),
    "CLEVER-like, 8 samples": Clever(),
    "first order": FirstOrder(),
    "along the way": AlongTheWay(),
    "2-jet, 1 direction": Krylov(1),
    "2-jet, 2 directions": Krylov(2),
    "foot points, 1 step": FootPoints(1),
    "foot points, 2 steps": FootPoints(2),
    "foot points, 3 steps": FootPoints(3),
    "foot points, 8 steps": FootPoints(8),
    "many scales": ManyScales(),
}
FAMILIES = {
    "margin": "#999999", "margin / gradient": "#D55E00", "CLEVER": "#CC79A7", "first order": "#E69F00",
    "along": "#56B4E9", "2-jet": "#0072B2", "foot": "#222222", "many": "#009E73",
}  # fmt: skip
MARKS = dict(zip(FAMILIES, "osPXv^oD", strict=True))


# ---------------------------------------------------------------------------------------------------------- measured


def reference(
    name: str, classifier: Classifier, x: Tensor, labels: Tensor, norm: str, deep: int, given: Path | None, out: Path
) -> Tensor:
    """The smallest distance (case,) known of every case."""
    path = out / f"reference-{name}-L{norm}.json"
    p = closest.NORMS[norm]
    best = torch.full((len(x),), INF, dtype=torch.float64)
    if path.exists():
        kept = closest.floats(json.loads(path.read_text())["distance"])
        if len(kept) < len(x):
            raise SystemExit(f"{path} holds {len(kept)} cases, fewer than {len(x)}; give it another --out.")
        best = kept[: len(x)]
    else:
        best = smaller(best, classifier.closest_adversary(x, labels, norm=p, budget=150).distance)
    if given is not None and (stored := given / f"{name}-L{norm}.json").exists():
        record = json.loads(stored.read_text())
        best = smaller(best, closest.smallest(record, record["methods"])[: len(x)])
    for seed in range(deep):
        look = ManyScales(gradients=200, probes=48, elements=192, seed=100 + seed)
        told = classifier.predict_distance(x, labels, predictor=look, norm=p)
        there = classifier.box.clip(x + told.displacement.nan_to_num(nan=0.0).reshape(x.shape))
        across = classifier.predict(there) != labels  # an end that only a last ray promises is not measured
        best = smaller(best, told.distance.masked_fill(~across, INF))
    path.write_text(json.dumps({"distance": closest.numbers(best)}))
    return best


def smaller(a: Tensor, b: Tensor) -> Tensor:
    """The smaller of two distances of each of the cases that both know; infinity for NaN."""
    least = a.clone()
    some = min(len(a), len(b))
    least[:some] = torch.minimum(a[:some], b[:some].cpu().double().nan_to_num(nan=INF))
    return least


# -------------------------------------------------------------------------------------------------------- one table


def measure(told: Prediction, best: Tensor, seconds: float, classes: int) -> dict:
    """One row of the table."""
    said = told.distance.double().masked_fill(failed(told.status), INF)
    both = torch.isfinite(said) & (said > 0)
    ratio = (said / best)[both].log()
    near = best < best.median()
    order = torch.where(torch.isinf(said), said[both].max() * 10, said)
    return {
        "spearman": float(scipy.stats.spearmanr(order, best).statistic),
        "kendall": float(scipy.stats.kendalltau(order, best).statistic),
        "error": float(ratio.abs().median()),
        "auroc": auroc(-order[near], -order[~near]),
        "fpr95": float((order[~near] <= order[near].quantile(0.95)).double().mean()),
        "gradients": float(told.gradients.double().mean()) / (classes - 1),
        "forwards": float(told.forwards.double().mean()),
        "doubtful": float((told.doubt > 0).double().mean()),
        "failed": int((~both).sum()),
        "seconds": seconds,
    } | coverage(told, best)


def auroc(positive: Tensor, negative: Tensor) -> float:
    """The chance that a positive scores above a negative, ties counting half."""
    above = (positive[:, None] > negative).double().mean() + 0.5 * (positive[:, None] == negative).double().mean()
    return float(above)


def coverage(told: Prediction, best: Tensor) -> dict:
    """Coverage of the 90 % interval, its median ratio of ends, and the error of the learned scale, on cases not learned from."""
    held, width, error, generator = [], [], [], Generator().manual_seed(0)
    for _ in range(HALVES):
        order = torch.randperm(len(best), generator=generator)
        learn, test = order[: len(best) // 2], order[len(best) // 2 :]
        try:
            learned = calibrate(_silent, rows(told, learn), best[learn])
        except ValueError:  # too few of this half have a prediction
            return dict.fromkeys(("coverage", "coverage sd", "width", "scaled error"), float("nan"))
        seen = learned.refined(rows(told, test))
        known = ~failed(seen.status)
        truth = best[test][known]
        low, high, middle = (v[known].double() for v in (seen.low, seen.high, seen.distance))
        held.append(((low <= truth) & (truth <= high)).double().mean())
        width.append((high / low).median())
        error.append((middle / truth).log().abs().median())
    held, width, error = (torch.stack(v) for v in (held, width, error))
    return {
        "coverage": float(held.mean()), "coverage sd": float(held.std()),
        "width": float(width.median()), "scaled error": float(error.mean()),
    }  # fmt: skip


def _silent(_: object) -> Prediction:
    raise NotImplementedError("only its stored answers are refined here.")


def ask(
    key: str, name: str, classifier: Classifier, x: Tensor, labels: Tensor, options: argparse.Namespace
) -> tuple[Prediction, float]:
    """What a predictor says, on the CPU, and the seconds it took; from the file where it is there."""
    path = options.out / f"told-{name}-L{options.norm}-{key.replace(' / ', '-by-').replace(' ', '-')}.safetensors"
    if path.exists():
        kept = load_file(path)
        nowhere = {"displacement": torch.empty(len(x), 0)}
        return Prediction(**nowhere | {n: v for n, v in kept.items() if n != "seconds"}), float(kept["seconds"])
    begin = time.perf_counter()
    told = classifier.predict_distance(x, labels, predictor=PREDICTORS[key], norm=closest.NORMS[options.norm])
    told, seconds = rows(told, slice(None)), time.perf_counter() - begin
    values = {f.name: getattr(told, f.name).contiguous() for f in fields(told) if f.name != "displacement"}
    save_file({**values, "seconds": torch.tensor(seconds)}, path)
    return told, seconds


def rows(told: Prediction, cases: Tensor | slice) -> Prediction:
    """Some of the cases, on the CPU."""
    return replace(told, **{f.name: getattr(told, f.name)[cases].cpu() for f in fields(told)})


def show(name: str, norm: str, table: dict[str, dict], best: Tensor) -> None:
    print(f"\n{name}, L{norm}, {len(best)} cases, median distance {float(best.median()):.4g}")
    print(
        f"{'':24s} Spear-  Ken-   |log error|           FPR   gradients forwards doubt-        90 %     ends'\n"
        f"{'predictor':24s}    man   dall    raw scaled AUROC  95 %  per class per case   ful fail  holds,%   ratio      s"
    )
    for key, r in table.items():
        print(
            f"{key:24s} {r['spearman']:6.4f} {r['kendall']:6.3f} {r['error']:6.3f} {r['scaled error']:6.3f} {r['auroc']:5.3f} "
            f"{r['fpr95']:5.2f} {r['gradients']:10.2f} {r['forwards']:8.0f} {r['doubtful']:5.2f} {r['failed']:4d} "
            f"{100 * r['coverage']:5.1f}±{100 * r['coverage sd']:3.1f} {r['width']:7.3f} {r['seconds']:6.1f}",
            flush=True,
        )


# ---------------------------------------------------------------------------------------------------------- frontier


def draw(tables: dict[str, dict[str, dict]], norm: str, path: Path) -> None:
    """What is left to perfect rank correlation, and the error on the learned scale, against gradients per class."""
    across = min(len(tables), 5)
    down = -(-len(tables) // across)
    figure, panels = plt.subplots(
        2 * down, across, figsize=(1.8 + 2.1 * across, 0.4 + 4.2 * down), sharex=True, layout="constrained", squeeze=False
    )  # fmt: skip
    seen: dict[str, object] = {}
    for k, (name, table) in enumerate(tables.items()):
        column = panels[2 * (k // across) : 2 * (k // across) + 2, k % across]
        for family, colour in FAMILIES.items():
            mine = [r for n, r in table.items() if max((f for f in FAMILIES if n.startswith(f)), key=len) == family]
            at = [max(r["gradients"], 0.3) for r in mine]  # a margin costs none, which a log axis does not show
            left = [1 - r["spearman"] for r in mine], [r["scaled error"] for r in mine]
            for panel, values in zip(column, left, strict=True):
                (line,) = panel.plot(at, [max(v, 1e-4) for v in values], "o-", color=colour, ms=5, lw=1.2)
                line.set_marker(MARKS[family])
            seen.setdefault(family, line)
        column[0].set_title(name, fontsize=9)
        column[1].set_xlabel("gradients per class", fontsize=8)
    for k in range(len(tables), across * down):
        for panel in panels[2 * (k // across) : 2 * (k // across) + 2, k % across]:
            panel.remove()
    for panel in figure.axes:
        panel.set(xscale="log", yscale="log", ylim=(7e-5, 2))
        panel.set_xticks([0.3, 1, 3, 10], ["none", "1", "3", "10"], minor=False)
        panel.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        panel.tick_params(labelbottom=True, labelsize=8)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for upper, lower in zip(panels[::2, 0], panels[1::2, 0], strict=True):
        upper.set_ylabel("1 - Spearman")
        lower.set_ylabel("median |log error|, scaled")
    names = {
        "margin / gradient": "margin / gradient norm",
        "along": "along the way",
        "foot": "foot points",
        "many": "many scales",
    }
    figure.legend(
        list(seen.values()), [names.get(f, f) for f in seen], loc="outside right upper", frameon=False, fontsize=8,
        title=f"predicting L{norm.replace('inf', '∞')}",
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and cifar10/")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--norm", choices=closest.NORMS, default="2")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--predictors", nargs="+", choices=PREDICTORS, default=list(PREDICTORS))
    parser.add_argument("--closest", type=Path, help="folder with the results of closest.py")
    parser.add_argument("--deep", type=int, default=2, help="longer looks that add to the measured distances")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / f"prediction-L{options.norm}.json"  # the figure also shows the models of earlier runs
    tables: dict[str, dict[str, dict]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in options.models:
        net, x, labels = closest.cases_of(name, options.data, options.cases, options.device)
        classifier = Classifier.of(net, shape=tuple(x.shape[1:]), box=Box(0, 1))
        best = reference(name, classifier, x, labels, options.norm, options.deep, options.closest, options.out)
        tables[name] = {}
        for key in options.predictors:
            told, seconds = ask(key, name, classifier, x, labels, options)
            tables[name][key] = measure(told, best, seconds, classifier.classes)
        show(name, options.norm, tables[name], best)
        kept.write_text(json.dumps(tables, indent=1))
    draw(tables, options.norm, options.out / f"prediction-L{options.norm}.png")


if __name__ == "__main__":
    main()
