"""The experiments of Paiton et al. (2020), "Selectivity and robustness of sparse coding networks", run again: an index.

Journal of Vision 20(12):10. Each is a module of this package with its settings, and each writes a figure (PNG, SVG), its table
(CSV, markdown), every case as a Zarr store with its provenance, the claims with effect sizes, 95 % intervals and verdicts in
`summary.json`, and one page, `index.html`, that opens offline and says where it departs from the paper and why:

- `curvature-histograms`: curvature and the published measures of bending, planes x units x models.
- `orientation-selectivity`: circular variance, half-width and orientation index of every unit of four models.
- `natural-selectivity`: how many natural patches excite a unit, and their angle to its weight vector.
- `neuron-attack`: steepest paths of a toy with three elements and of units learnt on natural patches.
- `network-attack`: the smallest perturbations of classifiers with and without sparse coding, by the paper's protocol and
  by searches for the smallest one, with alarms for hidden gradients.

Others are not the paper's: `beyond-images` asks the same of sounds, of a table and of texts; `bit-depth` how large smallest
perturbations are in grey levels, and what 8 bits make of them; `spacing` what a greedy path loses to the closest way;
`semantic-quality` what perturbations look like, beside a unit that cannot mean anything.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isoresponse.studies.experiment import Outcome, shown, write_outcome
from isoresponse.studies.measure import Stage, silent
from isoresponse.studies.subject import device_named

STUDIES = {  # name and what it asks
    "curvature-histograms": "do contours of sparse coding bend outward, and more with more units?",
    "orientation-selectivity": "are sparse coding units tuned more narrowly to the orientation of gratings?",
    "natural-selectivity": "do fewer natural patches excite them, and patches more like their weights?",
    "neuron-attack": "does the steepest path turn towards what the neuron likes best?",
    "network-attack": "do classifiers of sparse codes need larger perturbations?",
    "beyond-images": "is the geometry of sounds, tables and texts the same?",
    "bit-depth": "how large are smallest perturbations in grey levels, and what do 8 bits make of them?",
    "spacing": "how much longer is a greedy path than the closest way, on landscapes and on networks?",
    "semantic-quality": "does a smallest perturbation mean anything, and more than one that cannot?",
}


def run_study(
    name: str,
    out: Path,
    *,
    data: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    device: str = "cpu",
    stage: Stage = silent,
) -> dict[str, Any]:
    """Run the experiment `name` and write everything into the empty folder `out`; returns what its `summary.json` holds.

    Parameters
    ----------
    data
        Folder with `natural_images/`, `mnist/` and `cifar10/`, as far as the experiment needs them; None takes what
        scikit-learn brings, which suffices for a look.
    quick
        Small settings: minutes on 2 cores. Otherwise those of the module's docstring, which are meant for a GPU.
    seed
        Of training, of the choice of units, planes and cases, and of the bootstrap.
    device
        `cpu` or `cuda`: where models are trained and asked.
    stage
        Shows the progress.

    Raises
    ------
    ValueError
        An unknown name, or a device that is not there.
    FileNotFoundError
        A folder without what the experiment needs.
    """
    outcome: Outcome = import_module(module_of(name)).study(
        data, quick=quick, seed=seed, device=str(device_named(device)), stage=stage
    )
    return write_outcome(outcome, out, stage=stage)


def module_of(name: str) -> str:
    """The module of the experiment `name`.

    Raises ValueError for an unknown one.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no study {name!r}; there are {', '.join(STUDIES)}.{hint}")
    return f"isoresponse.studies.{name.replace('-', '_')}"


def claim_table(numbers: dict[str, Any], out: Path) -> None:
    """Print the verdicts of what `run_study` returned, and where its page is."""
    console = Console()
    table = Table(title=escape(numbers["title"]), title_justify="left")
    for column in ("claim", "verdict", "effect", "95 % interval", "holds if"):
        table.add_column(column)
    for claim in numbers["claims"]:
        low, high = (shown(v) for v in claim["interval95"])
        table.add_row(
            escape(claim["says"]), claim["verdict"], shown(claim["value"]), f"{low} to {high}",
            f"{claim['side']} {shown(claim['limit'])}",
        )  # fmt: skip
    console.print(table)
    console.print(f"page: {out / 'index.html'}", style="dim", markup=False)
