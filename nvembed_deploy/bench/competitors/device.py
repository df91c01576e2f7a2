"""This file owns where a torch competitor runs."""

from __future__ import annotations

import torch  # noqa: TID253 - only the worker of such a side imports this file

from nvembed_deploy.bench.side import Side


def torch_device(side: Side) -> torch.device:
    """Return the side's device, by default a GPU where there is one; set its threads."""
    if side.threads is not None:
        torch.set_num_threads(side.threads)
    return torch.device(side.device or ("cuda" if torch.cuda.is_available() else "cpu"))
