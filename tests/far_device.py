"""This file owns a second device without having one: tensors that say they are on a GPU.

Their values are in memory and exact. Mixed with others in one operation, or asked for numpy arrays,
they raise as CUDA's do, so that code which forgets where a tensor is fails here too. Autocast is
the processor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

FAR = torch.device("cuda:0")
_MOVES = ("to", "cpu", "copy_")


class FarTensor(torch.Tensor):
    """A tensor on the second device."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch on it."""
        with torch._C.DisableTorchFunctionSubclass():
            return _run(func, args, kwargs or {})


class _Mode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _run(func, args, kwargs or {})


@contextmanager
def far_device() -> Iterator[torch.device]:
    """Let torch know the second device."""
    autocast = torch.autocast

    def here(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if device_type == FAR.type else device_type, *args, **kwargs)

    with _Mode(), mock.patch.object(torch, "autocast", here):
        yield FAR


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name, tensors = getattr(func, "__name__", ""), _tensors((args, kwargs))
    is_far = any(isinstance(x, FarTensor) for x in tensors)
    if is_far and name == "__get__" and func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
        return FAR
    if is_far and name == "__get__" and func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
        return True
    if is_far and name in ("numpy", "__array__"):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if is_far and name == "_has_compatible_shallow_copy_type":
        return False  # a module's parameters are made anew when it moves
    if is_far and name not in _MOVES:
        _refuse_mixed(name, tensors)
    asked = kwargs.get("device", args[1] if name == "to" and len(args) > 1 else None)
    if name == "cpu" or (
        isinstance(asked, str | torch.device) and torch.device(asked).type != FAR.type
    ):
        is_far = False
    elif isinstance(asked, str | torch.device):
        is_far = True
        args = tuple(torch.device("cpu") if x is asked else x for x in args)
        kwargs = {k: torch.device("cpu") if x is asked else x for k, x in kwargs.items()}
    kind = FarTensor if is_far else torch.Tensor
    return tree_map_only(torch.Tensor, lambda x: _as(x, kind), func(*args, **kwargs))


def _as(x: torch.Tensor, kind: type[torch.Tensor]) -> torch.Tensor:
    if isinstance(x, FarTensor) is (kind is FarTensor):
        return x
    return x.as_subclass(kind)


def _tensors(values: object) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def _refuse_mixed(name: str, tensors: list[torch.Tensor]) -> None:
    near = [
        x for x in tensors if x.dim() and not isinstance(x, FarTensor) and x.device.type == "cpu"
    ]
    if near:
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, got cuda and cpu"
        )
