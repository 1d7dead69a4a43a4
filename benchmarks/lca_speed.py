"""Sparse codes of natural patches: time and residual beside scikit-learn and the neurons' own dynamics, and their gradients.

    python benchmarks/lca_speed.py --data FOLDER [--units 512 1024 2560] [--signed] [--quick] [--out FILE.json]

FOLDER holds `natural_images/`. Whitened patches of 16 x 16, a batch of 256 at a time, float64, one thread; dictionaries are
learnt with a few steps. The residual is the largest violation of the optimality conditions in the batch. scikit-learn's
`sparse_encode` cannot be asked for another tolerance; `Lasso`, which does its work, is also run with the first power of ten
that leaves 1e-8. Euler steps are 1/30 of a time constant. Gradients, of a random sum of squared activities, are
compared with back-propagation through accelerated proximal steps, as many as leave 1e-8. Times are the best of three.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import Lasso
from torch import Generator, Tensor

from isoresponse.models.data import load_pictures
from isoresponse.models.dictionary import learn_dictionary
from isoresponse.models.lca import LCA
from isoresponse.models.natural import patches

SIZE, CASES, SPARSITY, TARGET = 16, 256, 1.0, 1e-8
TAU = 30.0  # Euler steps in a time constant
PAGES = (-3,)  # glibc: M_MMAP_THRESHOLD
MOST = 4e9  # bytes that an unrolled solver may take before it gets fewer cases


def timed(what: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Seconds, the best of some, and the last result."""
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        found = what()
        best = min(best, time.perf_counter() - begin)
    return best, found


def missed(x: Tensor, columns: Tensor, code: Tensor, rectified: bool) -> float:
    """Largest violation of the optimality conditions in the batch."""
    remains = (x - code @ columns.T) @ columns
    excess = ((remains if rectified else remains.abs()) - SPARSITY).relu()
    return float(torch.where(code == 0, excess, (remains - SPARSITY * code.sign()).abs()).max())


def lasso(x: Tensor, columns: Tensor, rectified: bool, tol: float) -> Tensor:
    """What `sparse_encode` does, to another tolerance."""
    a, gram, drive = columns.numpy(), (columns.T @ columns).numpy(), (x @ columns).numpy()
    model = Lasso(
        SPARSITY / len(a), fit_intercept=False, precompute=gram, tol=tol, max_iter=100_000, positive=rectified
    )
    return (
        torch.as_tensor(np.stack([model.fit(a, row, check_input=False).coef_ for row in x.numpy()])) + 0 * drive[0, 0]
    )


def euler(x: Tensor, columns: Tensor, rectified: bool, steps: int) -> Tensor:
    """Activities after steps of the neurons' dynamics from rest; the way through the pixels costs least."""
    elements, u = columns.T.contiguous(), torch.zeros(len(x), columns.shape[1]).to(x)
    a = u
    for _ in range(steps):
        u = torch.addmm(u.mul(1 - 1 / TAU).add(a, alpha=1 / TAU), x - a @ elements, columns, alpha=1 / TAU)
        a = (u - SPARSITY).relu() if rectified else u - u.clamp(-SPARSITY, SPARSITY)
    return a


def accelerated(x: Tensor, columns: Tensor, rectified: bool, steps: int) -> Tensor:
    """Activities after accelerated proximal steps (Beck & Teboulle 2009) with restarts, which autograd can unroll."""
    elements, rate = columns.T.contiguous(), float(1 / torch.linalg.matrix_norm(columns, ord=2) ** 2)
    a = ahead = torch.zeros(len(x), columns.shape[1]).to(x)
    momentum = torch.ones(len(x), 1).to(x)
    for _ in range(steps):
        v = torch.addmm(ahead, x - ahead @ elements, columns, alpha=rate)
        after = (v - SPARSITY * rate).relu() if rectified else torch.nn.functional.softshrink(v, SPARSITY * rate)
        with torch.no_grad():
            momentum = torch.where(((ahead - after) * (after - a)).sum(1, keepdim=True) > 0, 1.0, momentum)
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = torch.lerp(a, after, 1 + (momentum - 1) / following)
        a, momentum = after, following
    return a


def memory(key: str) -> int:
    """Bytes that this process has (VmRSS) or has had at most (VmHWM)."""
    return 1024 * int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])


@contextmanager
def peak(found: dict[str, float]) -> Iterator[None]:
    """Put into `found` how many MB more this process had in between; meanwhile every large tensor has pages of its own."""
    memory_manager = ctypes.CDLL(None)
    memory_manager.mallopt(*PAGES, 2**14)
    memory_manager.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    yield
    found["peak"] = (memory("VmHWM") - before) / 1e6
    memory_manager.mallopt(*PAGES, 2**25)


def gradient(solve: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """Gradients (case, n), and seconds."""
    leaf = x.clone().requires_grad_(True)
    begin = time.perf_counter()
    (slope,) = torch.autograd.grad((solve(leaf).square() * weight).sum(), leaf)
    return slope, time.perf_counter() - begin


def stored(solve: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> dict[str, float]:
    """MB that the graph keeps between the passes, and MB at most while a gradient is made."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    found: dict[str, float] = {}
    with peak(found), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        gradient(solve, x, weight)
    return {"kept": sum(kept.values()) / 1e6} | found


def off(found: Tensor, truth: Tensor) -> float:
    """Median over cases of the relative error, in per cent."""
    return 100 * float(((found - truth).norm(dim=1) / truth.norm(dim=1)).nanmedian())


def codes(x: Tensor, columns: Tensor, rectified: bool) -> dict[str, Any]:
    """Seconds and residual of every way to the codes."""
    model = LCA(columns, sparsity=SPARSITY, rectified=rectified)
    model(x[:1])
    rows: dict[str, Any] = {"units": columns.shape[1], "rectified": rectified}

    def ours() -> Tensor:
        with torch.no_grad():
            return model(x)

    rows["ours"], code = timed(ours, 5)
    rows["ours residual"], rows["active"] = (
        missed(x, columns, code, rectified),
        float((code != 0).sum(1).double().mean()),
    )
    elements = np.ascontiguousarray(columns.T.numpy())
    rows["sparse_encode"], theirs = timed(
        lambda: sparse_encode(
            x.numpy(), elements, algorithm="lasso_cd", alpha=SPARSITY, positive=rectified, max_iter=100_000
        )
    )
    rows["sparse_encode residual"] = missed(x, columns, torch.as_tensor(theirs), rectified)
    rows["sparse_encode differs"] = float((torch.as_tensor(theirs) - code).abs().max())
    for power in range(8, 15):
        rows["lasso tol"] = 10.0**-power
        rows["lasso"], theirs = timed(lambda tol=10.0**-power: lasso(x, columns, rectified, tol), 1)
        rows["lasso residual"] = missed(x, columns, theirs, rectified)
        if rows["lasso residual"] <= TARGET:
            rows["lasso"] = min(rows["lasso"], timed(lambda tol=10.0**-power: lasso(x, columns, rectified, tol), 2)[0])
            break
    single, narrow = x.float(), columns.float()
    for steps in (75, 500):
        rows[f"euler {steps}"], a = timed(lambda steps=steps: euler(x, columns, rectified, steps), 2)
        rows[f"euler {steps} float32"], _ = timed(lambda steps=steps: euler(single, narrow, rectified, steps), 2)
        rows[f"euler {steps} residual"] = missed(x, columns, a, rectified)
        rows[f"euler {steps} off"] = off(a, code)
    return rows


def slopes(x: Tensor, columns: Tensor, rectified: bool) -> dict[str, Any]:
    """Seconds and MB of gradients, implicit and unrolled."""
    model, units = LCA(columns, sparsity=SPARSITY, rectified=rectified), columns.shape[1]
    steps = 100
    with torch.no_grad():
        while missed(x, columns, accelerated(x, columns, rectified, steps), rectified) > TARGET:
            steps = int(1.25 * steps)
    x = x[: max(8, min(len(x), int(MOST / (steps * units * 8 * 2))))]
    weight = torch.rand(x.shape[0], units, generator=Generator().manual_seed(1), dtype=x.dtype)
    gradient(model, x[:8], weight[:8])

    def unrolled(x: Tensor) -> Tensor:
        return accelerated(x, columns, rectified, steps)

    row: dict[str, Any] = {"gradient cases": len(x), "unrolled steps": steps}
    row["implicit"] = min(gradient(model, x, weight)[1] for _ in range(5))
    truth, _ = gradient(model, x, weight)
    found, row["unrolled"] = gradient(unrolled, x, weight)
    row["unrolled off"] = off(found, truth)
    row["implicit MB"], row["unrolled MB"] = stored(model, x, weight), stored(unrolled, x, weight)
    row["euler 75 gradient off"] = off(gradient(lambda x: euler(x, columns, rectified, 75), x, weight)[0], truth)
    return row


def random_dictionary() -> dict[str, float]:
    """The predecessor's settings on 64 x 128 random numbers: 75 steps beside a solution and its derivative."""
    global SPARSITY
    before, SPARSITY = SPARSITY, 0.1
    generator = Generator().manual_seed(0)
    columns = torch.randn(64, 128, generator=generator, dtype=torch.float64)
    columns, x = columns / columns.norm(dim=0), torch.randn(100, 64, generator=generator, dtype=torch.float64)
    model, weight = LCA(columns, sparsity=SPARSITY), torch.ones(100, 128).double()
    truth, _ = gradient(model, x, weight)
    short, _ = gradient(lambda x: euler(x, columns, True, 75), x, weight)
    v = torch.randn(100, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (model(x + s * v).square().sum(1) for s in (1e-6, -1e-6))
        row = {"response off": off(euler(x, columns, True, 75), model(x)), "gradient off": off(short, truth)}
    along = (truth * v).sum(1)
    row["ours residual"] = float(model.residual(x).max())
    row["ours gradient off"] = 100 * float((((ahead - behind) / 2e-6 - along) / along).abs().median())
    SPARSITY = before
    return row


def table(rows: list[dict[str, Any]]) -> None:
    print(
        "\n| units (active) | ours | sparse_encode | Lasso, tol for 1e-8 | 500 Euler steps (float32) | their error | 75: error |"
    )
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        t, kind = r["ours"], "rectified" if r["rectified"] else "signed"
        print(
            f"| {r['units']} {kind} ({r['active']:.0f}) | {t:.3f} s, {r['ours residual']:.0e} "
            f"| {r['sparse_encode']:.2f} s, {r['sparse_encode residual']:.0e}: **{r['sparse_encode'] / t:.1f}x** "
            f"| {r['lasso']:.2f} s, {r['lasso residual']:.0e}: **{r['lasso'] / t:.1f}x** "
            f"| {r['euler 500']:.2f} s, {r['euler 500 residual']:.0e}: **{r['euler 500'] / t:.0f}x** "
            f"({r['euler 500 float32'] / t:.0f}x) | {r['euler 500 off']:.2g} % | {r['euler 75 off']:.0f} % |"
        )
    print(
        "\n| units | cases | implicit: s, MB kept, MB at most | unrolled steps | s, MB kept, at most | ratios | off | 75 Euler |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        a, b, fast, slow = r["implicit MB"], r["unrolled MB"], r["implicit"], r["unrolled"]
        ratios = f"{slow / fast:.0f}x, {b['kept'] / a['kept']:.0f}x, {b['peak'] / max(a['peak'], 0.1):.0f}x"
        print(
            f"| {r['units']} {'rectified' if r['rectified'] else 'signed'} | {r['gradient cases']} "
            f"| {fast:.3f}, {a['kept']:.2g}, {a['peak']:.0f} | {r['unrolled steps']} "
            f"| {slow:.1f}, {b['kept']:.0f}, {b['peak']:.0f} | **{ratios}** "
            f"| {r['unrolled off']:.0e} % | {r['euler 75 gradient off']:.0f} % |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with natural_images/")
    parser.add_argument("--units", type=int, nargs="+", default=[512, 1024, 2560])
    parser.add_argument("--signed", action="store_true", help="activities of both signs as well")
    parser.add_argument("--quick", action="store_true", help="the smallest dictionary only")
    parser.add_argument("--steps", type=int, default=20, help="of learning the dictionaries")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
    found = load_pictures(options.data / "natural_images" / "olshausen_field_whitened.npz")
    every = patches([p / p.std() for p in found], SIZE, 20_000)
    x = every[:CASES].flatten(1).double()
    rows = []
    for units in sorted(options.units)[: 1 if options.quick else None]:
        columns = learn_dictionary(every[CASES:], units, sparsity=SPARSITY, steps=options.steps).double()
        columns = columns / columns.norm(dim=0)
        for rectified in (True, False) if options.signed else (True,):
            rows.append(codes(x, columns, rectified) | slopes(x, columns, rectified))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    table(rows)
    small = random_dictionary()
    print("\nRandom 64 x 128, rectified, sparsity 0.1, medians: " + ", ".join(f"{k} {v:.2g}" for k, v in small.items()))
    if options.out:
        options.out.write_text(json.dumps({"natural": rows, "random": small}, indent=1) + "\n")


if __name__ == "__main__":
    main()
