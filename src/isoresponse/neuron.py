"""The response function of a neuron: one number for every input, and where inputs may live.

A `Neuron` wraps any PyTorch model (or plain function) so that the rest of the library sees a single
scalar function `f`: an output, a unit inside a layer, a class margin, any callable on the output. It
never changes the model it was made from: mode, hooks, `requires_grad`, `.grad` and random state stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from isoresponse.hooks import (
    Unit,
    as_shape,
    forward_of,
    probe,
    require_one_number,
    require_one_run,
    unit_label,
    unit_picker,
)


@dataclass(frozen=True, eq=False)
class Box:
    """The allowed range of every input element, in input units; unbounded by default.

    Parameters
    ----------
    lower, upper
        Numbers, or tensors that broadcast against one input.

    Raises
    ------
    ValueError
        Where a lower bound is above its upper bound, or a bound is NaN. Equal bounds freeze an element.

    Examples
    --------
    >>> import torch
    >>> Box(0, 1).clip(torch.tensor([[-0.5, 0.25, 2.0]]))
    tensor([[0.0000, 0.2500, 1.0000]])
    """

    lower: float | Tensor = -float("inf")
    upper: float | Tensor = float("inf")

    def __post_init__(self) -> None:
        if not all(isinstance(bound, Tensor | Real) for bound in (self.lower, self.upper)):
            raise TypeError(f"the bounds of a Box are numbers or tensors, got {self.lower!r} and {self.upper!r}.")
        lower, upper = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
        if not bool((lower <= upper).all()):
            raise ValueError(
                f"a Box needs lower <= upper everywhere, got lower={_brief(lower)} and upper={_brief(upper)}; "
                "swap the bounds, or leave one out for no bound."
            )

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bound as tensors with the dtype and device of `like`."""
        return (
            torch.as_tensor(self.lower, dtype=like.dtype, device=like.device),
            torch.as_tensor(self.upper, dtype=like.dtype, device=like.device),
        )

    def require_fits(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless both bounds broadcast to inputs of `shape`."""
        for bound in (self.lower, self.upper):
            sizes = tuple(bound.shape) if isinstance(bound, Tensor) else ()
            padded = (1,) * (len(shape) - len(sizes)) + sizes
            if len(padded) != len(shape) or any(a not in (1, b) for a, b in zip(padded, shape, strict=True)):
                raise ValueError(
                    f"the box has bounds of shape {sizes}, which do not fit inputs of shape {shape}; give numbers, or "
                    "tensors that broadcast to one input."
                )

    def contains(self, x: Float[Tensor, "case *shape"], atol: float = 0.0) -> Bool[Tensor, " case"]:
        """Which cases lie inside, allowing `atol` (input units) beyond each bound."""
        lower, upper = self.bounds(x)
        return ((x >= lower - atol) & (x <= upper + atol)).flatten(1).all(1)

    def clip(self, x: Float[Tensor, "case *shape"]) -> Float[Tensor, "case *shape"]:
        """The nearest point inside the box."""
        lower, upper = self.bounds(x)
        return torch.minimum(torch.maximum(x, lower), upper)

    def free(
        self, x: Float[Tensor, "case *shape"], direction: Float[Tensor, "case *shape"]
    ) -> Bool[Tensor, "case *shape"]:
        """Which elements of `x` can move along `direction` without leaving the box."""
        lower, upper = self.bounds(x)
        return ~(((x <= lower) & (direction < 0)) | ((x >= upper) & (direction > 0)))


@dataclass(frozen=True, eq=False)
class Neuron:
    """A response function `f: input -> number`, evaluated for a batch of cases at a time.

    Parameters
    ----------
    response
        Differentiable callable: inputs (case, *shape), and the tensors in `given`, to responses (case,).
        Case i of the result may depend on case i of the arguments only.
    shape
        Shape of one input.
    box
        Where inputs may live.
    name
        For tables and figures.
    given
        Further per-case arguments with leading axis case (the label whose margin this is, say). They
        let one `Neuron` stand for another response in every case of a batch.

    Examples
    --------
    >>> import torch
    >>> f = Neuron(lambda x: (x**2).sum(1), shape=(2,))
    >>> value, gradient = f.value_and_grad(torch.tensor([[3.0, 4.0]]))
    >>> value, gradient
    (tensor([25.]), tensor([[6., 8.]]))
    """

    response: Callable[..., Tensor]
    shape: tuple[int, ...]
    box: Box = Box()
    name: str = "neuron"
    given: tuple[Tensor, ...] = ()

    @classmethod
    def of(
        cls,
        module: nn.Module,
        unit: Unit = None,
        *,
        layer: str | None = None,
        shape: tuple[int, ...],
        box: Box | None = None,
        name: str | None = None,
    ) -> Neuron:
        """The response of one unit of `module`, which is evaluated in eval mode and left as it was.

        Left as it was: mode, hooks, parameters, `requires_grad`, `.grad`, random state. (Buffers that a forward pass in eval
        mode changes by itself, a counter say, are changed by it here too.)

        Parameters
        ----------
        module
            Any module that takes (case, *shape). It is kept by reference, not copied.
        unit
            Index into the output of one case (an int, or a tuple for more axes), or a callable from the
            whole output (case, ...) to (case,). May be left out where the output is one number per case.
        layer
            Dotted name as in `module.named_modules()`; its output takes the place of the module's. The
            forward pass stops there.
        shape
            Shape of one input, without the case axis.
        box
            Where inputs may live; unbounded if left out.
        name
            Label; by default made of layer and unit.

        Raises
        ------
        ValueError
            Unknown layer (nearest names are given), a layer that does not run or runs more than once,
            a unit outside the output (the valid range is given), an output that is not a tensor.
        """
        shape = as_shape(shape)
        forward = forward_of(module, layer)
        where = f"layer {layer!r}" if layer else "the model"
        if layer:
            require_one_run(module, layer, shape)
        output = probe(forward, module, shape, where)
        pick = unit_picker(unit, tuple(output.shape[1:]), where)
        if callable(unit):
            require_one_number(unit(output), len(output), f"the callable unit on {where}")
        label = name or f"{layer or 'output'}{unit_label(unit)}"
        return cls(lambda x: pick(forward(x)), shape, box or Box(), label)

    def __post_init__(self) -> None:
        as_shape(self.shape)
        self.box.require_fits(self.shape)

    def __repr__(self) -> str:
        return f"Neuron({self.name!r}, shape={self.shape}, box={self.box})"

    def __call__(self, x: Float[Tensor, "case *shape"]) -> Float[Tensor, " case"]:
        """Responses (case,) in response units."""
        value = self.response(x, *self.given)
        require_one_number(value, len(x), f"{self.name!r}")
        return value

    def select(self, cases: Tensor) -> Neuron:
        """The same neuron for some of its cases (indices or mask); itself where no case differs."""
        return replace(self, given=tuple(g[cases] for g in self.given)) if self.given else self

    def value(self, x: Float[Tensor, "case *shape"]) -> Float[Tensor, " case"]:
        """Responses without a graph: one forward pass per case."""
        with torch.no_grad():
            return self(x)

    def value_and_grad(
        self, x: Float[Tensor, "case *shape"]
    ) -> tuple[Float[Tensor, " case"], Float[Tensor, "case *shape"]]:
        """Responses (case,) and gradients (case, *shape): one forward and one backward pass per case.

        A response that does not depend on the input has gradient zero; `check_neuron` tells a constant
        response from one whose gradient was cut off.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = self(x)
            gradient = gradient_of(value, x)
        return value.detach(), gradient.detach()

    def hvp(self, x: Float[Tensor, "case *shape"], v: Float[Tensor, "case *shape"]) -> Float[Tensor, "case *shape"]:
        """Exact Hessian-vector products, zero where the response is affine.

        Reverse over reverse: about 2.2 gradients, and works with every `autograd.Function`.
        """
        return self.linearise(x)[2](v)

    def linearise(self, x: Float[Tensor, "case *shape"]) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Value (case,), gradient (case, *shape) and Hessian product `v -> H v` that share one graph.

        The graph is kept for as long as the product is referenced.
        """
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            value = self(point)
            gradient = gradient_of(value, point, create_graph=True)
        if not gradient.requires_grad and self._bends(x.detach(), gradient):
            raise ValueError(_NOT_TWICE.format(self.name, "its gradient changes, but carries no graph"))

        def product(v: Tensor) -> Tensor:
            if not gradient.requires_grad:
                return torch.zeros_like(v)
            try:
                (hv,) = torch.autograd.grad(gradient, point, v, retain_graph=True, allow_unused=True)
            except (NotImplementedError, RuntimeError) as error:
                if not any(word in str(error) for word in ("once_differentiable", "not implemented", "twice")):
                    raise
                raise ValueError(_NOT_TWICE.format(self.name, str(error).splitlines()[0])) from error
            return torch.zeros_like(v) if hv is None else hv.detach()

        return value.detach(), gradient.detach(), product

    def _bends(self, x: Tensor, gradient: Tensor) -> bool:
        """Whether the gradient changes smoothly with the input in every case (a kink would change it by a jump)."""
        ripple = torch.cos(torch.arange(x[0].numel(), dtype=x.dtype, device=x.device)).reshape(x.shape[1:])
        step = torch.finfo(x.dtype).eps ** 0.25 * (1 + x.abs()) * ripple
        far, near = (self.value_and_grad(x + f * step)[1] - gradient.detach() for f in (1.0, 0.5))
        size = far.flatten(1).norm(dim=1)
        noise = torch.finfo(x.dtype).eps ** 0.5 * gradient.detach().flatten(1).norm(dim=1)
        return bool(((size > noise) & ((near - 0.5 * far).flatten(1).norm(dim=1) < 0.2 * size)).all())

    def require_inputs(self, x: Tensor, what: str = "x") -> None:
        """Raise ValueError (TypeError for a wrong kind) unless `x` is a valid batch of inputs."""
        require_inputs(x, self.shape, self.box, what)
        for own in self.given:
            if len(own) != len(x):
                raise ValueError(
                    f"{self.name} was made for {len(own)} cases, of which each has arguments of its own, got {len(x)} in {what}; "
                    "make it for these, e.g. clf.decision(labels[:5]) for x[:5]."
                )


def flatten(neuron: Neuron, like: Tensor) -> Neuron:
    """The same neuron on flat inputs (case, n), its bounds on the device and in the dtype of `like`."""
    shape = neuron.shape
    size = int(torch.Size(shape).numel())

    def response(x: Tensor, *given: Tensor) -> Tensor:
        return neuron.response(x.reshape(len(x), *shape), *given)

    lower, upper = (bound.expand(shape).reshape(size) for bound in neuron.box.bounds(like))
    return replace(neuron, response=response, shape=(size,), box=Box(lower, upper))


_NOT_TWICE = (
    "{} cannot be differentiated twice ({}); measure its curvature from gradient differences, with "
    "secant_jet(neuron, x, scale=...)."
)


def require_inputs(x: Tensor, shape: tuple[int, ...], box: Box, what: str = "x") -> None:
    """Raise ValueError (TypeError for a wrong kind) unless `x` is a finite batch of inputs inside `box`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} must be a torch tensor, got {type(x).__name__}; use torch.as_tensor(...).")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{what} must be floating point, float32 or float64, got {x.dtype}; convert it (and the model), e.g. "
            f"{what}.float()."
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("there are no gradients under torch.inference_mode(); leave it, or use torch.no_grad().")
    if x.shape[1:] != torch.Size(shape) or x.ndim == 0:
        raise ValueError(
            f"{what} must have shape (case, {', '.join(map(str, shape))}), got {tuple(x.shape)}; "
            "the first axis counts cases."
        )
    if len(x) == 0:
        raise ValueError(f"{what} holds no cases; give at least one input.")
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise ValueError(f"{what} must be finite, got NaN or infinity in {bad} of {len(x)} cases; remove them.")
    inside = box.contains(x, atol=1e-6)
    if not bool(inside.all()):
        lower, upper = box.bounds(x)
        raise ValueError(
            f"{what} must lie in the box [{_brief(lower)}, {_brief(upper)}], got values from "
            f"{float(x.min()):.4g} to {float(x.max()):.4g} ({int((~inside).sum())} of {len(x)} cases outside); "
            "rescale the inputs, or give the box they live in."
        )


def gradient_of(value: Tensor, x: Tensor, *, create_graph: bool = False, keep: bool = False) -> Tensor:
    """Gradients (case, *shape) of the responses `value` (case,) at `x`, zero where they do not depend on it.

    `keep` keeps the graph for another response of the same forward pass.
    """
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(
        value.sum(), x, create_graph=create_graph, retain_graph=keep or create_graph, allow_unused=True
    )
    return torch.zeros_like(x) if gradient is None else gradient


def _brief(bound: Tensor) -> str:
    return f"{float(bound):.4g}" if bound.ndim == 0 else f"tensor in {float(bound.min()):.4g}..{float(bound.max()):.4g}"
