"""A dictionary of natural images, 2x overcomplete, learnt and looked at: one command.

    python benchmarks/dictionary.py --data FOLDER [--overcompleteness 2] [--learner dictionary] [--out PICTURE.png]

FOLDER holds `natural_images/`: `olshausen_field_whitened.npz`, or with `--photographs` `kodak_gray.npz`, which is whitened
here. Printed: seconds, how sparse the codes are, what share of the elements a Gabor function describes, and what share of
them are oriented and localised. The picture shows every element, and is black at its lowest and white at its highest value.
With `--checkpoint` an interrupted training goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Generator, Tensor

from isoresponse.models.checkpoint import ProgressBar
from isoresponse.models.controls import learn_autoencoder, learn_ica
from isoresponse.models.data import load_pictures
from isoresponse.models.dictionary import infer, learn_dictionary, mosaic
from isoresponse.models.natural import patches, whiten
from isoresponse.models.receptive_fields import GaborFit, fit_gabors

PATCHES = 200_000
STEPS = {"dictionary": 1000, "autoencoder": 5000, "ica": 100}


def pictures(folder: Path, photographs: bool) -> list[Tensor]:
    """Whitened pictures (height, width) of standard deviation 1."""
    found = load_pictures(
        folder / "natural_images" / ("kodak_gray.npz" if photographs else "olshausen_field_whitened.npz")
    )
    return [whiten(p) if photographs else p / p.std() for p in found]


def learn(options: argparse.Namespace, x: Tensor) -> Tensor:
    """Elements or filters (n, units)."""
    units = round(options.overcompleteness * x[0].numel())
    more = {
        "steps": options.steps or STEPS[options.learner],
        "generator": Generator().manual_seed(options.seed), "checkpoint": options.checkpoint,
        "on_step": ProgressBar(f"{units} units"),
    }  # fmt: skip
    if options.learner == "ica":
        return learn_ica(x, units, **more)
    if options.learner == "autoencoder":
        return learn_autoencoder(x, units, sparsity=options.sparsity, **more).encoder
    return learn_dictionary(x, units, sparsity=options.sparsity, rectified=not options.signed, **more)


def shares(fit: GaborFit) -> dict[str, float]:
    """How many elements are Gabor functions, and how many are oriented and localised as well."""
    found = {}
    for least in (0.5, 0.75):
        found[f"gabor {least}"] = float((fit.explained > least).double().mean())
        found[f"edges {least}"] = float(fit.edges(explained=least).double().mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with natural_images/")
    parser.add_argument("--photographs", action="store_true", help="Kodak's, whitened here")
    parser.add_argument("--learner", choices=list(STEPS), default="dictionary")
    parser.add_argument("--overcompleteness", type=float, default=2.0, help="units per pixel")
    parser.add_argument("--size", type=int, default=16, help="pixels along a side of a patch")
    parser.add_argument("--sparsity", type=float, help="in standard deviations of a pixel; none for ica")
    parser.add_argument("--signed", action="store_true", help="activities of both signs")
    parser.add_argument("--steps", type=int, help="of 256 patches each (ica: 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint", type=Path, help="file to go on from")
    parser.add_argument("--out", type=Path, help="PNG file for the picture; the numbers go beside it, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.sparsity = options.sparsity or (2.0 if options.learner == "autoencoder" else 1.0)

    shape = (options.size, options.size)
    x = patches(pictures(options.data, options.photographs), options.size, PATCHES)
    begin = time.perf_counter()
    learnt = learn(options, x)
    row = {"units": learnt.shape[1], "threads": options.threads, "seconds": time.perf_counter() - begin}
    if options.learner == "dictionary":
        drawn = x[:2000].flatten(1)
        code = infer(drawn, learnt, options.sparsity, not options.signed)
        row["active units"] = float((code != 0).sum(1).double().mean())
        row["silent units"] = float((code == 0).all(0).double().mean())
        row["variance left"] = float((drawn - code @ learnt.T).square().sum() / drawn.square().sum())
    row |= shares(fit_gabors(learnt, shape))
    for name, value in row.items():
        print(f"{name:14s} {value:10.4g}")
    if options.out:
        from matplotlib.image import imsave

        picture = mosaic(learnt, shape)
        grey = torch.where(picture.isnan(), 0.0, (picture + 1) / 2)
        imsave(options.out, grey.repeat_interleave(2, 0).repeat_interleave(2, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        options.out.with_suffix(".json").write_text(json.dumps(vars(options) | row, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
