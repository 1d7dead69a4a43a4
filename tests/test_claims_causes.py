"""Claim (f): what the shares of spacing and curvature say, and what turns them round."""

from __future__ import annotations

import torch
from torch import Generator

from isoresponse.classifier import Classifier
from isoresponse.studies.claims.causes import causes, factors, part_of
from isoresponse.studies.claims.findings import DEPENDS, SUPPORTED
from isoresponse.studies.claims.subjects import Networks
from isoresponse.studies.experiment import FAILS, HOLDS, OPEN


def subject(steepness: float, bend: float, cases: int = 60) -> tuple[Networks, torch.Tensor]:
    """Two classes on both sides of x0 = bend x2^2: responses grow with x1, so that spacing varies; distances to the boundary."""

    def scores(x: torch.Tensor) -> torch.Tensor:
        side = torch.exp(steepness * x[:, 1]) * (x[:, 0] - bend * x[:, 2].square())
        return torch.stack([-side, side], 1)

    x = torch.randn(cases, 3, generator=Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] = (x[:, 0].abs() + 0.2).log()  # where the boundary is far, contours are far apart, if steepness is negative
    x[:, 0] = x[:, 0].abs() + 0.2 + bend * x[:, 2].square()
    made = Classifier(scores, (3,), 2, name="toy")
    nets = Networks({"toy": made}, x, torch.ones(cases, dtype=torch.int64), "toy", {})
    return nets, made.closest_adversary(x, nets.labels, budget=60).distance


def verdicts(nets: Networks, far: torch.Tensor) -> dict[str, str]:
    return {name: test.verdict for name, test in causes(factors(nets, {"toy": far}), resamples=25).tests.items()}


def test_spacing_and_curvature_are_parts_where_they_vary():
    nets, far = subject(-0.5, 0.4)
    found = causes(factors(nets, {"toy": far}), resamples=25)
    assert found.tests["toy"].verdict == HOLDS
    assert found.tests["spacing is a part of it"].verdict == HOLDS
    assert found.verdict in (SUPPORTED, DEPENDS)  # whichever part curvature plays here, it is told
    assert "gap" in found.notes[0]


def test_straight_and_equally_spaced_contours_leave_all_to_the_gap():
    told = verdicts(*subject(0.0, 0.0))
    assert told == {"toy": HOLDS, "spacing is a part of it": FAILS, "curvature is a part of it": FAILS}


def test_distances_of_other_inputs_are_not_explained():
    nets, far = subject(0.5, 0.4)
    assert verdicts(nets, far.flip(0))["toy"] == FAILS


def test_noise_and_few_cases_decide_nothing():
    nets, far = subject(0.0, 0.0)
    noise = torch.randn(len(far), generator=Generator().manual_seed(2), dtype=torch.float64)
    assert verdicts(nets, far * (0.23 * noise).exp())["toy"] == OPEN
    few = nets.some(15)
    assert set(verdicts(few, far[:15]).values()) == {OPEN}
    assert part_of(factors(few, {"toy": far[:15]})["toy"], ("gap",), resamples=4).count == 15
