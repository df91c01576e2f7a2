"""This file owns how a process leaves its group at the end of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

_SETTLE_SECONDS = 0.2
"""For threads that only have to free a few tensors."""


def leave_group(accelerator: Accelerator) -> None:
    """End tracking and the group of processes, and let gloo's threads finish what they hold.

    They free the last collective's tensors after it is done, for which they need Python: where the
    interpreter is gone by then, the process aborts with its work done, "terminate called without an
    active exception" (one run in ten of two processes here). Waiting lets go of the interpreter.
    Source: github.com/pytorch/pytorch, pull request 179291 and issue 190489.
    """
    is_alone = accelerator.num_processes == 1
    accelerator.end_training()
    if not is_alone:
        time.sleep(_SETTLE_SECONDS)
