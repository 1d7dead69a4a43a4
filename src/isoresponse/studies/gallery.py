"""All figures of the essay in one folder, with their numbers in `figures.json`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from isoresponse.records import provenance, to_plain
from isoresponse.studies.figures import neurons, region, save, smallest_median_largest, triptych
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.scale import scale
from isoresponse.studies.subject import load_subject
from isoresponse.studies.terrain import ascent, load_elevation, topography

NAMES = ("triptych", "topography", "ascent", "neurons", "region", "scale")


def write_gallery(
    folder: Path, *, only: list[str] | None = None, dem: Path | None = None, seed: int = 0, stage: Stage = silent
) -> dict[str, Any]:
    """Draw the figures named in `only` (all of them if left out) into `folder`; returns their numbers by name.

    Raises
    ------
    ValueError
        An unknown name, or an elevation file that cannot be used.
    """
    chosen = list(dict.fromkeys(only or NAMES))
    for name in chosen:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no figure {name!r}; there are {', '.join(NAMES)}.{hint}")
    terrain = load_elevation(dem) if {"topography", "ascent"} & set(chosen) else None
    makers: dict[str, Callable[[], tuple[Figure, dict[str, Any]]]] = {
        "triptych": partial(_digits_triptych, seed), "neurons": neurons, "region": region,
        "scale": partial(scale, seed=seed),
    }  # fmt: skip
    if terrain is not None:
        makers |= {"topography": partial(topography, *terrain), "ascent": partial(ascent, *terrain)}
    numbers = {}
    with stage("draw", len(chosen), "figure") as on_done:
        for name in chosen:
            figure, numbers[name] = makers[name]()
            save(figure, folder / name)
            on_done(1)
    content = {"figures": numbers, "provenance": provenance({"seed": seed, "dem": None if dem is None else dem.name})}
    (folder / "figures.json").write_text(
        json.dumps(to_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    return numbers


def _digits_triptych(seed: int) -> tuple[Figure, dict[str, Any]]:
    """The built-in CNN on the built-in digits."""
    subject = load_subject("digits-cnn", seed=seed)
    right = torch.nonzero(subject.classifier.predict(subject.images) == subject.labels).flatten()[:60]
    x, labels = subject.images[right], subject.labels[right]
    found = subject.classifier.closest_adversary(x, labels)
    return triptych(subject.classifier, x, labels, found.point, smallest_median_largest(found.distance))
