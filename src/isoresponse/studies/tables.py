"""Tables for the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from isoresponse.hooks import example_unit, units
from isoresponse.models.digits import BUILT_IN
from isoresponse.studies.report import ATTACK_NAMES, TIER_NAMES, number
from isoresponse.studies.subject import load_module

TOLD = {  # of all numbers in figures.json, the ones worth a line in the terminal, and their short names
    "l2": "L2", "grey_levels": "grey levels", "step_m": "line every (m)",
    "share_reaching_the_summit": "share reaching the summit",
    "median_angle_error_deg": "angle error (deg)", "angle_input_to_mei_end_deg": "angle to MEI at the end (deg)",
    "share_of_box": "share of box", "proposed_scale": "proposed scale", "exact": "exact curvature",
}  # fmt: skip
SHORT = {0: "margin", 1: "spacing", 3: "curvature", 4: "foot points"}


def report_tables(numbers: dict[str, Any], out: Path) -> None:
    """Print what a report found, and where its page is."""
    console = Console()
    measured = Table(
        title=f"{numbers['model']} on {numbers['data']}: measured, {numbers['cases']} cases", title_justify="left"
    )
    for column in ("attack", "success", "mean L2", "median", "ratio", "grad.", "forw.", "s"):
        measured.add_column(column, justify="left" if column == "attack" else "right")
    for name, row in numbers["measured"].items():
        measured.add_row(
            ATTACK_NAMES.get(name, name), f"{row['success']:.1%}", number(row["mean_l2"], 4), number(row["median_l2"], 4),
            number(row["mean_ratio_to_smallest"], 4), number(row["gradients_per_case"], 1),
            number(row["forwards_per_case"], 1), number(row["seconds"], 2),
        )  # fmt: skip
    predicted = Table(title="predicted from geometry alone", title_justify="left")
    for column in ("tier", "Spearman", "Kendall", "R²", "|log error|", "failed", "grad."):
        predicted.add_column(column, justify="left" if column == "prediction" else "right")
    for tier in TIER_NAMES:
        row = numbers["prediction"][f"tier{tier}"]
        predicted.add_row(
            f"{tier} {SHORT[tier]}", number(row["spearman"], 4), number(row["kendall"]),
            number(row["r2"] if tier else None), number(row["median_abs_log_error"] if tier else None, 4),
            str(row["failed"]), number(row["gradients_per_case"], 1),
        )  # fmt: skip
    console.print(measured)
    console.print(predicted)
    console.print(
        "ratio: to the smallest found by any attack; grad., forw.: gradients and forward passes per case", style="dim"
    )
    if masking := numbers["masking"]:
        for alarm in masking["alarms"]:
            if alarm["raised"]:
                console.print(f"ALARM, {alarm['name']}: {alarm['sentence']}", style="bold red", markup=False)
        if not masking["raised"]:
            console.print(f"hidden gradient: none of {len(masking['alarms'])} alarms raised", style="dim")
    for name, reason in numbers["left_out"].items():
        console.print(f"not measured, {ATTACK_NAMES.get(name, name)}: {reason}", markup=False)
    for note in numbers["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print(f"report: {out / 'index.html'}", markup=False, soft_wrap=True)


def figure_table(numbers: dict[str, dict[str, Any]], out: Path) -> None:
    """Print which figures were written and their main numbers."""
    table = Table(title="figures", title_justify="left")
    table.add_column("figure")
    table.add_column("in numbers")
    for name, values in numbers.items():
        table.add_row(name, ", ".join(_flat(values)))
    console = Console()
    console.print(table)
    console.print(f"figures: {out}", markup=False, soft_wrap=True)


def unit_table(model: str, shape: str) -> None:
    """Print the layers of `model`, the shape of their outputs and an example of a unit in each.

    Raises
    ------
    ValueError
        A model that does not load, or a shape that is missing or not a list of positive integers.
    """
    module = load_module(model)
    if not shape and model in BUILT_IN:
        shape = "1,8,8" if model.startswith("digits") else "1,28,28"
    if not shape:
        raise ValueError("--shape is needed for a model of your own: the sizes of one input, e.g. --shape 3,224,224.")
    try:
        sizes = tuple(int(s) for s in shape.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--shape must list the sizes of one input, e.g. 3,224,224, got {shape!r}.")
    table = Table(title=f"units of {model}, input {sizes}", title_justify="left")
    for column in ("layer", "output of one case", "units", "example"):
        table.add_column(column, justify="right" if column == "units" else "left")
    for name, output in units(module, sizes):
        unit = f"unit={example_unit(output)}"
        example = f"layer={name!r}, {unit}" if name else unit
        table.add_row(name or "(output)", str(output), str(math.prod(output)), example)
    Console().print(table)


def _flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key} ")
        elif key in TOLD:
            found.append(f"{prefix}{TOLD[key]} {value:.3g}")
    return found
