"""Dictionaries under which images have sparse codes, learnt online, and what their elements look like."""

from __future__ import annotations

from math import ceil, prod
from pathlib import Path

import torch
from torch import Generator, Tensor

from isoresponse.models.basic import is_float, kind_of
from isoresponse.models.checkpoint import OnStep, State, fingerprint, run_steps

FORGETTING = 30  # step j weighs (j / k)^FORGETTING in the statistics of step k: early, poor codes fade
IDLE = 10  # steps of silence, times 1 + units / batch, after which a unit is replaced
TWIN = 0.999  # cosine above which two elements count as one
SETTLED = 0.01  # relative change per step at which codes are good enough to learn from
INFERENCE_STEPS = 200  # where not all of them settle


def learn_dictionary(
    patches: Tensor,
    units: int,
    *,
    sparsity: float,
    rectified: bool = True,
    steps: int = 1000,
    batch: int = 256,
    generator: Generator | None = None,
    checkpoint: Path | None = None,
    every: int = 50,
    on_step: OnStep | None = None,
) -> Tensor:
    """Dictionary (n, units) with columns of norm 1, for `LCA`: patches (case, *shape) of n numbers get sparse codes.

    It goes down the mean of 1/2 |x - D a|^2 + sparsity |a|_1, with a the code of x. `units` may be fewer than n or many
    times n. A unit that has long been silent, or is the twin of another, becomes what is explained worst. dtype and
    device follow the patches; on one device, with one number of threads, the same generator gives the same bits.

    Parameters
    ----------
    patches
        Inputs as the model is to see them, say whitened: nothing is subtracted and nothing divided.
    sparsity, rectified
        As in `LCA`. With 0.5 to 1 times the standard deviation of whitened pixels, elements are localised edges.
    steps, batch
        Steps, with so many patches each, drawn with replacement. Asking for more continues a finished checkpoint.
    generator
        Source of the first dictionary and of the batches; None stands for seed 0. A checkpoint sets it.
    checkpoint, every
        File from which to go on where it exists, written every so many steps and on interruption.
    on_step
        Called with (steps done, steps in all, mean objective of the batch); `checkpoint.ProgressBar` shows them.

    Raises
    ------
    ValueError
        Patches that are not finite, float32 or float64 and (case, ...), or fewer of them that are not zero than units; numbers
        out of range; a checkpoint that is damaged, of another training or cannot be written.

    Notes
    -----
    Mairal, Bach, Ponce & Sapiro (2010), JMLR 11:19: the second moments of the codes are averaged over the batches and
    each column in turn is moved to its best place given the others. Codes by FISTA (Beck & Teboulle 2009). The cost is
    that of Olshausen & Field (1996), Nature 381:607.

    Examples
    --------
    >>> import torch
    >>> axes = torch.eye(3)[torch.randint(3, (500,), generator=torch.Generator().manual_seed(0))]
    >>> learnt = learn_dictionary(axes, 3, sparsity=0.1, steps=20)
    >>> bool(((learnt.T @ learnt - torch.eye(3)).abs() < 1e-4).all()), (learnt > 0.99).sum(1).tolist()
    (True, [1, 1, 1])
    """
    x = flat(patches, "learn_dictionary")
    require_positive("learn_dictionary", units=units, batch=batch, sparsity=sparsity)
    length = x.norm(dim=1)
    usable = (length > 1e-6 * length.max()).nonzero()[:, 0]
    if len(usable) < units:
        raise ValueError(
            f"learn_dictionary starts from as many patches as units, got {len(usable)} patches that are not zero for "
            f"{units} units; give more patches or ask for fewer units."
        )
    patience = IDLE * ceil(1 + units / batch)

    def begin(generator: Generator) -> State:
        chosen = usable[torch.randperm(len(usable), generator=generator)[:units].to(usable.device)]
        return {
            "dictionary": (x[chosen] / length[chosen, None]).T.contiguous(),
            "moment": x.new_zeros(units, units),
            "match": x.new_zeros(x.shape[1], units),
            "idle": x.new_zeros(units),
        }

    def step(state: State, done: int, generator: Generator) -> tuple[State, float]:
        drawn = x[torch.randint(len(x), (batch,), generator=generator).to(x.device)]
        code = infer(drawn, state["dictionary"], sparsity, rectified)
        remains = drawn - code @ state["dictionary"].T
        past = done / (done + FORGETTING)
        moment = past * state["moment"] + code.T @ code
        match = past * state["match"] + drawn.T @ code
        dictionary = _best_columns(state["dictionary"], moment, match)
        idle = torch.where((code != 0).any(0), 0.0, state["idle"] + 1)
        useless = (idle >= patience) | _twins(dictionary, rectified)
        _replace(useless.nonzero()[:, 0], remains, dictionary, moment, match, idle)
        objective = float((remains.square().sum(1) / 2 + sparsity * code.abs().sum(1)).mean())
        return {"dictionary": dictionary, "moment": moment, "match": match, "idle": idle}, objective

    settings = {
        "learner": "dictionary", "units": units, "sparsity": sparsity, "rectified": rectified, "batch": batch,
        "dtype": str(x.dtype), "patches": fingerprint(x),
    }  # fmt: skip
    return run_steps(
        begin, step, steps=steps, generator=generator, device=x.device, settings=settings, checkpoint=checkpoint, every=every,
        on_step=on_step,
    )["dictionary"]  # fmt: skip


def infer(x: Tensor, dictionary: Tensor, sparsity: float, rectified: bool) -> Tensor:
    """Codes (case, units) good enough to learn from, in the dtype of x (case, n); for the codes themselves: `LCA`."""
    n, units = dictionary.shape
    drive, elements = x @ dictionary, dictionary.T.contiguous()
    gram = elements @ dictionary if units <= 2 * n else None  # with more units the way through the pixels is shorter
    small = gram if gram is not None and units <= n else dictionary @ elements  # equal eigenvalues, but for zeros
    rate = 1 / torch.linalg.eigvalsh(small)[-1]
    threshold = sparsity * rate
    activity = ahead = torch.zeros_like(drive)
    momentum = 1.0
    for step in range(INFERENCE_STEPS):
        if gram is None:
            v = torch.addmm(ahead, torch.addmm(x, ahead, elements, alpha=-1), dictionary * rate)
        else:
            v = ahead + rate * torch.addmm(drive, ahead, gram, alpha=-1)
        v = (v - threshold).relu() if rectified else v - v.clamp(-threshold, threshold)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        change = v - activity
        activity, ahead, momentum = v, v + (momentum - 1) / following * change, following
        if step % 10 == 9 and bool(change.norm() <= SETTLED * activity.norm()):
            break
    return activity


def flat(patches: Tensor, asker: str) -> Tensor:
    """Patches (case, n), or the reason why they cannot be learnt from."""
    if not isinstance(patches, Tensor):
        raise TypeError(
            f"{asker} needs a tensor of patches (case, ...), got {type(patches).__name__}; use torch.as_tensor."
        )
    if patches.dtype not in (torch.float32, torch.float64) or patches.ndim < 2 or 0 in patches.shape:
        raise ValueError(
            f"{asker} needs float32 or float64 patches (case, ...), got {patches.dtype} {tuple(patches.shape)}; convert or "
            "reshape them."
        )
    x = patches.detach().flatten(1)
    if bad := int((~x.norm(dim=1).square().isfinite()).sum()):
        raise ValueError(
            f"{asker} needs finite patches, got {bad} of {len(x)} with NaN or infinity, or so large that their squares "
            f"overflow in {x.dtype}; remove or scale them."
        )
    if not bool(x.any()):
        raise ValueError(f"{asker} needs patches that are not all zero, got {len(x)} that are; give others.")
    return x


def require_positive(asker: str, **values: float) -> None:
    """Raise a ValueError about the first of the values that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{asker} needs a positive {name}, got {name}={value}; give a number above zero.")


def mosaic(dictionary: Tensor, shape: tuple[int, int], *, columns: int | None = None, gap: int = 1) -> Tensor:
    """Picture (height, width) of the elements side by side, each scaled to [-1, 1] by its largest value; gaps are NaN.

    Parameters
    ----------
    dictionary
        (n, units), one element per column.
    shape
        Height and width of an element; their product is n.
    columns
        Elements per row of the picture; None makes it about square.
    gap
        Pixels between elements.

    Raises
    ------
    ValueError
        A shape that does not hold n numbers, no columns, a negative gap.

    Examples
    --------
    >>> import torch
    >>> mosaic(torch.eye(4), (2, 2), columns=4, gap=1)[0]
    tensor([1., 0., nan, 0., 1., nan, 0., 0., nan, 0., 0.])
    """
    if (columns is not None and columns < 1) or gap < 0:
        raise ValueError(f"mosaic needs at least one column and no negative gap, got columns={columns} and gap={gap}.")
    tiles = elements(dictionary, shape)
    units, (height, width) = len(tiles), shape
    columns = columns or ceil(units**0.5)
    rows = ceil(units / columns)
    tiles = tiles / tiles.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(tiles.dtype).tiny)
    canvas = torch.full((rows * columns, height + gap, width + gap), torch.nan).to(tiles)
    canvas[:units, :height, :width] = tiles
    picture = canvas.reshape(rows, columns, height + gap, width + gap).transpose(1, 2).flatten(2).flatten(0, 1)
    return picture[: picture.shape[0] - gap, : picture.shape[1] - gap]


def elements(dictionary: Tensor, shape: tuple[int, int]) -> Tensor:
    """Elements (units, height, width) of a dictionary (n, units)."""
    if not is_float(dictionary) or dictionary.ndim != 2 or 0 in dictionary.shape or dictionary.shape[0] != prod(shape):
        raise ValueError(
            f"a dictionary whose elements are {' x '.join(map(str, shape))} has {prod(shape)} rows of floating-point numbers, "
            f"got {kind_of(dictionary)}; give (n, units) and the shape of one element."
        )
    return dictionary.T.reshape(-1, *shape)


def _best_columns(dictionary: Tensor, moment: Tensor, match: Tensor) -> Tensor:
    """Each column in turn at its best given the others, norm 1; columns that were hardly used stay."""
    rows, target = dictionary.T.clone(memory_format=torch.contiguous_format), match.T.contiguous()
    often = moment.diagonal()
    used = (often > 1e-6 * often.mean()).tolist()
    for unit, move in enumerate(used):
        if move:
            wanted = target[unit] - moment[unit] @ rows + often[unit] * rows[unit]
            length = wanted.norm()
            rows[unit] = torch.where(length > 0, wanted / length, rows[unit])
    return rows.T.contiguous()


def _twins(dictionary: Tensor, rectified: bool) -> Tensor:
    """Whether each unit (units,) has the element of an earlier one: the two would share every activity for ever."""
    alike = dictionary.T @ dictionary
    return ((alike if rectified else alike.abs()) > TWIN).triu(1).any(0)


def _replace(useless: Tensor, remains: Tensor, dictionary: Tensor, moment: Tensor, match: Tensor, idle: Tensor) -> None:
    """Useless units become the largest remains of the batch, in place, and forget."""
    length = remains.norm(dim=1)
    worst = length.argsort(descending=True, stable=True)[: max(1, len(remains) // 4)]
    worst = worst[length[worst] > 0]
    useless = useless[: len(worst)]
    worst = worst[: len(useless)]
    dictionary[:, useless] = (remains[worst] / length[worst, None]).T
    moment[useless] = 0
    moment[:, useless] = 0
    match[:, useless] = 0
    idle[useless] = 0
