"""How large a perturbation is in units a person knows, and what eight bits leave of it.

The essay's footnote: adversarial perturbations are often smaller than what a display can show. An answer that
does not survive rounding to 256 levels changes a number in memory, not an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoresponse.classifier import Classifier


@dataclass(frozen=True)
class Sizes:
    """Size of perturbations (case, *shape) relative to a range of input values, and what 8 bits leave of them."""

    rms: Tensor  # root-mean-square over elements, as a fraction of the range
    grey_levels: Tensor  # the same in steps of an 8-bit image
    survives_8bit: Tensor  # whether the decision still differs after rounding to 256 levels


def perturbation_sizes(classifier: Classifier, x: Tensor, adversarial: Tensor, labels: Tensor) -> Sizes:
    """Sizes of the changes from `x` to `adversarial` in units a person knows; NaN cases stay NaN and False.

    Raises
    ------
    ValueError
        A box without finite bounds: then there is no range to refer to.
    """
    lower, upper = classifier.box.bounds(x)
    span = upper - lower
    if not bool(torch.isfinite(span).all()):
        raise ValueError("sizes in grey levels need a finite box, got an unbounded one; give e.g. Box(0, 1).")
    rms = ((adversarial - x) / span).flatten(1).square().mean(1).sqrt()
    levels = torch.round((adversarial - lower) / span * 255) / 255 * span + lower
    known = torch.isfinite(rms)
    safe = torch.where(torch.isfinite(levels), levels, x)
    survives = (classifier.predict(safe) != labels) & known
    return Sizes(rms, 255 * rms, survives)
