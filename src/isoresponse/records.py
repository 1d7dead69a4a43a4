"""Results as labelled tables: any result of the library to xarray, and to a Zarr store with its origin.

Each result class declares dims and units of its fields where it defines them, so one generic converter
serves them all, and a user's own result class too. A status becomes integers with their meanings, in the
CF convention. What is written says which library, which versions, which settings made it.
"""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from isoresponse.loop import Status

SCHEMA = 1
STATUS_FLAGS: dict[str, Any] = {  # attributes of a variable that holds how cases ended
    "flag_values": [int(s) for s in Status], "flag_meanings": " ".join(s.name for s in Status),
}  # fmt: skip


def to_dataset(
    result: Any, *, coords: dict[str, Any] | None = None, shape_dims: tuple[str, ...] | None = None
) -> xr.Dataset:
    """The tensor fields of a result as an xarray dataset with dims, units and descriptions; its plain facts (the estimator,
    say) as attributes.

    Parameters
    ----------
    result
        Any dataclass instance whose fields were declared with `axes`.
    coords
        Labels for dims, such as `{"case": stimulus_ids}`.
    shape_dims
        Names for the input's own axes; by default ``input_0``, ``input_1``, ...

    Raises
    ------
    ValueError
        A result none of whose fields declares axes, or a field that does not have the dims it declares.
    """
    variables = {}
    facts = {}
    for f in fields(result):
        value = getattr(result, f.name)
        if isinstance(value, str | int) and "dims" in f.metadata:
            facts[f.name] = value
        if not isinstance(value, Tensor) or "dims" not in f.metadata:
            continue
        array = value.detach().cpu().numpy()
        dims = _expand(f.metadata["dims"], array.ndim, shape_dims, f"{type(result).__name__}.{f.name}")
        attrs = {"units": f.metadata["units"], "long_name": f.metadata["about"]}
        if f.name.endswith("status"):
            attrs |= STATUS_FLAGS
        variables[f.name] = (dims, array, attrs)
    if not variables:
        raise ValueError(
            f"{type(result).__name__} declares no axes; define its fields with isoresponse._fields.axes, or build "
            "the xarray.Dataset yourself."
        )
    return xr.Dataset(variables, coords=coords, attrs=facts)


def provenance(settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Where a result comes from: versions, git commit of the working directory if any, time, settings.

    Keys and values are plain strings and numbers, fit for JSON and for dataset attributes.
    """
    return {
        "schema": SCHEMA,
        "versions": versions(),
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings or {},
    }


def versions() -> dict[str, str]:
    """Versions of this library and of what its numbers depend on; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in ("isoresponse", "torch", "numpy", "scipy", "xarray", "zarr", "foolbox"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_store(dataset: xr.Dataset, path: Path, *, settings: dict[str, Any] | None = None) -> None:
    """Write `dataset` as a new Zarr store at `path`, with its provenance in the attributes.

    Raises
    ------
    FileExistsError
        Something is at `path` already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; give another path or remove it.")
    origin = provenance(settings)
    attrs = {k: v if isinstance(v, str | int) else json.dumps(v) for k, v in origin.items()}
    text = {n: v.astype(np.dtypes.StringDType()) for n, v in dataset.variables.items() if v.dtype.kind == "U"}
    dataset.assign(text).assign_attrs(attrs).to_zarr(path, mode="w-", consolidated=False)


def read_store(path: Path) -> xr.Dataset:
    """The dataset stored at `path`, opened lazily.

    Raises
    ------
    ValueError
        A store of a newer schema, or not one of this library.
    """
    dataset = xr.open_zarr(path, consolidated=False)
    schema = dataset.attrs.get("schema")
    if not isinstance(schema, int | np.integer):
        raise ValueError(f"{path} has no 'schema' attribute, so it is not a store of isoresponse.")
    if schema > SCHEMA:
        raise ValueError(f"{path} has schema {schema}, this version reads up to {SCHEMA}; update isoresponse.")
    return dataset


def _expand(dims: tuple[str, ...], ndim: int, shape_dims: tuple[str, ...] | None, who: str) -> tuple[str, ...]:
    if "*shape" not in dims:
        expanded = dims
    else:
        own = ndim - len(dims) + 1
        names = shape_dims or tuple(f"input_{k}" for k in range(own))
        at = dims.index("*shape")
        expanded = (*dims[:at], *names, *dims[at + 1 :])
    if len(expanded) != ndim:
        raise ValueError(f"{who} declares the dims {expanded} but has {ndim} axes.")
    return expanded


def _commit() -> str:
    """Short commit of the working directory, with '+' if there are changes; empty outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def to_plain(value: Any) -> Any:
    """`value` fit for strict JSON: tensors and arrays as lists, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, Tensor):
        return to_plain(value.detach().cpu().tolist())
    if isinstance(value, np.ndarray | list | tuple):
        return [to_plain(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    return value
