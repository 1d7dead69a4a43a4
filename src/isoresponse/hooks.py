"""Reaching into a model without touching it: forward passes up to a layer, units, shapes.

Everything runs with forward hooks that are removed at once, in eval mode that is restored at once. No
tracing, so models with control flow work; no torchvision.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

Unit = int | tuple[int, ...] | Callable[[Tensor], Tensor] | None


def units(module: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Every layer that answers with a tensor: its dotted name and the shape of its output for one case.

    The last entry, named ``""``, is the model's own output. Any index into a shape is a unit that
    `Neuron.of(module, layer=name, unit=index, shape=shape)` takes.
    """
    shape, forward = as_shape(shape), forward_of(module, None)
    found: dict[str, tuple[int, ...]] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim >= 1:
                found[name] = tuple(output.shape[1:])

        return record

    handles = [m.register_forward_hook(recorder(n)) for n, m in module.named_modules() if n]
    try:
        output = probe(forward, module, shape, "the model")
    finally:
        for handle in handles:
            handle.remove()
    return [*found.items(), ("", tuple(output.shape[1:]))]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in eval mode inside the block; each submodule's own mode is restored after it."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


class LayerError(ValueError):
    """A layer that cannot serve as a neuron's output."""


class _Reached(BaseException):
    """Raised by a hook to end a forward pass; BaseException so that no `except Exception` eats it."""

    def __init__(self, output: Any) -> None:
        self.output = output


def forward_of(module: nn.Module, layer: str | None) -> Callable[[Tensor], Any]:
    """`module`, or its forward pass up to `layer`, as a function that leaves the module as it was."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"expected a torch.nn.Module, got {type(module).__name__}; for a plain function use "
            "Neuron(response=function, shape=...)."
        )
    if not layer:

        def whole(x: Tensor) -> Any:
            _require_same_kind(module, x)
            with evaluating(module):
                output = module(x.clone())  # the model may work in place
            _require_dtype_kept(output, x)
            return output

        return whole
    modules = dict(module.named_modules(remove_duplicate=False))
    if layer not in modules:
        near = difflib.get_close_matches(layer, modules, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Layers: {', '.join(list(modules)[1:8])}."
        raise ValueError(f"no layer {layer!r} in {type(module).__name__}. {hint} List all with `isoresponse units`.")
    target = modules[layer]

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(output)

    def up_to_layer(x: Tensor) -> Any:
        _require_same_kind(module, x)
        handle = target.register_forward_hook(stop)
        try:
            with evaluating(module):
                module(x.clone())
        except _Reached as reached:
            _require_dtype_kept(reached.output, x)
            return reached.output
        finally:
            handle.remove()
        raise LayerError(f"layer {layer!r} did not run in the forward pass; choose one that does.")

    return up_to_layer


def require_one_run(module: nn.Module, layer: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `layer` runs at most once in a forward pass: its output would be ambiguous."""
    runs: list[None] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda *_: runs.append(None))
    try:
        _try(forward_of(module, None), module, shape)
    finally:
        handle.remove()
    if len(runs) > 1:
        raise ValueError(
            f"layer {layer!r} runs {len(runs)} times in one forward pass, so its output is ambiguous; wrap the "
            "model in a function that returns the response you mean."
        )


def probe(forward: Callable[[Tensor], Any], module: nn.Module, shape: tuple[int, ...], where: str) -> Tensor:
    """The output of `forward` for two zero inputs of `shape`, if it is one tensor with the case axis first.

    Raises ValueError, in terms of `where`, if it is not, or if the model does not run on such inputs.
    """
    output = _try(forward, module, shape)
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{where} must answer with one tensor, got {type(output).__name__}; wrap the model in a module "
            "that returns the tensor you mean."
        )
    if output.ndim == 0 or len(output) != 2:
        raise ValueError(
            f"{where} must keep the case axis first: two inputs gave an output of shape {tuple(output.shape)}."
        )
    return output


def _try(forward: Callable[[Tensor], Any], module: nn.Module, shape: tuple[int, ...]) -> Any:
    like = _parameter(module)
    like = torch.zeros(()) if like is None else like
    x = torch.zeros((2, *shape), dtype=like.dtype, device=like.device)
    try:
        with torch.no_grad():
            return forward(x)
    except LayerError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the model does not run on inputs of shape (case, {', '.join(map(str, shape))}): {reason}"
        ) from error


def unit_picker(unit: Unit, sizes: tuple[int, ...], where: str) -> Callable[[Tensor], Tensor]:
    """A function from the output (case, *sizes) to the unit's response (case,)."""
    if callable(unit):
        return unit
    if unit is None:
        if math.prod(sizes) == 1:
            return lambda output: output.flatten(1)[:, 0] if output.ndim > 1 else output
        raise ValueError(
            f"{where} has {math.prod(sizes)} units of shape {sizes}; say which with unit=, e.g. "
            f"unit={example_unit(sizes)}."
        )
    index = tuple(unit) if isinstance(unit, tuple | list) else (unit,)
    index = tuple(operator.index(i) if isinstance(i, SupportsIndex) else i for i in index)
    whole = all(isinstance(i, int) for i in index)
    if not (whole and len(index) == len(sizes) and all(-s <= i < s for i, s in zip(index, sizes, strict=True))):
        near = tuple(s // 2 for s in sizes)
        if whole and len(index) >= len(sizes):
            near = tuple(min(max(i, 0), s - 1) for i, s in zip(index, sizes, strict=False))
        raise ValueError(
            f"no unit {unit!r} in {where}: its output for one case has shape {sizes}, so an index has "
            f"{len(sizes)} part(s) in the ranges {', '.join(f'0..{s - 1}' for s in sizes) or 'none'}. "
            f"Did you mean unit={_bare(near)}?"
        )
    at: tuple[Any, ...] = (slice(None), *index)
    return lambda output: output[at]


def example_unit(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """The middle unit of an output of shape `sizes`, as `Neuron.of` takes it."""
    return _bare(tuple(s // 2 for s in sizes))


def _bare(index: tuple[int, ...]) -> int | tuple[int, ...]:
    return index[0] if len(index) == 1 else index


def as_shape(shape: object) -> tuple[int, ...]:
    """`shape` as a tuple of sizes; TypeError for anything that is no sequence of positive integers."""
    if not isinstance(shape, tuple | list) or not all(isinstance(s, int) and s > 0 for s in shape):
        raise TypeError(f"shape must be a tuple of sizes of one input, e.g. (1, 28, 28) or (6,), got {shape!r}.")
    return tuple(shape)


def unit_label(unit: Unit) -> str:
    """Short text for a unit, for names and figures."""
    if unit is None:
        return ""
    if callable(unit):
        return f"[{getattr(unit, '__name__', 'callable')}]"
    return f"[{', '.join(map(str, unit)) if isinstance(unit, tuple) else unit}]"


def require_one_number(value: Any, cases: int, who: str) -> None:
    """Raise ValueError unless `value` is a tensor of shape (cases,)."""
    if not isinstance(value, Tensor) or value.shape != (cases,):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{who} must answer with one number per case, shape ({cases},), got {got}; index or reduce the "
            "other axes, e.g. unit=lambda out: out[:, 3].mean((1, 2))."
        )


def _parameter(module: nn.Module) -> Tensor | None:
    tensors = (*module.parameters(), *module.buffers())
    return next((t for t in tensors if t.is_floating_point()), None)


def _require_same_kind(module: nn.Module, x: Tensor) -> None:
    """Raise ValueError for inputs of another kind than the parameters; buffers alone, as of `LCA`, may follow the input."""
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is not None and (like.dtype, like.device) != (x.dtype, x.device):
        raise ValueError(
            f"the inputs are {x.dtype} on {x.device} but the model's parameters are {like.dtype} on "
            f"{like.device}; move one to the other, e.g. x.to({like.dtype}).to({str(like.device)!r})."
        )


def _require_dtype_kept(output: Any, x: Tensor) -> None:
    if isinstance(output, Tensor) and output.is_floating_point() and output.dtype != x.dtype:
        raise ValueError(
            f"the model answers in {output.dtype} to inputs in {x.dtype}; let it keep the dtype of the input."
        )
