"""The tables of `docs/design/measurements.md` from what `benchmarks/closest.py` has written: one command.

    python benchmarks/closest_table.py FOLDER

Per norm, three tables in Markdown. At each of our budgets: local optimality in % / mean ratio to the smallest found by any
peer, beside the two best peers whatever they spent. At equal cost: local optimality when each method has spent so many
propagations. And what is required of the answer itself: success where any peer has one, and the alignment.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from closest import floats, is_ours, smallest, table

MODELS = (
    "mnist-mlp", "mnist-softplus", "mnist-gelu", "mnist-adversarial", "mnist-interval", "mnist-lca", "cifar-cnn",
    "cifar-adversarial",
)  # fmt: skip
EQUAL = (100, 300, 1000)  # propagations


def cell(row: dict) -> str:
    short = "" if row["success"] == 1 else f" ({row['success']:.0%})"
    return f"{100 * row['optimality']:.1f} / {row['to peers']:.3f}{short}"


def at_budgets(name: str, record: dict) -> str:
    rows = {row["method"]: row for row in table(record)}
    own = sorted((k for k in rows if is_ours(k)), key=lambda k: int(k.split("-")[1]))
    peers = [k for k in rows if not is_ours(k)][:2]
    return (
        f"| {name} | " + " | ".join([*(cell(rows[k]) for k in own), *(f"{k}: {cell(rows[k])}" for k in peers)]) + " |"
    )


def at_equal_cost(name: str, record: dict) -> str:
    rows, cells = table(record), []
    for spent in EQUAL:
        best = [
            max((r for r in rows if is_ours(r["method"]) is own), key=lambda r: r[f"at {spent}"])
            for own in (True, False)
        ]
        ours, peer = (100 * r[f"at {spent}"] for r in best)
        cells.append(
            f"{'**' if ours >= peer else ''}{ours:.1f}{'**' if ours >= peer else ''} / {peer:.1f} {best[1]['method']}"
        )
    return f"| {name} | " + " | ".join(cells) + " |"


def of_the_answer(name: str, record: dict) -> str:
    rows = {row["method"]: row for row in table(record)}
    found = smallest(record, [k for k in rows if not is_ours(k)]).isfinite()
    own = sorted((k for k in rows if is_ours(k)), key=lambda k: int(k.split("-")[1]))
    cells = []
    for key in own:
        missed = int((found & ~floats(record["methods"][key]["distance"]).isfinite()).sum())
        cells.append(f"{missed} missed, {rows[key]['cosine']:.4f}")
    aligned = max(
        (rows[k] for k in rows if not is_ours(k)), key=lambda r: -1 if r["cosine"] != r["cosine"] else r["cosine"]
    )
    return f"| {name} | " + " | ".join([*cells, f"{aligned['method']}: {aligned['cosine']:.4f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for norm in ("2", "inf", "1"):
        records = {m: folder / f"{m}-L{norm}.json" for m in MODELS}
        known = {m: json.loads(path.read_text()) for m, path in records.items() if path.exists()}
        if not known:
            continue
        budgets = sorted({int(k.split("-")[1]) for r in known.values() for k in r["methods"] if is_ours(k)})
        head = " | ".join(f"ours, {b}" for b in budgets)
        rule = "|---" * (len(budgets) + 1)
        for title, columns, line, extra in (
            ("by budget", f"{head} | best peer | second", at_budgets, "|---|---|"),
            ("at equal cost, ours / best peer", " | ".join(f"{n} propagations" for n in EQUAL), at_equal_cost, None),
            ("the answer", f"{head} | best aligned peer", of_the_answer, "|---|"),
        ):
            print(f"\nL{norm}, {title}\n\n| network | {columns} |")
            print(rule + extra if extra else "|---" * (len(EQUAL) + 1) + "|")
            for name, record in known.items():
                print(line(name, record))


if __name__ == "__main__":
    main()
