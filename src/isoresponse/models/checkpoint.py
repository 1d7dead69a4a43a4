"""A training that can be interrupted: steps from one set of named tensors to the next, kept on the disk.

`run_steps` is the loop of every learner. Where it stopped is all in the file: tensors, number of steps
and the state of the random numbers. So a training that was interrupted and resumed ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor
from tqdm.auto import tqdm

State = dict[str, Tensor]
OnStep = Callable[[int, int, float], object]
RANDOM = "random numbers"  # key of the generator's state in the file


def run_steps(
    begin: Callable[[Generator], State],
    step: Callable[[State, int, Generator], tuple[State, float]],
    *,
    steps: int,
    generator: Generator | None,
    device: torch.device,
    settings: Mapping[str, object],
    checkpoint: Path | None,
    every: int,
    on_step: OnStep | None,
) -> State:
    """The tensors after `steps` steps, on from where `checkpoint` stands if that file exists.

    Parameters
    ----------
    begin
        Function of the generator that returns the first tensors.
    step
        Function of (tensors, steps done, generator) that returns the next tensors and the objective. It must leave the
        tensors it is given as they are: they are what an interruption leaves on the disk.
    settings
        What makes this training this one; a checkpoint of other settings is refused. The number of steps is none of
        them: a training may be continued.
    device
        Where the tensors of a checkpoint go.
    checkpoint, every
        File, written every so many steps, at the end, and where anything interrupts; None writes nothing.
    on_step
        Called with (steps done, steps in all, objective).

    Raises
    ------
    ValueError
        A checkpoint that cannot be read or written, is damaged, belongs to another training or has gone further (the file
        stays); an objective that is not finite.

    Warns
    -----
    RuntimeWarning
        A checkpoint that cannot be written any more. The training goes on.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"a training needs steps and every of at least one, got steps={steps} and every={every}.")
    generator = generator or Generator().manual_seed(0)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if checkpoint is not None:
        _require_place(checkpoint)
    described = json.dumps(dict(settings, seed=generator.initial_seed()), sort_keys=True)
    if checkpoint is not None and checkpoint.exists():
        state, done = _read(checkpoint, described, generator)
        state = {name: t.to(device) for name, t in state.items()}
        if done > steps:
            raise ValueError(
                f"checkpoint {checkpoint} has done {done} steps, more than the {steps} asked for; ask for {done} or more, "
                "or give another file."
            )
        written = done
    else:
        state, done, written = _as_read(begin(generator)), 0, -1
    at = (state, done, generator.get_state())  # replaced as a whole: an interruption finds it of one step
    try:
        while done < steps:
            state, objective = step(at[0], done, generator)
            if not math.isfinite(objective):
                raise ValueError(
                    f"training has gone astray: the objective of step {done + 1} is {objective}; give inputs of another scale, "
                    "or a smaller rate."
                )
            at = (_as_read(state), done + 1, generator.get_state())
            done += 1
            if checkpoint is not None and done % every == 0 and done < steps and _kept(checkpoint, at, described):
                written = done
            if on_step is not None:
                on_step(done, steps, objective)
    finally:
        if checkpoint is not None and written != at[1]:
            _kept(checkpoint, at, described)
    return at[0]


class ProgressBar:
    """A bar on stderr to give as `on_step`, with the running mean of the objective; it closes with the last step.

    Parameters
    ----------
    title
        What stands before the bar.

    Examples
    --------
    >>> import torch
    >>> from isoresponse.models.dictionary import learn_dictionary
    >>> patches = torch.rand(100, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> learn_dictionary(patches, 8, sparsity=0.1, steps=3, on_step=ProgressBar("dictionary")).shape
    torch.Size([16, 8])
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm | None = None
        self.mean: float | None = None

    def __call__(self, done: int, steps: int, objective: float) -> None:
        """Move to `done` of `steps`."""
        if self.bar is None:  # a resumed training starts where it stood
            self.bar = tqdm(
                total=steps, initial=done - 1, desc=self.title, unit="step", mininterval=0.3, file=sys.stderr
            )
        self.mean = objective if self.mean is None else 0.9 * self.mean + 0.1 * objective
        self.bar.set_postfix(objective=f"{self.mean:.4g}", refresh=False)
        self.bar.update(done - self.bar.n)
        if done == steps:
            self.bar.close()
            self.bar = self.mean = None


def fingerprint(values: Tensor) -> str:
    """Twelve digits that tell one set of training inputs from another."""
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().data).hexdigest()[:12]


def _require_place(path: Path) -> None:
    """Raise a ValueError, before anything is computed, where a checkpoint could not be written."""
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _beside(path) as part:
            part.touch()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"checkpoint {path} cannot be written ({reason}); give a file in a folder that can be."
        ) from error


def _kept(path: Path, at: tuple[State, int, Tensor], described: str) -> bool:
    """Whether the checkpoint could be written; a full disk must not cost the training."""
    try:
        _write(path, at, described)
    except OSError as error:
        warnings.warn(
            f"checkpoint {path} could not be written ({error}); what it held stays.", RuntimeWarning, stacklevel=3
        )
        return False
    return True


def _write(path: Path, at: tuple[State, int, Tensor], described: str) -> None:
    """Write beside the target and rename: at every moment there is one whole file."""
    state, done, random = at
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()} | {RANDOM: random}
    about = {"done": str(done), "settings": described, "digest": _digest(tensors, str(done), described)}
    with _beside(path) as part:
        with open(part, "wb") as file:
            file.write(save(tensors, metadata=about))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden file next to `path`, always the same one, so that a process that was killed leaves no more than one."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, described: str, generator: Generator) -> tuple[State, int]:
    """Tensors and steps done; the generator is set to where it was."""
    again = "delete it to start again, or give another file"
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error}); {again}.") from error
    if not {"done", "settings", "digest"} <= about.keys() or RANDOM not in tensors:
        raise ValueError(f"{path} is not a checkpoint of this library; give another file.")
    if about["digest"] != _digest(tensors, about["done"], about["settings"]):
        raise ValueError(f"checkpoint {path} is damaged: its content does not match its digest; {again}.")
    if about["settings"] != described:
        theirs, ours = json.loads(about["settings"]), json.loads(described)
        other = [
            f"{k} {theirs.get(k)} (now {ours.get(k)})" for k in sorted(theirs | ours) if theirs.get(k) != ours.get(k)
        ]
        raise ValueError(f"checkpoint {path} belongs to another training, with {', '.join(other)}; {again}.")
    generator.set_state(tensors.pop(RANDOM))
    return tensors, int(about["done"])


def _as_read(state: State) -> State:
    """The tensors laid out as they would be if read from a file: sums over other strides are rounded differently."""
    return {name: torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t) for name, t in state.items()}


def _digest(tensors: State, done: str, described: str) -> str:
    digest = hashlib.sha256(f"{done} {described}".encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
