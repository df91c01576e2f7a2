"""Tests of nvembed_deploy/commands/synthesize.py: a server that fails, a run that is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nvembed_deploy.__main__ import main
from nvembed_deploy.train.example import fault_of
from tests.train.data import raw
from tests.train.data.stub import Stub, serve


def words(stub: Stub, out: Path, *others: str) -> list[str]:
    return ["synthesize", stub.url, "--model", "m", "--tasks", "6", "--out", str(out), *others]


def test_examples_come_in_spite_of_a_busy_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", " secret\n")
    out = tmp_path / "made.jsonl"
    with serve(Stub(lambda _, number: (429, b"busy") if number == 4 else None)) as stub:
        assert main(words(stub, out, "--api-key-env", "MY_KEY")) == 0
    assert {headers["Authorization"] for headers in stub.headers} == {"Bearer secret"}
    rows = raw.read(out)
    assert [fault_of(row) for row in rows] == [None] * 12
    assert f"wrote {out}: 12 examples of 12 ordered" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["made.jsonl"]


def test_a_killed_run_goes_on_and_asks_nothing_again(tmp_path: Path) -> None:
    out, processes = tmp_path / "made.jsonl", []

    def kill(_: Stub, number: int) -> None:
        if number == 9:
            processes[0].send_signal(signal.SIGKILL)

    with serve(Stub(kill)) as stub:
        command = [sys.executable, "-m", "nvembed_deploy", *words(stub, out, "--concurrency", "1")]
        processes.append(subprocess.Popen(command, env={**os.environ, "OPENAI_API_KEY": ""}))
        assert processes[0].wait() == -signal.SIGKILL
        assert not out.exists()
        assert main(words(stub, out, "--keep-replies")) == 0
        asked = stub.prompts()
        assert len(raw.read(out)) == 12
        assert len(asked) - len(set(asked)) <= 1  # the one that was under way
        assert main(words(stub, out, "--keep-replies")) == 0
        assert len(stub.prompts()) == len(asked)


def test_a_refusal_is_two_lines_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.jsonl"
    with serve(Stub(lambda *_: (401, b"wrong key"))) as stub:
        assert main(words(stub, out)) == 2
    assert "refuses model 'm': 401 Unauthorized: wrong key\nfix: " in capsys.readouterr().err
    assert not out.exists()


def test_repeated_and_useless_replies_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.train.data.stub import good_reply

    def reply(prompt: str, number: int) -> str:
        if prompt.startswith("Think"):
            return good_reply(prompt, number)
        task = prompt.split("task: ")[1].split("\n", 1)[0]
        return good_reply(prompt, 7) if number % 4 and len(task) % 2 else "no"

    with serve(Stub(reply=reply)) as stub:
        assert main(words(stub, tmp_path / "made.jsonl", "--tasks", "60")) == 0
    said = capsys.readouterr().out
    assert "x reply of no use: no JSON object" in said
    parts = ("x left out: occurred before", "x not made: no reply was of use", "examples? of 120")
    numbers = [re.search(rf"(\d+) {part}", said) for part in parts]
    assert sum(int(number[1]) for number in numbers if number) == 120
    assert all(numbers)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["localhost:80", "--out", "o.jsonl"], "is no http(s) URL"),
        (["http://localhost:1/v1", "--out", "gone/o.jsonl"], "does not exist"),
        (["http://localhost:1/v1", "--out", "OUT", "--tries", "1"], "failed 1 times"),
    ],
)
def test_wrong_input_is_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], problem: str
) -> None:
    changes = [str(tmp_path / "o.jsonl") if word == "OUT" else word for word in changes]
    assert main(["synthesize", *changes, "--model", "m"]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--timeout", "nan"], ["--timeout=0"], ["--temperature", "nan"]])
def test_a_time_or_temperature_that_is_none_is_refused_before_anything_is_asked(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["synthesize", "http://localhost:1/v1", "--model", "m", "--out", "o.jsonl", *words])
    assert "expected a number from" in capsys.readouterr().err


def test_one_example_is_not_called_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.jsonl"
    with serve(Stub()) as stub:
        assert main([*words(stub, out), "--tasks", "1", "--examples", "1"]) == 0
    assert f"wrote {out}: 1 example of 1 ordered\n" in capsys.readouterr().out


def test_a_key_that_is_none_is_never_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "a\nb")
    with serve(Stub()) as stub:
        assert main(words(stub, tmp_path / "o.jsonl", "--api-key-env", "MY_KEY")) == 2
    assert stub.requests == []
    assert capsys.readouterr().err.startswith("error: MY_KEY holds no key")


def test_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    out, end = tmp_path / "made.jsonl", threading.Event()

    def silent(_: Stub, number: int) -> tuple[int, bytes] | None:
        if number > 6:  # some are in flight, some wait for another try
            end.wait(60)
        return (503, b"busy") if number > 4 else None

    with serve(Stub(silent)) as stub:
        command = [sys.executable, "-m", "nvembed_deploy", *words(stub, out, "--concurrency", "4")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while len(stub.requests) <= 6 and process.poll() is None:
            time.sleep(0.01)
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            error = process.communicate(timeout=30)[1]
        finally:
            process.kill()
            end.set()
        took = time.monotonic() - before
    assert (process.returncode, took < 10, out.exists()) == (130, True, False)
    assert error == "interrupted; nothing half-written was left\n"
    with serve(Stub()) as stub:
        assert main(words(stub, out)) == 0
        assert len(stub.requests) < 12 + 3  # what was answered before is kept
