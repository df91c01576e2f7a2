"""This file owns finding the device that torch computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nvembed_deploy.errors import HardwareError, is_out_of_memory


def find_device(name: str) -> torch.device:
    """Return torch's device of this name: cpu, cuda, cuda:1, ...

    Raises:
        HardwareError: torch cannot use it here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # "meta" computes nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise HardwareError(
            f"torch cannot use device {name!r}: {reason}",
            "use device 'cpu', or a torch build and driver for that device",
        ) from error
    return device


@contextmanager
def told_if_full(name: str) -> Iterator[None]:
    """Tell that the device of this name has too little memory for what is done in the context.

    Raises:
        HardwareError: torch ran out of it.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        instead = "free some" if name == "cpu" else "free some, use another, or use device 'cpu'"
        raise HardwareError(f"device {name!r} has too little memory: {reason}", instead) from error
