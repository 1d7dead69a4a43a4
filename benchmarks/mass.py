"""The mass of Gaussian noise beyond a level: predictions and estimates against the truth, and what they cost.

    python benchmarks/mass.py [--data ../shared/data] [--cases 12] [--seed 0] [--out FOLDER]

First the analytic zoo, in 10 to 100 dimensions, each question at probabilities from 1e-2 to 1e-9: the truth is a closed form or
a one-dimensional integral. Where OpenTURNS can be imported its own SORM is asked the same (referee of the formulas). Then
fractions of directions. With `--data` (a folder with `mnist/`), networks of `zoo.py`, at noise of 1/2.5, 1/4.5 and 1/6 of the
distance to the closest boundary: the reference there is line sampling with 3,000 lines, held against plain sampling where that
can see anything. Costs are forward passes per case, those inside gradients included; a Hessian product counts as two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats as stats
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Generator, Tensor

from isoresponse.chords import chord_jet
from isoresponse.fraction import adversarial_fraction
from isoresponse.geometry import principal_curvatures
from isoresponse.jets import exact_jet
from isoresponse.lines import line_mass
from isoresponse.mass import predicted_mass
from isoresponse.neuron import Neuron
from isoresponse.noise import Mass, sampled_mass
from isoresponse.solve import closest_point
from isoresponse.subset import subset_mass

FORMULAS = ("first_order", "breitung", "hohenbichler_rackwitz", "tvedt", "paraboloid")
TARGETS = (1e-2, 1e-4, 1e-6, 1e-9)
NETWORKS = ("mnist-gelu", "mnist-mlp")
RADII = (2.5, 4.5, 6.0)  # distances of the boundary over the noise's standard deviation
RANK, KRYLOV = 4, 24  # curvatures that lines in a network know, and products they are told from


@dataclass(frozen=True)
class Question:
    """One neuron, start and level in `n` dimensions, and the true mass as a function of sigma."""

    name: str
    n: int
    neuron: Neuron
    x: Tensor
    level: float
    truth: Callable[[float], float]

    def sigma(self, target: float) -> float | None:
        """The smallest noise that takes `target` across; None where none below the distance does (strong bending)."""
        grid = np.geomspace(0.04, 1.0, 100)
        off = [np.log(max(self.truth(s), 1e-300) / target) for s in grid]
        first = next((k for k in range(1, len(grid)) if off[k - 1] < 0 <= off[k]), None)
        if first is None:
            return None
        return float(brentq(lambda s: np.log(max(self.truth(s), 1e-300) / target), grid[first - 1], grid[first]))


def questions() -> Iterator[Question]:
    """All at distance 1."""
    for n in (10, 100):
        start = torch.zeros(1, n, dtype=torch.float64)
        yield Question("linear", n, Neuron(lambda x: x[:, 0], (n,)), start, 1.0, lambda s: stats.norm.sf(1 / s))
    for n in (10, 50):
        start = torch.zeros(1, n, dtype=torch.float64)
        start[:, 0] = 3.0
        ball = Neuron(lambda x: -x.square().sum(1).sqrt(), (n,))
        yield Question("ball, from outside", n, ball, start, -2.0, partial(_inside, n, 2.0, 3.0))
        near = start.clone()
        near[:, 0] = 1.0
        yield Question("ball, from inside", n, ball, near, -2.0, partial(_outside, n, 2.0, 1.0))
    for n in (10, 30, 100):
        for curvature in (1.0, 0.2, -0.1):
            start = torch.zeros(1, n, dtype=torch.float64)
            bowl = Neuron(lambda x, k=curvature: x[:, 0] - 0.5 * k * x[:, 1:].square().sum(1), (n,))
            yield Question(f"paraboloid {curvature:+.1f}", n, bowl, start, 1.0, partial(_paraboloid, n, curvature))


def _inside(n: int, radius: float, away: float, s: float) -> float:
    return float(stats.ncx2.cdf((radius / s) ** 2, n, (away / s) ** 2))


def _outside(n: int, radius: float, away: float, s: float) -> float:
    return float(stats.ncx2.sf((radius / s) ** 2, n, (away / s) ** 2))


def _paraboloid(n: int, curvature: float, s: float) -> float:
    def inside(t: float) -> float:
        return stats.norm.sf(1 / s + 0.5 * curvature * s * t) * stats.chi2.pdf(t, n - 1)

    most = float(stats.chi2.isf(1e-14, n - 1)) * (1 + 4 * abs(curvature))
    return float(quad(inside, 0, most, epsabs=0, epsrel=1e-9, limit=500, points=[n - 1])[0])


def openturns_formulas(q: Question, sigma: float) -> dict[str, float] | None:
    """Breitung, Hohenbichler and Rackwitz, Tvedt as OpenTURNS has them; None where it is not installed, or does not finish."""
    try:
        import openturns as ot
    except ImportError:
        return None

    def response(z: Any) -> list[float]:
        at = q.x + sigma * torch.tensor([list(z)], dtype=torch.float64)
        return [float(q.neuron.value(at)[0])]

    law = ot.Normal(q.n)
    output = ot.CompositeRandomVector(ot.PythonFunction(q.n, 1, response), ot.RandomVector(law))
    event = ot.ThresholdEvent(output, ot.Greater() if q.level > float(q.neuron.value(q.x)[0]) else ot.Less(), q.level)
    solver = ot.SQP()
    solver.setStartingPoint(0.01 * np.ones(q.n))
    for tell in ("AbsoluteError", "RelativeError", "ResidualError", "ConstraintError"):
        getattr(solver, f"setMaximum{tell}")(1e-7)
    try:
        sorm = ot.SORM(solver, event, law.getMean()) if _takes_point(ot) else ot.SORM(solver, event)
        sorm.run()
        found = sorm.getResult()
        return {
            "breitung": found.getEventProbabilityBreitung(),
            "hohenbichler_rackwitz": found.getEventProbabilityHohenbichler(),
            "tvedt": found.getEventProbabilityTvedt(),
        }
    except (RuntimeError, TypeError, ValueError) as error:
        return {"error": str(error).splitlines()[0]}  # type: ignore[dict-item]


def _takes_point(ot: Any) -> bool:
    return tuple(int(v) for v in ot.__version__.split(".")[:2]) < (1, 22)


def analytic(seed: int) -> list[dict[str, Any]]:
    rows = []
    print("\nanalytic zoo: value over truth (1 is right); standard errors in per cent; forward passes")
    head = f"{'':20s}{'n':>4s} {'truth':>9s}"
    print(
        f"{head} {'flat':>8s} {'Breit.':>7s} {'H-R':>7s} {'Tvedt':>7s} {'parab.':>7s} | {'lines':>7s} {'+-%':>5s} {'fw':>5s}",
        end="",
    )
    print(f" | {'subset':>7s} {'+-%':>5s} {'fw':>6s} | OpenTURNS: Breit., H-R, Tvedt over ours")
    for q in questions():
        design = closest_point(q.neuron, q.x, q.level)
        # the curvatures of what lies beyond: their sign turns where the level is below
        sign = 1.0 if q.level > float(q.neuron.value(q.x)[0]) else -1.0
        bent, told = None, 0
        if not q.name.startswith("linear"):
            found = principal_curvatures(
                exact_jet(q.neuron, design.point), q.n - 1, generator=Generator().manual_seed(seed)
            )
            bent, told = (sign * found.values, found.directions), 2 * int(found.products[0])
        for target in TARGETS:
            sigma = q.sigma(target)
            if sigma is None:
                continue
            truth = q.truth(sigma)
            generator = Generator().manual_seed(1000 * seed + len(rows))  # its own luck for every question
            ask = (q.neuron, q.x, q.level, sigma)
            guess = predicted_mass(*ask, jet=_quiet(q), design=design, generator=generator)
            lines = line_mass(*ask, design=design, curvatures=bent, generator=generator)
            climbed = subset_mass(*ask, generator=generator)
            row = {"question": q.name, "n": q.n, "truth": truth, "sigma": sigma}
            row |= {name: float(getattr(guess, name)[0]) / truth for name in FORMULAS}
            for name, m, more in (("lines", lines, told), ("subset", climbed, 0)):
                row[name] = float(m.probability[0]) / truth
                row[f"{name} error"] = float(m.standard_error[0]) / truth
                row[f"{name} forwards"] = int(m.forwards[0]) + more
            referee = openturns_formulas(q, sigma) if q.n == 10 else None
            row["openturns"] = referee
            rows.append(row)
            print(f"{q.name:20s}{q.n:4d} {truth:9.2e} {row['first_order']:8.3g}", end="")
            print("".join(f" {row[name]:7.3f}" for name in FORMULAS[1:]), end=" | ")
            print(f"{row['lines']:7.3f} {100 * row['lines error']:5.1f} {row['lines forwards']:5d}", end=" | ")
            print(f"{row['subset']:7.3f} {100 * row['subset error']:5.0f} {row['subset forwards']:6d} | ", end="")
            if referee is None or "error" in referee:
                print("" if referee is None else referee["error"])
            else:
                print(", ".join(f"{p / (row[name] * truth):.4f}" for name, p in referee.items()))
    for least, what in ((0.9e-6, "down to 1e-6"), (0.9e-9, "down to 1e-9")):
        off = [abs(row["lines"] - 1) for row in rows if row["truth"] > least]
        spent = max(row["lines forwards"] for row in rows if row["truth"] > least)
        print(
            f"lines {what}: {len(off)} questions, worst {100 * max(off):.1f} % from the truth, at most {spent} forward passes"
        )
    return rows


def _quiet(q: Question) -> Callable[[Neuron, Tensor], Any]:
    """The exact jet; chords where it is known to be zero, which a warning would say for every linear question."""
    return partial(chord_jet, scale=1.0, pairs=0, generator=Generator()) if q.name.startswith("linear") else exact_jet


def fractions(seed: int) -> list[dict[str, Any]]:
    """Random directions on random quadratics, whose Hessian couples normal and tangents."""
    rows, n = [], 200
    generator = Generator().manual_seed(seed)
    hessian = torch.randn(n, n, generator=generator, dtype=torch.float64)
    print("\nfraction of directions, random quadratics in 200 dimensions: gradient 1, level 1")
    print(
        f"{'bending':>8s} {'radius':>7s} {'flat':>9s} {'moments':>9s} {'predicted':>10s} {'measured':>10s} {'+-':>8s}"
    )
    for mean, spread in ((0.0, 1.0), (0.05, 1.0), (-0.05, 1.0), (-0.05, 0.2)):
        matrix = 0.5 * spread * (hessian + hessian.T) / n**0.5 + mean * torch.eye(n, dtype=torch.float64)
        f = Neuron(lambda x, h=matrix: x[:, 0] + 0.5 * ((x @ h) * x).sum(1), (n,))
        x, radius = torch.zeros(3, n, dtype=torch.float64), torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64)
        counted = adversarial_fraction(f, x, 1.0, radius, samples=50_000, generator=generator)
        climbed = adversarial_fraction(f, x, 1.0, radius, samples=2000, rare=True, generator=generator)
        for i in range(3):
            found = counted if counted.measured[i] > 1e-3 else climbed
            row = {"mean": mean, "spread": spread, "radius": float(radius[i])}
            row |= {
                k: float(getattr(found, k)[i])
                for k in ("first_order", "moments", "predicted", "measured", "measured_error")
            }
            rows.append(row)
            print(
                f"{mean:+.2f},{spread:.1f} {row['radius']:7.1f} {row['first_order']:9.2e} {row['moments']:9.2e} ",
                end="",
            )
            print(f"{row['predicted']:10.3e} {row['measured']:10.3e} {row['measured_error']:8.1e}")
    return rows


def networks(folder: Path, cases: int, seed: int) -> list[dict[str, Any]]:
    import zoo

    from isoresponse import Classifier

    rows = []
    print("\nnetworks: nearest margin, value over reference; medians over cases, and the worst case")
    head = (
        f"{'':12s}{'d/sigma':>8s} {'median p':>9s} {'flat':>6s} {'Breit.':>7s} {'parab.':>7s} {'worst':>6s} {'+-%':>4s}"
    )
    print(f"{head} {'fw':>5s} | {'lines':>6s} {'worst':>6s} {'+-%':>5s} {'within 20 %':>11s} {'fw':>5s} | ", end="")
    print(f"{'subset':>7s} {'+-%':>4s} | reference +-%, plain")
    for name in NETWORKS:
        net, images, labels = zoo.load(name, folder)
        right = torch.nonzero(net(images[:200]).argmax(1) == labels[:200]).flatten()[:cases]
        x, labels = images[right], labels[right]
        classifier = Classifier.of(net, shape=tuple(x.shape[1:]))
        adversary = classifier.closest_adversary(x, labels)
        scores = net(torch.nan_to_num(adversary.point)).scatter(1, labels[:, None], -torch.inf)
        margin = classifier.margin(labels, scores.argmax(1))
        n = x[0].numel()
        design = closest_point(margin, x, 0.0, budget=30)
        for ratio in RADII:
            sigma = design.distance / ratio
            ask = (margin, x, 0.0, sigma)

            def draw(k: int) -> Generator:
                return Generator().manual_seed(seed + k)

            reference = line_mass(*ask, lines=3000, pilot=256, design=design, generator=draw(1))
            jet = partial(chord_jet, scale=sigma * n**0.5, pairs=32, generator=draw(2))
            guess = predicted_mass(*ask, jet=jet, probes=40, steps=3, design=design, generator=draw(3))
            near = chord_jet(margin, design.point, scale=2 * sigma, pairs=0, generator=draw(4))
            bent = principal_curvatures(near, RANK, rtol=0.1, max_steps=KRYLOV, generator=draw(5))
            lines = line_mass(*ask, design=design, curvatures=(-bent.values, bent.directions), generator=draw(6))
            more = 2 * bent.products + 9
            climbed = subset_mass(*ask, samples=1000, generator=draw(7))
            plain = sampled_mass(*ask, samples=20_000, generator=draw(8)) if ratio < 3 else None
            row = summarise(name, ratio, reference, guess, lines, more, climbed, plain)
            rows.append(row)
            print(
                f"{name:12s}{ratio:8.1f} {row['median p']:9.2e} {row['first_order']:6.2f} {row['breitung']:7.3f}",
                end="",
            )
            print(f" {row['paraboloid']:7.3f} {row['paraboloid worst']:6.2f} {row['paraboloid error']:4.0f} ", end="")
            print(f"{row['guess forwards']:5.0f}", end=" | ")
            print(
                f"{row['lines']:6.3f} {row['lines worst']:6.2f} {row['lines error']:5.1f} {row['lines within']:8d}/{len(x)}",
                end=" ",
            )
            print(
                f"{row['lines forwards']:5.0f} | {row['subset']:7.3f} {row['subset error']:4.0f} | {row['reference error']:.1f}",
                end="",
            )
            print("" if plain is None else f", {row['plain']:.3f} +- {row['plain error']:.3f} (mean over cases)")
    return rows


def summarise(
    name: str, ratio: float, reference: Mass, guess: Any, lines: Mass, more: Tensor, climbed: Mass, plain: Mass | None
) -> dict[str, Any]:
    p = reference.probability

    def worst(q: Tensor) -> float:
        off = (q / p).log()
        return float((q / p)[off.abs().argmax()])

    row: dict[str, Any] = {"network": name, "ratio": ratio, "cases": len(p), "median p": float(p.median())}
    row |= {key: float((getattr(guess, key) / p).median()) for key in FORMULAS}
    row["paraboloid worst"] = worst(guess.paraboloid)
    row["paraboloid error"] = 100 * float((guess.standard_error / guess.paraboloid).median())
    row["guess forwards"] = float(guess.forwards.double().mean()) + 2 * 32 + 9  # what making the jet took
    row["lines"], row["lines worst"] = float((lines.probability / p).median()), worst(lines.probability)
    row["lines error"] = 100 * float((lines.standard_error / lines.probability).median())
    row["lines within"] = int(((lines.probability / p - 1).abs() < 0.2).sum())
    row["lines forwards"] = float((lines.forwards + more).double().mean())
    row["subset"] = float((climbed.probability / p).median())
    row["subset error"] = 100 * float((climbed.standard_error / climbed.probability).median())
    row["reference error"] = 100 * float((reference.standard_error / p).median())
    row["each"] = {
        "reference": p.tolist(),
        "lines": lines.probability.tolist(),
        "paraboloid": guess.paraboloid.tolist(),
    }
    if plain is not None:
        row["plain"] = float((plain.probability / p).mean())
        row["plain error"] = float((plain.standard_error / p).square().mean().sqrt() / len(p) ** 0.5)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with mnist/; networks are left out without it")
    parser.add_argument("--cases", type=int, default=12, help="images per network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for mass.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    told = {"analytic": analytic(options.seed), "fractions": fractions(options.seed)}
    if options.data is not None:
        told["networks"] = networks(options.data, options.cases, options.seed)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mass.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
