"""A device for machines that have none: tensors that say they are on CUDA, and refuse to meet one that does not.

Where a tensor is made, moved or mixed is the same question for every device, and arithmetic is not asked about here. So an
`Elsewhere` is a tensor of the CPU with three rules: what comes of it is one too, a tensor with axes that is not one may not be
combined with it (indices may), and `numpy` is refused. Only `.cpu()` and `.to(...)` lead back. `pretend` is the device while it
lasts: factories that are told "cuda" make such tensors, and `torch.cuda.is_available()` is true.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = torch.device("cpu")
THERE = torch.device("cuda")
INDEXING = ("__getitem__", "__setitem__")  # an index may be on the CPU
PLAIN = (
    "tolist",
    "item",
    "__len__",
    "__bool__",
    "__float__",
    "__int__",
    "equal",
    "allclose",
)  # answers that are no tensors
BOOKKEEPING = ("backward", "grad", "as_subclass", "__set__", "set_", "_has_compatible_shallow_copy_type")


class Elsewhere(Tensor):
    """A tensor that is said to be on the device."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _called(func, args, kwargs or {})

    def __deepcopy__(self, memo):
        with torch._C.DisableTorchFunctionSubclass():
            copy = self.detach().clone().as_subclass(Elsewhere).requires_grad_(self.requires_grad)
            copy._is_param = True  # what is copied is a module
            return copy


class _Watched(TorchFunctionMode):
    """Factories and moves of plain tensors."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _called(func, args, kwargs or {})


@contextmanager
def pretend(monkeypatch) -> Iterator[None]:
    """While it lasts there is a device "cuda"."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else a module keeps its plain parameters
    try:
        with _Watched():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def back(value: Tensor) -> Tensor:
    """The tensor on the CPU."""
    return value.as_subclass(Tensor) if isinstance(value, Elsewhere) else value


def _called(func, args, kwargs):
    name = getattr(func, "__name__", "")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = any(isinstance(t, Elsewhere) for t in tensors)
    if name == "__get__":
        return _attribute(func, args, kwargs, away)
    if away and name in ("numpy", "__array__"):
        raise TypeError("can't convert a tensor of the device to numpy; use Tensor.cpu() first.")
    if name in ("cpu", "to"):
        return _moved(func, args, kwargs, tensors, to_cpu=name == "cpu")
    if kwargs.get("device") is not None:
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **{**kwargs, "device": HERE})
        return _sent(made) if torch.device(kwargs["device"]).type == THERE.type else made
    if away and name not in (*INDEXING, *BOOKKEEPING):
        strangers = [tuple(t.shape) for t in tensors if not isinstance(t, Elsewhere) and t.ndim]
        if strangers:
            raise RuntimeError(f"{name} of tensors on two devices: on the CPU are those of shape {strangers}.")
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*args, **kwargs)
    return _sent(found) if away and name not in PLAIN else found


def _attribute(func, args, kwargs, away):
    owner = getattr(func, "__self__", None)
    if owner is Tensor.device:
        return THERE if away else HERE
    if owner is Tensor.is_cuda:
        return away
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*args, **kwargs)
    return _sent(found) if away else found


def _moved(func, args, kwargs, tensors, *, to_cpu):
    """What `cpu` or `to` makes of a tensor: a device, or another tensor that it is to be like, decides where it goes."""
    named = [torch.device(a) for a in (*args[1:], *kwargs.values()) if isinstance(a, str | torch.device)]
    goes = isinstance(tensors[0], Elsewhere)
    if to_cpu:
        goes = False
    elif named:
        goes = named[0].type == THERE.type
    elif len(tensors) > 1:
        goes = isinstance(tensors[1], Elsewhere)

    def stays(a):
        return HERE if isinstance(a, str | torch.device) else a

    with torch._C.DisableTorchFunctionSubclass():
        found = func(args[0], *(stays(a) for a in args[1:]), **{k: stays(v) for k, v in kwargs.items()})
        return found.as_subclass(Elsewhere if goes else Tensor)


def _sent(found):
    """What a function found, its tensors on the device."""
    if isinstance(found, torch.Size):  # a tuple, which tree_map would take apart
        return found

    def one(leaf):
        if not isinstance(leaf, Tensor) or isinstance(leaf, Elsewhere):
            return leaf
        with torch._C.DisableTorchFunctionSubclass():
            return leaf.as_subclass(Elsewhere)

    return tree_map(one, found)
