"""How a result field says what its axes and units are.

Every public result is a frozen dataclass of tensors. Each field declares its dimensions and units
once, through `axes`, so that tables, stores and plots need no second list of names.
"""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def axes(*dims: str, units: str = "1", about: str = "", default: Any = MISSING) -> Any:
    """A dataclass field whose metadata holds `dims`, `units` and a one-line description.

    The dim ``"*shape"`` stands for the input's own axes. Units are relative to the input (``"input"``),
    the response (``"response"``), or ``"1"`` for plain numbers.
    """
    metadata = {"dims": dims, "units": units, "about": about}
    if default is MISSING:
        return field(metadata=metadata)
    return field(metadata=metadata, default=default)
