"""Where results are written: all of them, or nothing.

Everything goes to a hidden folder beside the target and is moved into place at the end, so an interrupted run leaves
nothing behind; and nothing is ever replaced that this library did not write.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKS = {  # the file that holds the provenance, and all names and suffixes of what is written beside it
    "summary.json": ("summary.json", "index.html", "results.zarr", "figures"),
    "figures.json": ("figures.json", ".png", ".svg"),
}


@contextmanager
def finished_folder(out: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of `out` when the block ends well and vanishes otherwise.

    An existing `out` is replaced only if it is empty or an earlier product of this library and nothing else.
    Folders made on the way to `out` vanish too when the block fails.

    Raises
    ------
    FileExistsError
        `out` is a file, or a folder with other contents.
    OSError
        The folder cannot be made there.
    """
    out = out.resolve()  # a link stays a link
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _ours(out))):
        raise FileExistsError(
            f"{out} exists and is not a folder that isoresponse wrote; give --out a new or empty folder."
        )
    made = [p for p in (out.parent, *out.parent.parents) if not p.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield part
        part.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            out.replace(old / "previous")
            part.replace(out)
            shutil.rmtree(old)
        else:
            part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for folder in made:
            folder.rmdir()
        raise


def _ours(folder: Path) -> bool:
    """Whether `folder` holds what this library wrote, as its provenance says, and nothing that it did not write."""
    for mark, entries in MARKS.items():
        try:
            content = json.loads((folder / mark).read_text(encoding="utf-8"))
            known = "isoresponse" in (content.get("versions") or content["provenance"]["versions"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        return known and all(p.name in entries or p.suffix in entries for p in folder.iterdir())
    return False
