"""This file owns commands that a signal meets at their n-th change of the disk, for tests.

One process imports the heavy packages and then forks for every run: a run costs what it does, not
what importing torch does. Nothing in the parent has started a thread, so forking it is safe.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

SERVER = """
import faulthandler, io, json, os, signal, sys
from collections import deque
import onnx, onnx_ir, onnxruntime, tokenizers, torch, transformers
from nvembed_deploy import staging
from nvembed_deploy.__main__ import main
from nvembed_deploy.export import pipeline
from nvembed_deploy.model import assemble, streaming

CHANGES = {"dlopen", "fsync", "fromfile", "mkdir", "open", "remove", "rename", "replace", "rmdir",
           "sendfile", "tofile", "unlink", "write", "writelines"}

def run(argv, signum, at, exchange):
    if not exchange:
        staging._exchange = lambda one, other: False
    steps = 0
    def watch(frame, event, function):
        nonlocal steps
        name = getattr(function, "__name__", "") if event == "c_call" else ""
        if isinstance(getattr(function, "__self__", None), (str, list, deque)):
            return  # str.replace, list.remove: not of the disk
        if name == "mkdir" or (steps and name in CHANGES):
            steps += 1
            if steps == at:
                signal.raise_signal(signum)
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    sys.setprofile(watch)
    code = main(argv)
    sys.setprofile(None)
    return code, steps, sys.stderr.getvalue()

for line in sys.stdin:
    request = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(20, exit=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code, steps, err = run(**request)
        os.write(write, json.dumps({"code": code, "steps": steps, "err": err}).encode())
        os._exit(0)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answer = os.fdopen(read).read()
    print(answer or json.dumps({"code": status, "steps": 0, "err": ""}), flush=True)
"""
"""Counts the calls of C functions that change the disk, or read it, from the first mkdir on.

`dlopen` comes right before two folders are exchanged. Without `exchange` the system has no such
call, as outside Linux.
"""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code (-9 if killed), the steps it took, what it said."""

    code: int
    steps: int
    err: str


class Runner:
    """Runs `nvembed-deploy` again and again, each time in a fork of one process."""

    def __init__(self) -> None:
        """Start that process."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: object, signum: int = 0, at: int = 0, exchange: bool = True) -> Outcome:
        """Run a command; before its step `at` (from 1; 0 is never) it gets the signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [str(word) for word in argv]
        request = {"argv": words, "signum": signum, "at": at, "exchange": exchange}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` steps of `count`, evenly, the first and the last among them."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (most - 1)) for i in range(most)})
