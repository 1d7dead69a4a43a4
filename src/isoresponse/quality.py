"""What a perturbation looks like: a family of measures, each beside a matched control that cannot mean anything.

"We do not have a good way to measure semantic quality", says the essay. No single number does, so here are several that can
disagree: alignment with what the neuron likes best, its growth along the path, the share that lies in the data's own
directions or in a few elements of a sparse code, the agreement of an independent model, and the spectrum. None is worth
anything alone: a pointwise unit with the same most exciting input, gap and gradient moves along that input exactly, whatever it
means. `pointwise_control` is that unit; `compare_quality` puts perturbations beside its own and beside random ones.

Only `low_frequency_share` assumes pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from isoresponse._fields import axes
from isoresponse.classifier import Classifier
from isoresponse.crossing import Solution
from isoresponse.neuron import Neuron
from isoresponse.paths import Path
from isoresponse.solve import closest_point

Measure = Callable[[Tensor], Tensor]  # perturbations (case, *shape) -> one number per case
AT_ONCE = 20_000_000  # numbers held at a time


@dataclass(frozen=True, eq=False)
class Quality:
    """Some measures of perturbations, of those of the matched control, and of random ones of the same length.

    NaN where a measure is not defined. A table is `to_dataset(quality, coords=quality.coords)`.
    """

    value: Tensor = axes("measure", "case", about="of the perturbation")
    control: Tensor = axes("measure", "case", about="of the matched control's perturbation")
    chance: Tensor = axes("measure", "case", about="of random perturbations, mean")
    measures: tuple[str, ...] = axes(about="names of the measures")

    @property
    def coords(self) -> dict[str, Any]:
        """Labels for a table."""
        return {"measure": list(self.measures)}

    @property
    def gain(self) -> Tensor:
        """Value less control (measure, case): what is left once a meaningless unit has been subtracted."""
        return self.value - self.control

    def share_above(self, name: str) -> tuple[float, float, float]:
        """Share of the cases in which the perturbation is above its control, with Wilson's 95 % interval; NaN without cases.

        Raises ValueError for a measure that there is not.
        """
        if name not in self.measures:
            raise ValueError(f"no measure {name!r}; there are {', '.join(self.measures)}.")
        gain = self.gain[self.measures.index(name)]
        gain = gain[torch.isfinite(gain) & (gain != 0)]
        if not len(gain):
            return (float("nan"),) * 3
        above = int((gain > 0).sum())
        found = scipy.stats.binomtest(above, len(gain)).proportion_ci(method="wilson")
        return above / len(gain), float(found.low), float(found.high)

    def __repr__(self) -> str:
        rows = (
            f"{n} {float(v.nanmedian()):.3g} (control {float(c.nanmedian()):.3g}, chance {float(r.nanmedian()):.3g})"
            for n, v, c, r in zip(self.measures, self.value, self.control, self.chance, strict=True)
        )
        return f"Quality({self.value.shape[1]} cases, medians: {'; '.join(rows)})"


def compare_quality(
    measures: Mapping[str, Measure],
    perturbation: Float[Tensor, "case *shape"],
    control: Float[Tensor, "case *shape"],
    *,
    generator: Generator,
    draws: int = 8,
) -> Quality:
    """Every measure of the perturbations, of their controls, and of `draws` random ones of the same L2 length each.

    Parameters
    ----------
    measures
        Functions of perturbations (case, *shape), such as `lambda d: alignment(d, mei)`.
    control
        What the matched control's perturbations are, as from `pointwise_control`.
    draws
        Random perturbations of every case, its own: means over cases are certain, but `chance` of one case, a mean of so few,
        varies (within its error) with the cases that are drawn before it.

    Raises
    ------
    ValueError, TypeError
        No measures, perturbations of different shapes, a measure that does not answer with one number per case.

    Examples
    --------
    >>> import torch
    >>> d = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    >>> up = torch.tensor([0.0, 1.0])
    >>> found = compare_quality({"alignment": lambda d: alignment(d, up)}, d, d, generator=torch.Generator().manual_seed(0))
    >>> found.value
    tensor([[0.7071, 1.0000]])
    >>> found.gain
    tensor([[0., 0.]])
    """
    if not isinstance(measures, Mapping):
        raise TypeError(
            f"measures must be functions by name, such as {{'alignment': ...}}, got {type(measures).__name__}."
        )
    if not (isinstance(perturbation, Tensor) and isinstance(control, Tensor)):
        raise TypeError("perturbation and control must be torch tensors (case, *shape); use torch.as_tensor(...).")
    if not measures or draws < 1:
        raise ValueError(f"compare_quality needs measures and at least 1 draw, got {len(measures)} and {draws}.")
    if perturbation.shape != control.shape:
        raise ValueError(
            f"perturbation and control must have the same shape, got {tuple(perturbation.shape)} and {tuple(control.shape)}."
        )
    cases = len(perturbation)

    def measured(d: Tensor) -> Tensor:
        rows = []
        for name, measure in measures.items():
            row = measure(d)
            if not isinstance(row, Tensor):
                raise TypeError(f"measure {name!r} must answer with a tensor (case,), got {type(row).__name__}.")
            if row.shape != (cases,):
                raise ValueError(f"measure {name!r} must answer with shape ({cases},), got {tuple(row.shape)}.")
            rows.append(row.to(d.dtype))
        return torch.stack(rows)

    length = perturbation.flatten(1).norm(dim=1)
    every = []
    for _ in range(draws):
        # one for each case: a draw that all share would make the mean over cases as uncertain as one case is
        draw = torch.randn(perturbation.shape, generator=generator, dtype=perturbation.dtype, device=generator.device)
        flat = draw.to(perturbation.device).flatten(1)
        every.append(measured((flat * (length / flat.norm(dim=1))[:, None]).reshape(perturbation.shape)))
    return Quality(measured(perturbation), measured(control), torch.stack(every).mean(0), tuple(measures))


def pointwise_control(
    neuron: Neuron,
    x: Float[Tensor, "case *shape"],
    level: float | Float[Tensor, " case"],
    *,
    mei: Tensor | None = None,
    budget: int = 60,
) -> Solution:
    """The closest points to `x` across `level` of a pointwise unit that is matched to the neuron in every case.

    The unit answers to the position along one direction alone, as the neuron does along its gradient at `x`: same response,
    same gap, same size of the gradient, same spacing on the way. Its direction, which is its most exciting input (MEI), is
    that of `mei` (*shape, or one per case), or the neuron's gradient if left out: then it is `models.matched.Twin` with
    straight contours. Contours of either are planes, so its perturbation runs along its MEI (inside the box), and its alignment
    with it is 1 by construction. (The neuron is asked about inputs outside its box too, along its gradient.)

    Raises
    ------
    ValueError
        Invalid inputs or level, an `mei` of another shape.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: x.square().sum(1), shape=(2,))
    >>> found = pointwise_control(f, torch.tensor([[3.0, 4.0]]), 100.0, mei=torch.tensor([0.0, 1.0]))
    >>> found.distance, found.point
    (tensor([5.0000]), tensor([[3.0000, 9.0000]]))
    """
    neuron.require_inputs(x)
    _, gradient = neuron.value_and_grad(x)
    normal = _unit(gradient)
    along = normal if mei is None else _unit(_per_case(mei, x, "mei"))

    def response(z: Tensor, at: Tensor, along: Tensor, normal: Tensor, *given: Tensor) -> Tensor:
        position = ((z.flatten(1) - at) * along).sum(1)
        return neuron.response((at + position[:, None] * normal).reshape(z.shape), *given)

    matched = replace(
        neuron, response=response, name=f"{neuron.name}, matched pointwise", given=(x.flatten(1), along, normal, *neuron.given)
    )  # fmt: skip
    return closest_point(matched, x, level, budget=budget)


# --- measures -------------------------------------------------------------------------------------------------


def alignment(perturbation: Float[Tensor, "case *shape"], direction: Tensor) -> Float[Tensor, " case"]:
    """Cosine between each perturbation and `direction` (*shape, or one per case): +1 along it, NaN where there is none.

    With the most exciting input (MEI) of a neuron, as seen from the input, for direction: how much the change looks like what
    the neuron likes. With the difference of two classes' MEIs: how much it turns one into the other.

    Raises ValueError for a direction of another shape.

    Examples
    --------
    >>> import torch
    >>> alignment(torch.tensor([[1.0, 1.0]]), torch.tensor([0.0, 3.0]))
    tensor([0.7071])
    """
    way = _per_case(direction, perturbation, "direction")
    return (_unit(perturbation, float("nan")) * _unit(way, float("nan"))).sum(1)


def alignment_along(path: Path, direction: Tensor) -> Float[Tensor, "case knot"]:
    """`alignment` of what has changed up to each knot of a path; NaN at the first, and beyond a path's end.

    Raises ValueError for a direction of another shape.
    """
    moved = path.points - path.points[:, :1]
    return torch.stack([alignment(moved[:, k], direction) for k in range(moved.shape[1])], 1)


def growth(path: Path, direction: Tensor) -> Float[Tensor, " case"]:
    """By how much `alignment` with `direction` grows along a path, from its first step to its last knot.

    The matched pointwise unit's path is straight: its growth is zero. NaN for a path that made fewer than two steps.

    Raises ValueError for a direction of another shape.
    """
    every = alignment_along(path, direction)[:, 1:]
    passed = torch.isfinite(every)
    last = (passed.sum(1) - 1).clamp_min(0)
    change = every.gather(1, last[:, None])[:, 0] - every[:, 0]
    return change.masked_fill(passed.sum(1) < 2, float("nan"))


def on_manifold_share(
    perturbation: Float[Tensor, "case *shape"],
    x: Float[Tensor, "case *shape"],
    data: Float[Tensor, "sample *shape"],
    *,
    neighbours: int = 50,
    dims: int = 10,
) -> Float[Tensor, " case"]:
    """Share of each perturbation's squared length along the `dims` principal directions of the data near `x` (local PCA).

    The nearest `neighbours` of the data, as they lie round their mean. A random perturbation has dims / n of n elements, and
    less than that would be off the data on purpose.

    Raises
    ------
    ValueError
        Shapes that do not fit, data that are not finite, fewer than neighbours, `dims` not between 1 and neighbours - 1.

    Examples
    --------
    >>> import torch
    >>> line = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([3.0, 4.0])
    >>> on_manifold_share(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.zeros(2, 2), line, neighbours=5, dims=1)
    tensor([1.0000, 0.3600])
    """
    if data.shape[1:] != x.shape[1:] or perturbation.shape != x.shape:
        raise ValueError(
            "perturbation, x and data must hold inputs of one shape, got "
            f"{tuple(perturbation.shape)}, {tuple(x.shape)} and {tuple(data.shape)}."
        )
    if not 1 <= dims < neighbours <= len(data):
        raise ValueError(
            f"needs 1 <= dims < neighbours <= number of data, got dims={dims}, neighbours={neighbours}, data={len(data)}."
        )
    samples, unit = data.to(x).flatten(1), _unit(perturbation, float("nan"))
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("data must be finite, got NaN or infinity; leave such samples out.")
    unit = unit.masked_fill(~torch.isfinite(x.flatten(1)).all(1, keepdim=True), float("nan"))  # it is near nothing
    each = max(1, AT_ONCE // (neighbours * samples.shape[1]))
    shares = []
    for at, d in zip(x.flatten(1).split(each), unit.split(each), strict=True):
        near = torch.cdist(at, samples).topk(neighbours, largest=False).indices
        cloud = samples[near]
        _, _, principal = torch.linalg.svd(cloud - cloud.mean(1, keepdim=True), full_matrices=False)
        shares.append((principal[:, :dims] @ d[:, :, None]).square().sum((1, 2)))
    return torch.cat(shares)


def coded_share(
    perturbation: Float[Tensor, "case *shape"], dictionary: Float[Tensor, "n unit"], *, active: int = 5
) -> Float[Tensor, " case"]:
    """Share of each perturbation's squared length that `active` elements of a dictionary explain.

    Orthogonal matching pursuit (Pati et al. 1993): the element most like what is left, then the best fit with all chosen. The
    dictionary (n, units), learnt on data, stands for what the data are made of; noise needs many of its elements.

    Raises
    ------
    ValueError
        A dictionary for inputs of another size, `active` not between 1 and the smaller of its sizes.

    Examples
    --------
    >>> import torch
    >>> coded_share(torch.tensor([[3.0, 4.0, 0.0]]), torch.eye(3), active=1)
    tensor([0.6400])
    """
    unit = _unit(perturbation, float("nan"))
    if dictionary.ndim != 2 or dictionary.shape[0] != unit.shape[1]:
        raise ValueError(f"dictionary must have shape ({unit.shape[1]}, units), got {tuple(dictionary.shape)}.")
    if not 1 <= active <= min(dictionary.shape):
        raise ValueError(f"active must lie between 1 and {min(dictionary.shape)}, got {active}.")
    elements = _unit(dictionary.to(unit).T)
    rest, basis = unit, list[Tensor]()
    for _ in range(active):
        new = elements[(rest @ elements.T).abs().nan_to_num(0.0).argmax(1)]
        for _ in range(2):  # twice, against rounding
            for b in basis:
                new = new - (new * b).sum(1, keepdim=True) * b
        basis.append(_unit(new * (new.norm(dim=1, keepdim=True) > 1e-6)))
        rest = rest - (rest * basis[-1]).sum(1, keepdim=True) * basis[-1]
    return (1 - rest.square().sum(1)).clamp_min(0)


def agreement(
    perturbation: Float[Tensor, "case *shape"],
    x: Float[Tensor, "case *shape"],
    other: Classifier,
    labels: Int[Tensor, " case"],
    rivals: Int[Tensor, " case"],
) -> Float[Tensor, " case"]:
    """How far an independent model goes along: the part of its own margin, label over rival, that the perturbation takes away.

    1: it has reached its own boundary too, above: it decides for the rival over the label; 0: it does not care. NaN where it
    does not decide as labelled to begin with. A perturbation that means something means it to others.

    Raises
    ------
    ValueError, TypeError
        Inputs or labels that do not fit the model.
    """
    other.require_labelled(x, labels)
    other.require_labelled(x, rivals, "rivals")
    margin = other.margin(labels.long(), rivals.long())
    before, after = margin.value(x), margin.value(other.box.clip(x + torch.nan_to_num(perturbation)))
    known = (before > 0) & torch.isfinite(perturbation.flatten(1)).all(1)
    return ((before - after) / before).masked_fill(~known, float("nan"))


def low_frequency_share(perturbation: Float[Tensor, "case *shape"], *, cutoff: float = 0.125) -> Float[Tensor, " case"]:
    """Share of each perturbation's squared length below `cutoff` cycles per pixel. **For images**: the last two axes are space.

    The highest frequency along an axis is 0.5; radial frequencies are compared with the cutoff, the mean counts as low.

    Raises
    ------
    ValueError
        Inputs without two axes of space, a cutoff that is not positive.

    Examples
    --------
    >>> import torch
    >>> smooth, rough = torch.ones(8, 8), (-1.0) ** torch.arange(8).expand(8, 8)
    >>> low_frequency_share(torch.stack([smooth, rough, smooth + rough]))
    tensor([1.0000, 0.0000, 0.5000])
    """
    if perturbation.ndim < 3:
        raise ValueError(
            f"low_frequency_share is for images, inputs of at least two axes, got shape {tuple(perturbation.shape[1:])}."
        )
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive, in cycles per pixel, got {cutoff}.")
    height, width = perturbation.shape[-2:]
    rows = torch.fft.fftfreq(height, dtype=perturbation.dtype, device=perturbation.device)
    columns = torch.fft.fftfreq(width, dtype=perturbation.dtype, device=perturbation.device)
    low = (rows[:, None].square() + columns.square()).sqrt() <= cutoff
    power = torch.fft.fft2(perturbation).abs().square()
    total = power.flatten(1).sum(1)
    share = (power * low).flatten(1).sum(1) / total
    return torch.where(total > 0, share, torch.full_like(share, float("nan")))


def _per_case(direction: Tensor, like: Tensor, what: str) -> Tensor:
    """`direction` flat, (case, n), from one for all or one per case."""
    if direction.shape not in (like.shape, like.shape[1:]):
        raise ValueError(
            f"{what} must have the shape of one input, {tuple(like.shape[1:])}, or of all, {tuple(like.shape)}, got "
            f"{tuple(direction.shape)}."
        )
    return direction.to(like).expand(like.shape).flatten(1)


def _unit(rows: Tensor, missing: float = 0.0) -> Tensor:
    """Rows (case, n) of length one; `missing` where a row is zero."""
    flat = rows.flatten(1)
    length = flat.norm(dim=1, keepdim=True)
    return torch.where(length > 0, flat / length, torch.full_like(flat, missing))
