"""What sparse coding is compared with: units that answer to their own filter only, learnt from the same patches."""

from __future__ import annotations

from collections.abc import Callable
from math import log, prod
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from isoresponse.models.checkpoint import OnStep, State, fingerprint, run_steps
from isoresponse.models.dictionary import flat, require_positive

TIGHTENING = 4  # alternating projections on tight frames and on columns of norm 1
STARTING = 10_000  # patches whose second moments shape the first filters
SLOWING = 300  # steps after which the learning rate begins to fall, as the inverse square root of the steps


class Autoencoder(nn.Module):
    """Activities (case, units) = relu(encoder' x + bias) of inputs (case, *shape): a pointwise neuron per unit.

    Parameters
    ----------
    encoder
        (n, units), one filter per column.
    bias
        (units,).
    decoder
        (n, units), one element per column, which `decode` sums.
    """

    encoder: Tensor
    bias: Tensor
    decoder: Tensor

    def __init__(self, encoder: Tensor, bias: Tensor, decoder: Tensor) -> None:
        super().__init__()
        if encoder.ndim != 2 or decoder.shape != encoder.shape or bias.shape != encoder.shape[1:]:
            raise ValueError(
                "Autoencoder needs encoder and decoder (n, units) and bias (units,), got "
                f"{tuple(encoder.shape)}, {tuple(decoder.shape)} and {tuple(bias.shape)}."
            )
        for name, weights in (("encoder", encoder), ("bias", bias), ("decoder", decoder)):
            if not weights.is_floating_point() or not bool(weights.isfinite().all()):
                raise ValueError(
                    f"Autoencoder needs finite floating-point weights, got others in its {name}; convert or remove them."
                )
        self.register_buffer("encoder", encoder)
        self.register_buffer("bias", bias)
        self.register_buffer("decoder", decoder)

    def forward(self, x: Tensor) -> Tensor:
        """Activities (case, units) of inputs (case, *shape)."""
        n = len(self.encoder)
        if x.ndim < 2 or prod(x.shape[1:]) != n or not x.is_floating_point():
            raise ValueError(
                f"expected floating-point inputs (case, ...) of {n} numbers each, as the encoder has rows, got {x.dtype} "
                f"{tuple(x.shape)}; convert or reshape the input."
            )
        return (x.reshape(len(x), n) @ self.encoder.to(x) + self.bias.to(x)).relu()

    def decode(self, activity: Tensor) -> Tensor:
        """What the activities (case, units) stand for, (case, n)."""
        return activity @ self.decoder.to(activity).T


def learn_autoencoder(
    patches: Tensor,
    units: int,
    *,
    sparsity: float,
    steps: int = 4000,
    batch: int = 256,
    rate: float = 5e-3,
    generator: Generator | None = None,
    checkpoint: Path | None = None,
    every: int = 100,
    on_step: OnStep | None = None,
) -> Autoencoder:
    """A sparse ReLU autoencoder of patches (case, *shape): the objective of `learn_dictionary`, the code in one pass.

    It goes down the mean of 1/2 |x - D a|^2 + sparsity |a|_1 with a = relu(W'x + b) and columns of D of norm 1, by Adam
    (Kingma & Ba 2015). So it differs from sparse coding only in that its units do not compete.

    Parameters
    ----------
    patches, steps, batch, generator, checkpoint, every, on_step
        As in `learn_dictionary`.
    sparsity
        Weight of the activities. It takes about twice that of `learn_dictionary` until filters are localised edges.
    rate
        Learning rate of the first steps.

    Raises
    ------
    ValueError
        As `learn_dictionary`.

    Examples
    --------
    >>> import torch
    >>> x = torch.rand(300, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> learn_autoencoder(x, 8, sparsity=0.1, steps=5)(x).shape
    torch.Size([300, 8])
    """
    require_positive("learn_autoencoder", units=units, batch=batch, sparsity=sparsity, rate=rate)
    x = flat(patches, "learn_autoencoder")

    def objective(free: State, drawn: Tensor) -> Tensor:
        activity = (drawn @ free["encoder"] + free["bias"]).relu()
        remains = drawn - activity @ free["decoder"].T
        return (remains.square().sum(1) / 2 + sparsity * activity.sum(1)).mean()

    def begin(generator: Generator) -> State:
        columns = _random_columns(x, units, generator)
        return {"encoder": columns, "bias": x.new_zeros(units), "decoder": columns.clone()}

    def keep(free: State) -> State:
        return free | {"decoder": free["decoder"] / free["decoder"].norm(dim=0)}

    settings = {"learner": "autoencoder", "units": units, "sparsity": sparsity, "batch": batch, "rate": rate}
    done = _descend(
        x, begin, objective, keep, settings, steps=steps, batch=batch, rate=rate, generator=generator,
        checkpoint=checkpoint, every=every, on_step=on_step,
    )  # fmt: skip
    return Autoencoder(done["encoder"], done["bias"], done["decoder"])


def learn_ica(
    patches: Tensor,
    units: int,
    *,
    kept: float = 0.95,
    steps: int = 100,
    batch: int = 10_000,
    generator: Generator | None = None,
    checkpoint: Path | None = None,
    every: int = 10,
    on_step: OnStep | None = None,
) -> Tensor:
    """Filters (n, units) of norm 1 whose linear responses D'x to patches (case, *shape) are as sparse as can be.

    The patches, less their mean, are sphered in their principal subspace of r dimensions. There the filters are made
    orthonormal after every step or, if units > r, of norm 1 and as close to a tight frame as a few projections bring them:
    together they see every direction alike. Where the sources are fewer than the filters, some find the same one.

    Parameters
    ----------
    patches, batch, generator, checkpoint, every
        As in `learn_dictionary`. Batches are large, as differences of sparseness are small.
    kept
        Share of the variance that lies in the principal subspace; outside of it filters would turn to noise.
    steps
        Steps of the fixed-point iteration; it converges in some dozens.
    on_step
        Called with (steps done, steps in all, mean log cosh of the responses of variance 1: the smaller, the sparser).

    Raises
    ------
    ValueError
        As `learn_dictionary`; a share that is not in (0, 1].

    Notes
    -----
    Hyvärinen (1999), IEEE Trans. Neural Networks 10:626 (symmetric, g = tanh). The overcomplete case follows Hyvärinen,
    Cristescu & Oja (1999), IJCNN, with alternating projections (Tropp, Dhillon, Heath & Strohmer 2005) in place of
    their quasi-orthogonalisation.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(300, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> learn_ica(x, 20, steps=5).shape
    torch.Size([16, 20])
    """
    require_positive("learn_ica", units=units, batch=batch)
    if not 0 < kept <= 1:
        raise ValueError(f"learn_ica keeps a share of the variance in (0, 1], got kept={kept}; 0.95 is usual.")
    x = flat(patches, "learn_ica")
    y, sphering = _sphered(x, kept)

    def begin(generator: Generator) -> State:
        return {"filters": _frame(_random_columns(y, units, generator))}

    def step(state: State, done: int, generator: Generator) -> tuple[State, float]:
        drawn = y[torch.randint(len(y), (batch,), generator=generator).to(y.device)]
        response = drawn @ state["filters"]
        slope = response.tanh()
        following = drawn.T @ slope / batch - (1 - slope.square()).mean(0) * state["filters"]
        size = response.abs()  # log cosh z = |z| + log(1 + e^-2|z|) - log 2, without overflow
        return {"filters": _frame(following)}, float((size + torch.log1p((-2 * size).exp())).mean()) - log(2)

    settings = {
        "learner": "ica", "units": units, "kept": kept, "batch": batch, "dtype": str(x.dtype), "patches": fingerprint(x),
    }  # fmt: skip
    state = run_steps(
        begin, step, steps=steps, generator=generator, device=x.device, settings=settings, checkpoint=checkpoint,
        every=every, on_step=on_step,
    )  # fmt: skip
    filters = sphering @ state["filters"]
    return filters / filters.norm(dim=0)


def _sphered(x: Tensor, kept: float) -> tuple[Tensor, Tensor]:
    """Patches (case, r) less their mean with unit covariance, and the matrix (n, r) that made them so."""
    y = (x - x.mean(0)).double()
    variance, axes = torch.linalg.eigh(y.T @ y / len(y))
    variance, axes = variance.flip(0), axes.flip(1)
    if not bool(variance[0] > 0):
        raise ValueError(f"learn_ica needs patches that vary, got {len(x)} equal ones; give others.")
    before = variance.cumsum(0) - variance
    held = (before < kept * variance.sum()) & (variance > 1e-10 * variance[0])
    sphering = axes[:, held] / variance[held].sqrt()
    return (y @ sphering).to(x.dtype), sphering.to(x.dtype)


def _frame(columns: Tensor) -> Tensor:
    """The nearest orthonormal columns (r, units), or for more units than r columns of norm 1 that are nearly a tight frame."""
    n, units = columns.shape
    for _ in range(1 if units <= n else TIGHTENING):
        columns = columns / columns.norm(dim=0)
        left, _, right = torch.linalg.svd(columns, full_matrices=False)
        columns = left @ right
    return columns / columns.norm(dim=0)


def _descend(
    x: Tensor,
    begin: Callable[[Generator], State],
    objective: Callable[[State, Tensor], Tensor],
    keep: Callable[[State], State],
    settings: dict[str, object],
    *,
    steps: int,
    batch: int,
    rate: float,
    generator: Generator | None,
    checkpoint: Path | None,
    every: int,
    on_step: OnStep | None,
) -> State:
    """The tensors of `begin` after Adam's steps down `objective`, each followed by `keep`, which restores constraints.

    Adam's two moments travel with the tensors, so that a checkpoint holds them.
    """

    def start(generator: Generator) -> State:
        free = begin(generator)
        return {f"{role} {k}": t if role == "value" else torch.zeros_like(t) for k, t in free.items() for role in ROLES}

    @torch.enable_grad()
    def step(state: State, done: int, generator: Generator) -> tuple[State, float]:
        names = [k.removeprefix("value ") for k in state if k.startswith("value ")]
        free = {k: state[f"value {k}"].detach().requires_grad_() for k in names}
        drawn = x[torch.randint(len(x), (batch,), generator=generator).to(x.device)]
        value = objective(free, drawn)
        slopes = torch.autograd.grad(value, list(free.values()))
        size = rate * min(1.0, (SLOWING / (done + 1)) ** 0.5)
        moved: State = {}
        moments: State = {}
        for k, slope in zip(names, slopes, strict=True):
            first = 0.9 * state[f"first {k}"] + 0.1 * slope
            second = 0.999 * state[f"second {k}"] + 0.001 * slope.square()
            level = (second / (1 - 0.999 ** (done + 1))).sqrt() + 1e-8
            moved[k] = free[k].detach() - size * (first / (1 - 0.9 ** (done + 1))) / level
            moments |= {f"first {k}": first, f"second {k}": second}
        return {f"value {k}": t for k, t in keep(moved).items()} | moments, float(value.detach())

    described = settings | {"dtype": str(x.dtype), "patches": fingerprint(x)}
    state = run_steps(
        start, step, steps=steps, generator=generator, device=x.device, settings=described, checkpoint=checkpoint, every=every,
        on_step=on_step,
    )  # fmt: skip
    return {k.removeprefix("value "): t for k, t in state.items() if k.startswith("value ")}


ROLES = ("value", "first", "second")


def _random_columns(x: Tensor, units: int, generator: Generator) -> Tensor:
    """Random directions (n, units), mostly where x varies: what points elsewhere has no slope and would stay for ever."""
    some = x[torch.randint(len(x), (STARTING,), generator=generator).to(x.device)]
    columns = some.T @ (some @ torch.randn(x.shape[1], units, generator=generator, dtype=x.dtype).to(x.device))
    return columns / columns.norm(dim=0)
