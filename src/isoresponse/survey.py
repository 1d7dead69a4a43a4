"""Many planes for many neurons: how their contours bend in every cut, as one table.

For each neuron a line runs from an origin (the grey image) along its most exciting input. Where the response has risen by
a share of what it gains along that line, the contour is cut by many planes that contain the line and a second direction
each: towards other neurons' exciting inputs, towards random directions, towards an attack. In every plane the bending is
measured twice: the curvature of the contour there, from derivatives or at a stated scale, and the estimators that
Paiton et al. (2020) published, from a grid of responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from isoresponse._fields import axes
from isoresponse.crossing import Problem, cross_ray, rounding
from isoresponse.jets import JetBuilder, exact_jet
from isoresponse.loop import Status, failed, mark
from isoresponse.neuron import Neuron
from isoresponse.operators import length
from isoresponse.paiton2020 import published_curvatures
from isoresponse.planes import grid_of, plane_responses
from isoresponse.sections import plane_basis, section_curvature


@dataclass(frozen=True, eq=False)
class SurveyGrid:
    """How the planes of a survey are sampled.

    Parameters
    ----------
    reach
        How far a plane extends to every side of the origin, in input units: the stimulus of greatest contrast.
    size
        Grid points along each axis (30 in Paiton et al. 2020).
    level
        Share of the response gained from the origin to `reach` along the exciting direction at which contours are examined.
    unit
        Input units per plane unit, for the published estimators (31.773287 in Paiton et al. 2020, whose planes reach 2).
    origin
        Where the planes start (*shape); the zero input if left out.
    batch_size
        Inputs evaluated together.
    """

    reach: float
    size: int = 30
    level: float = 0.5
    unit: float = 1.0
    origin: Tensor | None = None
    batch_size: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.reach < float("inf"):
            raise ValueError(f"reach must be positive and finite, got {self.reach}.")
        if self.size < 3 or self.batch_size < 1:
            raise ValueError(f"size must be at least 3 and batch_size 1, got {self.size} and {self.batch_size}.")
        if not 0 < self.level < 1:
            raise ValueError(f"level must be between 0 and 1, a share of the response gained, got {self.level}.")
        if not self.unit > 0:
            raise ValueError(f"unit must be positive, got {self.unit}.")


@dataclass(frozen=True, eq=False)
class PlaneSurvey:
    """Curvatures of every neuron's contour in every plane; a table of it is `to_dataset(survey, coords=survey.coords)`."""

    curvature: Tensor = axes("neuron", "plane", units="1/input", about="curvature of the contour line in the plane")
    error: Tensor = axes("neuron", "plane", units="1/input", about="error of the curvature at the stated scale")
    normal_curvature: Tensor = axes("neuron", "plane", units="1/input", about="that of the hypersurface along the line")
    tilt: Tensor = axes("neuron", "plane", units="rad", about="angle between the contour's normal and the plane")
    status: Tensor = axes("neuron", "plane", about="how the measurement of the curvature ended")
    iso_response: Tensor = axes("neuron", "plane", units="1/index", about="published coefficient of the contour fit")
    attenuation: Tensor = axes("neuron", "plane", units="1/unit^2", about="published response attenuation")
    published_curvature: Tensor = axes("neuron", "plane", units="1/input", about="the published fit, as a curvature")
    published_status: Tensor = axes("neuron", "plane", about="how the published estimators ended")
    angle: Tensor = axes("neuron", "plane", units="rad", about="angle between exciting and second direction")
    distance: Tensor = axes(
        "neuron", units="input", about="from the origin to the contour, along the exciting direction"
    )
    level: Tensor = axes("neuron", units="response", about="response on the examined contour")
    scale: Tensor = axes("neuron", "plane", units="input", about="scale of the curvature, 0 for exact")
    neurons: tuple[str, ...] = axes(about="names of the neurons")
    family: tuple[str, ...] = axes(about="family of each plane's second direction")
    estimator: str = axes(about="how the curvature was measured")

    @property
    def coords(self) -> dict[str, Any]:
        """Labels for a table: neuron names, and the family of each plane."""
        return {"neuron": list(self.neurons), "family": ("plane", list(self.family))}

    def of(self, family: str) -> PlaneSurvey:
        """The planes of one family.

        Raises ValueError for a family that was not surveyed.
        """
        chosen = [i for i, name in enumerate(self.family) if name == family]
        if not chosen:
            raise ValueError(f"no planes of family {family!r}; there are {', '.join(dict.fromkeys(self.family))}.")
        parts = {
            name: value[:, chosen]
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.ndim == 2
        }
        return PlaneSurvey(**{**vars(self), **parts, "family": tuple(self.family[i] for i in chosen)})

    def __repr__(self) -> str:
        sound = ~failed(self.status)
        median = float(self.curvature[sound].median()) if bool(sound.any()) else float("nan")
        return (
            f"PlaneSurvey({len(self.neurons)} neurons x {len(self.family)} planes, {int(sound.sum())} curvatures, median "
            f"{median:.4g}, {self.estimator})"
        )


def survey_planes(
    neurons: Sequence[Neuron],
    exciting: Float[Tensor, "neuron *shape"],
    seconds: Mapping[str, Float[Tensor, "neuron plane *shape"]],
    *,
    grid: SurveyGrid,
    jet: JetBuilder = exact_jet,
    progress: bool = True,
) -> PlaneSurvey:
    """Curvatures of each neuron's contour in the planes of its exciting and each second direction.

    Parameters
    ----------
    neurons
        Neurons of one input shape.
    exciting
        First axis of every plane of a neuron: its most exciting input or weight vector, of any length.
    seconds
        By the name of the family, the second directions: `random_directions`, `comparison_directions`, `phase_shifted`,
        `attack_directions`. They need not be orthogonal to the first.
    grid
        How planes are sampled, in input units.
    jet
        How curvature is measured; on networks of ReLUs and on sparse coding use a finite scale, `partial(secant_jet,
        scale=...)`: their exact curvature is zero almost everywhere.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        No neurons or planes, shapes that do not fit, a second direction (anti)parallel to the first. (A direction that is zero
        or not finite, such as that of an attack that failed, gives its planes the status UNDEFINED.)

    Examples
    --------
    >>> import torch
    >>> from isoresponse import random_directions
    >>> ball = Neuron(lambda x: x[:, 0] - x[:, 1:].square().sum(1), (4,), name="bent")
    >>> first = torch.tensor([[1.0, 0, 0, 0]])
    >>> second = random_directions(5, orthogonal_to=first[0], generator=torch.Generator())[None]
    >>> found = survey_planes([ball], first, {"random": second}, grid=SurveyGrid(reach=1.0), progress=False)
    >>> found.curvature.round(decimals=3)
    tensor([[2., 2., 2., 2., 2.]])
    """
    families, shape = _checked(neurons, exciting, seconds)
    start = exciting.new_zeros(shape) if grid.origin is None else grid.origin
    if start.shape != shape:
        raise ValueError(f"origin must have the shape of an input, {tuple(shape)}, got {tuple(start.shape)}.")
    directions = torch.cat(list(seconds.values()), 1)
    rows = []
    with tqdm(
        total=directions.shape[0] * directions.shape[1], desc="planes", unit="plane", disable=not progress
    ) as bar:
        for neuron, first, second in zip(neurons, exciting, directions, strict=True):
            rows.append(_survey_one(neuron, first, second, grid, start, jet))
            bar.update(len(second))
    columns: dict[str, Any] = {
        name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "estimator"
    }
    names = tuple(neuron.name for neuron in neurons)
    return PlaneSurvey(**columns, neurons=names, family=families, estimator=rows[0]["estimator"])


def _checked(
    neurons: Sequence[Neuron], exciting: Tensor, seconds: Mapping[str, Tensor]
) -> tuple[tuple[str, ...], torch.Size]:
    """The family of every plane, and the shape of an input."""
    if not neurons or not seconds:
        raise ValueError(f"a survey needs neurons and families of planes, got {len(neurons)} and {len(seconds)}.")
    shape = torch.Size(neurons[0].shape)
    for neuron in neurons:
        if neuron.given:
            raise ValueError(f"{neuron.name} differs from case to case; survey neurons without `given`.")
        if neuron.shape != tuple(shape):
            raise ValueError(f"the neurons need one input shape, got {tuple(shape)} and {neuron.shape}.")
    if exciting.shape != (len(neurons), *shape):
        raise ValueError(
            f"exciting must have shape {(len(neurons), *shape)}, one input per neuron, got {tuple(exciting.shape)}."
        )
    for name, second in seconds.items():
        if second.ndim != len(shape) + 2 or second.shape[0] != len(neurons) or second.shape[2:] != shape:
            raise ValueError(
                f"the directions {name!r} must have shape (neuron, plane, *input) = ({len(neurons)}, plane, "
                f"{', '.join(map(str, shape))}), got {tuple(second.shape)}."
            )
    return tuple(name for name, second in seconds.items() for _ in range(second.shape[1])), shape


def _survey_one(
    neuron: Neuron, first: Tensor, second: Tensor, grid: SurveyGrid, origin: Tensor, jet: JetBuilder
) -> dict[str, Any]:
    planes = len(second)
    axis, known = _usable(first[None], first.new_zeros(first.shape)[None])
    others, sound = _usable(second, axis)
    bases = plane_basis(axis.expand_as(others), others)
    ticks = torch.linspace(-grid.reach, grid.reach, grid.size, dtype=first.dtype, device=first.device)
    response = plane_responses(neuron, origin, bases, grid_of(ticks, ticks), batch_size=grid.batch_size)
    published = published_curvatures(
        response.reshape(planes, grid.size, grid.size), x=ticks, y=ticks, level=grid.level, unit=grid.unit
    )
    point, level, distance, found = _on_axis(neuron, origin, bases[0, 0], grid)
    cut = section_curvature(neuron, point.expand(planes, *origin.shape), bases, jet=jet)
    undefined = (~(sound & known), Status.UNDEFINED)
    status = mark(cut.status, (~found.expand(planes), Status.UNREACHABLE), undefined)
    published_status = mark(published.status, undefined)
    bad, unpublished = failed(status), failed(published_status)
    cosine = (bases[:, 0] * (others.flatten(1) / length(others.flatten(1), keepdim=True))).sum(1)
    measured = {
        name: getattr(cut, name).masked_fill(bad, torch.nan)
        for name in ("curvature", "error", "normal_curvature", "tilt")
    }
    return measured | {
        "status": status, "iso_response": published.iso_response.masked_fill(unpublished, torch.nan),
        "attenuation": published.attenuation.masked_fill(unpublished, torch.nan),
        "published_curvature": published.curvature.masked_fill(unpublished, torch.nan), "published_status": published_status,
        "angle": torch.arccos(cosine.clamp(-1, 1)).masked_fill(~sound, torch.nan), "distance": distance[0], "level": level[0],
        "scale": cut.scale, "estimator": cut.estimator,
    }  # fmt: skip


def _usable(directions: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """The directions (plane, *shape), those that are zero or not finite replaced by one that differs from `axis`, and which
    needed no replacement.
    """
    size = length(directions.flatten(1))
    sound = (size > 0) & torch.isfinite(size)
    spare = torch.zeros_like(axis).flatten()
    spare[int(axis.flatten().abs().argmin())] = 1.0
    keep = sound.reshape(-1, *[1] * (directions.ndim - 1))
    return torch.where(keep, directions, spare.reshape(axis.shape)), sound


def _on_axis(neuron: Neuron, origin: Tensor, unit: Tensor, grid: SurveyGrid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the response along `unit` first reaches its level: input (1, *shape), level, distance, whether it does."""
    start = origin[None]
    end = start + grid.reach * unit.reshape(start.shape)
    here, there = neuron.value(start), neuron.value(end)
    level = here + grid.level * (there - here)
    free = Neuron(neuron.response, neuron.shape, name=neuron.name)  # planes may leave the box
    problem = Problem.of(free, start, torch.nan_to_num(level))
    below = problem.excess(problem.start)
    point, met, _ = cross_ray(problem, below, end.flatten(1), rounding(below))
    rises = met & (there > here)
    distance = length(point - problem.start)
    point = torch.where(torch.isfinite(point), point, problem.start).reshape(start.shape)
    return point, level, distance.masked_fill(~rises, torch.nan), rises
