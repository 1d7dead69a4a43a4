"""The study behind a report: the same inputs predicted from geometry and measured by two independent attacks, and alarms
that say whether the model hides its gradient from both.

`measure` computes, `summary` says it in numbers with their intervals, `dataset` keeps every case. Nothing here
draws or writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.stats
import torch
import xarray as xr
from torch import Tensor

from isoresponse.attacks import foolbox_module, from_foolbox
from isoresponse.checks import NeuronCheck, check_neuron
from isoresponse.classifier import OnCases
from isoresponse.crossing import Solution
from isoresponse.loop import Status, count_statuses, join, take
from isoresponse.masking import Alarm, MaskingReport, masking_alarms
from isoresponse.prediction import Prediction
from isoresponse.records import to_dataset, versions
from isoresponse.studies.sizes import perturbation_sizes
from isoresponse.studies.subject import Subject
from isoresponse.susceptibility import Comparison, compare

TIERS = (0, 1, 3, 4)  # of the predictions that are made
OURS, THEIRS = "closest_adversary", "foolbox_ddn"
RESAMPLES = 500
AGREEMENT = ("spearman", "kendall", "r2", "median_abs_log_error", "bias")


@runtime_checkable
class Stage(Protocol):
    """What shows the progress of one stage of the work: told how many of `total` are done as they are."""

    def __call__(self, title: str, total: int, unit: str = "case") -> AbstractContextManager[OnCases]:
        """A context whose value is called with the number just finished."""
        ...


@dataclass(frozen=True)
class Settings:
    """What can be chosen: how many correctly classified cases, the seed that picks them, and the referee's steps."""

    cases: int = 200
    seed: int = 0
    referee_steps: int = 1000
    batch_size: int = 100

    def __post_init__(self) -> None:
        for name in ("cases", "referee_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True, eq=False)
class Study:
    """Everything measured and predicted for the chosen cases of one subject."""

    subject: Subject
    settings: Settings
    index: Tensor  # (case,) positions of the cases in the data
    x: Tensor
    labels: Tensor
    accuracy: float
    check: NeuronCheck
    measured: dict[str, Solution] = field(default_factory=dict)
    predicted: dict[int, Prediction] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    masking: MaskingReport | None = None

    @property
    def smallest(self) -> Tensor:
        """The smallest measured distance of every case (case,) over all attacks; NaN where all failed."""
        every = torch.stack([torch.nan_to_num(s.distance, nan=torch.inf) for s in self.measured.values()])
        best = every.amin(0)
        return best.masked_fill(torch.isinf(best), float("nan"))

    @property
    def adversarial(self) -> Tensor:
        """The adversarial input (case, *shape) that belongs to `smallest`."""
        every = torch.stack([torch.nan_to_num(s.distance, nan=torch.inf) for s in self.measured.values()])
        points = torch.stack([s.point for s in self.measured.values()])
        return points[every.argmin(0), torch.arange(len(self.x), device=self.x.device)]


@contextmanager
def silent(title: str, total: int, unit: str = "case") -> Iterator[OnCases]:
    """A `Stage` that reports nothing."""
    yield lambda _cases: None


def measure(subject: Subject, settings: Settings, *, stage: Stage = silent) -> Study:
    """Predict and measure the distance to the decision boundary for correctly classified inputs of `subject`.

    Raises
    ------
    ValueError
        No input is classified as labelled, or the model breaks the contract that `check_neuron` states.
    """
    classifier = subject.classifier
    verdicts = []
    with stage("classify", len(subject.labels)) as on_cases:
        for a, b in zip(subject.images.split(500), subject.labels.split(500), strict=True):
            verdicts.append(classifier.predict(a) == b)
            on_cases(len(a))
    right = torch.cat(verdicts)
    if not bool(right.any()):
        raise ValueError(
            f"{subject.model_name} classifies none of the {len(right)} inputs as labelled, so there is no decision to study; "
            "are the labels, the range of the inputs or their normalisation right?"
        )
    correct = torch.nonzero(right).flatten().cpu()
    order = torch.randperm(len(correct), generator=torch.Generator().manual_seed(settings.seed))
    index = correct[order[: settings.cases]].to(subject.images.device)
    x, labels = subject.images[index], subject.labels[index]
    some = slice(0, min(len(x), 32))
    check = check_neuron(
        classifier.decision(labels[some]), x[some], generator=torch.Generator().manual_seed(settings.seed)
    )
    study = Study(subject, settings, index, x, labels, float(right.double().mean()), check)
    for tier in TIERS:
        with _timed(study, f"tier{tier}"), stage(f"predict, tier {tier}", len(x)) as on_cases:
            study.predicted[tier] = classifier.predict_distance(
                x, labels, predictor=tier, batch_size=settings.batch_size, on_cases=on_cases
            )
    with _timed(study, OURS), stage("measure, closest adversary", len(x)) as on_cases:
        study.measured[OURS] = classifier.closest_adversary(
            x, labels, batch_size=settings.batch_size, on_cases=on_cases
        )
    study = replace(study, masking=_masking(study, stage))
    _referee(study, stage)
    return study


def _masking(study: Study, stage: Stage) -> MaskingReport:
    """Whether our own measurements can be believed; a batch of cases at a time, as in the rest of the study."""
    answer, reports = study.measured[OURS], []
    generator = torch.Generator().manual_seed(study.settings.seed)
    every = torch.arange(len(study.x), device=study.x.device)
    with _timed(study, "masking"), stage("look for hidden gradients", len(study.x)) as on_cases:
        # of equal size: each needs inputs of several classes
        for some in every.tensor_split(math.ceil(len(every) / study.settings.batch_size)):
            x, labels = study.x[some], study.labels[some]
            reports.append(masking_alarms(study.subject.classifier, x, labels, take(answer, some), generator=generator))
            on_cases(len(some))
    alarms = tuple(join(list(same)) for same in zip(*(r.alarms for r in reports), strict=True))
    forwards, gradients = (
        sum(getattr(r, n) * len(r.smallest) for r in reports) / len(every) for n in ("forwards", "gradients")
    )
    return replace(join(reports), alarms=alarms, forwards=forwards, gradients=gradients)


def _referee(study: Study, stage: Stage) -> None:
    """An independent, published attack on the same cases; its absence is said, not hidden."""
    try:
        foolbox = foolbox_module()
    except ImportError as error:
        study.left_out[THEIRS] = str(error)
        return
    attack = from_foolbox(foolbox.attacks.DDNAttack(steps=study.settings.referee_steps))
    size = study.settings.batch_size
    parts = []
    try:
        with (
            _timed(study, THEIRS),
            stage(f"measure, foolbox DDN × {study.settings.referee_steps}", len(study.x)) as on_cases,
        ):
            for a, b in zip(study.x.split(size), study.labels.split(size), strict=True):
                parts.append(attack.on_decision(study.subject.classifier, a, b))
                on_cases(len(a))
    except (ValueError, RuntimeError) as error:
        study.left_out[THEIRS] = (
            f"it cannot run on this model ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        )
        return
    study.measured[THEIRS] = join(parts)


@contextmanager
def _timed(study: Study, what: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    if study.x.is_cuda:
        torch.cuda.synchronize(study.x.device)
    study.seconds[what] = time.perf_counter() - begin


def comparisons(study: Study) -> dict[int, Comparison]:
    """Agreement of each tier's prediction with the smallest measured distance."""
    return {k: compare(p.distance, study.smallest) for k, p in study.predicted.items()}


def intervals(predicted: Tensor, measured: Tensor, *, seed: int, resamples: int = RESAMPLES) -> dict[str, list[float]]:
    """95 % bootstrap intervals (percentile, over cases) of the agreement of predicted with measured distances."""
    both = torch.isfinite(predicted) & torch.isfinite(measured)
    told, found = predicted[both].cpu(), measured[both].cpu()
    if len(told) < 10:
        return {name: [float("nan"), float("nan")] for name in AGREEMENT}
    draws = torch.randint(len(told), (resamples, len(told)), generator=torch.Generator().manual_seed(seed))
    again = [compare(told[draw], found[draw]) for draw in draws]
    return {n: _middle([getattr(c, n) for c in again]) for n in AGREEMENT}


def _middle(values: list[float]) -> list[float]:
    """Between which 95 % of them lie; NaN where none is a number, as for the ranks of predictions that are all equal."""
    numbers = np.asarray([v for v in values if v == v])
    return np.quantile(numbers, [0.025, 0.975]).tolist() if len(numbers) else [float("nan"), float("nan")]


def summary(study: Study) -> dict[str, Any]:
    """The study in numbers: plain values only, NaN where there is no answer."""
    agreement = comparisons(study)
    sizes = perturbation_sizes(study.subject.classifier, study.x, study.adversarial, study.labels)
    found = torch.isfinite(study.smallest)
    reference = study.smallest
    return {
        "model": study.subject.model_name,
        "data": study.subject.data_name,
        "cases": len(study.x),
        "seed": study.settings.seed,
        "accuracy": study.accuracy,
        "measured": {name: _attack_summary(s, study.seconds[name], reference) for name, s in study.measured.items()},
        "prediction": {
            f"tier{k}": {
                **asdict(c),
                "gradients_per_case": _mean(study.predicted[k].gradients),
                "forwards_per_case": _mean(study.predicted[k].forwards),
                "seconds": study.seconds[f"tier{k}"], "statuses": count_statuses(study.predicted[k].status),
                "interval95": intervals(study.predicted[k].distance, reference, seed=study.settings.seed),
            }
            for k, c in agreement.items()
        },
        "perturbation": {
            "median_rms": _median(sizes.rms), "median_grey_levels": _median(sizes.grey_levels),
            "survives_8bit": float(sizes.survives_8bit[found].double().mean()) if bool(found.any()) else float("nan"),
        },
        "masking": None if study.masking is None else _masking_summary(study.masking, study.seconds["masking"]),
        "left_out": study.left_out,
        "notes": [*study.check.notes, *score_notes(study)],
        "versions": versions(),
    }  # fmt: skip


def score_notes(study: Study) -> list[str]:
    """What the scores themselves say against being measured: probabilities saturate where logits do not."""
    with torch.no_grad():
        scores = study.subject.classifier.logits(study.x)
    if bool(((scores >= 0) & (scores <= 1)).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all()):
        return [
            "the scores are probabilities: they saturate, so that slopes vanish and predictions from them fail; give the "
            "model without its softmax."
        ]
    return []


def _attack_summary(solution: Solution, seconds: float, reference: Tensor) -> dict[str, Any]:
    won = int(solution.success.sum())
    interval = scipy.stats.binomtest(won, len(solution)).proportion_ci(method="wilson")
    ratio = (solution.distance / reference)[solution.success]
    return {
        "success": won / len(solution),
        "success_interval95": [interval.low, interval.high],
        "mean_l2": _mean(solution.distance[solution.success]),
        "median_l2": _median(solution.distance),
        "mean_ratio_to_smallest": _mean(ratio),
        "gradients_per_case": _mean(solution.gradients),
        "forwards_per_case": _mean(solution.forwards),
        "seconds": seconds,
        "statuses": count_statuses(solution.status),
    }


def _masking_summary(report: MaskingReport, seconds: float) -> dict[str, Any]:
    """Every alarm with its verdict, and what was found with the gradient and by any search."""

    def told(size: Tensor) -> dict[str, Any]:
        judged = size[~size.isnan()]
        # of all cases: infinite where most have no answer
        return {"found": int(judged.isfinite().sum()), "cases": len(judged), "median_l2": _median_of_all(judged)}

    return {
        "raised": list(report.raised),
        "alarms": [{**a.numbers(), "measured": a.measured, "verdict": verdict(a)} for a in report.alarms],
        "with_gradients": told(report.white_box), "with_any_search": told(report.smallest),
        "forwards": report.forwards, "gradients": report.gradients, "seconds": seconds,
    }  # fmt: skip


def verdict(alarm: Alarm) -> str:
    """What an alarm says, in words that never call a model robust."""
    if alarm.raised:
        return f"ALARM: {alarm.sentence.removeprefix(f'In {alarm.count} of {alarm.cases} cases {alarm.measured}. ')}"
    if alarm.cases == 0:
        return f"not judged. {alarm.sentence}"
    if alarm.count and alarm.interval[1] > alarm.limit:
        return "undecided: seen, but too few cases tell whether it is above the limit"
    return "no sign of masking"


def dataset(study: Study) -> xr.Dataset:
    """Every case with its input, adversarial input, predictions, measurements and statuses."""
    shape_dims = ("channel", "height", "width") if study.x.ndim == 4 else None
    parts = [to_dataset(s, shape_dims=shape_dims).rename(_prefixed(s, name)) for name, s in study.measured.items()]
    parts += [
        to_dataset(p, shape_dims=shape_dims).rename(_prefixed(p, f"tier{k}")).drop_vars(f"tier{k}_displacement")
        for k, p in study.predicted.items()
    ]
    for part in parts:
        if "tier0_distance" in part:  # the margin itself
            part["tier0_distance"].attrs["units"] = "response"
    dims = parts[0][f"{OURS}_point"].dims
    own = xr.Dataset(
        {
            "input": (dims, study.x.cpu().numpy(), {"units": "input", "long_name": "input studied"}),
            "label": ("case", study.labels.cpu().numpy(), {"units": "1", "long_name": "its class"}),
        },
        coords={"case": ("case", study.index.cpu().numpy(), {"long_name": "position in the data"})},
    )
    if study.masking is not None:
        parts += [to_dataset(study.masking).rename(_prefixed(study.masking, "masking")), _alarms_by_case(study.masking)]
    return xr.merge([own, *parts], combine_attrs="drop_conflicts")


def _alarms_by_case(report: MaskingReport) -> xr.Dataset:
    seen = torch.stack([a.judged.to(torch.int8) + a.flagged.to(torch.int8) for a in report.alarms])
    attrs = {
        "units": "1", "long_name": "whether there is a sign of a hidden gradient", "flag_values": [0, 1, 2],
        "flag_meanings": "not_judged none seen",
    }  # fmt: skip
    names = ("alarm", [a.name for a in report.alarms], {"long_name": "what the alarm is about"})
    return xr.Dataset({"masking_seen": (("alarm", "case"), seen.cpu().numpy(), attrs)}, coords={"alarm": names})


def _prefixed(result: Solution | Prediction | MaskingReport, prefix: str) -> dict[str, str]:
    return {str(name): f"{prefix}_{name}" for name in to_dataset(result).data_vars}


def failures(study: Study) -> list[tuple[str, str, int]]:
    """What failed and why: attack or prediction, the reason in words, the number of cases."""
    rows = []
    named: dict[str, Solution | Prediction] = {
        **study.measured,
        **{f"prediction of tier {k}": p for k, p in study.predicted.items()},
    }
    for name, result in named.items():
        counts = count_statuses(result.status)
        rows += [(name, Status[s].sentence, n) for s, n in counts.items() if Status[s].failed]
    return rows


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else float("nan")


def _median_of_all(values: Tensor) -> float:
    return float(values.median()) if len(values) else float("nan")


def _median(values: Tensor) -> float:
    return float(values.nanmedian()) if bool(torch.isfinite(values).any()) else float("nan")
