"""Shared by the tests of several processes: each begins with everything imported.

They are forked from one process that has imported torch and all that training needs and has done
nothing else (of this one they could not be: autograd refuses a fork after a backward pass). An
import takes seconds of each process, and torchrun has one of its own.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.distributed import TCPStore

from tests.train import pairs

_MANY_SECONDS = 300
_IMPORTED = ["nvembed_deploy.train.loop", "datasets", "matplotlib.figure", "tests.train.gradients"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_IMPORTED)


def start(
    work: Callable[..., object], *words: object, log: Path, **environment: str
) -> BaseProcess:
    """Begin `work(*words)` in a process of its own, whose output goes to `log`."""
    process = _FORKS.Process(target=_run, args=(work, words, log, environment))
    process.start()
    return process


def two(work: Callable[..., object], *words: object, log: Path) -> None:
    """Do `work(*words)` in two processes that know of each other as torchrun's do."""
    wait = timedelta(seconds=_MANY_SECONDS)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=wait)
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}
    logs = [log.with_name(f"{log.name}{rank}") for rank in range(2)]
    ranks = [
        start(work, *words, log=path, RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank, path in enumerate(logs)
    ]
    try:
        for process, path in zip(ranks, logs, strict=True):
            process.join(_MANY_SECONDS)
            assert process.exitcode == 0, path.read_text()[-5000:]
    finally:
        for process in ranks:
            process.kill()  # one that waits for the other would be waited for at exit, without end


def _run(
    work: Callable[..., object], words: tuple[object, ...], log: Path, environment: dict[str, str]
) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(pairs.ENVIRONMENT | environment)
    torch.set_num_threads(1)
    work(*words)
