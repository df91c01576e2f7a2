"""This file owns one side's process: it opens the side, encodes on request, and says what it took.

Requests come on standard input, one JSON object a line (`do` says what), answers go to standard
output. What libraries print goes to standard error. Run by `process.py`, not by people.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO, Any

from nvembed_deploy.bench.side import Side
from nvembed_deploy.bench.subject import Subject, open_subject
from nvembed_deploy.errors import NVEmbedError


class Worker:
    """The side that is open in this process, and what may be asked of it."""

    def __init__(self) -> None:
        """Begin with no side open."""
        self._subject: Subject | None = None

    @property
    def _open(self) -> Subject:
        assert self._subject is not None, "no side is open"
        return self._subject

    def open(self, side: dict[str, Any]) -> dict[str, Any]:
        """Open a side; say how long it took."""
        started = time.perf_counter()
        self._subject = open_subject(Side.from_dict(side))
        return {"load_seconds": time.perf_counter() - started, "facts": self._subject.facts}

    def encode(self, groups: list[list[Any]], out: str | None = None) -> dict[str, Any]:
        """Encode groups of (instruction, texts) one after another; `out` keeps the rows (.npy)."""
        started = time.perf_counter()
        rows = [self._open.encode(texts, instruction) for instruction, texts in groups]
        seconds = time.perf_counter() - started
        if out is not None:
            import numpy as np

            np.save(Path(out), np.concatenate(rows))
        return {"seconds": seconds, "dimensions": rows[0].shape[1]}

    def tokenize(self, groups: list[list[Any]]) -> dict[str, Any]:
        """Tokenise the same way; return the real tokens of each text too."""
        if self._open.tokenize is None:
            return {"seconds": None, "lengths": None}
        started = time.perf_counter()
        lengths = [n for prefix, texts in groups for n in self._open.tokenize(texts, prefix)]
        return {"seconds": time.perf_counter() - started, "lengths": lengths}

    def memory(self) -> dict[str, Any]:
        """Return the largest resident size so far."""
        from nvembed_deploy.export.memory import peak_bytes

        return {"peak_bytes": peak_bytes()}

    def ceiling(self, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Time matrix products; see `ceiling.py`."""
        from nvembed_deploy.bench.ceiling import measure_ceiling

        return measure_ceiling(**request)

    def prepare(self, checkpoint: str, folder: str, is_traced: bool) -> dict[str, Any]:
        """Write the checkpoint's weights in the competitors' own formats."""
        from nvembed_deploy.bench.competitors.weights import prepare

        prepare(Path(checkpoint), Path(folder), is_traced=is_traced)
        return {}


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer each request until there is none."""
    worker = Worker()
    for line in requests:
        request = json.loads(line)
        answer = _answer(getattr(worker, request.pop("do")), request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(method: Any, request: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - a method
    try:
        answer: dict[str, Any] = method(**request)
    except NVEmbedError as error:
        return {"error": type(error).__name__, "problem": error.problem, "fix": error.fix}
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        return {
            "error": "MissingPackageError",
            "problem": f"this needs {package}, which is not installed",
            "fix": f"pip install {package.replace('_', '-')}",
        }
    except Exception as error:  # noqa: BLE001, RUF100 - a competitor's fault is a result too
        return {
            "error": "HardwareError",
            "problem": f"{type(error).__name__}: {error}",
            "fix": "leave this side out, or make its packages and this machine fit it",
        }
    return answer


def main() -> None:
    """Keep standard output for answers, and serve; the parent decides what an interrupt ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
