"""The report's certificate, where one can be had: certified bound, predicted interval and measured distance in one picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from isoresponse import plot
from isoresponse.calibration import calibrate
from isoresponse.certificates import Certificate, certify_decision
from isoresponse.loop import take
from isoresponse.prediction import Prediction
from isoresponse.predictors import FootPoints
from isoresponse.smooth import SmoothNet
from isoresponse.studies.figures import new_figure
from isoresponse.studies.measure import Study

LARGEST = 65_536  # numbers in a layer's matrix: beyond, a report would wait for minutes
COVERAGE = 0.9


def proof(study: Study) -> Certificate | None:
    """Certificates of the study's cases, or None where the model is not a small smooth network of known layers."""
    subject = study.subject
    try:
        net = SmoothNet.of(subject.module, tuple(study.x.shape[1:]))
    except ValueError:
        return None
    if max(w.numel() for w in net.weights) > LARGEST:
        return None
    return certify_decision(subject.module, study.x, study.labels, box=subject.classifier.box, radii=0)


def crossed(told: Prediction, measured: Tensor) -> Prediction:
    """The prediction with an interval for every case, learned from the cases of the other half; NaN where these are too few."""
    known = replace(told, distance=told.distance.clone(), low=told.low.clone(), high=told.high.clone())
    for half in (0, 1):
        here = torch.arange(len(told), device=measured.device) % 2 == half
        try:
            learned = calibrate(FootPoints(), take(told, ~here), measured[~here], coverage=COVERAGE)
        except ValueError:
            continue
        some = learned.refined(take(told, here))
        for name in ("distance", "low", "high"):
            getattr(known, name)[here] = getattr(some, name)
    return known


def proof_figure(study: Study, certificate: Certificate) -> tuple[Figure, dict[str, Any]]:
    """The picture, and its numbers for the summary."""
    told = crossed(study.predicted[max(study.predicted)], study.smallest)
    figure = new_figure(12.6, 4.4)
    for ax, relative in zip(figure.subplots(1, 2), (False, True), strict=True):
        plot.certified(ax, certificate, study.smallest, low=told.low, high=told.high, relative=relative)
    ratio = (certificate.lower / study.smallest)[torch.isfinite(study.smallest)]
    inside = (told.low <= study.smallest) & (study.smallest <= told.high)
    judged = torch.isfinite(told.low) & torch.isfinite(study.smallest)
    return figure, {
        "method": certificate.method, "certified": int((certificate.lower > 0).sum()),
        "contradicted": int(certificate.contradicted(study.smallest, 1e-5).sum()),
        "median_certified_over_measured": float(ratio.nanmedian()) if len(ratio) else float("nan"),
        "share_within_1_percent": float((ratio > 0.99).double().mean()) if len(ratio) else float("nan"),
        "interval_coverage": float(inside[judged].double().mean()) if bool(judged.any()) else float("nan"),
        "interval_cases": int(judged.sum()),
    }  # fmt: skip


PROOF_CAPTION = (
    "The true smallest perturbation of each case lies between the triangle, below which there provably is none, and the dot, "
    "which is an input with another decision. Triangles come from a bound on the network's Hessian over all inputs in the box. "
    "Bars: 90 % intervals of the prediction of tier 4, learned from the other half of the cases. Right: the same "
    "over the measured distance. A missing triangle says nothing about robustness."
)
