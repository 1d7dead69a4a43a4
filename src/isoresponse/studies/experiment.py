"""What an experiment leaves behind: claims with their effects and intervals, a table, figures, every case, one page.

A claim is a sentence that the data can contradict. Its effect is a number with a 95 % interval over what is independent
(neurons, images), and its verdict follows from the interval and a limit that is stated beforehand: it holds, it fails, or
the data do not decide.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

from isoresponse.records import provenance, to_plain, write_store
from isoresponse.studies.figures import save
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.report import number

RESAMPLES = 2000
FEWEST = 5  # independent observations below which there is no interval, and so no verdict
HOLDS, FAILS, OPEN = "holds", "fails", "not decided"

Cell = str | float | int | None


@dataclass(frozen=True)
class Effect:
    """A number with its 95 % interval, NaN where there is none, from so many independent observations."""

    value: float
    low: float
    high: float
    count: int

    def numbers(self) -> dict[str, Any]:
        """The effect in plain values."""
        return {"value": self.value, "interval95": [self.low, self.high], "count": self.count}

    def __str__(self) -> str:
        return f"{_short(self.value)} ({_short(self.low)} to {_short(self.high)})"


def bootstrap(
    statistic: Callable[..., Any], *samples: Any, paired: bool = False, seed: int = 0, resamples: int = RESAMPLES
) -> Effect:
    """Effect of `statistic(*samples)` with its 95 % percentile bootstrap interval (Efron 1979, Annals of Statistics 7:1).

    Parameters
    ----------
    statistic
        Function of as many arrays (observation, ...) as samples are given, that returns one number.
    samples
        Independent observations along the first axis. Those that are not finite in all their numbers are left out, and so
        is, if paired, what belongs to them.
    paired
        Whether observation i of every sample is of one case, so that they are drawn together.

    Raises
    ------
    ValueError
        No samples, or paired samples of different length.

    Examples
    --------
    >>> import numpy as np
    >>> found = bootstrap(np.mean, np.arange(100.0))
    >>> found.value, found.low < 49.5 < found.high, found.count
    (49.5, True, 100)
    """
    arrays = [np.asarray(s, dtype=np.float64) for s in samples]
    if not arrays or (paired and len({len(a) for a in arrays}) > 1):
        raise ValueError(f"bootstrap needs samples, of one length if paired, got lengths {[len(a) for a in arrays]}.")
    sound = [np.isfinite(a.reshape(len(a), math.prod(a.shape[1:]))).all(1) for a in arrays]
    if paired:
        sound = [np.logical_and.reduce(sound)] * len(arrays)
    arrays = [a[s] for a, s in zip(arrays, sound, strict=True)]
    count = min(len(a) for a in arrays)
    if count == 0:
        return Effect(math.nan, math.nan, math.nan, 0)
    value = float(statistic(*arrays))
    if count < FEWEST:
        return Effect(value, math.nan, math.nan, count)
    random = np.random.default_rng(seed)
    again = []
    for _ in range(resamples):
        draws = [random.integers(count, size=count)] * len(arrays) if paired else None
        draws = draws or [random.integers(len(a), size=len(a)) for a in arrays]
        again.append(float(statistic(*(a[d] for a, d in zip(arrays, draws, strict=True)))))
    finite = np.asarray(again)[np.isfinite(again)]
    if 2 * len(finite) < resamples:
        return Effect(value, math.nan, math.nan, count)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Effect(value, float(low), float(high), count)


def share(shares: Any, *, each: int = 1) -> Effect:
    """Mean of one share per independent observation, with a 95 % interval that knows that observations differ.

    Wilson's interval with an effective number of trials, as in surveys by clusters (Korn & Graubard 1998, Survey Methodology
    24:193): that of independent trials with the variance found between observations, but no fewer than the observations and
    no more than all that the shares are made of. Where all shares are 0 or all are 1, it is the number of observations.

    Parameters
    ----------
    shares
        One share per observation; NaN is left out.
    each
        Trials that one share is made of, such as planes per unit.

    Examples
    --------
    >>> str(share([1.0] * 20)), str(share([0.0, 1.0] * 10))
    ('1 (0.839 to 1)', '0.5 (0.299 to 0.701)')
    """
    s = np.asarray(shares, dtype=np.float64).ravel()
    s = s[np.isfinite(s)]
    if len(s) < FEWEST:
        return Effect(float(s.mean()) if len(s) else math.nan, math.nan, math.nan, len(s))
    p, n, z = float(s.mean()), len(s), float(scipy.stats.norm.ppf(0.975))
    between = float(s.var(ddof=1)) / n
    trials = min(max(p * (1 - p) / between, n), n * each) if between > 0 else n
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return Effect(p, max(0.0, middle - half), min(1.0, middle + half), n)


@dataclass(frozen=True)
class Claim:
    """A statement, what was measured about it, and the limit that its whole interval must be on one side of.

    Parameters
    ----------
    says
        The statement; of the paper, unless it says otherwise.
    measured
        What the effect is, with its unit and what the observations are.
    side
        Side of `limit` on which the effect must be for the statement to hold.
    doubt
        Why the effect cannot be believed, where it cannot: then nothing is decided by it.
    """

    says: str
    measured: str
    effect: Effect
    limit: float
    side: Literal["above", "below"] = "above"
    doubt: str = ""

    @property
    def verdict(self) -> str:
        """`holds`, `fails` or `not decided`."""
        low, high = self.effect.low, self.effect.high
        if self.doubt or not (math.isfinite(low) and math.isfinite(high)):
            return OPEN
        if self.side == "below":
            return HOLDS if high < self.limit else FAILS if low > self.limit else OPEN
        return HOLDS if low > self.limit else FAILS if high < self.limit else OPEN

    def numbers(self) -> dict[str, Any]:
        """The claim in plain values."""
        return {
            "says": self.says, "measured": self.measured, **self.effect.numbers(), "limit": self.limit, "side": self.side,
            "verdict": self.verdict, "doubt": self.doubt,
        }  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Columns with their units, and rows of strings and numbers; None and NaN are printed as a dash."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"every row needs {len(self.columns)} cells, one per column of {self.columns}.")

    def csv(self) -> str:
        """Comma-separated values, numbers in full."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if _none(c) else c for c in row] for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """A markdown table, numbers to three digits."""
        lines = [self.columns, tuple("---" for _ in self.columns), *(map(shown, row) for row in self.rows)]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)


@dataclass(frozen=True, eq=False)
class Outcome:
    """All that one experiment says.

    `differences` are sentences on where it departs from the paper and why; `numbers` whatever else belongs in the summary;
    `figures` hold a caption each, the first of them is the experiment's own.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    table: Table
    figures: dict[str, tuple[Figure, str]]
    dataset: xr.Dataset
    differences: tuple[str, ...]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)

    def about(self, **more: Any) -> Outcome:
        """The same with further settings."""
        return replace(self, settings={**self.settings, **more})


def write_outcome(outcome: Outcome, folder: Path, *, stage: Stage = silent) -> dict[str, Any]:
    """Write everything into the empty `folder`; returns what `summary.json` holds.

    `index.html` loads nothing from outside; `summary.json` has claims and numbers; `results.zarr` every case; `figures/`
    the pictures (PNG and SVG), and beside the first of them its table (CSV and markdown).
    """
    figures = folder / "figures"
    figures.mkdir()
    with stage("draw and write", len(outcome.figures) + 2, "part") as on_done:
        for name, (figure, _) in outcome.figures.items():
            save(figure, figures / name)
            on_done(1)
        (figures / f"{outcome.name}.csv").write_text(outcome.table.csv(), encoding="utf-8")
        (figures / f"{outcome.name}.md").write_text(outcome.table.markdown(), encoding="utf-8")
        write_store(outcome.dataset, folder / "results.zarr", settings=outcome.settings)
        on_done(1)
        plain = to_plain({
            "study": outcome.name, "title": outcome.title, "claims": [c.numbers() for c in outcome.claims],
            "table": {"columns": list(outcome.table.columns), "rows": [list(r) for r in outcome.table.rows]},
            "differences": list(outcome.differences), "notes": list(outcome.notes), **outcome.numbers,
            "provenance": provenance(outcome.settings),
        })  # fmt: skip
        text = json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        (folder / "index.html").write_text(_page(outcome, plain, figures), encoding="utf-8")
        on_done(1)
    return plain


def _page(outcome: Outcome, plain: dict[str, Any], figures: Path) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isoresponse.studies", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "shown": shown, "short": _short}
    pictures = {
        name: (base64.b64encode((figures / f"{name}.png").read_bytes()).decode("ascii"), caption)
        for name, (_, caption) in outcome.figures.items()
    }
    return environment.get_template("study.html").render(
        outcome=outcome, pictures=pictures, provenance=plain["provenance"]
    )


def shown(cell: Cell) -> str:
    """A cell as text: numbers to three digits, a dash for what is not there."""
    return (
        "–" if _none(cell) else cell if isinstance(cell, str) else str(cell) if isinstance(cell, int) else _short(cell)
    )


def counts(claims: Sequence[Claim]) -> dict[str, int]:
    """How many claims hold, fail, are not decided."""
    return {v: sum(c.verdict == v for c in claims) for v in (HOLDS, FAILS, OPEN)}


def _none(cell: Cell) -> bool:
    return cell is None or cell != cell


def _short(value: float | None) -> str:
    if value is None or value != value:
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
