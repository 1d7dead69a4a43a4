"""Claims (b) and (k): bent contours turn the input towards the MEI, and the perturbation with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from isoresponse import plot
from isoresponse.paths import gradient_path
from isoresponse.studies.claims.findings import Finding, Values, averaged
from isoresponse.studies.claims.pairs import Pair, degrees, side_by_side
from isoresponse.studies.experiment import Claim, bootstrap
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Stage, silent

KNOTS = 6
TURN, STEPS = 0.1, 120  # accuracy of a step of the path, and steps at most: on kinks paths creep


@dataclass(frozen=True, eq=False)
class Turned:
    """Angles (case, knot) in degrees to the MEI, of the input and of the perturbation, while the response grows."""

    bent: Tensor
    straight: Tensor
    bent_change: Tensor
    straight_change: Tensor
    gained: Tensor  # (knot,), as a share of the gain
    group: Tensor


def walked(pair: Pair, *, knots: int = KNOTS) -> Turned:
    """Both neurons of a pair on their steepest paths; NaN behind the end of a path that ends early, in both."""
    angles = []
    for neuron in (pair.bent, pair.straight):
        path = gradient_path(neuron, pair.x, neuron.value(pair.x) + pair.gain, knots=knots, rtol=TURN, max_steps=STEPS)
        points = path.points.flatten(2)
        both = degrees(points, pair.axis), degrees(points - points[:, :1], pair.axis)
        angles.append([a.cpu() for a in both])
    lost = (angles[0][0] + angles[1][0]).isnan()
    (bent, bent_change), (straight, straight_change) = (
        [a.masked_fill(lost, float("nan")) for a in both] for both in angles
    )
    return Turned(
        bent, straight, bent_change, straight_change, bent.new_tensor(np.linspace(0, 1, knots)), pair.group.cpu()
    )  # fmt: skip


def turning(pairs: dict[str, Pair], *, seed: int = 0, stage: Stage = silent) -> tuple[Finding, Finding]:
    """Claim (b), of the input, and claim (k), of the perturbation, on pairs by name."""
    walks: dict[str, Turned] = {}
    with stage("b, k: steepest paths", len(pairs), "kind of pair") as on_done:
        for name, pair in pairs.items():
            walks[name] = walked(pair)
            on_done(1)
    inputs: dict[str, Claim] = {}
    changes: dict[str, Claim] = {}
    for name, walk in walks.items():
        for tests, bent, straight, what in (
            (inputs, walk.bent, walk.straight, "input"), (changes, walk.bent_change, walk.straight_change, "perturbation"),
        ):  # fmt: skip
            tests[name] = Claim(
                f"{name}: after the same gain the {what} is closer to the MEI where contours are bent",
                f"difference of the angles between {what} and MEI in degrees, bent less straight, mean over neurons",
                bootstrap(np.mean, averaged((bent - straight)[:, -1], walk.group), seed=seed), 0.0, "below",
            )  # fmt: skip
    values: Values = {
        f"b_{key}": (
            ("b_pair", "b_case", "b_knot"), side_by_side([getattr(w, key) for w in walks.values()]),
            {"units": "degree", "long_name": f"angle to the MEI along the path, {key.replace('_', ', ')}"},
        )
        for key in ("bent", "straight", "bent_change", "straight_change")
    }  # fmt: skip
    for_inputs = Finding(
        "b", "On its way up, the input comes to look like the neuron's most exciting input, and sooner where contours are bent.",
        "After the same gain in response along the steepest path, the angle between input and MEI is smaller for the neuron with "
        "bent contours than for its match with straight ones.",
        inputs, drawn(walks, "bent", "straight", "input"),
        "Angle between input and MEI while the response grows along the steepest path: median and quartiles.",
        values=values, notes=(_PAIRS,),
    )  # fmt: skip
    for_changes = Finding(
        "k", "The perturbation, too, is more aligned with the MEI where contours are bent.",
        "After the same gain the angle between perturbation (input less start) and MEI is smaller for the neuron with bent "
        "contours.",
        changes, drawn(walks, "bent_change", "straight_change", "perturbation"),
        "Angle between perturbation and MEI while the response grows along the steepest path: median and quartiles.",
        notes=(
            "A pointwise neuron's gradient is along its MEI everywhere, so its perturbation is aligned with the MEI perfectly "
            "and nothing can be more so. Bent contours pull the input to the MEI's axis, which takes a perturbation away from "
            "what the input was, not only along the MEI. Against a straight twin, whose gradient is that of the bent neuron "
            "at the start, the comparison is open.",
        ),
    )  # fmt: skip
    return for_inputs, for_changes


def drawn(walks: dict[str, Turned], bent: str, straight: str, what: str) -> Figure:
    """One panel per kind of pair: angle against gain."""
    figure = new_figure(3.8 * len(walks), 3.3)
    for ax, (name, walk) in zip(figure.subplots(1, len(walks), squeeze=False)[0], walks.items(), strict=True):
        gained = 100 * walk.gained.numpy()
        for key, color, dash, label in (
            (bent, plot.BLUE, "-", "bent"), (straight, plot.ORANGE, "--", "straight"),
        ):  # fmt: skip
            angle = getattr(walk, key).numpy()
            known = np.isfinite(angle).any(0)
            low, middle, high = np.nanquantile(angle[:, known], [0.25, 0.5, 0.75], axis=0)
            ax.plot(gained[known], middle, ls=dash, color=color, lw=2, label=label)
            ax.fill_between(gained[known], low, high, color=color, alpha=0.2, lw=0)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("response gained (% of the gain)")
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.set_ylabel(f"angle between {what} and MEI (degrees)")
        ax.legend(fontsize=8)
    return figure


_PAIRS = (
    "Toys agree in MEI and, along it, in response, gradient and spacing; they start from one input. A unit of sparse coding is "
    "compared with a pointwise unit of the same weight and threshold, and with its own twin, which has its response and gradient "
    "at the start and straight contours; for both the weight stands for the MEI."
)
