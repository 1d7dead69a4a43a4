"""The closest adversary: our search beside its peers, on the same cases, counted alike, in one run.

    python benchmarks/closest.py --data ../shared/data --models mnist-interval mnist-adversarial --norms 2 inf 1 \
        --cases 100 --steps 100 1000 --out FOLDER [--methods ours ddn fab ...] [--reuse] [--device cuda]

For each model and norm a JSON file, a table and a figure. Counting follows AttackBench (Cina, Rony et al., AAAI 2025):
a method's result in a case is the smallest perturbation that it *asked the network about*, misclassified and inside the
box, within 2,000 propagations (a case in a forward pass is one, in a backward pass one). Local optimality is theirs
too: with a(e) the share of cases not yet misclassified at size e, (e0 - area under a) / (e0 - area under the best a),
where the best takes the smallest size per case over all methods of the run and e0 is the largest of these. "ratio" is
the mean of size / smallest size over the cases where a method succeeds; "to peers" the same against the best peer only.
Alignment is the cosine (in L1 and L-infinity its dual counterpart) of the perturbation and the contour's normal,
over the elements that the box leaves free. Seconds are without the time that counting takes.

With `--reuse` the peers are taken from FOLDER where model, cases and budget are the same; ours run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import peers
import torch
import zoo
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isoresponse import Box, Classifier

mpl.use("agg")
from matplotlib import pyplot as plt

INF = float("inf")
NORMS = {"2": 2.0, "inf": INF, "1": 1.0}
BUDGETS = (10, 44, 150, 500)  # of ours, in gradients per case; 44 are to stay within 100 propagations
AT = (30, 100, 300, 1000)  # propagations at which local optimality is shown besides the end
OURS = "ours"


@dataclass(frozen=True)
class Task:
    """One model, one norm, and the cases that every method gets: (case, *shape), (case,)."""

    model: str
    net: nn.Module
    x: Tensor
    labels: Tensor
    norm: str
    budget: int

    @property
    def p(self) -> float:
        return NORMS[self.norm]

    @property
    def grid(self) -> Tensor:
        """Propagation counts at which the best so far is kept."""
        return torch.logspace(0, math.log10(self.budget), 100).round().long().unique()

    def head(self, cases: int) -> Task:
        return Task(self.model, self.net, self.x[:cases], self.labels[:cases], self.norm, self.budget)

    def identity(self) -> dict:
        """What must agree for stored results to be those of this task."""
        weights = b"".join(v.cpu().numpy().tobytes() for _, v in sorted(self.net.state_dict().items()))
        cases = self.x.cpu().numpy().tobytes() + self.labels.cpu().numpy().tobytes()
        return {
            "model": self.model, "norm": self.norm, "cases": len(self.x), "budget": self.budget,
            "weights": hashlib.sha256(weights).hexdigest()[:16], "data": hashlib.sha256(cases).hexdigest()[:16],
        }  # fmt: skip


def ours(classifier: Classifier, x: Tensor, labels: Tensor, norm: float, budget: int) -> Tensor:
    """Our search with a budget in gradients per case: the points found (case, *shape), NaN where none was."""
    return classifier.closest_adversary(x, labels, norm=norm, budget=budget).point


def run(task: Task, attack: peers.Attack, *, in_order: bool) -> tuple[dict, Tensor]:
    """Everything that is kept of one attack on the cases of `task`, and its nearest points (case, *shape)."""
    counted = peers.Counted(task.net, task.x, task.labels, task.p, task.budget, in_order=in_order).eval()
    found, note = None, ""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            with counted.watching():
                found = attack(counted, task.x.clone(), task.labels.clone())
        except (RuntimeError, ValueError, IndexError, AssertionError, NotImplementedError) as error:
            note = f"stopped: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    counted.settle(found)
    said = {
        "distance": numbers(counted.best), "class": counted.decided.tolist(),
        "forwards": counted.forwards.tolist(), "backwards": counted.backwards.tolist(),
        "alignment": numbers(alignment(task, counted.point, torch.isfinite(counted.best))),
        "trace": [numbers(row) for row in counted.trace(task.grid)],
        "seconds": round(counted.seconds, 3), "note": note,
    }  # fmt: skip
    return said, counted.point


def run_ours(task: Task, budget: int) -> tuple[dict, Tensor]:
    """`run` of our own search; building the classifier costs a forward pass of two zeros, which no case pays."""

    def attack(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        net.watched = False
        classifier = Classifier.of(net, shape=tuple(x.shape[1:]), box=Box(0, 1))
        net.watched = True
        return ours(classifier, x, labels, task.p, budget)

    return run(task, attack, in_order=False)


def alignment(task: Task, point: Tensor, found: Tensor) -> Tensor:
    """Duality cosine (case,) of the perturbation and the descent direction of the margin, over free elements."""
    start = point.clone().requires_grad_(True)
    scores = task.net(start)
    own = scores.gather(1, task.labels[:, None])[:, 0]
    margin = own - scores.scatter(1, task.labels[:, None], -INF).amax(1)
    down = -torch.autograd.grad(margin.sum(), start)[0].flatten(1)
    flat, moved = point.flatten(1), (point - task.x).flatten(1)
    held = ((flat <= peers.OUTSIDE) & (down < 0)) | ((flat >= 1 - peers.OUTSIDE) & (down > 0))
    down, moved = down.masked_fill(held, 0), moved.masked_fill(held, 0)
    dual = {2.0: 2.0, INF: 1.0, 1.0: INF}[task.p]
    size = torch.linalg.vector_norm(moved, task.p, dim=1) * torch.linalg.vector_norm(down, dual, dim=1)
    return ((moved * down).sum(1) / size).masked_fill(~found, torch.nan)


def numbers(values: Tensor) -> list:
    """Numbers for JSON: seven digits, null for what is not finite."""
    return [float(f"{v:.7g}") if math.isfinite(v) else None for v in values.tolist()]


def floats(values: Iterable) -> Tensor:
    """The inverse of `numbers`, with infinity for null."""
    return torch.tensor([INF if v is None else v for v in values], dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ one task


def measure(task: Task, names: list[str], steps: list[int], slow_cases: int, reuse: bool, out: Path) -> dict:
    """The record of `task`, written to `out` after each method, beside the nearest points of all peers."""
    path = out / f"{task.model}-L{task.norm}.json"
    record = {"identity": task.identity(), "grid": task.grid.tolist(), "methods": {}}
    if reuse and path.exists():
        earlier = json.loads(path.read_text())
        if earlier["identity"] != record["identity"]:
            raise SystemExit(f"{path} is of {earlier['identity']}, not of {record['identity']}; run without --reuse.")
        record["methods"] = {k: v for k, v in earlier["methods"].items() if not (is_ours(k) and OURS in names)}
    nearest = path.with_suffix(".safetensors")
    points = load_file(nearest)["peers"].to(task.x) if record["methods"] and nearest.exists() else task.x.clone()
    for key, method in still_to_run(task, names, steps, slow_cases, record).items():
        before = smallest(record, [k for k in record["methods"] if not is_ours(k)])
        said, found = method()
        record["methods"][key] = said
        if not is_ours(key):
            better = torch.nonzero(floats(said["distance"]) < before[: len(found)]).flatten().to(found.device)
            points[better] = found[better]
            save_file({"peers": points, "x": task.x, "labels": task.labels}, nearest)
        print(f"  {key:18s} {said['seconds']:8.1f} s  {said['note']}", flush=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record))
        part.replace(path)
    return record


def still_to_run(
    task: Task, names: list[str], steps: list[int], slow_cases: int, record: dict
) -> dict[str, Callable[[], tuple[dict, Tensor]]]:
    """The methods asked for whose results are not in `record`, by key."""
    plan: dict[str, Callable[[], tuple[dict, Tensor]]] = {}
    for name, make in peers.available(task.p).items():
        part = task.head(slow_cases) if name in peers.SLOW else task
        for count in steps if name in names else ():
            stored = record["methods"].get(f"{name}-{count}")
            if stored is None or len(stored["distance"]) != len(part.x):
                plan[f"{name}-{count}"] = lambda part=part, make=make, n=count: run(part, make(n), in_order=True)
    if OURS in names:
        for budget in BUDGETS:
            plan[f"{OURS}-{budget}"] = partial(run_ours, task, budget)
    return plan


def is_ours(key: str) -> bool:
    return key.split("-")[0] == OURS


def local_optimality(distance: Tensor, best: Tensor) -> float:
    """AttackBench's, for cases (case,) that are all classified correctly; a step function is integrated exactly."""
    known = torch.isfinite(best)
    largest = best[known].amax()
    area, least = (torch.minimum(d[known], largest).mean() for d in (distance, best))
    return float((largest - area) / (largest - least))


def excess(trace: Tensor, best: Tensor) -> Tensor:
    """Mean size (grid,) over mean smallest size, less one; what is not found counts as the largest smallest size."""
    known = torch.isfinite(best)
    capped = torch.minimum(trace[known], best[known].amax())
    return capped.mean(0) / best[known].mean() - 1


def smallest(record: dict, keys: Iterable[str]) -> Tensor:
    """The smallest size per case (case,) over some methods."""
    sizes = torch.full((record["identity"]["cases"],), INF, dtype=torch.float64)
    for key in keys:
        distance = floats(record["methods"][key]["distance"])
        sizes[: len(distance)] = torch.minimum(sizes[: len(distance)], distance)
    return sizes


def table(record: dict) -> list[dict]:
    """One row per method, best first."""
    methods, rows = record["methods"], []
    best = smallest(record, methods)
    by_peers = smallest(record, [key for key in methods if not is_ours(key)])
    grid = torch.tensor(record["grid"])
    for key, m in methods.items():
        distance, trace = floats(m["distance"]), torch.stack([floats(row) for row in m["trace"]])
        some, won = best[: len(distance)], torch.isfinite(distance)
        spent = [f + b for f, b in zip(m["forwards"], m["backwards"], strict=True)]
        ratio = (distance / some)[won]
        cosine = [a for a in m["alignment"] if a is not None]
        rows.append(
            {
                "method": key,
                "optimality": local_optimality(distance, some),
                **{f"at {n}": local_optimality(trace[:, int((grid <= n).sum()) - 1], some) for n in AT},
                "success": float(won.double().mean()),
                "ratio": float(ratio.mean()),
                "to peers": float((distance / by_peers[: len(distance)])[won].mean()),
                "worst": float(ratio.max()) if len(ratio) else math.nan,
                "best": float((distance <= 1.01 * some)[torch.isfinite(some)].double().mean()),
                "median": float(distance.median()),
                "mean": float(distance[won].mean()),
                "cosine": statistics.median(cosine) if cosine else math.nan,
                "spent": statistics.mean(spent),
                "most": max(spent),
                "seconds": m["seconds"],
                "cases": len(distance),
            }
        )
    return sorted(rows, key=lambda row: -row["optimality"])


def show(record: dict, rows: list[dict]) -> None:
    which = record["identity"]
    print(f"\n{which['model']}, L{which['norm']}, {which['cases']} cases, at most {which['budget']} propagations")
    at = "".join(f"{n:8d}" for n in AT)
    print(
        f"{'':18s} local optimality, %, at propagations      success  size / smallest        within  size            "
        f"align-  propagations\n{'method':18s}{at}     end        %    mean  to peers   most   1 %, %  median    mean   "
        "ment     mean    max       s"
    )
    for r in rows:
        at = "".join(f"{100 * r[f'at {n}']:8.2f}" for n in AT)
        print(
            f"{r['method']:18s}{at} {100 * r['optimality']:7.2f} {100 * r['success']:8.1f} {r['ratio']:7.4f} "
            f"{r['to peers']:9.4f} {r['worst']:6.3f} {100 * r['best']:8.0f} {r['median']:7.4f} {r['mean']:7.4f} "
            f"{r['cosine']:6.3f} {r['spent']:8.1f} {r['most']:6d} {r['seconds']:7.1f}"
            + ("" if r["cases"] == which["cases"] else f"  ({r['cases']} cases)")
        )


# -------------------------------------------------------------------------------------------------------------- figure

COLOURS = {
    "foolbox-ddn": "#E69F00", "ddn": "#A6761D", "fmn": "#56B4E9", "pdgd": "#009E73", "pdpgd": "#009E73",
    "alma": "#CC79A7", "fab": "#0072B2", "sdf": "#D55E00", "df": "#999999", "apgd_t": "#7B5EA7", "ead": "#D55E00",
}  # fmt: skip
MARKS = dict(zip(COLOURS, "osv^^DP*XhH", strict=True))
FLOOR = 1e-4  # of the excess axis


def draw(record: dict, path: Path) -> None:
    """Excess size and share of successes against propagations: solid with most steps, dashed with fewer."""
    methods, which = record["methods"], record["identity"]
    best, grid = smallest(record, methods), torch.tensor(record["grid"])
    own = [key for key in methods if is_ours(key)]
    others = [key for key in methods if not is_ours(key)]
    most = max((int(key.rsplit("-", 1)[1]) for key in others), default=0)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(9, 7.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    named: list[tuple[float, object]] = []  # legend: in the order in which the curves end
    for key in others + own:
        m = methods[key]
        trace = torch.stack([floats(row) for row in m["trace"]])
        reached = grid <= max(f + b for f, b in zip(m["forwards"], m["backwards"], strict=True))
        over = excess(trace, best[: len(trace)])[reached].clamp(min=FLOOR)
        succeeded = 100 * torch.isfinite(trace[:, reached]).double().mean(0)
        if is_ours(key):  # the larger the budget, the darker
            style = {"color": str(0.6 * (1 - (own.index(key) + 1) / len(own))), "lw": 3, "zorder": 5, "marker": ">"}
            label = key.replace("-", ", budget ")
        else:
            label, steps = key.rsplit("-", 1)
            style = {"color": COLOURS[label], "lw": 1.4, "marker": MARKS[label]}
            if int(steps) != most:
                style["ls"], label = (0, (4, 2)), ""
        style |= {"drawstyle": "steps-post", "markevery": [-1], "ms": 7, "mec": "white", "mew": 0.6}
        (line,) = upper.plot(grid[reached], over, label=label, **style)
        lower.plot(grid[reached], succeeded, **style)
        if label:
            named.append((-float(over[-1]), line))
    least = min(-end for end, _ in named)  # also where every search stays far from the smallest known
    upper.set(xscale="log", yscale="log", ylim=(0.8 * least, None))
    if least > 0.01:
        upper.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
    upper.set_ylabel("mean size above the smallest known\n(relative; what is not found counts as the largest)")
    upper.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{100 * v:g} %"))
    upper.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    lower.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    lower.set(xlabel="propagations per case (forward + backward)", ylabel="cases with success, %", ylim=(-3, 103))
    norm = which["norm"].replace("inf", "∞")
    upper.set_title(f"{which['model']}, closest adversary in L{norm}, {which['cases']} cases", loc="left")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    lines = [line for _, line in sorted(named, key=lambda pair: pair[0])]
    title = f"peers: {most} steps\n(dashed: fewer)" if others else None
    upper.legend(handles=lines, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, title=title)
    figure.savefig(path, dpi=130)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------------------- main


def cases_of(name: str, data: Path, count: int, device: str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
    """The network, and the first `count` correctly classified test images in an order that is always the same.

    Which ones is decided on the CPU. On a GPU convolutions and products keep all 24 bits of a float32.
    """
    torch.backends.cudnn.allow_tf32 = False
    net, images, labels = zoo.load(name, data)
    net.eval().requires_grad_(False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept: list[Tensor] = []
    with torch.no_grad():
        for rows in order.split(500):
            kept.append(rows[net(images[rows]).argmax(1) == labels[rows]])
            if sum(map(len, kept)) >= count:
                break
    rows = torch.cat(kept)[:count]
    return net.to(device), images[rows].contiguous().to(device), labels[rows].to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and cifar10/")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=["2"])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--slow-cases", type=int, help=f"for {', '.join(peers.SLOW)}; as --cases by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000], help="of the peers")
    parser.add_argument("--budget", type=int, default=2000, help="propagations per case after which nothing counts")
    parser.add_argument("--methods", nargs="+", help=f"{OURS} and the names of peers; all by default")
    parser.add_argument("--reuse", action="store_true", help="take peers from FOLDER where they are there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    known = {OURS, *(name for norm in peers.PEERS.values() for name in norm)}
    names = options.methods or sorted(known)
    if unknown := set(names) - known:
        parser.error(f"no method {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}.")
    if peers.ADV_LIB is None:
        print(peers.GET_ADV_LIB)
    for model in options.models:
        net, x, labels = cases_of(model, options.data, options.cases, options.device)
        for norm in options.norms:
            print(f"\n{model}, L{norm}", flush=True)
            task = Task(model, net, x, labels, norm, options.budget)
            record = measure(
                task, names, options.steps, options.slow_cases or options.cases, options.reuse, options.out
            )
            if not record["methods"]:
                print("  nothing to compare: none of these methods searches in this norm.")
                continue
            rows = table(record)
            show(record, rows)
            draw(record, options.out / f"{model}-L{norm}.png")


if __name__ == "__main__":
    main()
