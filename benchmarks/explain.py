"""What susceptibility is made of: shares of the variance of measured log distances, per network and across them, in one run.

    python benchmarks/explain.py --data ../shared/data --predictions FOLDER --out FOLDER [--models mnist-mlp mnist-lca]

Measured distances, and those told by a look further (`--look`: at several scales), are those that `prediction.py` has left in
its folder, of the same images. The factors (gap, spacing, its rate, turning, bending, the box) are measured at the image
alone and nothing is fitted. They are kept in FOLDER, network by network, so that a run can go on where another one ended.

Per network two lines: mean over all orders of switching factors on (Shapley), and the fixed order of the columns, in per
cent with 95 % bootstrap intervals; `left` is what no factor accounts for. Then the standard deviation of log(measured /
told), and its mean. The last rows are all networks together, and all on MNIST.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields
from pathlib import Path

import closest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from isoresponse import Box, Classifier, Explanation, Factors, adversary_factors, explain, pool_factors

MODELS = (
    "mnist-mlp", "mnist-softplus", "mnist-gelu", "mnist-lca", "mnist-adversarial-0.1", "mnist-interval-0.1",
    "mnist-adversarial", "mnist-interval", "cifar-cnn", "cifar-adversarial",
)  # fmt: skip


def measured(name: str, options: argparse.Namespace) -> Factors:
    """The factors of one network's images, beside measured distances; from the folder where it is there."""
    truth = json.loads((options.predictions / f"reference-{name}-L2.json").read_text())["distance"]
    cases = min(options.cases, len(truth))
    path = options.out / f"{name}-{cases}-{options.directions}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        return Factors(**{n: torch.tensor(v, dtype=getattr(torch, kind)) for n, (kind, v) in stored.items()})
    net, x, labels = closest.cases_of(name, options.data, cases, options.device)
    clf = Classifier.of(net, shape=tuple(x.shape[1:]), box=Box(0.0, 1.0), name=name)
    far = closest.floats(truth[:cases]).to(x)
    look = load_file(options.predictions / f"told-{name}-L2-many-scales.safetensors")["distance"][:cases].to(x)
    begin = time.perf_counter()
    found = adversary_factors(clf, x, labels, far, directions=options.directions, further=look)
    seconds, cost = time.perf_counter() - begin, float(found.gradients.double().mean())
    print(f"{name}: {cases} images, {seconds:.0f} s, {cost:.0f} gradients per image", flush=True)
    values = {f.name: getattr(found, f.name) for f in fields(found)}
    path.write_text(json.dumps({n: (str(v.dtype).removeprefix("torch."), v.tolist()) for n, v in values.items()}))
    return Factors(**{n: v.cpu() for n, v in values.items()})


def without_look(factors: Factors) -> Factors:
    """The six factors of the jet and the box."""
    return Factors(**{
        f.name: torch.full_like(factors.gap, torch.nan) if f.name == "further" else getattr(factors, f.name)
        for f in fields(factors)
    })  # fmt: skip


def cell(value: Tensor, low: Tensor, high: Tensor) -> str:
    return f"{100 * value:6.1f} [{100 * low:5.1f},{100 * high:6.1f}]"


def rows(name: str, told: Explanation) -> str:
    residual = float(told.spread * told.unexplained.clamp_min(0).sqrt())
    left = cell(told.unexplained, told.unexplained_low, told.unexplained_high)
    mean = "".join(map(cell, told.share, told.share_low, told.share_high))
    fixed = "".join(map(cell, told.in_order, told.in_order_low, told.in_order_high))
    return (
        f"{name:21s} mean {mean}{left} {float(told.spread):6.3f} {residual:6.3f} {float(told.bias):+7.3f}"
        f" {told.cases:5d} {told.blind:5d}\n{'':21s} order{fixed}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and cifar10/")
    parser.add_argument("--predictions", type=Path, required=True, help="folder that prediction.py has written, in L2")
    parser.add_argument("--out", type=Path, required=True, help="folder in which factors are kept")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--cases", type=int, default=500, help="images looked at, at most")
    parser.add_argument("--directions", type=int, default=2, help="in which the Hessian is measured")
    parser.add_argument("--look", action="store_true", help="with the seventh factor: a look at several scales")
    parser.add_argument("--figure", type=Path, help="file for the figure")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    every = {name: measured(name, options) for name in options.models}
    if not options.look:
        every = {name: without_look(f) for name, f in every.items()}
    on_mnist = [f for name, f in every.items() if name.startswith("mnist")]
    if len(every) > 1:
        every["all together"] = pool_factors(list(every.values()))
    if 1 < len(on_mnist) < len(every) - 1:
        every["all on MNIST"] = pool_factors(on_mnist)
    told = {name: explain(f, generator=Generator().manual_seed(0)) for name, f in every.items()}
    names = next(iter(told.values())).names
    print(f"{'%':27s}" + "".join(f"{n:>22s}" for n in (*names, "left")) + "   log d   error    bias cases blind")
    for name, one in told.items():
        print(rows(name, one), flush=True)
    if options.figure:
        from matplotlib.figure import Figure

        from isoresponse import plot

        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        plot.explanation(figure.subplots(), told)
        figure.savefig(options.figure, dpi=200)


if __name__ == "__main__":
    main()
