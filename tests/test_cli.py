"""Tests of cli.py: exit codes, error lines, and what users never see."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from nvembed_deploy import cli
from nvembed_deploy.errors import (
    ArtifactError,
    CheckpointError,
    GateError,
    HardwareError,
    InputError,
    MissingPackageError,
    NVEmbedError,
    RecipeError,
)

CODES = {
    ArtifactError: 2,
    CheckpointError: 2,
    GateError: 1,
    HardwareError: 3,
    InputError: 2,
    MissingPackageError: 3,
    RecipeError: 2,
}


def raising(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def command(_: argparse.Namespace) -> None:
        raise error

    return command


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda v: getattr(v, "__name__", v))
def test_an_error_is_two_lines_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], kind: type[NVEmbedError], code: int
) -> None:
    error = kind("it broke at 7: got 1, expected 2", "mend it")
    assert cli.run(raising(error), argparse.Namespace()) == code
    assert capsys.readouterr() == ("", "error: it broke at 7: got 1, expected 2\nfix: mend it\n")


@pytest.mark.parametrize("error", [InputError("a", "b"), PermissionError(13, "denied", "f")])
def test_the_traceback_is_there_for_who_asks(error: Exception) -> None:
    with pytest.raises(type(error)):
        cli.run(raising(error), argparse.Namespace(traceback=True))


def test_an_error_of_the_system_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(28, "No space left on device", "out/model.onnx_data")
    assert cli.run(raising(error), argparse.Namespace(traceback=False)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: [Errno 28] No space left on device: 'out/model.onnx_data'\nfix:")


def too_large_an_array(_: argparse.Namespace) -> None:
    np.empty(1 << 60, np.uint8)


def too_large_a_tensor(_: argparse.Namespace) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def too_large_for_a_gpu(_: argparse.Namespace) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words")


def too_large_for_onnx_runtime(_: argparse.Namespace) -> None:
    raise Fail("Non-zero status code: Failed to allocate memory for requested buffer of size 9")


@pytest.mark.parametrize(
    "command",
    [too_large_an_array, too_large_a_tensor, too_large_for_a_gpu, too_large_for_onnx_runtime],
)
def test_want_of_memory_is_two_lines_and_3(
    capsys: pytest.CaptureFixture[str], command: Callable[[argparse.Namespace], None]
) -> None:
    assert cli.run(command, argparse.Namespace()) == 3
    problem, fix = capsys.readouterr().err.splitlines()
    assert problem.startswith("error: not enough memory: ")
    assert fix.startswith("fix: free some")
    with pytest.raises((MemoryError, RuntimeError, Fail)):
        cli.run(command, argparse.Namespace(traceback=True))


def test_a_bug_of_ours_is_not_dressed_up_as_bad_input() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()), argparse.Namespace())


def test_an_interrupt_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(raising(KeyboardInterrupt()), argparse.Namespace()) == 130
    assert capsys.readouterr() == ("", "interrupted; nothing half-written was left\n")


def test_being_told_to_end_is_one_line_and_143(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def command(_: argparse.Namespace) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    assert cli.run(command, argparse.Namespace()) == 143
    assert cleaned
    assert capsys.readouterr() == ("", "interrupted; nothing half-written was left\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_handles_sigterm_keeps_it() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        assert cli.run(lambda _: signal.raise_signal(signal.SIGTERM), argparse.Namespace()) == 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert seen == [signal.SIGTERM]


def test_success_is_0_even_where_standard_output_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.run(lambda _: cli.say("hello"), argparse.Namespace()) == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (15_700_000_000, "14.6 GiB"),
        (2**50, "1048576.0 GiB"),
    ],
)
def test_sizes_are_written_as_people_do(count: int, text: str) -> None:
    assert cli.human_bytes(count) == text


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "many"])
def test_a_number_that_counts_things_is_at_least_1(text: str) -> None:
    assert cli.positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        cli.positive(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0.0009", "1e300", "x", ""])
def test_a_number_is_finite_and_in_its_bounds(text: str) -> None:
    assert cli.number("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a number from 0\.001 to 1e"):
        cli.number(text, least=0.001)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (95, "95 s"), (131, "2 min"), (6000, "100 min"), (9456, "2 h 38 min")],
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert cli.human_seconds(seconds) == said


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    cli.check_out("--out", None)
    cli.check_out("--out", tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        cli.check_out("--out", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        cli.check_out("--out", tmp_path / "gone" / "rows.jsonl")


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "latin-1", write_through=True))
    cli.say("caf\xe9 \u65e5")
    assert written.getvalue() == b"caf\xe9 \\u65e5\n"


def test_tables_lack_nothing_else_where_a_terminal_cannot_show_a_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "latin-1", write_through=True))
    with cli.console(150) as console:
        console.print("a" * 140, "\u65e5")
    assert written.getvalue() == b"a" * 140 + b" \\u65e5\n"


GATE = "raise GateError('below', 'look')"
TABLE = "exec('with cli.console() as console: console.print(1)')"
TOLD = b"error: below\nfix: look\n"


def run_with_output(shown: str, output: int, *, is_buffered: bool) -> tuple[int, bytes]:
    """Run a command that shows something and may raise; return its code and its errors."""
    code = f"""
import argparse
from nvembed_deploy import cli
from nvembed_deploy.errors import GateError
def show(_):
    print(end="held back" if {is_buffered} else "")
    {shown}
raise SystemExit(cli.run(show, argparse.Namespace()))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, *([] if is_buffered else ["-u"]), "-c", code]
    done = subprocess.run(
        command, stdout=output, stderr=subprocess.PIPE, env=environment, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("shown", [TABLE, "cli.say_to_any('{}')"], ids=["table", "json"])
@pytest.mark.parametrize("is_buffered", [True, False])
@pytest.mark.parametrize("gate", ["", GATE])
def test_a_gate_decides_whether_or_not_somebody_reads_its_result(
    shown: str, gate: str, *, is_buffered: bool
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    found = run_with_output(f"{shown}; {shown}; {gate}", writer, is_buffered=is_buffered)
    os.close(writer)
    assert found == ((1, TOLD) if gate else (0, b""))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_what_could_not_be_written_changes_no_exit_code() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    assert run_with_output(GATE, full, is_buffered=True) == (1, TOLD)
    code, said = run_with_output("pass", full, is_buffered=True)
    os.close(full)
    assert code == 2
    assert said.startswith(b"error: [Errno 28] No space left on device\nfix:")
    assert said.count(b"\n") == 2
