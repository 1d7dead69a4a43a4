"""The one loop of the library: every case takes its own steps and ends with its own status.

A solver is a function `step(state) -> (state, status)` on a dataclass of tensors whose leading axis is
the case. `iterate` repeats it. A case whose status is no longer `RUNNING` is frozen and leaves the
batch, so a finished, flat or non-finite case costs nothing more and cannot disturb its neighbours.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

State = TypeVar("State")


class Status(enum.IntEnum):
    """How one case ended; `sentence` says it in words."""

    RUNNING = 0
    DONE = 1
    MAX_STEPS = 2
    STALLED = 3
    ALREADY = 4
    FLAT = 5
    BLOCKED = 6
    UNREACHABLE = 7
    NOT_FINITE = 8
    TOO_WIDE = 9
    UNDEFINED = 10

    @property
    def sentence(self) -> str:
        """The sentence to show to a user."""
        return _SENTENCES[self]

    @property
    def failed(self) -> bool:
        """True where the case has no answer; its numbers are NaN."""
        return self >= Status.FLAT


_SENTENCES = {
    Status.RUNNING: "still running",
    Status.DONE: "done: converged to a local optimum within the tolerance",
    Status.MAX_STEPS: "stopped at the step limit with the best point found so far",
    Status.STALLED: "stopped with the best point found: no step improves it any more (a kink, or rounding)",
    Status.ALREADY: "the start itself is already there or across; nothing to search",
    Status.FLAT: "failed: the gradient vanished, so there is no direction to follow",
    Status.BLOCKED: "failed: every useful direction leaves the box",
    Status.UNREACHABLE: "failed: the level was not reached inside the box within the step limit",
    Status.NOT_FINITE: "failed: the response, its gradient or a setting of this case is NaN or infinite",
    Status.TOO_WIDE: "failed: the scale is wider than the box, so probes would leave it",
    Status.UNDEFINED: "failed: not defined here, for want of a tangential or a measured part of the direction",
}


def status_tensor(status: Status, like: Tensor) -> Int[Tensor, " case"]:
    """One `status` for every case of `like`, on its device."""
    return torch.full((len(like),), int(status), dtype=torch.int64, device=like.device)


def mark(status: Int[Tensor, " case"], *rules: tuple[Tensor, Status]) -> Int[Tensor, " case"]:
    """`status` with each rule's status where its mask (case,) holds; where several hold, the last one."""
    for where, what in rules:
        status = status.masked_fill(where, int(what))
    return status


def failed(status: Int[Tensor, "*case"]) -> Tensor:
    """Boolean mask, of the same shape, of the cases that ended without an answer."""
    return status >= int(Status.FLAT)


def count_statuses(status: Int[Tensor, " case"]) -> dict[str, int]:
    """How many cases ended in which way, by status name, in the order of `Status`."""
    numbers = torch.bincount(status.cpu(), minlength=len(Status)).tolist()
    return {s.name: numbers[s] for s in Status if numbers[s]}


def take(state: State, cases: Tensor) -> State:
    """`state` with every tensor field restricted to `cases` (indices or mask)."""
    return replace(state, **{n: v[cases] for n, v in _tensors(state)})  # type: ignore[type-var]


def moved(state: State, device: torch.device | str) -> State:
    """`state` with every tensor field on `device`."""
    return replace(state, **{n: v.to(device) for n, v in _tensors(state)})  # type: ignore[type-var]


def join(parts: list[State]) -> State:
    """One dataclass with the tensor fields of all `parts` one after another along the case axis."""
    columns = {n: torch.cat([getattr(p, n) for p in parts]) for n, _ in _tensors(parts[0])}
    return replace(parts[0], **columns)  # type: ignore[type-var]


def put(state: State, cases: Tensor, part: State) -> State:
    """`state` with the rows `cases` replaced by those of `part`."""
    new = dict(_tensors(part))
    return replace(state, **{n: v.index_copy(0, cases, new[n]) for n, v in _tensors(state)})  # type: ignore[type-var]


def iterate(
    step: Callable[[State, Tensor], tuple[State, Tensor]],
    state: State,
    max_steps: int,
) -> tuple[State, Int[Tensor, " case"]]:
    """The final state and the status of every case after at most `max_steps` steps.

    Parameters
    ----------
    step
        `step(state, cases) -> (state, status)`, called with the running cases only; `cases` are their
        indices in the full batch, for solvers that need per-case settings.
    state
        Dataclass of tensors, each with leading axis case.
    max_steps
        Cases still running then get `Status.MAX_STEPS`.
    """
    first = next(_tensors(state))[1]
    status = status_tensor(Status.RUNNING, first)
    running = torch.arange(len(first), device=first.device)
    active = state
    for _ in range(max_steps):
        if len(running) == 0:
            break
        active, now = step(active, running)
        status = status.index_copy(0, running, now)
        ended = now != int(Status.RUNNING)
        if bool(ended.any()):
            state = put(state, running, active)
            active, running = take(active, ~ended), running[~ended]
    state = put(state, running, active)
    return state, mark(status, (status == int(Status.RUNNING), Status.MAX_STEPS))


def _tensors(state: Any) -> Any:
    return ((f.name, v) for f in fields(state) if isinstance(v := getattr(state, f.name), Tensor))
