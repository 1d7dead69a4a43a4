"""What a claim of the essay comes to: its tests on several subjects, and the verdict that they make together.

Every test is a `Claim` of `studies.experiment`, with an effect, its 95 % interval and a limit that is stated beforehand. A
finding holds those of one sentence of the essay. It is supported only where every test holds, not supported where every
test fails, and depends on the subject where some hold and others fail; anything else is not decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from isoresponse.studies.experiment import FAILS, HOLDS, OPEN, Claim

SUPPORTED, REFUTED, DEPENDS = "supported", "not supported", "depends"

Values = dict[str, tuple[tuple[str, ...], Any, dict[str, str]]]


@dataclass(frozen=True, eq=False)
class Finding:
    """One claim of the essay, tested.

    Parameters
    ----------
    letter, says
        Its sign, and the sentence in our words.
    hypothesis
        What would be seen if it were true, and when it would count as false.
    tests
        Claims by subject; they decide.
    figure, caption
        The picture.
    contrast
        Claims by subject that are told beside them and decide nothing: what the sentence does not speak of.
    values
        Every case, as variables for an `xarray.Dataset`: name to (dims, array, attributes).
    notes
        What to know.
    """

    letter: str
    says: str
    hypothesis: str
    tests: dict[str, Claim]
    figure: Figure
    caption: str
    contrast: dict[str, Claim] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`supported`, `not supported`, `depends` or `not decided`."""
        return together(list(self.tests.values()))

    @property
    def where(self) -> str:
        """On which subjects it holds, fails, and is not decided; empty where all agree."""
        by = {v: [s for s, c in self.tests.items() if c.verdict == v] for v in (HOLDS, FAILS, OPEN)}
        if sum(map(bool, by.values())) < 2:
            return ""
        return "; ".join(
            f"{verdict}: {', '.join(_gathered(names, self.tests))}" for verdict, names in by.items() if names
        )

    def numbers(self) -> dict[str, Any]:
        """The finding in plain values."""
        return {
            "letter": self.letter, "says": self.says, "hypothesis": self.hypothesis, "verdict": self.verdict,
            "where": self.where, "tests": {s: c.numbers() for s, c in self.tests.items()},
            "contrast": {s: c.numbers() for s, c in self.contrast.items()}, "notes": list(self.notes),
        }  # fmt: skip


def together(tests: Sequence[Claim]) -> str:
    """The verdict that several tests make: see the module.

    Examples
    --------
    >>> from isoresponse.studies.experiment import Effect
    >>> made = [Claim("x", "y", Effect(v, v - 0.1, v + 0.1, 20), 1.0) for v in (2.0, 0.5)]
    >>> together(made[:1]), together(made[1:]), together(made)
    ('supported', 'not supported', 'depends')
    """
    found = {c.verdict for c in tests}
    if {HOLDS, FAILS} <= found:
        return DEPENDS
    return SUPPORTED if found == {HOLDS} else REFUTED if found == {FAILS} else OPEN


def _gathered(names: Sequence[str], every: Iterable[str]) -> list[str]:
    """Names "family: member", with one word for a family of which all members are there."""
    families: dict[str, set[str]] = {}
    for name in every:
        families.setdefault(name.partition(": ")[0], set()).add(name)
    told: dict[str, None] = {}
    for name in names:
        family = name.partition(": ")[0]
        told[family if families[family] <= set(names) else name] = None
    return list(told)


def averaged(values: Tensor | np.ndarray, group: Tensor | np.ndarray) -> np.ndarray:
    """Mean (group,) of the finite values (case,) of every group: what is independent where cases share a neuron.

    Examples
    --------
    >>> averaged(np.asarray([1.0, 3.0, 5.0, np.nan]), np.asarray([0, 0, 7, 7]))
    array([2., 5.])
    """
    v, g = np.asarray(values, dtype=np.float64), np.asarray(group)
    rows = [v[(g == k) & np.isfinite(v)] for k in np.unique(g)]
    return np.asarray([r.mean() if len(r) else math.nan for r in rows])
