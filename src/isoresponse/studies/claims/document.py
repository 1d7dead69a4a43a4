"""The essay as an executable document: every claim tested, one page, every number behind it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isoresponse.records import provenance, to_plain, write_store
from isoresponse.studies.claims.evidence import findings
from isoresponse.studies.claims.findings import Finding
from isoresponse.studies.claims.subjects import FULL, Settings, require_data
from isoresponse.studies.experiment import shown
from isoresponse.studies.figures import save
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.subject import device_named

TITLE = "Response geometry explains adversarial robustness: the claims, tested"


def run_claims(
    out: Path,
    *,
    data: Path | None = None,
    full: bool = False,
    seed: int = 0,
    device: str = "cpu",
    stage: Stage = silent,
) -> dict[str, Any]:
    """Test every claim of the essay and write everything into the empty folder `out`; returns what `summary.json` holds.

    Parameters
    ----------
    data
        Folder with some of `mnist/`, `natural_images/` and `cifar10/`; what is not there is taken from what scikit-learn brings.
    full
        Large settings, which take hours on 2 cores. Otherwise minutes.
    seed
        Of training, of the choice of cases, of toys and of the bootstrap.
    device
        Where networks and sparse codes are, cpu or cuda.
    stage
        Shows the progress.

    Raises
    ------
    FileNotFoundError
        A folder that is not there, or has none of them.
    ValueError
        A device that is not there.
    """
    require_data(data)
    where = str(device_named(device))
    settings = {
        "data": None if data is None else data.name, "full": full, "seed": seed, "device": device,
        **asdict(FULL if full else Settings()),
    }  # fmt: skip
    found = findings(data, full=full, seed=seed, device=where, stage=stage)
    return write_document(found, out, settings=settings, stage=stage)


def write_document(
    found: Sequence[Finding], folder: Path, *, settings: dict[str, Any], stage: Stage = silent
) -> dict[str, Any]:
    """Write findings into the empty `folder`; returns what `summary.json` holds.

    `index.html` loads nothing from outside; `summary.json` has verdicts, effects and intervals; `results.zarr` every case;
    `figures/` the pictures (PNG and SVG).
    """
    figures = folder / "figures"
    figures.mkdir()
    with stage("draw and write", len(found) + 1, "claim") as on_done:
        for finding in found:
            save(finding.figure, figures / f"claim-{finding.letter}")
            on_done(1)
        values = {key: value for finding in found for key, value in finding.values.items()}
        write_store(xr.Dataset(values), folder / "results.zarr", settings=settings)
        plain: dict[str, Any] = to_plain({
            "title": TITLE, "findings": [finding.numbers() for finding in found], "provenance": provenance(settings),
        })  # fmt: skip
        text = json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        (folder / "index.html").write_text(_page(found, plain, figures, settings), encoding="utf-8")
        on_done(1)
    return plain


def _page(found: Sequence[Finding], plain: dict[str, Any], figures: Path, settings: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isoresponse.studies", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"shown": shown}
    pictures = {
        f.letter: base64.b64encode((figures / f"claim-{f.letter}.png").read_bytes()).decode("ascii") for f in found
    }
    return environment.get_template("claims.html").render(
        title=TITLE, findings=found, pictures=pictures, settings=settings, provenance=plain["provenance"]
    )


def verdict_table(numbers: dict[str, Any], out: Path) -> None:
    """Print the verdicts of what `run_claims` returned, and where its page is."""
    console = Console()
    table = Table(title=escape(numbers["title"]), title_justify="left")
    for column in ("", "claim", "verdict", "on what it depends"):
        table.add_column(column)
    for finding in numbers["findings"]:
        table.add_row(
            finding["letter"], escape(finding["says"]), finding["verdict"], escape(finding["where"] or _single(finding))
        )
    console.print(table)
    console.print(f"page: {out / 'index.html'}", style="dim", markup=False)


def _single(finding: dict[str, Any]) -> str:
    """The effect, where one test decides; otherwise how many do."""
    tests = list(finding["tests"].values())
    if len(tests) != 1:
        return f"all {len(tests)} tests agree"
    low, high = (shown(v) for v in tests[0]["interval95"])
    return f"{shown(tests[0]['value'])} ({low} to {high})"
