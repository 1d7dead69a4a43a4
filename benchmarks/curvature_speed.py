"""Top-10 principal curvatures: time, peak memory and accuracy beside a dense Hessian, SR1, and SciPy's eigsh.

    python benchmarks/curvature_speed.py [--data FOLDER] [--quick] [--out benchmarks/results/curvature_speed.json]

Every method runs in a process of its own, so that its peak memory is its own; they take turns, each three times, and the
median counts. All answer the same question, the 10 curvatures of largest size of the contour through one input (or 64) of
one convolutional GELU network, trained briefly on MNIST or CIFAR-10, in float32.
SciPy's eigsh gets the same Hessian-vector product and the same tolerance.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoresponse import Neuron, exact_jet, principal_curvatures, shape_operator
from isoresponse.jets import Jet
from isoresponse.operators import SymmetricOperator

RANK, RTOL = 10, 3.5e-4
MEASURED = ("seconds", "memory_mb", "in_products", "in_network", "products")
SIDES = {784: (1, 28), 3072: (3, 32), 150528: (3, 224)}


def network(channels: int) -> nn.Sequential:
    """An untrained network of four GELU convolutions, for images of any size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.GELU(), nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(2048, 10),
        )  # fmt: skip


def images(data: Path | None, n: int) -> tuple[Tensor, Tensor | None]:
    """Inputs in [0, 1] with n elements each, and labels where a network can be trained on them; noise without data."""
    channels, side = SIDES[n]
    if data is None:
        return torch.rand(64, channels, side, side, generator=torch.Generator().manual_seed(1)), None
    if n == 784:
        files = [(data / "mnist" / f"train-{kind}-ubyte.gz").read_bytes() for kind in ("images-idx3", "labels-idx1")]
        raw = [np.frombuffer(gzip.decompress(file), np.uint8) for file in files]
        pixels, labels = raw[0][16:].reshape(-1, 1, 28, 28)[:10_000], raw[1][8:][:10_000]
    elif n == 3072:
        z = np.load(data / "cifar10" / "jpeg_train_0.npz")
        pixels, labels = np.cumsum(np.cumsum(z["delta"], 2, dtype=np.uint8), 3, dtype=np.uint8), z["label"]
        pixels[:, 0] += pixels[:, 1]
        pixels[:, 2] += pixels[:, 1]
    else:
        pixels, labels = np.load(data / "photos" / "foolbox_imagenet20.npz")["image"].transpose(0, 3, 1, 2), None
    classes = None if labels is None else torch.as_tensor(labels.astype(np.int64))
    return torch.as_tensor(pixels.astype(np.float32)) / 255, classes


def trained(data: Path | None, n: int, epochs: int = 3) -> nn.Sequential:
    """The network for images of n elements; the one for photographs is trained on the small colour images."""
    net = network(SIDES[n][0])
    if data is not None:
        x, y = images(data, min(n, 3072))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            optimiser = torch.optim.Adam(net.parameters(), 2e-3)
            for _ in range(epochs):
                for part in torch.randperm(len(x)).split(100):
                    loss = nn.functional.cross_entropy(net(x[part]), y[part])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
    return net.requires_grad_(False)


def question(n: int, cases: int, weights: Path) -> tuple[Neuron, Tensor]:
    """The margin between the two highest scores of the first input, and the inputs."""
    net = network(SIDES[n][0]).requires_grad_(False)
    net.load_state_dict(torch.load(weights / f"{n}.pt", weights_only=True))
    x = torch.load(weights / f"{n}-inputs.pt", weights_only=True)[:cases]
    with torch.no_grad():
        first, second = net(x[:1])[0].topk(2).indices.tolist()
    return Neuron.of(net, unit=lambda z: z[:, first] - z[:, second], shape=tuple(x.shape[1:])), x


class Stopwatch:
    """Seconds spent in Hessian products and in making the graphs they need, and how often a product was taken."""

    def __init__(self) -> None:
        self.seconds, self.graph, self.calls = 0.0, 0.0, 0

    def jet(self, neuron: Neuron, x: Tensor) -> Jet:
        """The exact jet, whose products are watched."""
        start = time.perf_counter()
        jet = exact_jet(neuron, x)
        self.graph += time.perf_counter() - start
        return watched(jet, self)

    def around(self, f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def timed(v: Tensor) -> Tensor:
            start = time.perf_counter()
            out = f(v)
            self.seconds += time.perf_counter() - start
            self.calls += 1
            return out

        return timed


def watched(jet: Jet, watch: Stopwatch) -> Jet:
    def fewer(inner: Callable[[Tensor], SymmetricOperator], cases: Tensor) -> SymmetricOperator:
        start = time.perf_counter()
        operator = inner(cases)
        watch.graph += time.perf_counter() - start
        return operator

    def wrap(operator: SymmetricOperator) -> SymmetricOperator:
        inner = operator.restrict
        return SymmetricOperator(
            watch.around(operator.matvec),
            operator.like,
            None if inner is None else lambda cases: wrap(fewer(inner, cases)),
        )

    return Jet(**{**vars(jet), "hessian": wrap(jet.hessian)})


def largest(values: np.ndarray) -> list[float]:
    return sorted((float(v) for v in values), key=abs, reverse=True)[:RANK]


def ours(neuron: Neuron, x: Tensor, watch: Stopwatch) -> list[float]:
    jet = watch.jet(neuron, x)
    found = principal_curvatures(jet, RANK, generator=torch.Generator().manual_seed(0), rtol=RTOL)
    return largest(found.values[0].numpy())


def dense(neuron: Neuron, x: Tensor, watch: Stopwatch) -> list[float]:
    """The whole Hessian by torch.func.hessian, projected, and all its eigenvalues, case by case."""
    out = []
    for one in x:
        hessian = torch.func.hessian(lambda z: neuron(z[None])[0])(one).reshape(one.numel(), one.numel())
        gradient = neuron.value_and_grad(one[None])[1].flatten()
        unit = gradient / gradient.norm()
        side = hessian @ unit
        shape = hessian - torch.outer(unit, side) - torch.outer(side, unit) + (unit @ side) * torch.outer(unit, unit)
        out.append(torch.linalg.eigvalsh(-shape / gradient.norm()))
    return largest(out[0].numpy())


def eigsh(neuron: Neuron, x: Tensor, watch: Stopwatch) -> list[float]:
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import eigsh as scipy_eigsh

    out = []
    for one in x:
        jet = watch.jet(neuron, one[None])
        shape = shape_operator(jet)
        n = one.numel()

        def product(v: np.ndarray, shape: SymmetricOperator = shape) -> np.ndarray:
            return (shape @ torch.as_tensor(v, dtype=torch.float32).reshape(1, -1))[0].numpy()

        start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
        operator = LinearOperator((n, n), matvec=product, dtype=np.float32)
        values, _ = scipy_eigsh(operator, k=RANK, which="LM", tol=RTOL, v0=start)
        out.append(values)
    return largest(out[0])


def sr1(neuron: Neuron, x: Tensor, watch: Stopwatch) -> list[float]:
    """A dense Hessian built by symmetric rank-one updates from 2 n gradients at random nearby points, and its eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    (one,) = x
    n = one.numel()
    here = neuron.value_and_grad(one[None])[1].flatten()
    hessian = torch.eye(n) * 1e-6
    for _ in range(2 * n):
        step = torch.randn(n, generator=generator)
        step = 1e-2 * step / step.norm()
        change = neuron.value_and_grad(one[None] + step.reshape(1, *one.shape))[1].flatten() - here
        rest = change - hessian @ step
        below = rest @ step
        if abs(below) > 1e-8 * rest.norm() * step.norm():
            hessian.addr_(rest, rest / below)
    unit = here / here.norm()
    side = hessian @ unit
    shape = hessian - torch.outer(unit, side) - torch.outer(side, unit) + (unit @ side) * torch.outer(unit, unit)
    return largest(torch.linalg.eigvalsh(-shape / here.norm()).numpy())


METHODS = {"ours": ours, "dense": dense, "eigsh": eigsh, "sr1": sr1}


def peak() -> float:
    """Peak memory of this process in MB; a child's `ru_maxrss` starts at its parent's, so Linux is asked in another way."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_run(method: str, n: int, cases: int, weights: Path) -> dict[str, object]:
    """Time, peak memory above what the network and one gradient of these inputs need, and the answer."""
    neuron, x = question(n, cases, weights)
    neuron.value_and_grad(x[:1])
    import scipy.sparse.linalg  # noqa: F401  (its import is nobody's cost)

    before, watch = peak(), Stopwatch()
    if method in ("ours", "eigsh"):  # once for the code to be warm; the memory counts
        METHODS[method](neuron, x[:1], Stopwatch())
    start = time.perf_counter()
    values = METHODS[method](neuron, x, watch)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds, "memory_mb": peak() - before, "in_products": watch.seconds / seconds,
        "in_network": (watch.seconds + watch.graph) / seconds, "products": watch.calls, "values": values,
    }  # fmt: skip


def table(jobs: list[tuple[str, int, int]], repeats: int, weights: Path) -> list[dict[str, Any]]:
    """The median of `repeats` runs of each job, the jobs taking turns; the slow dense methods run once."""
    rows: list[dict[str, Any]] = []
    for turn in range(repeats):
        for method, n, cases in jobs:
            if turn > 0 and (method in ("dense", "sr1") or n > 100_000):
                continue
            command = [sys.executable, __file__, "--one", method, str(n), str(cases), "--weights", str(weights)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"method": method, "n": n, "cases": cases, **json.loads(done.stdout.splitlines()[-1])})
            seconds, memory = rows[-1]["seconds"], rows[-1]["memory_mb"]
            print(f"  {method:6s} n={n:6d} cases={cases:3d} {seconds:9.3f} s {memory:8.1f} MB", file=sys.stderr)
    merged = []
    for method, n, cases in jobs:
        same = [r for r in rows if (r["method"], r["n"], r["cases"]) == (method, n, cases)]
        middle = {
            k: statistics.median(r[k] for r in same)
            for k in ("seconds", "memory_mb", "in_products", "in_network", "products")
        }
        merged.append(
            {"method": method, "n": n, "cases": cases, "runs": len(same), "values": same[0]["values"], **middle}
        )
    return merged


def curves(weights: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Seconds (and products per case) against elements, rank and cases: the three lines that should be straight."""
    found: dict[str, list[tuple[int, float, float]]] = {"elements": [], "rank": [], "cases": []}
    neuron, x = question(3072, 64, weights)

    def timed(at: Tensor, rank: int, steps: int | None = None) -> tuple[float, float]:
        best = []
        for _ in range(3):
            start = time.perf_counter()
            seen = principal_curvatures(
                exact_jet(neuron, at), rank, generator=torch.Generator().manual_seed(0),
                rtol=RTOL if steps is None else 0.0, max_steps=steps,
            )  # fmt: skip
            best.append(time.perf_counter() - start)
        return min(best), float(seen.products.double().mean())

    big = nn.functional.interpolate(x[:1], size=(256, 256), mode="bilinear")
    for side in (32, 64, 96, 128, 192, 256):
        at = big[:, :, :side, :side].contiguous()
        neuron = Neuron(neuron.response, tuple(at.shape[1:]))
        found["elements"].append((at.numel(), *timed(at, RANK, 40)))
    neuron = Neuron(neuron.response, tuple(x.shape[1:]))
    found["rank"] = [(rank, *timed(x[:1], rank)) for rank in (2, 5, 10, 20, 40, 80)]
    found["cases"] = [(cases, *timed(x[:cases], RANK)) for cases in (1, 4, 16, 32, 64)]
    return found


def main(quick: bool, out: Path | None, data: Path | None) -> None:
    sizes = (784, 3072) if quick else (784, 3072, 150528)
    jobs = [(m, n, 1) for n in sizes for m in ("ours", "eigsh")] + [("dense", n, 1) for n in sizes if n <= 3072]
    jobs += [("sr1", n, 1) for n in sizes if n <= (784 if quick else 3072)]
    jobs += [(m, n, 64) for n in (784, 3072) for m in ("ours", "eigsh")]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)
        for n in sizes:
            torch.save(trained(data, n).state_dict(), weights / f"{n}.pt")
            torch.save(images(data, n)[0][:64].clone(), weights / f"{n}-inputs.pt")
        rows = table(jobs, 1 if quick else 3, weights)
        lines = curves(weights)
    by = {(r["method"], r["n"], r["cases"]): r for r in rows}
    print(
        "method        n  cases    s/case       MB  in products (with their graphs)  products/case  largest error against dense"
    )
    for r in rows:
        truth = by.get(("dense", r["n"], 1))
        gap = None if truth is None else max(abs(a - b) for a, b in zip(r["values"], truth["values"], strict=True))
        r["error"] = None if truth is None or gap is None else gap / abs(truth["values"][0])
        error = "-" if r["error"] is None else f"{r['error']:.1e}"
        share = "-" if r["in_products"] == 0 else f"{r['in_products']:.0%} ({r['in_network']:.0%})"
        products = r["products"] / (r["cases"] if r["method"] == "eigsh" else 1)
        print(
            f"{r['method']:6s} {r['n']:8d} {r['cases']:5d} {r['seconds'] / r['cases']:10.4f} {r['memory_mb']:8.1f} {share:>20s} "
            f"{products:14.0f}  {error}"
        )
    for what, points in lines.items():
        print(f"against {what}: " + ", ".join(f"{k}: {s:.3f} s ({p:.0f} products)" for k, s, p in points))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "trained": data is not None}
        out.write_text(json.dumps(facts | {"rows": rows, "curves": lines}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one run each")
    parser.add_argument("--out", type=Path, help="JSON file for the page `docs/accuracy.md`")
    parser.add_argument("--data", type=Path, help="folder with mnist, cifar10 and photos; else nothing is trained")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "N", "CASES"), help="a single run, as JSON")
    parser.add_argument("--weights", type=Path, help="for --one: folder with the networks")
    options = parser.parse_args()
    if options.one:
        method, n, cases = options.one
        print(json.dumps(one_run(method, int(n), int(cases), options.weights)))
    else:
        main(options.quick, options.out, options.data)
