"""This file owns the parent's end of a worker: start it, ask it, stop it.

A process of its own gives each side its own memory, thread pools and imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Self

from nvembed_deploy import errors
from nvembed_deploy.bench.side import Side

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerProcess:
    """A running worker; a context manager that ends it."""

    def __init__(self, name: str, threads: int | None = None) -> None:
        """Start a Python for the side called `name`, with `threads` where they are given."""
        self.name = name
        self.fault: errors.NVEmbedError | None = None
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.started = time.perf_counter()
        environment = dict(os.environ)
        if threads is not None:
            environment |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nvembed_deploy.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            encoding="utf-8",
            env=environment,
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, do: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON data
        """Send a request and wait for its answer.

        Raises:
            NVEmbedError: what the worker raised, with the side's name; kept as `fault`.
            HardwareError: the process is gone; kept too.
        """
        try:
            return self._ask(json.dumps({"do": do} | request) + "\n")
        except errors.NVEmbedError as error:
            self.fault = error
            raise

    def _ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise errors.HardwareError(
                f"{self.name}: its process ended with code {self._process.wait()}",
                self._last_words() + "-9 is too little memory: measure fewer sides at once",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"])
            kind = errors.InputError if issubclass(kind, errors.TextError) else kind
            raise kind(f"{self.name}: {answer['problem']}", answer["fix"])
        return answer

    def close(self) -> None:
        """End the process and wait for it."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # a request that a dead process did not read
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._printed.close()

    def _last_words(self) -> str:
        """Return the last line that it printed, if there is one."""
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").split("\n")
        found = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its last line was {found!r}; " * bool(found)

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        self.close()


def start(side: Side) -> tuple[WorkerProcess, dict[str, Any]]:
    """Start a worker, open the side, embed one text.

    Returns:
        The worker, and `load_seconds`, `cold_start_seconds` (from starting Python to the first
        embedding), the `dimensions` of that and the side's `facts`.
    """
    worker = WorkerProcess(side.name, side.threads)
    try:
        opened = worker.ask("open", side=side.to_dict())
        first = worker.ask("encode", groups=[["", ["a first text"]]])
    except BaseException:
        worker.close()
        raise
    seconds = time.perf_counter() - worker.started
    return worker, opened | {"cold_start_seconds": seconds, "dimensions": first["dimensions"]}
