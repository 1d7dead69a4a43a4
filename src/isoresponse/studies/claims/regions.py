"""Claim (c): how many inputs raise a response, where contours are bent and where they are straight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from isoresponse import plot
from isoresponse.fraction import increasing_share
from isoresponse.loop import moved
from isoresponse.neuron import Box, Neuron
from isoresponse.studies.claims.findings import Finding, averaged
from isoresponse.studies.claims.pairs import axes_of, drive, side_by_side, uniform
from isoresponse.studies.claims.subjects import Networks, SparseUnits, twin
from isoresponse.studies.experiment import Claim, bootstrap
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent

CURVATURE = (0.5, 2.0)  # of the toys' contours, 1/input; the box is 2 wide
INNER = 0.5  # half-width of the part of the box that the toys' inputs lie in
AT_ONCE = 4_000_000  # numbers held at a time


@dataclass(frozen=True, eq=False)
class Shares:
    """Of the inputs looked at, the share (case,) that raises the response of two neurons of one response and gradient."""

    bent: Tensor
    straight: Tensor
    group: Tensor
    where: str

    @property
    def change(self) -> np.ndarray:
        """Bent less straight, mean per group."""
        return averaged(self.bent - self.straight, self.group)


def opposite(neuron: Neuron) -> Neuron:
    """The neuron with its sign turned: of a decision, what an adversary raises; without a box."""

    def response(x: Tensor, *given: Tensor) -> Tensor:
        return -neuron.response(x, *given)

    return replace(neuron, response=response, box=Box(), name=f"minus {neuron.name}")


def in_directions(
    neuron: Neuron, x: Tensor, level: Tensor, radius: Tensor, *, samples: int, generator: Generator
) -> Tensor:
    """Share (case,) of random directions in which the response is above `level` (case,) at `radius` (case,) from `x`.

    Directions come in opposite pairs, so that for straight contours and the response at `x` it is one half without error.
    """
    every = torch.arange(len(x), device=x.device)
    hits, done = torch.zeros(len(x), dtype=torch.float64, device=x.device), 0
    while done < samples // 2:
        count = min(samples // 2 - done, max(1, AT_ONCE // x.numel()))
        draw = torch.randn(len(x), count, x[0].numel(), generator=generator, dtype=x.dtype).to(x)
        way = radius[:, None, None] * draw / draw.norm(dim=2, keepdim=True)
        for sign in (1, -1):
            at = (x.flatten(1)[:, None] + sign * way).reshape(-1, *x.shape[1:])
            value = neuron.select(every.repeat_interleave(count)).value(at).reshape(len(x), count)
            hits += (value > level[:, None]).double().sum(1)
        done += count
    return hits / (2 * done)


def of_toys(
    count: int, n: int, samples: int, *, generator: Generator, curvature: tuple[float, float] = CURVATURE
) -> Shares:
    """Random directions through random inputs of a box: straight contours, and the same bent as the essay's figure 5 has them."""
    x = INNER * (2 * torch.rand(count, n, generator=generator, dtype=torch.float64) - 1)
    line = Neuron(drive, (n,), Box(-1.0, 1.0), "toy", (axes_of(count, n, generator),))
    bend = uniform(*curvature, count, generator)
    return _in_box(twin(line, x, curvature=bend), twin(line, x), x, torch.arange(count), samples, generator)


def of_units(units: SparseUnits, samples: int, *, generator: Generator) -> Shares:
    """Units of sparse coding against their straight twins, in the box of the patches' pixels."""
    neuron = units.sparse()
    return _in_box(neuron, twin(neuron, units.x), units.x, units.unit, samples, generator)


def of_networks(
    nets: Networks, distance: dict[str, Tensor], samples: int, *, generator: Generator, stage: Stage = silent
) -> dict[str, Shares]:
    """Score of the best other class less that of the label: directions in which it rises, as far away as the boundary is."""
    found = {}
    with stage("c: directions that raise", len(nets.of), "network") as on_done:
        for name, classifier in nets.of.items():
            known = distance[name].isfinite()
            x, radius = nets.x[known], distance[name][known]
            neuron = opposite(classifier.decision(nets.labels[known]))
            level, seed = neuron.value(x), generator.initial_seed()
            bent, straight = (
                in_directions(f, x, level, radius, samples=samples, generator=Generator().manual_seed(seed))
                for f in (neuron, twin(neuron, x))
            )
            group, where = torch.arange(len(x)), "random directions, as far as the boundary"
            found[name] = moved(Shares(bent, straight, group, where), "cpu")
            on_done(1)
    return found


def fewer_inputs(shares: dict[str, Shares], *, seed: int = 0) -> Finding:
    """Claim (c) from shares by subject."""
    tests = {
        name: Claim(
            f"{name}: fewer inputs raise the response than if contours were straight ({s.where})",
            "share of inputs with a response above that of the starting input, bent less straight at equal response and "
            "gradient; mean over neurons or images", bootstrap(np.mean, s.change, seed=seed), 0.0, "below",
        )
        for name, s in shares.items()
    }  # fmt: skip
    return Finding(
        "c", "Bent contours reduce the share of inputs that increase the response.",
        "At equal response and gradient, the share of inputs with a higher response is below that of straight contours.",
        tests, _drawn(shares),
        "Share of inputs that raise the response, for every case: as contours are, against straight ones of the same response "
        "and gradient. Below the diagonal the bending leaves the adversary fewer inputs.",
        values={
            f"c_{key}": (
                ("c_subject", "c_case"), side_by_side([getattr(s, key) for s in shares.values()]),
                {"units": "1", "long_name": f"share of inputs that raise the response, {key} contours"},
            )
            for key in ("bent", "straight")
        },
        notes=(
            "“Any amount of bending” holds for contours that bend outward. Bent inward they give the adversary more inputs. "
            "A decision against several other classes is bent inward where their boundaries meet, however straight each is.",
        ),
    )  # fmt: skip


def _in_box(bent: Neuron, straight: Neuron, x: Tensor, group: Tensor, samples: int, generator: Generator) -> Shares:
    seed = generator.initial_seed()
    one, other = (
        increasing_share(f, x, samples=samples, generator=Generator().manual_seed(seed)).share for f in (bent, straight)
    )
    return moved(Shares(one, other, group, "of the box of allowed inputs"), "cpu")


def _drawn(shares: dict[str, Shares]) -> Figure:
    figure = new_figure(3.0 * min(4, len(shares)), 3.0 * -(-len(shares) // 4))
    axes = figure.subplots(-(-len(shares) // 4), min(4, len(shares)), squeeze=False).ravel()
    for ax in axes[len(shares) :]:
        ax.set_visible(False)
    for ax, (name, s) in zip(axes, shares.items(), strict=False):
        bent, straight = 100 * s.bent.numpy(), 100 * s.straight.numpy()
        if np.ptp(straight) < 5:  # straight contours leave one half
            ax.hist(bent, bins=20, color=plot.BLUE)
            ax.axvline(float(np.median(straight)), color=plot.INK, ls="--", lw=1)
            ax.set_ylabel("cases")
            ax.set_xlabel("bent: share of inputs (%)")
        else:
            ax.plot([0, 100], [0, 100], "--", color=plot.INK, lw=1)
            ax.plot(straight, bent, "o", ms=4, color=plot.BLUE, mec=plot.INK, mew=0.4)
            ax.set_xlabel("straight: share of inputs (%)")
            ax.set_ylabel("bent: share of inputs (%)")
        ax.set_title(name, fontsize=10)
    return figure
