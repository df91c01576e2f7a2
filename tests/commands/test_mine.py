"""Tests of nvembed_deploy/commands/mine.py: a real encoder as teacher, killed and run again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nvembed_deploy import load_encoder
from nvembed_deploy.__main__ import main
from nvembed_deploy.train.example import fault_of
from tests.train.data import raw

TASK = "find the text"
WORDS = ("cat", "dog", "mat", "sun", "hat", "bee", "tea", "oak")
ROWS = [
    {"query": f"the {one} and the {two}", "positive": f"{two} {one}", "instruction": TASK}
    for one in WORDS
    for two in WORDS
    if one != two
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return raw.write(tmp_path / "pairs.jsonl", ROWS)


@pytest.mark.parametrize("teacher", ["tiny_artifact", "tiny_assembled"])
def test_an_artifact_and_a_checkpoint_teach_alike(
    pairs: Path, tmp_path: Path, teacher: str, request: pytest.FixtureRequest
) -> None:
    folder, out = request.getfixturevalue(teacher), tmp_path / "mined.jsonl"
    words = ["--negatives", "3", "--rule", "margin", "--margin", "0.01", "--depth", "30"]
    assert main(["mine", str(pairs), str(folder), "--out", str(out), *words]) == 0
    mined = raw.read(out)
    assert [row["query"] for row in mined] == [row["query"] for row in ROWS]
    assert [fault_of(row) for row in mined] == [None] * len(ROWS)
    with load_encoder(folder) as encoder:
        query_ND = encoder.encode([row["query"] for row in mined], instruction=TASK)
        positive_ND = encoder.encode([row["positive"] for row in mined])
    expected = (query_ND * positive_ND).sum(axis=1)
    assert np.allclose([row["positive_score"] for row in mined], expected, atol=1e-4)
    for row in mined:
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
        assert all(s <= row["positive_score"] - 0.0098 for s in row["negative_scores"])
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.jsonl", "mined.jsonl"}


def test_the_report_counts_and_a_cache_serves_the_next_rule(
    pairs: Path, tmp_path: Path, tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["mine", str(pairs), str(tiny_artifact), "--out", str(tmp_path / "o.jsonl")]
    words += ["--cache", str(tmp_path / "cache"), "--corpus", str(tmp_path / "corpus.jsonl")]
    raw.write(tmp_path / "corpus.jsonl", [{"text": "unrelated"}])
    assert main([*words, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["rows"], counts["passages"]) == (56, 57)
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.f32")}
    assert main([*words, "--rule", "top-k"]) == 0
    assert stamps == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.f32")}
    said = capsys.readouterr().out
    assert "rejected as false negatives: 0 candidates in 0 rows (0.0%)" in said
    assert f"wrote {tmp_path / 'o.jsonl'}: 56 examples" in said


def test_one_example_is_not_called_several(
    tmp_path: Path, tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = raw.write(tmp_path / "one.jsonl", ROWS[:1])
    out = tmp_path / "mined.jsonl"
    assert main(["mine", str(one), str(tiny_artifact), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 row, 1 passage, 0 negatives\n")
    assert f"wrote {out}: 1 example\n" in said


def test_a_run_killed_at_any_time_leaves_no_output_and_goes_on(
    pairs: Path, tmp_path: Path, tiny_artifact: Path
) -> None:
    cache, whole, out = tmp_path / "cache", tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    words = ["mine", str(pairs), str(tiny_artifact), "--batch-size", "1", "--threads", "1"]
    assert main([*words, "--out", str(whole)]) == 0
    command = [sys.executable, "-m", "nvembed_deploy", *words]
    process = subprocess.Popen([*command, "--out", str(out), "--cache", str(cache)])
    while not list(cache.glob("*.lock")) and process.poll() is None:  # it has begun to embed
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in {-signal.SIGKILL, 0}
    assert not out.exists() or out.read_bytes() == whole.read_bytes()
    assert main([*words, "--out", str(out), "--cache", str(cache)]) == 0
    assert out.read_bytes() == whole.read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"pairs.jsonl", "whole.jsonl", "out.jsonl", "cache"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["gone.jsonl", "TEACHER"], "gone.jsonl is not a file"),
        (["PAIRS", "gone"], "gone is neither an artifact"),
        (["EMPTY", "TEACHER"], "holds no example"),
        (["PAIRS", "TEACHER", "--margin", "3"], "margin is 3.0, expected 0 to 1"),
        (["PAIRS", "TEACHER", "--depth", "5"], "depth is 5, expected more than the 7"),
        (["PAIRS", "TEACHER", "--corpus", "EMPTY"], "holds no text"),
        (["PAIRS", "TEACHER", "--out", "gone/o.jsonl"], "does not exist"),
        (["PAIRS", "TEACHER", "--out", "o.json"], "o.json is named as another format"),
    ],
)
def test_wrong_input_is_two_lines_and_no_file(
    pairs: Path,
    tiny_artifact: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    problem: str,
) -> None:
    folder = pairs.parent
    empty = raw.write(folder / "empty.jsonl", [])
    named = {"PAIRS": pairs, "TEACHER": tiny_artifact, "EMPTY": empty}
    out = [] if "--out" in words else ["--out", str(folder / "o.jsonl")]
    assert main(["mine", *(str(named.get(word, word)) for word in words), *out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert problem in error
    assert {p.name for p in folder.iterdir()} == {"pairs.jsonl", "empty.jsonl"}


def test_a_bad_line_is_left_out_and_counted(
    pairs: Path, tmp_path: Path, tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.write(pairs, [*ROWS, {"query": "a", "positive": " "}])
    words = ["mine", str(pairs), str(tiny_artifact), "--out", str(tmp_path / "o.jsonl")]
    assert main(words) == 2
    assert "line 57: positive is empty" in capsys.readouterr().err
    assert main([*words, "--skip-bad"]) == 0
    assert "left out 1 x positive is empty" in capsys.readouterr().out
