"""Tests of nvembed_deploy/commands/encode.py: texts in, the encoder's own numbers out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.__main__ import main
from nvembed_deploy.runtimes import encoder

TEXTS = [
    "the cat sat",
    "",
    "  two  spaces ",
    "ünïcode 🦀",
    "a much longer text " * 9,
    "the cat sat",
]
TASK = "find the cat"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> object:
    """Return a function that puts bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))

    return put


@pytest.fixture(scope="module")
def expected(tiny_artifact: Path) -> dict[str, np.ndarray]:
    with load_encoder(tiny_artifact) as encoder:
        return {
            "plain": encoder.encode(TEXTS),
            "task": encoder.encode(TEXTS, instruction=TASK),
            "short": encoder.encode(TEXTS, truncate_dim=16),
        }


def test_lines_of_standard_input_become_rows_of_an_npy(
    tiny_artifact: Path, tmp_path: Path, typed, expected, capsys: pytest.CaptureFixture[str]
) -> None:
    typed("\n".join(TEXTS).encode())
    out = tmp_path / "rows.npy"
    assert main(["encode", str(tiny_artifact), "--out", str(out)]) == 0
    rows = np.load(out)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, expected["plain"])
    assert capsys.readouterr().out == f"wrote {out}: 6 embeddings of 64 dimensions\n"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npy"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_line_ends_and_a_byte_order_mark_are_not_text(
    tiny_artifact: Path, tmp_path: Path, ending: str, bom: bytes, expected
) -> None:
    source, out = tmp_path / "texts.txt", tmp_path / "rows.npy"
    source.write_bytes(bom + ending.join([*TEXTS, ""]).encode())
    assert main(["encode", str(tiny_artifact), "--input", str(source), "--out", str(out)]) == 0
    assert np.array_equal(np.load(out), expected["plain"])


def test_json_lines_keep_their_order_their_other_keys_and_every_bit(
    tiny_artifact: Path, tmp_path: Path, expected
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [{"id": i, "body": text} for i, text in enumerate(TEXTS)]
    source.write_text("\n\n".join(json.dumps(r) for r in records))  # blank lines are skipped
    words = ["--input", str(source), "--field", "body", "--out", str(out), "--instruction", TASK]
    assert main(["encode", str(tiny_artifact), *words]) == 0
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    rows = np.array([record.pop("embedding") for record in written], np.float32)
    assert written == records
    assert np.array_equal(rows, expected["task"])


def test_a_jsonl_file_holds_json_lines(tiny_artifact: Path, tmp_path: Path, expected) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "rows.npy"
    source.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    words = ["encode", str(tiny_artifact), "--input", str(source), "--out", str(out)]
    assert main(words) == 0
    assert np.array_equal(np.load(out), expected["plain"])
    assert main([*words, "--max-length", "5"]) == 0
    with load_encoder(tiny_artifact) as encoder:
        assert np.array_equal(np.load(out), encoder.encode(TEXTS, max_length=5))


def test_without_out_the_json_lines_are_all_of_standard_output(
    tiny_artifact: Path, expected, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for text in TEXTS for word in ("--text", text)]
    assert main(["encode", str(tiny_artifact), *words, "--truncate-dim", "16"]) == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["text"] for record in written] == TEXTS
    assert np.array_equal(np.float32([r["embedding"] for r in written]), expected["short"])


def test_a_prompt_by_name_is_the_encoders_prompt(
    tiny_base: Path, tiny_pooler: Path, tmp_path: Path
) -> None:
    sizes = ["--latents", "12", "--heads", "2", "--pooler", str(tiny_pooler)]
    checkpoint, out = str(tmp_path / "checkpoint"), tmp_path / "rows.npy"
    words = [str(tiny_base), checkpoint, *sizes, "--prompt", "query=find:\\n "]
    assert main(["assemble", *words]) == 0
    words = ["--text", "the cat", "--prompt-name", "query", "--out", str(out)]
    assert main(["encode", checkpoint, *words]) == 0
    with load_encoder(checkpoint) as encoder:
        assert np.array_equal(np.load(out), encoder.encode(["the cat"], prompt="find:\n "))


@pytest.mark.parametrize(
    ("data", "words", "problem"),
    [
        (b"", [], "standard input holds no text"),
        (b"\n \n", ["--field", "text"], "standard input holds no text"),
        (b"fine\n\xff\n", [], "standard input line 2 is not UTF-8"),
        (b'{"text": "a"}\n{"text": \n', ["--field", "text"], "standard input line 2 is not JSON"),
        (b'\n{"body": "a"}\n', ["--field", "text"], "standard input line 2 has no key 'text'"),
        (b'"a"\n', ["--field", "text"], "standard input line 1 is a JSON str"),
        (b'{"text": 7}', ["--field", "text"], "standard input line 1: 'text' is 7"),
        (b"a", ["--prompt-name", "nope"], "prompt_name is 'nope'"),
        (
            b"a",
            ["--truncate-dim", "65"],
            "truncate_dim is 65, expected a whole number from 1 to 64",
        ),
        (b"a", ["--runtime", "magic"], "runtime is 'magic'"),
        (b"a", ["--device", "abacus"], "device is 'abacus'"),
        (b"a", ["--input", "nowhere.txt"], "--input nowhere.txt is not a file"),
        (b"a", ["--text", "b", "--field", "c"], "--field does not go with --text"),
        (b"a", ["--out", "rows.csv"], "--out rows.csv ends in '.csv'"),
        (b"a", ["--out", "nowhere/rows.npy"], "lies in a folder that does not exist"),
        (
            b'\n{"text": "\\ud83d"}',
            ["--field", "text"],
            "standard input line 2: 'text' has half of a surrogate pair",
        ),
        (b'{"text": "a"}', ["--field", ""], "standard input line 1 has no key ''"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_encoded_is_two_lines_and_exit_code_2(  # noqa: PLR0913, PLR0917
    tiny_artifact: Path, typed, capsys, data: bytes, words: list[str], problem: str
) -> None:
    typed(data)
    assert main(["encode", str(tiny_artifact), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err.splitlines()[0]
    assert err.splitlines()[1].startswith("fix: ")


def test_the_input_is_never_overwritten_by_the_output(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = tmp_path / "texts.jsonl"
    same.write_text('{"text": "a"}\n')
    words = ["--input", str(same), "--field", "text", "--out", str(same)]
    assert main(["encode", str(tiny_artifact), *words]) == 2
    assert "is the input itself" in capsys.readouterr().err
    assert same.read_text() == '{"text": "a"}\n'


def test_a_failure_leaves_the_old_output_and_no_litter(
    tiny_artifact: Path, tmp_path: Path, typed
) -> None:
    out = tmp_path / "rows.npy"
    out.write_bytes(b"old")
    typed(b'{"text": "\xed\xa0\x80"}\n')
    assert main(["encode", str(tiny_artifact), "--field", "text", "--out", str(out)]) == 2
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("rows.npy", b"old")]


@pytest.mark.parametrize("name", ["rows.npy", "rows.jsonl"])
def test_records_are_not_kept(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Record(dict[str, str]):
        """A dict that can be watched."""

        __hash__ = object.__hash__

    alive: weakref.WeakSet[Record] = weakref.WeakSet()
    most = 0

    def records(_: object) -> Iterator[Record]:
        nonlocal most
        for _number in range(500):
            record = Record(text="the cat")
            alive.add(record)
            most = max(most, sum(1 for _ in alive))
            yield record

    small = partial(encoder.Stream, window_texts=4)
    monkeypatch.setattr(encoder, "Stream", small)
    monkeypatch.setattr("nvembed_deploy.commands.encode._records", records)
    assert main(["encode", str(tiny_artifact), "--text", "", "--out", str(tmp_path / name)]) == 0
    assert most < 200, "of 500: tee keeps some dozens"


def test_a_reader_that_goes_away_is_no_error(tiny_artifact: Path) -> None:
    command = [sys.executable, "-m", "nvembed_deploy", "encode", str(tiny_artifact)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.close()
    _, err = child.communicate(b"a text\n" * 500)
    assert (child.returncode, err) == (0, b"")


@pytest.mark.parametrize(("closed", "code"), [("<&-", 2), (">&-", 0)])
def test_a_closed_standard_stream_is_no_traceback(
    tiny_artifact: Path, closed: str, code: int
) -> None:
    command = f'echo a | "{sys.executable}" -m nvembed_deploy encode "{tiny_artifact}" {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("standard input holds no text" in done.stderr) == (code == 2)
    assert "Traceback" not in done.stderr


def test_json_survives_a_terminal_that_is_not_utf8(tiny_artifact: Path) -> None:
    command = [sys.executable, "-m", "nvembed_deploy", "encode", str(tiny_artifact)]
    done = subprocess.run(
        command,
        input="ünïcode 🦀\n".encode(),
        capture_output=True,
        env={"PYTHONIOENCODING": "latin-1"},
        check=True,
    )
    assert json.loads(done.stdout)["text"] == "ünïcode 🦀"
